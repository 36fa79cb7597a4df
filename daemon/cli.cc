#include "daemon/cli.h"

#include <signal.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <functional>
#include <string>

#include <CLI/CLI.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "daemon/cli_artifact.h"
#include "daemon/cli_content.h"
#include "daemon/cli_doctor.h"
#include "daemon/cli_export.h"
#include "daemon/cli_leases.h"
#include "daemon/cli_maintenance.h"
#include "daemon/cli_pull.h"
#include "daemon/cli_upgrade.h"
#include "daemon/control_client.h"
#include "daemon/report.h"

namespace lazyblob::daemon {
namespace {

namespace api = ::lazyblob::control::v1;

// CLI11's own environment defaults are applied by subcommands that were not even given.
std::string Environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

struct Arguments {
  std::string root = "/var/lib/lazyblob";
  bool root_given = false;  // else pull and doctor take the configured one
  std::string reference;
  std::string directory;
  std::string target;
  std::string platform;
  std::string mode = "auto";
  std::string progress = "auto";
  std::string config = "/etc/lazyblob/config.toml";
  std::string containerd = Environment("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock");
  std::string containerd_config = "/etc/containerd/config.toml";
  std::string name_space = Environment("CONTAINERD_NAMESPACE", "default");
  std::string snapshotter = "lazyblob";
  bool plain_http = false;
  bool json = false;
  bool foreground = false;
};

absl::StatusOr<std::string> Absolute(const std::string& path) {
  if (absl::StartsWith(path, "/")) return path;
  char buffer[PATH_MAX];
  if (getcwd(buffer, sizeof buffer) == nullptr) return base::ErrnoStatus(errno, "getcwd");
  return absl::StrCat(buffer, "/", path);
}

// Symbolic links resolved: the name under which the kernel knows a mount.
absl::StatusOr<std::string> RealDirectory(const std::string& path) {
  char* resolved = realpath(path.c_str(), nullptr);
  if (resolved == nullptr)
    return base::ErrnoStatus(errno, absl::StrCat("mount point ", base::Printable(path)));
  std::string directory = resolved;
  free(resolved);
  return directory;
}

std::string DockerConfigPath() {
  const char* directory = std::getenv("DOCKER_CONFIG");
  if (directory != nullptr && *directory != '\0') return absl::StrCat(directory, "/config.json");
  const char* home = std::getenv("HOME");
  return absl::StrCat(home != nullptr ? home : "/root", "/.docker/config.json");
}

class Commands {
 public:
  Commands(const Arguments& arguments, CliIo io) : arguments_(arguments), io_(io) {}

  absl::Status Mount() {
    RETURN_IF_ERROR(RequireRoot());
    api::MountRequest request;
    ASSIGN_OR_RETURN(*request.mutable_image(), Image());
    ASSIGN_OR_RETURN(std::string directory, RealDirectory(arguments_.directory));
    request.set_directory(directory);
    request.set_mode(arguments_.mode);
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    if (arguments_.foreground) pthread_sigmask(SIG_BLOCK, &stop, nullptr);
    RETURN_IF_ERROR(Run([&](ControlClient& client, ControlClient::OnProgress progress) {
      return client.Mount(request, progress);
    }));
    if (!arguments_.foreground) return absl::OkStatus();
    int signal = 0;
    sigwait(&stop, &signal);
    return UnmountDirectory(directory);
  }

  absl::Status Index() {
    RETURN_IF_ERROR(RequireRoot());
    api::IndexRequest request;
    ASSIGN_OR_RETURN(*request.mutable_image(), Image());
    return Run([&](ControlClient& client, ControlClient::OnProgress progress) {
      return client.Index(request, progress);
    });
  }

  absl::Status Pull() {
    RETURN_IF_ERROR(RequireRoot());
    PullArguments pull;
    if (arguments_.root_given) pull.root = arguments_.root;
    pull.config = arguments_.config;
    pull.reference = arguments_.reference;
    pull.platform = arguments_.platform;
    pull.containerd = arguments_.containerd;
    pull.name_space = arguments_.name_space;
    pull.snapshotter = arguments_.snapshotter;
    pull.docker_config = DockerConfigPath();
    pull.progress = arguments_.progress;
    pull.plain_http = arguments_.plain_http;
    pull.json = arguments_.json;
    return RunPull(pull, io_);
  }

  absl::Status Doctor() {
    DoctorArguments doctor;
    if (arguments_.root_given) doctor.root = arguments_.root;
    doctor.config = arguments_.config;
    doctor.containerd = arguments_.containerd;
    doctor.containerd_config = arguments_.containerd_config;
    doctor.snapshotter = arguments_.snapshotter;
    doctor.json = arguments_.json;
    return RunDoctor(doctor, io_);
  }

  absl::Status Unmount() {
    RETURN_IF_ERROR(RequireRoot());
    ASSIGN_OR_RETURN(std::string directory, RealDirectory(arguments_.directory));
    return UnmountDirectory(directory);
  }

  absl::Status Status() {
    RETURN_IF_ERROR(RequireRoot());
    auto client = ControlClient::Connect(arguments_.root);
    api::StatusResponse status;
    if (client.ok()) {
      std::string target = arguments_.target;
      if (char* resolved = target.empty() ? nullptr : realpath(target.c_str(), nullptr)) {
        target = resolved;
        free(resolved);
      }
      ASSIGN_OR_RETURN(status, (*client)->Status(target));
    } else if (!absl::IsUnavailable(client.status()) || !arguments_.target.empty()) {
      return client.status();
    }
    if (arguments_.json) {
      bool one = !arguments_.target.empty() && status.mounts_size() == 1;
      io_.out << (one ? ToJson(status.mounts(0)) : ToJson(status)).dump(2) << "\n";
    } else {
      for (const auto& mount : status.mounts()) PrintMount(mount, io_.out);
      PrintSnapshots(status, io_.out);
      PrintScrub(status, io_.out);
    }
    return absl::OkStatus();
  }

 private:
  static absl::Status RequireRoot() {
    if (geteuid() == 0) return absl::OkStatus();
    return absl::PermissionDeniedError("must run as root: mounting needs it");
  }

  absl::Status UnmountDirectory(const std::string& directory) {
    auto client = ControlClient::Connect(arguments_.root);
    if (absl::IsUnavailable(client.status())) {
      return absl::NotFoundError(absl::StrCat(base::Printable(directory), ": not mounted, no daemon serves ",
                                              arguments_.root, "; name its state directory with --root"));
    }
    RETURN_IF_ERROR(client.status());
    return (*client)->Unmount(directory);
  }

  absl::StatusOr<api::ImageSource> Image() {
    api::ImageSource image;
    image.set_reference(arguments_.reference);
    if (absl::StartsWith(arguments_.reference, "oci:")) {
      ASSIGN_OR_RETURN(std::string path, Absolute(arguments_.reference.substr(4)));
      image.set_reference("oci:" + path);
    }
    image.set_platform(arguments_.platform);
    image.set_plain_http(arguments_.plain_http);
    image.set_docker_config(DockerConfigPath());
    return image;
  }

  using Call = std::function<absl::StatusOr<api::MountStatus>(ControlClient&, ControlClient::OnProgress)>;

  // Calls the daemon, started if need be, and prints its answer. A daemon that was just ending is replaced
  // once.
  absl::Status Run(const Call& call) {
    ProgressPrinter printer(ProgressPrinter::ParseStyle(arguments_.progress, io_.terminal), io_.err);
    auto on_progress = [&](const api::MountEvent::LayerProgress& progress) { printer.Update(progress); };
    absl::StatusOr<api::MountStatus> result = absl::AbortedError("no daemon");
    for (int attempt = 0; attempt < 2 && absl::IsAborted(result.status()); ++attempt) {
      ASSIGN_OR_RETURN(auto client, ControlClient::ConnectOrStart(arguments_.root));
      result = call(*client, on_progress);
    }
    printer.Finish();
    RETURN_IF_ERROR(result.status());
    if (arguments_.json) {
      io_.out << ToJson(*result).dump(2) << "\n";
    } else {
      PrintMount(*result, io_.out);
    }
    return absl::OkStatus();
  }

  const Arguments& arguments_;
  CliIo io_;
};

void AddImageOptions(CLI::App* command, Arguments* arguments) {
  command->add_option("REF", arguments->reference, "host[:port]/name[:tag|@digest] or oci:DIR[:tag]")
      ->required();
  command->add_option("--platform", arguments->platform, "os/arch[/variant]; default: this machine's");
  command->add_flag("--plain-http", arguments->plain_http, "talk http, not https, to the registry");
  command->add_option("--progress", arguments->progress, "auto, plain, json or none")
      ->check(CLI::IsMember({"auto", "plain", "json", "none"}));
}

void AddContainerdOptions(CLI::App* command, Arguments* arguments) {
  command->add_option("--config", arguments->config, "lazyblobd's configuration")->capture_default_str();
  command->add_option("--containerd", arguments->containerd, "containerd's socket")->capture_default_str();
  command
      ->add_option("--snapshotter", arguments->snapshotter, "the name under which containerd knows lazyblobd")
      ->capture_default_str();
}

void AddMountCommands(CLI::App* app, Arguments* arguments, Commands* commands,
                      std::function<absl::Status()>* run) {
  CLI::App* mount = app->add_subcommand("mount", "mount an image's root file system");
  AddImageOptions(mount, arguments);
  mount->add_option("DIR", arguments->directory, "empty directory")->required();
  mount->add_option("--mode", arguments->mode, "auto, erofs, loop or fuse")
      ->check(CLI::IsMember({"auto", "erofs", "loop", "fuse"}));
  mount->add_flag("--foreground", arguments->foreground, "stay, and unmount on SIGINT or SIGTERM");
  mount->callback([=] { *run = [=] { return commands->Mount(); }; });

  CLI::App* umount = app->add_subcommand("umount", "unmount");
  umount->add_option("DIR", arguments->directory)->required();
  umount->callback([=] { *run = [=] { return commands->Unmount(); }; });

  CLI::App* status =
      app->add_subcommand("status", "what is mounted, what was fetched, what is not lazy and why");
  status->add_option("TARGET", arguments->target, "a mount's directory or reference; default: all");
  status->callback([=] { *run = [=] { return commands->Status(); }; });

  CLI::App* index =
      app->add_subcommand("index", "build the indexes of an image's plain layers, keep no data");
  AddImageOptions(index, arguments);
  index->callback([=] { *run = [=] { return commands->Index(); }; });
}

void AddContainerdCommands(CLI::App* app, Arguments* arguments, Commands* commands,
                           std::function<absl::Status()>* run) {
  CLI::App* pull = app->add_subcommand("pull", "pull an image into containerd, lazily");
  AddImageOptions(pull, arguments);
  AddContainerdOptions(pull, arguments);
  pull->add_option("--namespace", arguments->name_space, "containerd's namespace; Kubernetes uses k8s.io")
      ->capture_default_str();
  pull->callback([=] { *run = [=] { return commands->Pull(); }; });

  CLI::App* doctor =
      app->add_subcommand("doctor", "what is wrong with this machine, and what to do about it");
  AddContainerdOptions(doctor, arguments);
  doctor->add_option("--containerd-config", arguments->containerd_config, "containerd's configuration")
      ->capture_default_str();
  doctor->callback([=] { *run = [=] { return commands->Doctor(); }; });
}

}  // namespace

int RunCli(int argc, const char* const* argv, CliIo io) {
  Arguments arguments;
  Commands commands(arguments, io);
  std::function<absl::Status()> run;
  CLI::App app("lazyblob: container images, mounted before they are downloaded", "lazyblob");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--root", arguments.root, "state directory")->capture_default_str();
  app.add_flag("--json", arguments.json, "machine-readable output");

  AddMountCommands(&app, &arguments, &commands, &run);
  AddContainerdCommands(&app, &arguments, &commands, &run);

  ExportArguments exports;
  AddExportCommands(&app, &exports, [&] {
    run = [&] { return RunExportCommand(exports, arguments.root, DockerConfigPath(), arguments.json, io); };
  });

  ArtifactArguments artifacts;
  AddArtifactCommands(&app, &artifacts, [&] {
    run = [&] {
      return RunArtifactCommand(artifacts, arguments.root, DockerConfigPath(), arguments.json, io);
    };
  });

  LeasesArguments leases;
  AddLeasesCommand(&app, &leases, [&] {
    run = [&] { return RunLeasesCommand(leases, arguments.root, arguments.json, io); };
  });

  UpgradeArguments upgrade;
  AddUpgradeCommand(&app, &upgrade,
                    [&] { run = [&] { return RunUpgradeCommand(upgrade, arguments.root, io); }; });

  MaintenanceArguments maintenance;
  int exit_code = 0;
  AddMaintenanceCommands(&app, &maintenance, [&] {
    run = [&] { return RunMaintenanceCommand(maintenance, arguments.root, arguments.json, io, &exit_code); };
  });

  ContentArguments content;
  AddContentCommands(&app, &content, [&] {
    run = [&] {
      return RunContentCommand(content, arguments.root_given ? arguments.root : "", arguments.json, io);
    };
  });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, io.out, io.err);
  }
  auto root = Absolute(arguments.root);
  absl::Status result = root.status();
  if (root.ok()) {
    arguments.root = *root;
    arguments.root_given = app.count("--root") > 0;
    result = run();
  }
  if (result.ok()) return exit_code;
  io.err << "lazyblob: " << result.message() << "\n";
  return exit_code != 0 ? exit_code : 1;
}

}  // namespace lazyblob::daemon

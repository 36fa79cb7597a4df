#include "daemon/cli_maintenance.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/control_client.h"
#include "daemon/fsck.h"
#include "daemon/state_root.h"

namespace lazyblob::daemon {
namespace {

constexpr int kRepaired = 1;
constexpr int kLeft = 2;
constexpr int kNotDone = 8;

absl::Status RunGc(const std::string& root, bool dry_run, bool json, CliIo io) {
  ASSIGN_OR_RETURN(auto client, ControlClient::ConnectOrStart(root));
  ASSIGN_OR_RETURN(const std::vector<maintenance::v1::Garbage> garbage, client->CollectGarbage(dry_run));
  uint64_t bytes = 0;
  nlohmann::json list = nlohmann::json::array();
  for (const maintenance::v1::Garbage& one : garbage) {
    bytes += one.bytes();
    list.push_back({{"what", one.what()}, {"bytes", one.bytes()}});
    if (!json) {
      io.out << absl::StrCat(dry_run ? "would remove " : "removed ", one.what(), ", ", one.bytes(),
                             " bytes\n");
    }
  }
  if (json) {
    io.out << nlohmann::json{{"dryRun", dry_run}, {"garbage", std::move(list)}, {"bytes", bytes}}.dump(2)
           << "\n";
  } else {
    io.out << absl::StrCat(bytes, dry_run ? " bytes would be freed\n" : " bytes freed\n");
  }
  return absl::OkStatus();
}

// The lock of a root at rest; none while a daemon serves it.
absl::StatusOr<base::UniqueFd> LockAtRest(const std::string& root) {
  struct stat st{};
  if (stat((root + "/lock").c_str(), &st) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("state root ", base::Printable(root)));
  }
  absl::StatusOr<base::UniqueFd> lock = LockStateRoot(root, absl::ZeroDuration());
  if (lock.ok() || !ControlClient::Connect(root).ok()) return lock;
  return base::UniqueFd();
}

absl::Status RunFsck(const std::string& root, bool repair, bool json, CliIo io, int* exit_code) {
  ASSIGN_OR_RETURN(const base::UniqueFd lock, LockAtRest(root));
  if (repair && !lock.valid()) {
    return absl::FailedPreconditionError(absl::StrCat("a daemon serves ", base::Printable(root),
                                                      "; stop it to repair (systemctl stop lazyblob)"));
  }
  contentstore::CheckOptions options;
  options.alone = lock.valid();
  options.repair = repair;
  FsckTotals totals;
  uint64_t findings = 0, left = 0;
  nlohmann::json list = nlohmann::json::array();
  auto found = [&](const contentstore::CheckFinding& finding) {
    ++findings;
    left += finding.repaired ? 0 : 1;
    if (json) {
      list.push_back({{"what", finding.what}, {"repaired", finding.repaired}});
    } else {
      io.out << (finding.repaired ? "repaired: " : "damaged: ") << finding.what << "\n";
    }
  };
  RETURN_IF_ERROR(Fsck(root, options, found, &totals));
  *exit_code = findings == 0 ? 0 : left == 0 ? kRepaired : kLeft;
  if (json) {
    io.out << nlohmann::json{{"findings", std::move(list)},    {"layers", totals.layers.layers},
                             {"chunks", totals.layers.chunks}, {"bytes", totals.layers.bytes},
                             {"snapshots", totals.snapshots},  {"blobs", totals.blobs}}
                  .dump(2)
           << "\n";
    return absl::OkStatus();
  }
  io.out << absl::StrCat(totals.layers.layers, " layers, ", totals.layers.chunks, " chunks of ",
                         totals.layers.bytes, " bytes, ", totals.snapshots, " snapshots, ", totals.blobs,
                         " blobs: ", findings, " findings, ", findings - left, " repaired\n");
  return absl::OkStatus();
}

}  // namespace

void AddMaintenanceCommands(CLI::App* app, MaintenanceArguments* arguments, std::function<void()> chosen) {
  CLI::App* gc = app->add_subcommand("gc", "remove what no mount, snapshot, lease or content needs");
  gc->add_flag("--dry-run", arguments->dry_run, "only tell what would be removed");
  gc->callback(chosen);
  CLI::App* fsck =
      app->add_subcommand("fsck", "compare everything that is kept with its digests and records");
  fsck->add_flag("--repair", arguments->repair,
                 "take away what is wrong, to be fetched again; no daemon may run");
  fsck->callback([arguments, chosen] {
    arguments->fsck = true;
    chosen();
  });
}

absl::Status RunMaintenanceCommand(const MaintenanceArguments& arguments, const std::string& root, bool json,
                                   CliIo io, int* exit_code) {
  absl::Status status = absl::PermissionDeniedError("must run as root: the state directory is root's alone");
  if (geteuid() == 0) {
    status = arguments.fsck ? RunFsck(root, arguments.repair, json, io, exit_code)
                            : RunGc(root, arguments.dry_run, json, io);
  }
  if (arguments.fsck && !status.ok()) *exit_code = kNotDone;
  return status;
}

}  // namespace lazyblob::daemon

#include "daemon/cli_pull.h"

#include <functional>
#include <memory>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "daemon/config.h"
#include "daemon/containerd_client.h"
#include "daemon/control_client.h"
#include "daemon/interrupt.h"
#include "daemon/pull.h"
#include "daemon/registry_access.h"
#include "daemon/report.h"
#include "oci/manifest.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::daemon {
namespace {

namespace api = ::lazyblob::control::v1;

absl::StatusOr<PullOptions> Options(const PullArguments& arguments) {
  PullOptions options;
  ASSIGN_OR_RETURN(oci::ImageReference reference, oci::ParseImageReference(arguments.reference));
  if (!std::holds_alternative<oci::Reference>(reference)) {
    return absl::InvalidArgumentError(
        absl::StrCat(base::Printable(arguments.reference),
                     ": a layout is not pulled; import it (ctr images import) or mount it (lazyblob mount)"));
  }
  options.reference = std::get<oci::Reference>(std::move(reference));
  options.platform = oci::HostPlatform();
  if (!arguments.platform.empty()) {
    ASSIGN_OR_RETURN(options.platform, oci::ParsePlatform(arguments.platform));
  }
  options.snapshotter = arguments.snapshotter;
  return options;
}

registry::ClientOptions RegistryOptions(const PullArguments& arguments, const Config& config,
                                        const oci::Reference& reference,
                                        std::function<void(absl::string_view)> warn) {
  RegistryAccess access(config, std::move(warn));
  // Who calls comes before what the daemon knows.
  access.requesters()->Add(registry::DockerConfigCredentials(arguments.docker_config));
  registry::ClientOptions options = access.Options();
  if (arguments.plain_http) options.plain_http_hosts = {reference.host};
  return options;
}

void Print(const PulledImage& image, std::ostream& out) {
  out << image.name << "\n  target " << image.target.digest.ToString() << "\n";
  for (const PulledLayer& layer : image.layers) {
    out << absl::StrFormat("  %s  %s\n", layer.digest.ToString().substr(0, 19),
                           layer.lazy ? "lazy" : "unpacked");
  }
}

}  // namespace

absl::Status RunPull(const PullArguments& arguments, CliIo io) {
  ASSIGN_OR_RETURN(PullOptions options, Options(arguments));
  ASSIGN_OR_RETURN(Config config, LoadConfig(arguments.config, /*required=*/false));
  const std::string root = arguments.root.empty() ? config.root : arguments.root;
  auto cancel = std::make_shared<base::CancelToken>();
  InterruptCancels interrupt(cancel);
  ASSIGN_OR_RETURN(auto containerd,
                   ContainerdClient::Connect(arguments.containerd, arguments.name_space, cancel));
  registry::Client client(RegistryOptions(arguments, config, options.reference, [&](absl::string_view line) {
    io.err << "lazyblob: warning: " << line << "\n";
  }));
  ProgressPrinter printer(ProgressPrinter::ParseStyle(arguments.progress, io.terminal), io.err);

  PullParts parts;
  parts.client = &client;
  parts.containerd = containerd.get();
  parts.call.cancel = cancel;
  parts.prepare = [&](const std::string& reference) -> absl::Status {
    ASSIGN_OR_RETURN(auto control, ControlClient::Connect(root));
    api::PrepareRequest request;
    request.mutable_image()->set_reference(reference);
    request.mutable_image()->set_platform(arguments.platform);
    request.mutable_image()->set_plain_http(arguments.plain_http);
    request.mutable_image()->set_docker_config(arguments.docker_config);
    return control->Prepare(request, cancel, [&](const auto& progress) { printer.Update(progress); })
        .status();
  };
  parts.progress = [&](const oci::Descriptor& layer, uint64_t received) {
    api::MountEvent::LayerProgress progress;
    progress.set_digest(layer.digest.ToString());
    progress.set_received(received);
    progress.set_size(layer.size);
    printer.Update(progress);
  };
  parts.warn = [&](absl::string_view line) {
    printer.Finish();
    io.err << "lazyblob: warning: " << line << "\n";
  };
  absl::StatusOr<PulledImage> image = Pull(options, parts);
  printer.Finish();
  if (cancel->cancelled()) return absl::CancelledError("interrupted");
  if (absl::IsUnavailable(image.status()) && absl::StrContains(image.status().message(), "snapshot")) {
    return base::Annotate(image.status(), "the snapshotter does not answer, see `lazyblob doctor`");
  }
  RETURN_IF_ERROR(image.status());
  if (arguments.json) {
    io.out << ToJson(*image).dump(2) << "\n";
  } else {
    Print(*image, io.out);
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::daemon

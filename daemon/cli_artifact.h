#pragma once

// The commands for what has several platforms: `lazyblob artifact push`, `lazyblob artifact pull` and
// `lazyblob assemble`. Each is an ExportRequest to the daemon, run as those of cli_export.h.

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/cli.h"
#include "daemon/cli_export.h"
#include "proto/exporter.pb.h"

namespace CLI {
class App;
}

namespace lazyblob::daemon {

struct ArtifactArguments {
  enum class Command { kPush, kPull, kAssemble };
  Command command = Command::kPush;
  ExportArguments request;  // what all requests have; platform, append and compression too
  std::string source;
  std::vector<std::string> destinations;
  std::vector<std::string> layers;  // "PLATFORM=DIR", "any=DIR"
  std::string type;
  std::string subject;
  std::vector<std::string> annotations;  // "KEY=VALUE"
  std::string directory;
  bool all = false;
  std::vector<std::string> manifests;  // "[PLATFORM=]REF"
};

// As AddExportCommands.
void AddArtifactCommands(CLI::App* app, ArtifactArguments* arguments, std::function<void()> chosen);

// As MakeExportRequest and RunExportCommand.
absl::StatusOr<v1::ExportRequest> MakeArtifactRequest(const ArtifactArguments& arguments,
                                                      const std::string& directory,
                                                      const std::string& docker_config);
absl::Status RunArtifactCommand(const ArtifactArguments& arguments, const std::string& root,
                                const std::string& docker_config, bool json, CliIo io);

}  // namespace lazyblob::daemon

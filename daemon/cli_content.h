#pragma once

// `lazyblob content import [DIR]` and `lazyblob content export [DIR] [--unlazy]`: between containerd's own
// content store and ours, while neither the daemon nor containerd runs (docs/CONTENT_SERVICE.md).

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "daemon/cli.h"

namespace CLI {
class App;
}

namespace lazyblob::daemon {

struct ContentArguments {
  enum class Command { kImport, kExport };
  Command command = Command::kImport;
  std::string directory = "/var/lib/containerd/io.containerd.content.v1.content";
  std::string config = "/etc/lazyblob/config.toml";
  bool unlazy = false;
};

// Adds the commands to `app`. What was parsed goes to `arguments`, then `chosen` is called. Both outlive
// `app`.
void AddContentCommands(CLI::App* app, ContentArguments* arguments, std::function<void()> chosen);

// `root`: the state directory; empty: the configured one. FailedPrecondition: the daemon uses it, or
// containerd runs. SIGINT and SIGTERM cancel; begun again, both go on.
absl::Status RunContentCommand(const ContentArguments& arguments, const std::string& root, bool json,
                               CliIo io);

}  // namespace lazyblob::daemon

#pragma once

// `lazyblob upgrade [--binary PATH]`: another program takes over from the daemon while everything stays
// mounted.

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "daemon/cli.h"

namespace CLI {
class App;
}

namespace lazyblob::daemon {

struct UpgradeArguments {
  std::string binary;  // empty: what now lies at the path of the daemon's program
};

// Adds the command to `app`. What was parsed goes to `arguments`, then `chosen` is called. Both outlive
// `app`.
void AddUpgradeCommand(CLI::App* app, UpgradeArguments* arguments, std::function<void()> chosen);

// Of the daemon of `root`. Returns when a successor serves. InvalidArgument: the program is none;
// FailedPrecondition: it could not take over, and the one of before serves again.
absl::Status RunUpgradeCommand(const UpgradeArguments& arguments, const std::string& root, CliIo io);

}  // namespace lazyblob::daemon

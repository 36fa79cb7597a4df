#pragma once

// `lazyblob leases [rm NAME]`: what the daemon keeps for exports and build workers.

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "daemon/cli.h"

namespace CLI {
class App;
}

namespace lazyblob::daemon {

struct LeasesArguments {
  std::string remove;  // a name; empty: list them
};

// Adds the command to `app`. What was parsed goes to `arguments`, then `chosen` is called. Both outlive
// `app`.
void AddLeasesCommand(CLI::App* app, LeasesArguments* arguments, std::function<void()> chosen);

// On the daemon of `root`, which is started if need be.
absl::Status RunLeasesCommand(const LeasesArguments& arguments, const std::string& root, bool json, CliIo io);

}  // namespace lazyblob::daemon

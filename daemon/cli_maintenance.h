#pragma once

// `lazyblob gc` and `lazyblob fsck`: what of a state root nothing needs, and what of it is damaged.

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "daemon/cli.h"

namespace CLI {
class App;
}

namespace lazyblob::daemon {

struct MaintenanceArguments {
  bool fsck = false;  // else gc
  bool dry_run = false;
  bool repair = false;
};

// Adds the commands to `app`. What was parsed goes to `arguments`, then `chosen` is called. Both outlive
// `app`.
void AddMaintenanceCommands(CLI::App* app, MaintenanceArguments* arguments, std::function<void()> chosen);

// gc asks the daemon of `root`, which is started if need be; fsck reads the files, and repairs them while no
// daemon has them. `exit_code`: of fsck, 0 clean, 1 all was repaired, 2 something is left, 8 it could not be
// done; else as it was.
absl::Status RunMaintenanceCommand(const MaintenanceArguments& arguments, const std::string& root, bool json,
                                   CliIo io, int* exit_code);

}  // namespace lazyblob::daemon

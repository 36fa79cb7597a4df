// lazyblob-keeper: the parent process of lazyblobd (fuse/keeper.h).

#include <sys/prctl.h>

#include <cstdio>
#include <string>
#include <vector>

#include "base/fault.h"
#include "daemon/privileges.h"
#include "fuse/keeper.h"

int main(int argc, char** argv) {
  lazyblob::base::ArmFaultsFromEnvironment();
  prctl(PR_SET_NAME, "lazyblob-keeper");  // executed by descriptor it would be called by a number
  auto options = lazyblob::fuse::ParseKeeperArguments(std::vector<std::string>(argv + 1, argv + argc));
  if (!options.ok()) {
    fprintf(stderr, "lazyblob-keeper: %s\n", std::string(options.status().message()).c_str());
    return 2;
  }
  const absl::Status dropped = lazyblob::daemon::DropPrivileges(lazyblob::daemon::Program::kKeeper);
  if (!dropped.ok()) {  // containers need what it mounts more than this
    fprintf(stderr, "lazyblob-keeper: it keeps privileges that it does not need: %s\n",
            std::string(dropped.message()).c_str());
  }
  return lazyblob::fuse::RunKeeper(*options);
}

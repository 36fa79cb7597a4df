// lazyblob-keeper: the parent process of lazyblobd (fuse/keeper.h).

#include <cstdio>
#include <string>
#include <vector>

#include "fuse/keeper.h"

int main(int argc, char** argv) {
  auto options = lazyblob::fuse::ParseKeeperArguments(std::vector<std::string>(argv + 1, argv + argc));
  if (!options.ok()) {
    fprintf(stderr, "lazyblob-keeper: %s\n", std::string(options.status().message()).c_str());
    return 2;
  }
  return lazyblob::fuse::RunKeeper(*options);
}

#include <unistd.h>

#include <iostream>

#include "daemon/cli.h"

int main(int argc, char** argv) {
  return lazyblob::daemon::RunCli(argc, argv, {std::cout, std::cerr, isatty(STDERR_FILENO) == 1});
}

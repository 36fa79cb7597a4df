#pragma once

// The `lazyblob` command as a function over injected output, so that tests run it in-process.

#include <ostream>

namespace lazyblob::daemon {

struct CliIo {
  std::ostream& out;
  std::ostream& err;
  bool terminal = false;  // err is a terminal: progress may be redrawn
};

// Exit code: 0 only on success; errors are one line on io.err.
int RunCli(int argc, const char* const* argv, CliIo io);

}  // namespace lazyblob::daemon

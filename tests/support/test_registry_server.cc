// The test registry as a program, for tests that are shell scripts:
//   test_registry_server --port 5000 test/image=/path/to/layout …
// serves each OCI layout as a repository, says where on its first line, and ends with SIGTERM or SIGINT.
// How to make it fail is told in tests/support/internal/control.h.

#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "tests/support/test_registry.h"

namespace lazyblob::support {
namespace {

int Main(int argc, char** argv) {
  TestRegistryOptions options;
  options.control = true;
  std::vector<std::string> layouts;
  std::string port_file;
  CLI::App app("A registry on loopback that fails on demand");
  app.add_option("--port", options.port, "port; 0: any free one");
  app.add_option("--address", options.address, "address to listen on");
  app.add_option("--host-file", port_file, "file that gets host:port, once the registry answers");
  app.add_option("layouts", layouts, "REPOSITORY=LAYOUT_DIRECTORY");
  CLI11_PARSE(app, argc, argv);

  // Blocked before any thread starts, so that only sigwait gets them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  TestRegistry registry(options);
  for (const std::string& layout : layouts) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(layout, absl::MaxSplits('=', 1));
    if (absl::Status status = registry.PutLayout(parts.first, parts.second); !status.ok()) {
      std::fprintf(stderr, "test_registry_server: %s: %s\n", layout.c_str(), status.ToString().c_str());
      return 1;
    }
  }
  std::printf("%s\n", registry.host().c_str());
  std::fflush(stdout);
  if (!port_file.empty()) {
    if (absl::Status status = base::WriteFileAtomically(port_file, registry.host() + "\n"); !status.ok()) {
      std::fprintf(stderr, "test_registry_server: %s\n", status.ToString().c_str());
      return 1;
    }
  }
  int got = 0;
  sigwait(&signals, &got);
  return 0;
}

}  // namespace
}  // namespace lazyblob::support

int main(int argc, char** argv) { return lazyblob::support::Main(argc, argv); }

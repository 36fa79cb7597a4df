// The test registry as a program, for tests that are shell scripts:
//   test_registry_server --port 5000 --personality zot --uploads DIR test/image=/path/to/layout …
// serves each OCI layout as a repository, takes pushes into DIR (else memory), says where on its first line,
// and ends with SIGTERM or SIGINT. How to make it fail is told in tests/support/internal/control.h.

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
  std::vector<std::string> personalities;
  double idle_seconds = 0;
  double token_seconds = 0;
  double commit_seconds = 0;
  app.add_option("--personality", personalities, "how it takes uploads; may be given again")->take_all();
  app.add_option("--uploads", options.uploads.directory, "directory for what is uploaded; default: memory");
  app.add_option("--min-chunk", options.uploads.min_chunk, "smallest chunk it takes, bytes");
  app.add_option("--idle-limit", idle_seconds, "breaks off uploads that pause for so many seconds");
  app.add_option("--commit-delay", commit_seconds, "a commit takes so many seconds");
  app.add_option("--token-ttl", token_seconds, "tokens are needed, and live so many seconds");
  app.add_flag("!--no-referrers", options.referrers_api, "has no referrers API");
  app.add_option("layouts", layouts, "REPOSITORY=LAYOUT_DIRECTORY");
  CLI11_PARSE(app, argc, argv);

  for (const std::string& name : personalities) {
    if (absl::Status status = ApplyPersonality(name, &options.uploads, &options.auth); !status.ok()) {
      std::fprintf(stderr, "test_registry_server: %s\n", status.ToString().c_str());
      return 1;
    }
  }
  if (idle_seconds > 0) options.uploads.idle_limit = absl::Seconds(idle_seconds);
  options.uploads.commit_delay = absl::Seconds(commit_seconds);
  if (token_seconds > 0) {
    options.auth.kind = AuthOptions::Kind::kBearer;
    options.auth.token_ttl = absl::Seconds(token_seconds);
  }

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

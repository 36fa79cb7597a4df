#include "tests/support/victim.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"

extern char** environ;

namespace lazyblob::support {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

// Below the program and arguments of `wrapper` if there are any.
int Run(const std::string& root, const std::string& task, const std::string& point,
        std::vector<std::string> wrapper) {
  const std::string variables[] = {"LAZYBLOB_TEST_TMPDIR=" + root, "LAZYBLOB_VICTIM_ROOT=" + root,
                                   "LAZYBLOB_VICTIM_TASK=" + task,
                                   point.empty() ? "LAZYBLOB_FAULTS=" : "LAZYBLOB_FAULTS=" + point + "=kill"};
  std::vector<char*> environment;
  // A traced process cannot look for leaks.
  if (!wrapper.empty()) environment.push_back(const_cast<char*>("ASAN_OPTIONS=detect_leaks=0"));
  for (const std::string& variable : variables) environment.push_back(const_cast<char*>(variable.c_str()));
  for (char** variable = environ; *variable != nullptr; ++variable) environment.push_back(*variable);
  environment.push_back(nullptr);
  wrapper.push_back(std::filesystem::read_symlink("/proc/self/exe").string());
  wrapper.push_back("--gtest_filter=Victim.*");
  wrapper.push_back("--gtest_also_run_disabled_tests");
  std::vector<char*> arguments;
  for (std::string& argument : wrapper) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  pid_t pid = 0;
  if (posix_spawnp(&pid, arguments[0], nullptr, nullptr, arguments.data(), environment.data()) != 0) {
    return -1;
  }
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return -1;
  if (WIFSIGNALED(status)) return WTERMSIG(status);
  return WEXITSTATUS(status) == 0 ? 0 : -1;
}

// How often one thread of it makes each of `calls` at most; empty when it does not end well or there is no
// strace.
std::map<std::string, int> CountCalls(const std::string& root, const std::string& task,
                                      absl::string_view calls) {
  const std::string trace = root + "/trace";
  if (Run(root, task, "", {"strace", "-f", "-qq", "-o", trace, "-e", absl::StrCat("trace=", calls)}) != 0) {
    return {};
  }
  // Lines are "PID name(…".
  const std::string text = base::ReadFile(trace, 64 << 20).value_or("");
  std::map<std::pair<std::string, std::string>, int> by_thread;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<std::string> words =
        absl::StrSplit(line.substr(0, line.find('(')), ' ', absl::SkipEmpty());
    if (words.size() == 2 && line.find('(') != absl::string_view::npos) ++by_thread[{words[0], words[1]}];
  }
  std::map<std::string, int> counts;
  for (const auto& [key, count] : by_thread) counts[key.second] = std::max(counts[key.second], count);
  return counts;
}

}  // namespace

std::string VictimRoot() { return Variable("LAZYBLOB_VICTIM_ROOT"); }
std::string VictimTask() { return Variable("LAZYBLOB_VICTIM_TASK"); }

int RunVictim(const std::string& root, const std::string& task, const std::string& point) {
  return Run(root, task, point, {});
}

int KillAtEachCall(const std::string& root, const std::string& task, absl::string_view calls,
                   absl::FunctionRef<void()> before, absl::FunctionRef<void(const std::string& at)> after) {
  before();
  int kills = 0;
  for (const auto& [call, count] : CountCalls(root, task, calls)) {
    for (int when = 1; when <= count; ++when) {
      const std::string at = absl::StrCat(task, " killed at ", call, " number ", when);
      const std::string inject = absl::StrCat("inject=", call, ":signal=KILL:when=", when);
      before();
      if (Run(root, task, "",
              {"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call, "-e", inject}) != SIGKILL) {
        std::fprintf(stderr, "not %s\n", at.c_str());
        return 0;
      }
      after(at);
      ++kills;
    }
  }
  return kills;
}

}  // namespace lazyblob::support

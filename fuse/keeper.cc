#include "fuse/keeper.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "fuse/internal/keeper_loop.h"

namespace lazyblob::fuse {

absl::StatusOr<KeeperOptions> ParseKeeperArguments(const std::vector<std::string>& words) {
  KeeperOptions options;
  size_t i = 0;
  for (; i < words.size() && words[i] != "--"; ++i) {
    absl::string_view word = words[i];
    int seconds = 0;
    if (absl::ConsumePrefix(&word, "--held=")) {
      options.held = std::string(word);
      continue;
    }
    if (word == "--check-state") {
      options.check_state = true;
      continue;
    }
    int* number = absl::ConsumePrefix(&word, "--error-after=") ? &seconds
                  : absl::ConsumePrefix(&word, "--ready-fd=")  ? &options.ready_fd
                                                               : nullptr;
    if (number == nullptr || !absl::SimpleAtoi(word, number) || *number < 0) {
      return absl::InvalidArgumentError(absl::StrCat("unknown argument \"", base::Printable(words[i]), "\""));
    }
    if (number == &seconds) options.error_after = absl::Seconds(seconds);
  }
  if (i + 1 >= words.size() || words[i + 1].empty() || words[i + 1][0] != '/') {
    return absl::InvalidArgumentError(
        "usage: lazyblob-keeper [--error-after=SECONDS] [--ready-fd=N] -- /PATH/OF/DAEMON [ARGUMENT...]");
  }
  options.daemon.assign(words.begin() + static_cast<std::ptrdiff_t>(i) + 1, words.end());
  return options;
}

bool KeeperGoesOn() { return internal::PeekListenDescriptors().ok(); }

std::vector<std::string> KeptDaemonArguments() {
  const auto state = internal::PeekListenDescriptors();
  return state.ok() ? state->arguments : std::vector<std::string>();
}

int RunKeeper(const KeeperOptions& options) {
  return options.check_state ? internal::CheckState(options) : internal::KeeperLoop(options).Run();
}

}  // namespace lazyblob::fuse

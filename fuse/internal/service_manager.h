#pragma once

// The service manager that started the keeper, if there is one: it keeps descriptors for the next keeper
// (systemd's file descriptor store) and is told how the service is. Sources: sd_notify(3), sd_listen_fds(3).
// Not thread-safe.

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/file.h"

namespace lazyblob::fuse::internal {

// Descriptors that outlived a keeper, by name.
using HeldDescriptors = std::map<std::string, base::UniqueFd>;

class ServiceManager {
 public:
  // `socket`: $NOTIFY_SOCKET; empty: there is none, and every call succeeds without doing anything.
  explicit ServiceManager(absl::string_view socket) : address_(socket) {}

  bool present() const { return !address_.empty(); }
  // "READY=1" and the like, one assignment per line.
  absl::Status Notify(absl::string_view assignments) { return Send(assignments, -1); }
  // Keeps a duplicate, whatever is polled on it. `name`: letters, digits, '-'; not in use.
  absl::Status Store(const std::string& name, int fd);
  absl::Status Remove(const std::string& name);

 private:
  absl::Status Send(absl::string_view message, int fd);
  const std::string address_;
};

inline constexpr char kStateName[] = "state";  // the one that says what the others are

// What the service manager hands to this process ($LISTEN_FDS); the variables go. The descriptors get
// FD_CLOEXEC. Where two have one name, the last one counts. Empty when it hands nothing.
HeldDescriptors TakeListenDescriptors();
// Duplicates of those; they and the variables stay.
HeldDescriptors CopyListenDescriptors();

// "name:7,other:8", as --held has it.
std::string HeldWord(const std::map<std::string, int>& held);
// InvalidArgument for words that are none and numbers that are not open.
absl::Status ParseHeldWord(absl::string_view word, HeldDescriptors* held);

}  // namespace lazyblob::fuse::internal

#pragma once

// The kernel's side of a FUSE connection over a socketpair: sends raw requests, keeps the answers. What a
// server under test sees is what /dev/fuse would give it, message by message, without a mount and without
// root.

#include <linux/fuse.h>

#include <cstdint>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"

namespace lazyblob::support {

// Thread-safe. Waits end after kPatience (gate.h) and then fail the test by an answer with error -1.
class FakeKernel {
 public:
  FakeKernel();
  ~FakeKernel();
  FakeKernel(const FakeKernel&) = delete;
  FakeKernel& operator=(const FakeKernel&) = delete;

  // A descriptor for a server; one for each, like the keeper's duplicates.
  base::UniqueFd ServerEnd();

  struct Answer {
    int error = 0;  // errno, 0 for success
    std::string body;
  };

  // Sends a request and returns its id (even numbers, as the kernel's).
  uint64_t Send(uint32_t opcode, uint64_t node, absl::string_view body, uint32_t pid = 1);
  // The same with a chosen id: requests that come again.
  void SendAs(uint64_t unique, uint32_t opcode, uint64_t node, absl::string_view body, uint32_t pid = 1);
  // An id for SendAs.
  uint64_t NewUnique();
  Answer Await(uint64_t unique);
  bool Answered(uint64_t unique);
  Answer Call(uint32_t opcode, uint64_t node, absl::string_view body) {
    return Await(Send(opcode, node, body));
  }
  // How many messages came back in all, notifications included.
  size_t messages();
  // How often a notification with this code came; AwaitNotification waits for the first.
  size_t notifications(int32_t code);
  bool AwaitNotification(int32_t code);
  // What Linux 6.9 does on FUSE_NOTIFY_RESEND: every request without an answer again, marked in its id.
  // Returns the new ids by the old ones.
  std::map<uint64_t, uint64_t> ResendUnanswered();

  // Whole operations.
  Answer Init();
  static std::string InitBody();
  Answer Lookup(uint64_t parent, absl::string_view name);
  // The node found, or 0.
  uint64_t LookupNode(uint64_t parent, absl::string_view name);
  Answer GetAttr(uint64_t node);
  Answer Open(uint64_t node, uint32_t flags = 0, bool directory = false);
  // The handle, or ~0.
  uint64_t OpenHandle(uint64_t node);
  uint64_t SendRead(uint64_t node, uint64_t handle, uint64_t offset, uint32_t size, uint32_t pid = 1);
  static std::string ReadBody(uint64_t handle, uint64_t offset, uint32_t size);
  Answer Read(uint64_t node, uint64_t handle, uint64_t offset, uint32_t size) {
    return Await(SendRead(node, handle, offset, size));
  }
  void Interrupt(uint64_t unique);
  Answer Release(uint64_t node, uint64_t handle);

  struct Entry {
    std::string name;
    uint64_t node = 0;
    uint32_t type = 0;  // DT_*
    uint64_t cookie = 0;
    fuse_entry_out plus{};
  };
  // One READDIR (or READDIRPLUS) from `cookie` on.
  std::vector<Entry> ReadDir(uint64_t node, uint64_t cookie, uint32_t size, bool plus = false);

 private:
  void Receive() ABSL_LOCKS_EXCLUDED(mutex_);

  base::UniqueFd kernel_end_;
  base::UniqueFd server_end_;
  std::thread receiver_;
  absl::Mutex mutex_;
  uint64_t next_unique_ ABSL_GUARDED_BY(mutex_) = 2;
  std::map<uint64_t, std::string> unanswered_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Answer> answers_ ABSL_GUARDED_BY(mutex_);
  std::map<int32_t, size_t> notifications_ ABSL_GUARDED_BY(mutex_);
  size_t messages_ ABSL_GUARDED_BY(mutex_) = 0;
};

// The bytes of a plain struct, as message bodies hold them, and back (zeros where the bytes end early).
template <typename T>
std::string BytesOf(const T& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}
template <typename T>
T As(absl::string_view bytes, size_t offset = 0) {
  T value{};
  if (offset < bytes.size()) bytes.copy(reinterpret_cast<char*>(&value), sizeof(value), offset);
  return value;
}

}  // namespace lazyblob::support

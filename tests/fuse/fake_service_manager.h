#pragma once

// What systemd does for a service with FileDescriptorStoreMax=, NotifyAccess=main and Restart=always, as far
// as sd_notify(3), sd_listen_fds(3) and systemd.service(5) document it. Thread-safe.

#include <sys/types.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"

namespace lazyblob::fuse {

class FakeServiceManager {
 public:
  FakeServiceManager();
  ~FakeServiceManager();
  FakeServiceManager(const FakeServiceManager&) = delete;

  // The environment and the descriptors of the next start.
  class Launch {
   public:
    // In the forked child: fork and exec only, for other threads hold locks.
    void Execute(char** argv);

   private:
    friend class FakeServiceManager;
    std::vector<int> fds_;
    std::vector<std::string> environment_;
    std::string pid_ = "LISTEN_PID=##########";
  };
  std::unique_ptr<Launch> Prepare() ABSL_LOCKS_EXCLUDED(mutex_);
  // The main process, the only one that is listened to.
  void Launched(pid_t pid) ABSL_LOCKS_EXCLUDED(mutex_);

  // Until a message has this line; false after kPatience.
  bool AwaitLine(const std::string& line) ABSL_LOCKS_EXCLUDED(mutex_);
  // What was said until now is not looked at any more by AwaitLine.
  void ForgetLines() ABSL_LOCKS_EXCLUDED(mutex_);
  // Names of stored descriptors, without numbers, in the order of storing ("fuse" for "fuse-7").
  std::vector<std::string> Stored() ABSL_LOCKS_EXCLUDED(mutex_);
  // Descriptors that were refused: no FDPOLL=0, no name, more than 16, or two of one name.
  int refused() ABSL_LOCKS_EXCLUDED(mutex_);
  void DropStored(const std::string& kind) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run();
  void Handle(const std::string& message, pid_t sender, base::UniqueFd fd) ABSL_LOCKS_EXCLUDED(mutex_);

  base::UniqueFd socket_;
  base::UniqueFd stop_;
  std::string address_;
  std::thread thread_;
  absl::Mutex mutex_;
  pid_t main_ ABSL_GUARDED_BY(mutex_) = -1;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<std::string, base::UniqueFd>> store_ ABSL_GUARDED_BY(mutex_);
  int refused_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace lazyblob::fuse

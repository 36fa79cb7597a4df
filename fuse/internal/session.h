#pragma once

// The libfuse low-level session: INIT and its replay, the threads that read requests from the one descriptor,
// and the answers. libfuse translates; what the file system says is in Filesystem, ReadEngine and
// HandleTable.

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "fuse/internal/filesystem.h"
#include "fuse/internal/handle_table.h"
#include "fuse/internal/read_engine.h"
#include "fuse/server.h"

struct fuse_in_header;
struct fuse_lowlevel_ops;
struct fuse_session;

namespace lazyblob::fuse::internal {

// What a thread of the process is doing for libfuse at the moment; libfuse's API has no room for it.
struct ThreadState {
  const fuse_in_header* request = nullptr;  // being handled
  std::string* capture = nullptr;           // answers go here instead of to the kernel
  uint64_t answer_size = 0;                 // header and data; 0: any. Another size is not sent
  bool refused = false;                     // it was not
};
ThreadState& CurrentThreadState();

// The operations (session_ops.cc); the session is their user data.
const fuse_lowlevel_ops& SessionOps();

// Start, then Stop once; Resend at any time between. Answers (ReadReplies) from any thread until Stop
// returned and the engine was stopped.
class Session final : public ReadReplies {
 public:
  struct Options {
    base::UniqueFd device;
    std::string replay_request;
    std::string replay_answer;
    std::function<absl::Status(const InitExchange&)> on_init;
    int threads = 4;
    LogFunction log;
  };
  Session(Options options, Filesystem* filesystem, HandleTable* handles);
  ~Session() override;

  absl::Status Start(ReadEngine* reads);
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Resend();

  absl::Status Data(const ReadTicket& ticket, uint64_t length, absl::Span<const AnswerPart> parts) override;
  void Error(const ReadTicket& ticket, const absl::Status& status) override;
  void Drop(const ReadTicket& ticket) override;

  // For the operations.
  Filesystem& filesystem() { return *filesystem_; }
  HandleTable& handles() { return *handles_; }
  ReadEngine& reads() { return *reads_; }

  // For libfuse's custom io: writes an answer, all or nothing. -1 and errno like writev(2).
  ssize_t WriteAnswer(const iovec* parts, int count);

 private:
  absl::Status CreateSession();
  absl::Status Replay();
  // What libfuse answers to an INIT request; it is then initialised.
  absl::StatusOr<std::string> AnswerInit(std::string& request);
  absl::Status NewConnection(std::string& request);

  void Run(int number) ABSL_LOCKS_EXCLUDED(mutex_);
  // The first request: INIT of a new connection; else what tells which ones are lost. False: it has ended.
  bool HandleFirst(int epoll, char* buffer);
  // Until a request is in `buffer`; 0 at the end of the connection or of the session.
  size_t ReadRequest(int epoll, char* buffer);
  void Dispatch(char* buffer, size_t size);
  void SendError(uint64_t unique, int error);
  void SendData(uint64_t unique, std::vector<char>& data);
  void EndConnection() ABSL_LOCKS_EXCLUDED(mutex_);

  Options options_;
  Filesystem* const filesystem_;
  HandleTable* const handles_;
  ReadEngine* reads_ = nullptr;
  fuse_session* session_ = nullptr;
  int device_ = -1;  // the session's
  base::UniqueFd stop_event_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_{false};
  bool older_are_lost_ = false;  // to a predecessor, and the kernel cannot send them again; set by Start

  absl::Mutex mutex_;
  // The first request is handled (or needs not be, or there will be none): the other threads may read.
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::fuse::internal

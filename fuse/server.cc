#include "fuse/server.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "base/cond_var.h"
#include "fuse/internal/deadline.h"
#include "fuse/internal/filesystem.h"
#include "fuse/internal/handle_table.h"
#include "fuse/internal/page_dropper.h"
#include "fuse/internal/read_engine.h"
#include "fuse/internal/session.h"

namespace lazyblob::fuse {
namespace {

// A fast reader fills some 40 MiB of page cache within a tick; waiting reads are looked at every fourth.
constexpr absl::Duration kTick = absl::Milliseconds(25);
constexpr uint64_t kTicksPerSweep = 4;

// SigPnd and ShdPnd of /proc/PID/status. Never another file of the process: they take locks a reader in a
// page fault may hold.
bool KillPendingInProc(uint32_t pid) {
  if (pid == 0) return false;  // in a pid namespace that is not ours
  auto status = base::ReadFile(absl::StrCat("/proc/", pid, "/status"), 64 << 10);
  if (!status.ok()) return false;
  for (absl::string_view line : absl::StrSplit(*status, '\n')) {
    if (!absl::ConsumePrefix(&line, "SigPnd:") && !absl::ConsumePrefix(&line, "ShdPnd:")) continue;
    uint64_t pending = 0;
    if (absl::SimpleHexAtoi(absl::StripAsciiWhitespace(line), &pending) &&
        (pending >> (SIGKILL - 1) & 1) != 0) {
      return true;
    }
  }
  return false;
}

void LogToStderr(absl::string_view line) {
  std::fprintf(stderr, "lazyblob: %.*s\n", static_cast<int>(line.size()), line.data());
}

}  // namespace

// Linux looks every 15 s, and takes a smaller limit for this.
constexpr uint64_t kLeastRequestLimit = 15;

uint64_t KernelRequestLimit(const std::string& sysctls) {
  uint64_t limit = 0;
  for (const char* name : {"/default_request_timeout", "/max_request_timeout"}) {
    auto text = base::ReadFile(sysctls + name, 64);
    uint64_t seconds = 0;
    if (!text.ok() || !absl::SimpleAtoi(*text, &seconds) || seconds == 0) continue;
    seconds = std::max(seconds, kLeastRequestLimit);
    limit = limit == 0 ? seconds : std::min(limit, seconds);
  }
  return limit;
}

class FuseServer::Impl {
 public:
  Impl(contentstore::ContentStore* store, ServerOptions options)
      : store_(store),
        clock_(options.clock),
        log_(options.log != nullptr ? std::move(options.log) : LogToStderr),
        filesystem_(store),
        session_({std::move(options.device), std::move(options.replay_request),
                  std::move(options.replay_answer), std::move(options.on_init), options.threads, log_},
                 &filesystem_, &handles_),
        reads_(std::make_shared<internal::ReadEngine>(EngineOptions(options))) {}

  ~Impl() { Stop(); }

  absl::Status Start() {
    housekeeper_ = std::thread([this] { KeepHouse(); });
    absl::Status status = session_.Start(reads_.get());
    if (!status.ok()) Stop();
    return status;
  }

  void Stop() {
    session_.Stop();
    reads_->Stop();
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
      changed_.Signal();
    }
    if (housekeeper_.joinable()) housekeeper_.join();
    dropper_.Flush(clock_->Monotonic(), true);
  }

  absl::Status Resend() { return session_.Resend(); }

  void FailLayer(const base::Digest& layer) {
    auto found = store_->Find(layer);
    reads_->FailLayer(layer, found.get());
  }
  void AllowLayer(const base::Digest& layer) { reads_->AllowLayer(layer); }
  uint64_t open_handles(const base::Digest& layer) const { return handles_.Count(layer); }

  Counters counters() const {
    const auto counters = reads_->counters();
    return {counters.reads, counters.hits, counters.failed, counters.waiting};
  }

  std::vector<LayerReads> waiting_reads() const {
    std::vector<LayerReads> result;
    for (const auto& one : reads_->waiting()) result.push_back({one.layer, one.reads, one.oldest});
    return result;
  }

 private:
  internal::ReadEngine::Options EngineOptions(ServerOptions& options) {
    internal::ReadEngine::Options engine;
    engine.replies = &session_;
    engine.clock = options.clock;
    const uint64_t limit = options.request_limit;
    engine.deadline = internal::RequestDeadline(options.read_deadline, limit);
    engine.resent_deadline = internal::ResentDeadline(options.read_deadline, limit);
    if (engine.deadline < internal::RequestDeadline(options.read_deadline, 0)) {
      log_(absl::StrCat("reads wait no longer than ", absl::FormatDuration(engine.deadline),
                        ", whatever fuse.read_deadline says: the kernel would abort all mounts after ", limit,
                        " s (fs.fuse.*_request_timeout)"));
    }
    engine.kill_pending =
        options.kill_pending != nullptr ? std::move(options.kill_pending) : KillPendingInProc;
    engine.log = log_;
    engine.served = [this](uint32_t layer, int fd, uint64_t offset, uint64_t length) {
      if (dropper_.Served(layer, fd, offset, length, clock_->Monotonic())) Wake();
    };
    engine.waiting = [this] { Wake(); };
    return engine;
  }

  void Wake() ABSL_LOCKS_EXCLUDED(mutex_) {
    if (awake_.exchange(true)) return;
    absl::MutexLock lock(&mutex_);  // so that a housekeeper about to wait sees it
    changed_.Signal();
  }

  void KeepHouse() ABSL_LOCKS_EXCLUDED(mutex_) {
    const auto stopping = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_; };
    absl::MutexLock lock(&mutex_);
    for (uint64_t tick = 0;; ++tick) {
      while (!stopping_ && !awake_) changed_.Wait(&mutex_);
      if (changed_.AwaitFor(&mutex_, stopping, kTick)) return;
      awake_ = false;
      mutex_.Unlock();
      const bool waiting = tick % kTicksPerSweep != 0 || reads_->Sweep();
      const bool dropping = dropper_.Flush(clock_->Monotonic(), false);
      mutex_.Lock();
      if (waiting || dropping) awake_ = true;
    }
  }

  contentstore::ContentStore* const store_;
  const base::Clock* const clock_;
  const internal::LogFunction log_;
  internal::HandleTable handles_;
  internal::PageDropper dropper_;
  internal::Filesystem filesystem_;
  internal::Session session_;
  const std::shared_ptr<internal::ReadEngine> reads_;
  std::thread housekeeper_;
  std::atomic<bool> awake_{false};

  absl::Mutex mutex_;
  base::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

FuseServer::FuseServer(contentstore::ContentStore* store, ServerOptions options)
    : impl_(std::make_unique<Impl>(store, std::move(options))) {}
FuseServer::~FuseServer() = default;

absl::Status FuseServer::Start() { return impl_->Start(); }
void FuseServer::Stop() { impl_->Stop(); }
absl::Status FuseServer::Resend() { return impl_->Resend(); }
void FuseServer::FailLayer(const base::Digest& layer) { impl_->FailLayer(layer); }
void FuseServer::AllowLayer(const base::Digest& layer) { impl_->AllowLayer(layer); }
uint64_t FuseServer::open_handles(const base::Digest& layer) const { return impl_->open_handles(layer); }
FuseServer::Counters FuseServer::counters() const { return impl_->counters(); }
std::vector<FuseServer::LayerReads> FuseServer::waiting_reads() const { return impl_->waiting_reads(); }

}  // namespace lazyblob::fuse

#include "base/crash_record.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::base {
namespace {

constexpr int kMostDeaths = 3;
constexpr int kManyDeaths = 6;  // of all subjects together
constexpr uint64_t kMaxFileBytes = 1 << 20;
constexpr size_t kStackBytes = 64 << 10;
// SIGBUS of a page that its file does not give: the disk's doing.
bool OfDisk(int signal, int code) { return signal == SIGBUS && code >= BUS_ADRERR && code <= BUS_MCEERR_AO; }
constexpr std::array<int, 5> kSignals = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};

thread_local const CrashSubject* current = nullptr;
std::atomic<int> record_file{-1};
std::array<struct sigaction, kSignals.size()> before;

// A stack of its own for the handler, for a thread may have died for want of one.
class HandlerStack {
 public:
  HandlerStack() {
    stack_t now{};
    if (sigaltstack(nullptr, &now) != 0 || (now.ss_flags & SS_DISABLE) == 0) return;  // a sanitizer's
    memory_.reset(new char[kStackBytes]);  // pages that nobody touches
    stack_t own{};
    own.ss_sp = memory_.get();
    own.ss_size = kStackBytes;
    sigaltstack(&own, nullptr);
  }
  ~HandlerStack() {
    if (memory_ == nullptr) return;
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
  }

 private:
  std::unique_ptr<char[]> memory_;
};

}  // namespace

struct CrashHandler {
  // Async-signal-safe.
  static void Run(int signal, siginfo_t* info, void*) {
    const int error = errno;
    const bool own = info->si_code > 0 || (signal == SIGABRT && info->si_pid == getpid());
    const int file = record_file.load(std::memory_order_relaxed);
    if (own && !OfDisk(signal, info->si_code) && current != nullptr && file >= 0) {
      const std::string& line = current->line_;
      if (write(file, line.data(), line.size()) < 0) errno = error;  // nobody is left to tell
    }
    for (size_t i = 0; i < kSignals.size(); ++i) {
      if (kSignals[i] == signal) sigaction(signal, &before[i], nullptr);
    }
    errno = error;
    // What the kernel sends for an instruction it sends again when that is run again, as abort() does.
    if (!own) raise(signal);
  }
};

CrashSubject::CrashSubject(std::string subject) : line_(std::move(subject) + "\n"), outer_(current) {
  thread_local const HandlerStack stack;
  static_cast<void>(stack);
  current = this;
}

CrashSubject::~CrashSubject() { current = outer_; }

CrashRecord::CrashRecord(std::string path, std::map<std::string, int> deaths)
    : path_(std::move(path)), deaths_(std::move(deaths)) {
  for (const auto& [subject, times] : deaths_) all_ += times;
}

absl::StatusOr<std::map<std::string, int>> CrashRecord::Read(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  std::map<std::string, int> deaths;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    ++deaths[std::string(line)];
  }
  return deaths;
}

absl::StatusOr<std::unique_ptr<CrashRecord>> CrashRecord::Open(const std::string& path) {
  ASSIGN_OR_RETURN(UniqueFd file, OpenFile(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW));
  absl::StatusOr<std::map<std::string, int>> deaths = Read(path);
  if (absl::IsResourceExhausted(deaths.status())) {  // nothing of ours grows so large
    if (ftruncate(file.get(), 0) != 0) return ErrnoStatus(errno, absl::StrCat("empty ", path));
    deaths = std::map<std::string, int>();
  }
  RETURN_IF_ERROR(deaths.status());
  std::unique_ptr<CrashRecord> record(new CrashRecord(path, *std::move(deaths)));
  record_file.store(file.Release(), std::memory_order_relaxed);
  struct sigaction action{};
  action.sa_sigaction = CrashHandler::Run;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    if (sigaction(kSignals[i], &action, &before[i]) != 0) return ErrnoStatus(errno, "handle crashes");
  }
  return record;
}

CrashRecord::~CrashRecord() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before[i], nullptr);
  close(record_file.exchange(-1));
}

absl::Status CrashRecord::Check(absl::string_view subject) const {
  const auto found = deaths_.find(std::string(subject));
  const int times = found == deaths_.end() ? 0 : found->second;
  if (times == 0 || (times < kMostDeaths && all_ < kManyDeaths)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      subject, " is not read any more: the daemon has crashed ", times, times == 1 ? " time" : " times",
      " over it. To try again, remove ", Printable(path_), " and reload the daemon"));
}

}  // namespace lazyblob::base

#include "fuse/internal/keeper_loop.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr int kStartsAtOnce = 3;  // of daemons that do not last; then with pauses that double
// After Ready. A request that makes every daemon crash comes again at once, its bytes from a registry a
// little later.
constexpr absl::Duration kLasting = absl::Seconds(10);
constexpr absl::Duration kFirstPause = absl::Seconds(1);
constexpr absl::Duration kLongestPause = absl::Seconds(30);
constexpr absl::Duration kLivenessPeriod = absl::Seconds(1);

std::string Ending(int wait_status) {
  if (WIFSIGNALED(wait_status)) return absl::StrCat("was killed by signal ", WTERMSIG(wait_status));
  return absl::StrCat("ended with exit code ", WEXITSTATUS(wait_status));
}

// Not told by anybody else: SIGKILL comes from outside, and whether it was a crash is not known of a process
// that cannot be reaped.
bool Crashed(std::optional<int> wait_status) {
  return wait_status && !(WIFSIGNALED(*wait_status) && WTERMSIG(*wait_status) == SIGKILL);
}

absl::Duration PauseAfter(int failed_starts) {
  absl::Duration pause = failed_starts <= kStartsAtOnce ? absl::ZeroDuration() : kFirstPause;
  for (int i = kStartsAtOnce + 1; i < failed_starts && pause < kLongestPause; ++i) pause *= 2;
  return std::min(pause, kLongestPause);
}

const char* NotifySocket() {
  const char* socket = getenv("NOTIFY_SOCKET");
  return socket == nullptr ? "" : socket;
}

}  // namespace

void Say(const std::string& line) { fprintf(stderr, "lazyblob-keeper: %s\n", line.c_str()); }

KeeperLoop::KeeperLoop(const KeeperOptions& options)
    : options_(options), ready_fd_(options.ready_fd), manager_(NotifySocket()) {
  if (!options_.daemon.empty()) program_ = options_.daemon[0];
}

int KeeperLoop::Run() {
  absl::Status status = Start();
  if (!status.ok()) {
    Say(std::string(status.message()));
    if (ready_fd_ >= 0) {
      std::string line = absl::StrCat("error: ", status.message(), "\n");
      if (write(ready_fd_, line.data(), line.size()) < 0) return 1;
    }
    return 1;
  }
  while (!ended_) Step();
  return Finish();
}

absl::Status KeeperLoop::Start() {
  if (options_.daemon.empty()) return absl::InvalidArgumentError("no daemon to start");
  if (ready_fd_ >= 0) fcntl(ready_fd_, F_SETFD, FD_CLOEXEC);
  // No descriptor of ours may end up as stdin, stdout or stderr of a child.
  for (int fd = open("/dev/null", O_RDWR); fd >= 0; fd = open("/dev/null", O_RDWR)) {
    if (fd <= STDERR_FILENO) continue;
    close(fd);
    break;
  }
  sigset_t handled;
  sigemptyset(&handled);
  for (int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) sigaddset(&handled, signal);
  if (sigprocmask(SIG_BLOCK, &handled, nullptr) != 0) return base::ErrnoStatus(errno, "block signals");
  signal(SIGPIPE, SIG_IGN);
  signals_ = base::UniqueFd(signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_.valid()) return base::ErrnoStatus(errno, "signalfd");

  // Everything that runs on our mounts depends on this process.
  absl::StatusOr<std::string> score = base::ReadFile("/proc/self/oom_score_adj", 64);
  if (score.ok()) {
    oom_score_adj_ = std::string(absl::StripAsciiWhitespace(*score));
    absl::StatusOr<base::UniqueFd> file = base::OpenFile("/proc/self/oom_score_adj", O_WRONLY);
    if (!file.ok() || write(file->get(), "-1000", 5) < 0) oom_score_adj_.clear();
  }
  RETURN_IF_ERROR(BeginState());
  if (!connection_.device.valid()) RETURN_IF_ERROR(OpenFreshConnection());
  return daemon_ > 0 ? absl::OkStatus() : StartNextDaemon();
}

absl::Status KeeperLoop::OpenFreshConnection() {
  if (connection_.device.valid()) {
    AbortConnection(connection_.number).IgnoreError();  // nothing but unfinished mount operations waits on it
    std::vector<base::UniqueFd> old;
    old.push_back(std::move(connection_.device));
    old.push_back(std::move(connection_.mount));
    CloseInChild(std::move(old));
  }
  init_ = InitExchange();
  absl::StatusOr<FuseConnection> connection = OpenConnection();
  if (!connection.ok())
    return base::Annotate(connection.status(), "make the FUSE connection (is this root?)");
  connection_ = *std::move(connection);
  const std::vector<std::string> old = {held_device_, held_mount_};
  held_device_ = Store("fuse", connection_.device.get());
  held_mount_ = Store("mount", connection_.mount.get());
  Save();
  for (const std::string& name : old) Forget(name);
  return absl::OkStatus();
}

absl::Status KeeperLoop::StartNextDaemon() {
  // The kernel sends INIT once. A daemon that died before something was mounted may have died before
  // answering it; nobody can miss such a connection, so the next daemon gets a new one.
  if (session_ > 0 && !connection_used_) RETURN_IF_ERROR(OpenFreshConnection());
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return base::ErrnoStatus(errno, "socket to lazyblobd");
  }
  base::UniqueFd ours(ends[0]);
  base::UniqueFd theirs(ends[1]);
  DaemonStart start;
  start.argv = options_.daemon;
  start.argv[0] = program_;
  if (fall_back_) {
    start.program = good_program_.fd.get();
    started_program_.Reset();
  } else {
    absl::StatusOr<base::UniqueFd> program = base::OpenFile(program_, O_PATH);
    started_program_ = program.ok() ? *std::move(program) : base::UniqueFd();
  }
  start.argv.push_back(absl::StrCat("--keeper-fd=", theirs.get()));
  start.inherit = {theirs.get()};
  start.oom_score_adj = oom_score_adj_;
  if (ready_fd_ >= 0) {
    start.argv.push_back(absl::StrCat("--ready-fd=", ready_fd_));
    start.inherit.push_back(ready_fd_);
  }
  ASSIGN_OR_RETURN(daemon_, StartDaemon(start));
  ++session_;
  ready_ = taken_ = false;
  restart_at_ = absl::InfiniteDuration();
  socket_ = std::move(ours);
  next_liveness_check_ = Now() + kLivenessPeriod;
  if (ready_fd_ >= 0) close(ready_fd_);  // whoever waits sees the end when the first daemon dies
  ready_fd_ = -1;
  Save();
  ProvokeRequest();
  return absl::OkStatus();
}

void KeeperLoop::Step() {
  std::vector<pollfd> wait = {{signals_.get(), POLLIN, 0}};
  // The daemon of a later session may be what operations under way wait for.
  const bool listening = socket_.valid() && !(upgrade_ && upgrade_->checked && upgrade_->session == session_);
  if (socket_.valid() && (listening || !outgoing_.empty())) {
    wait.push_back(
        {socket_.get(), static_cast<short>((listening ? POLLIN : 0) | (outgoing_.empty() ? 0 : POLLOUT)), 0});
  }
  if (answering_errors_) wait.push_back({connection_.device.get(), POLLIN, 0});
  for (const auto& stray : strays_) wait.push_back({stray.second.get(), POLLIN, 0});
  for (const Operation& operation : running_) wait.push_back({operation.child.result.get(), POLLIN, 0});
  if (poll(wait.data(), wait.size(), PollTimeoutMs()) < 0 && errno != EINTR) {
    GiveUp(absl::StrCat("poll failed with error ", errno));
    return;
  }
  // Requests before deaths: what a daemon asked for before it died is heard.
  if (listening) ReadRequests();
  if (socket_.valid()) FlushOutgoing();
  if (answering_errors_) AnswerErrors();
  std::list<Operation> done;
  size_t index = wait.size() - running_.size();
  for (auto operation = running_.begin(); operation != running_.end();) {
    auto next = std::next(operation);
    if (wait[index++].revents != 0) done.splice(done.end(), running_, operation);
    operation = next;
  }
  for (Operation& operation : done) FinishOperation(std::move(operation));
  ReadSignals();
  ReapChildren();
  ReapStrays();
  CheckTimers();
  StartOperations();
  FinishUpgrade();
}

int KeeperLoop::PollTimeoutMs() const {
  absl::Duration next =
      std::min({next_liveness_check_, reap_deadline_, stop_deadline_, unmount_deadline_, restart_at_});
  if (ErrorsAreDue()) next = std::min(next, errors_at_);
  if (upgrade_) next = std::min(next, upgrade_->deadline);
  if (next == absl::InfiniteDuration()) return -1;
  absl::Duration left = next - Now();
  if (left <= absl::ZeroDuration()) return 0;
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 60'000));
}

void KeeperLoop::ReadSignals() {
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    auto signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGCHLD) continue;
    if (signal == SIGHUP) {
      if (upgrade_) continue;
      absl::Status status = BeginUpgrade(program_, std::nullopt);
      if (!status.ok()) Say(std::string(status.message()));
      if (!upgrade_) HandOver();
      continue;
    }
    stopping_ = true;
    if (daemon_ <= 0) {
      ended_ = true;
      continue;
    }
    kill(daemon_, signal);
    if (stop_deadline_ == absl::InfiniteDuration()) stop_deadline_ = Now() + kOrderlyEnd;
  }
}

void KeeperLoop::HandOver() {
  fall_back_ = false;
  if (daemon_ <= 0) {
    failed_starts_ = 0;
    if (!ended_) restart_at_ = Now();
    return;
  }
  handing_over_ = true;
  kill(daemon_, SIGHUP);
}

void KeeperLoop::ReapChildren() {
  int wait_status = 0;
  for (pid_t pid; (pid = waitpid(-1, &wait_status, WNOHANG)) > 0;) {
    if (pid == daemon_) {
      DaemonGone(wait_status);
    } else if (upgrade_ && pid == upgrade_->checker) {
      CheckerEnded(wait_status);
    } else if (predecessors_.erase(pid) > 0) {
      SendEvent(MessageType::kPredecessorReaped);
    }
  }
}

void KeeperLoop::CheckTimers() {
  absl::Duration now = Now();
  if (daemon_ > 0 && now >= stop_deadline_) {
    Say("lazyblobd does not end; killing it");
    kill(daemon_, SIGKILL);
    DaemonGone(std::nullopt);
  }
  if (daemon_ > 0 && now >= reap_deadline_) DaemonGone(std::nullopt);
  if (daemon_ > 0 && now >= next_liveness_check_) {
    // With a thread that hangs in the kernel neither the socket ends nor the process can be reaped.
    next_liveness_check_ = now + kLivenessPeriod;
    CheckConnection();
    if (ended_) return;
    if (IsDying(daemon_)) {
      ReapChildren();
      if (daemon_ > 0 && socket_.valid() && IsDying(daemon_)) DaemonGone(std::nullopt);
    }
  }
  if (now >= unmount_deadline_) {
    unmount_deadline_ = absl::InfiniteDuration();
    if (!aborted_) Say("unmounting takes too long; ending the FUSE connection");
    aborted_ = true;
    AbortConnection(connection_.number).IgnoreError();
  }
  if (now >= restart_at_) {
    restart_at_ = absl::InfiniteDuration();
    StartAgain();
  }
  if (ErrorsAreDue() && now >= errors_at_) BeginErrors();
  if (upgrade_ && now >= upgrade_->deadline) {
    AbandonUpgrade(upgrade_->checked ? "mounts are under way for too long"
                                     : "it does not answer --check-state");
  }
}

void KeeperLoop::DaemonGone(std::optional<int> wait_status) {
  if (!wait_status) {
    kill(daemon_, SIGKILL);
    predecessors_.insert(daemon_);
  }
  std::string what =
      absl::StrCat("lazyblobd (process ", daemon_, ") ",
                   wait_status ? Ending(*wait_status) : "runs no more but cannot be reaped yet");
  daemon_ = -1;
  socket_.Reset();
  outgoing_.clear();
  waiting_.remove_if([](const Operation& operation) { return operation.session != 0; });
  reap_deadline_ = stop_deadline_ = next_liveness_check_ = absl::InfiniteDuration();
  taken_ = false;
  const bool told_to_end = std::exchange(handing_over_, false);
  const bool lasted = ready_ && (told_to_end || !Crashed(wait_status) || Now() >= ready_at_ + kLasting);
  failed_starts_ = lasted || told_to_end ? 0 : failed_starts_ + 1;
  if (lasted || errors_at_ == absl::InfiniteDuration()) errors_at_ = Now() + options_.error_after;
  bool by_itself = wait_status && WIFEXITED(*wait_status);
  exit_code_ = by_itself ? WEXITSTATUS(*wait_status) : 1;
  const bool never_ready = !good_program_.fd.valid();
  if (shutting_down_ || stopping_) {
    ended_ = true;
  } else if (by_itself && exit_code_ != 0 && !init_ever_saved_ && never_ready) {
    ended_ = true;  // it could not start, has said why, and would not do better the next time
  } else if (failed_starts_ > kStartsAtOnce && !connection_used_ && never_ready) {
    GiveUp(what + "; it was never ready, and nothing is mounted");
  } else {
    Say(what);
    if (!ready_ && !told_to_end && !never_ready && !fall_back_) {
      Say("it was never ready; the program of its predecessor is started again");
      fall_back_ = true;
    }
    if (upgrade_ && upgrade_->id) AbandonUpgrade("lazyblobd ended meanwhile");
    Restart();
  }
}

// However often it has died: what is mounted needs a daemon, and nothing else can bring it back.
void KeeperLoop::Restart() {
  const absl::Duration pause = PauseAfter(failed_starts_);
  if (pause == absl::ZeroDuration()) return StartAgain();
  Say(absl::StrCat("lazyblobd has ended ", failed_starts_,
                   " times in a row without serving for long; it is started again in ",
                   absl::FormatDuration(pause)));
  restart_at_ = Now() + pause;
}

void KeeperLoop::StartAgain() {
  absl::Status status = StartNextDaemon();
  if (status.ok()) return;
  Say(absl::StrCat("start lazyblobd again: ", status.message()));
  restart_at_ = Now() + kFirstPause;
}

// A connection that was ended (by a kernel's limit on requests, or by hand) never works again, and nobody
// else notices.
void KeeperLoop::CheckConnection() {
  pollfd device{connection_.device.get(), 0, 0};
  if (aborted_ || shutting_down_ || stopping_ || ended_ || device.fd < 0) return;
  if (poll(&device, 1, 0) <= 0 || (device.revents & POLLERR) == 0) return;
  GiveUp("the kernel has ended the FUSE connection (fs.fuse.*_request_timeout?); start the containers again");
}

void KeeperLoop::GiveUp(const std::string& why) {
  Say(why);
  exit_code_ = 1;
  ended_ = true;
}

int KeeperLoop::Finish() {
  // Nobody answers any more. Without this, unmounting would wait for ever for reads that are under way.
  if (connection_.device.valid()) AbortConnection(connection_.number).IgnoreError();
  aborted_ = true;
  shutting_down_ = true;
  answering_errors_ = false;
  restart_at_ = errors_at_ = absl::InfiniteDuration();
  ForgetEverything();
  manager_.Notify("STOPPING=1\nSTATUS=stopped").IgnoreError();
  sockets_.clear();  // whoever waits there is turned away
  waiting_.clear();
  unmount_deadline_ = Now() + kUnmountTime;
  absl::Duration deadline = unmount_deadline_;
  StartOperations();
  while (Now() < deadline &&
         (!running_.empty() || !waiting_.empty() || !(unmounting_all_ || mounts_.empty())))
    Step();
  for (const Operation& operation : running_) kill(operation.child.pid, SIGKILL);
  if (!mounts_.empty()) Say(absl::StrCat(mounts_.size(), " mounts could not be unmounted"));
  return exit_code_;
}

}  // namespace lazyblob::fuse::internal

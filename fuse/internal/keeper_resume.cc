// KeeperLoop: what outlives a keeper, how the next one goes on with it, and a new program for the keeper
// itself, which is the same within one process.

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "fuse/internal/keeper_loop.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr char kDaemonName[] = "daemon";
constexpr char kStartedName[] = "started";
constexpr char kProgramName[] = "lazyblob-keeper";
constexpr int kStateIsReadable = 99;  // what no program says by accident
constexpr int kStrayGraceMs = 250;
constexpr absl::Duration kCheckTime = absl::Seconds(10);
constexpr absl::Duration kDrainTime = absl::Seconds(60);

base::UniqueFd Take(HeldDescriptors* held, const std::string& name) {
  auto found = held->find(name);
  if (name.empty() || found == held->end()) return {};
  base::UniqueFd fd = std::move(found->second);
  held->erase(found);
  return fd;
}

absl::StatusOr<KeeperState> ReadState(StateFile* file, const HeldDescriptors& held) {
  ASSIGN_OR_RETURN(const std::string bytes, file->Read());
  ASSIGN_OR_RETURN(KeeperState state, DecodeState(bytes));
  for (const std::string& name : {state.device, state.mount}) {
    if (held.count(name) == 0) {
      return absl::DataLossError(absl::StrCat("the descriptor \"", base::Printable(name), "\" was not kept"));
    }
  }
  return state;
}

bool IsMountOperation(MessageType type) {
  return type == MessageType::kMountLayer || type == MessageType::kMountOverlay ||
         type == MessageType::kMountIdMapped;
}

bool SameFile(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace

int CheckState(const KeeperOptions& options) {
  HeldDescriptors held;
  absl::Status status = ParseHeldWord(options.held, &held);
  if (status.ok()) {
    StateFile file(Take(&held, kStateName));
    status = ReadState(&file, held).status();
  }
  if (status.ok()) return kStateIsReadable;
  Say(std::string(status.message()));
  return 1;
}

absl::StatusOr<KeeperState> PeekListenDescriptors() {
  HeldDescriptors held = CopyListenDescriptors();
  StateFile file(Take(&held, kStateName));
  if (file.fd() < 0) return absl::NotFoundError("nothing was kept");
  return ReadState(&file, held);
}

absl::Status KeeperLoop::BeginState() {
  HeldDescriptors held = TakeListenDescriptors();
  same_process_ = !options_.held.empty();
  if (same_process_) RETURN_IF_ERROR(ParseHeldWord(options_.held, &held));
  if (held.count(kStateName) > 0) {
    absl::Status status = Resume(&held);
    if (!status.ok() && same_process_) return status;
    if (!status.ok()) {
      Say(absl::StrCat("what the service manager has kept cannot be used: ", status.message(),
                       "; reads from what is mounted fail, start those containers again"));
      // Sockets among them would seem to be served until the service manager has closed its own.
      for (const auto& left : held) shutdown(left.second.get(), SHUT_RDWR);
    }
  }
  for (const auto& left : held) Forget(left.first);
  if (state_.fd() >= 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(state_, StateFile::Create());
  Forget(kStateName);  // one that cannot be used: names are not replaced
  absl::Status status = manager_.Store(kStateName, state_.fd());
  if (!status.ok()) Say(absl::StrCat("mounts will not outlive this keeper: ", status.message()));
  return absl::OkStatus();
}

absl::Status KeeperLoop::Resume(HeldDescriptors* held) {
  StateFile file(Take(held, kStateName));
  ASSIGN_OR_RETURN(KeeperState state, ReadState(&file, *held));
  state_ = std::move(file);
  connection_.device = Take(held, held_device_ = state.device);
  connection_.mount = Take(held, held_mount_ = state.mount);
  connection_.number = state.connection;
  connection_used_ = state.connection_used;
  init_ever_saved_ = state.init_ever_saved;
  init_ = std::move(state.init);
  next_name_ = state.next_name;
  next_sequence_ = state.next_sequence;
  session_ = state.session;
  program_ = state.program;
  good_program_ = {Take(held, state.good_program), state.good_program};
  fall_back_ = state.fall_back && good_program_.fd.valid();
  mounts_ = std::move(state.mounts);
  for (const auto& socket : state.sockets) {
    base::UniqueFd fd = Take(held, socket.held);
    if (fd.valid()) sockets_[socket.name] = {socket.place, {std::move(fd), socket.held}};
  }
  ready_ = state.ready;
  told_ready_ = good_program_.fd.valid();
  if (same_process_) {
    oom_score_adj_ = state.oom_score_adj;
    socket_ = Take(held, kDaemonName);
    started_program_ = Take(held, kStartedName);
    daemon_ = state.daemon.pid;
    taken_ = state.taken;
    for (const auto& process : state.predecessors) predecessors_.insert(process.pid);
    next_liveness_check_ = Now();
    if (daemon_ > 0 && !socket_.valid()) reap_deadline_ = Now() + kReapGrace;
    if (state.hand_over) HandOver();
  } else {
    Say(absl::StrCat("going on with ", mounts_.size(), " mounts of a keeper that died"));
    state.predecessors.push_back(state.daemon);
    for (const auto& process : state.predecessors) EndStray(process);
    for (const std::string& target : state.pending) UndoPending(target);
    // However long the daemon needs: a start that takes too long is ended, with all that is mounted.
    if (told_ready_) manager_.Notify("READY=1\nSTATUS=going on, lazyblobd starts").IgnoreError();
  }
  if (!ready_ || !same_process_) errors_at_ = Now() + options_.error_after;
  return absl::OkStatus();
}

// Kills a daemon whose keeper is dead: its requests are to come to the next one.
void KeeperLoop::EndStray(const KeeperState::Process& process) {
  if (process.pid <= 0) return;
  base::UniqueFd stray(static_cast<int>(syscall(SYS_pidfd_open, process.pid, 0)));
  if (!stray.valid() || StartTimeOf(process.pid) != process.start) return;
  syscall(SYS_pidfd_send_signal, stray.get(), SIGKILL, nullptr, 0);
  pollfd gone{stray.get(), POLLIN, 0};
  if (poll(&gone, 1, kStrayGraceMs) > 0) return;
  strays_.emplace_back(process, std::move(stray));
}

void KeeperLoop::ReapStrays() {
  for (auto stray = strays_.begin(); stray != strays_.end();) {
    pollfd gone{stray->second.get(), POLLIN, 0};
    if (poll(&gone, 1, 0) <= 0) {
      ++stray;
      continue;
    }
    stray = strays_.erase(stray);
    SendEvent(MessageType::kPredecessorReaped);
  }
}

// The child that mounted there died with its keeper, perhaps after it was done.
void KeeperLoop::UndoPending(const std::string& target) {
  if (FindMount(target) != nullptr) return;
  Operation undo;
  undo.type = MessageType::kUnmount;
  undo.target = target;
  undo.prepare = [target]() -> absl::StatusOr<std::function<Outcome()>> {
    return std::function<Outcome()>([target] {
      struct statx st;
      const bool mounted =
          statx(AT_FDCWD, target.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC,
                STATX_TYPE, &st) == 0 &&
          (st.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
      if (!mounted) return Outcome{};
      absl::StatusOr<uint64_t> id = MountIdAt(target);
      return id.ok() ? Unmount(target, *id, /*lazy=*/true) : Outcome{id.status(), 0, ""};
    });
  };
  waiting_.push_back(std::move(undo));
}

KeeperState KeeperLoop::State() const {
  KeeperState state;
  state.device = held_device_;
  state.mount = held_mount_;
  state.good_program = good_program_.name;
  for (const auto& [name, kept] : sockets_) state.sockets.push_back({name, kept.place, kept.socket.name});
  state.next_name = next_name_;
  state.connection = connection_.number;
  state.connection_used = connection_used_;
  state.init_ever_saved = init_ever_saved_;
  state.init = init_;
  state.session = session_;
  if (daemon_ > 0) state.daemon = {daemon_, StartTimeOf(daemon_)};
  for (pid_t pid : predecessors_) state.predecessors.push_back({pid, StartTimeOf(pid)});
  state.program = program_;
  state.arguments.assign(options_.daemon.begin() + 1, options_.daemon.end());
  state.oom_score_adj = oom_score_adj_;
  state.ready = ready_;
  state.taken = taken_;
  state.fall_back = fall_back_;
  state.next_sequence = next_sequence_;
  state.mounts = mounts_;
  for (const Operation& operation : running_) {
    if (IsMountOperation(operation.type)) state.pending.push_back(operation.target);
  }
  return state;
}

void KeeperLoop::Save(const std::string& pending) {
  if (!manager_.present()) return;  // nobody would go on with it
  KeeperState state = State();
  if (!pending.empty()) state.pending.push_back(pending);
  SaveState(state).IgnoreError();  // said
}

absl::Status KeeperLoop::SaveState(const KeeperState& state) {
  absl::Status status = state_.Write(EncodeState(state));
  if (!status.ok()) Say(absl::StrCat("the keeper's state cannot be kept: ", status.message()));
  return status;
}

std::string KeeperLoop::Store(absl::string_view kind, int fd) {
  std::string name = absl::StrCat(kind, "-", next_name_++);
  absl::Status status = manager_.Store(name, fd);
  if (!status.ok()) Say(absl::StrCat("mounts will not outlive this keeper: ", status.message()));
  return name;
}

void KeeperLoop::Forget(const std::string& name) {
  if (!name.empty()) manager_.Remove(name).IgnoreError();  // the next keeper removes what it does not know
}

void KeeperLoop::ForgetEverything() {
  for (const auto& [name, fd] : Descriptors()) {
    if (name != kDaemonName && name != kStartedName) Forget(name);
  }
}

std::map<std::string, int> KeeperLoop::Descriptors() const {
  std::map<std::string, int> all = {{kStateName, state_.fd()},
                                    {held_device_, connection_.device.get()},
                                    {held_mount_, connection_.mount.get()},
                                    {good_program_.name, good_program_.fd.get()},
                                    {kDaemonName, socket_.get()},
                                    {kStartedName, started_program_.get()}};
  for (const auto& [name, kept] : sockets_) all[kept.socket.name] = kept.socket.fd.get();
  for (auto one = all.begin(); one != all.end();) {
    one = one->second < 0 || one->first.empty() ? all.erase(one) : std::next(one);
  }
  return all;
}

std::vector<std::string> KeeperLoop::SuccessorWords(const std::string& path) const {
  std::vector<std::string> words = {
      path, absl::StrCat("--error-after=", absl::ToInt64Seconds(options_.error_after)),
      absl::StrCat("--held=", HeldWord(Descriptors())), "--"};
  words.insert(words.end(), options_.daemon.begin(), options_.daemon.end());
  return words;
}

absl::Status KeeperLoop::BeginUpgrade(const std::string& daemon_program, std::optional<uint64_t> id) {
  Upgrade upgrade;
  upgrade.daemon_program = daemon_program;
  upgrade.path = absl::StrCat(daemon_program.substr(0, daemon_program.rfind('/') + 1), kProgramName);
  absl::StatusOr<base::UniqueFd> program = base::OpenFile(upgrade.path, O_PATH);
  struct stat there{};
  struct stat own{};
  if (!program.ok() || fstat(program->get(), &there) != 0 || !S_ISREG(there.st_mode) ||
      stat("/proc/self/exe", &own) != 0 || SameFile(there, own)) {
    return absl::OkStatus();
  }
  upgrade.program = *std::move(program);
  upgrade.session = session_;
  upgrade.id = id;
  RETURN_IF_ERROR(SaveState(State()));
  DaemonStart check;
  check.argv = SuccessorWords(upgrade.path);
  check.argv.insert(check.argv.begin() + 1, "--check-state");
  check.program = upgrade.program.get();
  for (const auto& [name, fd] : Descriptors()) check.inherit.push_back(fd);
  ASSIGN_OR_RETURN(upgrade.checker, StartDaemon(check));
  upgrade.deadline = Now() + kCheckTime;
  upgrade_ = std::move(upgrade);
  return absl::OkStatus();
}

void KeeperLoop::CheckerEnded(int wait_status) {
  upgrade_->checker = -1;
  if (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != kStateIsReadable) {
    return AbandonUpgrade("it cannot go on where the running keeper is");
  }
  upgrade_->checked = true;
  upgrade_->deadline = Now() + kDrainTime;
}

void KeeperLoop::AbandonUpgrade(const std::string& why) {
  const Upgrade upgrade = *std::exchange(upgrade_, std::nullopt);
  if (upgrade.checker > 0) kill(upgrade.checker, SIGKILL);
  const absl::Status status = absl::FailedPreconditionError(
      absl::StrCat(base::Printable(upgrade.path), ": ", why, "; nothing was replaced"));
  Say(std::string(status.message()));
  if (upgrade.id) {
    Answer(upgrade.session, MessageType::kReplace, *upgrade.id, status, "");
  } else {
    HandOver();  // the daemon at least
  }
}

// When nothing is under way any more: the new program takes this process.
void KeeperLoop::FinishUpgrade() {
  if (!upgrade_ || !upgrade_->checked) return;
  if (stopping_ || shutting_down_ || ended_) return AbandonUpgrade("the keeper is shutting down");
  if (!running_.empty() || !waiting_.empty()) return;
  if (upgrade_->id) {
    const uint64_t id = *std::exchange(upgrade_->id, std::nullopt);
    Answer(upgrade_->session, MessageType::kReplace, id, absl::OkStatus(), "");
  }
  if (!outgoing_.empty()) return;
  program_ = upgrade_->daemon_program;
  KeeperState state = State();
  state.hand_over = daemon_ > 0 && session_ == upgrade_->session;
  state.fall_back = false;  // as HandOver says
  absl::Status status = SaveState(state);
  const std::map<std::string, int> held = Descriptors();
  if (status.ok()) {
    std::vector<std::string> words = SuccessorWords(upgrade_->path);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    for (const auto& [name, fd] : held) fcntl(fd, F_SETFD, 0);
    execveat(upgrade_->program.get(), "", argv.data(), environ, AT_EMPTY_PATH);
    status = base::ErrnoStatus(errno, absl::StrCat("execute ", base::Printable(upgrade_->path)));
    for (const auto& [name, fd] : held) fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  Say(absl::StrCat(status.message(), "; the keeper goes on as it is"));
  upgrade_.reset();
  HandOver();
}

}  // namespace lazyblob::fuse::internal

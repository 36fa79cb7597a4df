#pragma once

// The keeper's one thread. It only waits in poll(2): whatever may hang in one of our file systems is done by
// children (operations.h), whose outcomes it collects. Life of the daemon: started -> gone (reaped, or known
// to run no more code) -> the next one is started at once; the process that could not be reaped yet is
// announced when it is.

#include <sys/types.h>

#include <deque>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/file.h"
#include "fuse/internal/child_process.h"
#include "fuse/internal/keeper_protocol.h"
#include "fuse/internal/keeper_state.h"
#include "fuse/internal/mount_syscalls.h"
#include "fuse/internal/operations.h"
#include "fuse/internal/service_manager.h"
#include "fuse/keeper.h"

namespace lazyblob::fuse::internal {

void Say(const std::string& line);  // to whoever reads the log

// For RunKeeper with --check-state.
int CheckState(const KeeperOptions& options);

// Of a dead keeper, if one in this process could go on with what the service manager has kept.
absl::StatusOr<KeeperState> PeekListenDescriptors();

class KeeperLoop {
 public:
  explicit KeeperLoop(const KeeperOptions& options);
  int Run();

 private:
  // From the end of the socket to the end of the process; usually a few milliseconds. Sparing the successor a
  // predecessor that still holds its files is worth that much, and no more.
  static constexpr absl::Duration kReapGrace = absl::Milliseconds(250);
  static constexpr absl::Duration kOrderlyEnd = absl::Seconds(90);
  static constexpr absl::Duration kUnmountTime = absl::Seconds(10);  // then the connection is ended
  static absl::Duration Now() { return base::SystemClock().Monotonic(); }

  // Something for a child to do. Operations on the same target run one after the other, in the order they
  // came.
  struct Operation {
    uint64_t session = 0;  // of the daemon that asked; an answer goes to no other
    uint64_t id = 0;
    MessageType type = MessageType::kProbe;
    std::string target;
    bool tree = false;  // mounts a FUSE tree
    // Decides, when the operation's turn has come, what to run; an error is the answer.
    std::function<absl::StatusOr<std::function<Outcome()>>()> prepare;
    Child child;
  };
  using Mount = KeeperState::Mount;
  struct Outgoing {
    std::string packet;
    base::UniqueFd descriptor;
  };

  // A descriptor that the service manager has, too; "": it has not.
  struct Held {
    base::UniqueFd fd;
    std::string name;
  };
  struct KeptSocket {
    std::string place;
    Held socket;
  };

  // Another program for this process.
  struct Upgrade {
    std::string daemon_program;
    std::string path;
    base::UniqueFd program;
    uint64_t session = 0;  // of the daemon that asked
    std::optional<uint64_t> id;
    pid_t checker = -1;    // the program, which is asked whether it could
    bool checked = false;  // it could: no more requests are taken
    absl::Duration deadline;
  };

  absl::Status Start();
  void Step();
  int Finish();

  // Life of the daemon.
  absl::Status OpenFreshConnection();
  absl::Status StartNextDaemon();
  void Restart();
  void StartAgain();
  void DaemonGone(std::optional<int> wait_status);
  void HandOver();
  void GiveUp(const std::string& why);
  void CheckConnection();
  void ReapChildren();
  void ReadSignals();
  void CheckTimers();
  int PollTimeoutMs() const;

  // The protocol.
  void ReadRequests();
  void HandleRequest(const Message& message, base::UniqueFd descriptor);
  absl::Status Enqueue(const Message& message);
  absl::Status TakeConnection(const Message& message);
  absl::Status SaveInit(const Message& message);
  absl::Status ListMounted(const Message& message);
  absl::Status KeepSocket(const Message& message, base::UniqueFd descriptor);
  absl::Status TakeSocket(const Message& message);
  absl::Status Ready(const Message& message);
  absl::Status Replace(const Message& message);
  absl::Status BeginShutdown(const Message& message);
  absl::StatusOr<Operation> MakeOperation(const Message& message);
  void Answer(uint64_t session, MessageType type, uint64_t id, const absl::Status& status,
              absl::string_view result, int descriptor = -1);
  void SendEvent(MessageType type);
  void FlushOutgoing();

  // Requests that no daemon answers (keeper_errors.cc).
  bool ErrorsAreDue() const { return !taken_ && connection_used_ && !answering_errors_; }
  void BeginErrors();
  void AnswerErrors();
  void ProvokeRequest();

  // Going on where another keeper ended (keeper_resume.cc).
  absl::Status BeginState();
  absl::Status Resume(HeldDescriptors* held);
  void EndStray(const KeeperState::Process& process);
  void UndoPending(const std::string& target);
  void ReapStrays();
  KeeperState State() const;
  void Save(const std::string& pending = "");
  absl::Status SaveState(const KeeperState& state);
  // Its name with the service manager.
  std::string Store(absl::string_view kind, int fd);
  void Forget(const std::string& name);
  void ForgetEverything();
  // A program for the keeper itself, next to the daemon's. `id`: of the request that is to be answered. OK
  // without upgrade_: there is none.
  absl::Status BeginUpgrade(const std::string& daemon_program, std::optional<uint64_t> id);
  void CheckerEnded(int wait_status);
  void AbandonUpgrade(const std::string& why);
  void FinishUpgrade();
  std::map<std::string, int> Descriptors() const;
  std::vector<std::string> SuccessorWords(const std::string& path) const;

  // Operations.
  void StartOperations();
  void FinishOperation(Operation operation);
  void RecordOutcome(const Operation& operation, const Outcome& outcome);
  void UndoOrphan(const Operation& operation);
  void StartUnmountAll();
  const Mount* FindMount(const std::string& target) const;

  const KeeperOptions options_;
  int ready_fd_;
  base::UniqueFd signals_;
  std::string oom_score_adj_;  // what the daemon gets back

  ServiceManager manager_;
  StateFile state_;
  uint64_t next_name_ = 1;
  bool same_process_ = false;  // the keeper of before was this process

  FuseConnection connection_;  // as held_device_ and held_mount_ name its descriptors
  std::string held_device_;
  std::string held_mount_;
  InitExchange init_;
  bool connection_used_ = false;  // something was mounted over it, so INIT has been answered
  bool init_ever_saved_ = false;

  pid_t daemon_ = -1;
  std::set<pid_t> predecessors_;                                         // gone, not reaped
  std::vector<std::pair<KeeperState::Process, base::UniqueFd>> strays_;  // the same of a dead keeper: pidfds
  base::UniqueFd socket_;
  std::deque<Outgoing> outgoing_;
  std::string program_;             // of the next daemon
  base::UniqueFd started_program_;  // of this daemon, unless it is good_program_
  Held good_program_;               // of the last daemon that was ready
  bool fall_back_ = false;          // start that one: the last start has failed
  bool ready_ = false;              // the daemon has said so
  bool told_ready_ = false;         // the service manager was told that the keeper serves
  bool taken_ = false;              // it has the connection
  bool handing_over_ = false;       // the daemon was told to end for a successor
  std::map<std::string, KeptSocket> sockets_;
  uint64_t session_ = 0;   // number of daemons started; 0 is nobody's
  int failed_starts_ = 0;  // in a row; and crashes soon after Ready
  std::optional<Upgrade> upgrade_;

  bool answering_errors_ = false;
  bool older_are_lost_ = false;  // what was read before cannot be had again: to be failed by number
  std::vector<char> request_;    // room for one

  std::list<Operation> waiting_;
  std::list<Operation> running_;
  std::vector<Mount> mounts_;
  uint64_t next_sequence_ = 1;

  bool stopping_ = false;       // told by a signal
  bool shutting_down_ = false;  // told by the daemon
  bool unmounting_all_ = false;
  bool aborted_ = false;
  uint64_t shutdown_id_ = 0;
  bool ended_ = false;
  int exit_code_ = 0;

  // On the monotonic clock.
  absl::Duration next_liveness_check_ = absl::InfiniteDuration();
  absl::Duration reap_deadline_ = absl::InfiniteDuration();     // after the socket has closed
  absl::Duration stop_deadline_ = absl::InfiniteDuration();     // after a signal was forwarded
  absl::Duration unmount_deadline_ = absl::InfiniteDuration();  // after Shutdown
  absl::Duration restart_at_ = absl::InfiniteDuration();        // after daemons that were never ready
  absl::Duration errors_at_ = absl::InfiniteDuration();         // unless one has the connection then
  absl::Duration ready_at_ = -absl::InfiniteDuration();         // when the daemon was
};

}  // namespace lazyblob::fuse::internal

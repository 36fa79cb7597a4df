// KeeperLoop: what lazyblobd asks for, and the children that do it.

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "fuse/internal/keeper_loop.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr size_t kMaxRunning = 128;   // children at a time
constexpr size_t kMaxWaiting = 4096;  // requests
constexpr size_t kMaxSockets = 4;
constexpr size_t kPageBytes = 48 * 1024;

bool IsListeningUnixSocket(int fd) {
  const auto option = [fd](int name) {
    int value = -1;
    socklen_t size = sizeof value;
    return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
  };
  return option(SO_DOMAIN) == AF_UNIX && option(SO_TYPE) == SOCK_STREAM && option(SO_ACCEPTCONN) == 1;
}

}  // namespace

void KeeperLoop::ReadRequests() {
  while (socket_.valid()) {
    absl::StatusOr<Packet> packet = ReceivePacket(socket_.get(), /*accept_descriptor=*/true, MSG_DONTWAIT);
    if (absl::IsResourceExhausted(packet.status())) return;
    if (!packet.ok() || packet->bytes.empty()) {
      // It has closed its end: it is ending, or dead. Time to be reaped, then it is not waited for any
      // longer.
      socket_.Reset();
      outgoing_.clear();
      reap_deadline_ = Now() + (shutting_down_ || stopping_ ? kOrderlyEnd : kReapGrace);
      return;
    }
    absl::StatusOr<Message> message = Unframe(packet->bytes);
    if (packet->truncated || !message.ok() || message->answer) {
      fprintf(stderr, "lazyblob-keeper: lazyblobd sent something that is not a request; ignored\n");
      continue;
    }
    HandleRequest(*message, std::move(packet->descriptor));
  }
}

void KeeperLoop::HandleRequest(const Message& message, base::UniqueFd descriptor) {
  absl::Status status;
  switch (message.type) {
    case MessageType::kTakeConnection:
      status = TakeConnection(message);
      break;
    case MessageType::kSaveInit:
      status = SaveInit(message);
      break;
    case MessageType::kMounted:
      status = ListMounted(message);
      break;
    case MessageType::kShutdown:
      status = BeginShutdown(message);
      break;
    case MessageType::kKeepSocket:
      status = KeepSocket(message, std::move(descriptor));
      break;
    case MessageType::kTakeSocket:
      status = TakeSocket(message);
      break;
    case MessageType::kReady:
      status = Ready(message);
      break;
    case MessageType::kReplace:
      status = Replace(message);
      break;
    case MessageType::kMountLayer:
    case MessageType::kMountOverlay:
    case MessageType::kMountIdMapped:
    case MessageType::kUnmount:
    case MessageType::kProbe:
      status = Enqueue(message);
      break;
    default:
      status = absl::UnimplementedError(
          absl::StrCat("keeper: unknown request ", static_cast<unsigned>(message.type)));
  }
  if (!status.ok()) Answer(session_, message.type, message.id, status, "");
}

absl::Status KeeperLoop::TakeConnection(const Message& message) {
  RETURN_IF_ERROR(DecodeEmpty(message.body));
  ConnectionAnswer answer;
  answer.generation = session_;
  answer.taken_over = !init_.request.empty();
  answer.init = init_;
  taken_ = true;
  answering_errors_ = false;
  Answer(session_, message.type, message.id, absl::OkStatus(), EncodeConnectionResult(answer),
         connection_.device.get());
  return absl::OkStatus();
}

absl::Status KeeperLoop::SaveInit(const Message& message) {
  ASSIGN_OR_RETURN(InitExchange init, DecodeInit(message.body));
  if (!init_.request.empty()) {
    return absl::FailedPreconditionError("this connection has its INIT exchange already; there is only one");
  }
  init_ = std::move(init);
  init_ever_saved_ = true;
  Save();
  Answer(session_, message.type, message.id, absl::OkStatus(), "");
  return absl::OkStatus();
}

absl::Status KeeperLoop::ListMounted(const Message& message) {
  ASSIGN_OR_RETURN(uint64_t from, DecodeMounted(message.body));
  MountedPage page;
  size_t bytes = 0;
  for (const Mount& mount : mounts_) {
    if (mount.sequence < from) continue;
    bytes += mount.target.size() + sizeof(uint32_t);
    if (bytes > kPageBytes) {
      page.next = mount.sequence;
      break;
    }
    page.targets.push_back(mount.target);
  }
  Answer(session_, message.type, message.id, absl::OkStatus(), EncodeMountedResult(page));
  return absl::OkStatus();
}

absl::Status KeeperLoop::KeepSocket(const Message& message, base::UniqueFd descriptor) {
  ASSIGN_OR_RETURN(SocketRequest request, DecodeSocket(message.body));
  if (!IsListeningUnixSocket(descriptor.get())) {
    return absl::InvalidArgumentError("keeper: no listening unix socket came with the request");
  }
  auto kept = sockets_.find(request.name);
  if (kept == sockets_.end() && sockets_.size() >= kMaxSockets) {
    return absl::ResourceExhaustedError(absl::StrCat("the keeper keeps ", kMaxSockets, " sockets already"));
  }
  std::string old;
  if (kept != sockets_.end()) {
    old = kept->second.socket.name;
    shutdown(kept->second.socket.fd.get(), SHUT_RDWR);  // the service manager's duplicate listens, too
  }
  std::string held = Store("socket", descriptor.get());
  sockets_[request.name] = {std::move(request.place), {std::move(descriptor), std::move(held)}};
  Save();
  Forget(old);
  Answer(session_, message.type, message.id, absl::OkStatus(), "");
  return absl::OkStatus();
}

absl::Status KeeperLoop::TakeSocket(const Message& message) {
  ASSIGN_OR_RETURN(SocketRequest request, DecodeSocket(message.body));
  auto kept = sockets_.find(request.name);
  if (kept == sockets_.end() || kept->second.place != request.place) {
    return absl::NotFoundError(absl::StrCat("no such socket is kept: ", base::Printable(request.name)));
  }
  Answer(session_, message.type, message.id, absl::OkStatus(), "", kept->second.socket.fd.get());
  return absl::OkStatus();
}

absl::Status KeeperLoop::Ready(const Message& message) {
  RETURN_IF_ERROR(DecodeEmpty(message.body));
  ready_ = true;
  ready_at_ = Now();
  std::string old;
  if (started_program_.valid()) {
    old = good_program_.name;
    std::string held = Store("program", started_program_.get());
    good_program_ = {std::move(started_program_), std::move(held)};
  }
  Save();
  Forget(old);
  manager_.Notify(absl::StrCat(told_ready_ ? "" : "READY=1\n", "STATUS=lazyblobd ", session_, " serves"))
      .IgnoreError();
  told_ready_ = true;
  Answer(session_, message.type, message.id, absl::OkStatus(), "");
  return absl::OkStatus();
}

absl::Status KeeperLoop::Replace(const Message& message) {
  ASSIGN_OR_RETURN(std::string program, DecodeReplace(message.body));
  if (shutting_down_ || stopping_) return absl::UnavailableError("the keeper is shutting down");
  if (upgrade_) return absl::UnavailableError("another upgrade is under way");
  if (program.empty()) program = program_;
  RETURN_IF_ERROR(BeginUpgrade(program, message.id));
  if (upgrade_) return absl::OkStatus();  // it answers
  program_ = std::move(program);
  Answer(session_, message.type, message.id, absl::OkStatus(), "");
  HandOver();
  return absl::OkStatus();
}

absl::Status KeeperLoop::BeginShutdown(const Message& message) {
  RETURN_IF_ERROR(DecodeEmpty(message.body));
  if (shutting_down_) return absl::FailedPreconditionError("the keeper is shutting down already");
  shutting_down_ = true;
  shutdown_id_ = message.id;
  unmount_deadline_ = Now() + kUnmountTime;
  for (const Operation& operation : waiting_) {
    Answer(operation.session, operation.type, operation.id,
           absl::UnavailableError("the keeper is shutting down"), "");
  }
  waiting_.clear();
  return absl::OkStatus();
}

absl::StatusOr<KeeperLoop::Operation> KeeperLoop::MakeOperation(const Message& message) {
  Operation operation;
  operation.session = session_;
  operation.id = message.id;
  operation.type = message.type;
  using Work = std::function<Outcome()>;
  switch (message.type) {
    case MessageType::kMountLayer: {
      ASSIGN_OR_RETURN(LayerMountRequest request, DecodeLayerMount(message.body));
      operation.target = request.target;
      operation.tree = request.mode == Mode::kFuse;
      operation.prepare = [this, request]() -> absl::StatusOr<Work> {
        return Work([request, mount = connection_.mount.get(), confirm = !connection_used_] {
          return MountLayer(request, mount, confirm);
        });
      };
      break;
    }
    case MessageType::kMountOverlay: {
      ASSIGN_OR_RETURN(OverlayRequest request, DecodeOverlay(message.body));
      operation.target = request.target;
      operation.prepare = [this, request]() -> absl::StatusOr<Work> {
        const Mount* lower = request.lowers.size() == 1 ? FindMount(request.lowers[0]) : nullptr;
        return Work(
            [request, tree = lower != nullptr && lower->tree] { return MountOverlay(request, tree); });
      };
      break;
    }
    case MessageType::kMountIdMapped: {
      ASSIGN_OR_RETURN(IdMappedRequest request, DecodeIdMapped(message.body));
      operation.target = request.target;
      operation.prepare = [request]() -> absl::StatusOr<Work> {
        return Work([request] { return MountIdMapped(request); });
      };
      break;
    }
    case MessageType::kUnmount: {
      ASSIGN_OR_RETURN(UnmountRequest request, DecodeUnmount(message.body));
      operation.target = request.target;
      operation.prepare = [this, request]() -> absl::StatusOr<Work> {
        const Mount* mount = FindMount(request.target);
        if (mount == nullptr) {
          return absl::NotFoundError(
              absl::StrCat("nothing of ours is mounted on ", base::Printable(request.target)));
        }
        return Work([request, id = mount->mount_id] { return Unmount(request.target, id, request.lazy); });
      };
      break;
    }
    default: {
      ASSIGN_OR_RETURN(std::string state_root, DecodeProbe(message.body));
      operation.prepare = [state_root]() -> absl::StatusOr<Work> {
        return Work([state_root] { return ProbeModesHere(state_root); });
      };
    }
  }
  return operation;
}

absl::Status KeeperLoop::Enqueue(const Message& message) {
  ASSIGN_OR_RETURN(Operation operation, MakeOperation(message));
  if (shutting_down_) return absl::UnavailableError("the keeper is shutting down");
  if (waiting_.size() >= kMaxWaiting)
    return absl::ResourceExhaustedError("too many requests wait in the keeper");
  waiting_.push_back(std::move(operation));
  return absl::OkStatus();
}

void KeeperLoop::StartOperations() {
  if (shutting_down_ && !unmounting_all_ && running_.empty()) StartUnmountAll();
  absl::flat_hash_set<std::string> taken;
  for (const Operation& operation : running_) taken.insert(operation.target);
  for (auto next = waiting_.begin(); next != waiting_.end() && running_.size() < kMaxRunning;) {
    auto operation = next++;
    if (!operation->target.empty() && !taken.insert(operation->target).second) continue;
    absl::StatusOr<std::function<Outcome()>> work = operation->prepare();
    absl::Status status = work.status();
    if (status.ok()) {
      if (operation->type != MessageType::kUnmount) Save(operation->target);
      absl::StatusOr<Child> child =
          RunInChild(connection_.mount.get(), [&] { return EncodeOutcome((*work)()); });
      status = child.status();
      if (child.ok()) operation->child = *std::move(child);
    }
    if (status.ok()) {
      running_.splice(running_.end(), waiting_, operation);
    } else {
      Answer(operation->session, operation->type, operation->id, status, "");
      waiting_.erase(operation);
    }
  }
}

void KeeperLoop::FinishOperation(Operation operation) {
  absl::StatusOr<Packet> packet =
      ReceivePacket(operation.child.result.get(), /*accept_descriptor=*/false, MSG_DONTWAIT);
  Outcome outcome = DecodeOutcome(packet.ok() ? packet->bytes : std::string());
  RecordOutcome(operation, outcome);
  Save();
  bool orphan = operation.session != session_ || daemon_ <= 0;
  bool mounts = operation.type == MessageType::kMountLayer || operation.type == MessageType::kMountOverlay ||
                operation.type == MessageType::kMountIdMapped;
  if (orphan && mounts && outcome.status.ok()) {
    UndoOrphan(operation);
    return;
  }
  Answer(operation.session, operation.type, operation.id, outcome.status, outcome.result);
}

void KeeperLoop::RecordOutcome(const Operation& operation, const Outcome& outcome) {
  switch (operation.type) {
    case MessageType::kMountLayer:
      // An orphan's mount may be on a connection that has been given up.
      if (outcome.status.ok() && operation.session == session_) connection_used_ = true;
      [[fallthrough]];
    case MessageType::kMountOverlay:
    case MessageType::kMountIdMapped:
      if (outcome.status.ok()) {
        mounts_.push_back({next_sequence_++, operation.target, outcome.mount_id, operation.tree});
      }
      break;
    case MessageType::kUnmount:
      if (outcome.status.ok() || absl::IsNotFound(outcome.status)) {
        mounts_.erase(std::remove_if(mounts_.begin(), mounts_.end(),
                                     [&](const Mount& mount) { return mount.target == operation.target; }),
                      mounts_.end());
      }
      break;
    case MessageType::kShutdown:
      if (outcome.status.ok()) mounts_.clear();
      break;
    default:
      break;
  }
}

// The daemon that wanted this mount is dead, and its successor does not know of it.
void KeeperLoop::UndoOrphan(const Operation& operation) {
  Operation undo;
  undo.type = MessageType::kUnmount;
  undo.target = operation.target;
  uint64_t mount_id = mounts_.back().mount_id;
  undo.prepare = [target = operation.target, mount_id]() -> absl::StatusOr<std::function<Outcome()>> {
    return std::function<Outcome()>([target, mount_id] { return Unmount(target, mount_id, /*lazy=*/true); });
  };
  waiting_.push_front(std::move(undo));
}

void KeeperLoop::StartUnmountAll() {
  unmounting_all_ = true;
  Operation all;
  all.session = session_;
  all.id = shutdown_id_;
  all.type = MessageType::kShutdown;
  std::vector<HeldMount> mounts;
  for (const Mount& mount : mounts_) mounts.push_back({mount.target, mount.mount_id});
  all.prepare = [mounts]() -> absl::StatusOr<std::function<Outcome()>> {
    return std::function<Outcome()>([mounts] { return UnmountAll(mounts); });
  };
  waiting_.push_back(std::move(all));
}

const KeeperLoop::Mount* KeeperLoop::FindMount(const std::string& target) const {
  auto mount =
      std::find_if(mounts_.begin(), mounts_.end(), [&](const Mount& m) { return m.target == target; });
  return mount == mounts_.end() ? nullptr : &*mount;
}

void KeeperLoop::Answer(uint64_t session, MessageType type, uint64_t id, const absl::Status& status,
                        absl::string_view result, int descriptor) {
  if (session != session_ || !socket_.valid()) return;
  if (type == MessageType::kShutdown) unmount_deadline_ = absl::InfiniteDuration();
  Message message;
  message.type = type;
  message.answer = true;
  message.id = id;
  message.body = absl::StrCat(EncodeStatus(status), result);
  absl::StatusOr<std::string> packet = Frame(message);
  // A duplicate: what is kept may be replaced while the answer waits.
  base::UniqueFd copy(descriptor < 0 ? -1 : fcntl(descriptor, F_DUPFD_CLOEXEC, 3));
  if (packet.ok()) outgoing_.push_back({*std::move(packet), std::move(copy)});
  FlushOutgoing();
}

void KeeperLoop::SendEvent(MessageType type) {
  if (!socket_.valid()) return;
  Message message;
  message.type = type;
  absl::StatusOr<std::string> packet = Frame(message);
  if (packet.ok()) outgoing_.push_back({*std::move(packet), base::UniqueFd()});
  FlushOutgoing();
}

void KeeperLoop::FlushOutgoing() {
  while (!outgoing_.empty()) {
    const Outgoing& next = outgoing_.front();
    absl::Status status = SendPacket(socket_.get(), next.packet, next.descriptor.get(), MSG_DONTWAIT);
    if (absl::IsResourceExhausted(status)) return;
    if (absl::IsUnavailable(status)) {
      outgoing_.clear();  // ReadRequests sees the end
      return;
    }
    outgoing_.pop_front();
  }
}

}  // namespace lazyblob::fuse::internal

#include "fuse/keeper_client.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "fuse/internal/keeper_protocol.h"

namespace lazyblob::fuse {

using internal::Message;
using internal::MessageType;
using internal::Packet;

namespace {

absl::Status Gone() { return absl::UnavailableError("the keeper is gone; start lazyblobd again"); }

}  // namespace

pid_t KeeperProcess(int socket) {
  ucred maker{};
  socklen_t size = sizeof maker;
  const bool told = getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &maker, &size) == 0;
  return told ? maker.pid : getppid();
}

class KeeperClient::Impl {
 public:
  struct Reply {
    std::string result;  // after the status
    base::UniqueFd descriptor;
  };

  explicit Impl(base::UniqueFd socket) : socket_(std::move(socket)) {}
  ~Impl() { Stop(); }

  void Start() {
    reader_ = std::thread([this] { ReadAnswers(); });
  }

  void Stop() ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    shutdown(socket_.get(), SHUT_RDWR);
    if (reader_.joinable()) reader_.join();
  }

  absl::StatusOr<Reply> Call(MessageType type, std::string body, int descriptor = -1)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    Waiter waiter;
    waiter.type = type;
    Message request;
    request.type = type;
    request.body = std::move(body);
    {
      absl::MutexLock lock(&mutex_);
      if (gone_) return Gone();
      request.id = next_id_++;
      waiters_[request.id] = &waiter;
    }
    absl::StatusOr<std::string> packet = internal::Frame(request);
    absl::Status sent =
        packet.ok() ? internal::SendPacket(socket_.get(), *packet, descriptor, 0) : packet.status();
    absl::MutexLock lock(&mutex_);
    if (sent.ok()) {
      auto answered = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return waiter.answered || gone_; };
      mutex_.Await(absl::Condition(&answered));
    }
    waiters_.erase(request.id);
    if (!sent.ok()) return absl::IsUnavailable(sent) ? Gone() : sent;
    if (!waiter.answered) return Gone();
    absl::string_view result;
    RETURN_IF_ERROR(internal::DecodeStatus(waiter.body, &result));
    return Reply{std::string(result), std::move(waiter.descriptor)};
  }

  absl::Status CallForStatus(MessageType type, std::string body) {
    ASSIGN_OR_RETURN(Reply reply, Call(type, std::move(body)));
    return internal::DecodeEmpty(reply.result);
  }

  void OnPredecessorReaped(std::function<void()> callback) ABSL_LOCKS_EXCLUDED(mutex_) {
    bool late;
    {
      absl::MutexLock lock(&mutex_);
      on_reaped_ = callback;
      late = std::exchange(reaped_unheard_, false);
    }
    if (late && callback) callback();
  }

  void OnKeeperGone(std::function<void()> callback) ABSL_LOCKS_EXCLUDED(mutex_) {
    bool late;
    {
      absl::MutexLock lock(&mutex_);
      on_gone_ = callback;
      late = gone_ && !stopping_;
    }
    if (late && callback) callback();
  }

 private:
  struct Waiter {
    MessageType type = MessageType::kTakeConnection;
    bool answered = false;
    std::string body;
    base::UniqueFd descriptor;
  };

  void ReadAnswers() ABSL_LOCKS_EXCLUDED(mutex_) {
    for (;;) {
      absl::StatusOr<Packet> packet = internal::ReceivePacket(socket_.get(), /*accept_descriptor=*/true, 0);
      if (!packet.ok() || packet->bytes.empty()) break;
      absl::StatusOr<Message> message = internal::Unframe(packet->bytes);
      // A keeper that cannot be understood is no keeper.
      if (packet->truncated || !message.ok()) break;
      if (message->answer) {
        absl::MutexLock lock(&mutex_);
        auto waiter = waiters_.find(message->id);
        if (waiter == waiters_.end() || waiter->second->type != message->type) continue;
        waiter->second->body = std::move(message->body);
        waiter->second->descriptor = std::move(packet->descriptor);
        waiter->second->answered = true;
      } else if (message->type == MessageType::kPredecessorReaped) {
        NotifyReaped();
      }
    }
    std::function<void()> callback;
    {
      absl::MutexLock lock(&mutex_);
      gone_ = true;
      if (!stopping_) callback = on_gone_;
    }
    if (callback) callback();
  }

  void NotifyReaped() ABSL_LOCKS_EXCLUDED(mutex_) {
    std::function<void()> callback;
    {
      absl::MutexLock lock(&mutex_);
      callback = on_reaped_;
      if (!callback) reaped_unheard_ = true;
    }
    if (callback) callback();
  }

  const base::UniqueFd socket_;
  std::thread reader_;
  absl::Mutex mutex_;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool reaped_unheard_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::function<void()> on_reaped_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_gone_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, Waiter*> waiters_ ABSL_GUARDED_BY(mutex_);
};

KeeperClient::KeeperClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KeeperClient::~KeeperClient() = default;

absl::StatusOr<std::unique_ptr<KeeperClient>> KeeperClient::Connect(base::UniqueFd socket) {
  int type = 0;
  socklen_t size = sizeof type;
  if (getsockopt(socket.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("keeper socket ", socket.get()));
  }
  if (type != SOCK_SEQPACKET) {
    return absl::InvalidArgumentError(absl::StrCat("descriptor ", socket.get(), " is not a keeper socket"));
  }
  // It was inherited, so it has no FD_CLOEXEC; whoever has it may have anything unmounted.
  if (fcntl(socket.get(), F_SETFD, FD_CLOEXEC) != 0) return base::ErrnoStatus(errno, "keeper socket");
  auto impl = std::make_unique<Impl>(std::move(socket));
  impl->Start();
  return std::unique_ptr<KeeperClient>(new KeeperClient(std::move(impl)));
}

absl::StatusOr<KeeperClient::Connection> KeeperClient::TakeConnection() {
  ASSIGN_OR_RETURN(Impl::Reply reply, impl_->Call(MessageType::kTakeConnection, ""));
  ASSIGN_OR_RETURN(internal::ConnectionAnswer answer, internal::DecodeConnectionResult(reply.result));
  if (!reply.descriptor.valid())
    return absl::InternalError("the keeper answered without the FUSE descriptor");
  Connection connection;
  connection.generation = answer.generation;
  connection.device = std::move(reply.descriptor);
  connection.taken_over = answer.taken_over;
  connection.init = std::move(answer.init);
  return connection;
}

absl::Status KeeperClient::SaveInit(const InitExchange& init) {
  return impl_->CallForStatus(MessageType::kSaveInit, internal::EncodeInit(init));
}

void KeeperClient::OnPredecessorReaped(std::function<void()> callback) {
  impl_->OnPredecessorReaped(std::move(callback));
}

void KeeperClient::OnKeeperGone(std::function<void()> callback) { impl_->OnKeeperGone(std::move(callback)); }

absl::Status KeeperClient::Shutdown() { return impl_->CallForStatus(MessageType::kShutdown, ""); }

absl::StatusOr<std::vector<std::string>> KeeperClient::Mounted() {
  std::vector<std::string> targets;
  uint64_t from = 0;
  do {
    ASSIGN_OR_RETURN(Impl::Reply reply, impl_->Call(MessageType::kMounted, internal::EncodeMounted(from)));
    ASSIGN_OR_RETURN(internal::MountedPage page, internal::DecodeMountedResult(reply.result));
    if (page.next != 0 && page.next <= from)
      return absl::InternalError("the keeper's list of mounts has no end");
    for (std::string& target : page.targets) targets.push_back(std::move(target));
    from = page.next;
  } while (from != 0);
  return targets;
}

absl::Status KeeperClient::KeepSocket(const std::string& name, const std::string& place, int socket) {
  ASSIGN_OR_RETURN(Impl::Reply reply,
                   impl_->Call(MessageType::kKeepSocket, internal::EncodeSocket({name, place}), socket));
  return internal::DecodeEmpty(reply.result);
}

absl::StatusOr<base::UniqueFd> KeeperClient::TakeSocket(const std::string& name, const std::string& place) {
  ASSIGN_OR_RETURN(Impl::Reply reply,
                   impl_->Call(MessageType::kTakeSocket, internal::EncodeSocket({name, place})));
  RETURN_IF_ERROR(internal::DecodeEmpty(reply.result));
  if (!reply.descriptor.valid()) return absl::InternalError("the keeper answered without the socket");
  return std::move(reply.descriptor);
}

absl::Status KeeperClient::Ready() { return impl_->CallForStatus(MessageType::kReady, ""); }

absl::Status KeeperClient::Replace(const std::string& program) {
  return impl_->CallForStatus(MessageType::kReplace, internal::EncodeReplace(program));
}

absl::Status KeeperClient::MountLayer(const LayerMountRequest& request) {
  return impl_->CallForStatus(MessageType::kMountLayer, internal::EncodeLayerMount(request));
}

absl::Status KeeperClient::MountOverlay(const OverlayRequest& request) {
  return impl_->CallForStatus(MessageType::kMountOverlay, internal::EncodeOverlay(request));
}

absl::Status KeeperClient::MountIdMapped(const IdMappedRequest& request) {
  return impl_->CallForStatus(MessageType::kMountIdMapped, internal::EncodeIdMapped(request));
}

absl::Status KeeperClient::Unmount(const std::string& target, bool lazy) {
  return impl_->CallForStatus(MessageType::kUnmount, internal::EncodeUnmount({target, lazy}));
}

absl::StatusOr<ProbeResult> KeeperClient::Probe(const std::string& state_root) {
  ASSIGN_OR_RETURN(Impl::Reply reply, impl_->Call(MessageType::kProbe, internal::EncodeProbe(state_root)));
  return internal::DecodeProbeResult(reply.result);
}

}  // namespace lazyblob::fuse

#define FUSE_USE_VERSION 314

#include "fuse/internal/session.h"

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "fuse/internal/kernel_errno.h"
#include "fuse/internal/protocol.h"
#include "fuse/internal/unanswered.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr int kMaxReadErrors = 100;

Session* SessionOf(void* userdata) { return static_cast<Session*>(userdata); }

size_t TotalSize(const iovec* parts, int count) {
  size_t total = 0;
  for (int i = 0; i < count; ++i) total += parts[i].iov_len;
  return total;
}

// Whether an answer of this size may go out now (see ThreadState::answer_size); an error has none.
bool RightSize(size_t size) {
  ThreadState& state = CurrentThreadState();
  if (state.answer_size == 0 || state.answer_size == size) return true;
  state.refused = true;
  errno = ENOENT;  // of which libfuse does not complain
  return false;
}

ssize_t CustomWritev(int, iovec* parts, int count, void* userdata) {
  const auto* header = static_cast<const fuse_out_header*>(parts[0].iov_base);
  if (!RightSize(header->error == 0 ? TotalSize(parts, count) : 0)) return -1;
  return SessionOf(userdata)->WriteAnswer(parts, count);
}

ssize_t CustomRead(int fd, void* buffer, size_t size, void*) { return read(fd, buffer, size); }

ssize_t CustomSpliceReceive(int fdin, off_t* offin, int fdout, off_t* offout, size_t size, unsigned flags,
                            void*) {
  return splice(fdin, offin, fdout, offout, size, flags);
}

ssize_t CustomSpliceSend(int fdin, off_t* offin, int fdout, off_t* offout, size_t size, unsigned flags,
                         void*) {
  if (!RightSize(size)) return -1;
  return splice(fdin, offin, fdout, offout, size, flags);
}

// Requests that would change something.
bool Mutates(uint32_t opcode) {
  switch (opcode) {
    case FUSE_SETATTR:
    case FUSE_SYMLINK:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_RENAME:
    case FUSE_RENAME2:
    case FUSE_LINK:
    case FUSE_WRITE:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR:
    case FUSE_CREATE:
    case FUSE_TMPFILE:
    case FUSE_FALLOCATE:
    case FUSE_COPY_FILE_RANGE:
      return true;
    default:
      return false;
  }
}

absl::StatusOr<base::UniqueFd> WatchFor(int device, int stop_event) {
  base::UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return base::ErrnoStatus(errno, "epoll_create1");
  epoll_event event{};
  // Exclusive: one request wakes one thread.
  event.events = EPOLLIN | EPOLLEXCLUSIVE;
  if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, device, &event) != 0)
    return base::ErrnoStatus(errno, "epoll_ctl");
  event.events = EPOLLIN;
  if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, stop_event, &event) != 0)
    return base::ErrnoStatus(errno, "epoll_ctl");
  return epoll;
}

}  // namespace

ThreadState& CurrentThreadState() {
  thread_local ThreadState state;
  return state;
}

Session::Session(Options options, Filesystem* filesystem, HandleTable* handles)
    : options_(std::move(options)), filesystem_(filesystem), handles_(handles) {}

Session::~Session() {
  Stop();
  if (session_ != nullptr) fuse_session_destroy(session_);  // closes the device
}

absl::Status Session::Start(ReadEngine* reads) {
  reads_ = reads;
  RETURN_IF_ERROR(CreateSession());
  const bool takeover = !options_.replay_request.empty();
  if (takeover) {
    RETURN_IF_ERROR(Replay());
    absl::Status status = Resend();
    if (!status.ok()) {
      options_.log(absl::StrCat("reads that a predecessor left unanswered fail: ", status.message()));
    }
    older_are_lost_ = !status.ok();
    absl::MutexLock lock(&mutex_);
    ready_ = status.ok();
  }
  for (int i = 0; i < std::max(1, options_.threads); ++i) {
    threads_.emplace_back([this, i] { Run(i); });
  }
  return absl::OkStatus();
}

absl::Status Session::CreateSession() {
  const int device = options_.device.get();
  if (device < 0) return absl::InvalidArgumentError("no FUSE device was given");
  const int flags = fcntl(device, F_GETFL);
  if (flags < 0 || fcntl(device, F_SETFL, flags | O_NONBLOCK) != 0) {
    return base::ErrnoStatus(errno, "preparing the FUSE device");
  }
  stop_event_ = base::UniqueFd(eventfd(0, EFD_CLOEXEC));
  if (!stop_event_.valid()) return base::ErrnoStatus(errno, "eventfd");

  std::string name = "lazyblob";
  std::string option = absl::StrCat("-omax_read=", kMaxRead);
  char* argv[] = {name.data(), option.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(2, argv);
  session_ = fuse_session_new(&args, &SessionOps(), sizeof(fuse_lowlevel_ops), this);
  fuse_opt_free_args(&args);
  if (session_ == nullptr) return absl::InternalError("libfuse cannot make a session");

  fuse_custom_io io{};
  io.writev = CustomWritev;
  io.read = CustomRead;
  struct stat type{};
  if (fstat(device, &type) == 0 && !S_ISSOCK(type.st_mode)) {
    // Without them libfuse would copy. A socket, as tests use it, cannot keep a spliced message together.
    io.splice_receive = CustomSpliceReceive;
    io.splice_send = CustomSpliceSend;
  }
  if (int error = fuse_session_custom_io(session_, &io, device); error != 0) {
    return base::ErrnoStatus(-error, "fuse_session_custom_io");
  }
  device_ = options_.device.Release();
  return absl::OkStatus();
}

absl::StatusOr<std::string> Session::AnswerInit(std::string& request) {
  const auto* header = reinterpret_cast<const fuse_in_header*>(request.data());
  if (request.size() < sizeof(fuse_in_header) + sizeof(uint32_t) * 4 || header->len != request.size() ||
      header->opcode != FUSE_INIT) {
    return absl::FailedPreconditionError("the first FUSE request is no INIT");
  }
  request.resize(std::max(request.size(), sizeof(fuse_in_header) + sizeof(fuse_init_in)));
  std::string answer;
  ThreadState& state = CurrentThreadState();
  state.capture = &answer;
  fuse_buf buffer{};
  buffer.size = header->len;
  buffer.mem = request.data();
  fuse_session_process_buf(session_, &buffer);
  state.capture = nullptr;
  request.resize(buffer.size);
  fuse_out_header out{};
  if (answer.size() < sizeof(out)) return absl::InternalError("libfuse did not answer INIT");
  memcpy(&out, answer.data(), sizeof(out));
  if (out.error != 0) return base::ErrnoStatus(-out.error, "libfuse refused this kernel's INIT");
  return answer;
}

absl::Status Session::Replay() {
  std::string request = options_.replay_request;
  ASSIGN_OR_RETURN(const std::string answer, AnswerInit(request));
  if (answer == options_.replay_answer) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the FUSE connection was negotiated by another version in a way this one would not; "
      "start that version again, or unmount everything first");
}

absl::Status Session::NewConnection(std::string& request) {
  ASSIGN_OR_RETURN(std::string answer, AnswerInit(request));
  if (options_.on_init != nullptr) {
    RETURN_IF_ERROR(base::Annotate(options_.on_init({request, answer}), "keeping the FUSE negotiation"));
  }
  const iovec part{answer.data(), answer.size()};
  if (WriteAnswer(&part, 1) < 0) return base::ErrnoStatus(errno, "answering INIT");
  return absl::OkStatus();
}

absl::Status Session::Resend() { return AskAgain(device_); }

ssize_t Session::WriteAnswer(const iovec* parts, int count) {
  if (std::string* capture = CurrentThreadState().capture) {
    for (int i = 0; i < count; ++i)
      capture->append(static_cast<const char*>(parts[i].iov_base), parts[i].iov_len);
    return static_cast<ssize_t>(TotalSize(parts, count));
  }
  while (true) {
    const ssize_t written = writev(device_, parts, count);
    if (written >= 0 || (errno != EINTR && errno != EAGAIN)) return written;
    if (errno == EAGAIN) {  // only a socket is ever full
      pollfd writable{device_, POLLOUT, 0};
      poll(&writable, 1, -1);
    }
  }
}

void Session::SendError(uint64_t unique, int error) {
  fuse_out_header header{};
  header.len = sizeof(header);
  header.error = -error;
  header.unique = unique;
  const iovec part{&header, sizeof(header)};
  WriteAnswer(&part, 1);  // fails only when the kernel does not wait for it any more
}

void Session::SendData(uint64_t unique, std::vector<char>& data) {
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof(header) + data.size());
  header.unique = unique;
  const iovec parts[] = {{&header, sizeof(header)}, {data.data(), data.size()}};
  WriteAnswer(parts, 2);
}

absl::Status Session::Data(const ReadTicket& ticket, uint64_t length, absl::Span<const AnswerPart> parts) {
  fuse_bufvec vector{};
  vector.count = 1;
  fuse_buf& buffer = vector.buf[0];
  buffer.size = length;
  buffer.fd = -1;
  std::vector<char> copy;
  const bool whole = ticket.request != nullptr && parts.size() == 1 && parts[0].position == 0 &&
                     parts[0].bytes.length() == length;
  if (whole && !parts[0].bytes.in_memory()) {
    buffer.flags = static_cast<fuse_buf_flags>(FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK);
    buffer.fd = parts[0].bytes.fd();
    buffer.pos = static_cast<off_t>(parts[0].bytes.offset());
  } else if (whole) {
    buffer.mem = const_cast<uint8_t*>(parts[0].bytes.memory().data());
  } else {
    copy.resize(length);
    for (const AnswerPart& part : parts) {
      auto* out = reinterpret_cast<uint8_t*>(copy.data()) + part.position;
      if (absl::Status status = part.bytes.CopyTo(absl::MakeSpan(out, part.bytes.length())); !status.ok()) {
        Drop(ticket);
        return status;
      }
    }
    buffer.mem = copy.data();
  }
  if (ticket.request == nullptr) {
    SendData(ticket.unique, copy);
    return absl::OkStatus();
  }
  ThreadState& state = CurrentThreadState();
  state.answer_size = sizeof(fuse_out_header) + length;
  state.refused = false;
  const int error = fuse_reply_data(ticket.request, &vector, static_cast<fuse_buf_copy_flags>(0));
  state.answer_size = 0;
  static_cast<void>(error);  // ENOENT: nobody waits any more
  return state.refused ? absl::DataLossError("the layer's cache file cannot be read, or ends too early")
                       : absl::OkStatus();
}

void Session::Error(const ReadTicket& ticket, const absl::Status& status) {
  if (ticket.request == nullptr) return SendError(ticket.unique, KernelErrno(status));
  fuse_reply_err(ticket.request, KernelErrno(status));
}

void Session::Drop(const ReadTicket& ticket) {
  if (ticket.request != nullptr) fuse_reply_none(ticket.request);
}

void Session::Run(int number) {
  pthread_setname_np(pthread_self(), absl::StrCat("fuse-", number).c_str());
  auto epoll = WatchFor(device_, stop_event_.get());
  if (!epoll.ok()) {
    options_.log(absl::StrCat("a FUSE thread cannot start: ", epoll.status().message()));
    return number == 0 ? EndConnection() : void();
  }
  auto buffer = std::unique_ptr<char[]>(new char[kRequestBuffer]);  // not touched beyond what requests need
  if (number == 0) {
    absl::ReleasableMutexLock lock(&mutex_);
    const bool ready = ready_;
    lock.Release();
    if (!ready) {
      if (!HandleFirst(epoll->get(), buffer.get())) return EndConnection();
      absl::MutexLock relock(&mutex_);
      ready_ = true;
    }
  } else {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&ready_));
  }
  while (size_t size = ReadRequest(epoll->get(), buffer.get())) Dispatch(buffer.get(), size);
}

bool Session::HandleFirst(int epoll, char* buffer) {
  const size_t size = ReadRequest(epoll, buffer);
  if (size == 0) return false;
  const auto* header = reinterpret_cast<const fuse_in_header*>(buffer);
  if (older_are_lost_) {
    const bool interrupt = header->opcode == FUSE_INTERRUPT;  // its id is that of the interrupted one
    if (!interrupt) FailOlder(device_, header->unique);
    Dispatch(buffer, size);
    return !interrupt || HandleFirst(epoll, buffer);
  }
  std::string request(buffer, size);
  const absl::Status status = NewConnection(request);
  if (status.ok()) return true;
  options_.log(absl::StrCat("no FUSE connection: ", status.message()));
  SendError(header->unique, EIO);
  return false;
}

size_t Session::ReadRequest(int epoll, char* buffer) {
  int errors = 0;
  while (!stopping_) {
    const ssize_t size = read(device_, buffer, kRequestBuffer);
    if (size >= static_cast<ssize_t>(sizeof(fuse_in_header))) return static_cast<size_t>(size);
    if (size >= 0 || errno == ENODEV || errno == ECONNRESET) return 0;
    if (errno == EAGAIN) {
      epoll_event event{};
      epoll_wait(epoll, &event, 1, -1);
      continue;
    }
    if (errno == EINTR || errno == ENOENT) continue;  // ENOENT: the request was withdrawn while it was copied
    if (++errors == 1) options_.log(absl::StrCat("reading the FUSE device: ", strerror(errno)));
    if (errors == kMaxReadErrors) return 0;
  }
  return 0;
}

void Session::Dispatch(char* buffer, size_t size) {
  const auto* header = reinterpret_cast<const fuse_in_header*>(buffer);
  if (header->len != size) return;
  if (header->opcode == FUSE_FORGET || header->opcode == FUSE_BATCH_FORGET)
    return;  // nodes are never forgotten
  if (header->opcode == FUSE_INTERRUPT) {
    if (size < sizeof(*header) + sizeof(fuse_interrupt_in)) return;
    reads_->Interrupt(reinterpret_cast<const fuse_interrupt_in*>(header + 1)->unique);
    return;
  }
  if (Mutates(header->opcode)) return SendError(header->unique, EROFS);
  ThreadState& state = CurrentThreadState();
  state.request = header;
  fuse_buf request{};
  request.size = size;
  request.mem = buffer;
  fuse_session_process_buf(session_, &request);
  state.request = nullptr;
}

void Session::EndConnection() {
  stopping_ = true;
  absl::MutexLock lock(&mutex_);
  ready_ = true;
}

void Session::Stop() {
  EndConnection();
  const uint64_t one = 1;
  if (stop_event_.valid() && write(stop_event_.get(), &one, sizeof(one)) < 0)
    return;  // cannot be: never full
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace lazyblob::fuse::internal

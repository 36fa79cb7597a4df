#include "tests/support/fake_kernel.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/support/gate.h"

namespace lazyblob::support {
namespace {

constexpr uint64_t kResendBit = uint64_t{1} << 63;
constexpr size_t kMaxMessage = 2 << 20;

void WidenBuffer(int fd) {
  const int size = 8 << 20;
  if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) != 0) {
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));  // not root: answers up to 100 KiB or so
  }
}

}  // namespace

FakeKernel::FakeKernel() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
  kernel_end_ = base::UniqueFd(ends[0]);
  server_end_ = base::UniqueFd(ends[1]);
  WidenBuffer(ends[0]);
  WidenBuffer(ends[1]);
  receiver_ = std::thread([this] { Receive(); });
}

FakeKernel::~FakeKernel() {
  shutdown(kernel_end_.get(), SHUT_RDWR);
  receiver_.join();
}

base::UniqueFd FakeKernel::ServerEnd() {
  return base::UniqueFd(fcntl(server_end_.get(), F_DUPFD_CLOEXEC, 0));
}

void FakeKernel::Receive() {
  std::string buffer(kMaxMessage, '\0');
  while (true) {
    const ssize_t size = recv(kernel_end_.get(), buffer.data(), buffer.size(), 0);
    if (size <= 0) return;
    const absl::string_view message(buffer.data(), static_cast<size_t>(size));
    const auto header = As<fuse_out_header>(message);
    absl::MutexLock lock(&mutex_);
    ++messages_;
    if (header.unique == 0) {
      ++notifications_[header.error];
      continue;
    }
    unanswered_.erase(header.unique);
    // A message whose length field lies is an answer the kernel would refuse.
    const bool sound = header.len == message.size();
    answers_[header.unique] = {sound ? -header.error : -2, std::string(message.substr(sizeof(header)))};
  }
}

uint64_t FakeKernel::NewUnique() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(next_unique_, next_unique_ + 2);
}

uint64_t FakeKernel::Send(uint32_t opcode, uint64_t node, absl::string_view body, uint32_t pid) {
  const uint64_t unique = NewUnique();
  SendAs(unique, opcode, node, body, pid);
  return unique;
}

void FakeKernel::SendAs(uint64_t unique, uint32_t opcode, uint64_t node, absl::string_view body,
                        uint32_t pid) {
  fuse_in_header header{};
  header.len = static_cast<uint32_t>(sizeof(header) + body.size());
  header.opcode = opcode;
  header.unique = unique;
  header.nodeid = node;
  header.pid = pid;
  const std::string message = absl::StrCat(BytesOf(header), body);
  const bool wants_answer = opcode != FUSE_INTERRUPT && opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET;
  {
    absl::MutexLock lock(&mutex_);
    answers_.erase(unique);
    if (wants_answer) unanswered_[unique] = message;
  }
  if (send(kernel_end_.get(), message.data(), message.size(), MSG_NOSIGNAL) < 0) std::abort();
}

FakeKernel::Answer FakeKernel::Await(uint64_t unique) {
  absl::MutexLock lock(&mutex_);
  auto there = [this, unique]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return answers_.count(unique) > 0; };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience)) return {-1, "no answer"};
  return answers_[unique];
}

bool FakeKernel::Answered(uint64_t unique) {
  absl::MutexLock lock(&mutex_);
  return answers_.count(unique) > 0;
}

size_t FakeKernel::messages() {
  absl::MutexLock lock(&mutex_);
  return messages_;
}

size_t FakeKernel::notifications(int32_t code) {
  absl::MutexLock lock(&mutex_);
  auto it = notifications_.find(code);
  return it == notifications_.end() ? 0 : it->second;
}

bool FakeKernel::AwaitNotification(int32_t code) {
  absl::MutexLock lock(&mutex_);
  auto there = [this, code]()
                   ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return notifications_.count(code) > 0; };
  return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
}

std::map<uint64_t, uint64_t> FakeKernel::ResendUnanswered() {
  std::map<uint64_t, uint64_t> renamed;
  std::map<uint64_t, std::string> again;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [unique, message] : unanswered_) {
      auto header = As<fuse_in_header>(message);
      header.unique |= kResendBit;
      message.replace(0, sizeof(header), BytesOf(header));
      renamed[unique] = header.unique;
      again[header.unique] = message;
    }
    unanswered_ = again;
  }
  for (const auto& [unique, message] : again) {
    if (send(kernel_end_.get(), message.data(), message.size(), MSG_NOSIGNAL) < 0) std::abort();
  }
  return renamed;
}

std::string FakeKernel::InitBody() {
  // What Linux 6.18 sends: 7.44, its read-ahead, every flag of the lower word that matters here,
  // FUSE_INIT_EXT.
  fuse_init_in init{};
  init.major = FUSE_KERNEL_VERSION;
  init.minor = 44;
  init.max_readahead = 128 << 10;
  init.flags = 0x73fffffb;
  init.flags2 = 0x2f8;
  return BytesOf(init);
}

FakeKernel::Answer FakeKernel::Init() { return Call(FUSE_INIT, 0, InitBody()); }

FakeKernel::Answer FakeKernel::Lookup(uint64_t parent, absl::string_view name) {
  return Call(FUSE_LOOKUP, parent, absl::StrCat(name, absl::string_view("\0", 1)));
}

uint64_t FakeKernel::LookupNode(uint64_t parent, absl::string_view name) {
  const Answer answer = Lookup(parent, name);
  return answer.error == 0 ? As<fuse_entry_out>(answer.body).nodeid : 0;
}

FakeKernel::Answer FakeKernel::GetAttr(uint64_t node) {
  return Call(FUSE_GETATTR, node, BytesOf(fuse_getattr_in{}));
}

FakeKernel::Answer FakeKernel::Open(uint64_t node, uint32_t flags, bool directory) {
  fuse_open_in open{};
  open.flags = flags;
  return Call(directory ? FUSE_OPENDIR : FUSE_OPEN, node, BytesOf(open));
}

uint64_t FakeKernel::OpenHandle(uint64_t node) {
  const Answer answer = Open(node);
  return answer.error == 0 ? As<fuse_open_out>(answer.body).fh : ~uint64_t{0};
}

std::string FakeKernel::ReadBody(uint64_t handle, uint64_t offset, uint32_t size) {
  fuse_read_in read{};
  read.fh = handle;
  read.offset = offset;
  read.size = size;
  return BytesOf(read);
}

uint64_t FakeKernel::SendRead(uint64_t node, uint64_t handle, uint64_t offset, uint32_t size, uint32_t pid) {
  return Send(FUSE_READ, node, ReadBody(handle, offset, size), pid);
}

void FakeKernel::Interrupt(uint64_t unique) {
  fuse_interrupt_in interrupt{};
  interrupt.unique = unique;
  SendAs(unique | 1, FUSE_INTERRUPT, 0, BytesOf(interrupt), 0);
}

FakeKernel::Answer FakeKernel::Release(uint64_t node, uint64_t handle) {
  fuse_release_in release{};
  release.fh = handle;
  return Call(FUSE_RELEASE, node, BytesOf(release));
}

std::vector<FakeKernel::Entry> FakeKernel::ReadDir(uint64_t node, uint64_t cookie, uint32_t size, bool plus) {
  const Answer answer = Call(plus ? FUSE_READDIRPLUS : FUSE_READDIR, node, ReadBody(0, cookie, size));
  std::vector<Entry> entries;
  if (answer.error != 0) return entries;
  const absl::string_view body = answer.body;
  const size_t before = plus ? sizeof(fuse_entry_out) : 0;
  for (size_t at = 0; at + before + FUSE_NAME_OFFSET <= body.size();) {
    Entry entry;
    if (plus) entry.plus = As<fuse_entry_out>(body, at);
    const auto dirent = As<fuse_dirent>(body, at + before);
    entry.node = dirent.ino;
    entry.cookie = dirent.off;
    entry.type = dirent.type;
    entry.name = std::string(body.substr(at + before + FUSE_NAME_OFFSET, dirent.namelen));
    at += FUSE_DIRENT_ALIGN(before + FUSE_NAME_OFFSET + dirent.namelen);
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace lazyblob::support

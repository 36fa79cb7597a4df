// Stands for lazyblobd in the tests of the keeper: takes the connection, answers FUSE with a few fixed nodes,
// and does what the test tells it over a socket of its own, one packet per command ("<number> <verb>
// [words]"), each command on a thread of its own, one packet per answer ("<number> <text>").

#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "fuse/internal/keeper_protocol.h"
#include "fuse/keeper_client.h"

namespace {

using lazyblob::base::Digest;
using lazyblob::base::UniqueFd;
using lazyblob::fuse::KeeperClient;
using lazyblob::fuse::LayerMountRequest;
using lazyblob::fuse::Mode;

constexpr int kNotifyResend = 7;  // FUSE_NOTIFY_RESEND, Linux 6.9
constexpr uint64_t kRootNode = FUSE_ROOT_ID, kBlobs = 2, kTrees = 3, kBlob = 4, kTree = 5, kHello = 6;
constexpr char kHelloText[] = "hello from the tree\n";

class Responder {
 public:
  Responder(KeeperClient* keeper, std::string data_path)
      : keeper_(keeper), data_path_(std::move(data_path)) {}

  absl::Status Serve(bool resend) {
    auto connection = keeper_->TakeConnection();
    if (!connection.ok()) return connection.status();
    device_ = std::move(connection->device);
    auto data = lazyblob::base::OpenFile(data_path_, O_RDONLY);
    if (!data.ok()) return data.status();
    data_ = *std::move(data);
    struct stat st;
    fstat(data_.get(), &st);
    data_size_ = static_cast<uint64_t>(st.st_size);
    for (int i = 0; i < 2; ++i) threads_.emplace_back([this] { Loop(); });
    if (resend) Resend();
    return absl::OkStatus();
  }

  void Resend() {
    fuse_out_header header{sizeof header, kNotifyResend, 0};
    if (write(device_.get(), &header, sizeof header) < 0) perror("resend");
  }

  // Requests of this kind are read and not answered until Release.
  void Hold(uint32_t opcode) {
    absl::MutexLock lock(&mutex_);
    held_opcode_ = opcode;
  }
  void AwaitHeld() {
    absl::MutexLock lock(&mutex_);
    auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !held_.empty(); };
    mutex_.Await(absl::Condition(&some));
  }
  void Release() {
    std::vector<std::string> requests;
    {
      absl::MutexLock lock(&mutex_);
      held_opcode_ = 0;
      requests.swap(held_);
    }
    for (const std::string& request : requests) Handle(request);
  }

 private:
  void Loop() {
    std::string buffer(1100 * 1024, '\0');
    for (;;) {
      ssize_t n = read(device_.get(), buffer.data(), buffer.size());
      if (n < 0 && errno == EAGAIN) {  // a keeper that answered errors has made it so
        pollfd readable{device_.get(), POLLIN, 0};
        poll(&readable, 1, -1);
        continue;
      }
      if (n < 0 && (errno == EINTR || errno == ENOENT)) continue;
      if (n < static_cast<ssize_t>(sizeof(fuse_in_header))) return;
      std::string request(buffer.data(), static_cast<size_t>(n));
      {
        absl::MutexLock lock(&mutex_);
        if (held_opcode_ != 0 && HeaderOf(request).opcode == held_opcode_) {
          held_.push_back(std::move(request));
          continue;
        }
      }
      Handle(request);
    }
  }

  static fuse_in_header HeaderOf(const std::string& request) {
    fuse_in_header header;
    std::memcpy(&header, request.data(), sizeof header);
    return header;
  }
  template <typename T>
  static T BodyOf(const std::string& request) {
    T body{};
    std::memcpy(&body, request.data() + sizeof(fuse_in_header),
                std::min(sizeof body, request.size() - sizeof(fuse_in_header)));
    return body;
  }

  void Reply(uint64_t unique, int error, const void* data, size_t size) {
    fuse_out_header header{static_cast<uint32_t>(sizeof header + size), -error, unique};
    std::string out(reinterpret_cast<const char*>(&header), sizeof header);
    out.append(static_cast<const char*>(data), size);
    if (write(device_.get(), out.data(), out.size()) < 0 && errno != ENOENT) perror("answer");
  }
  template <typename T>
  void Reply(uint64_t unique, const T& body) {
    Reply(unique, 0, &body, sizeof body);
  }

  fuse_attr Attributes(uint64_t node) const {
    fuse_attr attr{};
    attr.ino = node;
    attr.nlink = 1;
    attr.blksize = 4096;
    bool file = node == kBlob || node == kHello;
    attr.mode = file ? S_IFREG | 0444 : S_IFDIR | 0555;
    attr.size = node == kBlob ? data_size_ : node == kHello ? sizeof kHelloText - 1 : 0;
    return attr;
  }

  static uint64_t Child(uint64_t parent, absl::string_view name) {
    if (parent == kRootNode && name == "blobs") return kBlobs;
    if (parent == kRootNode && name == "trees") return kTrees;
    if (parent == kBlobs) return kBlob;
    if (parent == kTrees) return kTree;
    if (parent == kTree && name == "hello") return kHello;
    return 0;
  }

  void Init(const std::string& request, uint64_t unique) {
    auto in = BodyOf<fuse_init_in>(request);
    fuse_init_out out{};
    out.major = FUSE_KERNEL_VERSION;
    out.minor = FUSE_KERNEL_MINOR_VERSION;
    out.max_readahead = in.max_readahead;
    out.flags = in.flags & (FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS);
    out.max_background = 65535;
    out.congestion_threshold = 65535;
    out.max_write = 1024 * 1024;
    out.max_pages = 256;
    std::string answer(reinterpret_cast<const char*>(&out), sizeof out);
    absl::Status saved = keeper_->SaveInit({request, answer});
    if (!saved.ok()) fprintf(stderr, "fake daemon: %s\n", saved.ToString().c_str());
    Reply(unique, out);
  }

  void Read(const std::string& request, const fuse_in_header& header) {
    auto in = BodyOf<fuse_read_in>(request);
    std::string out(in.size, '\0');
    if (header.nodeid == kHello) {
      std::string text = kHelloText;
      out = in.offset < text.size() ? text.substr(in.offset, in.size) : "";
    } else {
      ssize_t n = pread(data_.get(), out.data(), out.size(), static_cast<off_t>(in.offset));
      if (n < 0) return Reply(header.unique, EIO, nullptr, 0);
      out.resize(static_cast<size_t>(n));
    }
    Reply(header.unique, 0, out.data(), out.size());
  }

  void Handle(const std::string& request) {
    fuse_in_header header = HeaderOf(request);
    switch (header.opcode) {
      case FUSE_INIT:
        return Init(request, header.unique);
      case FUSE_FORGET:
      case FUSE_BATCH_FORGET:
      case FUSE_INTERRUPT:
        return;
      case FUSE_LOOKUP: {
        absl::string_view name(request.data() + sizeof header, request.size() - sizeof header);
        fuse_entry_out out{};
        out.nodeid = Child(header.nodeid, name.substr(0, name.find('\0')));
        if (out.nodeid == 0) return Reply(header.unique, ENOENT, nullptr, 0);
        out.entry_valid = out.attr_valid = 1u << 30;
        out.attr = Attributes(out.nodeid);
        return Reply(header.unique, out);
      }
      case FUSE_GETATTR: {
        fuse_attr_out out{};
        out.attr_valid = 1u << 30;
        out.attr = Attributes(header.nodeid);
        return Reply(header.unique, out);
      }
      case FUSE_OPEN:
      case FUSE_OPENDIR: {
        fuse_open_out out{};
        out.open_flags = header.nodeid == kBlob ? FOPEN_DIRECT_IO : 0;
        return Reply(header.unique, out);
      }
      case FUSE_READ:
        return Read(request, header);
      case FUSE_READDIR:
      case FUSE_RELEASE:
      case FUSE_RELEASEDIR:
      case FUSE_FLUSH:
        return Reply(header.unique, 0, nullptr, 0);
      case FUSE_STATFS:
        return Reply(header.unique, fuse_statfs_out{});
      default:
        return Reply(header.unique, ENOSYS, nullptr, 0);
    }
  }

  KeeperClient* const keeper_;
  const std::string data_path_;
  UniqueFd device_;
  UniqueFd data_;
  uint64_t data_size_ = 0;
  std::vector<std::thread> threads_;
  absl::Mutex mutex_;
  uint32_t held_opcode_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> held_ ABSL_GUARDED_BY(mutex_);
};

class Puppet {
 public:
  Puppet(int keeper_fd, UniqueFd control) : keeper_fd_(keeper_fd), control_(std::move(control)) {}

  int Run() {
    auto keeper = KeeperClient::Connect(UniqueFd(keeper_fd_));
    if (!keeper.ok()) return 3;
    keeper_ = *std::move(keeper);
    keeper_->OnPredecessorReaped([this] {
      absl::MutexLock lock(&mutex_);
      reaped_ = true;
    });
    keeper_->OnKeeperGone([] { _exit(9); });
    std::thread([this] {
      sigset_t term;
      sigemptyset(&term);
      sigaddset(&term, SIGTERM);
      int signal;
      sigwait(&term, &signal);
      keeper_->Shutdown().IgnoreError();
      _exit(0);
    }).detach();
    for (;;) {
      char buffer[65536];
      ssize_t n = recv(control_.get(), buffer, sizeof buffer, 0);
      if (n <= 0) {
        // The test is over.
        _exit(0);
      }
      std::string command(buffer, static_cast<size_t>(n));
      std::thread([this, command] { Obey(command); }).detach();
    }
  }

 private:
  void Obey(const std::string& command) {
    std::vector<std::string> words = absl::StrSplit(command, ' ');
    std::string number = words[0];
    words.erase(words.begin());
    std::string answer = absl::StrCat(number, " ", Do(words));
    send(control_.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
  }

  static std::string Text(const absl::Status& status) {
    return status.ok() ? "OK" : absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message());
  }

  // map SOURCE TARGET CONTAINER:HOST:LENGTH...
  std::string MapIds(const std::vector<std::string>& words) {
    lazyblob::fuse::IdMapping mapping;
    for (size_t i = 3; i < words.size(); ++i) {
      std::vector<std::string> numbers = absl::StrSplit(words[i], ':');
      lazyblob::fuse::IdRange range;
      if (numbers.size() != 3 || !absl::SimpleAtoi(numbers[0], &range.container) ||
          !absl::SimpleAtoi(numbers[1], &range.host) || !absl::SimpleAtoi(numbers[2], &range.length)) {
        return "not a range: " + words[i];
      }
      mapping.uids.push_back(range);
    }
    mapping.gids = mapping.uids;
    return Text(keeper_->MountIdMapped({words[1], words[2], mapping}));
  }

  // keep NAME PLACE PATH: listens at PATH and leaves it to the keeper; accept NAME PLACE: how many waited
  // there
  std::string Socket(const std::vector<std::string>& words) {
    if (words[0] == "keep") {
      UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      words[3].copy(address.sun_path, sizeof address.sun_path - 1);
      if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return "no bind";
      if (words.size() == 4 && listen(listener.get(), 8) != 0) return "no listen";
      return Text(keeper_->KeepSocket(words[1], words[2], listener.get()));
    }
    auto listener = keeper_->TakeSocket(words[1], words[2]);
    if (!listener.ok()) return Text(listener.status());
    int waiting = 0;
    while (UniqueFd(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC)).valid()) ++waiting;
    return absl::StrCat(waiting);
  }

  std::string Do(const std::vector<std::string>& words) {
    const std::string& verb = words[0];
    if (verb == "take") {
      auto connection = keeper_->TakeConnection();
      if (!connection.ok()) return Text(connection.status());
      return absl::StrCat("generation=", connection->generation,
                          " taken_over=", connection->taken_over ? 1 : 0,
                          " init=", absl::BytesToHexString(connection->init.request), "/",
                          absl::BytesToHexString(connection->init.answer));
    }
    if (verb == "serve" || verb == "serve-resend" || verb == "serve-held") {
      responder_ = std::make_unique<Responder>(keeper_.get(), words[1]);
      if (verb == "serve-held") responder_->Hold(FUSE_READ);
      return Text(responder_->Serve(verb != "serve"));
    }
    if (responder_ == nullptr && (verb == "hold" || verb == "await-held" || verb == "release"))
      return "no server";
    if (verb == "resend") return responder_->Resend(), "OK";
    if (verb == "hold") return responder_->Hold(words[1] == "open" ? FUSE_OPEN : FUSE_READ), "OK";
    if (verb == "await-held") return responder_->AwaitHeld(), "OK";
    if (verb == "release") return responder_->Release(), "OK";
    if (verb == "await-reaped") {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&reaped_));
      return "OK";
    }
    if (verb == "mount") {  // mount MODE META DATA|- TARGET
      LayerMountRequest request;
      request.layer = Digest::Of(absl::string_view("a layer"));
      request.mode = **lazyblob::fuse::ParseMode(words[1]);
      request.meta_path = words[2];
      request.data_path = words[3] == "-" ? "" : words[3];
      request.target = words[4];
      return Text(keeper_->MountLayer(request));
    }
    if (verb == "overlay") {  // overlay TARGET LOWER...
      return Text(keeper_->MountOverlay({{words.begin() + 2, words.end()}, words[1]}));
    }
    if (verb == "map") return MapIds(words);
    if (verb == "umount") return Text(keeper_->Unmount(words[1], words.size() > 2 && words[2] == "lazy"));
    if (verb == "mounted-digest") {
      auto mounted = keeper_->Mounted();
      return mounted.ok() ? Digest::Of(absl::StrJoin(*mounted, " ")).hex() : Text(mounted.status());
    }
    if (verb == "mounted") {
      auto mounted = keeper_->Mounted();
      return mounted.ok() ? absl::StrCat("[", absl::StrJoin(*mounted, " "), "]") : Text(mounted.status());
    }
    if (verb == "probe") {
      auto probe = keeper_->Probe(words[1]);
      if (!probe.ok()) return Text(probe.status());
      return absl::StrCat(lazyblob::fuse::ModeName(probe->mode), " direct=", probe->direct ? 1 : 0, " ",
                          probe->why);
    }
    if (verb == "keep" || verb == "accept") return Socket(words);
    if (verb == "ready") return Text(keeper_->Ready());
    if (verb == "replace") return Text(keeper_->Replace(words[1]));
    if (verb == "shutdown") return Text(keeper_->Shutdown());
    if (verb == "raw") {  // straight onto the keeper's socket
      std::string bytes = absl::HexStringToBytes(words[1]);
      return send(keeper_fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0 ? strerror(errno) : "OK";
    }
    if (verb == "enter") {  // what lazyblobd must never do: read from a mount of its own
      auto bytes = lazyblob::base::ReadFile(words[1], 1 << 20);
      return bytes.ok() ? "OK" : Text(bytes.status());
    }
    if (verb == "descriptors") {
      std::vector<std::string> links;
      auto names = lazyblob::base::ListDirectory("/proc/self/fd");
      if (!names.ok()) return Text(names.status());
      for (const std::string& name : *names) {
        char link[256];
        ssize_t n = readlink(absl::StrCat("/proc/self/fd/", name).c_str(), link, sizeof link);
        if (n > 0) links.push_back(absl::StrCat(name, "=", absl::string_view(link, static_cast<size_t>(n))));
      }
      return absl::StrJoin(links, " ");
    }
    if (verb == "exit") _exit(atoi(words[1].c_str()));
    return verb == "pid" ? absl::StrCat(getpid()) : "unknown verb";
  }

  const int keeper_fd_;
  const UniqueFd control_;
  std::unique_ptr<KeeperClient> keeper_;
  std::unique_ptr<Responder> responder_;
  absl::Mutex mutex_;
  bool reaped_ ABSL_GUARDED_BY(mutex_) = false;
};

UniqueFd ConnectTo(const std::string& abstract_name) {
  UniqueFd control(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, abstract_name.data(), abstract_name.size());
  auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + abstract_name.size());
  if (connect(control.get(), reinterpret_cast<sockaddr*>(&address), size) != 0) _exit(4);
  return control;
}

}  // namespace

int main(int argc, char** argv) {
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  sigprocmask(SIG_BLOCK, &term, nullptr);
  int keeper_fd = -1;
  int ready_fd = -1;
  std::string control;
  for (int i = 1; i < argc; ++i) {
    absl::string_view word = argv[i];
    if (absl::ConsumePrefix(&word, "--keeper-fd=")) {
      if (!absl::SimpleAtoi(word, &keeper_fd)) return 2;
    } else if (absl::ConsumePrefix(&word, "--ready-fd=")) {
      if (!absl::SimpleAtoi(word, &ready_fd)) return 2;
    } else if (absl::ConsumePrefix(&word, "--control=")) {
      control = std::string(word);
    } else if (absl::ConsumePrefix(&word, "--exit=")) {
      return atoi(std::string(word).c_str());
    }
  }
  UniqueFd socket = ConnectTo(control);
  if (ready_fd >= 0 && (write(ready_fd, "ready\n", 6) != 6 || close(ready_fd) != 0)) return 5;
  return Puppet(keeper_fd, std::move(socket)).Run();
}

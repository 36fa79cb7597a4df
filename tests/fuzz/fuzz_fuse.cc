// Requests as a kernel sends them, to a server with one blob and one tree. Records: opcode, node (below 128
// one that is known, else 8 bytes of node id follow; 64 … 127 also make the request one that comes again),
// length, body. Each request that has an answer gets exactly one, before the next request's, in bounds;
// nothing can be changed.

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "fuse/internal/node_id.h"
#include "fuse/server.h"
#include "layer/erofs.h"
#include "layer/tree.h"
#include "tests/fuse/fake_store.h"
#include "tests/support/fake_kernel.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace lazyblob;  // NOLINT: the program is short
using support::As;
using support::BytesOf;

constexpr uint32_t kBlobLayer = 7;
constexpr uint32_t kTreeLayer = 42;
constexpr uint64_t kDataSize = 20'000;
constexpr size_t kMaxRecords = 64;
constexpr uint64_t kResendBit = uint64_t{1} << 63;
constexpr size_t kMinBody = 88;  // no request that the kernel sends has fewer bytes than its fixed part

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

layer::Entry Make(std::string path, layer::EntryType type) {
  layer::Entry entry;
  entry.path = std::move(path);
  entry.type = type;
  entry.mode = 0755;
  return entry;
}

// The store, and the nodes that requests know from the start.
class World {
 public:
  World() {
    layer::TreeBuilder builder;
    std::vector<layer::Entry> entries = {
        Make("dir", layer::EntryType::kDirectory), Make("dir/file", layer::EntryType::kRegular),
        Make("link", layer::EntryType::kSymlink), Make("null", layer::EntryType::kCharDevice)};
    entries[1].size = 9'000;
    entries[1].extents = {{4096, 8192, 4904}};
    entries[1].xattrs = {{"user.note", "hello"}, {"security.capability", std::string("\1\0\2", 3)}};
    entries[2].link_target = "../some/where";
    for (int i = 0; i < 300; ++i) {
      entries.push_back(Make(absl::StrCat("dir/name-", i), layer::EntryType::kRegular));
    }
    for (layer::Entry& entry : entries) Require(builder.Add(std::move(entry)).ok());
    auto tree = builder.Finish();
    layer::ErofsOptions options;
    options.data_size = 16'384;
    Require(tree.ok() && layer::WriteErofs(*tree, options, directory_.File("meta.erofs")).ok());
    const auto image = layer::ErofsImage::Open(directory_.File("meta.erofs"));
    auto blob = std::make_shared<fuse::FakeLayer>(kBlobLayer, "a", fuse::Pattern(kDataSize, 1));
    blob->MakePresent(0, kDataSize / 2);
    auto tree_layer =
        std::make_shared<fuse::FakeLayer>(kTreeLayer, "tree", fuse::Pattern(16'384, 2), directory_.path());
    nodes_ = {fuse::internal::kRootNode,
              fuse::internal::kBlobsNode,
              fuse::internal::kTreesNode,
              fuse::internal::BlobNode(kBlobLayer),
              fuse::internal::BlobNode(kTreeLayer),
              fuse::internal::TreeNode(kTreeLayer, 0, (*image)->root()),
              fuse::internal::TreeNode(kTreeLayer, 1, (*image)->root())};
    for (const auto& layer : {blob, tree_layer}) {
      layer->Release();  // what is not present comes at once
      store_.Add(layer);
    }
  }
  fuse::FakeStore& store() { return store_; }
  const std::vector<uint64_t>& nodes() const { return nodes_; }

 private:
  support::TempDir directory_;
  fuse::FakeStore store_;
  std::vector<uint64_t> nodes_;
};

World& TheWorld() {
  static World world;
  return world;
}

bool HasAnswer(uint32_t opcode) {
  return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT &&
         opcode != 41;  // the answer to a notification
}

bool Changes(uint32_t opcode) {
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

// One server on a connection of its own, and the kernel's end of it.
class Connection {
 public:
  Connection() : nodes_(TheWorld().nodes()) {
    int ends[2];
    Require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    kernel_ = base::UniqueFd(ends[0]);
    const int room = 4 << 20;  // for an answer of 1 MiB
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    fuse::ServerOptions options;
    options.device = base::UniqueFd(ends[1]);
    options.threads = 1;
    options.kill_pending = [](uint32_t) { return false; };
    options.log = [](absl::string_view) {};
    server_ = std::make_unique<fuse::FuseServer>(&TheWorld().store(), std::move(options));
    Require(server_->Start().ok());
    Send(FUSE_INIT, 0, 2, support::FakeKernel::InitBody());
    Require(AwaitAll());
  }
  ~Connection() { server_->Stop(); }

  uint64_t Known(uint8_t number) const { return nodes_[number % nodes_.size()]; }

  void Send(uint32_t opcode, uint64_t node, uint64_t unique, const std::string& body) {
    fuse_in_header header{};
    header.len = static_cast<uint32_t>(sizeof(header) + body.size());
    header.opcode = opcode;
    header.unique = unique;
    header.nodeid = node;
    header.pid = 1;
    const std::string message = BytesOf(header) + body;
    if (HasAnswer(opcode)) {
      Request& request = outstanding_[unique];
      request.opcode = opcode;
      request.size = As<fuse_read_in>(body).size;
    }
    ssize_t sent = -1;
    do {
      sent = send(kernel_.get(), message.data(), message.size(), MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    Require(sent >= 0);
  }

  // False when the answers are not those that must come.
  bool AwaitAll() {
    static auto* const buffer = new std::vector<char>(2 << 20);
    while (!outstanding_.empty()) {
      const ssize_t size = recv(kernel_.get(), buffer->data(), buffer->size(), 0);
      if (size < 0 && errno == EINTR) continue;  // libFuzzer's clock
      if (size < static_cast<ssize_t>(sizeof(fuse_out_header))) return false;
      const absl::string_view message(buffer->data(), static_cast<size_t>(size));
      const auto header = As<fuse_out_header>(message);
      const auto request = outstanding_.find(header.unique);
      if (header.len != message.size() || request == outstanding_.end()) return false;
      if (header.error > 0 || header.error <= -512) return false;
      const absl::string_view body = message.substr(sizeof(header));
      if (header.error != 0 && !body.empty()) return false;
      if (header.error == 0) Look(request->second, body);
      outstanding_.erase(request);
    }
    return true;
  }

 private:
  struct Request {
    uint32_t opcode = 0;
    uint32_t size = 0;  // of READ, READDIR and READDIRPLUS
  };

  void Look(const Request& request, absl::string_view body) {
    Require(!Changes(request.opcode));
    switch (request.opcode) {
      case FUSE_LOOKUP:
        Require(body.size() == sizeof(fuse_entry_out));
        Learn(As<fuse_entry_out>(body).nodeid);
        break;
      case FUSE_GETATTR:
        Require(body.size() == sizeof(fuse_attr_out));
        break;
      case FUSE_READ:
        Require(body.size() == request.size);
        break;
      case FUSE_READLINK:
        Require(!body.empty() && body.size() < 4096);
        break;
      case FUSE_READDIR:
      case FUSE_READDIRPLUS:
        Require(body.size() <= request.size);
        Entries(body, request.opcode == FUSE_READDIRPLUS ? sizeof(fuse_entry_out) : 0);
        break;
      default:
        break;
    }
  }

  void Entries(absl::string_view body, size_t before) {
    while (!body.empty()) {
      Require(body.size() >= before + FUSE_NAME_OFFSET);
      const auto entry = As<fuse_dirent>(body, before);
      Require(entry.namelen >= 1 && entry.namelen <= 255);
      const size_t length = FUSE_DIRENT_ALIGN(before + FUSE_NAME_OFFSET + entry.namelen);
      Require(length <= body.size());
      Require(body.substr(before + FUSE_NAME_OFFSET, entry.namelen).find('/') == absl::string_view::npos);
      Learn(entry.ino);
      body.remove_prefix(length);
    }
  }

  void Learn(uint64_t node) {
    Require(fuse::internal::ParseNode(node).has_value());
    if (nodes_.size() < 64) nodes_.push_back(node);
  }

  std::vector<uint64_t> nodes_;
  base::UniqueFd kernel_;
  std::unique_ptr<fuse::FuseServer> server_;
  std::map<uint64_t, Request> outstanding_;
};

}  // namespace

// libfuse keeps an interrupt whose request it does not know, and forgets the last ones when the session ends.
extern "C" const char* __lsan_default_suppressions() { return "leak:fuse_session_process_buf_int"; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  absl::string_view rest(reinterpret_cast<const char*>(data), size);
  if (rest.size() < 3) return 0;
  Connection connection;
  for (uint64_t i = 1; i <= kMaxRecords && rest.size() >= 3; ++i) {
    const uint32_t opcode = static_cast<uint8_t>(rest[0]);
    const auto selector = static_cast<uint8_t>(rest[1]);
    rest.remove_prefix(2);
    uint64_t node = connection.Known(selector % 64);
    if (selector >= 128) {
      node = As<uint64_t>(rest);
      rest.remove_prefix(std::min<size_t>(8, rest.size()));
    }
    if (rest.empty()) break;
    const size_t length = static_cast<uint8_t>(rest[0]);
    std::string body(rest.substr(1, length));
    rest.remove_prefix(std::min(1 + length, rest.size()));
    if (opcode == FUSE_DESTROY) continue;  // only file systems on block devices get it
    // Whole requests: the fixed part is there, and names have an end.
    body.resize(std::max(body.size() + 1, kMinBody));
    const bool again = selector >= 64 && selector < 128;
    connection.Send(opcode, node, (2 + 2 * i) | (again ? kResendBit : 0), body);
    Require(connection.AwaitAll());
  }
  return 0;
}

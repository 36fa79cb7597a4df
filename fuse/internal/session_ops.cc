#define FUSE_USE_VERSION 314

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/fault.h"
#include "base/status.h"
#include "fuse/internal/kernel_errno.h"
#include "fuse/internal/protocol.h"
#include "fuse/internal/session.h"

namespace lazyblob::fuse::internal {
namespace {

// Ten years: what a node is never changes.
constexpr double kForEver = 10 * 365 * 86400.0;

Session& SessionOf(fuse_req_t request) { return *static_cast<Session*>(fuse_req_userdata(request)); }

void ReplyStatus(fuse_req_t request, const absl::Status& status) {
  fuse_reply_err(request, KernelErrno(status));
}

fuse_entry_param EntryOf(const struct stat& attributes) {
  fuse_entry_param entry{};
  entry.ino = attributes.st_ino;
  entry.generation = kGeneration;
  entry.attr = attributes;
  entry.attr_timeout = entry.entry_timeout = kForEver;
  return entry;
}

// The number of a handle that the request being handled opens (handle_table.h).
uint64_t HandleOfRequest() { return FirstUnique(CurrentThreadState().request->unique); }

void Init(void*, fuse_conn_info* connection) noexcept {
  // Exactly these, whatever a libfuse has as its default: a takeover is refused when the answer differs.
  connection->want =
      connection->capable &
      (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS |
       FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_SPLICE_WRITE);
  if (!base::FaultPoint("fuse.init").ok())
    connection->want &= ~FUSE_CAP_ASYNC_DIO;  // as another version would
  connection->max_read = kMaxRead;
  connection->max_readahead = std::min(connection->max_readahead, kMaxReadAhead);
  connection->max_background = kMaxBackground;
  connection->congestion_threshold = kMaxBackground;
}

void Lookup(fuse_req_t request, fuse_ino_t parent, const char* name) noexcept {
  auto attributes = SessionOf(request).filesystem().Lookup(parent, name);
  if (!attributes.ok()) return ReplyStatus(request, attributes.status());
  const fuse_entry_param entry = EntryOf(*attributes);
  fuse_reply_entry(request, &entry);
}

void GetAttributes(fuse_req_t request, fuse_ino_t node, fuse_file_info*) noexcept {
  auto attributes = SessionOf(request).filesystem().Attributes(node);
  if (!attributes.ok()) return ReplyStatus(request, attributes.status());
  fuse_reply_attr(request, &*attributes, kForEver);
}

void ReadLink(fuse_req_t request, fuse_ino_t node) noexcept {
  auto target = SessionOf(request).filesystem().ReadLink(node);
  if (!target.ok()) return ReplyStatus(request, target.status());
  fuse_reply_readlink(request, target->c_str());
}

void OpenHandle(fuse_req_t request, fuse_ino_t node, fuse_file_info* info, bool directory) {
  Session& session = SessionOf(request);
  if ((info->flags & O_ACCMODE) != O_RDONLY) return ReplyStatus(request, base::ErrnoStatus(EROFS, "open"));
  auto layer = session.filesystem().LayerOf(node);
  if (!layer.ok()) return ReplyStatus(request, layer.status());
  const uint64_t handle = info->fh = HandleOfRequest();
  const auto parsed = ParseNode(node);
  info->direct_io = parsed && parsed->kind == NodeKind::kBlob;
  info->keep_cache = !info->direct_io;
  info->cache_readdir = directory && *layer != nullptr;
  if (*layer != nullptr) session.handles().Open(handle, *std::move(layer));
  // Not accepted: the open was given up, or is just being sent again; no RELEASE will come for this answer.
  if (fuse_reply_open(request, info) != 0) session.handles().Close(handle);
}

void Open(fuse_req_t request, fuse_ino_t node, fuse_file_info* info) noexcept {
  OpenHandle(request, node, info, false);
}

void OpenDirectory(fuse_req_t request, fuse_ino_t node, fuse_file_info* info) noexcept {
  OpenHandle(request, node, info, true);
}

void Release(fuse_req_t request, fuse_ino_t, fuse_file_info* info) noexcept {
  SessionOf(request).handles().Close(info->fh);
  fuse_reply_err(request, 0);
}

void Read(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* info) noexcept {
  Session& session = SessionOf(request);
  const ReadTicket ticket{request, CurrentThreadState().request->unique,
                          static_cast<uint32_t>(fuse_req_ctx(request)->pid)};
  auto layer = session.handles().Find(info->fh);
  const bool known = layer != nullptr;
  auto plan = session.filesystem().Plan(node, std::move(layer), static_cast<uint64_t>(offset), size);
  if (!plan.ok()) return session.reads().Refuse(ticket, plan.status());
  // Opened at a predecessor: it is open all the same.
  if (!known) session.handles().Open(info->fh, plan->layer);
  session.reads().Read(ticket, *std::move(plan));
}

// An answer to READDIR or READDIRPLUS.
void ListDirectory(fuse_req_t request, fuse_ino_t node, size_t size, off_t cookie, bool plus) {
  Filesystem& filesystem = SessionOf(request).filesystem();
  std::vector<char> buffer(std::min<size_t>(size, kMaxRead));
  size_t used = 0;
  absl::Status failed;
  std::string name;
  auto add = [&](const Filesystem::Entry& entry) {
    name.assign(entry.name.data(), entry.name.size());
    fuse_entry_param attributes{};
    attributes.attr.st_ino = entry.node;
    attributes.attr.st_mode = entry.type;
    if (plus && name != "." && name != "..") {
      auto stat = filesystem.Attributes(entry.node);
      if (!stat.ok()) {
        failed = stat.status();
        return false;
      }
      attributes = EntryOf(*stat);
    }
    char* out = buffer.data() + used;
    const size_t left = buffer.size() - used;
    const auto next = static_cast<off_t>(entry.next);
    const size_t needed = plus ? fuse_add_direntry_plus(request, out, left, name.c_str(), &attributes, next)
                               : fuse_add_direntry(request, out, left, name.c_str(), &attributes.attr, next);
    if (needed > left) return false;
    used += needed;
    return true;
  };
  absl::Status status = filesystem.ReadDirectory(node, static_cast<uint64_t>(cookie), add);
  if (status.ok()) status = failed;
  if (!status.ok() && used == 0) return ReplyStatus(request, status);
  fuse_reply_buf(request, buffer.data(), used);
}

void ReadDirectory(fuse_req_t request, fuse_ino_t node, size_t size, off_t cookie, fuse_file_info*) noexcept {
  ListDirectory(request, node, size, cookie, false);
}

void ReadDirectoryPlus(fuse_req_t request, fuse_ino_t node, size_t size, off_t cookie,
                       fuse_file_info*) noexcept {
  ListDirectory(request, node, size, cookie, true);
}

// Answers a caller that gave `size` bytes of room, or 0 to learn how many are needed.
void ReplySized(fuse_req_t request, const std::string& value, size_t size) {
  if (size == 0) {
    fuse_reply_xattr(request, value.size());
  } else if (value.size() > size) {
    ReplyStatus(request, base::ErrnoStatus(ERANGE, "xattr"));
  } else {
    fuse_reply_buf(request, value.data(), value.size());
  }
}

void GetXattr(fuse_req_t request, fuse_ino_t node, const char* name, size_t size) noexcept {
  auto xattrs = SessionOf(request).filesystem().Xattrs(node);
  if (!xattrs.ok()) return ReplyStatus(request, xattrs.status());
  for (const auto& [key, value] : *xattrs) {
    if (key == name) return ReplySized(request, value, size);
  }
  ReplyStatus(request, base::ErrnoStatus(ENODATA, "xattr"));
}

void ListXattrs(fuse_req_t request, fuse_ino_t node, size_t size) noexcept {
  auto xattrs = SessionOf(request).filesystem().Xattrs(node);
  if (!xattrs.ok()) return ReplyStatus(request, xattrs.status());
  std::string names;
  for (const auto& [key, value] : *xattrs) {
    if (key.empty() || key.size() > kMaxName || key.find('\0') != std::string::npos) continue;
    names.append(key).push_back('\0');
  }
  ReplySized(request, names, size);
}

void Statistics(fuse_req_t request, fuse_ino_t node) noexcept {
  auto statistics = SessionOf(request).filesystem().Statistics(node);
  if (!statistics.ok()) return ReplyStatus(request, statistics.status());
  fuse_reply_statfs(request, &*statistics);
}

fuse_lowlevel_ops MakeOps() {
  fuse_lowlevel_ops ops{};
  ops.init = Init;
  ops.lookup = Lookup;
  ops.getattr = GetAttributes;
  ops.readlink = ReadLink;
  ops.open = Open;
  ops.read = Read;
  ops.release = Release;
  ops.opendir = OpenDirectory;
  ops.readdir = ReadDirectory;
  ops.readdirplus = ReadDirectoryPlus;
  ops.releasedir = Release;
  ops.getxattr = GetXattr;
  ops.listxattr = ListXattrs;
  ops.statfs = Statistics;
  return ops;
}

}  // namespace

const fuse_lowlevel_ops& SessionOps() {
  static const fuse_lowlevel_ops ops = MakeOps();
  return ops;
}

}  // namespace lazyblob::fuse::internal

#include "exporter/tree.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "exporter/internal/inode.h"

namespace lazyblob::exporter {
namespace {

using internal::InodeReader;
using internal::Xattrs;

constexpr absl::string_view kWhiteoutPrefix = ".wh.";
constexpr absl::string_view kOpaqueMarker = ".wh..wh..opq";
constexpr char kPrefetchLandmark[] = ".prefetch.landmark";
constexpr char kNoPrefetchLandmark[] = ".no.prefetch.landmark";
constexpr size_t kMaxPath = 4095;  // what the kernel takes, and readers of layers

// "a//b/./c/" as "a/b/c"; InvalidArgument for "..", and for what no path holds.
absl::StatusOr<std::string> CleanPath(absl::string_view path) {
  std::vector<absl::string_view> parts;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == ".") continue;
    if (part == ".." || absl::StrContains(part, '\0') || part.size() > 255) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", base::Printable(path.substr(0, 512)), "\" is not a path in a layer"));
    }
    parts.push_back(part);
  }
  return absl::StrJoin(parts, "/");
}

bool IsWhiteout(const struct stat& st) { return S_ISCHR(st.st_mode) && st.st_rdev == 0; }

class Walker {
 public:
  Walker(const Source& source, const TreeOptions& options, TreeSink* sink)
      : source_(source), options_(options), sink_(sink) {}

  absl::StatusOr<TreeSummary> Run();

 private:
  // A directory whose entries are being visited.
  struct Level {
    std::string path;  // in the tree
    InodeReader inode;
    std::vector<std::string> names;
    size_t next = 0;
  };

  bool overlay() const { return source_.kind == SourceKind::kOverlayUpper; }
  std::string InLayer(const std::string& path) const;
  absl::Status Bad(const std::string& path, absl::string_view why) const;
  absl::Status VisitFirst(absl::string_view wanted);
  absl::Status VisitAll();
  // Emits the entry of `path`, unless it has been, and the data of a file.
  absl::Status Visit(const std::string& path, const InodeReader& inode);
  absl::Status VisitDirectory(const std::string& path, const InodeReader& inode);
  absl::Status EmitMarker(std::string name);
  absl::Status EmitLandmark(const char* name);
  absl::StatusOr<layer::Entry> Describe(const std::string& path, const InodeReader& inode,
                                        bool* opaque) const;
  absl::StatusOr<Xattrs> Keep(const std::string& path, Xattrs xattrs, bool* opaque) const;
  void SetTime(const struct stat& st, layer::Entry* entry) const;
  absl::Status Begin(const layer::Entry& entry) {
    ++summary_.entries;
    return sink_->Begin(entry);
  }

  const Source& source_;
  const TreeOptions& options_;
  TreeSink* const sink_;
  std::string target_;
  base::UniqueFd root_;
  absl::flat_hash_map<std::pair<dev_t, ino_t>, std::string> linked_;  // files with several names: the first
  absl::flat_hash_set<std::string> visited_;                          // only while options_.first is in use
  TreeSummary summary_;
};

std::string Walker::InLayer(const std::string& path) const {
  if (target_.empty()) return path;
  return path.empty() ? target_ : absl::StrCat(target_, "/", path);
}

absl::Status Walker::Bad(const std::string& path, absl::string_view why) const {
  return absl::InvalidArgumentError(
      absl::StrCat(base::Printable(absl::StrCat(source_.path, "/", path)), ": ", why));
}

absl::StatusOr<TreeSummary> Walker::Run() {
  ASSIGN_OR_RETURN(target_, CleanPath(source_.target));
  auto root = base::OpenFile(source_.path, O_PATH | O_DIRECTORY);
  if (!root.ok()) return base::Annotate(root.status(), "source of a layer");
  root_ = *std::move(root);
  if (options_.landmark == Landmark::kNoPrefetch) RETURN_IF_ERROR(EmitLandmark(kNoPrefetchLandmark));
  for (const std::string& path : options_.first) RETURN_IF_ERROR(VisitFirst(path));
  if (options_.landmark == Landmark::kPrefetch) RETURN_IF_ERROR(EmitLandmark(kPrefetchLandmark));
  RETURN_IF_ERROR(VisitAll());
  return summary_;
}

absl::Status Walker::VisitFirst(absl::string_view wanted) {
  ASSIGN_OR_RETURN(std::string path, CleanPath(wanted));
  const auto missing = [&] {
    return absl::NotFoundError(absl::StrCat("the layer has no \"", base::Printable(wanted),
                                            "\", which is among the files to come first"));
  };
  if (!target_.empty()) {
    if (path != target_ && !absl::StartsWith(path, target_ + "/")) return missing();
    path.erase(0, std::min(path.size(), target_.size() + 1));
  }
  for (size_t end = 0; end != std::string::npos;) {
    const std::string part = path.substr(0, end);
    auto inode = InodeReader::Open(root_.get(), part);
    if (!inode.ok()) return absl::IsAborted(inode.status()) ? missing() : inode.status();
    RETURN_IF_ERROR(Visit(part, *inode));
    if (part == path) break;
    end = path.find('/', end + 1);
    if (end == std::string::npos) end = path.size();
  }
  return absl::OkStatus();
}

absl::Status Walker::VisitAll() {
  std::vector<Level> levels;
  const auto enter = [&](const std::string& path, InodeReader inode) -> absl::Status {
    ASSIGN_OR_RETURN(std::vector<std::string> names, inode.ReadNames());
    levels.push_back({path, std::move(inode), std::move(names)});
    return absl::OkStatus();
  };
  ASSIGN_OR_RETURN(InodeReader top, InodeReader::Open(root_.get(), ""));
  RETURN_IF_ERROR(Visit("", top));
  RETURN_IF_ERROR(enter("", std::move(top)));
  while (!levels.empty()) {
    Level& level = levels.back();
    if (options_.cancel != nullptr && options_.cancel->cancelled()) {
      return absl::CancelledError("the export was cancelled");
    }
    if (level.next == level.names.size()) {
      // A name added, removed or renamed meanwhile shows here.
      RETURN_IF_ERROR(level.inode.CheckUnchanged());
      levels.pop_back();
      continue;
    }
    const std::string& name = level.names[level.next++];
    const std::string path = level.path.empty() ? name : absl::StrCat(level.path, "/", name);
    if (InLayer(path).size() > kMaxPath) return Bad(path, "its path in the layer is over 4095 bytes long");
    ASSIGN_OR_RETURN(InodeReader inode, InodeReader::Open(root_.get(), path));
    RETURN_IF_ERROR(Visit(path, inode));
    if (S_ISDIR(inode.stat().st_mode)) RETURN_IF_ERROR(enter(path, std::move(inode)));
  }
  return absl::OkStatus();
}

absl::Status Walker::Visit(const std::string& path, const InodeReader& inode) {
  const struct stat& st = inode.stat();
  if (!options_.first.empty() && !visited_.insert(path).second) return absl::OkStatus();
  const std::string name = path.substr(path.rfind('/') + 1);
  if (absl::StartsWith(name, kWhiteoutPrefix)) {
    return Bad(path, "a name that starts with \".wh.\" would delete what it names from the layers below");
  }
  if (IsWhiteout(st)) {
    if (!overlay()) {
      return Bad(path,
                 "a whiteout of overlayfs (character device 0:0) in a directory that is not given as one");
    }
    return EmitMarker(absl::StrCat(InLayer(path.substr(0, path.size() - name.size())),
                                   path.size() == name.size() && !target_.empty() ? "/" : "", kWhiteoutPrefix,
                                   name));
  }
  if (S_ISDIR(st.st_mode)) return VisitDirectory(path, inode);
  if (S_ISSOCK(st.st_mode)) {
    ++summary_.sockets_skipped;
    return absl::OkStatus();
  }
  bool opaque = false;
  ASSIGN_OR_RETURN(layer::Entry entry, Describe(path, inode, &opaque));
  if (options_.landmark != Landmark::kNone &&
      (entry.path == kPrefetchLandmark || entry.path == kNoPrefetchLandmark)) {
    return absl::OkStatus();
  }
  if (st.st_nlink > 1) {
    const auto [first, inserted] = linked_.try_emplace({st.st_dev, st.st_ino}, entry.path);
    if (!inserted) {
      entry.type = layer::EntryType::kHardLink;
      entry.link_target = first->second;
      entry.size = 0;
      entry.device_major = entry.device_minor = 0;
      entry.xattrs.clear();
      return Begin(entry);
    }
  }
  RETURN_IF_ERROR(Begin(entry));
  if (entry.type != layer::EntryType::kRegular) return inode.CheckUnchanged();
  summary_.data_bytes += entry.size;
  return inode.ReadData([this](absl::Span<const uint8_t> bytes) { return sink_->Data(bytes); },
                        options_.cancel);
}

absl::Status Walker::VisitDirectory(const std::string& path, const InodeReader& inode) {
  bool opaque = false;
  ASSIGN_OR_RETURN(layer::Entry entry, Describe(path, inode, &opaque));
  if (!path.empty() || options_.root_entry.value_or(!target_.empty())) RETURN_IF_ERROR(Begin(entry));
  if (!opaque) return absl::OkStatus();
  const std::string inside = InLayer(path);
  return EmitMarker(inside.empty() ? std::string(kOpaqueMarker) : absl::StrCat(inside, "/", kOpaqueMarker));
}

// A whiteout says nothing but its name: no time, no owner.
absl::Status Walker::EmitMarker(std::string name) {
  layer::Entry entry;
  entry.path = std::move(name);
  return Begin(entry);
}

absl::Status Walker::EmitLandmark(const char* name) {
  layer::Entry entry;
  entry.path = name;
  entry.mode = 0644;
  entry.size = 1;
  RETURN_IF_ERROR(Begin(entry));
  static constexpr uint8_t kContents[] = {0xf};
  return sink_->Data(kContents);
}

absl::StatusOr<layer::Entry> Walker::Describe(const std::string& path, const InodeReader& inode,
                                              bool* opaque) const {
  const struct stat& st = inode.stat();
  layer::Entry entry;
  entry.path = InLayer(path);
  entry.mode = st.st_mode & 07777;
  entry.uid = st.st_uid;
  entry.gid = st.st_gid;
  SetTime(st, &entry);
  if (S_ISREG(st.st_mode)) {
    entry.size = static_cast<uint64_t>(st.st_size);
  } else if (S_ISDIR(st.st_mode)) {
    entry.type = layer::EntryType::kDirectory;
    absl::StrAppend(&entry.path, entry.path.empty() ? "./" : "/");
  } else if (S_ISLNK(st.st_mode)) {
    entry.type = layer::EntryType::kSymlink;
    entry.mode = 0777;
    ASSIGN_OR_RETURN(entry.link_target, inode.ReadLink());
  } else if (S_ISFIFO(st.st_mode)) {
    entry.type = layer::EntryType::kFifo;
  } else if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) {
    entry.type = S_ISCHR(st.st_mode) ? layer::EntryType::kCharDevice : layer::EntryType::kBlockDevice;
    entry.device_major = major(st.st_rdev);
    entry.device_minor = minor(st.st_rdev);
  } else {
    return Bad(path, "it is of a type that no layer can hold");
  }
  ASSIGN_OR_RETURN(Xattrs xattrs, inode.ReadXattrs());
  ASSIGN_OR_RETURN(entry.xattrs, Keep(path, std::move(xattrs), opaque));
  return entry;
}

absl::StatusOr<Xattrs> Walker::Keep(const std::string& path, Xattrs xattrs, bool* opaque) const {
  Xattrs kept;
  for (auto& [key, value] : xattrs) {
    absl::string_view mark = key;
    if (overlay() &&
        (absl::ConsumePrefix(&mark, "trusted.overlay.") || absl::ConsumePrefix(&mark, "user.overlay."))) {
      if (mark == "opaque" && value == "y") {
        *opaque = true;
      } else if (mark == "redirect" || mark == "metacopy") {
        return Bad(path, absl::StrCat("it has the overlay mark ", key,
                                      ": its contents are in a lower layer; mount with redirect_dir=off and "
                                      "metacopy=off"));
      } else if (mark == "whiteout") {
        return Bad(path, absl::StrCat("it has the overlay mark ", key, ", which is not supported"));
      }
      continue;
    }
    // Of this host's kernel and policy, not of the tree.
    if (absl::StartsWith(key, "trusted.") || absl::StartsWith(key, "user.overlay.") ||
        key == "security.selinux" || key == "security.ima" || key == "security.evm" ||
        absl::StartsWith(key, "security.SMACK") || key == "security.apparmor") {
      continue;
    }
    kept.emplace_back(key, std::move(value));
  }
  return kept;
}

void Walker::SetTime(const struct stat& st, layer::Entry* entry) const {
  entry->mtime_seconds = st.st_mtim.tv_sec;
  entry->mtime_nanoseconds = static_cast<uint32_t>(st.st_mtim.tv_nsec);
  if (options_.latest_mtime.has_value() && entry->mtime_seconds >= *options_.latest_mtime) {
    entry->mtime_seconds = *options_.latest_mtime;
    entry->mtime_nanoseconds = 0;
  }
}

}  // namespace

absl::StatusOr<Source> ParseSource(absl::string_view text) {
  const auto bad = [text](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("layer source \"", base::Printable(text.substr(0, 512)),
                                                   "\": ", why, "; it is dir:PATH[:TARGET] or tar:PATH"));
  };
  if (absl::StrContains(text, '\0')) return bad("a NUL in it");
  Source source;
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "tar:")) {
    source.kind = SourceKind::kTar;
  } else if (!absl::ConsumePrefix(&rest, "dir:")) {
    return bad("its kind is unknown");
  } else if (const size_t colon = rest.rfind(':'); colon != absl::string_view::npos) {
    auto target = CleanPath(rest.substr(colon + 1));
    if (!target.ok()) return bad("its TARGET is not a path without \"..\"");
    source.target = *std::move(target);
    rest = rest.substr(0, colon);
  }
  if (rest.empty()) return bad("its PATH is empty");
  source.path = std::string(rest);
  return source;
}

absl::StatusOr<TreeSummary> WalkTree(const Source& source, const TreeOptions& options, TreeSink* sink) {
  if (source.kind == SourceKind::kTar) return absl::InvalidArgumentError("a tar file is not a tree");
  return Walker(source, options, sink).Run();
}

}  // namespace lazyblob::exporter

#include "layer/tree.h"

#include <sys/stat.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "layer/internal/tree_rules.h"

namespace lazyblob::layer {
namespace {

using internal::CleanPath;
using internal::InodeOf;
using internal::kMaxDepth;
using internal::kMaxNameBytes;

constexpr absl::string_view kWhiteoutPrefix = ".wh.";
constexpr absl::string_view kMetaPrefix = ".wh..wh.";
constexpr absl::string_view kOpaqueMarker = ".wh..wh..opq";
constexpr uint32_t kRoot = 0;
constexpr uint32_t kNone = 0xffffffff;
// How many symbolic links one path may lead through (as containerd's unpacking).
constexpr int kMaxLinksFollowed = 255;

absl::Status Bad(absl::string_view path, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("entry \"", base::Printable(path.substr(0, 512)), "\": ", why));
}

// Names live as long as the builder, in blocks: a million small strings would cost a heap block each.
class NameArena {
 public:
  absl::string_view Store(absl::string_view name) {
    if (blocks_.empty() || used_ + name.size() > kBlockBytes) {
      blocks_.push_back(std::make_unique<char[]>(kBlockBytes));
      used_ = 0;
    }
    char* place = blocks_.back().get() + used_;
    std::copy(name.begin(), name.end(), place);
    used_ += name.size();
    return {place, name.size()};
  }

 private:
  static constexpr size_t kBlockBytes = 64 << 10;
  std::vector<std::unique_ptr<char[]>> blocks_;
  size_t used_ = 0;
};

enum class State : uint8_t {
  kAbsent,   // no entry (yet, or any more): at most a whiteout
  kInode,    // `value` is an inode
  kPending,  // a hard link whose target has not come yet; `value` is a pending link
};

// A name in a directory. Node 0 is the root.
struct Node {
  absl::string_view name;
  uint32_t parent = kRoot;
  uint32_t value = kNone;
  uint32_t first_child = kNone;
  uint32_t next_sibling = kNone;
  uint16_t depth = 0;
  State state = State::kAbsent;
  bool whiteout = false;  // what lower layers have under this name is hidden
};

struct PendingLink {
  uint32_t node = kNone;
  std::string path;
  std::string target;
};

bool IsDirectory(const Inode& inode) { return S_ISDIR(inode.mode); }

}  // namespace

class TreeBuilder::Impl {
 public:
  Impl() {
    nodes_.emplace_back();
    MakeImplied(kRoot);
  }

  uint64_t max_entries = 10'000'000;

  absl::Status Add(Entry entry);
  absl::StatusOr<Tree> Finish();

 private:
  uint32_t FindChild(uint32_t parent, absl::string_view name) const {
    auto found = children_.find({parent, name});
    return found == children_.end() ? kNone : found->second;
  }
  absl::StatusOr<uint32_t> ChildOf(uint32_t parent, absl::string_view name, absl::string_view path);
  void MakeImplied(uint32_t node);
  void ForgetSubtree(uint32_t node);
  absl::StatusOr<uint32_t> Walk(std::vector<absl::string_view> components, bool create,
                                absl::string_view path);
  absl::Status AddHardLink(Entry entry, uint32_t node);
  absl::Status AddInode(Entry entry, uint32_t node);
  absl::StatusOr<uint32_t> FindTarget(absl::string_view target, absl::string_view path);
  absl::Status ResolvePending();
  uint32_t NumberOf(uint32_t node, Tree* tree, std::vector<uint32_t>* numbers);
  absl::StatusOr<Tree> Number();
  std::string PathOf(uint32_t node) const;
  Inode& InodeAt(const Node& node) { return inodes_[node.value]; }

  uint64_t entries_ = 0;
  bool has_whiteouts_ = false;
  NameArena names_;
  std::deque<Node> nodes_;
  std::deque<Inode> inodes_;
  absl::flat_hash_map<std::pair<uint32_t, absl::string_view>, uint32_t> children_;
  std::vector<PendingLink> pending_;
};

absl::StatusOr<uint32_t> TreeBuilder::Impl::ChildOf(uint32_t parent, absl::string_view name,
                                                    absl::string_view path) {
  if (uint32_t found = FindChild(parent, name); found != kNone) return found;
  if (name.size() > kMaxNameBytes) return Bad(path, "a name is longer than 255 bytes");
  if (nodes_[parent].depth >= kMaxDepth) return Bad(path, "the path is deeper than 1024 directories");
  if (nodes_.size() > 2 * max_entries + kMaxDepth) {
    return absl::ResourceExhaustedError("the layer implies too many directories");
  }
  Node node;
  node.name = names_.Store(name);
  node.parent = parent;
  node.depth = static_cast<uint16_t>(nodes_[parent].depth + 1);
  node.next_sibling = nodes_[parent].first_child;
  const auto id = static_cast<uint32_t>(nodes_.size());
  nodes_.push_back(node);
  nodes_[parent].first_child = id;
  children_.emplace(std::make_pair(parent, node.name), id);
  return id;
}

void TreeBuilder::Impl::MakeImplied(uint32_t node) {
  nodes_[node].state = State::kInode;
  nodes_[node].value = static_cast<uint32_t>(inodes_.size());
  Inode inode;
  inode.mode = S_IFDIR | 0755;
  inode.implied = true;
  inodes_.push_back(std::move(inode));
}

// What lay below `node` is gone, whiteouts included.
void TreeBuilder::Impl::ForgetSubtree(uint32_t node) {
  std::vector<uint32_t> stack = {node};
  while (!stack.empty()) {
    const uint32_t at = stack.back();
    stack.pop_back();
    uint32_t child = nodes_[at].first_child;
    nodes_[at].first_child = kNone;
    while (child != kNone) {
      stack.push_back(child);
      children_.erase({at, nodes_[child].name});
      nodes_[child].state = State::kAbsent;
      child = nodes_[child].next_sibling;
    }
  }
}

// The directory that `components` lead to, symbolic links of this layer followed inside the root as unpacking
// does. With `create`, missing directories are made (implied); without, NotFound. InvalidArgument: not a
// directory.
absl::StatusOr<uint32_t> TreeBuilder::Impl::Walk(std::vector<absl::string_view> components, bool create,
                                                 absl::string_view path) {
  std::reverse(components.begin(), components.end());
  uint32_t at = kRoot;
  int followed = 0;
  while (!components.empty()) {
    const absl::string_view name = components.back();
    components.pop_back();
    if (name.empty() || name == ".") continue;
    if (name == "..") {
      at = nodes_[at].parent;
      continue;
    }
    uint32_t child = FindChild(at, name);
    if (child == kNone || nodes_[child].state == State::kAbsent) {
      if (!create) return absl::NotFoundError("no such directory");
      ASSIGN_OR_RETURN(child, ChildOf(at, name, path));
      MakeImplied(child);
    }
    const Node& node = nodes_[child];
    if (node.state == State::kPending) return Bad(path, "a hard link stands where a directory is needed");
    const Inode& inode = inodes_[node.value];
    if (IsDirectory(inode)) {
      at = child;
    } else if (S_ISLNK(inode.mode)) {
      if (++followed > kMaxLinksFollowed) return Bad(path, "too many symbolic links on the way");
      if (inode.symlink[0] == '/') at = kRoot;
      std::vector<absl::string_view> more = absl::StrSplit(inode.symlink, '/');
      components.insert(components.end(), more.rbegin(), more.rend());
    } else {
      return Bad(path, "a parent is not a directory");
    }
  }
  return at;
}

absl::Status TreeBuilder::Impl::Add(Entry entry) {
  if (++entries_ > max_entries) {
    return absl::ResourceExhaustedError(absl::StrCat("the layer has more than ", max_entries, " entries"));
  }
  std::vector<absl::string_view> components;
  const std::string path = entry.path;
  ASSIGN_OR_RETURN(components, CleanPath(path));
  if (components.empty()) {
    if (entry.type != EntryType::kDirectory) return Bad(path, "the root is not a directory");
    return AddInode(std::move(entry), kRoot);
  }
  const absl::string_view name = components.back();
  const bool opaque = name == kOpaqueMarker;
  for (absl::string_view part : components) {
    // Bookkeeping of aufs, no part of the image.
    if (absl::StartsWith(part, kMetaPrefix) && !(opaque && part.data() == name.data()))
      return absl::OkStatus();
  }
  components.pop_back();
  ASSIGN_OR_RETURN(const uint32_t parent, Walk(components, true, path));
  if (opaque) {
    InodeAt(nodes_[parent]).opaque = true;
    has_whiteouts_ = true;
    return absl::OkStatus();
  }
  if (absl::StartsWith(name, kWhiteoutPrefix)) {
    const absl::string_view hidden = name.substr(kWhiteoutPrefix.size());
    if (hidden.empty() || hidden == "." || hidden == "..") return Bad(path, "a whiteout that names nothing");
    ASSIGN_OR_RETURN(const uint32_t node, ChildOf(parent, hidden, path));
    nodes_[node].whiteout = true;
    has_whiteouts_ = true;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const uint32_t node, ChildOf(parent, name, path));
  return entry.type == EntryType::kHardLink ? AddHardLink(std::move(entry), node)
                                            : AddInode(std::move(entry), node);
}

absl::Status TreeBuilder::Impl::AddInode(Entry entry, uint32_t id) {
  ASSIGN_OR_RETURN(Inode inode, InodeOf(std::move(entry)));
  if (S_ISCHR(inode.mode) && inode.device_major == 0 && inode.device_minor == 0) has_whiteouts_ = true;
  Node& node = nodes_[id];
  if (node.state == State::kInode && IsDirectory(InodeAt(node))) {
    if (IsDirectory(inode)) {
      inode.opaque = InodeAt(node).opaque;
      InodeAt(node) = std::move(inode);
      return absl::OkStatus();
    }
    ForgetSubtree(id);
  }
  node.state = State::kInode;
  node.value = static_cast<uint32_t>(inodes_.size());
  inodes_.push_back(std::move(inode));
  return absl::OkStatus();
}

// A link binds to what its target is now, as unpacking does, even if another entry takes that name later.
absl::Status TreeBuilder::Impl::AddHardLink(Entry entry, uint32_t id) {
  Node& node = nodes_[id];
  if (node.state == State::kInode && IsDirectory(InodeAt(node))) ForgetSubtree(id);
  node.state = State::kAbsent;
  absl::StatusOr<uint32_t> target = FindTarget(entry.link_target, entry.path);
  if (!target.ok() && !absl::IsNotFound(target.status())) return target.status();
  if (target.ok() && *target == id) return Bad(entry.path, "a hard link to itself");
  if (target.ok() && nodes_[*target].state == State::kInode) {
    if (IsDirectory(InodeAt(nodes_[*target]))) return Bad(entry.path, "a hard link to a directory");
    node.state = State::kInode;
    node.value = nodes_[*target].value;
    return absl::OkStatus();
  }
  node.state = State::kPending;
  node.value = static_cast<uint32_t>(pending_.size());
  pending_.push_back({id, std::move(entry.path), std::move(entry.link_target)});
  return absl::OkStatus();
}

// The node that a hard link's target names; NotFound when there is none (yet).
absl::StatusOr<uint32_t> TreeBuilder::Impl::FindTarget(absl::string_view target, absl::string_view path) {
  auto components = CleanPath(target);
  if (!components.ok()) return Bad(path, absl::StrCat("hard link target: ", components.status().message()));
  if (components->empty()) return Bad(path, "a hard link to a directory");
  const absl::string_view name = components->back();
  components->pop_back();
  ASSIGN_OR_RETURN(const uint32_t parent, Walk(*std::move(components), false, path));
  const uint32_t node = FindChild(parent, name);
  if (node == kNone) return absl::NotFoundError("no such entry");
  return node;
}

absl::Status TreeBuilder::Impl::ResolvePending() {
  std::vector<bool> on_way(pending_.size(), false);
  std::vector<uint32_t> way;
  for (const PendingLink& start : pending_) {
    uint32_t at = start.node;
    way.clear();
    while (nodes_[at].state == State::kPending) {
      const uint32_t link = nodes_[at].value;
      const PendingLink& pending = pending_[link];
      if (on_way[link]) return Bad(pending.path, "hard links form a cycle");
      on_way[link] = true;
      way.push_back(at);
      absl::StatusOr<uint32_t> next = FindTarget(pending.target, pending.path);
      if (absl::IsNotFound(next.status()) || (next.ok() && nodes_[*next].state == State::kAbsent)) {
        return Bad(pending.path,
                   absl::StrCat("hard link to \"", base::Printable(pending.target.substr(0, 512)),
                                "\", which the layer does not have"));
      }
      RETURN_IF_ERROR(next.status());
      at = *next;
    }
    if (way.empty()) continue;  // replaced by a later entry, or resolved on another's way
    if (IsDirectory(InodeAt(nodes_[at]))) return Bad(start.path, "a hard link to a directory");
    for (uint32_t node : way) {
      nodes_[node].value = nodes_[at].value;
      nodes_[node].state = State::kInode;
    }
  }
  return absl::OkStatus();
}

std::string TreeBuilder::Impl::PathOf(uint32_t node) const {
  std::vector<absl::string_view> parts;
  for (; node != kRoot; node = nodes_[node].parent) parts.push_back(nodes_[node].name);
  std::string path;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    absl::StrAppend(&path, path.empty() ? "" : "/", *part);
  }
  return path;
}

// The number in `tree` of the node's inode, which is moved there when it is new.
uint32_t TreeBuilder::Impl::NumberOf(uint32_t id, Tree* tree, std::vector<uint32_t>* numbers) {
  Node& node = nodes_[id];
  const auto next = static_cast<uint32_t>(tree->inodes.size());
  if (node.state == State::kAbsent) {  // a whiteout and nothing else
    Inode whiteout;
    whiteout.mode = S_IFCHR;
    tree->inodes.push_back(std::move(whiteout));
    return next;
  }
  if (uint32_t known = (*numbers)[node.value]; known != kNoInode) {
    ++tree->inodes[known].nlink;
    return known;
  }
  (*numbers)[node.value] = next;
  Inode& inode = InodeAt(node);
  inode.nlink = 1;
  if (IsDirectory(inode)) {
    inode.nlink = 2;
    inode.opaque = inode.opaque || node.whiteout;
    // Below a whiteout there is no lower directory to take after.
    if (inode.implied && !node.whiteout) tree->implied_directories.push_back(PathOf(id));
  }
  tree->inodes.push_back(std::move(inode));
  return next;
}

// Numbers inodes so that those of one directory follow each other, directories in depth-first order.
absl::StatusOr<Tree> TreeBuilder::Impl::Number() {
  Tree tree;
  tree.has_whiteouts = has_whiteouts_;
  std::vector<uint32_t> numbers(inodes_.size(), kNoInode);
  tree.inodes.reserve(inodes_.size());
  NumberOf(kRoot, &tree, &numbers);
  std::vector<std::pair<uint32_t, uint32_t>> stack = {{kRoot, 0}};  // node, its number
  std::vector<uint32_t> sorted;
  while (!stack.empty()) {
    const auto [at, number] = stack.back();
    stack.pop_back();
    sorted.clear();
    for (uint32_t child = nodes_[at].first_child; child != kNone; child = nodes_[child].next_sibling) {
      if (nodes_[child].state != State::kAbsent || nodes_[child].whiteout) sorted.push_back(child);
    }
    std::sort(sorted.begin(), sorted.end(),
              [this](uint32_t a, uint32_t b) { return nodes_[a].name < nodes_[b].name; });
    std::vector<std::pair<std::string, uint32_t>> children;
    children.reserve(sorted.size());
    const size_t first = stack.size();
    for (uint32_t child : sorted) {
      const uint32_t child_number = NumberOf(child, &tree, &numbers);
      children.emplace_back(std::string(nodes_[child].name), child_number);
      if (nodes_[child].state == State::kInode && IsDirectory(tree.inodes[child_number])) {
        ++tree.inodes[number].nlink;
        stack.emplace_back(child, child_number);
      }
    }
    std::reverse(stack.begin() + static_cast<ptrdiff_t>(first), stack.end());
    tree.inodes[number].children = std::move(children);
  }
  std::sort(tree.implied_directories.begin(), tree.implied_directories.end());
  return tree;
}

absl::StatusOr<Tree> TreeBuilder::Impl::Finish() {
  RETURN_IF_ERROR(ResolvePending());
  children_ = {};  // not needed any more, and large
  return Number();
}

TreeBuilder::TreeBuilder() : impl_(std::make_unique<Impl>()) {}
TreeBuilder::~TreeBuilder() = default;
void TreeBuilder::set_max_entries(uint64_t max_entries) {
  impl_->max_entries = std::min<uint64_t>(max_entries, 1'000'000'000);
}
absl::Status TreeBuilder::Add(Entry entry) { return impl_->Add(std::move(entry)); }
absl::StatusOr<Tree> TreeBuilder::Finish() { return impl_->Finish(); }

}  // namespace lazyblob::layer

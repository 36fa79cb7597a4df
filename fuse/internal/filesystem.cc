#include "fuse/internal/filesystem.h"

#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/status.h"
#include "fuse/internal/protocol.h"
#include "layer/chain_image_name.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr absl::string_view kBlobsName = "blobs";
constexpr absl::string_view kTreesName = "trees";
constexpr uint64_t kPage = layer::kDataAlignment;

absl::Status Stale(uint64_t node) {
  return base::ErrnoStatus(ESTALE, absl::StrCat("node ", node, " belongs to no layer known here"));
}

// The fixed directories: root's to look into and change into, never to write.
struct stat DirectoryStat(uint64_t node) {
  struct stat out{};
  out.st_ino = node;
  out.st_mode = S_IFDIR | 0555;
  out.st_nlink = 2;
  out.st_blksize = static_cast<blksize_t>(kPage);
  return out;
}

// A name that may go to the kernel (a longer one corrupts its memory).
bool ValidName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxName && name.find('/') == absl::string_view::npos &&
         name.find('\0') == absl::string_view::npos;
}

// The file of a layer's image: its own, or the chain image of that number.
absl::StatusOr<std::string> ImagePath(const std::string& directory, uint32_t number) {
  if (number == 0) return absl::StrCat(directory, "/meta.erofs");
  ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(directory));
  for (const std::string& name : names) {
    auto parsed = layer::ParseChainImageName(name);
    if (parsed.has_value() && parsed->number == static_cast<int>(number)) {
      return absl::StrCat(directory, "/", name);
    }
  }
  return absl::NotFoundError("no such chain image");
}

uint64_t PaddedSize(uint64_t data_size) {
  uint64_t padded = data_size;
  return base::CheckedAlignUp(data_size, kPage, &padded) ? padded : data_size / kPage * kPage;
}

}  // namespace

absl::StatusOr<base::Digest> ParseLayerName(absl::string_view name) {
  const size_t dash = name.find('-');
  if (dash == absl::string_view::npos || name.size() > kMaxName)
    return absl::NotFoundError("no layer's name");
  auto digest = base::Digest::Parse(absl::StrCat(name.substr(0, dash), ":", name.substr(dash + 1)));
  if (!digest.ok()) return absl::NotFoundError("no layer's name");
  return digest;
}

absl::StatusOr<TreeName> ParseTreeName(absl::string_view name) {
  TreeName out;
  const size_t dot = name.find('.');
  if (dot != absl::string_view::npos) {
    const absl::string_view number = name.substr(dot + 1);
    if (!absl::SimpleAtoi(number, &out.image) || out.image == 0 || out.image > kMaxImage ||
        absl::StrCat(out.image) != number) {
      return absl::NotFoundError("no tree's name");
    }
  }
  ASSIGN_OR_RETURN(out.layer, ParseLayerName(name.substr(0, dot)));
  return out;
}

absl::StatusOr<Node> Filesystem::Parse(uint64_t id) const {
  auto node = ParseNode(id);
  if (!node) return Stale(id);
  return *node;
}

absl::StatusOr<Filesystem::LayerPtr> Filesystem::FindLayer(uint32_t id) {
  LayerPtr layer = store_->FindById(id);
  if (layer != nullptr) return layer;
  absl::MutexLock lock(&mutex_);
  absl::erase_if(images_, [id](const auto& open) { return open.first.first == id; });
  said_unknown_.erase(id);
  return base::ErrnoStatus(ESTALE, absl::StrCat("layer number ", id, " is not known any more"));
}

absl::StatusOr<Filesystem::LayerPtr> Filesystem::LayerOf(uint64_t id) {
  ASSIGN_OR_RETURN(const Node node, Parse(id));
  if (node.layer == 0) return LayerPtr();
  return FindLayer(node.layer);
}

absl::StatusOr<Filesystem::ImagePtr> Filesystem::Image(const LayerPtr& layer, uint32_t number) {
  const std::pair<uint32_t, uint32_t> key(layer->id(), number);
  {
    absl::MutexLock lock(&mutex_);
    auto it = images_.find(key);
    if (it != images_.end() && it->second.layer.lock() == layer) return it->second.image;
  }
  if (layer->state() == contentstore::LayerState::kNeedsIndex) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer->descriptor().digest.ToString(), " has no index yet"));
  }
  ASSIGN_OR_RETURN(const std::string path, ImagePath(layer->directory(), number));
  ASSIGN_OR_RETURN(ImagePtr image, layer::ErofsImage::Open(path));
  absl::MutexLock lock(&mutex_);
  images_[key] = {layer, image};
  return image;
}

absl::StatusOr<Filesystem::ImagePtr> Filesystem::ImageOf(const Node& node) {
  ASSIGN_OR_RETURN(LayerPtr layer, FindLayer(node.layer));
  return Image(layer, node.image);
}

uint64_t Filesystem::BlobSize(contentstore::LazyLayer& layer) {
  const uint64_t known = PaddedSize(layer.data_size());
  absl::MutexLock lock(&mutex_);
  if (layer.state() == contentstore::LayerState::kNeedsIndex) said_unknown_.insert(layer.id());
  return said_unknown_.contains(layer.id()) ? std::max(known, kUnknownSize) : known;
}

struct stat Filesystem::BlobStat(contentstore::LazyLayer& layer) {
  struct stat out{};
  out.st_ino = BlobNode(layer.id());
  out.st_mode = S_IFREG | 0444;
  out.st_nlink = 1;
  out.st_size = static_cast<off_t>(BlobSize(layer));
  out.st_blksize = static_cast<blksize_t>(kPage);
  out.st_blocks = out.st_size / 512;
  return out;
}

absl::StatusOr<struct stat> Filesystem::TreeStat(const Node& tree, const layer::ErofsImage& image,
                                                 uint64_t nid) const {
  const uint64_t node = TreeNode(tree.layer, tree.image, nid);
  if (node == 0) return absl::DataLossError("an inode number of the layer's image does not fit a node id");
  ASSIGN_OR_RETURN(const layer::ErofsImage::Stat inode, image.GetInode(nid));
  struct stat out{};
  out.st_ino = node;
  out.st_mode = inode.mode;
  out.st_nlink = inode.nlink;
  out.st_uid = inode.uid;
  out.st_gid = inode.gid;
  out.st_rdev = makedev(inode.device_major, inode.device_minor);
  out.st_size = static_cast<off_t>(inode.size);
  out.st_blksize = static_cast<blksize_t>(kPage);
  out.st_blocks = static_cast<blkcnt_t>(inode.size / 512 + (inode.size % 512 != 0));
  out.st_mtim = {inode.mtime_seconds, static_cast<long>(inode.mtime_nanoseconds)};
  out.st_atim = out.st_ctim = out.st_mtim;
  return out;
}

absl::StatusOr<struct stat> Filesystem::Lookup(uint64_t parent, absl::string_view name) {
  if (name.size() > kMaxName) return base::ErrnoStatus(ENAMETOOLONG, "name");
  ASSIGN_OR_RETURN(const Node node, Parse(parent));
  switch (node.kind) {
    case NodeKind::kRoot:
      if (name == kBlobsName) return DirectoryStat(kBlobsNode);
      if (name == kTreesName) return DirectoryStat(kTreesNode);
      return absl::NotFoundError("no such name");
    case NodeKind::kBlobs:
    case NodeKind::kTrees: {
      ASSIGN_OR_RETURN(const TreeName wanted, ParseTreeName(name));
      const LayerPtr layer = store_->Find(wanted.layer);
      if (layer == nullptr) return absl::NotFoundError("no such layer");
      if (layer->id() == 0 || layer->id() > kMaxLayer) {
        return absl::InternalError(absl::StrCat("layer number ", layer->id(), " does not fit a node id"));
      }
      if (node.kind == NodeKind::kBlobs) {
        if (wanted.image != 0) return absl::NotFoundError("a data area has no images");
        return BlobStat(*layer);
      }
      ASSIGN_OR_RETURN(ImagePtr image, Image(layer, wanted.image));
      return TreeStat({NodeKind::kTree, layer->id(), wanted.image, 0}, *image, image->root());
    }
    case NodeKind::kBlob:
      return base::ErrnoStatus(ENOTDIR, "a data area");
    case NodeKind::kTree:
      break;
  }
  ASSIGN_OR_RETURN(ImagePtr image, ImageOf(node));
  ASSIGN_OR_RETURN(const uint64_t nid, image->Lookup(node.nid, name));
  return TreeStat(node, *image, nid);
}

absl::StatusOr<struct stat> Filesystem::Attributes(uint64_t id) {
  ASSIGN_OR_RETURN(const Node node, Parse(id));
  if (node.layer == 0) return DirectoryStat(id);
  ASSIGN_OR_RETURN(LayerPtr layer, FindLayer(node.layer));
  if (node.kind == NodeKind::kBlob) return BlobStat(*layer);
  ASSIGN_OR_RETURN(ImagePtr image, Image(layer, node.image));
  return TreeStat(node, *image, node.nid);
}

absl::StatusOr<std::string> Filesystem::ReadLink(uint64_t id) {
  ASSIGN_OR_RETURN(const Node node, Parse(id));
  if (node.kind != NodeKind::kTree) return absl::InvalidArgumentError("no symbolic link");
  ASSIGN_OR_RETURN(ImagePtr image, ImageOf(node));
  return image->ReadLink(node.nid);
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> Filesystem::Xattrs(uint64_t id) {
  ASSIGN_OR_RETURN(const Node node, Parse(id));
  if (node.kind != NodeKind::kTree) return std::vector<std::pair<std::string, std::string>>();
  ASSIGN_OR_RETURN(ImagePtr image, ImageOf(node));
  return image->Xattrs(node.nid);
}

absl::StatusOr<struct statvfs> Filesystem::Statistics(uint64_t id) {
  ASSIGN_OR_RETURN(const Node node, Parse(id));
  struct statvfs out{};
  out.f_bsize = out.f_frsize = kPage;
  out.f_namemax = kMaxName;
  if (node.layer == 0) return out;
  ASSIGN_OR_RETURN(LayerPtr layer, FindLayer(node.layer));
  out.f_blocks = PaddedSize(layer->data_size()) / kPage;
  if (node.kind == NodeKind::kTree) {
    ASSIGN_OR_RETURN(ImagePtr image, Image(layer, node.image));
    out.f_files = image->inode_count();
  }
  return out;
}

absl::Status Filesystem::ReadDirectory(uint64_t id, uint64_t cookie,
                                       absl::FunctionRef<bool(const Entry&)> visit) {
  ASSIGN_OR_RETURN(const Node node, Parse(id));
  if (node.kind == NodeKind::kBlob) return base::ErrnoStatus(ENOTDIR, "a data area");
  if (node.kind != NodeKind::kTree) {
    const Entry entries[] = {{".", id, S_IFDIR, 1},
                             {"..", kRootNode, S_IFDIR, 2},
                             {kBlobsName, kBlobsNode, S_IFDIR, 3},
                             {kTreesName, kTreesNode, S_IFDIR, 4}};
    const uint64_t count = node.kind == NodeKind::kRoot ? 4 : 2;
    while (cookie < count && visit(entries[cookie])) ++cookie;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(ImagePtr image, ImageOf(node));
  absl::Status status;
  RETURN_IF_ERROR(image->ReadDirectory(
      node.nid, cookie, [&](absl::string_view name, uint64_t nid, uint8_t, uint64_t next) {
        const uint64_t child = TreeNode(node.layer, node.image, nid);
        if (!ValidName(name) || child == 0) {
          status =
              absl::DataLossError("a directory of the layer's image has an entry that must not be shown");
          return false;
        }
        auto inode = image->GetInode(nid);
        status = inode.status();
        return status.ok() && visit({name, child, inode->mode & S_IFMT, next});
      }));
  return status;
}

absl::StatusOr<ReadPlan> Filesystem::Plan(uint64_t id, LayerPtr layer, uint64_t offset, uint64_t size) {
  ASSIGN_OR_RETURN(const Node node, Parse(id));
  if (node.layer == 0) return base::ErrnoStatus(EISDIR, "read of a directory");
  if (size > kMaxRead) return absl::InvalidArgumentError(absl::StrCat("a read of ", size, " bytes"));
  if (layer == nullptr || layer->id() != node.layer) {
    ASSIGN_OR_RETURN(layer, FindLayer(node.layer));
  }
  if (node.kind == NodeKind::kTree) return PlanTree(node, std::move(layer), offset, size);
  const uint64_t data_size = layer->data_size();
  if (!base::RangeWithin(offset, size, PaddedSize(data_size))) {
    return absl::OutOfRangeError(absl::StrCat("layer ", layer->descriptor().digest.ToString(), ": bytes ",
                                              offset, "+", size, " lie outside its data area of ", data_size,
                                              " bytes"));
  }
  ReadPlan plan{std::move(layer), size, {}};
  if (size > 0 && offset < data_size) plan.extents.push_back({0, offset, std::min(size, data_size - offset)});
  return plan;
}

absl::StatusOr<ReadPlan> Filesystem::PlanTree(const Node& node, LayerPtr layer, uint64_t offset,
                                              uint64_t size) {
  ASSIGN_OR_RETURN(ImagePtr image, Image(layer, node.image));
  ASSIGN_OR_RETURN(const layer::ErofsImage::Stat inode, image->GetInode(node.nid));
  if (!S_ISREG(inode.mode)) return absl::InvalidArgumentError("read of something that is no file");
  const uint64_t data_size = layer->data_size();
  ReadPlan plan{std::move(layer), size, {}};
  if (offset >= inode.size || size == 0) return plan;
  const uint64_t length = std::min(size, inode.size - offset);
  ASSIGN_OR_RETURN(plan.extents, image->MapFile(node.nid, offset, length));
  for (layer::Extent& extent : plan.extents) {
    if (extent.file_offset < offset ||
        !base::RangeWithin(extent.file_offset - offset, extent.length, length) ||
        !base::RangeWithin(extent.data_offset, extent.length, data_size)) {
      return absl::DataLossError("the layer's image maps a file to a place outside the data area");
    }
    extent.file_offset -= offset;
  }
  return plan;
}

}  // namespace lazyblob::fuse::internal

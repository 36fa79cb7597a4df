#include "fuse/internal/builtin_image.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status.h"
#include "layer/entry.h"
#include "layer/erofs.h"
#include "layer/tree.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr size_t kBlockBytes = 512;
constexpr size_t kWholeBytes = 4096;
constexpr size_t kCutBytes = 2 * kBlockBytes;

// Never zero, so that a hole shows.
std::string Pattern(size_t size, unsigned seed) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(1 + (i * 7 + seed + i / 251) % 250);
  return text;
}

layer::Entry File(const std::string& name, uint64_t data_offset, uint64_t size) {
  layer::Entry entry;
  entry.path = name;
  entry.mode = 0444;
  entry.size = size;
  entry.extents = {{0, data_offset, size}};
  return entry;
}

absl::StatusOr<layer::Tree> MakeTree() {
  layer::TreeBuilder builder;
  layer::Entry root;
  root.path = "./";
  root.type = layer::EntryType::kDirectory;
  root.mode = 0555;
  RETURN_IF_ERROR(builder.Add(std::move(root)));
  RETURN_IF_ERROR(builder.Add(File("whole", 0, kWholeBytes)));
  RETURN_IF_ERROR(builder.Add(File("cut", kWholeBytes, kCutBytes)));
  return builder.Finish();
}

}  // namespace

absl::StatusOr<BuiltinImage> WriteBuiltinImage(const std::string& directory) {
  BuiltinImage image;
  image.meta_path = absl::StrCat(directory, "/meta.erofs");
  image.data_path = absl::StrCat(directory, "/data");
  image.whole = Pattern(kWholeBytes, 1);
  image.cut = Pattern(kCutBytes, 2);
  ASSIGN_OR_RETURN(layer::Tree tree, MakeTree());
  layer::ErofsOptions options;
  options.layer = base::Digest::Of(absl::string_view("lazyblob built-in image"));
  options.data_size = kWholeBytes + kCutBytes;
  RETURN_IF_ERROR(layer::WriteErofs(tree, options, image.meta_path));
  std::string data = image.whole + image.cut;
  data.resize(data.size() - kBlockBytes);
  RETURN_IF_ERROR(base::WriteFileAtomically(image.data_path, data));
  return image;
}

}  // namespace lazyblob::fuse::internal

// Images with anything after an honest superblock: only errors may come of it.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "layer/erofs.h"
#include "layer/internal/erofs_format.h"

namespace {

// The superblock that the writer would make, so that inputs need not guess its checksum.
void FixSuperBlock(std::string* image) {
  using namespace lazyblob::layer::internal;  // NOLINT: the format's vocabulary
  ErofsSuperBlock super;
  std::memcpy(&super, image->data() + kErofsSuperOffset, sizeof(super));
  super.magic = kErofsMagic;
  super.checksum = 0;
  super.block_bits = kErofsBlockBits;
  super.extra_devices = 1;
  super.meta_block = 0;
  super.feature_incompat = kErofsIncompatChunkedFile | kErofsIncompatDeviceTable;
  super.blocks = static_cast<uint32_t>(image->size() / kErofsBlockSize);
  std::memcpy(image->data() + kErofsSuperOffset, &super, sizeof(super));
  super.checksum = ErofsSuperChecksum({reinterpret_cast<const uint8_t*>(image->data()) + kErofsSuperOffset,
                                       kErofsRootOffset - kErofsSuperOffset});
  std::memcpy(image->data() + kErofsSuperOffset, &super, sizeof(super));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lazyblob;  // NOLINT: a fuzz target is one function
  if (size < layer::internal::kErofsRootOffset || size > (1 << 20)) return 0;
  std::string bytes(reinterpret_cast<const char*>(data), size);
  FixSuperBlock(&bytes);
  base::UniqueFd file(memfd_create("image", MFD_CLOEXEC));
  if (!file.valid() ||
      !base::WriteFull(file.get(), {reinterpret_cast<const uint8_t*>(bytes.data()), size}).ok())
    return 0;
  auto image = layer::ErofsImage::Open(absl::StrCat("/proc/self/fd/", file.get()));
  if (!image.ok()) return 0;
  (void)(*image)->ToTree();
  for (uint64_t nid = 0; nid < size / 32 && nid < 256; ++nid) {
    (void)(*image)->GetInode(nid);
    (void)(*image)->ReadLink(nid);
    (void)(*image)->Xattrs(nid);
    (void)(*image)->MapFile(nid, 0, 1 << 20);
    (void)(*image)->Lookup(nid, "file");
    int budget = 1000;
    (void)(*image)->ReadDirectory(nid, 0, [&budget](absl::string_view name, uint64_t, uint8_t, uint64_t) {
      if (name.empty() || name.size() > 255 || name.find('/') != absl::string_view::npos) __builtin_trap();
      return --budget > 0;
    });
  }
  return 0;
}

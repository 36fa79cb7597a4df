#pragma once

// Metadata images per chain. A directory that a layer implies without an entry of its own must look as it
// does in the layers below (so that /tmp keeps 1777); what lies below differs from image to image, so such a
// layer gets a metadata image for each chain it is mounted in.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "layer/erofs.h"
#include "layer/layer_index.h"

namespace lazyblob::layer {

// A layer below: an indexed one, whose `image` is its own or one of its chain (both give the same result), or
// a `directory` on the local disk as overlayfs takes it, with whiteouts and trusted.overlay.opaque. Of that
// one only directories are opened, below it and on its file system, never by way of a symbolic link.
struct LowerLayer {
  std::shared_ptr<const LayerIndex> index;
  std::shared_ptr<const ErofsImage> image;
  std::string directory = {};  // not empty: instead of index and image
};

// Writes to `path` (created or replaced; synced) the metadata image of `layer` in which every implied
// directory has mode, owner, time and extended attributes of the same directory in the nearest of
// `lowers_topmost_first` that has an entry for it. The search ends where something else of that name, a
// whiteout or an opaque directory on the way to it hides what is below; then, and when no layer has it, it
// stays 0755 root:root. False, and nothing written, when that changes no directory: the layer's own image
// will do. Opaque directories are marked with `opaque_xattr` (the layer's own image has
// trusted.overlay.opaque; another mark always makes a new image of a layer with opaque directories). DataLoss
// when an image is damaged. Thread-safe.
absl::StatusOr<bool> WriteChainImage(const LayerIndex& layer,
                                     absl::Span<const LowerLayer> lowers_topmost_first,
                                     const std::string& path,
                                     absl::string_view opaque_xattr = "trusted.overlay.opaque");

}  // namespace lazyblob::layer

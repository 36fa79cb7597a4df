#pragma once

// Reading OCI image layouts (image-layout.md). A Layout is immutable after Open and thread-safe; files are
// opened below the layout's directory only, by digest; what was opened stays open when it is renamed.

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/file.h"
#include "oci/manifest.h"
#include "oci/reference.h"

namespace lazyblob::oci {

class Layout {
 public:
  // Checks oci-layout and reads index.json.
  static absl::StatusOr<Layout> Open(const std::string& directory);

  // The descriptor that carries `tag`; without a tag, the only one. NotFound lists the tags that exist.
  absl::StatusOr<Descriptor> Resolve(const std::optional<std::string>& tag) const;
  // Opens blobs/<algorithm>/<hex>; NotFound if absent. The contents are not verified here.
  absl::StatusOr<base::UniqueFd> OpenBlob(const base::Digest& digest) const;
  // A whole small blob, verified.
  absl::StatusOr<std::string> ReadBlob(const base::Digest& digest, uint64_t max_bytes) const;

  const std::string& directory() const { return directory_; }
  const Index& index() const { return index_; }

 private:
  std::string directory_;
  std::shared_ptr<const base::UniqueFd> root_;
  Index index_;
};

}  // namespace lazyblob::oci

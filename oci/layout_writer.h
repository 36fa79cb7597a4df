#pragma once

// Writing OCI image layouts (image-layout.md), also by many processes at the same time. Blobs come first and
// appear whole (no name, fsync, link); index.json changes last, under a lock, by rename. So at any time, and
// after a crash, a layout holds complete images. The lock is flock(2) on index.json.lock, which BuildKit
// takes too; it stays where it is.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "oci/descriptor.h"

namespace lazyblob::oci {

// Gives a blob's bytes, in order, to the sink, whose errors it returns.
using BlobProducer =
    absl::FunctionRef<absl::Status(absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)> sink)>;

// Puts `descriptor` into the parsed index.json `index` (null: makes one). With a name it takes the place of
// what had that name, and an unnamed entry of the same digest goes; without one nothing happens when the
// digest is there, and FailedPrecondition, listing the names, when another image without a name is.
absl::Status MergeIntoIndex(const Descriptor& descriptor, const std::optional<std::string>& name,
                            nlohmann::json* index);

// Thread-safe: it holds descriptors only.
class LayoutWriter {
 public:
  // Opens a layout, or makes one of a directory that is absent or empty; takes away what killed writers left
  // in its root. InvalidArgument: a directory with
  // other things in it, or a layout of another version.
  static absl::StatusOr<std::unique_ptr<LayoutWriter>> Open(const std::string& directory);

  // Whether the blob is there with its size. Its bytes are not read.
  absl::StatusOr<bool> HasBlob(const Descriptor& descriptor) const;
  // Writes a blob unless HasBlob. DataLoss when what `produce` gives has another digest or size: nothing is
  // there then. ResourceExhausted: disk full.
  absl::Status PutBlob(const Descriptor& descriptor, BlobProducer produce) const;
  absl::Status PutBlob(const Descriptor& descriptor, absl::string_view bytes) const;

  // Makes the manifest or index of `descriptor`, which must be there, an image of this layout (see
  // MergeIntoIndex). Waits for others who do the same. Durable on return.
  absl::Status Publish(const Descriptor& descriptor, const std::optional<std::string>& name) const;
  // The same for platforms of the image `name`: merged into the index that has the name (MergePlatforms of
  // index_merge.h), or into one made of the image that has it. Returns the index's descriptor.
  absl::StatusOr<Descriptor> PublishPlatforms(absl::Span<const Descriptor> manifests,
                                              const std::string& name) const;

  const std::string& directory() const { return directory_; }

 private:
  LayoutWriter(std::string directory, base::UniqueFd root)
      : directory_(std::move(directory)), root_(std::move(root)) {}
  absl::StatusOr<base::UniqueFd> BlobDirectory(const base::Digest& digest) const;
  absl::StatusOr<base::UniqueFd> Lock() const;
  absl::StatusOr<nlohmann::json> ReadIndex() const;
  absl::Status WriteIndexLocked(const nlohmann::json& index) const;
  absl::Status CheckThere(const Descriptor& descriptor) const;
  absl::StatusOr<Descriptor> MergeInto(const std::string& name, absl::Span<const Descriptor> manifests) const;

  const std::string directory_;
  const base::UniqueFd root_;
};

}  // namespace lazyblob::oci

#pragma once

// "oci-archive:FILE[:tag]": an OCI image layout in a tar file (image-spec image-layout.md; the form that
// skopeo, podman and containerd read and write). Written in one pass, in the order given, without a copy on
// disk; FILE appears, whole and durable, with Finish. The same calls give the same bytes.

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "base/file.h"
#include "exporter/tar_writer.h"
#include "oci/descriptor.h"
#include "oci/layout_writer.h"

namespace lazyblob::exporter {

// One thread at a time. Errors are sticky, and leave what was at FILE before.
class ArchiveWriter {
 public:
  // FILE's directory exists. A FILE that is no regular file (a pipe, a terminal) is written as it is; while
  // nobody reads a pipe it is waited for, until `cancel` (outlives the writer; may be null) is cancelled.
  // What a kill has left beside FILE (".NAME.lazytar-*", without a lock) is taken away.
  static absl::StatusOr<std::unique_ptr<ArchiveWriter>> Create(const std::string& file,
                                                               base::CancelToken* cancel = nullptr);
  ~ArchiveWriter();

  // A blob, once per digest: more of the same do nothing. DataLoss when the bytes are not the descriptor's.
  absl::Status AddBlob(const oci::Descriptor& descriptor, oci::BlobProducer produce);
  absl::Status AddBlob(const oci::Descriptor& descriptor, absl::string_view bytes);
  // An image whose blobs have been added; with several, each has a name (MergeIntoIndex).
  absl::Status AddImage(const oci::Descriptor& descriptor, const std::optional<std::string>& name);
  // Writes index.json and gives FILE its name.
  absl::Status Finish();

 private:
  ArchiveWriter(std::string file, base::CancelToken* cancel);
  absl::Status Open();
  absl::Status OpenTemporary();
  absl::Status OpenPipe();
  absl::Status WritePipe(absl::Span<const uint8_t> bytes);
  absl::Status AddFile(const std::string& path, absl::string_view contents);
  absl::Status Member(const std::string& path, uint64_t size);
  absl::Status Sticky(absl::Status status);

  const std::string path_;
  base::CancelToken* const cancel_;
  base::UniqueFd fd_;
  std::string temporary_;  // empty when FILE is no regular file, or has its name
  std::unique_ptr<TarWriter> tar_;
  std::map<base::Digest, uint64_t> blobs_;  // sizes
  std::set<std::string> directories_;
  nlohmann::json index_;
  absl::Status failed_;
};

}  // namespace lazyblob::exporter

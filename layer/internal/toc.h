#pragma once

// Tables of contents of eStargz and zstd:chunked: where they lie, what their JSON says, and the index they
// give. Formats: stargz-snapshotter docs/estargz.md; containers/storage pkg/chunked. All of it is hostile
// input; what a TOC says is believed only after its digest matched the one in the image manifest.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"
#include "layer/index_builder.h"
#include "layer/internal/index_writer.h"
#include "oci/descriptor.h"

namespace lazyblob::layer::internal {

// What a layer's annotations say about its TOC; nothing is set when they name none.
struct TocNames {
  base::Digest json_digest;        // containerd.io/snapshot/stargz/toc.digest: of the JSON text
  base::Digest compressed_digest;  // …zstd-chunked.manifest-checksum: of the compressed TOC
  struct Position {
    uint64_t offset = 0;
    uint64_t compressed_size = 0;
    uint64_t size = 0;
  };
  std::optional<Position> position;  // …zstd-chunked.manifest-position

  bool any() const { return !json_digest.empty() || !compressed_digest.empty(); }
};
// FailedPrecondition: malformed, or annotations that contradict each other.
absl::StatusOr<TocNames> ReadTocNames(const oci::Descriptor& layer);

// A verified TOC.
struct Toc {
  std::string json;
  uint64_t payload_end = 0;  // blob bytes from here on belong to no file
  // eStargz: the TOC is itself a member of the tar, which unpacking shows as a file.
  std::string tar_header;      // its 512 bytes; empty for zstd:chunked and where the TOC is external
  uint64_t member_offset = 0;  // blob range of the gzip member that holds header and JSON
  uint64_t member_size = 0;
};
absl::StatusOr<Toc> ReadToc(Format format, const oci::Descriptor& layer, const TocNames& names,
                            BlobReader read, const ExternalToc& external, const BuildLimits& limits);

// One object of a TOC's "entries", as it stands there. Absent numbers are 0, absent texts empty.
struct TocEntry {
  std::string name, type, link_name, modtime, digest, chunk_digest, chunk_type;
  uint64_t size = 0, mode = 0, uid = 0, gid = 0, device_major = 0, device_minor = 0;
  uint64_t offset = 0, inner_offset = 0, end_offset = 0, chunk_offset = 0, chunk_size = 0;
  std::vector<std::pair<std::string, std::string>> xattrs;  // values decoded
};
// Streams through the JSON of a TOC of version 1. InvalidArgument says what is wrong and with which entry;
// errors of `sink` end the parse.
absl::Status ParseToc(absl::string_view json, uint64_t max_entries,
                      absl::FunctionRef<absl::Status(TocEntry)> sink);

// Layer tree and chunk table of a TOC.
struct TocLayer {
  Tree tree;
  IndexContents contents;
};
absl::StatusOr<TocLayer> BuildTocLayer(Format format, const oci::Descriptor& layer, const Toc& toc,
                                       const BuildLimits& limits);

// RFC 3339 with optional fraction; nullopt when malformed.
struct TocTime {
  int64_t seconds = 0;
  uint32_t nanoseconds = 0;
};
std::optional<TocTime> ParseTocTime(absl::string_view text);

}  // namespace lazyblob::layer::internal

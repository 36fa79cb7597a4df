#pragma once

// The fields of one 512-byte tar header and the records of PAX extended headers, read as Go's archive/tar
// reads them (containerd and umoci unpack with it). Formats: POSIX.1-1988 ustar, POSIX.1-2001 pax, GNU tar's
// manual, v7. Pure functions over hostile bytes; errors are InvalidArgument without a name, the caller adds
// it.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace lazyblob::layer::internal {

inline constexpr uint64_t kTarBlockBytes = 512;

struct SparsePiece {
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct TarHeader {
  std::string name;
  std::string link_name;
  char type = '0';
  bool gnu = false;
  int64_t mode = 0;
  int64_t uid = 0;
  int64_t gid = 0;
  int64_t size = 0;  // bytes that follow the header
  int64_t mtime = 0;
  int64_t device_major = 0;
  int64_t device_minor = 0;
};

// A field that holds octal digits or GNU's base-256 number; nullopt: neither, or it does not fit.
std::optional<int64_t> ParseTarNumber(absl::Span<const uint8_t> field);

// `block` is one header block, not all zero. Both the unsigned and the signed sum are accepted.
absl::StatusOr<TarHeader> ParseTarHeader(absl::Span<const uint8_t> block);

// The part of a type 'S' header (old GNU sparse) that says where the data lies.
struct OldSparseHeader {
  std::vector<SparsePiece> pieces;
  bool extended = false;  // an extension block follows
  uint64_t real_size = 0;
};
absl::StatusOr<OldSparseHeader> ParseOldSparseHeader(absl::Span<const uint8_t> block);
// Appends the pieces of an extension block; returns whether another one follows.
absl::StatusOr<bool> ParseOldSparseExtension(absl::Span<const uint8_t> block,
                                             std::vector<SparsePiece>* pieces);

// Records of one PAX extended header.
struct PaxRecords {
  std::vector<std::pair<std::string, std::string>> values;  // in order; a later one of the same key wins
  std::vector<std::string> sparse_numbers;  // GNU.sparse.offset, GNU.sparse.numbytes, … (format 0.0)

  // The last value of `key`; empty when there is none.
  absl::string_view Find(absl::string_view key) const;
};
absl::StatusOr<PaxRecords> ParsePax(absl::string_view text);

// Decimal number with optional sign that fits int64.
std::optional<int64_t> ParseDecimal(absl::string_view text);

struct PaxTime {
  int64_t seconds = 0;
  uint32_t nanoseconds = 0;  // 0 … 999'999'999, added to seconds
};
// "[-]seconds[.fraction]"; digits beyond nanoseconds are cut off.
std::optional<PaxTime> ParsePaxTime(absl::string_view text);

// containerd sets times before 1970, or beyond what 64-bit nanoseconds hold, to 1970-01-01T00:00:00Z.
PaxTime BoundTime(PaxTime time);

}  // namespace lazyblob::layer::internal

// Any bytes as a tar stream: no crash, extents inside the stream and the file, and the same entries however
// the stream is cut into pieces.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "layer/internal/tar_reader.h"

namespace {

using lazyblob::layer::Entry;
using lazyblob::layer::Extent;
using lazyblob::layer::internal::ScrubRange;
using lazyblob::layer::internal::TarReader;

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

std::string Describe(const Entry& entry) {
  std::string out =
      absl::StrCat(entry.path, "|", entry.link_target, "|", static_cast<int>(entry.type), "|", entry.mode,
                   "|", entry.uid, "|", entry.gid, "|", entry.mtime_seconds, "|", entry.size);
  for (const auto& [name, value] : entry.xattrs) absl::StrAppend(&out, "|", name, "=", value);
  uint64_t end = 0;
  for (const Extent& extent : entry.extents) {
    Require(extent.length > 0 && extent.file_offset >= end &&
            extent.file_offset + extent.length <= entry.size);
    end = extent.file_offset + extent.length;
    absl::StrAppend(&out, "|", extent.file_offset, ":", extent.data_offset, "+", extent.length);
  }
  return out;
}

std::string ReadAll(absl::Span<const uint8_t> bytes, size_t step) {
  TarReader reader;
  std::string out;
  absl::Status status;
  for (size_t at = 0; at < bytes.size() && status.ok(); at += step) {
    const absl::Span<const uint8_t> from = bytes.subspan(at, step);
    const std::vector<uint8_t> piece(from.begin(), from.end());  // alone in memory
    status = reader.Feed(
        piece,
        [&](Entry entry) {
          Require(entry.extents.empty() || entry.extents[0].data_offset <= bytes.size());
          absl::StrAppend(&out, Describe(entry), "\n");
          return absl::OkStatus();
        },
        [&](const ScrubRange& range) {
          Require(range.length > 0 && range.length < 512 && range.offset + range.length <= bytes.size());
        });
  }
  if (status.ok()) status = reader.Finish();
  absl::StrAppend(&out, status.ToString());
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::Span<const uint8_t> bytes(data, size);
  Require(ReadAll(bytes, size == 0 ? 1 : size) == ReadAll(bytes, 97));
  return 0;
}

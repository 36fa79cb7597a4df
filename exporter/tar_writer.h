#pragma once

// Tar as this project writes it: ustar headers, PAX records exactly for what does not fit one, two zero
// blocks at the end. The same entries and bytes give the same tar; docs/LAYER_WRITING.md fixes every byte.
// Formats: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), SCHILY.xattr as star made it. One thread at a time.

#include <cstdint>
#include <functional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "exporter/tree.h"
#include "layer/entry.h"

namespace lazyblob::exporter {

// Takes bytes in order; an error ends whatever produces them.
using ByteSink = absl::AnyInvocable<absl::Status(absl::Span<const uint8_t>)>;

class TarWriter final : public TreeSink {
 public:
  explicit TarWriter(ByteSink sink) : sink_(std::move(sink)) {}

  // InvalidArgument, naming the entry: an empty path, link target or xattr name, NUL in one of them, "=" in
  // an xattr name, or more than 1 MiB of extended records (readers refuse those).
  absl::Status Begin(const layer::Entry& entry) override;
  // FailedPrecondition when more comes than the entry said.
  absl::Status Data(absl::Span<const uint8_t> bytes) override;
  // The end of the archive. FailedPrecondition when the last entry's data is not complete.
  absl::Status Finish();

  uint64_t bytes_written() const { return written_; }

 private:
  absl::Status Write(absl::string_view bytes);
  absl::Status EndEntry();

  ByteSink sink_;
  uint64_t written_ = 0;
  uint64_t remaining_ = 0;  // data bytes of the entry that have not come
  uint64_t padding_ = 0;    // zeros after them
  std::string path_;        // of the entry, for messages
};

}  // namespace lazyblob::exporter

#include "contentstore/internal/toc_reader.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/checked.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

constexpr uint64_t kMinTailBytes = 64 << 10;
constexpr uint64_t kMaxTailBytes = 1 << 20;
constexpr uint64_t kTailShare = 64;  // tables take some percent of a blob
constexpr uint64_t kBlockBytes = 256 << 10;
constexpr uint64_t kMaxHeldBytes = 8 << 20;

}  // namespace

TocReader::TocReader(uint64_t blob_size, Fetch fetch) : blob_size_(blob_size), fetch_(fetch) {}

absl::Status TocReader::Read(uint64_t offset, absl::Span<uint8_t> out) {
  if (!base::RangeWithin(offset, out.size(), blob_size_)) {
    return absl::InvalidArgumentError("the table of contents points outside the blob");
  }
  while (!out.empty()) {
    auto after = blocks_.upper_bound(offset);
    if (after != blocks_.begin()) {
      const auto block = std::prev(after);
      const uint64_t skip = offset - block->first;
      if (skip < block->second.size()) {
        const uint64_t n = std::min<uint64_t>(block->second.size() - skip, out.size());
        std::copy_n(block->second.begin() + static_cast<ptrdiff_t>(skip), n, out.begin());
        offset += n;
        out.remove_prefix(n);
        continue;
      }
    }
    const uint64_t gap = (after == blocks_.end() ? blob_size_ : after->first) - offset;
    const uint64_t wanted = std::min<uint64_t>(gap, out.size());
    if (wanted >= kBlockBytes) {  // large enough to need no buffer
      source_status_ = fetch_(offset, out.first(wanted));
      RETURN_IF_ERROR(source_status_);
      offset += wanted;
      out.remove_prefix(wanted);
      continue;
    }
    RETURN_IF_ERROR(Bring(offset, wanted));
  }
  return absl::OkStatus();
}

absl::Status TocReader::Bring(uint64_t offset, uint64_t wanted) {
  if (held_ > kMaxHeldBytes) {
    blocks_.clear();
    held_ = 0;
  }
  const uint64_t tail =
      std::min(blob_size_, std::clamp(blob_size_ / kTailShare, kMinTailBytes, kMaxTailBytes));
  uint64_t begin = offset;
  uint64_t end = 0;
  if (offset >= blob_size_ - tail && blocks_.empty()) {
    begin = blob_size_ - tail;
    end = blob_size_;
  } else {
    const auto after = blocks_.upper_bound(offset);
    const uint64_t limit = after == blocks_.end() ? blob_size_ : after->first;
    end = std::min(limit, offset + std::max(wanted, kBlockBytes));
  }
  std::vector<uint8_t> bytes(end - begin);
  source_status_ = fetch_(begin, absl::MakeSpan(bytes));
  RETURN_IF_ERROR(source_status_);
  held_ += bytes.size();
  blocks_[begin] = std::move(bytes);
  return absl::OkStatus();
}

}  // namespace lazyblob::contentstore

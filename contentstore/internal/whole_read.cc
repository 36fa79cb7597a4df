#include "contentstore/internal/whole_read.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "contentstore/internal/unpacked_digest.h"

namespace lazyblob::contentstore {
namespace {

// What one reading may hold of a chunk. For larger ones there is so much for all readings of the process;
// where it is used up they are left to those who ask for them.
constexpr uint64_t kFreeChunkBytes = 1 << 20;
constexpr uint64_t kLargeChunkBytes = 16 << 20;
std::atomic<uint64_t> large_chunks{0};
constexpr uint64_t kDropBytes = 512 << 10;
constexpr int kAttempts = 2;

// Stores missing chunks of a blob that passes by. The blob's order is that of the data area, but for tables
// of contents that somebody made otherwise: chunks whose bytes have passed are left out.
class ChunkFiller {
 public:
  ChunkFiller(const LayerBody& body, CacheRoom room) : body_(body), room_(room) { FindNext(); }
  ~ChunkFiller() { GiveBack(); }
  ChunkFiller(const ChunkFiller&) = delete;
  ChunkFiller& operator=(const ChunkFiller&) = delete;

  void Feed(absl::Span<const uint8_t> bytes) {
    const uint64_t begin = arrived_;
    arrived_ += bytes.size();
    while (next_ < count() && chunk_.blob_offset < arrived_) {
      if (!MayHold()) {
        Skip();
        continue;
      }
      if (buffer_.empty()) base_ = std::max(begin, chunk_.blob_offset);
      if (base_ + buffer_.size() < arrived_) {
        const auto rest = bytes.subspan(base_ + buffer_.size() - begin);
        buffer_.insert(buffer_.end(), rest.begin(), rest.end());
      }
      if (chunk_.blob_offset < base_) {
        Skip();
      } else if (chunk_.blob_offset + chunk_.blob_size <= arrived_) {
        Store();
      } else {
        break;
      }
    }
    Drop();
  }

 private:
  uint64_t count() const { return body_.index->chunk_count(); }

  void FindNext() {
    for (; next_ < count(); ++next_) {
      next_ = body_.cache->FindNotPresent(next_, count());
      if (next_ == count()) return;
      chunk_ = body_.index->chunk(next_);
      if (chunk_.blob_size > 0 && chunk_.blob_size <= kLargeChunkBytes) return;
    }
  }

  bool MayHold() {
    const uint64_t needed = chunk_.blob_size + chunk_.data_size;
    if (needed <= kFreeChunkBytes || held_ > 0) return true;
    if (large_chunks.fetch_add(needed) + needed > kLargeChunkBytes) {
      large_chunks.fetch_sub(needed);
      return false;
    }
    held_ = needed;
    buffer_.reserve(chunk_.blob_size + kDropBytes);
    return true;
  }

  void GiveBack() {
    if (held_ == 0) return;
    scratch_ = {};
    large_chunks.fetch_sub(std::exchange(held_, 0));
  }

  void Skip() {
    GiveBack();
    ++next_;
    FindNext();
  }

  void Store() {
    const auto bytes = absl::MakeConstSpan(buffer_).subspan(chunk_.blob_offset - base_, chunk_.blob_size);
    scratch_.resize(chunk_.data_size);
    const absl::Status right = body_.index->Decode(next_, bytes, absl::MakeSpan(scratch_));
    // Who needs the chunk asks for it again, and is told what is wrong.
    if (right.ok()) body_.cache->Store(next_, scratch_, room_).IgnoreError();
    Skip();
  }

  // What lies before the next chunk.
  void Drop() {
    const uint64_t needed = next_ < count() ? chunk_.blob_offset : UINT64_MAX;
    const uint64_t drop = needed <= base_ ? 0 : std::min<uint64_t>(needed - base_, buffer_.size());
    if (drop < kDropBytes && drop < buffer_.size()) return;
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(drop));
    base_ += drop;
    if (held_ == 0 && buffer_.capacity() > kFreeChunkBytes + kDropBytes) buffer_.shrink_to_fit();
  }

  const LayerBody& body_;
  const CacheRoom room_;
  uint64_t next_ = 0;
  layer::Chunk chunk_;  // next_
  uint64_t arrived_ = 0;
  uint64_t base_ = 0;  // blob offset of buffer_[0]
  std::vector<uint8_t> buffer_;
  std::vector<uint8_t> scratch_;
  uint64_t held_ = 0;  // of large_chunks, for chunk_
};

absl::Status ReadOnce(const WholeRead& read, size_t attempt) {
  Layer& layer = *read.layer;
  const oci::Descriptor blob = layer.descriptor();
  WholeCheck check(layer, layer.StartUnpacking(read.limits));
  ChunkFiller filler(*layer.body(), read.room);
  StreamCaller caller = read.caller;
  caller.first_source = attempt;
  uint64_t at = 0;
  absl::Status paused;
  const auto sink = [&](absl::Span<const uint8_t> bytes) -> absl::Status {
    at += bytes.size();
    check.Feed(bytes);
    filler.Feed(bytes);
    read.report(at);
    if (read.pause && at < blob.size) paused = read.pause(/*between_requests=*/false);
    return paused;
  };
  while (at < blob.size) {
    if (read.pause) RETURN_IF_ERROR(read.pause(/*between_requests=*/true));
    paused = absl::OkStatus();
    const absl::Status status = read.spools->Stream(
        read.layer, {at, std::min(read.range_bytes, blob.size - at)}, sink, caller, /*keep=*/false);
    if (!absl::IsAborted(paused)) RETURN_IF_ERROR(status);
  }
  return check.Finish(read.log);
}

}  // namespace

void WholeCheck::Feed(absl::Span<const uint8_t> bytes) {
  hasher_.Update(bytes);
  if (unpacked_ != nullptr) unpacked_->Feed(bytes);
}

absl::Status WholeCheck::Finish(const std::function<void(absl::string_view)>& log) {
  const base::Digest wanted = layer_.descriptor().digest;
  const base::Digest found = hasher_.Finish();
  if (found != wanted) {
    return absl::DataLossError(absl::StrCat("blob ", wanted.ToString(), ": the bytes of ",
                                            layer_.stats().last_source, " have digest ", found.ToString()));
  }
  if (unpacked_ != nullptr) layer_.NoteUnpacked(*unpacked_, log);
  return absl::OkStatus();
}

absl::Status ReadWhole(const WholeRead& read) {
  absl::Status status;
  for (size_t attempt = 0; attempt < kAttempts; ++attempt) {
    status = ReadOnce(read, attempt);
    if (!absl::IsDataLoss(status)) return status;
  }
  return status;
}

}  // namespace lazyblob::contentstore

#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/status.h"
#include "layer/internal/gzip_codec.h"

namespace lazyblob::layer::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

constexpr size_t kScratchBytes = 64 << 10;
constexpr size_t kTrailerBytes = 8;

absl::Status Damaged() { return absl::DataLossError("gzip data cannot be decoded"); }

// Where decoded bytes go: nowhere for the first `skip`, then into `out`.
class Target {
 public:
  Target(uint64_t skip, absl::Span<uint8_t> out) : skip_(skip), out_(out) {
    if (skip > 0) scratch_.resize(std::min<uint64_t>(skip, kScratchBytes));
  }
  bool full() const { return skip_ == 0 && out_.empty(); }
  absl::Span<uint8_t> Room() {
    if (skip_ == 0) return out_.first(std::min<size_t>(out_.size(), 1 << 30));
    return absl::MakeSpan(scratch_).first(std::min<uint64_t>(skip_, scratch_.size()));
  }
  void Take(size_t bytes) {
    if (skip_ == 0) {
      out_.remove_prefix(bytes);
    } else {
      skip_ -= bytes;
    }
  }

 private:
  uint64_t skip_;
  absl::Span<uint8_t> out_;
  std::vector<uint8_t> scratch_;
};

// Decodes until the target is full or the member ends; `*blob` then starts after the member's last deflate
// byte.
absl::Status InflateMember(inflate_state* state, Bytes* blob, Target* target) {
  while (!target->full()) {
    const size_t step = std::min<size_t>(blob->size(), 1 << 30);
    const absl::Span<uint8_t> room = target->Room();
    state->next_in = const_cast<uint8_t*>(blob->data());
    state->avail_in = static_cast<uint32_t>(step);
    state->next_out = room.data();
    state->avail_out = static_cast<uint32_t>(room.size());
    if (isal_inflate(state) != ISAL_DECOMP_OK) return Damaged();
    const size_t used = step - state->avail_in, made = room.size() - state->avail_out;
    blob->remove_prefix(used);
    target->Take(made);
    if (state->block_state == ISAL_BLOCK_FINISH) break;
    if (used == 0 && made == 0) return Damaged();
  }
  return absl::OkStatus();
}

absl::Status InflateAll(inflate_state* state, Bytes blob, bool at_header, Target* target) {
  for (;;) {
    if (at_header) {
      const absl::StatusOr<std::optional<size_t>> header = ParseGzipHeader(blob);
      if (!header.ok() || !header->has_value()) return Damaged();
      blob.remove_prefix(**header);
      isal_inflate_reset(state);
    }
    const Bytes all = blob;
    RETURN_IF_ERROR(InflateMember(state, &blob, target));
    if (target->full()) return absl::OkStatus();
    // Whole bytes that inflate took beyond the end belong to the trailer.
    const size_t taken = all.size() - blob.size();
    const size_t unused = static_cast<size_t>(state->read_in_length / 8);
    const size_t next = taken + kTrailerBytes - std::min(unused, kTrailerBytes);
    if (next > all.size()) return Damaged();
    blob = all.subspan(next);
    at_header = true;
  }
}

}  // namespace

absl::Status InflateFromCheckpoint(Bytes blob, unsigned bit, Bytes window, uint64_t skip,
                                   absl::Span<uint8_t> out) {
  if (blob.empty() || bit > 7) return Damaged();
  std::unique_ptr<inflate_state> state(new inflate_state);
  isal_inflate_init(state.get());
  if (!window.empty()) {
    isal_inflate_set_dict(state.get(), const_cast<uint8_t*>(window.data()),
                          static_cast<uint32_t>(window.size()));
  }
  if (bit != 0) {
    state->read_in = static_cast<uint64_t>(blob[0]) >> bit;
    state->read_in_length = static_cast<int32_t>(8 - bit);
    blob.remove_prefix(1);
  }
  Target target(skip, out);
  return InflateAll(state.get(), blob, false, &target);
}

absl::Status InflateMembers(Bytes blob, uint64_t skip, absl::Span<uint8_t> out) {
  std::unique_ptr<inflate_state> state(new inflate_state);
  isal_inflate_init(state.get());
  Target target(skip, out);
  return InflateAll(state.get(), blob, true, &target);
}

}  // namespace lazyblob::layer::internal

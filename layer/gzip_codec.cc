#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "layer/internal/gzip_codec.h"

namespace lazyblob::layer::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

constexpr size_t kWindowBytes = 32 << 10;  // how far back deflate refers
constexpr size_t kOutputBytes = 256 << 10;
constexpr size_t kMaxInputStep = 1 << 20;
constexpr size_t kTrailerBytes = 8;  // CRC-32 and length modulo 2^32
constexpr size_t kMaxHeaderBytes = 256 << 10;
constexpr size_t kMaxCutterInput = 64 << 10;
constexpr uint64_t kMaxSpacing = 8 << 20;

std::unique_ptr<inflate_state> NewInflate() {
  std::unique_ptr<inflate_state> state(new inflate_state);  // 90 KB of tables and buffers, not zeroed
  isal_inflate_init(state.get());
  return state;
}

// Makes `state` ready for a block header that starts in the bits of `bits`.
void Restart(inflate_state* state, Bytes window, uint64_t bits, int32_t bit_count) {
  isal_inflate_reset(state);
  if (!window.empty()) {
    isal_inflate_set_dict(state, const_cast<uint8_t*>(window.data()), static_cast<uint32_t>(window.size()));
  }
  state->read_in = bits;
  state->read_in_length = bit_count;
}

absl::string_view InflateError(int code) {
  switch (code) {
    case ISAL_INVALID_BLOCK:
      return "invalid deflate block";
    case ISAL_INVALID_SYMBOL:
      return "invalid deflate symbol";
    case ISAL_INVALID_LOOKBACK:
      return "deflate data refers to bytes before its start";
    default:
      return "invalid deflate data";
  }
}

// Whole bytes that inflate took but did not use, at the end of a member.
std::string UnusedBytes(const inflate_state& state) {
  std::string bytes;
  int32_t bits = state.read_in_length;
  uint64_t value = state.read_in >> (bits % 8);
  for (bits -= bits % 8; bits > 0; bits -= 8, value >>= 8) bytes.push_back(static_cast<char>(value & 0xff));
  return bytes;
}

uint64_t LittleEndian32(absl::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace

absl::StatusOr<std::optional<size_t>> ParseGzipHeader(Bytes bytes) {
  constexpr uint8_t kHeaderCrc = 2, kExtra = 4, kName = 8, kComment = 16;
  constexpr uint8_t kMagic[] = {0x1f, 0x8b, 8};
  for (size_t i = 0; i < std::min(bytes.size(), sizeof(kMagic)); ++i) {
    if (bytes[i] != kMagic[i]) return absl::InvalidArgumentError("no gzip header");
  }
  const std::optional<size_t> more;
  if (bytes.size() < 10) return more;
  const uint8_t flags = bytes[3];
  if ((flags & ~(1 | kHeaderCrc | kExtra | kName | kComment)) != 0) {
    return absl::InvalidArgumentError("gzip header with flags that mean nothing");
  }
  size_t at = 10;
  if ((flags & kExtra) != 0) {
    if (bytes.size() < at + 2) return more;
    at += 2 + static_cast<size_t>(bytes[at] | bytes[at + 1] << 8);
  }
  for (const uint8_t text : {kName, kComment}) {
    if ((flags & text) == 0) continue;
    if (at >= bytes.size()) return more;
    const auto end = std::find(bytes.begin() + static_cast<ptrdiff_t>(at), bytes.end(), uint8_t{0});
    if (end == bytes.end()) {
      if (bytes.size() > kMaxHeaderBytes) return absl::InvalidArgumentError("gzip header is too long");
      return more;
    }
    at = static_cast<size_t>(end - bytes.begin()) + 1;
  }
  if ((flags & kHeaderCrc) != 0) {
    if (bytes.size() < at + 2) return more;
    const uint32_t crc = crc32_gzip_refl(0, bytes.data(), at);
    if ((crc & 0xffff) != static_cast<uint32_t>(bytes[at] | bytes[at + 1] << 8)) {
      return absl::InvalidArgumentError("gzip header does not match its checksum");
    }
    at += 2;
  }
  if (bytes.size() < at) return more;
  return std::optional<size_t>(at);
}

// Finds out which bytes of a checkpoint's window are really referred to, so that the others need not be kept.
// Deflate copies bytes without looking at them: decoding the same data with two made-up windows, whose bytes
// differ from the true ones by a number that tells their position, shows for every byte that comes out where
// it is from. Only the first 32 KiB of output can refer to the window.
class GzipDecoder::WindowCutter {
 public:
  WindowCutter(Bytes window, unsigned bit, Bytes first_bits)
      : window_(window.begin(), window.end()), bit_(bit) {
    input_.assign(first_bits.begin(), first_bits.end());
  }

  bool wants_more() const { return output_.size() < kWindowBytes && input_.size() < kMaxCutterInput; }
  void AddInput(Bytes bytes) {
    const size_t room = kMaxCutterInput - std::min(kMaxCutterInput, input_.size());
    const Bytes taken = bytes.first(std::min(bytes.size(), room));
    input_.insert(input_.end(), taken.begin(), taken.end());
  }
  void AddOutput(Bytes bytes) {
    const Bytes taken = bytes.first(std::min(bytes.size(), kWindowBytes - output_.size()));
    output_.insert(output_.end(), taken.begin(), taken.end());
  }

  // The window with unused bytes zeroed and cut off in front. `complete`: what has been added is all there
  // is.
  std::vector<uint8_t> Finish(bool complete) {
    if ((!complete && output_.size() < kWindowBytes) || input_.empty()) return std::move(window_);
    const std::optional<std::vector<uint8_t>> low =
        Decode([](size_t i) { return static_cast<uint8_t>(i & 0xff); });
    const std::optional<std::vector<uint8_t>> high =
        Decode([](size_t i) { return static_cast<uint8_t>(0x80 | i >> 8); });
    if (!low || !high) return std::move(window_);
    std::vector<bool> used(window_.size());
    size_t first = window_.size();
    for (size_t i = 0; i < output_.size(); ++i) {
      const uint8_t mark = (*high)[i] ^ output_[i];
      if ((mark & 0x80) == 0) continue;
      const size_t position = static_cast<size_t>(mark & 0x7f) << 8 | ((*low)[i] ^ output_[i]);
      if (position >= window_.size()) return std::move(window_);
      used[position] = true;
      first = std::min(first, position);
    }
    for (size_t i = 0; i < window_.size(); ++i) {
      if (!used[i]) window_[i] = 0;
    }
    return std::vector<uint8_t>(window_.begin() + static_cast<ptrdiff_t>(first), window_.end());
  }

 private:
  template <typename Mark>
  std::optional<std::vector<uint8_t>> Decode(Mark mark) const {
    std::vector<uint8_t> window = window_;
    for (size_t i = 0; i < window.size(); ++i) window[i] ^= mark(i);
    std::vector<uint8_t> out(output_.size());
    std::unique_ptr<inflate_state> state = NewInflate();
    Restart(state.get(), window, static_cast<uint64_t>(input_[0]) >> bit_, static_cast<int32_t>(8 - bit_));
    state->next_in = const_cast<uint8_t*>(input_.data()) + 1;
    state->avail_in = static_cast<uint32_t>(input_.size() - 1);
    state->next_out = out.data();
    state->avail_out = static_cast<uint32_t>(out.size());
    if (isal_inflate(state.get()) != ISAL_DECOMP_OK || state->avail_out != 0) return std::nullopt;
    return out;
  }

  std::vector<uint8_t> window_;
  const unsigned bit_;  // of input_[0]
  std::vector<uint8_t> input_;
  std::vector<uint8_t> output_;
};

GzipDecoder::GzipDecoder(uint64_t spacing, uint64_t checkpoints_per_spacing)
    : inflate_(NewInflate()),
      buffer_(kWindowBytes + kOutputBytes),
      checkpoints_per_spacing_(checkpoints_per_spacing),
      spacing_(std::clamp<uint64_t>(spacing, kWindowBytes, kMaxSpacing)) {}

GzipDecoder::~GzipDecoder() = default;

absl::Status GzipDecoder::Bad(absl::string_view why) const {
  return absl::InvalidArgumentError(absl::StrCat("gzip stream, near byte ", blob_offset_, ": ", why));
}

absl::Status GzipDecoder::Feed(Bytes bytes, DataSink data, CheckpointSink checkpoint) {
  // A body may still have output when its input is used up, so it is asked once more.
  for (bool more = true; more;) {
    switch (state_) {
      case State::kHeader:
        RETURN_IF_ERROR(TakeHeader(&bytes, checkpoint));
        break;
      case State::kBody:
        RETURN_IF_ERROR(TakeBody(&bytes, data, checkpoint));
        break;
      case State::kTrailer:
        RETURN_IF_ERROR(TakeTrailer(&bytes));
        break;
    }
    more = !bytes.empty() || (state_ == State::kTrailer && pending_.size() >= kTrailerBytes);
  }
  return absl::OkStatus();
}

absl::Status GzipDecoder::Finish() {
  FinishWindow();
  if (state_ != State::kHeader || !pending_.empty()) return Bad("it ends inside a member");
  if (members_ == 0) return Bad("it is empty");
  return absl::OkStatus();
}

absl::Status GzipDecoder::TakeHeader(Bytes* bytes, CheckpointSink checkpoint) {
  if (bytes->empty()) return absl::OkStatus();
  // Small steps, so that a header that comes in many pieces is not parsed too often, nor much copied.
  const size_t before = pending_.size();
  const size_t taken = std::min(bytes->size(), std::max<size_t>(64, before));
  pending_.append(reinterpret_cast<const char*>(bytes->data()), taken);
  absl::StatusOr<std::optional<size_t>> size =
      ParseGzipHeader({reinterpret_cast<const uint8_t*>(pending_.data()), pending_.size()});
  if (!size.ok()) {
    return Bad(members_ == 0 ? size.status().message()
                             : absl::string_view("what follows the last member is no gzip member"));
  }
  if (!size->has_value()) {
    if (pending_.size() > kMaxHeaderBytes) return Bad("gzip header is too long");
    bytes->remove_prefix(taken);
    blob_offset_ += taken;
    return absl::OkStatus();
  }
  const size_t used = **size - before;
  bytes->remove_prefix(used);
  blob_offset_ += used;
  pending_.clear();
  state_ = State::kBody;
  ++members_;
  Restart(inflate_.get(), {}, 0, 0);
  window_ = 0;
  crc_ = 0;
  member_bytes_ = 0;
  stopping_ = false;
  if (checkpoints_.empty() || data_offset_ - checkpoints_.back().data_offset >= spacing_) {
    AddCheckpoint(blob_offset_ * 8, checkpoint);
  }
  return absl::OkStatus();
}

absl::Status GzipDecoder::TakeBody(Bytes* bytes, DataSink data, CheckpointSink checkpoint) {
  inflate_state& state = *inflate_;
  for (;;) {
    const uint64_t since = data_offset_ - checkpoints_.back().data_offset;
    if (since >= spacing_ && !stopping_ &&
        (state.block_state == ISAL_BLOCK_CODED || state.block_state == ISAL_BLOCK_TYPE0)) {
      stopping_ = true;
      last_block_ = state.bfinal != 0;
      state.bfinal = 1;
    }
    const size_t step = std::min(bytes->size(), kMaxInputStep);
    state.next_in = const_cast<uint8_t*>(bytes->data());
    state.avail_in = static_cast<uint32_t>(step);
    state.next_out = buffer_.data() + window_;
    // Not far beyond the place from which on a checkpoint is wanted.
    const size_t room = since < spacing_ ? std::min<uint64_t>(kOutputBytes, spacing_ - since) : kOutputBytes;
    state.avail_out = static_cast<uint32_t>(room);
    // After an error its counters mean nothing.
    if (const int result = isal_inflate(&state); result != ISAL_DECOMP_OK) return Bad(InflateError(result));
    const size_t used = step - state.avail_in, made = room - state.avail_out;
    if (cutter_ != nullptr) cutter_->AddInput(bytes->first(used));
    bytes->remove_prefix(used);
    blob_offset_ += used;

    const Bytes output(buffer_.data() + window_, made);
    if (made > 0) {
      crc_ = crc32_gzip_refl(crc_, output.data(), made);
      member_bytes_ += made;
      data_offset_ += made;
      if (cutter_ != nullptr) cutter_->AddOutput(output);
      if (cutter_ != nullptr && !cutter_->wants_more()) FinishWindow();
      RETURN_IF_ERROR(data(output));
      const size_t filled = window_ + made;
      window_ = std::min(filled, kWindowBytes);
      if (filled > window_) std::memmove(buffer_.data(), buffer_.data() + filled - window_, window_);
    }
    if (state.block_state == ISAL_BLOCK_FINISH) {
      if (!stopping_ || last_block_) {
        EndMember();
        return absl::OkStatus();
      }
      stopping_ = false;
      const uint64_t bits = state.read_in;
      const int32_t bit_count = state.read_in_length;
      AddCheckpoint(blob_offset_ * 8 - static_cast<uint64_t>(bit_count), checkpoint);
      Restart(&state, {buffer_.data(), window_}, bits, bit_count);
      continue;
    }
    if (made == 0 && used == 0) {
      return bytes->empty() ? absl::OkStatus() : Bad("the decoder does not get on");
    }
  }
}

void GzipDecoder::EndMember() {
  pending_ = UnusedBytes(*inflate_);
  state_ = State::kTrailer;
  FinishWindow();
}

absl::Status GzipDecoder::TakeTrailer(Bytes* bytes) {
  const size_t taken = std::min(bytes->size(), kTrailerBytes - std::min(kTrailerBytes, pending_.size()));
  pending_.append(reinterpret_cast<const char*>(bytes->data()), taken);
  bytes->remove_prefix(taken);
  blob_offset_ += taken;
  if (pending_.size() < kTrailerBytes) return absl::OkStatus();
  if (LittleEndian32(pending_) != crc_) return Bad("the data does not match the member's CRC");
  if (LittleEndian32(absl::string_view(pending_).substr(4)) != (member_bytes_ & 0xffffffff)) {
    return Bad("the data does not have the member's length");
  }
  pending_.clear();
  state_ = State::kHeader;
  return absl::OkStatus();
}

void GzipDecoder::AddCheckpoint(uint64_t bit, CheckpointSink checkpoint) {
  FinishWindow();
  GzipCheckpoint added;
  added.bit_offset = bit;
  added.data_offset = data_offset_;
  added.window_size = static_cast<uint32_t>(window_);
  checkpoints_.push_back(added);
  if (checkpoints_.size() % checkpoints_per_spacing_ == 0) spacing_ = std::min(spacing_ * 2, kMaxSpacing);
  if (window_ > 0) {
    // The bits that inflate holds already are the start of the block.
    const int32_t bit_count = inflate_->read_in_length;
    const unsigned first_bit = static_cast<unsigned>(bit % 8);
    std::vector<uint8_t> held;
    uint64_t value = inflate_->read_in;
    if (first_bit != 0) {
      held.push_back(static_cast<uint8_t>(value << first_bit));
      value >>= 8 - first_bit;
    }
    for (size_t i = (static_cast<size_t>(bit_count)) / 8; i > 0; --i, value >>= 8) {
      held.push_back(static_cast<uint8_t>(value));
    }
    cutter_ = std::make_unique<WindowCutter>(Bytes(buffer_.data(), window_), first_bit, held);
  }
  checkpoint(checkpoints_.size() - 1, added);
}

void GzipDecoder::FinishWindow() {
  if (cutter_ == nullptr) return;
  const std::vector<uint8_t> window = cutter_->Finish(state_ == State::kTrailer);
  cutter_ = nullptr;
  checkpoints_.back().window_size = static_cast<uint32_t>(window.size());
  if (!window.empty()) checkpoints_.back().window = CompressPart(window);
}

}  // namespace lazyblob::layer::internal

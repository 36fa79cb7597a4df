#include "exporter/internal/tar_split.h"

#include <array>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::exporter::internal {
namespace {

// Headers are smaller than this; only what follows the end of an archive is cut.
constexpr size_t kMaxRawBytes = 4 << 20;

// CRC-64/ISO, reflected, eight bytes at a time.
using CrcTables = std::array<std::array<uint64_t, 256>, 8>;

constexpr CrcTables MakeCrcTables() {
  constexpr uint64_t kPolynomial = 0xD800000000000000;
  CrcTables tables{};
  for (uint64_t i = 0; i < 256; ++i) {
    uint64_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][i] = crc;
  }
  for (size_t i = 0; i < 256; ++i) {
    for (size_t k = 1; k < 8; ++k) {
      const uint64_t before = tables[k - 1][i];
      tables[k][i] = tables[0][before & 0xff] ^ (before >> 8);
    }
  }
  return tables;
}

constexpr CrcTables kCrc = MakeCrcTables();

uint64_t UpdateCrc(uint64_t crc, absl::Span<const uint8_t> bytes) {
  crc = ~crc;
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    for (size_t k = 0; k < 8; ++k) crc ^= uint64_t{bytes[i + k]} << (8 * k);
    uint64_t next = 0;
    for (size_t k = 0; k < 8; ++k) next ^= kCrc[7 - k][(crc >> (8 * k)) & 0xff];
    crc = next;
  }
  for (; i < bytes.size(); ++i) crc = kCrc[0][(crc ^ bytes[i]) & 0xff] ^ (crc >> 8);
  return ~crc;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TarSplit>> TarSplit::Create() {
  std::unique_ptr<TarSplit> split(new TarSplit());
  ASSIGN_OR_RETURN(split->encoder_, Encoder::Create(Codec::kZstd, 0, &split->output_));
  return split;
}

absl::Status TarSplit::Keep(absl::Span<const uint8_t> bytes) {
  compressed_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return absl::OkStatus();
}

absl::Status TarSplit::WriteLine(absl::string_view fields, absl::string_view payload) {
  const std::string line =
      absl::StrCat("{", fields, ",\"payload\":", payload, ",\"position\":", position_, "}\n");
  ++position_;
  size_ += line.size();
  return encoder_->Write({reinterpret_cast<const uint8_t*>(line.data()), line.size()});
}

absl::Status TarSplit::FlushRaw() {
  const std::string payload = absl::StrCat("\"", absl::Base64Escape(raw_), "\"");
  raw_.clear();
  return WriteLine("\"type\":2", payload);
}

absl::Status TarSplit::Raw(absl::Span<const uint8_t> bytes) {
  raw_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return raw_.size() > kMaxRawBytes ? FlushRaw() : absl::OkStatus();
}

absl::Status TarSplit::BeginFile(absl::string_view name, uint64_t size) {
  RETURN_IF_ERROR(FlushRaw());
  file_ = absl::StrCat("\"type\":1,\"name\":", nlohmann::json(std::string(name)).dump());
  has_contents_ = size > 0;
  if (has_contents_) absl::StrAppend(&file_, ",\"size\":", size);
  crc_ = 0;
  return absl::OkStatus();
}

void TarSplit::Contents(absl::Span<const uint8_t> bytes) { crc_ = UpdateCrc(crc_, bytes); }

absl::Status TarSplit::EndFile() {
  if (!has_contents_) return WriteLine(file_, "null");
  char sum[8];
  for (int i = 0; i < 8; ++i) sum[i] = static_cast<char>(crc_ >> (8 * (7 - i)));
  return WriteLine(file_, absl::StrCat("\"", absl::Base64Escape({sum, sizeof(sum)}), "\""));
}

absl::StatusOr<TarSplit::Result> TarSplit::Finish() {
  if (!raw_.empty()) RETURN_IF_ERROR(FlushRaw());
  RETURN_IF_ERROR(encoder_->EndFrame());
  return Result{std::move(compressed_), output_.Digest(), size_};
}

}  // namespace lazyblob::exporter::internal

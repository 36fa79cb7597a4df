// Finds, reads and verifies the TOC at the end of a blob.

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/status.h"
#include "layer/internal/gzip_codec.h"
#include "layer/internal/tar_header.h"
#include "layer/internal/toc.h"
#include "layer/internal/zstd_codec.h"

namespace lazyblob::layer::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

constexpr uint64_t kStargzFooter = 51;
constexpr uint64_t kLegacyFooter = 47;
constexpr uint64_t kExternalFooter = 46;
constexpr absl::string_view kTocName = "stargz.index.json";
// Read at once with the footer, so that most TOCs cost one request.
constexpr uint64_t kTailBytes = 256 << 10;
constexpr uint64_t kSkippableHeader = 8;

absl::string_view Text(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

absl::Status NoToc(absl::string_view why) { return absl::FailedPreconditionError(std::string(why)); }

// The end of a blob, of which more can be read.
class Tail {
 public:
  Tail(uint64_t blob_size, BlobReader read) : blob_size_(blob_size), start_(blob_size), read_(read) {}

  // The bytes [offset, offset + size), which end within the blob.
  absl::StatusOr<Bytes> Get(uint64_t offset, uint64_t size) {
    if (offset < start_) {
      std::vector<uint8_t> more(start_ - offset);
      RETURN_IF_ERROR(read_(offset, absl::MakeSpan(more)));
      more.insert(more.end(), bytes_.begin(), bytes_.end());
      bytes_ = std::move(more);
      start_ = offset;
    }
    return Bytes(bytes_).subspan(offset - start_, size);
  }
  uint64_t blob_size() const { return blob_size_; }

 private:
  const uint64_t blob_size_;
  uint64_t start_;
  std::vector<uint8_t> bytes_;
  BlobReader read_;
};

struct Footer {
  uint64_t toc_offset = 0;
  uint64_t size = 0;
  bool external = false;  // the TOC lies in another image
};

// An empty gzip member whose extra field is `extra`: header, the field, an empty stored block, zero CRC and
// size.
bool IsEmptyMember(Bytes footer, absl::string_view extra) {
  if (footer.size() != 12 + extra.size() + 13) return false;
  return footer[0] == 0x1f && footer[1] == 0x8b && footer[2] == 8 && footer[3] == 4 &&
         footer[10] == extra.size() && footer[11] == 0 && Text(footer.subspan(12, extra.size())) == extra;
}

absl::StatusOr<Footer> ParseStargzFooter(Bytes tail) {
  const auto last = [tail](uint64_t size) {
    return tail.size() < size ? Bytes() : tail.subspan(tail.size() - size);
  };
  for (const uint64_t size : {kStargzFooter, kLegacyFooter}) {
    const Bytes footer = last(size);
    if (footer.empty()) continue;
    const uint64_t field = size == kStargzFooter ? 16 : 12;
    const absl::string_view digits = Text(footer.subspan(field, 16));
    std::string extra = absl::StrCat(digits, "STARGZ");
    if (size == kStargzFooter) extra = absl::StrCat(absl::string_view("SG\x16\0", 4), extra);
    uint64_t offset = 0;
    if (!IsEmptyMember(footer, extra)) continue;
    if (digits.find_first_not_of("0123456789abcdef") != absl::string_view::npos ||
        !absl::SimpleHexAtoi(digits, &offset)) {
      return absl::InvalidArgumentError("the eStargz footer's offset is malformed");
    }
    return Footer{offset, size, false};
  }
  if (IsEmptyMember(last(kExternalFooter),
                    absl::StrCat(absl::string_view("SG\x11\0", 4), "STARGZEXTERNALTOC"))) {
    return Footer{0, kExternalFooter, true};
  }
  return NoToc("the blob has no eStargz footer");
}

// Appends to a text that may not outgrow `limit`.
absl::Status AppendBounded(Bytes bytes, uint64_t limit, std::string* out) {
  if (bytes.size() > limit - std::min<uint64_t>(limit, out->size())) {
    return absl::FailedPreconditionError(absl::StrCat("it is larger than ", limit, " bytes"));
  }
  out->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return absl::OkStatus();
}

absl::Status CheckDigest(const base::Digest& wanted, absl::string_view bytes, absl::string_view what) {
  if (wanted.empty()) return absl::OkStatus();
  base::Hasher hasher(wanted.algorithm());
  hasher.Update(bytes);
  const base::Digest found = hasher.Finish();
  if (found == wanted) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("its ", what, " has digest ", found.ToString(),
                                          ", but the manifest names ", wanted.ToString()));
}

// `compressed` is gzip of a tar of one member and the end-of-archive blocks. Sets header and text of `toc`.
absl::Status DecodeTocMember(Bytes compressed, const BuildLimits& limits, Toc* toc) {
  std::string tar;
  GzipDecoder decoder(uint64_t{1} << 40);  // no checkpoints wanted
  const uint64_t limit = limits.max_toc_bytes + (64 << 10);
  absl::Status decoded = decoder.Feed(
      compressed, [&](Bytes bytes) { return AppendBounded(bytes, limit, &tar); },
      [](uint64_t, const GzipCheckpoint&) {});
  if (decoded.ok()) decoded = decoder.Finish();
  RETURN_IF_ERROR(decoded);
  if (tar.size() < kTarBlockBytes) return absl::InvalidArgumentError("it is not a tar member");
  toc->tar_header = tar.substr(0, kTarBlockBytes);
  ASSIGN_OR_RETURN(const TarHeader header,
                   ParseTarHeader({reinterpret_cast<const uint8_t*>(tar.data()), kTarBlockBytes}));
  if (header.name != kTocName || header.type != '0' || header.size < 0 ||
      static_cast<uint64_t>(header.size) > tar.size() - kTarBlockBytes) {
    return absl::InvalidArgumentError("it is not the tar member stargz.index.json");
  }
  tar.resize(kTarBlockBytes + static_cast<uint64_t>(header.size));
  tar.erase(0, kTarBlockBytes);
  toc->json = std::move(tar);
  return absl::OkStatus();
}

// A tag led to it, which anybody may have moved since: one that is not the right one says nothing of the
// layer.
absl::StatusOr<Toc> ReadExternal(const TocNames& names, uint64_t payload_end, const ExternalToc& external,
                                 const BuildLimits& limits) {
  if (external == nullptr) return NoToc("it lies in another image, and nobody knows which");
  absl::StatusOr<std::string> blob = external();
  if (absl::IsCancelled(blob.status()) || absl::IsDeadlineExceeded(blob.status())) return blob.status();
  if (!blob.ok()) return NoToc(absl::StrCat("it lies in another image: ", blob.status().message()));
  if (blob->size() > kMaxCompressedTocBytes) return NoToc("it is larger than 256 MiB compressed");
  Toc toc;
  absl::Status status =
      DecodeTocMember({reinterpret_cast<const uint8_t*>(blob->data()), blob->size()}, limits, &toc);
  if (status.ok()) status = CheckDigest(names.json_digest, toc.json, "text");
  if (!status.ok())
    return NoToc(absl::StrCat("the one in the other image is not its own: ", status.message()));
  toc.payload_end = payload_end;
  toc.tar_header.clear();
  return toc;
}

absl::StatusOr<Toc> ReadStargz(const TocNames& names, Tail* tail, const ExternalToc& external,
                               const BuildLimits& limits) {
  const uint64_t blob_size = tail->blob_size();
  const uint64_t first = std::min(blob_size, kTailBytes);
  ASSIGN_OR_RETURN(const Bytes end, tail->Get(blob_size - first, first));
  ASSIGN_OR_RETURN(const Footer footer, ParseStargzFooter(end));
  if (footer.external) return ReadExternal(names, blob_size - footer.size, external, limits);
  if (footer.toc_offset >= blob_size - footer.size) {
    return absl::InvalidArgumentError("the eStargz footer points outside the blob");
  }
  Toc toc;
  toc.payload_end = footer.toc_offset;
  toc.member_offset = footer.toc_offset;
  toc.member_size = blob_size - footer.size - footer.toc_offset;
  if (toc.member_size > kMaxCompressedTocBytes) return NoToc("it is larger than 256 MiB compressed");
  ASSIGN_OR_RETURN(const Bytes compressed, tail->Get(toc.member_offset, toc.member_size));
  RETURN_IF_ERROR(DecodeTocMember(compressed, limits, &toc));
  RETURN_IF_ERROR(CheckDigest(names.json_digest, toc.json, "text"));
  return toc;
}

// Where the footer of a zstd:chunked blob says that the TOC lies: a skippable frame of 40 or 64 bytes.
absl::StatusOr<TocNames::Position> ParseChunkedFooter(Tail* tail) {
  const uint64_t blob_size = tail->blob_size();
  const uint64_t first = std::min(blob_size, kTailBytes);
  ASSIGN_OR_RETURN(const Bytes end, tail->Get(blob_size - first, first));
  auto word = [](Bytes bytes, uint64_t at) {
    uint64_t value;
    std::memcpy(&value, bytes.data() + at, sizeof(value));
    return value;
  };
  for (const uint64_t size : {40, 64}) {
    if (end.size() < size + kSkippableHeader) continue;
    const Bytes frame = end.subspan(end.size() - size - kSkippableHeader);
    const uint64_t frame_header = 0x184D2A50 | size << 32;
    const absl::string_view magic = Text(frame.subspan(size));
    if (word(frame, 0) != frame_header || (magic != "GnUlInUx" && magic != "GNUlInUx")) continue;
    if (word(frame, kSkippableHeader + 24) != 1) return NoToc("it is of an unknown type");
    return TocNames::Position{word(frame, kSkippableHeader), word(frame, kSkippableHeader + 8),
                              word(frame, kSkippableHeader + 16)};
  }
  return NoToc("the blob has no zstd:chunked footer");
}

absl::StatusOr<Toc> ReadChunked(const TocNames& names, BlobReader read, Tail* tail,
                                const BuildLimits& limits) {
  TocNames::Position position;
  if (names.position.has_value()) {
    position = *names.position;
  } else {
    ASSIGN_OR_RETURN(position, ParseChunkedFooter(tail));
  }
  if (position.compressed_size > kMaxCompressedTocBytes || position.size > limits.max_toc_bytes) {
    return NoToc("it is larger than supported");
  }
  if (position.offset < kSkippableHeader || position.compressed_size == 0 ||
      !base::RangeWithin(position.offset, position.compressed_size, tail->blob_size())) {
    return absl::InvalidArgumentError("its position is outside the blob");
  }
  std::vector<uint8_t> compressed(position.compressed_size);
  RETURN_IF_ERROR(read(position.offset, absl::MakeSpan(compressed)));
  const absl::Status compressed_check =
      CheckDigest(names.compressed_digest, Text(compressed), "compressed form");
  if (names.json_digest.empty()) {
    RETURN_IF_ERROR(compressed_check);
  }
  Toc toc;
  toc.payload_end = position.offset - kSkippableHeader;
  ZstdDecoder decoder(kMaxZstdWindow);  // containers/storage asks for more than data ever needs
  absl::Status decoded = decoder.Feed(
      compressed, [&](Bytes bytes) { return AppendBounded(bytes, position.size, &toc.json); },
      [](uint64_t) {});
  if (decoded.ok()) decoded = decoder.Finish();
  RETURN_IF_ERROR(decoded);
  const absl::Status json_check = CheckDigest(names.json_digest, toc.json, "text");
  if (!names.compressed_digest.empty() && compressed_check.ok() != json_check.ok()) {
    return NoToc("its annotations name two different ones");
  }
  RETURN_IF_ERROR(compressed_check);
  RETURN_IF_ERROR(json_check);
  if (toc.json.size() != position.size) return absl::InvalidArgumentError("it does not have the size stated");
  return toc;
}

}  // namespace

absl::StatusOr<Toc> ReadToc(Format format, const oci::Descriptor& layer, const TocNames& names,
                            BlobReader read, const ExternalToc& external, const BuildLimits& limits) {
  Tail tail(layer.size, read);
  return format == Format::kEstargz ? ReadStargz(names, &tail, external, limits)
                                    : ReadChunked(names, read, &tail, limits);
}

}  // namespace lazyblob::layer::internal

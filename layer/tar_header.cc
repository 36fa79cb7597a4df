#include "layer/internal/tar_header.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "base/status.h"

namespace lazyblob::layer::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

// Field positions: POSIX ustar; the GNU ones overlay the prefix.
constexpr size_t kNameEnd = 100, kModeAt = 100, kUidAt = 108, kGidAt = 116, kSizeAt = 124, kMtimeAt = 136;
constexpr size_t kChecksumAt = 148, kTypeAt = 156, kLinkAt = 157, kMagicAt = 257;
constexpr size_t kMajorAt = 329, kMinorAt = 337, kPrefixAt = 345;
constexpr size_t kGnuAtimeAt = 345, kGnuCtimeAt = 357, kGnuSparseAt = 386, kGnuExtendedAt = 482,
                 kGnuRealSizeAt = 483;
constexpr size_t kSparseEntryBytes = 24, kOldSparseEntries = 4, kExtensionEntries = 21,
                 kExtensionFlagAt = 504;

enum class Dialect { kV7, kUstar, kStar, kGnu };

// Bytes up to the first NUL.
std::string Text(Bytes field) {
  const auto end = std::find(field.begin(), field.end(), uint8_t{0});
  return std::string(field.begin(), end);
}

std::optional<int64_t> ParseBase256(Bytes field) {
  const bool negative = (field[0] & 0x40) != 0;
  uint64_t value = 0;
  for (size_t i = 0; i < field.size(); ++i) {
    uint8_t byte = negative ? static_cast<uint8_t>(~field[i]) : field[i];
    if (i == 0) byte &= 0x7f;
    if ((value >> 56) != 0) return std::nullopt;
    value = value << 8 | byte;
  }
  if ((value >> 63) != 0) return std::nullopt;
  return negative ? ~static_cast<int64_t>(value) : static_cast<int64_t>(value);
}

std::optional<int64_t> ParseOctal(Bytes field) {
  const auto is_filler = [](uint8_t c) { return c == ' ' || c == 0; };
  while (!field.empty() && is_filler(field.front())) field.remove_prefix(1);
  while (!field.empty() && is_filler(field.back())) field.remove_suffix(1);
  uint64_t value = 0;
  for (const uint8_t c : field) {
    if (c == 0) break;
    if (c < '0' || c > '7') return std::nullopt;
    if ((value >> 60) != 0) return std::nullopt;
    value = value << 3 | static_cast<uint64_t>(c - '0');
  }
  return static_cast<int64_t>(value);
}

bool ChecksumMatches(Bytes block) {
  const std::optional<int64_t> wanted = ParseOctal(block.subspan(kChecksumAt, 8));
  if (!wanted) return false;
  int64_t as_unsigned = 0, as_signed = 0;
  for (size_t i = 0; i < block.size(); ++i) {
    const uint8_t byte = i >= kChecksumAt && i < kChecksumAt + 8 ? uint8_t{' '} : block[i];
    as_unsigned += byte;
    as_signed += static_cast<int8_t>(byte);
  }
  return *wanted == as_unsigned || *wanted == as_signed;
}

Dialect DialectOf(Bytes block) {
  const absl::string_view magic(reinterpret_cast<const char*>(block.data()) + kMagicAt, 8);
  const absl::string_view trailer(reinterpret_cast<const char*>(block.data()) + 508, 4);
  if (magic == absl::string_view("ustar  \0", 8)) return Dialect::kGnu;
  if (magic.substr(0, 6) == absl::string_view("ustar\0", 6)) {
    return trailer == absl::string_view("tar\0", 4) ? Dialect::kStar : Dialect::kUstar;
  }
  return Dialect::kV7;
}

bool IsAscii(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

// What stands before the name and a slash.
std::string PrefixOf(Bytes block, Dialect dialect) {
  if (dialect == Dialect::kUstar) return Text(block.subspan(kPrefixAt, 155));
  if (dialect == Dialect::kStar) return Text(block.subspan(kPrefixAt, 131));
  if (dialect != Dialect::kGnu) return "";
  // Some writers marked headers with a prefix as GNU ones, which have times there: told apart by what is not
  // a time.
  const auto is_time = [&](size_t at) {
    return block[at] == 0 || ParseTarNumber(block.subspan(at, 12)).has_value();
  };
  if (is_time(kGnuAtimeAt) && is_time(kGnuCtimeAt)) return "";
  std::string prefix = Text(block.subspan(kPrefixAt, 155));
  return IsAscii(prefix) ? prefix : "";
}

// Reads entries until one whose offset field is empty.
absl::Status ParseSparseEntries(Bytes entries, std::vector<SparsePiece>* pieces) {
  for (; entries.size() >= kSparseEntryBytes; entries.remove_prefix(kSparseEntryBytes)) {
    if (entries[0] == 0) return absl::OkStatus();
    const std::optional<int64_t> offset = ParseTarNumber(entries.subspan(0, 12));
    const std::optional<int64_t> length = ParseTarNumber(entries.subspan(12, 12));
    if (!offset || !length || *offset < 0 || *length < 0) {
      return absl::InvalidArgumentError("bad number in the sparse map");
    }
    pieces->push_back({static_cast<uint64_t>(*offset), static_cast<uint64_t>(*length)});
  }
  return absl::OkStatus();
}

absl::Status AddPaxRecord(absl::string_view key, absl::string_view value, PaxRecords* out) {
  const bool names_something = key == "path" || key == "linkpath" || key == "uname" || key == "gname";
  if (key.empty() || absl::StrContains(names_something ? value : key, '\0')) {
    return absl::InvalidArgumentError("bad record in the extended header");
  }
  if (key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes") {
    const bool wants_offset = out->sparse_numbers.size() % 2 == 0;
    if (wants_offset != (key == "GNU.sparse.offset")) {
      return absl::InvalidArgumentError("sparse map in the extended header is out of order");
    }
    out->sparse_numbers.emplace_back(value);
    return absl::OkStatus();
  }
  out->values.emplace_back(std::string(key), std::string(value));
  return absl::OkStatus();
}

}  // namespace

std::optional<int64_t> ParseTarNumber(Bytes field) {
  if (!field.empty() && (field[0] & 0x80) != 0) return ParseBase256(field);
  return ParseOctal(field);
}

absl::StatusOr<TarHeader> ParseTarHeader(Bytes block) {
  if (block.size() != kTarBlockBytes) return absl::InvalidArgumentError("a header has 512 bytes");
  if (!ChecksumMatches(block)) return absl::InvalidArgumentError("bad checksum: not a tar header");
  const Dialect dialect = DialectOf(block);
  TarHeader header;
  header.gnu = dialect == Dialect::kGnu;
  header.type = static_cast<char>(block[kTypeAt]);
  header.name = Text(block.first(kNameEnd));
  header.link_name = Text(block.subspan(kLinkAt, 100));
  if (const std::string prefix = PrefixOf(block, dialect); !prefix.empty())
    header.name = prefix + "/" + header.name;

  const auto read = [&](size_t at, size_t size, int64_t* out) {
    const std::optional<int64_t> number = ParseTarNumber(block.subspan(at, size));
    if (number) *out = *number;
    return number.has_value();
  };
  const bool has_devices = dialect != Dialect::kV7;
  if (!read(kModeAt, 8, &header.mode) || !read(kUidAt, 8, &header.uid) || !read(kGidAt, 8, &header.gid) ||
      !read(kSizeAt, 12, &header.size) || !read(kMtimeAt, 12, &header.mtime) ||
      (has_devices &&
       (!read(kMajorAt, 8, &header.device_major) || !read(kMinorAt, 8, &header.device_minor)))) {
    return absl::InvalidArgumentError("a number in the header is malformed or too large (entry \"" +
                                      base::Printable(header.name) + "\")");
  }
  return header;
}

absl::StatusOr<OldSparseHeader> ParseOldSparseHeader(Bytes block) {
  OldSparseHeader out;
  RETURN_IF_ERROR(
      ParseSparseEntries(block.subspan(kGnuSparseAt, kOldSparseEntries * kSparseEntryBytes), &out.pieces));
  const std::optional<int64_t> real_size = ParseTarNumber(block.subspan(kGnuRealSizeAt, 12));
  if (!real_size || *real_size < 0) return absl::InvalidArgumentError("bad real size of a sparse file");
  out.real_size = static_cast<uint64_t>(*real_size);
  out.extended = block[kGnuExtendedAt] != 0;
  return out;
}

absl::StatusOr<bool> ParseOldSparseExtension(Bytes block, std::vector<SparsePiece>* pieces) {
  RETURN_IF_ERROR(ParseSparseEntries(block.first(kExtensionEntries * kSparseEntryBytes), pieces));
  return block[kExtensionFlagAt] != 0;
}

absl::string_view PaxRecords::Find(absl::string_view key) const {
  for (auto it = values.rbegin(); it != values.rend(); ++it) {
    if (it->first == key) return it->second;
  }
  return "";
}

absl::StatusOr<PaxRecords> ParsePax(absl::string_view text) {
  // "<length> <key>=<value>\n", the length counting all of it.
  PaxRecords out;
  while (!text.empty()) {
    const size_t space = text.substr(0, 20).find(' ');
    uint64_t length = 0;
    if (space == absl::string_view::npos || space == 0 || text[0] < '0' || text[0] > '9' ||
        !absl::SimpleAtoi(text.substr(0, space), &length) || length < space + 3 || length > text.size() ||
        text[length - 1] != '\n') {
      return absl::InvalidArgumentError("malformed record in the extended header");
    }
    const absl::string_view record = text.substr(space + 1, length - space - 2);
    text.remove_prefix(length);
    const size_t equals = record.find('=');
    if (equals == absl::string_view::npos) {
      return absl::InvalidArgumentError("record without \"=\" in the extended header");
    }
    RETURN_IF_ERROR(AddPaxRecord(record.substr(0, equals), record.substr(equals + 1), &out));
  }
  return out;
}

std::optional<int64_t> ParseDecimal(absl::string_view text) {
  const absl::string_view digits =
      !text.empty() && (text[0] == '-' || text[0] == '+') ? text.substr(1) : text;
  if (digits.empty() || digits.find_first_not_of("0123456789") != absl::string_view::npos)
    return std::nullopt;
  int64_t value = 0;
  if (!absl::SimpleAtoi(text[0] == '+' ? digits : text, &value)) return std::nullopt;
  return value;
}

std::optional<PaxTime> ParsePaxTime(absl::string_view text) {
  const size_t dot = text.find('.');
  const absl::string_view whole = text.substr(0, dot);
  const std::optional<int64_t> seconds = ParseDecimal(whole);
  if (!seconds) return std::nullopt;
  PaxTime time{*seconds, 0};
  if (dot == absl::string_view::npos) return time;
  const absl::string_view fraction = text.substr(dot + 1);
  uint32_t scale = 100'000'000;
  for (const char c : fraction) {
    if (c < '0' || c > '9') return std::nullopt;
    time.nanoseconds += static_cast<uint32_t>(c - '0') * scale;
    scale /= 10;
  }
  if (whole[0] == '-' && time.nanoseconds != 0) {
    if (time.seconds == std::numeric_limits<int64_t>::min()) return std::nullopt;
    --time.seconds;
    time.nanoseconds = 1'000'000'000 - time.nanoseconds;
  }
  return time;
}

PaxTime BoundTime(PaxTime time) {
  constexpr int64_t kMaxNanoseconds = std::numeric_limits<int64_t>::max();
  constexpr PaxTime kLast{kMaxNanoseconds / 1'000'000'000,
                          static_cast<uint32_t>(kMaxNanoseconds % 1'000'000'000)};
  const bool too_late =
      time.seconds > kLast.seconds || (time.seconds == kLast.seconds && time.nanoseconds > kLast.nanoseconds);
  return time.seconds < 0 || too_late ? PaxTime{} : time;
}

}  // namespace lazyblob::layer::internal

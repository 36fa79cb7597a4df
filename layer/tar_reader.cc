#include "layer/internal/tar_reader.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/checked.h"
#include "base/status.h"

namespace lazyblob::layer::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

constexpr uint64_t kMaxSpecialBytes = 1 << 20;  // of one extended header, long name or sparse map
constexpr int64_t kMaxId = 0xfffffffe;          // 2^32-1 means "no owner" to the kernel
constexpr int64_t kMaxMajor = 0xfff;
constexpr int64_t kMaxMinor = 0xfffff;
constexpr absl::string_view kXattrPrefix = "SCHILY.xattr.";

uint64_t PaddingOf(uint64_t bytes) { return (kTarBlockBytes - bytes % kTarBlockBytes) % kTarBlockBytes; }

bool IsZero(Bytes bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

std::optional<EntryType> TypeOf(char type, absl::string_view name) {
  switch (type) {
    case '\0':
      return absl::EndsWith(name, "/") ? EntryType::kDirectory : EntryType::kRegular;
    case '0':
    case 'S':
      return EntryType::kRegular;
    case '1':
      return EntryType::kHardLink;
    case '2':
      return EntryType::kSymlink;
    case '3':
      return EntryType::kCharDevice;
    case '4':
      return EntryType::kBlockDevice;
    case '5':
      return EntryType::kDirectory;
    case '6':
      return EntryType::kFifo;
    default:
      return std::nullopt;
  }
}

// Numbers of a sparse map as pairs.
absl::StatusOr<std::vector<SparsePiece>> PairUp(const std::vector<absl::string_view>& numbers) {
  if (numbers.size() % 2 != 0) return absl::InvalidArgumentError("sparse map has an odd number of numbers");
  std::vector<SparsePiece> pieces;
  pieces.reserve(numbers.size() / 2);
  for (size_t i = 0; i < numbers.size(); i += 2) {
    const std::optional<int64_t> offset = ParseDecimal(numbers[i]), length = ParseDecimal(numbers[i + 1]);
    if (!offset || !length || *offset < 0 || *length < 0) {
      return absl::InvalidArgumentError("bad number in the sparse map");
    }
    pieces.push_back({static_cast<uint64_t>(*offset), static_cast<uint64_t>(*length)});
  }
  return pieces;
}

}  // namespace

absl::Status TarReader::Bad(absl::string_view why) const {
  const std::string name = entry_.path.empty() ? "" : absl::StrCat(" \"", base::Printable(entry_.path), "\"");
  return absl::InvalidArgumentError(
      absl::StrCat("tar entry", name, " at offset ", header_offset_, ": ", why));
}

bool TarReader::FillBlock(Bytes* bytes) {
  const size_t taken = std::min(bytes->size(), kTarBlockBytes - block_used_);
  std::memcpy(block_ + block_used_, bytes->data(), taken);
  bytes->remove_prefix(taken);
  block_used_ += taken;
  offset_ += taken;
  if (block_used_ < kTarBlockBytes) return false;
  block_used_ = 0;
  return true;
}

absl::Status TarReader::Feed(Bytes bytes, EntrySink on_entry, PaddingSink on_padding) {
  while (!bytes.empty()) {
    switch (state_) {
      case State::kHeader:
      case State::kSecondZero:
        if (block_used_ == 0) header_offset_ = offset_;
        if (FillBlock(&bytes)) RETURN_IF_ERROR(TakeHeader(on_entry));
        break;
      case State::kSpecial: {
        const size_t taken = std::min<uint64_t>(bytes.size(), remaining_);
        special_.append(reinterpret_cast<const char*>(bytes.data()), taken);
        bytes.remove_prefix(taken);
        offset_ += taken;
        remaining_ -= taken;
        if (remaining_ == 0) RETURN_IF_ERROR(TakeSpecial());
        break;
      }
      case State::kOldSparse: {
        if (!FillBlock(&bytes)) break;
        old_sparse_bytes_ += kTarBlockBytes;
        if (old_sparse_bytes_ > kMaxSpecialBytes) return Bad("sparse map is larger than 1 MiB");
        absl::StatusOr<bool> more = ParseOldSparseExtension(block_, &pieces_);
        if (!more.ok()) return Bad(more.status().message());
        if (!*more) RETURN_IF_ERROR(EmitEntry(on_entry));
        break;
      }
      case State::kSparseMap:
        if (FillBlock(&bytes)) RETURN_IF_ERROR(TakeSparseMapBlock(on_entry));
        break;
      case State::kData: {
        const uint64_t taken = std::min<uint64_t>(bytes.size(), remaining_);
        bytes.remove_prefix(taken);
        offset_ += taken;
        remaining_ -= taken;
        if (remaining_ == 0) {
          remaining_ = padding_;
          state_ = remaining_ == 0 ? State::kHeader : State::kPadding;
        }
        break;
      }
      case State::kPadding:
        TakePadding(&bytes, on_padding);
        break;
      case State::kEnd:
        offset_ += bytes.size();
        return absl::OkStatus();
    }
  }
  return absl::OkStatus();
}

void TarReader::TakePadding(Bytes* bytes, PaddingSink on_padding) {
  const size_t taken = std::min<uint64_t>(bytes->size(), remaining_);
  if (!IsZero(bytes->first(taken))) on_padding({offset_, taken});
  bytes->remove_prefix(taken);
  offset_ += taken;
  remaining_ -= taken;
  if (remaining_ == 0) state_ = State::kHeader;
}

absl::Status TarReader::Finish() const {
  const bool between_entries = special_type_ == 0;
  if (state_ == State::kEnd || (state_ == State::kSecondZero && block_used_ == 0) ||
      (state_ == State::kHeader && block_used_ == 0 && between_entries)) {
    return absl::OkStatus();
  }
  return Bad("the archive ends inside it");
}

absl::Status TarReader::TakeHeader(EntrySink on_entry) {
  const bool zero = IsZero(block_);
  if (state_ == State::kSecondZero) {
    if (!zero) return Bad("a single zero block is followed by something else");
    archive_end_ = offset_ - 2 * kTarBlockBytes;
    state_ = State::kEnd;
    return absl::OkStatus();
  }
  if (special_type_ == 0) entry_ = Entry();  // Bad() names the entry that a special header was about
  if (zero) {
    if (special_type_ != 0) return Bad("the archive ends after an extended header");
    state_ = State::kSecondZero;
    return absl::OkStatus();
  }
  absl::StatusOr<TarHeader> header = ParseTarHeader(block_);
  if (!header.ok()) return Bad(header.status().message());
  switch (header->type) {
    case 'x':
    case 'g':
    case 'L':
    case 'K':
      if (header->size < 0 || static_cast<uint64_t>(header->size) > kMaxSpecialBytes) {
        return Bad("extended header or long name is larger than 1 MiB");
      }
      special_type_ = header->type;
      special_.clear();
      remaining_ = static_cast<uint64_t>(header->size);
      padding_ = PaddingOf(remaining_);
      state_ = State::kSpecial;
      return remaining_ == 0 ? TakeSpecial() : absl::OkStatus();
    default:
      return TakeEntryHeader(*header, on_entry);
  }
}

absl::Status TarReader::TakeSpecial() {
  const auto text = [&] { return special_.substr(0, special_.find('\0')); };
  switch (special_type_) {
    case 'x': {
      absl::StatusOr<PaxRecords> records = ParsePax(special_);
      if (!records.ok()) return Bad(records.status().message());
      pax_ = *std::move(records);
      entry_.path = std::string(pax_.Find("path"));
      break;
    }
    case 'g':
      if (absl::StatusOr<PaxRecords> records = ParsePax(special_); !records.ok()) {
        return Bad(records.status().message());
      }
      // Stands alone: it forgets what came before it, and does not wait for an entry.
      special_type_ = 0;
      pax_ = PaxRecords();
      long_name_.clear();
      long_link_.clear();
      break;
    case 'L':
      long_name_ = text();
      entry_.path = long_name_;
      break;
    default:
      long_link_ = text();
  }
  special_.clear();
  remaining_ = padding_;
  state_ = remaining_ == 0 ? State::kHeader : State::kPadding;
  return absl::OkStatus();
}

absl::Status TarReader::ApplyPax(TarHeader* header) {
  const auto text = [&](absl::string_view key, std::string* out) {
    if (const absl::string_view value = pax_.Find(key); !value.empty()) *out = std::string(value);
  };
  const auto number = [&](absl::string_view key, int64_t* out) {
    const absl::string_view value = pax_.Find(key);
    if (value.empty()) return true;  // the header's own value stays
    const std::optional<int64_t> parsed = ParseDecimal(value);
    if (parsed) *out = *parsed;
    return parsed.has_value();
  };
  text("path", &header->name);
  text("linkpath", &header->link_name);
  PaxTime time{header->mtime, 0};
  if (const absl::string_view value = pax_.Find("mtime"); !value.empty()) {
    const std::optional<PaxTime> parsed = ParsePaxTime(value);
    if (!parsed) return Bad("bad mtime in the extended header");
    time = *parsed;
  }
  if (!number("uid", &header->uid) || !number("gid", &header->gid) || !number("size", &header->size)) {
    return Bad("bad uid, gid or size in the extended header");
  }
  time = BoundTime(time);
  entry_.mtime_seconds = time.seconds;
  entry_.mtime_nanoseconds = time.nanoseconds;
  return absl::OkStatus();
}

absl::Status TarReader::ApplyXattrs() {
  std::map<std::string, std::string> xattrs;
  for (auto& [key, value] : pax_.values) {
    absl::string_view name = key;
    if (!absl::ConsumePrefix(&name, kXattrPrefix)) continue;
    if (name.empty() || name.size() > 255)
      return Bad("extended attribute with a name of 0 or over 255 bytes");
    xattrs[std::string(name)] = std::move(value);
  }
  entry_.xattrs.assign(std::make_move_iterator(xattrs.begin()), std::make_move_iterator(xattrs.end()));
  return absl::OkStatus();
}

absl::Status TarReader::TakeEntryHeader(const TarHeader& raw, EntrySink on_entry) {
  TarHeader header = raw;
  entry_ = Entry();
  entry_.path = header.name;
  special_type_ = 0;
  RETURN_IF_ERROR(ApplyPax(&header));
  if (!long_name_.empty()) header.name = std::move(long_name_);
  if (!long_link_.empty()) header.link_name = std::move(long_link_);
  long_name_.clear();
  long_link_.clear();
  entry_.path = header.name;
  const std::optional<EntryType> type = TypeOf(header.type, header.name);
  if (!type)
    return Bad(absl::StrCat("unsupported type ", static_cast<int>(static_cast<uint8_t>(header.type))));
  entry_.type = *type;
  if (header.uid < 0 || header.uid > kMaxId || header.gid < 0 || header.gid > kMaxId) {
    return Bad(absl::StrCat("owner ", header.uid, ":", header.gid, " is out of range"));
  }
  entry_.uid = static_cast<uint32_t>(header.uid);
  entry_.gid = static_cast<uint32_t>(header.gid);
  entry_.mode = static_cast<uint32_t>(header.mode & 07777);
  if (entry_.type == EntryType::kCharDevice || entry_.type == EntryType::kBlockDevice) {
    if (header.device_major < 0 || header.device_major > kMaxMajor || header.device_minor < 0 ||
        header.device_minor > kMaxMinor) {
      return Bad(absl::StrCat("device ", header.device_major, ":", header.device_minor, " is out of range"));
    }
    entry_.device_major = static_cast<uint32_t>(header.device_major);
    entry_.device_minor = static_cast<uint32_t>(header.device_minor);
  }
  if (entry_.type == EntryType::kSymlink || entry_.type == EntryType::kHardLink) {
    entry_.link_target = std::move(header.link_name);
  }
  RETURN_IF_ERROR(ApplyXattrs());

  sparse_ = false;
  pieces_.clear();
  stored_bytes_ = 0;
  if (entry_.type != EntryType::kRegular) {
    pax_ = PaxRecords();
    return EmitEntry(on_entry);  // whatever size it states, no data follows
  }
  if (header.size < 0) return Bad("negative size");
  stored_bytes_ = static_cast<uint64_t>(header.size);
  entry_.size = stored_bytes_;
  if (header.type == 'S') {
    if (!header.gnu) return Bad("sparse file in a header that is not GNU's");
    absl::StatusOr<OldSparseHeader> old = ParseOldSparseHeader(block_);
    if (!old.ok()) return Bad(old.status().message());
    sparse_ = true;
    entry_.size = old->real_size;
    pieces_ = std::move(old->pieces);
    pax_ = PaxRecords();
    old_sparse_bytes_ = 0;
    if (old->extended) {
      state_ = State::kOldSparse;
      return absl::OkStatus();
    }
    return EmitEntry(on_entry);
  }
  bool map_in_data = false;
  RETURN_IF_ERROR(SetUpSparsePax(&map_in_data));
  pax_ = PaxRecords();
  if (map_in_data) {
    sparse_map_.clear();
    sparse_map_lines_ = 0;
    if (stored_bytes_ < kTarBlockBytes) return Bad("the sparse map is missing");
    state_ = State::kSparseMap;
    return absl::OkStatus();
  }
  return EmitEntry(on_entry);
}

absl::Status TarReader::SetUpSparsePax(bool* map_in_data) {
  const absl::string_view major = pax_.Find("GNU.sparse.major"), minor = pax_.Find("GNU.sparse.minor");
  const absl::string_view map = pax_.Find("GNU.sparse.map");
  if (major == "1" && minor == "0") {
    *map_in_data = true;
  } else if (!(major == "0" && (minor == "0" || minor == "1")) &&
             !(major.empty() && minor.empty() && (!map.empty() || !pax_.sparse_numbers.empty()))) {
    return absl::OkStatus();  // not sparse, or of a version nobody knows: stored as it is
  }
  sparse_ = true;
  if (const absl::string_view name = pax_.Find("GNU.sparse.name"); !name.empty())
    entry_.path = std::string(name);
  absl::string_view size = pax_.Find("GNU.sparse.size");
  if (size.empty()) size = pax_.Find("GNU.sparse.realsize");
  if (!size.empty()) {
    const std::optional<int64_t> parsed = ParseDecimal(size);
    if (!parsed || *parsed < 0) return Bad("bad real size of a sparse file");
    entry_.size = static_cast<uint64_t>(*parsed);
  }
  if (*map_in_data) return absl::OkStatus();
  std::vector<absl::string_view> numbers(pax_.sparse_numbers.begin(), pax_.sparse_numbers.end());
  if (numbers.empty() && !map.empty()) numbers = absl::StrSplit(map, ',');
  const std::optional<int64_t> count = ParseDecimal(pax_.Find("GNU.sparse.numblocks"));
  if (!count || *count < 0 || static_cast<uint64_t>(*count) * 2 != numbers.size()) {
    return Bad("the sparse map does not have the stated number of runs");
  }
  absl::StatusOr<std::vector<SparsePiece>> pieces = PairUp(numbers);
  if (!pieces.ok()) return Bad(pieces.status().message());
  pieces_ = *std::move(pieces);
  return absl::OkStatus();
}

absl::Status TarReader::TakeSparseMapBlock(EntrySink on_entry) {
  // "<count>\n", then for each run "<offset>\n<length>\n"; padded to a block.
  const absl::string_view block(reinterpret_cast<const char*>(block_), kTarBlockBytes);
  if (sparse_map_.size() + block.size() > kMaxSpecialBytes) return Bad("sparse map is larger than 1 MiB");
  absl::StrAppend(&sparse_map_, block);
  sparse_map_lines_ += static_cast<uint64_t>(std::count(block.begin(), block.end(), '\n'));
  stored_bytes_ -= kTarBlockBytes;

  uint64_t wanted = 1;
  if (const size_t end = sparse_map_.find('\n'); end != std::string::npos) {
    const std::optional<int64_t> count = ParseDecimal(absl::string_view(sparse_map_).substr(0, end));
    if (!count || *count < 0 || static_cast<uint64_t>(*count) > kMaxSpecialBytes) {
      return Bad("bad number of runs in the sparse map");
    }
    wanted += 2 * static_cast<uint64_t>(*count);
  }
  if (sparse_map_lines_ < wanted) {
    return stored_bytes_ < kTarBlockBytes ? Bad("the sparse map is cut short") : absl::OkStatus();
  }
  std::vector<absl::string_view> lines = absl::StrSplit(sparse_map_, '\n');
  lines.resize(wanted);
  lines.erase(lines.begin());
  absl::StatusOr<std::vector<SparsePiece>> pieces = PairUp(lines);
  if (!pieces.ok()) return Bad(pieces.status().message());
  pieces_ = *std::move(pieces);
  return EmitEntry(on_entry);
}

absl::Status TarReader::SetExtents() {
  if (!sparse_) pieces_ = {{0, entry_.size}};
  uint64_t file_end = 0, used = 0;
  for (const SparsePiece& piece : pieces_) {
    if (piece.offset < file_end || !base::RangeWithin(piece.offset, piece.length, entry_.size)) {
      return Bad("sparse map overlaps itself or the end of the file");
    }
    file_end = piece.offset + piece.length;
    if (piece.length > stored_bytes_ - used) return Bad("sparse map names more bytes than are stored");
    if (piece.length == 0) continue;
    const uint64_t data_offset = offset_ + used;
    used += piece.length;
    if (!entry_.extents.empty() &&
        entry_.extents.back().file_offset + entry_.extents.back().length == piece.offset) {
      entry_.extents.back().length += piece.length;
      continue;
    }
    entry_.extents.push_back({piece.offset, data_offset, piece.length});
  }
  if (used != stored_bytes_) return Bad("more bytes are stored than the sparse map names");
  return absl::OkStatus();
}

absl::Status TarReader::EmitEntry(EntrySink on_entry) {
  uint64_t end;
  if (!base::CheckedAdd(offset_, stored_bytes_, &end) || end > kMaxDataBytes) {
    return Bad(absl::StrCat("size ", stored_bytes_, " goes beyond the limit of 2 TiB per layer"));
  }
  RETURN_IF_ERROR(SetExtents());
  StartData(stored_bytes_);
  std::string path = entry_.path;  // for messages about its data
  absl::Status status = on_entry(std::move(entry_));
  entry_ = Entry();
  entry_.path = std::move(path);
  return status;
}

void TarReader::StartData(uint64_t bytes) {
  remaining_ = bytes;
  padding_ = PaddingOf(bytes);
  state_ = bytes == 0 ? State::kHeader : State::kData;
}

}  // namespace lazyblob::layer::internal

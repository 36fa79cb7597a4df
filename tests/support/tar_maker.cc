#include "tests/support/tar_maker.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lazyblob::support {
namespace {

constexpr size_t kBlock = 512;
using Runs = std::vector<std::pair<uint64_t, uint64_t>>;
using Records = std::vector<std::pair<std::string, std::string>>;

// Field positions of a ustar header.
constexpr size_t kNameAt = 0, kModeAt = 100, kUidAt = 108, kGidAt = 116, kSizeAt = 124, kTimeAt = 136;
constexpr size_t kChecksumAt = 148, kTypeAt = 156, kLinkAt = 157, kMagicAt = 257, kMajorAt = 329,
                 kMinorAt = 337;
constexpr size_t kPrefixAt = 345;
// Of an old GNU sparse header, and of its extension blocks.
constexpr size_t kSparseAt = 386, kSparseCount = 4, kExtendedAt = 482, kRealSizeAt = 483;
constexpr size_t kExtensionCount = 21, kExtensionMoreAt = 504;

void PadToBlock(std::string& bytes) { bytes.resize((bytes.size() + kBlock - 1) / kBlock * kBlock, '\0'); }

void PutText(std::string& header, size_t at, size_t width, absl::string_view text) {
  text = text.substr(0, width);
  std::copy(text.begin(), text.end(), header.begin() + static_cast<ptrdiff_t>(at));
}

bool FitsOctal(int64_t value, size_t width) {
  return value >= 0 && (static_cast<uint64_t>(value) >> (3 * (width - 1))) == 0;
}

void PutNumber(std::string& header, size_t at, size_t width, int64_t value, bool base256) {
  if (FitsOctal(value, width) || !base256) {
    const uint64_t mask = (uint64_t{1} << (3 * (width - 1))) - 1;
    PutText(header, at, width,
            absl::StrFormat("%0*o", static_cast<int>(width - 1), static_cast<uint64_t>(value) & mask));
    return;
  }
  for (size_t i = 0; i < width; ++i) {
    const size_t shift = 8 * (width - 1 - i);
    const int64_t byte = shift >= 64 ? (value < 0 ? 0xff : 0) : ((value >> shift) & 0xff);
    header[at + i] = static_cast<char>(byte);
  }
  header[at] = static_cast<char>(value < 0 ? 0xff : (header[at] | 0x80));
}

// "<length> <key>=<value>\n", where the length counts itself.
std::string PaxRecord(absl::string_view key, absl::string_view value) {
  const size_t rest = key.size() + value.size() + 3;
  size_t length = rest + 1;
  while (absl::StrCat(length).size() + rest != length) ++length;
  return absl::StrCat(length, " ", key, "=", value, "\n");
}

std::string PaxTime(int64_t seconds, uint32_t nanoseconds) {
  if (nanoseconds == 0) return absl::StrCat(seconds);
  // PAX times are decimal fractions: -1.25 is one second and a quarter before the epoch.
  if (seconds >= 0) return absl::StrFormat("%d.%09d", seconds, nanoseconds);
  const int64_t whole = seconds + 1;
  const uint32_t part = 1'000'000'000U - nanoseconds;
  return absl::StrFormat("-%d.%09d", -whole, part);
}

bool IsPlain(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// Splits a long name at a '/' into ustar's prefix and name; false when that is not possible.
bool SplitName(absl::string_view name, absl::string_view* prefix, absl::string_view* rest) {
  if (name.size() <= 100) {
    *prefix = "";
    *rest = name;
    return true;
  }
  for (size_t slash = name.rfind('/', 155); slash != absl::string_view::npos && slash > 0;
       slash = name.rfind('/', slash - 1)) {
    if (name.size() - slash - 1 <= 100 && name.size() - slash - 1 > 0) {
      *prefix = name.substr(0, slash);
      *rest = name.substr(slash + 1);
      return true;
    }
  }
  return false;
}

Records PaxRecordsOf(const TarMember& member, uint64_t stored_size) {
  Records records;
  absl::string_view prefix, rest;
  if (!SplitName(member.name, &prefix, &rest) || !IsPlain(member.name))
    records.emplace_back("path", member.name);
  if (member.link.size() > 100 || !IsPlain(member.link)) records.emplace_back("linkpath", member.link);
  if (!FitsOctal(static_cast<int64_t>(member.uid), 8)) records.emplace_back("uid", absl::StrCat(member.uid));
  if (!FitsOctal(static_cast<int64_t>(member.gid), 8)) records.emplace_back("gid", absl::StrCat(member.gid));
  if (!FitsOctal(static_cast<int64_t>(stored_size), 12))
    records.emplace_back("size", absl::StrCat(stored_size));
  if (!FitsOctal(member.mtime, 12) || member.mtime_nanoseconds != 0) {
    records.emplace_back("mtime", PaxTime(member.mtime, member.mtime_nanoseconds));
  }
  for (const auto& [name, value] : member.xattrs) records.emplace_back("SCHILY.xattr." + name, value);
  records.insert(records.end(), member.pax_records.begin(), member.pax_records.end());
  return records;
}

std::string PaxMember(char type, const Records& records) {
  std::string body;
  for (const auto& [key, value] : records) body += PaxRecord(key, value);
  TarMember member;
  member.name = type == 'g' ? "GlobalHead" : "PaxHeaders/0";
  member.type = type;
  std::string out = TarHeader(member, body.size()) + body;
  PadToBlock(out);
  return out;
}

std::string GnuLongMember(char type, absl::string_view text) {
  TarMember member;
  member.name = "././@LongLink";
  member.type = type;
  member.mtime = 0;
  std::string out = TarHeader(member, text.size() + 1);
  absl::StrAppend(&out, text);
  out.push_back('\0');
  PadToBlock(out);
  return out;
}

// The stored bytes of a sparse file: its runs, one after the other.
std::string StoredRuns(const TarMember& member) {
  std::string stored;
  for (const auto& [offset, length] : member.runs) stored += member.contents.substr(offset, length);
  return stored;
}

// The map ends, as GNU tar writes it, with an empty run at the end of the file when the last run stops short
// of it.
Runs WrittenRuns(const TarMember& member) {
  Runs runs = member.runs;
  if (runs.empty() || runs.back().first + runs.back().second < member.contents.size()) {
    runs.emplace_back(member.contents.size(), 0);
  }
  return runs;
}

std::string OldGnuSparse(const TarMember& member) {
  const std::string stored = StoredRuns(member);
  TarMember header_fields = member;
  header_fields.type = 'S';
  header_fields.dialect = TarDialect::kGnu;
  std::string header = TarHeader(header_fields, stored.size());
  PutNumber(header, kRealSizeAt, 12, static_cast<int64_t>(member.contents.size()), true);
  const Runs runs = WrittenRuns(member);
  const auto put = [](std::string& block, size_t at, const Runs::value_type& run) {
    PutNumber(block, at, 12, static_cast<int64_t>(run.first), true);
    PutNumber(block, at + 12, 12, static_cast<int64_t>(run.second), true);
  };
  size_t next = 0;
  for (; next < runs.size() && next < kSparseCount; ++next) put(header, kSparseAt + 24 * next, runs[next]);
  std::string extensions;
  while (next < runs.size()) {
    if (extensions.empty()) {
      header[kExtendedAt] = 1;
    } else {
      extensions[extensions.size() - kBlock + kExtensionMoreAt] = 1;
    }
    std::string block(kBlock, '\0');
    for (size_t i = 0; i < kExtensionCount && next < runs.size(); ++i, ++next) put(block, 24 * i, runs[next]);
    extensions += block;
  }
  // The header was changed after its checksum had been put.
  std::fill_n(header.begin() + kChecksumAt, 8, ' ');
  uint32_t sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  PutText(header, kChecksumAt, 8, absl::StrFormat("%06o", sum) + std::string(1, '\0') + " ");
  std::string out = header + extensions + stored;
  PadToBlock(out);
  return out;
}

std::string PaxSparse(const TarMember& member) {
  const std::string stored = StoredRuns(member);
  Records records;
  std::string map;
  const Runs runs = WrittenRuns(member);
  TarMember inner = member;
  inner.sparse = SparseStyle::kNone;
  if (member.sparse == SparseStyle::kPax10) {
    map = absl::StrCat(runs.size(), "\n");
    for (const auto& [offset, length] : runs) absl::StrAppend(&map, offset, "\n", length, "\n");
    PadToBlock(map);
    records = {{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", member.name}};
    records.emplace_back("GNU.sparse.realsize", absl::StrCat(member.contents.size()));
    inner.name = "GNUSparseFile.0/sparse";
  } else {
    records.emplace_back("GNU.sparse.size", absl::StrCat(member.contents.size()));
    records.emplace_back("GNU.sparse.numblocks", absl::StrCat(runs.size()));
    std::string list;
    for (const auto& [offset, length] : runs) {
      if (member.sparse == SparseStyle::kPax00) {
        records.emplace_back("GNU.sparse.offset", absl::StrCat(offset));
        records.emplace_back("GNU.sparse.numbytes", absl::StrCat(length));
      }
      absl::StrAppend(&list, list.empty() ? "" : ",", offset, ",", length);
    }
    if (member.sparse == SparseStyle::kPax01) {
      records.emplace_back("GNU.sparse.map", list);
      records.emplace_back("GNU.sparse.name", member.name);
      inner.name = "GNUSparseFile.0/sparse";
    }
  }
  inner.contents = map + stored;
  inner.pax_records.insert(inner.pax_records.begin(), records.begin(), records.end());
  return TarMaker().Add(inner).Unfinished();
}

TarMember Member(std::string name, char type, uint32_t mode) {
  TarMember member;
  member.name = std::move(name);
  member.type = type;
  member.mode = mode;
  return member;
}

}  // namespace

std::string TarHeader(const TarMember& member, uint64_t size) {
  const bool gnu = member.dialect == TarDialect::kGnu;
  std::string header(kBlock, '\0');
  absl::string_view prefix, name = member.name;
  if (gnu || !SplitName(member.name, &prefix, &name)) {
    prefix = "";
    name = absl::string_view(member.name).substr(0, 100);
  }
  PutText(header, kNameAt, 100, name);
  PutNumber(header, kModeAt, 8, member.mode, gnu);
  PutNumber(header, kUidAt, 8, static_cast<int64_t>(member.uid), gnu);
  PutNumber(header, kGidAt, 8, static_cast<int64_t>(member.gid), gnu);
  PutNumber(header, kSizeAt, 12, static_cast<int64_t>(member.claimed_size.value_or(size)), gnu);
  PutNumber(header, kTimeAt, 12, member.mtime, gnu);
  header[kTypeAt] = member.type;
  PutText(header, kLinkAt, 100, member.link);
  PutText(header, kMagicAt, 8, gnu ? absl::string_view("ustar  \0", 8) : absl::string_view("ustar\00000", 8));
  PutNumber(header, kMajorAt, 8, member.device_major, gnu);
  PutNumber(header, kMinorAt, 8, member.device_minor, gnu);
  PutText(header, kPrefixAt, gnu ? 0 : 155, prefix);
  std::fill_n(header.begin() + kChecksumAt, 8, ' ');
  uint32_t sum = member.bad_checksum ? 1 : 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  PutText(header, kChecksumAt, 8, absl::StrFormat("%06o", sum) + std::string(1, '\0') + " ");
  return header;
}

TarMaker& TarMaker::Add(const TarMember& member) {
  if (member.sparse == SparseStyle::kOldGnu) return AddRaw(OldGnuSparse(member));
  if (member.sparse != SparseStyle::kNone) return AddRaw(PaxSparse(member));
  if (member.dialect == TarDialect::kPax) {
    if (const Records records = PaxRecordsOf(member, member.contents.size()); !records.empty()) {
      bytes_ += PaxMember('x', records);
    }
  } else if (member.dialect == TarDialect::kGnu) {
    if (member.link.size() > 100) bytes_ += GnuLongMember('K', member.link);
    if (member.name.size() > 100) bytes_ += GnuLongMember('L', member.name);
  }
  bytes_ += TarHeader(member, member.contents.size());
  bytes_ += member.contents;
  PadToBlock(bytes_);
  return *this;
}

TarMaker& TarMaker::AddRaw(absl::string_view bytes) {
  absl::StrAppend(&bytes_, bytes);
  return *this;
}

TarMaker& TarMaker::AddGlobalPax(const Records& records) { return AddRaw(PaxMember('g', records)); }

std::string TarMaker::Finish(bool padded) const {
  std::string out = bytes_ + std::string(2 * kBlock, '\0');
  if (padded) out.resize((out.size() + 10239) / 10240 * 10240, '\0');
  return out;
}

std::string MakeTar(const std::vector<TarMember>& members) {
  TarMaker maker;
  for (const TarMember& member : members) maker.Add(member);
  return maker.Finish();
}

TarMember File(std::string name, std::string contents, uint32_t mode) {
  TarMember member = Member(std::move(name), '0', mode);
  member.contents = std::move(contents);
  return member;
}

TarMember Directory(std::string name, uint32_t mode) {
  if (name.empty() || name.back() != '/') name.push_back('/');
  return Member(std::move(name), '5', mode);
}

TarMember Symlink(std::string name, std::string target) {
  TarMember member = Member(std::move(name), '2', 0777);
  member.link = std::move(target);
  return member;
}

TarMember HardLink(std::string name, std::string target) {
  TarMember member = Member(std::move(name), '1', 0644);
  member.link = std::move(target);
  return member;
}

TarMember CharDevice(std::string name, uint32_t major, uint32_t minor, uint32_t mode) {
  TarMember member = Member(std::move(name), '3', mode);
  member.device_major = major;
  member.device_minor = minor;
  return member;
}

TarMember BlockDevice(std::string name, uint32_t major, uint32_t minor, uint32_t mode) {
  TarMember member = CharDevice(std::move(name), major, minor, mode);
  member.type = '4';
  return member;
}

TarMember Fifo(std::string name, uint32_t mode) { return Member(std::move(name), '6', mode); }

TarMember Whiteout(absl::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == absl::string_view::npos) return File(absl::StrCat(".wh.", path), "");
  return File(absl::StrCat(path.substr(0, slash + 1), ".wh.", path.substr(slash + 1)), "");
}

TarMember OpaqueMarker(absl::string_view directory) {
  while (!directory.empty() && directory.back() == '/') directory.remove_suffix(1);
  return File(absl::StrCat(directory, directory.empty() ? "" : "/", ".wh..wh..opq"), "");
}

std::string RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::string bytes(size + 8, '\0');
  for (size_t at = 0; at < size; at += 8) {
    const uint64_t value = generator();
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
  bytes.resize(size);
  return bytes;
}

std::string TextBytes(size_t size, uint64_t seed) {
  static constexpr absl::string_view kWords[] = {"layer ", "chunk ", "blob ", "index ", "mount ", "lazy\n"};
  std::mt19937_64 generator(seed);
  std::string bytes;
  bytes.reserve(size + 16);
  while (bytes.size() < size) {
    const absl::string_view word = kWords[generator() % 6];
    bytes.append(word.data(), word.size());
    if (generator() % 8 == 0) bytes += absl::StrCat(generator() % 100000, " ");
  }
  bytes.resize(size);
  return bytes;
}

}  // namespace lazyblob::support

#include "exporter/tar_writer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"

namespace lazyblob::exporter {
namespace {

constexpr size_t kBlock = 512;
constexpr size_t kMaxPaxBytes = 1 << 20;  // what readers of layers take
constexpr char kPaxName[] = "././@PaxHeader";
constexpr char kZeros[2 * kBlock] = {};

// Where the fields of a ustar header are, and how long.
struct Field {
  size_t at;
  size_t size;
};
constexpr Field kName{0, 100}, kMode{100, 8}, kUid{108, 8}, kGid{116, 8}, kSize{124, 12}, kMtime{136, 12},
    kChecksum{148, 8}, kType{156, 1}, kLink{157, 100}, kMagic{257, 8}, kMajor{329, 8}, kMinor{337, 8},
    kPrefix{345, 155};

using Header = std::array<char, kBlock>;
using PaxRecords = std::map<std::string, std::string>;

uint64_t PaddingOf(uint64_t bytes) { return (kBlock - bytes % kBlock) % kBlock; }

void Put(Field field, absl::string_view text, Header* header) {
  std::memcpy(header->data() + field.at, text.data(), std::min(text.size(), field.size));
}

// Octal digits and a NUL; false, and zero, when they do not fit.
bool PutNumber(Field field, uint64_t value, Header* header) {
  const size_t digits = field.size - 1;
  const bool fits = value >> (3 * digits) == 0;
  Put(field, absl::StrFormat("%0*o", static_cast<int>(digits), fits ? value : 0), header);
  return fits;
}

void Seal(Header* header) {
  Put(kMagic,
      absl::string_view("ustar\0"
                        "00",
                        8),
      header);
  Put(kChecksum, "        ", header);
  unsigned sum = 0;
  for (const char byte : *header) sum += static_cast<unsigned char>(byte);
  Put(kChecksum, absl::string_view(absl::StrFormat("%06o", sum) + '\0').substr(0, 7), header);
}

bool IsAscii(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// Puts a path into name and prefix; false when it does not fit.
bool PutPath(absl::string_view path, Header* header) {
  if (path.size() <= kName.size) {
    Put(kName, path, header);
    return true;
  }
  // The last "/" that leaves a prefix short enough; what follows is the name, which may end in "/" itself.
  const size_t slash = path.rfind('/', std::min(kPrefix.size, path.size() - 2));
  if (slash == absl::string_view::npos || slash == 0 || path.size() - slash - 1 > kName.size) return false;
  Put(kPrefix, path.substr(0, slash), header);
  Put(kName, path.substr(slash + 1), header);
  return true;
}

char TypeFlag(layer::EntryType type) {
  switch (type) {
    case layer::EntryType::kHardLink:
      return '1';
    case layer::EntryType::kSymlink:
      return '2';
    case layer::EntryType::kCharDevice:
      return '3';
    case layer::EntryType::kBlockDevice:
      return '4';
    case layer::EntryType::kDirectory:
      return '5';
    case layer::EntryType::kFifo:
      return '6';
    case layer::EntryType::kRegular:
      break;
  }
  return '0';
}

// "[-]seconds[.fraction]", no zero at the end of the fraction.
std::string PaxTime(int64_t seconds, uint32_t nanoseconds) {
  if (nanoseconds == 0) return absl::StrCat(seconds);
  std::string sign;
  uint64_t whole = static_cast<uint64_t>(seconds);
  if (seconds < 0) {  // -1.25 is second -2 and 750'000'000 nanoseconds
    sign = "-";
    whole = ~static_cast<uint64_t>(seconds);  // -(seconds + 1)
    nanoseconds = 1'000'000'000 - nanoseconds;
  }
  std::string fraction = absl::StrFormat("%09u", nanoseconds);
  fraction.erase(fraction.find_last_not_of('0') + 1);
  return absl::StrCat(sign, whole, ".", fraction);
}

// "<length> <key>=<value>\n", the length counting its own digits.
std::string PaxRecord(absl::string_view key, absl::string_view value) {
  const size_t rest = key.size() + value.size() + 3;
  size_t length = rest;
  while (length != rest + absl::StrCat(length).size()) length = rest + absl::StrCat(length).size();
  return absl::StrCat(length, " ", key, "=", value, "\n");
}

absl::Status CheckText(absl::string_view text, absl::string_view what) {
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(what, " is empty"));
  if (absl::StrContains(text, '\0')) return absl::InvalidArgumentError(absl::StrCat("a NUL in ", what));
  return absl::OkStatus();
}

// A text that is a path goes into the header as it is; into a record, when it does not fit there or is not
// ASCII. Bytes that are not UTF-8 are what the header is better at.
bool WantsRecord(absl::string_view text, bool fits) {
  return !fits || (!IsAscii(text) && base::IsUtf8(text));
}

absl::Status MakeHeader(const layer::Entry& entry, Header* header, PaxRecords* pax) {
  RETURN_IF_ERROR(CheckText(entry.path, "its path"));
  const auto text = [&](const char* key, const std::string& value, bool fits) {
    if (!WantsRecord(value, fits)) return;
    (*pax)[key] = value;
    if (!base::IsUtf8(value)) (*pax)["hdrcharset"] = "BINARY";
  };
  const auto number = [&](Field field, const char* key, uint64_t value) {
    if (!PutNumber(field, value, header)) (*pax)[key] = absl::StrCat(value);
  };
  const bool path_fits = PutPath(entry.path, header);
  text("path", entry.path, path_fits);
  if (!path_fits) Put(kName, absl::string_view(entry.path).substr(0, kName.size), header);
  if (entry.type == layer::EntryType::kSymlink || entry.type == layer::EntryType::kHardLink) {
    RETURN_IF_ERROR(CheckText(entry.link_target, "its link target"));
    Put(kLink, entry.link_target, header);
    text("linkpath", entry.link_target, entry.link_target.size() <= kLink.size);
  }
  PutNumber(kMode, entry.mode & 07777, header);
  number(kUid, "uid", entry.uid);
  number(kGid, "gid", entry.gid);
  number(kSize, "size", entry.type == layer::EntryType::kRegular ? entry.size : 0);
  const bool time_fits =
      entry.mtime_seconds >= 0 && PutNumber(kMtime, static_cast<uint64_t>(entry.mtime_seconds), header);
  if (entry.mtime_seconds < 0) PutNumber(kMtime, 0, header);
  if (!time_fits || entry.mtime_nanoseconds != 0) {
    (*pax)["mtime"] = PaxTime(entry.mtime_seconds, entry.mtime_nanoseconds);
  }
  PutNumber(kMajor, entry.device_major, header);
  PutNumber(kMinor, entry.device_minor, header);
  for (const auto& [name, value] : entry.xattrs) {
    RETURN_IF_ERROR(CheckText(name, "the name of an extended attribute"));
    if (absl::StrContains(name, '=')) {
      return absl::InvalidArgumentError(absl::StrCat("its extended attribute \"", base::Printable(name),
                                                     "\" has a \"=\" in its name, which no tar can hold"));
    }
    (*pax)["SCHILY.xattr." + name] = value;
  }
  (*header)[kType.at] = TypeFlag(entry.type);
  Seal(header);
  return absl::OkStatus();
}

Header PaxHeader(uint64_t size) {
  Header header{};
  Put(kName, kPaxName, &header);
  PutNumber(kMode, 0644, &header);
  for (const Field field : {kUid, kGid, kMtime, kMajor, kMinor}) PutNumber(field, 0, &header);
  PutNumber(kSize, size, &header);
  header[kType.at] = 'x';
  Seal(&header);
  return header;
}

}  // namespace

absl::Status TarWriter::Write(absl::string_view bytes) {
  written_ += bytes.size();
  return sink_({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

absl::Status TarWriter::EndEntry() {
  if (remaining_ > 0) {
    return absl::FailedPreconditionError(absl::StrCat("tar entry ", base::Printable(path_), ": ", remaining_,
                                                      " bytes of its data are missing"));
  }
  const uint64_t padding = std::exchange(padding_, 0);
  return padding == 0 ? absl::OkStatus() : Write({kZeros, padding});
}

absl::Status TarWriter::Begin(const layer::Entry& entry) {
  RETURN_IF_ERROR(EndEntry());
  path_ = entry.path;
  Header header{};
  PaxRecords pax;
  const absl::Status status = MakeHeader(entry, &header, &pax);
  if (!status.ok()) return base::Annotate(status, absl::StrCat("tar entry ", base::Printable(path_)));
  if (!pax.empty()) {
    std::string records;
    for (const auto& [key, value] : pax) records += PaxRecord(key, value);
    if (records.size() > kMaxPaxBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tar entry ", base::Printable(path_), ": its names and extended attributes take more than 1 MiB"));
    }
    const Header extension = PaxHeader(records.size());
    records.append(PaddingOf(records.size()), '\0');
    RETURN_IF_ERROR(Write(absl::StrCat(absl::string_view(extension.data(), kBlock), records)));
  }
  if (entry.type == layer::EntryType::kRegular) {
    remaining_ = entry.size;
    padding_ = PaddingOf(entry.size);
  }
  return Write({header.data(), kBlock});
}

absl::Status TarWriter::Data(absl::Span<const uint8_t> bytes) {
  if (bytes.size() > remaining_) {
    return absl::FailedPreconditionError(
        absl::StrCat("tar entry ", base::Printable(path_), ": more data than its size says"));
  }
  remaining_ -= bytes.size();
  written_ += bytes.size();
  return sink_(bytes);
}

absl::Status TarWriter::Finish() {
  RETURN_IF_ERROR(EndEntry());
  return Write({kZeros, sizeof(kZeros)});
}

}  // namespace lazyblob::exporter

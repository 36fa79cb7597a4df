// The JSON of a TOC, streamed: a million entries must not become a million JSON objects. nlohmann's SAX
// parser (no recursion, no exceptions) checks syntax and UTF-8.

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "layer/internal/toc.h"

namespace lazyblob::layer::internal {
namespace {

constexpr int kMaxSkippedDepth = 64;
// What JSON writers put in place of bytes that are not UTF-8: the name in the layer is not known then.
constexpr absl::string_view kReplacement = "\xef\xbf\xbd";

struct TextField {
  const char* key;
  std::string TocEntry::* member;
};
constexpr TextField kTextFields[] = {
    {"name", &TocEntry::name},           {"type", &TocEntry::type},
    {"linkName", &TocEntry::link_name},  {"modtime", &TocEntry::modtime},
    {"digest", &TocEntry::digest},       {"chunkDigest", &TocEntry::chunk_digest},
    {"chunkType", &TocEntry::chunk_type}};

struct NumberField {
  const char* key;
  uint64_t TocEntry::* member;
};
constexpr NumberField kNumberFields[] = {
    {"size", &TocEntry::size},
    {"mode", &TocEntry::mode},
    {"uid", &TocEntry::uid},
    {"gid", &TocEntry::gid},
    {"devMajor", &TocEntry::device_major},
    {"devMinor", &TocEntry::device_minor},
    {"offset", &TocEntry::offset},
    {"innerOffset", &TocEntry::inner_offset},
    {"endOffset", &TocEntry::end_offset},
    {"chunkOffset", &TocEntry::chunk_offset},
    {"chunkSize", &TocEntry::chunk_size},
};
constexpr uint32_t kNumberBits = 16;  // where numbers start in the set of fields seen
constexpr uint32_t kXattrsBit = uint32_t{1} << 31;

class Handler : public nlohmann::json_sax<nlohmann::json> {
 public:
  Handler(uint64_t max_entries, absl::FunctionRef<absl::Status(TocEntry)> sink)
      : max_entries_(max_entries), sink_(sink) {}

  absl::Status Result() const {
    if (!status_.ok()) return status_;
    if (!has_version_ || !has_entries_) return absl::InvalidArgumentError("it has no version or no entries");
    return absl::OkStatus();
  }

  bool null() override {
    return skip_ > 0 || (where_ != Where::kStart && where_ != Where::kEntries) || Odd();
  }
  bool boolean(bool) override { return Scalar(); }
  bool number_float(double, const std::string&) override { return Scalar(); }
  bool binary(nlohmann::json::binary_t&) override { return Odd(); }
  bool number_integer(int64_t value) override {
    if (skip_ == 0 && where_ == Where::kEntry && FindNumber() != nullptr) {
      return value < 0 ? Fail(absl::StrCat(key_, " is negative"))
                       : number_unsigned(static_cast<uint64_t>(value));
    }
    return Scalar();
  }
  bool number_unsigned(uint64_t value) override {
    if (skip_ > 0) return true;
    if (where_ == Where::kRoot && key_ == "version") {
      if (value == 1) return true;
      status_ = absl::FailedPreconditionError(absl::StrCat("it is of version ", value, ", not 1"));
      return false;
    }
    if (where_ == Where::kEntry) {
      if (const NumberField* field = FindNumber(); field != nullptr) {
        entry_.*(field->member) = value;
        return true;
      }
    }
    return Scalar();
  }
  bool string(std::string& value) override;

  bool start_object(size_t) override {
    if (skip_ > 0) return Deeper();
    switch (where_) {
      case Where::kStart:
        where_ = Where::kRoot;
        return true;
      case Where::kRoot:
        return key_ == "version" || key_ == "entries" ? Odd() : Deeper();
      case Where::kEntries:
        if (++count_ > max_entries_) {
          status_ = absl::ResourceExhaustedError(absl::StrCat("it has more than ", max_entries_, " entries"));
          return false;
        }
        entry_ = TocEntry();
        seen_ = 0;
        where_ = Where::kEntry;
        return true;
      case Where::kEntry:
        if (key_ != "xattrs") return Known() ? Odd() : Deeper();
        where_ = Where::kXattrs;
        return true;
      case Where::kXattrs:
        break;
    }
    return Odd();
  }
  bool end_object() override {
    if (skip_ > 0) {
      --skip_;
      return true;
    }
    if (where_ == Where::kXattrs) {
      where_ = Where::kEntry;
      return true;
    }
    if (where_ != Where::kEntry) return true;
    where_ = Where::kEntries;
    status_ = sink_(std::move(entry_));
    return status_.ok();
  }
  bool start_array(size_t) override {
    if (skip_ > 0) return Deeper();
    if (where_ == Where::kRoot && key_ == "entries") {
      where_ = Where::kEntries;
      return true;
    }
    if (where_ == Where::kRoot && key_ != "version") return Deeper();
    if (where_ == Where::kEntry && !Known()) return Deeper();
    return Odd();
  }
  bool end_array() override {
    if (skip_ > 0) {
      --skip_;
    } else {
      where_ = Where::kRoot;
    }
    return true;
  }
  bool key(std::string& value) override;
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat("it is not JSON (at byte ", position, ")"));
    }
    return false;
  }

 private:
  enum class Where { kStart, kRoot, kEntries, kEntry, kXattrs };

  bool Fail(absl::string_view why) {
    std::string which;
    if (where_ == Where::kEntry || where_ == Where::kXattrs) {
      which = absl::StrCat("entry ", count_, " (\"", base::Printable(entry_.name.substr(0, 512)), "\"): ");
    }
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(which, why));
    return false;
  }
  bool Odd() {
    return Fail(absl::StrCat("\"", base::Printable(key_.substr(0, 100)), "\" is of the wrong type"));
  }
  // A value that is none of those we know.
  bool Scalar() {
    if (skip_ > 0) return true;
    if (where_ == Where::kRoot) return key_ == "version" || key_ == "entries" ? Odd() : true;
    if (where_ == Where::kEntry) return Known() ? Odd() : true;
    return Odd();
  }
  bool Deeper() { return ++skip_ <= kMaxSkippedDepth || Fail("it is nested too deeply"); }
  const NumberField* FindNumber() const {
    for (const NumberField& field : kNumberFields) {
      if (key_ == field.key) return &field;
    }
    return nullptr;
  }
  // The key's bit in the set of fields seen; 0: not one of ours.
  uint32_t Bit() const {
    for (size_t i = 0; i < std::size(kTextFields); ++i) {
      if (key_ == kTextFields[i].key) return uint32_t{1} << i;
    }
    for (size_t i = 0; i < std::size(kNumberFields); ++i) {
      if (key_ == kNumberFields[i].key) return uint32_t{1} << (i + kNumberBits);
    }
    return key_ == "xattrs" ? kXattrsBit : 0;
  }
  bool Known() const { return Bit() != 0; }

  const uint64_t max_entries_;
  absl::FunctionRef<absl::Status(TocEntry)> sink_;
  absl::Status status_;
  Where where_ = Where::kStart;
  int skip_ = 0;  // open containers of a value that we do not know
  bool has_version_ = false;
  bool has_entries_ = false;
  uint64_t count_ = 0;
  uint32_t seen_ = 0;
  std::string key_;
  TocEntry entry_;
};

bool Handler::string(std::string& value) {
  if (skip_ > 0) return true;
  if (where_ == Where::kXattrs) {
    std::string decoded;
    if (!absl::Base64Unescape(value, &decoded)) return Fail("an extended attribute is not base64");
    entry_.xattrs.emplace_back(key_, std::move(decoded));
    return true;
  }
  if (where_ != Where::kEntry) return Scalar();
  for (const TextField& field : kTextFields) {
    if (key_ != field.key) continue;
    if (absl::StrContains(value, kReplacement)) {
      status_ = absl::FailedPreconditionError(absl::StrCat("entry ", count_, " (\"",
                                                           base::Printable(value.substr(0, 512)),
                                                           "\") lost bytes that are not UTF-8"));
      return false;
    }
    entry_.*(field.member) = std::move(value);
    return true;
  }
  return Scalar();
}

bool Handler::key(std::string& value) {
  key_ = std::move(value);
  if (skip_ > 0) return true;
  if (where_ == Where::kRoot && (key_ == "version" || key_ == "entries")) {
    bool& has = key_ == "version" ? has_version_ : has_entries_;
    if (has) return Fail(absl::StrCat("it has two ", key_));
    has = true;
  }
  if (where_ == Where::kEntry) {
    const uint32_t bit = Bit();
    if ((seen_ & bit) != 0) return Fail(absl::StrCat("it has two ", key_));
    seen_ |= bit;
  }
  if (where_ == Where::kXattrs) {
    if (absl::StrContains(key_, kReplacement)) return Fail("an extended attribute's name is not UTF-8");
    for (const auto& [name, unused] : entry_.xattrs) {
      if (name == key_) return Fail("it has an extended attribute twice");
    }
  }
  return true;
}

}  // namespace

absl::Status ParseToc(absl::string_view json, uint64_t max_entries,
                      absl::FunctionRef<absl::Status(TocEntry)> sink) {
  Handler handler(max_entries, sink);
  nlohmann::json::sax_parse(json.begin(), json.end(), &handler);
  return handler.Result();
}

std::optional<TocTime> ParseTocTime(absl::string_view text) {
  if (text.size() < 20 || text.size() > 64) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i) {  // absl is more generous than RFC 3339
    const bool digit = text[i] >= '0' && text[i] <= '9';
    const absl::string_view shape = "dddd-dd-ddTdd:dd:dd";
    if (i < shape.size() ? (shape[i] == 'd' ? !digit : text[i] != shape[i])
                         : !digit && absl::string_view(".+-:Z").find(text[i]) == absl::string_view::npos) {
      return std::nullopt;
    }
  }
  absl::Time time;
  std::string error;
  if (!absl::ParseTime(absl::RFC3339_full, text, &time, &error)) return std::nullopt;
  const timespec parts = absl::ToTimespec(time);
  return TocTime{parts.tv_sec, static_cast<uint32_t>(parts.tv_nsec)};
}

}  // namespace lazyblob::layer::internal

#include "exporter/internal/toc_text.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace lazyblob::exporter::internal {
namespace {

const char* TypeName(layer::EntryType type) {
  switch (type) {
    case layer::EntryType::kRegular:
      return "reg";
    case layer::EntryType::kDirectory:
      return "dir";
    case layer::EntryType::kSymlink:
      return "symlink";
    case layer::EntryType::kHardLink:
      return "hardlink";
    case layer::EntryType::kCharDevice:
      return "char";
    case layer::EntryType::kBlockDevice:
      return "block";
    case layer::EntryType::kFifo:
      return "fifo";
  }
  return "";
}

std::string Quoted(absl::string_view text) { return nlohmann::json(std::string(text)).dump(); }

// RFC 3339 in UTC, with a fraction only where there is one.
std::string TimeText(const layer::Entry& entry) {
  const absl::Time time =
      absl::FromUnixSeconds(entry.mtime_seconds) + absl::Nanoseconds(entry.mtime_nanoseconds);
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E*SZ", time, absl::UTCTimeZone());
}

absl::Status CheckUtf8(const layer::Entry& entry, absl::string_view text, absl::string_view what) {
  if (base::IsUtf8(text)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(base::Printable(entry.path), ": ", what, " (", base::Printable(text),
                   ") is not UTF-8, and a table of contents can hold nothing else; use gzip or zstd"));
}

}  // namespace

void TocText::AppendNumber(const char* key, uint64_t value) {
  if (value != 0) absl::StrAppend(&text_, ",\"", key, "\":", value);
}

void TocText::AppendText(const char* key, absl::string_view value) {
  absl::StrAppend(&text_, ",\"", key, "\":", Quoted(value));
}

void TocText::AppendMetadata(const layer::Entry& entry) {
  absl::StrAppend(&text_, std::exchange(first_, false) ? "" : ",", "{\"type\":\"", TypeName(entry.type),
                  "\"");
  AppendText("name", entry.path);
  if (!entry.link_target.empty()) AppendText("linkName", entry.link_target);
  AppendNumber("mode", entry.mode);
  AppendNumber("size", entry.type == layer::EntryType::kRegular ? entry.size : 0);
  AppendNumber("uid", entry.uid);
  AppendNumber("gid", entry.gid);
  AppendText("modtime", TimeText(entry));
  AppendNumber("devMajor", entry.device_major);
  AppendNumber("devMinor", entry.device_minor);
  if (entry.xattrs.empty()) return;
  absl::string_view separator = ",\"xattrs\":{";
  for (const auto& [name, value] : entry.xattrs) {
    absl::StrAppend(&text_, separator, Quoted(name), ":\"", absl::Base64Escape(value), "\"");
    separator = ",";
  }
  text_ += '}';
}

void TocText::AppendChunk(const TocChunk& chunk, bool several) {
  AppendNumber("offset", chunk.blob_offset);
  AppendNumber("chunkOffset", chunk.file_offset);
  if (several) AppendNumber("chunkSize", chunk.size);
  if (several || dialect_ == Dialect::kEstargz) AppendText("chunkDigest", chunk.digest.ToString());
  if (several && chunk.zeros && dialect_ == Dialect::kZstdChunked) AppendText("chunkType", "zeros");
}

absl::Status TocText::Check(const layer::Entry& entry) {
  RETURN_IF_ERROR(CheckUtf8(entry, entry.path, "its path"));
  RETURN_IF_ERROR(CheckUtf8(entry, entry.link_target, "its link target"));
  for (const auto& [name, value] : entry.xattrs) {
    RETURN_IF_ERROR(CheckUtf8(entry, name, "the name of an extended attribute"));
  }
  return absl::OkStatus();
}

void TocText::Add(const layer::Entry& entry, const base::Digest& digest, const std::vector<TocChunk>& chunks,
                  uint64_t blob_end) {
  AppendMetadata(entry);
  if (!chunks.empty() || (dialect_ == Dialect::kEstargz && entry.type == layer::EntryType::kRegular)) {
    AppendText("digest", digest.ToString());
  }
  const bool several = chunks.size() > 1;
  if (!chunks.empty()) {
    AppendChunk(chunks.front(), several);
    if (dialect_ == Dialect::kZstdChunked) AppendNumber("endOffset", blob_end);
  }
  text_ += '}';
  for (size_t i = 1; i < chunks.size(); ++i) {
    text_ += R"(,{"type":"chunk")";
    AppendText("name", entry.path);
    AppendChunk(chunks[i], several);
    text_ += '}';
  }
}

std::string TocText::Finish(const base::Digest& tar_split) {
  text_ += ']';
  if (!tar_split.empty()) AppendText("tarSplitDigest", tar_split.ToString());
  text_ += '}';
  return std::move(text_);
}

}  // namespace lazyblob::exporter::internal

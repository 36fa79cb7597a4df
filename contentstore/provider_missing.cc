// The small public values of content_store.h.

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"
#include "contentstore/content_store.h"

namespace lazyblob::contentstore {
namespace {

constexpr char kMissingProvidersPayload[] = "lazyblob/missing-providers";

}  // namespace

absl::string_view FetchCauseName(FetchCause cause) {
  switch (cause) {
    case FetchCause::kDemand:
      return "demand";
    case FetchCause::kTracePrefetch:
      return "trace-prefetch";
    case FetchCause::kReadAhead:
      return "read-ahead";
    case FetchCause::kBackground:
      return "background";
    case FetchCause::kIndex:
      return "index";
    case FetchCause::kStream:
      return "stream";
  }
  return "unknown";
}

// The payload holds one line "digest size wanted_by" per missing blob; wanted_by is printable, so without
// newlines.
absl::Status ProviderMissingError(const std::vector<MissingProvider>& missing) {
  const auto describe = [](std::string* out, const MissingProvider& one) {
    absl::StrAppend(out, one.digest.ToString(), " (", one.size, " bytes, wanted by ",
                    base::Printable(one.wanted_by), ")");
  };
  const auto encode = [](std::string* out, const MissingProvider& one) {
    absl::StrAppend(out, one.digest.ToString(), " ", one.size, " ", base::Printable(one.wanted_by));
  };
  absl::Status status = absl::NotFoundError(
      absl::StrCat("no source is known for ", absl::StrJoin(missing, ", ", describe),
                   "; name the image again, or bring it where its sources can be reached"));
  status.SetPayload(kMissingProvidersPayload, absl::Cord(absl::StrJoin(missing, "\n", encode)));
  return status;
}

std::vector<MissingProvider> GetMissingProviders(const absl::Status& status) {
  std::vector<MissingProvider> result;
  const absl::optional<absl::Cord> payload = status.GetPayload(kMissingProvidersPayload);
  if (!payload.has_value()) return result;
  const std::string text(*payload);
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, absl::MaxSplits(' ', 2));
    MissingProvider one;
    if (words.size() != 3 || !absl::SimpleAtoi(words[1], &one.size)) continue;
    absl::StatusOr<base::Digest> digest = base::Digest::Parse(words[0]);
    if (!digest.ok()) continue;
    one.digest = *digest;
    one.wanted_by = std::string(words[2]);
    result.push_back(std::move(one));
  }
  return result;
}

absl::Status PinnedRange::CopyTo(absl::Span<uint8_t> out) const {
  if (out.size() < length_) return absl::InvalidArgumentError("the buffer is smaller than the pinned range");
  if (!in_memory())
    return length_ == 0 ? absl::OkStatus() : base::PreadFull(fd_, offset_, out.first(length_));
  const absl::Span<const uint8_t> bytes = memory();
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return absl::OkStatus();
}

}  // namespace lazyblob::contentstore

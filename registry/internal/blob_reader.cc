#include "registry/internal/blob_reader.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "registry/internal/headers.h"

namespace lazyblob::registry::internal {
namespace {

constexpr uint64_t kWorthwhile = 64 << 10;

}  // namespace

std::string BlobReader::BeginAttempt() {
  if (!noticed_set_) noticed_ = next_;
  noticed_set_ = true;
  skip_ = 0;
  bool whole = next_ == 0 && end_ == blob_size_;
  asked_range_ = ask_for_ranges_ && !whole;
  return asked_range_ ? absl::StrCat("bytes=", next_, "-", end_ - 1) : "";
}

absl::Status BlobReader::CheckPartial(const HttpResponse& response) const {
  if (!asked_range_) return absl::DataLossError("a part was sent although the whole blob was asked for");
  absl::string_view header = response.Get("content-range");
  if (header.empty()) return absl::DataLossError("206 without Content-Range");
  ASSIGN_OR_RETURN(ContentRange got, ParseContentRange(header));
  if (got.first != next_ || got.last != end_ - 1) {
    return absl::DataLossError(absl::StrCat("asked for bytes ", next_, "-", end_ - 1, ", Content-Range says ",
                                            got.first, "-", got.last));
  }
  if (got.total && *got.total != blob_size_) {
    return absl::DataLossError(
        absl::StrCat("Content-Range says the blob has ", *got.total, " bytes, the descriptor ", blob_size_));
  }
  return absl::OkStatus();
}

absl::StatusOr<BodyAction> BlobReader::OnResponse(const HttpResponse& response) {
  uint64_t expected = blob_size_;
  partial_ = response.status == 206;
  if (partial_) {
    RETURN_IF_ERROR(CheckPartial(response));
    expected = end_ - next_;
  } else if (response.status == 200) {
    range_ignored_ = range_ignored_ || asked_range_;
    skip_ = next_;
  } else {
    return absl::DataLossError(absl::StrCat("HTTP ", response.status, " to a read"));
  }
  absl::string_view length = response.Get("content-length");
  if (!length.empty() && ParseDecimal(length) != std::optional<uint64_t>(expected)) {
    return absl::DataLossError(
        absl::StrCat("Content-Length is ", base::Printable(length.substr(0, 24)), ", should be ", expected));
  }
  return BodyAction::kContinue;
}

absl::StatusOr<BodyAction> BlobReader::OnBody(absl::Span<const uint8_t> data) {
  uint64_t skipped = std::min<uint64_t>(skip_, data.size());
  skip_ -= skipped;
  data.remove_prefix(skipped);
  if (data.empty()) return BodyAction::kContinue;
  uint64_t wanted = std::min<uint64_t>(data.size(), end_ - next_);
  if (wanted > 0) {
    absl::Status status = sink_(data.subspan(0, wanted));
    if (!status.ok()) {
      sink_failed_ = true;
      return status;
    }
    next_ += wanted;
  }
  // What follows the end is of no use; a response that ends there by itself leaves the connection usable.
  bool more_to_come = wanted < data.size() || (complete() && !partial_ && end_ < blob_size_);
  return more_to_come ? BodyAction::kStop : BodyAction::kContinue;
}

absl::Status BlobReader::EndAttempt() const {
  if (complete()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the body ended at byte ", next_, ", before ", end_));
}

bool BlobReader::TakeProgress() {
  if (next_ - noticed_ < kWorthwhile) return false;
  noticed_ = next_;
  return true;
}

}  // namespace lazyblob::registry::internal

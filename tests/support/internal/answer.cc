#include "tests/support/internal/answer.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace lazyblob::support::internal {
namespace {

constexpr uint64_t kPiece = 64 << 10;

// The one range that `header` asks for, cut to `size`; false: not one that is honoured.
bool ParseRange(absl::string_view header, uint64_t size, uint64_t* first, uint64_t* end, bool* satisfiable) {
  if (!absl::ConsumePrefix(&header, "bytes=") || absl::StrContains(header, ",")) return false;
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(header, absl::MaxSplits('-', 1));
  uint64_t last = 0;
  if (parts.first.empty()) {
    uint64_t suffix = 0;
    if (!absl::SimpleAtoi(parts.second, &suffix)) return false;
    *first = size - std::min(suffix, size);
    *end = size;
  } else {
    if (!absl::SimpleAtoi(parts.first, first)) return false;
    *end = size;
    if (!parts.second.empty()) {
      if (!absl::SimpleAtoi(parts.second, &last) || last < *first) return false;
      *end = last < size ? last + 1 : size;
    }
  }
  *satisfiable = *first < *end;
  return true;
}

std::string Head(const FaultAction& fault, const Answer& answer, bool close) {
  HeaderList headers = answer.headers;
  if (fault.claim_gzip) SetHeader(&headers, "Content-Encoding", "gzip");
  if (fault.content_range.has_value()) SetHeader(&headers, "Content-Range", *fault.content_range);
  if (fault.chunked) {
    SetHeader(&headers, "Transfer-Encoding", "chunked");
  } else if (!fault.no_content_length && answer.status != 204 && answer.status != 304) {
    SetHeader(&headers, "Content-Length", absl::StrCat(answer.length));
  }
  if (close) SetHeader(&headers, "Connection", "close");
  if (fault.huge_header_bytes > 0) SetHeader(&headers, "X-Huge", std::string(fault.huge_header_bytes, 'h'));
  for (const auto& [name, value] : fault.headers) SetHeader(&headers, name, value);
  std::string head =
      absl::StrCat("HTTP/1.1 ", answer.status, " ", answer.status < 400 ? "OK" : "Error", "\r\n");
  for (const auto& [name, value] : headers) absl::StrAppend(&head, name, ": ", value, "\r\n");
  return head + "\r\n";
}

enum class BodyEnd { kWhole, kReset, kTruncated, kBroken };

// Sends the body piece by piece, looking at every fault that counts its bytes.
BodyEnd SendBody(HttpConnection& connection, const FaultAction& fault, const Answer& answer,
                 const std::function<void(uint64_t)>& on_bytes) {
  const absl::Time start = absl::Now();
  bool gate_passed = fault.body_gate == nullptr;
  uint64_t sent = 0;
  while (true) {
    if (!gate_passed && sent == std::min(fault.body_gate_at, answer.length)) {
      fault.body_gate->Pass();
      gate_passed = true;
    }
    if (fault.reset_at.has_value() && sent == *fault.reset_at) return BodyEnd::kReset;
    if (fault.truncate_at.has_value() && sent == *fault.truncate_at) return BodyEnd::kTruncated;
    if (sent == answer.length) return BodyEnd::kWhole;
    uint64_t end = std::min(answer.length, sent + kPiece);
    if (!gate_passed) end = std::min(end, std::max(fault.body_gate_at, sent + 1));
    if (fault.reset_at.has_value() && *fault.reset_at > sent) end = std::min(end, *fault.reset_at);
    if (fault.truncate_at.has_value() && *fault.truncate_at > sent) end = std::min(end, *fault.truncate_at);
    if (fault.bytes_per_second > 0) {
      end = std::min(end, sent + std::max<uint64_t>(fault.bytes_per_second / 50, 1));
      const double seconds = static_cast<double>(end) / static_cast<double>(fault.bytes_per_second);
      if (!connection.Wait(start + absl::Seconds(seconds) - absl::Now())) return BodyEnd::kBroken;
    }
    std::string piece = answer.body.Read(answer.offset + sent, end - sent);
    if (piece.size() != end - sent) return BodyEnd::kReset;  // the file is not there any more
    if (const auto flip = fault.flip_bit_of_byte;
        flip.has_value() && *flip >= answer.offset + sent && *flip < answer.offset + end) {
      char& byte = piece[*flip - answer.offset - sent];
      byte = static_cast<char>(byte ^ 1);
    }
    on_bytes(piece.size());  // before the client can have them, and look
    const bool ok = fault.chunked ? connection.Send(absl::StrFormat("%x\r\n", piece.size()) + piece + "\r\n")
                                  : connection.Send(piece);
    if (!ok) return BodyEnd::kBroken;
    sent = end;
  }
}

}  // namespace

Answer TextAnswer(int status, std::string body, absl::string_view content_type) {
  Answer answer = WholeAnswer(Bytes::Of(std::move(body)), content_type);
  answer.status = status;
  return answer;
}

Answer ErrorAnswer(int status, absl::string_view code, absl::string_view message) {
  return TextAnswer(status,
                    absl::StrCat(R"({"errors":[{"code":")", code, R"(","message":")", message, "\"}]}\n"));
}

Answer WholeAnswer(Bytes body, absl::string_view content_type) {
  Answer answer;
  answer.length = body.size;
  answer.body = std::move(body);
  answer.headers.emplace_back("Content-Type", std::string(content_type));
  return answer;
}

void SetHeader(HeaderList* headers, absl::string_view name, absl::string_view value) {
  headers->erase(
      std::remove_if(headers->begin(), headers->end(),
                     [&](const auto& header) { return absl::EqualsIgnoreCase(header.first, name); }),
      headers->end());
  if (!value.empty()) headers->emplace_back(std::string(name), std::string(value));
}

void ApplyRange(const HttpRequest& request, const FaultAction& fault, Answer* answer) {
  if (!answer->ranges || answer->status != 200) return;
  SetHeader(&answer->headers, "Accept-Ranges", "bytes");
  const uint64_t size = answer->body.size;
  uint64_t first = 0;
  uint64_t end = size;
  bool satisfiable = true;
  const std::string header = request.Header("range");
  if (!header.empty() && !fault.ignore_range && ParseRange(header, size, &first, &end, &satisfiable)) {
    if (!satisfiable) {
      *answer = TextAnswer(416, "");
      SetHeader(&answer->headers, "Content-Range", absl::StrCat("bytes */", size));
      return;
    }
    if (fault.shift_range.has_value()) {
      first = std::min(first + *fault.shift_range, size - 1);
      end = std::max(std::min(end + *fault.shift_range, size), first + 1);
    }
    answer->status = 206;
  }
  if (fault.cut_range_to.has_value()) end = std::min(end, first + *fault.cut_range_to);
  answer->offset = first;
  answer->length = end - first;
  if (answer->status == 206) {
    SetHeader(&answer->headers, "Content-Range", absl::StrCat("bytes ", first, "-", end - 1, "/", size));
  }
}

SendResult SendAnswer(HttpConnection& connection, const HttpRequest& request, const FaultAction& fault,
                      const Answer& answer, const std::function<void(uint64_t)>& on_bytes) {
  const bool close = fault.close_after || fault.no_content_length || !request.keep_alive;
  if (!connection.Send(Head(fault, answer, close))) return {};
  if (request.method == "HEAD" || answer.status == 204 || answer.status == 304) {
    if (close) connection.CloseCleanly();
    return {true, !close};
  }
  switch (SendBody(connection, fault, answer, on_bytes)) {
    case BodyEnd::kWhole:
      if (fault.chunked && !connection.Send("0\r\n\r\n")) return {};
      if (close) connection.CloseCleanly();
      return {true, !close};
    case BodyEnd::kReset:
      connection.ResetAfterSent();
      return {};
    case BodyEnd::kTruncated:
      connection.CloseCleanly();
      return {};
    case BodyEnd::kBroken:
      return {};
  }
  return {};
}

}  // namespace lazyblob::support::internal

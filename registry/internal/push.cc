#include "registry/internal/push.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "oci/manifest.h"
#include "registry/internal/headers.h"
#include "registry/internal/refusal.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry::internal {
namespace {

constexpr uint64_t kMaxMinChunk = 128 << 20;
// Kept whole in memory, so that they can be sent again.
constexpr uint64_t kSmallBody = 1 << 20;
constexpr uint64_t kMaxAnswerBody = 64 << 10;
constexpr int kMountAttempts = 2;
constexpr absl::Duration kCancelPatience = absl::Seconds(10);
// Of the answer to a request that opens a session, when the call is cancelled meanwhile.
constexpr absl::Duration kOpenPatience = absl::Seconds(2);
// A registry may hash the whole blob again, or copy it to its place, before it answers.
constexpr absl::Duration kCommitPatience = absl::Minutes(5);
constexpr char kOctets[] = "application/octet-stream";

// Keeps the head and drops the body.
class Head final : public ResponseHandler {
 public:
  absl::StatusOr<BodyAction> OnResponse(const HttpResponse& response) override {
    response_ = response;
    dropped_ = 0;
    return BodyAction::kContinue;
  }
  absl::StatusOr<BodyAction> OnBody(absl::Span<const uint8_t> data) override {
    dropped_ += data.size();
    return dropped_ > kMaxAnswerBody ? BodyAction::kStop : BodyAction::kContinue;
  }
  absl::string_view Get(absl::string_view name) const { return response_.Get(name); }

 private:
  HttpResponse response_;
  uint64_t dropped_ = 0;
};

// Bytes that stay where they are.
class SpanBody final : public RequestBody {
 public:
  explicit SpanBody(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}
  explicit SpanBody(absl::string_view text)
      : bytes_(reinterpret_cast<const uint8_t*>(text.data()), text.size()) {}

  uint64_t length() const override { return bytes_.size(); }
  absl::StatusOr<size_t> Read(absl::Span<uint8_t> out) override {
    size_t count = std::min(out.size(), bytes_.size() - next_);
    memcpy(out.data(), bytes_.data() + next_, count);
    next_ += count;
    return count;
  }
  bool Rewind() override {
    next_ = 0;
    return true;
  }

 private:
  const absl::Span<const uint8_t> bytes_;
  size_t next_ = 0;
};

// Bytes that come once.
class StreamBody final : public RequestBody {
 public:
  StreamBody(BodySource source, uint64_t length) : source_(source), length_(length) {}

  uint64_t length() const override { return length_; }
  absl::StatusOr<size_t> Read(absl::Span<uint8_t> out) override {
    absl::StatusOr<size_t> got = source_(out);
    if (!got.ok()) failure_ = got.status();
    touched_ = true;
    return got;
  }
  bool Rewind() override { return !touched_; }
  // What the source failed with.
  const absl::Status& failure() const { return failure_; }

 private:
  const BodySource source_;
  const uint64_t length_;
  bool touched_ = false;
  absl::Status failure_;
};

absl::StatusOr<std::string> ReadAll(BodySource source, uint64_t length) {
  std::string bytes(length, '\0');
  size_t at = 0;
  while (at < bytes.size()) {
    absl::StatusOr<size_t> got = source({reinterpret_cast<uint8_t*>(&bytes[at]), bytes.size() - at});
    if (!got.ok()) return got.status();
    if (*got == 0 || *got > bytes.size() - at) {
      return absl::DataLossError(absl::StrCat("the bytes to send ended after ", at, " of ", length));
    }
    at += *got;
  }
  return bytes;
}

Attempt Broken(absl::Status status, int http) { return {std::move(status), http, false}; }

// A session's URL with `digest` added to whatever query it has.
absl::StatusOr<Url> WithDigest(const Url& session, const base::Digest& digest) {
  char separator = absl::StrContains(session.path_and_query, "?") ? '&' : '?';
  return Url::Parse(absl::StrCat(session.ToString(), std::string(1, separator),
                                 "digest=", PercentEncode(digest.ToString())));
}

// Another digest than the one pushed, in the answer that ends a push.
absl::Status CheckDigest(const Head& head, const base::Digest& digest) {
  absl::StatusOr<base::Digest> said = base::Digest::Parse(head.Get("docker-content-digest"));
  if (!said.ok() || *said == digest || said->algorithm() != digest.algorithm()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the registry stored it as ", said->ToString()));
}

// What the end of an upload came to: a digest that does not fit is the bytes' fault, not the request's.
Attempt Ended(Attempt attempt, const Head& head, const base::Digest& digest) {
  if (attempt.ok()) attempt.status = CheckDigest(head, digest);
  std::optional<Refusal> refusal = RefusalOf(attempt.status);
  if (refusal && refusal->http_status / 100 == 4 && refusal->code == "DIGEST_INVALID") {
    attempt.status = WithRefusal(absl::DataLossError(attempt.status.message()), refusal->http_status,
                                 {{refusal->code}, refusal->digests});
    attempt.retry = false;
  }
  return attempt;
}

std::string What(absl::string_view verb, absl::string_view object, const oci::Reference& repository) {
  return absl::StrCat(verb, object.empty() ? "" : " ", object, " to ", base::Printable(repository.Name()));
}

CallContext ForPush(const CallContext& context) {
  CallContext push = context;
  push.access = Access::kPush;
  return push;
}

// Follows the Location of an answer, if it has one, as seen from where it was asked.
absl::Status MoveTo(const Head& head, const Url& asked, std::string* location) {
  absl::string_view header = head.Get("location");
  if (header.empty()) return absl::OkStatus();
  absl::StatusOr<Url> url = asked.Resolve(header);
  if (!url.ok()) return absl::DataLossError(absl::StrCat("Location: ", url.status().message()));
  *location = url->ToString();
  return absl::OkStatus();
}

}  // namespace

std::optional<uint64_t> ParseUploadRange(absl::string_view value) {
  value = absl::StripAsciiWhitespace(value);
  if (!absl::ConsumePrefix(&value, "bytes=")) absl::ConsumePrefix(&value, "bytes ");
  size_t dash = value.find('-');
  if (dash == absl::string_view::npos) return std::nullopt;
  std::optional<uint64_t> first = ParseDecimal(value.substr(0, dash));
  std::optional<uint64_t> last = ParseDecimal(value.substr(dash + 1));
  if (!first || *first != 0 || !last || *last == UINT64_MAX) return std::nullopt;
  return *last == 0 ? 0 : *last + 1;
}

absl::Status Push::OnSession(const oci::Reference& repository, const UploadSession& session,
                             const CallContext& context, const std::string& what, SessionStep step) {
  CallContext push = ForPush(context);
  absl::StatusOr<Url> url = Url::Parse(session.location);
  if (!url.ok()) return base::Annotate(url.status(), absl::StrCat(what, ": upload session"));
  absl::StatusOr<std::vector<Endpoint>> endpoints =
      EndpointsOf(repository, core_.options(), Capability::kPush);
  if (!endpoints.ok()) return base::Annotate(endpoints.status(), what);
  auto own = std::find_if(endpoints->begin(), endpoints->end(),
                          [&](const Endpoint& endpoint) { return endpoint.base.Origin() == url->Origin(); });
  ApiRequest request;
  request.endpoint = own == endpoints->end() ? endpoints->back() : *own;
  request.repository = repository.repository;
  request.rest = "/blobs/uploads/";
  request.session = *std::move(url);
  absl::Status status = step(&request, core_.retry_policy(), push).status;
  if (absl::IsFailedPrecondition(status)) status = absl::UnavailableError(status.message());
  return base::Annotate(status, what);
}

Attempt Push::Open(const Endpoint& endpoint, const oci::Reference& repository, const std::string& query,
                   const std::string& from, const RetryPolicy& policy, const CallContext& context,
                   std::optional<UploadSession>* session) {
  ApiRequest request;
  request.method = "POST";
  request.endpoint = endpoint;
  request.repository = repository.repository;
  request.rest = absl::StrCat("/blobs/uploads/", query);
  request.also_pull = from == repository.repository ? "" : from;
  request.cancel_patience = kOpenPatience;
  absl::StatusOr<Url> asked = endpoint.ApiUrl(request.repository, request.rest);
  if (!asked.ok()) return Broken(asked.status(), 0);
  Attempt done = Retry(policy, context, [&]() -> Attempt {
    Head head;
    Attempt attempt = core_.requester().Send(request, &head, context);
    if (!attempt.ok()) return attempt;
    session->reset();
    if (attempt.http == 201 && !query.empty()) return attempt;
    if (attempt.http != 202) {
      return Broken(absl::DataLossError(absl::StrCat("HTTP ", attempt.http, " to the start of an upload")),
                    attempt.http);
    }
    UploadSession opened;
    absl::Status moved = MoveTo(head, *asked, &opened.location);
    if (moved.ok() && opened.location.empty()) moved = absl::DataLossError("no Location in the answer");
    if (!moved.ok()) return Broken(moved, attempt.http);
    absl::Status allowed =
        CheckTarget(*asked, *Url::Parse(opened.location), core_.options().allow_private_redirects);
    if (!allowed.ok()) return Broken(base::Annotate(allowed, "upload session"), attempt.http);
    opened.min_chunk = std::min(ParseDecimal(head.Get("oci-chunk-min-length")).value_or(0), kMaxMinChunk);
    *session = std::move(opened);
    return attempt;
  });
  if (!done.ok() || !session->has_value() || !Cancelled(context)) return done;
  Cancel(repository, **session, context);  // nobody else will
  session->reset();
  return Broken(absl::CancelledError("cancelled"), 0);
}

absl::StatusOr<UploadSession> Push::Start(const oci::Reference& repository, const CallContext& context) {
  std::optional<UploadSession> session;
  RETURN_IF_ERROR(
      core_.OnEndpoints(repository, ForPush(context), What("start of an upload", "", repository),
                        [&](const Endpoint& endpoint, const RetryPolicy& policy, const CallContext& limited) {
                          return Open(endpoint, repository, "", "", policy, limited, &session);
                        }));
  return *std::move(session);
}

absl::StatusOr<std::optional<UploadSession>> Push::Mount(const oci::Reference& repository,
                                                         const base::Digest& digest, const std::string& from,
                                                         const CallContext& context) {
  std::optional<UploadSession> session;
  std::string query = absl::StrCat("?mount=", PercentEncode(digest.ToString()));
  if (!from.empty()) absl::StrAppend(&query, "&from=", PercentEncode(from));
  absl::Status status = core_.OnEndpoints(
      repository, ForPush(context), What("mount of", absl::StrCat("blob ", digest.ToString()), repository),
      [&](const Endpoint& endpoint, RetryPolicy policy, const CallContext& limited) {
        policy.max_attempts = std::min(policy.max_attempts, kMountAttempts);
        return Open(endpoint, repository, query, from, policy, limited, &session);
      });
  if (status.ok()) return session;
  if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) return status;
  bool unreachable = absl::IsUnavailable(status) && !RefusalOf(status);
  if (unreachable) return status;
  ASSIGN_OR_RETURN(session, Start(repository, context));
  return session;
}

absl::Status Push::PutWhole(const oci::Reference& repository, const UploadSession& session,
                            const oci::Descriptor& blob, BodySource body, const CallContext& context) {
  std::string what = What("upload of", absl::StrCat("blob ", blob.digest.ToString()), repository);
  if (session.offset != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": the session holds ", session.offset, " bytes already"));
  }
  std::string small;
  if (blob.size <= kSmallBody) {
    ASSIGN_OR_RETURN(small, ReadAll(body, blob.size));
  }
  SpanBody whole{absl::string_view(small)};
  StreamBody stream(body, blob.size);
  absl::Status status =
      OnSession(repository, session, context, what,
                [&](ApiRequest* request, const RetryPolicy&, const CallContext& push) -> Attempt {
                  absl::StatusOr<Url> url = WithDigest(*request->session, blob.digest);
                  if (!url.ok()) return Broken(url.status(), 0);
                  request->method = "PUT";
                  request->session = *std::move(url);
                  request->headers.emplace_back("Content-Type", kOctets);
                  request->upload = &whole;
                  if (blob.size > kSmallBody) request->upload = &stream;
                  request->expect_continue = blob.size > kSmallBody;
                  request->answer_patience = kCommitPatience;
                  Head head;
                  return Ended(core_.requester().Send(*request, &head, push), head, blob.digest);
                });
  // An error of the source is the caller's own.
  return stream.failure().ok() ? status : stream.failure();
}

absl::Status Push::Patch(const oci::Reference& repository, UploadSession* session,
                         absl::Span<const uint8_t> bytes, const CallContext& context) {
  std::string what = What("upload of", absl::StrCat("bytes from ", session->offset), repository);
  if (bytes.size() < 2 || session->offset > UINT64_MAX - bytes.size()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": a chunk of ", bytes.size(), " bytes"));
  }
  SpanBody body(bytes);
  uint64_t end = session->offset + bytes.size();
  bool untold = false;
  absl::Status status =
      OnSession(repository, *session, context, what,
                [&](ApiRequest* request, const RetryPolicy&, const CallContext& push) -> Attempt {
                  request->method = "PATCH";
                  request->headers.emplace_back("Content-Type", kOctets);
                  request->headers.emplace_back("Content-Range", absl::StrCat(session->offset, "-", end - 1));
                  request->upload = &body;
                  request->answer_patience = kCommitPatience;
                  Head head;
                  Attempt attempt = core_.requester().Send(*request, &head, push);
                  if (!attempt.ok()) return attempt;
                  if (absl::Status moved = MoveTo(head, *request->session, &session->location); !moved.ok()) {
                    return Broken(moved, attempt.http);
                  }
                  std::optional<uint64_t> held = ParseUploadRange(head.Get("range"));
                  untold = !held;
                  if (held) session->offset = *held;
                  return attempt;
                });
  RETURN_IF_ERROR(status);
  if (untold) RETURN_IF_ERROR(base::Annotate(Query(repository, session, context), what));
  if (session->offset == end) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(what, ": the registry holds ", session->offset, " bytes, not ", end,
                                          ", after it took the chunk"));
}

absl::Status Push::Commit(const oci::Reference& repository, const UploadSession& session,
                          const base::Digest& digest, const CallContext& context) {
  bool lost_answer = false;
  SpanBody none{absl::string_view()};
  absl::Status status = OnSession(
      repository, session, context, What("commit of", absl::StrCat("blob ", digest.ToString()), repository),
      [&](ApiRequest* request, const RetryPolicy& policy, const CallContext& push) -> Attempt {
        absl::StatusOr<Url> url = WithDigest(*request->session, digest);
        if (!url.ok()) return Broken(url.status(), 0);
        request->method = "PUT";
        request->session = *std::move(url);
        request->headers.emplace_back("Content-Type", kOctets);
        request->upload = &none;
        request->answer_patience = kCommitPatience;
        return Retry(policy, push, [&]() -> Attempt {
          Head head;
          Attempt attempt = Ended(core_.requester().Send(*request, &head, push), head, digest);
          lost_answer = lost_answer || (!attempt.ok() && (attempt.http == 0 || attempt.http >= 500));
          return attempt;
        });
      });
  if (status.ok() || !lost_answer || !absl::IsNotFound(status)) return status;
  // The session is gone, perhaps because the first attempt ended it.
  return core_.HeadBlob(repository, digest, ForPush(context)).ok() ? absl::OkStatus() : status;
}

absl::Status Push::Query(const oci::Reference& repository, UploadSession* session,
                         const CallContext& context) {
  return OnSession(repository, *session, context, What("state of an upload", "", repository),
                   [&](ApiRequest* request, const RetryPolicy& policy, const CallContext& push) {
                     return Retry(policy, push, [&]() -> Attempt {
                       Head head;
                       Attempt attempt = core_.requester().Send(*request, &head, push);
                       if (!attempt.ok()) return attempt;
                       std::optional<uint64_t> held = ParseUploadRange(head.Get("range"));
                       absl::Status told = held ? MoveTo(head, *request->session, &session->location)
                                                : absl::DataLossError("no usable Range in the answer");
                       if (!told.ok()) return Broken(told, attempt.http);
                       session->offset = *held;
                       return attempt;
                     });
                   });
}

void Push::Cancel(const oci::Reference& repository, const UploadSession& session,
                  const CallContext& context) {
  CallContext brief = context;
  brief.cancel = nullptr;
  brief.deadline = std::min(context.deadline, core_.options().clock->Monotonic() + kCancelPatience);
  absl::Status ignored = OnSession(repository, session, brief, "cancel",
                                   [&](ApiRequest* request, const RetryPolicy&, const CallContext& push) {
                                     request->method = "DELETE";
                                     request->may_delete = true;
                                     Head head;
                                     return core_.requester().Send(*request, &head, push);
                                   });
  static_cast<void>(ignored);
}

absl::StatusOr<Pusher::ManifestPut> Push::PutManifest(const oci::Reference& reference,
                                                      const std::string& media_type, absl::string_view raw,
                                                      const CallContext& context) {
  base::Hasher hasher(reference.digest ? reference.digest->algorithm() : base::DigestAlgorithm::kSha256);
  hasher.Update(raw);
  Pusher::ManifestPut put{hasher.Finish(), false};
  std::string what = absl::StrCat("PUT manifest ", base::Printable(reference.ToString()));
  if (reference.digest && *reference.digest != put.digest) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": its bytes have digest ", put.digest.ToString()));
  }
  bool by_tag = reference.tag && !reference.digest;
  SpanBody body(raw);
  RETURN_IF_ERROR(core_.OnEndpoints(
      reference, ForPush(context), what,
      [&](const Endpoint& endpoint, const RetryPolicy& policy, const CallContext& limited) {
        ApiRequest request;
        request.method = "PUT";
        request.endpoint = endpoint;
        request.repository = reference.repository;
        request.rest =
            absl::StrCat("/manifests/", PercentEncode(by_tag ? *reference.tag : put.digest.ToString(), ":"));
        request.headers.emplace_back("Content-Type", media_type);
        request.upload = &body;
        request.answer_patience = kCommitPatience;
        return Retry(policy, limited, [&]() -> Attempt {
          Head head;
          body.Rewind();
          Attempt attempt = Ended(core_.requester().Send(request, &head, limited), head, put.digest);
          put.subject_indexed = !head.Get("oci-subject").empty();
          return attempt;
        });
      }));
  return put;
}

}  // namespace lazyblob::registry::internal

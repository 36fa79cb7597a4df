#include "registry/internal/core.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/json.h"
#include "base/status.h"
#include "oci/manifest.h"
#include "registry/internal/blob_reader.h"
#include "registry/internal/headers.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry::internal {
namespace {

constexpr int kMaxReferrerPages = 16;
constexpr int kMirrorAttempts = 2;
constexpr absl::Duration kMirrorPause = absl::Seconds(30);
constexpr absl::Duration kNoReferrersLifetime = absl::Minutes(10);

// A whole body of bounded size.
class Collector final : public ResponseHandler {
 public:
  explicit Collector(uint64_t max_bytes) : max_bytes_(max_bytes) {}

  absl::StatusOr<BodyAction> OnResponse(const HttpResponse& response) override {
    response_ = response;
    body_.clear();
    std::optional<uint64_t> length = ParseDecimal(response.Get("content-length"));
    if (length && *length > max_bytes_) return TooLarge();
    return BodyAction::kContinue;
  }
  absl::StatusOr<BodyAction> OnBody(absl::Span<const uint8_t> data) override {
    if (body_.size() + data.size() > max_bytes_) return TooLarge();
    body_.append(reinterpret_cast<const char*>(data.data()), data.size());
    return BodyAction::kContinue;
  }
  const HttpResponse& response() const { return response_; }
  std::string TakeBody() { return std::move(body_); }

 private:
  absl::Status TooLarge() const {
    return absl::ResourceExhaustedError(absl::StrCat("answer over the limit of ", max_bytes_, " bytes"));
  }
  const uint64_t max_bytes_;
  HttpResponse response_;
  std::string body_;
};

std::string AcceptManifests() {
  return absl::StrCat(oci::kMediaTypeOciIndex, ", ", oci::kMediaTypeOciManifest, ", ",
                      oci::kMediaTypeDockerIndex, ", ", oci::kMediaTypeDockerManifest);
}

std::string ContentType(const HttpResponse& response) {
  absl::string_view value = response.Get("content-type");
  std::string type = absl::AsciiStrToLower(absl::StripAsciiWhitespace(value.substr(0, value.find(';'))));
  // Servers that do not know better: the document itself will say.
  if (type == "application/json" || type == "application/octet-stream" || type == "text/plain") return "";
  return type;
}

std::string ManifestPath(const oci::Reference& reference) {
  std::string name = reference.digest ? reference.digest->ToString() : reference.tag.value_or("latest");
  return absl::StrCat("/manifests/", PercentEncode(name, ":"));
}

base::Digest DigestLike(const std::optional<base::Digest>& like, absl::string_view data) {
  base::Hasher hasher(like ? like->algorithm() : base::DigestAlgorithm::kSha256);
  hasher.Update(data);
  return hasher.Finish();
}

// Compares the bytes with the digest asked for, or, for a tag, with the digest the registry says they have.
absl::Status VerifyManifest(const oci::Reference& reference, const HttpResponse& response,
                            const std::string& raw, base::Digest* digest) {
  std::optional<base::Digest> wanted = reference.digest;
  if (!wanted) {
    absl::string_view header = response.Get("docker-content-digest");
    absl::StatusOr<base::Digest> said = base::Digest::Parse(header);
    if (said.ok()) wanted = *said;
  }
  *digest = DigestLike(wanted, raw);
  if (!wanted || *digest == *wanted) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the manifest received has digest ", digest->ToString(), ", not ",
                                          wanted->ToString(), reference.digest ? "" : " as its header says"));
}

oci::Reference Tagless(const oci::Reference& repository) {
  oci::Reference reference;
  reference.host = repository.host;
  reference.repository = repository.repository;
  return reference;
}

std::string What(absl::string_view verb, absl::string_view object, const oci::Reference& repository) {
  return absl::StrCat(verb, " ", object, " of ", base::Printable(repository.Name()));
}

}  // namespace

ClientCore::ClientCore(ClientOptions options, std::unique_ptr<Transport> transport, Sleeper sleep)
    : options_(std::move(options)),
      transport_(std::move(transport)),
      sleep_(std::move(sleep)),
      hosts_(options_.clock),
      requester_(&options_, transport_.get(), &hosts_, sleep_) {}

absl::Status ClientCore::OnEndpoints(const oci::Reference& reference, const CallContext& context,
                                     absl::string_view what, Operation operation, Capability wanted) {
  if (context.access == Access::kPush) wanted = Capability::kPush;
  absl::StatusOr<std::vector<Endpoint>> endpoints = EndpointsOf(reference, options_, wanted);
  if (!endpoints.ok()) return base::Annotate(endpoints.status(), what);
  // Two of one host (https, then http) are no mirrors.
  const bool mirrored = std::none_of(endpoints->begin(), endpoints->end(),
                                     [](const Endpoint& endpoint) { return endpoint.guessed_tls; });
  if (context.distrust_mirrors && mirrored) std::reverse(endpoints->begin(), endpoints->end());
  absl::Status status;
  for (const Endpoint& endpoint : *endpoints) {
    RetryPolicy policy = retry_policy();
    CallContext limited = context;
    std::string down = absl::StrCat("down ", endpoint.base.Origin());
    bool last = &endpoint == &endpoints->back();
    if (!last && hosts_.Noted(down)) continue;
    if (!last && !endpoint.guessed_tls) {
      // A mirror may use up half of the time, never all of it.
      absl::Duration now = options_.clock->Monotonic();
      limited.deadline = now + (context.deadline - now) / 2;
      policy.max_attempts = std::min(kMirrorAttempts, policy.max_attempts);
    }
    Attempt attempt = operation(endpoint, policy, limited);
    status = attempt.status;
    if (attempt.ok() || last || Cancelled(context)) break;
    if (endpoint.guessed_tls) {
      // Only a host that does not speak TLS is asked without.
      if (!absl::IsFailedPrecondition(status)) break;
      hosts_.Note(down, kMirrorPause);
    } else if (attempt.http == 0 || absl::IsUnavailable(status)) {
      hosts_.Note(down, kMirrorPause);
    }
    if (!CheckLive(context, *options_.clock).ok()) break;
  }
  // TLS that cannot be set up is, to callers, a host that cannot be used.
  if (absl::IsFailedPrecondition(status)) status = absl::UnavailableError(status.message());
  return base::Annotate(status, what);
}

Attempt ClientCore::FetchManifest(const Endpoint& endpoint, const oci::Reference& reference,
                                  const RetryPolicy& policy, const CallContext& context,
                                  FetchedManifest* manifest) {
  ApiRequest request;
  request.endpoint = endpoint;
  request.repository = reference.repository;
  request.rest = ManifestPath(reference);
  request.headers.emplace_back("Accept", AcceptManifests());
  return Retry(policy, context, [&]() -> Attempt {
    Collector collector(oci::kMaxManifestBytes);
    Attempt attempt = requester_.Send(request, &collector, context);
    if (!attempt.ok()) return attempt;
    std::string raw = collector.TakeBody();
    base::Digest digest;
    absl::Status verified = VerifyManifest(reference, collector.response(), raw, &digest);
    if (!verified.ok()) return {verified, attempt.http, true};
    manifest->content_type = ContentType(collector.response());
    manifest->descriptor = oci::Descriptor();
    manifest->descriptor.digest = digest;
    manifest->descriptor.size = raw.size();
    manifest->descriptor.media_type = manifest->content_type;
    if (manifest->content_type.empty()) {
      absl::StatusOr<nlohmann::json> json = base::ParseJson(raw, oci::kMaxManifestBytes);
      absl::StatusOr<std::optional<std::string>> type =
          json.ok() ? base::JsonString(*json, "mediaType") : std::optional<std::string>();
      if (type.ok() && *type) manifest->descriptor.media_type = **type;
    }
    manifest->raw = std::move(raw);
    return attempt;
  });
}

absl::StatusOr<FetchedManifest> ClientCore::GetManifest(const oci::Reference& reference,
                                                        const CallContext& context) {
  FetchedManifest manifest;
  std::string what = absl::StrCat("GET manifest ", base::Printable(reference.ToString()));
  RETURN_IF_ERROR(OnEndpoints(
      reference, context, what,
      [&](const Endpoint& endpoint, const RetryPolicy& policy, const CallContext& limited) {
        return FetchManifest(endpoint, reference, policy, limited, &manifest);
      },
      reference.digest ? Capability::kPull : Capability::kResolve));
  return manifest;
}

absl::StatusOr<oci::Descriptor> ClientCore::HeadManifest(const oci::Reference& reference,
                                                         const CallContext& context) {
  oci::Descriptor descriptor;
  bool usable = false;
  auto head = [&](const Endpoint& endpoint, const RetryPolicy& policy, const CallContext& limited) {
    ApiRequest request;
    request.method = "HEAD";
    request.endpoint = endpoint;
    request.repository = reference.repository;
    request.rest = ManifestPath(reference);
    request.headers.emplace_back("Accept", AcceptManifests());
    return Retry(policy, limited, [&]() -> Attempt {
      Collector collector(UINT64_MAX);  // the length announced is not that of a body
      Attempt attempt = requester_.Send(request, &collector, limited);
      // Not a refusal of the image but of the method.
      bool no_head = attempt.http == 400 || attempt.http == 405 || attempt.http == 501;
      if (no_head) return {absl::OkStatus(), attempt.http, false};
      if (!attempt.ok()) return attempt;
      absl::StatusOr<base::Digest> digest =
          base::Digest::Parse(collector.response().Get("docker-content-digest"));
      std::optional<uint64_t> size = ParseDecimal(collector.response().Get("content-length"));
      if (reference.digest && digest.ok() && *digest != *reference.digest) {
        return {
            absl::DataLossError(absl::StrCat("the registry has ", digest->ToString(), " under that digest")),
            attempt.http, true};
      }
      if (reference.digest) digest = *reference.digest;
      usable = digest.ok() && size && *size > 0;
      if (!usable) return attempt;
      descriptor.digest = *digest;
      descriptor.size = *size;
      descriptor.media_type = ContentType(collector.response());
      usable = !descriptor.media_type.empty();
      return attempt;
    });
  };
  std::string what = absl::StrCat("HEAD manifest ", base::Printable(reference.ToString()));
  RETURN_IF_ERROR(OnEndpoints(reference, context, what, head,
                              reference.digest ? Capability::kPull : Capability::kResolve));
  if (usable) return descriptor;
  ASSIGN_OR_RETURN(FetchedManifest manifest, GetManifest(reference, context));
  return manifest.descriptor;
}

Attempt ClientCore::ReadFrom(const Endpoint& endpoint, const oci::Reference& repository,
                             const oci::Descriptor& blob, BlobReader* reader, const RetryPolicy& policy,
                             const CallContext& context) {
  ApiRequest request;
  request.endpoint = endpoint;
  request.repository = repository.repository;
  request.rest = absl::StrCat("/blobs/", blob.digest.ToString());
  return ReadWith(std::move(request), repository.host, reader, policy, context);
}

Attempt ClientCore::ReadWith(ApiRequest request, const std::string& host, BlobReader* reader,
                             const RetryPolicy& policy, const CallContext& context) {
  request.cache_target = true;
  auto attempt = [&]() -> Attempt {
    request.headers.clear();
    std::string range = reader->BeginAttempt();
    if (!range.empty()) request.headers.emplace_back("Range", range);
    Attempt result = requester_.Send(request, reader, context);
    if (reader->range_was_ignored()) hosts_.SetIgnoresRanges(host);
    if (reader->sink_failed()) return {result.status, result.http, false};
    if (reader->complete()) return {absl::OkStatus(), result.http, false};
    if (absl::IsOutOfRange(result.status)) {
      bool again = reader->asks_for_ranges();
      reader->DoNotAskForRanges();
      return {absl::DataLossError(absl::StrCat(result.status.message(), " to a range inside the blob")),
              result.http, again};
    }
    if (result.ok()) return {reader->EndAttempt(), result.http, true};
    result.retry = result.retry || (absl::IsDataLoss(result.status) && result.http / 100 == 2);
    return result;
  };
  return Retry(policy, context, attempt, [&] { return reader->TakeProgress(); });
}

absl::Status ClientCore::ReadBlob(const oci::Reference& repository, const oci::Descriptor& blob,
                                  ByteRange range, BodySink sink, const CallContext& context) {
  std::string what = What("GET", absl::StrCat("blob ", blob.digest.ToString()), repository);
  if (!base::RangeWithin(range.offset, range.length, blob.size)) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": range ", range.offset, "+", range.length,
                                                   " is not inside its ", blob.size, " bytes"));
  }
  if (range.length == 0) return absl::OkStatus();
  BlobReader reader(blob.size, range, sink);
  Attempt last;
  return OnEndpoints(repository, context, what,
                     [&](const Endpoint& endpoint, const RetryPolicy& policy, const CallContext& limited) {
                       // An error of the sink is the caller's own: no other endpoint can help.
                       if (!reader.sink_failed()) {
                         last = ReadFrom(endpoint, repository, blob, &reader, policy, limited);
                       }
                       return last;
                     });
}

absl::Status ClientCore::ReadUrl(absl::string_view url, const oci::Descriptor& blob, ByteRange range,
                                 BodySink sink, const CallContext& context) {
  ASSIGN_OR_RETURN(const Url parsed, Url::Parse(url));
  std::string what =
      absl::StrCat("GET ", blob.digest.ToString(), " from ", parsed.scheme, "://", parsed.HostForMessages(),
                   base::Printable(parsed.path_and_query.substr(0, parsed.path_and_query.find('?'))));
  if (parsed.scheme != "https") {
    return absl::InvalidArgumentError(absl::StrCat(what, ": only https URLs are asked"));
  }
  if (!base::RangeWithin(range.offset, range.length, blob.size)) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": range ", range.offset, "+", range.length,
                                                   " is not inside its ", blob.size, " bytes"));
  }
  if (range.length == 0) return absl::OkStatus();
  ApiRequest request;
  request.plain_url = parsed;
  request.endpoint.base = parsed;
  request.endpoint.host = parsed.Origin();
  RetryPolicy policy = retry_policy();
  policy.max_attempts = std::min(kMirrorAttempts, policy.max_attempts);
  BlobReader reader(blob.size, range, sink);
  absl::Status status = ReadWith(std::move(request), parsed.Origin(), &reader, policy, context).status;
  if (absl::IsFailedPrecondition(status) && !reader.sink_failed()) {
    status = absl::UnavailableError(status.message());  // TLS, as with registries
  }
  return base::Annotate(status, what);
}

Client::LinkEstimate ClientCore::EstimateLink(absl::string_view url) const {
  const absl::StatusOr<Url> parsed = Url::Parse(url);
  return parsed.ok() ? hosts_.Estimate(parsed->Origin()) : Client::LinkEstimate();
}

absl::StatusOr<std::string> ClientCore::GetSmallBlob(const oci::Reference& repository,
                                                     const oci::Descriptor& blob, uint64_t max_bytes,
                                                     const CallContext& context) {
  std::string what = What("GET", absl::StrCat("blob ", blob.digest.ToString()), repository);
  if (blob.size > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": ", blob.size, " bytes, the limit here is ", max_bytes));
  }
  std::string contents;
  auto collect = [&](absl::Span<const uint8_t> data) {
    contents.append(reinterpret_cast<const char*>(data.data()), data.size());
    return absl::OkStatus();
  };
  CallContext attempt_context = context;
  for (int attempt = 0; attempt < 2; ++attempt) {
    contents.clear();
    attempt_context.distrust_mirrors = context.distrust_mirrors || attempt > 0;
    RETURN_IF_ERROR(ReadBlob(repository, blob, {0, blob.size}, collect, attempt_context));
    if (DigestLike(blob.digest, contents) == blob.digest) return contents;
  }
  return absl::DataLossError(absl::StrCat(what, ": the bytes received twice have digest ",
                                          DigestLike(blob.digest, contents).ToString()));
}

absl::StatusOr<uint64_t> ClientCore::HeadBlob(const oci::Reference& repository, const base::Digest& digest,
                                              const CallContext& context) {
  std::optional<uint64_t> size;
  auto head = [&](const Endpoint& endpoint, const RetryPolicy& policy, const CallContext& limited) {
    ApiRequest request;
    request.method = "HEAD";
    request.endpoint = endpoint;
    request.repository = repository.repository;
    request.rest = absl::StrCat("/blobs/", digest.ToString());
    return Retry(policy, limited, [&]() -> Attempt {
      Collector collector(UINT64_MAX);
      Attempt attempt = requester_.Send(request, &collector, limited);
      if (!attempt.ok()) return attempt;
      size = ParseDecimal(collector.response().Get("content-length"));
      if (!size) return {absl::DataLossError("no Content-Length in the answer"), attempt.http, false};
      return attempt;
    });
  };
  RETURN_IF_ERROR(OnEndpoints(repository, context,
                              What("HEAD", absl::StrCat("blob ", digest.ToString()), repository), head));
  return *size;
}

absl::StatusOr<std::optional<std::vector<oci::Descriptor>>> ClientCore::AskReferrers(
    const oci::Reference& repository, const base::Digest& subject, absl::string_view artifact_type,
    const CallContext& context) {
  using Found = std::optional<std::vector<oci::Descriptor>>;
  Found found = std::vector<oci::Descriptor>();
  std::string missing = absl::StrCat("no referrers ", repository.host, "/", repository.repository);
  if (hosts_.Noted(missing)) return Found();
  auto ask = [&](const Endpoint& endpoint, const RetryPolicy& policy, const CallContext& limited) -> Attempt {
    ApiRequest request;
    request.endpoint = endpoint;
    request.repository = repository.repository;
    request.rest = absl::StrCat("/referrers/", subject.ToString());
    if (!artifact_type.empty())
      absl::StrAppend(&request.rest, "?artifactType=", PercentEncode(artifact_type));
    request.headers.emplace_back("Accept", oci::kMediaTypeOciIndex);
    found = std::vector<oci::Descriptor>();
    for (int page = 0; page < kMaxReferrerPages; ++page) {
      std::string next;
      Attempt attempt = Retry(policy, limited, [&]() -> Attempt {
        Collector collector(oci::kMaxManifestBytes);
        Attempt sent = requester_.Send(request, &collector, limited);
        if (!sent.ok()) return sent;
        absl::StatusOr<std::variant<oci::Manifest, oci::Index>> parsed =
            oci::ParseManifestOrIndex(collector.TakeBody(), std::nullopt, "");
        // Anything but an index is a server that answers everything with a page of its own.
        if (!parsed.ok() || !std::holds_alternative<oci::Index>(*parsed))
          return {absl::OkStatus(), 404, false};
        for (oci::Descriptor& descriptor : std::get<oci::Index>(*parsed).manifests)
          found->push_back(std::move(descriptor));
        next = NextLink(collector.response().Get("link"));
        return sent;
      });
      bool none = attempt.http == 400 || attempt.http == 404 || attempt.http == 405 || attempt.http == 406 ||
                  attempt.http == 501;
      if (none) {
        found.reset();
        return {absl::OkStatus(), attempt.http, false};
      }
      if (!attempt.ok() || next.empty()) return attempt;
      absl::StatusOr<Url> api = endpoint.ApiUrl(request.repository, request.rest);
      absl::StatusOr<Url> url = api.ok() ? api->Resolve(next) : api;
      std::string prefix = absl::StrCat(endpoint.path, "/", repository.repository);
      if (!url.ok() || url->Origin() != api->Origin() ||
          !absl::StartsWith(url->path_and_query, prefix + "/referrers/")) {
        return {absl::DataLossError("the next page is not in this repository"), attempt.http, false};
      }
      request.rest = url->path_and_query.substr(prefix.size());
    }
    return {absl::DataLossError(absl::StrCat("more than ", kMaxReferrerPages, " pages")), 200, false};
  };
  RETURN_IF_ERROR(OnEndpoints(
      repository, context, What("GET", absl::StrCat("referrers of ", subject.ToString()), repository), ask));
  if (!found) hosts_.Note(missing, kNoReferrersLifetime);
  return found;
}

absl::StatusOr<std::vector<oci::Descriptor>> ClientCore::Referrers(const oci::Reference& repository,
                                                                   const base::Digest& subject,
                                                                   absl::string_view artifact_type,
                                                                   const CallContext& context) {
  ASSIGN_OR_RETURN(std::optional<std::vector<oci::Descriptor>> found,
                   AskReferrers(repository, subject, artifact_type, context));
  if (!found) {
    // The tag that clients keep where the registry does not: algorithm and at most 64 digits.
    oci::Reference tagged = Tagless(repository);
    absl::string_view algorithm =
        subject.algorithm() == base::DigestAlgorithm::kSha256 ? "sha256-" : "sha512-";
    tagged.tag = absl::StrCat(algorithm, subject.hex().substr(0, 64));
    absl::StatusOr<FetchedManifest> manifest = GetManifest(tagged, context);
    if (absl::IsNotFound(manifest.status())) return std::vector<oci::Descriptor>();
    if (!manifest.ok()) return manifest.status();
    absl::StatusOr<std::variant<oci::Manifest, oci::Index>> parsed =
        oci::ParseManifestOrIndex(manifest->raw, manifest->descriptor.digest, manifest->content_type);
    if (!parsed.ok()) return base::Annotate(parsed.status(), absl::StrCat("referrers ", tagged.ToString()));
    if (!std::holds_alternative<oci::Index>(*parsed)) return std::vector<oci::Descriptor>();
    found = std::get<oci::Index>(*std::move(parsed)).manifests;
  }
  // Registries may ignore the filter.
  if (!artifact_type.empty()) {
    std::erase_if(
        *found, [&](const oci::Descriptor& descriptor) { return descriptor.artifact_type != artifact_type; });
  }
  return *std::move(found);
}

}  // namespace lazyblob::registry::internal

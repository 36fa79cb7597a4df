#include "tests/support/test_registry.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "tests/support/internal/answer.h"
#include "tests/support/internal/control.h"
#include "tests/support/internal/fault_rules.h"
#include "tests/support/internal/http.h"
#include "tests/support/internal/registry_auth.h"
#include "tests/support/internal/registry_contents.h"
#include "tests/support/internal/uploads.h"

namespace lazyblob::support {

using internal::Answer;
using internal::Bytes;
using internal::ErrorAnswer;
using internal::HttpConnection;
using internal::HttpRequest;
using internal::Matcher;
using internal::SetHeader;
using internal::TextAnswer;
using internal::WholeAnswer;

namespace {

constexpr char kOctets[] = "application/octet-stream";

// Splits "/v2/<repository>/<kind>/<reference>"; false when `path` is not one.
bool SplitPath(absl::string_view path, absl::string_view kind, std::string* repository,
               std::string* reference) {
  if (!absl::ConsumePrefix(&path, "/v2/")) return false;
  const std::string middle = absl::StrCat("/", kind, "/");
  const size_t at = path.rfind(middle);
  if (at == absl::string_view::npos || at == 0) return false;
  *repository = std::string(path.substr(0, at));
  *reference = std::string(path.substr(at + middle.size()));
  return !reference->empty();
}

// One entry of the log, and what of a blob it sent.
struct LogEntry {
  LoggedRequest request;
  uint64_t body_offset = 0;
};

}  // namespace

class TestRegistry::Impl {
 public:
  Impl(TestRegistry* registry, const TestRegistryOptions& options)
      : control_(registry),
        control_enabled_(options.control),
        listener_(options.address, options.port, false, &next_connection_,
                  [this](HttpConnection& connection) { Serve(connection); }),
        cdn_listener_(options.cdn_address, 0, true, &next_connection_,
                      [this](HttpConnection& connection) { Serve(connection); }),
        host_(absl::StrCat(options.address, ":", listener_.port())),
        cdn_host_(absl::StrCat(options.cdn_address, ":", cdn_listener_.port())) {
    auth_.Configure(options.auth, host_);
    uploads_.Configure(options.uploads);
    absl::MutexLock lock(&mutex_);
    cdn_ = options.cdn;
    referrers_api_ = options.referrers_api;
    ready_ = true;
  }

  ~Impl() {
    rules_.OpenGates();
    control_.OpenGates();
    listener_.BreakConnections();
    cdn_listener_.BreakConnections();
    listener_.Stop();
    cdn_listener_.Stop();
  }

  void Serve(HttpConnection& connection) ABSL_LOCKS_EXCLUDED(mutex_);
  // nullopt: the request's body broke off.
  std::optional<Answer> Route(HttpConnection& connection, HttpRequest& request, const FaultAction& fault,
                              size_t log_number) ABSL_LOCKS_EXCLUDED(mutex_);
  Answer RouteRepository(const HttpRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Answer> RouteUpload(HttpConnection& connection, HttpRequest& request,
                                    const FaultAction& fault, size_t log_number) ABSL_LOCKS_EXCLUDED(mutex_);
  Answer AnswerBlob(const HttpRequest& request, const std::string& repository, const std::string& digest)
      ABSL_LOCKS_EXCLUDED(mutex_);
  Answer AnswerManifest(const std::string& repository, const std::string& reference);
  Answer AnswerReferrers(const HttpRequest& request, const std::string& repository,
                         const std::string& subject) ABSL_LOCKS_EXCLUDED(mutex_);
  Answer AnswerCdn(const HttpRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  size_t StartLog(const HttpConnection& connection, const HttpRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  template <typename Change>
  void ChangeLog(size_t number, Change change) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (number >= first_logged_) change(log_[number - first_logged_]);
  }

  internal::RegistryContents contents_;
  internal::Uploads uploads_{&contents_};
  internal::RegistryAuth auth_;
  internal::FaultRules rules_;
  internal::Control control_;
  const bool control_enabled_;
  std::atomic<uint64_t> next_connection_{0};

  mutable absl::Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  CdnOptions cdn_ ABSL_GUARDED_BY(mutex_);
  bool referrers_api_ ABSL_GUARDED_BY(mutex_) = true;
  std::map<std::string, absl::Time> signatures_ ABSL_GUARDED_BY(mutex_);  // of CDN URLs, to their end
  uint64_t signed_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<LogEntry> log_ ABSL_GUARDED_BY(mutex_);
  size_t first_logged_ ABSL_GUARDED_BY(mutex_) = 0;  // number of log_[0]

  // Last: their threads use all of the above.
  internal::HttpListener listener_;
  internal::HttpListener cdn_listener_;
  const std::string host_;
  const std::string cdn_host_;
};

size_t TestRegistry::Impl::StartLog(const HttpConnection& connection, const HttpRequest& request) {
  LogEntry entry;
  entry.request.connection = connection.id();
  entry.request.cdn = connection.cdn();
  entry.request.method = request.method;
  entry.request.path = request.path;
  entry.request.query = request.query;
  entry.request.range = request.Header("range");
  entry.request.authorization = request.Header("authorization");
  entry.request.headers = request.headers;
  entry.request.body = request.body;
  entry.request.received_bytes = request.body.size();
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&ready_));
  log_.push_back(std::move(entry));
  return first_logged_ + log_.size() - 1;
}

void TestRegistry::Impl::Serve(HttpConnection& connection) {
  HttpRequest request;
  bool keep_alive = true;
  while (keep_alive && connection.ReadRequest(&request, internal::Uploads::ReadsBodyOf)) {
    if (control_enabled_ && internal::Control::IsFor(request)) {
      keep_alive = SendAnswer(connection, request, {}, control_.Handle(request), [](uint64_t) {}).keep_alive;
      continue;
    }
    const size_t number = StartLog(connection, request);
    FaultAction fault = rules_.Take(request).value_or(FaultAction());
    if (fault.gate != nullptr) fault.gate->Pass();
    if (!connection.Wait(fault.delay) || fault.drop) {
      if (fault.drop) connection.CloseCleanly();
      ChangeLog(number, [](LogEntry& entry) { entry.request.finished = true; });
      return;
    }
    std::optional<Answer> routed =
        fault.status != 0 ? TextAnswer(fault.status, fault.body) : Route(connection, request, fault, number);
    if (!routed.has_value()) {
      connection.Break();
      ChangeLog(number, [](LogEntry& entry) { entry.request.finished = true; });
      return;
    }
    Answer answer = *std::move(routed);
    fault.close_after = fault.close_after || request.body_left > 0;
    ApplyRange(request, fault, &answer);
    ChangeLog(number, [&](LogEntry& entry) {
      entry.request.status = answer.status;
      entry.body_offset = answer.offset;
    });
    const internal::SendResult sent = SendAnswer(connection, request, fault, answer, [&](uint64_t bytes) {
      ChangeLog(number, [&](LogEntry& entry) { entry.request.body_bytes += bytes; });
    });
    ChangeLog(number, [&](LogEntry& entry) {
      entry.request.finished = true;
      entry.request.complete = sent.complete;
    });
    keep_alive = sent.keep_alive;
  }
}

std::optional<Answer> TestRegistry::Impl::RouteUpload(HttpConnection& connection, HttpRequest& request,
                                                      const FaultAction& fault, size_t log_number) {
  std::string repository, session;
  const size_t start = request.path.rfind("/blobs/uploads");
  if (!absl::StartsWith(request.path, "/v2/") || start <= 4) return ErrorAnswer(404, "NAME_INVALID", "no");
  repository = request.path.substr(4, start - 4);
  absl::string_view rest = absl::string_view(request.path).substr(start);
  absl::ConsumePrefix(&rest, "/blobs/uploads");
  absl::ConsumePrefix(&rest, "/");
  session = std::string(rest);
  if (connection.cdn() && !request.Header("authorization").empty()) {
    return TextAnswer(400, "<Error><Code>InvalidArgument</Code></Error>", "application/xml");
  }
  const bool deletes = request.method == "DELETE";
  const std::string challenge = connection.cdn()
                                    ? ""
                                    : auth_.Challenge(request, repository, deletes ? "delete" : "pull,push",
                                                      request.QueryField("from"));
  if (!challenge.empty()) {
    Answer answer = ErrorAnswer(401, "UNAUTHORIZED", "authentication required");
    SetHeader(&answer.headers, "WWW-Authenticate", challenge);
    return answer;
  }
  const auto on_body = [&](uint64_t bytes, absl::Duration gap) {
    ChangeLog(log_number, [&](LogEntry& entry) {
      entry.request.received_bytes += bytes;
      entry.request.longest_gap = std::max(entry.request.longest_gap, gap);
    });
  };
  return uploads_.Handle({connection, request, fault, repository, session, host_, cdn_host_, on_body});
}

std::optional<Answer> TestRegistry::Impl::Route(HttpConnection& connection, HttpRequest& request,
                                                const FaultAction& fault, size_t log_number) {
  if (absl::StrContains(request.path, "/blobs/uploads")) {
    return RouteUpload(connection, request, fault, log_number);
  }
  if (connection.cdn()) return AnswerCdn(request);
  if (request.path == "/token") {
    internal::RegistryAuth::TokenAnswer token = auth_.IssueToken(request);
    return TextAnswer(token.status, std::move(token.body));
  }
  const bool pushes = request.method == "PUT" && absl::StrContains(request.path, "/manifests/");
  if (request.method != "GET" && request.method != "HEAD" && !pushes) {
    return ErrorAnswer(405, "UNSUPPORTED", "nothing of this is taken");
  }
  if (request.path == "/v2/" || request.path == "/v2") {
    Answer answer = TextAnswer(200, "{}");
    if (const std::string challenge = auth_.Challenge(request, "", ""); !challenge.empty()) {
      answer = ErrorAnswer(401, "UNAUTHORIZED", "authentication required");
      SetHeader(&answer.headers, "WWW-Authenticate", challenge);
    }
    SetHeader(&answer.headers, "Docker-Distribution-API-Version", "registry/2.0");
    return answer;
  }
  return RouteRepository(request);
}

Answer TestRegistry::Impl::RouteRepository(const HttpRequest& request) {
  std::string repository, reference;
  enum { kManifest, kBlob, kReferrers, kTags } kind = kManifest;
  if (SplitPath(request.path, "manifests", &repository, &reference)) {
    kind = kManifest;
  } else if (SplitPath(request.path, "blobs", &repository, &reference)) {
    kind = kBlob;
  } else if (SplitPath(request.path, "referrers", &repository, &reference)) {
    kind = kReferrers;
  } else if (SplitPath(request.path, "tags", &repository, &reference) && reference == "list") {
    kind = kTags;
  } else {
    return ErrorAnswer(404, "NAME_INVALID", "no such page");
  }
  const bool pushes = request.method == "PUT";
  if (pushes && kind != kManifest) return ErrorAnswer(405, "UNSUPPORTED", "nothing of this is taken");
  const std::string challenge = auth_.Challenge(request, repository, pushes ? "pull,push" : "pull");
  if (!challenge.empty()) {
    Answer answer = ErrorAnswer(401, "UNAUTHORIZED", "authentication required");
    SetHeader(&answer.headers, "WWW-Authenticate", challenge);
    return answer;
  }
  if (pushes) {
    bool tells_subject = false;
    {
      absl::MutexLock lock(&mutex_);
      tells_subject = referrers_api_;
    }
    return uploads_.PutManifest(request, repository, reference, tells_subject);
  }
  switch (kind) {
    case kManifest:
      return AnswerManifest(repository, reference);
    case kBlob:
      return AnswerBlob(request, repository, reference);
    case kReferrers:
      return AnswerReferrers(request, repository, reference);
    case kTags:
      return TextAnswer(200, contents_.TagList(repository));
  }
  return ErrorAnswer(500, "UNKNOWN", "not reached");
}

Answer TestRegistry::Impl::AnswerManifest(const std::string& repository, const std::string& reference) {
  const std::optional<internal::StoredManifest> manifest = contents_.FindManifest(repository, reference);
  if (!manifest.has_value()) return ErrorAnswer(404, "MANIFEST_UNKNOWN", "manifest unknown");
  Answer answer = WholeAnswer(manifest->raw, manifest->media_type);
  SetHeader(&answer.headers, "Docker-Content-Digest", manifest->digest.ToString());
  return answer;
}

Answer TestRegistry::Impl::AnswerBlob(const HttpRequest& request, const std::string& repository,
                                      const std::string& digest) {
  std::optional<Bytes> blob = contents_.FindBlob(repository, digest);
  if (!blob.has_value() && uploads_.options().shared_store) blob = contents_.FindAnywhere(digest);
  if (!blob.has_value()) return ErrorAnswer(404, "BLOB_UNKNOWN", "blob unknown to registry");
  absl::MutexLock lock(&mutex_);
  if (cdn_.enabled && request.method == "GET") {
    const std::string signature = absl::StrCat("signed-", ++signed_);
    signatures_[signature] = absl::Now() + cdn_.ttl;
    Answer answer = TextAnswer(cdn_.status, "", kOctets);
    SetHeader(
        &answer.headers, "Location",
        absl::StrCat("http://", cdn_host_, "/cdn/", repository, "/blobs/", digest, "?signature=", signature));
    return answer;
  }
  Answer answer = WholeAnswer(*blob, kOctets);
  answer.ranges = true;
  SetHeader(&answer.headers, "Docker-Content-Digest", digest);
  return answer;
}

Answer TestRegistry::Impl::AnswerReferrers(const HttpRequest& request, const std::string& repository,
                                           const std::string& subject) {
  {
    absl::MutexLock lock(&mutex_);
    if (!referrers_api_) return TextAnswer(404, "404 page not found\n", "text/plain");
  }
  const std::string type = request.QueryField("artifactType");
  Answer answer = TextAnswer(200, contents_.Referrers(repository, subject, type), oci::kMediaTypeOciIndex);
  if (!type.empty()) SetHeader(&answer.headers, "OCI-Filters-Applied", "artifactType");
  return answer;
}

Answer TestRegistry::Impl::AnswerCdn(const HttpRequest& request) {
  {
    absl::MutexLock lock(&mutex_);
    if (cdn_.refuse_authorization && !request.Header("authorization").empty()) {
      return TextAnswer(400, "<Error><Code>InvalidArgument</Code></Error>", "application/xml");
    }
    const auto signature = signatures_.find(request.QueryField("signature"));
    if (signature == signatures_.end() || signature->second <= absl::Now()) {
      return TextAnswer(403, "<Error><Code>AccessDenied</Code></Error>", "application/xml");
    }
  }
  std::string repository, digest;
  if (!absl::StartsWith(request.path, "/cdn/") ||
      !SplitPath("/v2/" + request.path.substr(5), "blobs", &repository, &digest)) {
    return TextAnswer(404, "", kOctets);
  }
  const std::optional<Bytes> blob = contents_.FindBlob(repository, digest);
  if (!blob.has_value()) return TextAnswer(404, "", kOctets);
  Answer answer = WholeAnswer(*blob, kOctets);
  answer.ranges = true;
  return answer;
}

TestRegistry::TestRegistry(TestRegistryOptions options) : impl_(std::make_unique<Impl>(this, options)) {}
TestRegistry::~TestRegistry() = default;

std::string TestRegistry::host() const { return impl_->host_; }
std::string TestRegistry::cdn_host() const { return impl_->cdn_host_; }
uint16_t TestRegistry::port() const { return impl_->listener_.port(); }

base::Digest TestRegistry::PutBlob(absl::string_view repository, std::string bytes) {
  const base::Digest digest = base::Digest::Of(bytes);
  PutBlobAs(repository, digest, std::move(bytes));
  return digest;
}

void TestRegistry::PutBlobFile(absl::string_view repository, const base::Digest& digest, std::string file,
                               uint64_t size) {
  Bytes bytes;
  bytes.file = std::move(file);
  bytes.size = size;
  impl_->contents_.PutBlob(repository, digest, std::move(bytes));
}

void TestRegistry::PutBlobAs(absl::string_view repository, const base::Digest& digest, std::string bytes) {
  impl_->contents_.PutBlob(repository, digest, Bytes::Of(std::move(bytes)));
}

void TestRegistry::RemoveBlob(absl::string_view repository, const base::Digest& digest) {
  impl_->contents_.RemoveBlob(repository, digest);
}

base::Digest TestRegistry::PutManifest(absl::string_view repository, absl::string_view tag, std::string raw,
                                       absl::string_view media_type) {
  const base::Digest digest = base::Digest::Of(raw);
  impl_->contents_.PutManifest(repository, tag, {Bytes::Of(std::move(raw)), std::string(media_type), digest});
  return digest;
}

void TestRegistry::PutImage(absl::string_view repository, absl::string_view tag, const Image& image) {
  for (const Layer& layer : image.layers) PutBlobAs(repository, layer.descriptor.digest, layer.blob);
  PutBlobAs(repository, image.config_descriptor.digest, image.config);
  PutManifest(repository, tag, image.manifest, image.manifest_descriptor.media_type);
}

void TestRegistry::PutIndex(absl::string_view repository, absl::string_view tag, const ImageIndex& index) {
  for (const Image& image : index.images) PutImage(repository, "", image);
  PutManifest(repository, tag, index.raw, index.descriptor.media_type);
}

absl::Status TestRegistry::PutLayout(absl::string_view repository, const std::string& directory) {
  return impl_->contents_.PutLayout(repository, directory);
}

void TestRegistry::SetAuth(AuthOptions auth) { impl_->auth_.Configure(std::move(auth), impl_->host_); }

void TestRegistry::SetCdn(CdnOptions cdn) {
  absl::MutexLock lock(&impl_->mutex_);
  impl_->cdn_ = cdn;
}

void TestRegistry::SetReferrersApi(bool enabled) {
  absl::MutexLock lock(&impl_->mutex_);
  impl_->referrers_api_ = enabled;
}

void TestRegistry::SetUploads(UploadOptions uploads) {
  if (uploads.commit_gate != nullptr) impl_->rules_.Remember(uploads.commit_gate);
  impl_->uploads_.Configure(std::move(uploads));
}

void TestRegistry::MakeOrphan(absl::string_view repository, const base::Digest& digest) {
  if (!impl_->contents_.FindBlob(repository, digest.ToString()).has_value())
    PutBlobAs(repository, digest, "");
  impl_->uploads_.MakeOrphan(repository, digest);
}

void TestRegistry::DropUploadSessions() { impl_->uploads_.DropSessions(); }

std::optional<std::string> TestRegistry::Blob(absl::string_view repository,
                                              const base::Digest& digest) const {
  const std::optional<Bytes> bytes = impl_->contents_.FindBlob(repository, digest.ToString());
  if (!bytes.has_value()) return std::nullopt;
  return bytes->Read(0, bytes->size);
}

std::optional<std::string> TestRegistry::Manifest(absl::string_view repository,
                                                  absl::string_view tag_or_digest) const {
  const auto manifest = impl_->contents_.FindManifest(repository, tag_or_digest);
  if (!manifest.has_value()) return std::nullopt;
  return manifest->raw.Read(0, manifest->raw.size);
}

size_t TestRegistry::upload_sessions() const { return impl_->uploads_.open_sessions(); }

void TestRegistry::RevokeTokens() { impl_->auth_.RevokeTokens(); }

void TestRegistry::ExpireCdnUrls() {
  absl::MutexLock lock(&impl_->mutex_);
  impl_->signatures_.clear();
}

void TestRegistry::AddFault(RequestMatcher matcher, FaultAction action) {
  impl_->rules_.Add(matcher, std::move(action));
}

void TestRegistry::ClearFaults() { impl_->rules_.Clear(); }

void TestRegistry::BreakConnections() {
  impl_->listener_.BreakConnections();
  impl_->cdn_listener_.BreakConnections();
}

std::vector<LoggedRequest> TestRegistry::Log() const { return Log(RequestMatcher()); }

std::vector<LoggedRequest> TestRegistry::Log(const RequestMatcher& matcher) const {
  const Matcher matches(matcher);
  std::vector<LoggedRequest> found;
  absl::MutexLock lock(&impl_->mutex_);
  for (const LogEntry& entry : impl_->log_) {
    if (matches.Matches(entry.request)) found.push_back(entry.request);
  }
  return found;
}

void TestRegistry::ClearLog() {
  absl::MutexLock lock(&impl_->mutex_);
  impl_->first_logged_ += impl_->log_.size();
  impl_->log_.clear();
}

size_t TestRegistry::Count(const RequestMatcher& matcher) const { return Log(matcher).size(); }

bool TestRegistry::AwaitRequests(const RequestMatcher& matcher, size_t count) const {
  const Matcher matches(matcher);
  Impl* const impl = impl_.get();
  absl::MutexLock lock(&impl->mutex_);
  auto enough = [impl, &matches, count]() {
    impl->mutex_.AssertHeld();
    return static_cast<size_t>(
               std::count_if(impl->log_.begin(), impl->log_.end(),
                             [&](const LogEntry& entry) { return matches.Matches(entry.request); })) >= count;
  };
  return impl->mutex_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
}

uint64_t TestRegistry::BodyBytes(const RequestMatcher& matcher) const {
  uint64_t bytes = 0;
  for (const LoggedRequest& request : Log(matcher)) bytes += request.body_bytes;
  return bytes;
}

uint64_t TestRegistry::ReceivedBytes(const RequestMatcher& matcher) const {
  uint64_t bytes = 0;
  for (const LoggedRequest& request : Log(matcher)) bytes += request.received_bytes;
  return bytes;
}

size_t TestRegistry::TimesFetched(const base::Digest& digest, uint64_t blob_offset) const {
  const std::string name = digest.ToString();
  absl::MutexLock lock(&impl_->mutex_);
  return static_cast<size_t>(
      std::count_if(impl_->log_.begin(), impl_->log_.end(), [&](const LogEntry& entry) {
        const LoggedRequest& request = entry.request;
        return request.method == "GET" && (request.status == 200 || request.status == 206) &&
               absl::EndsWith(request.path, name) && entry.body_offset <= blob_offset &&
               blob_offset - entry.body_offset < request.body_bytes;
      }));
}

size_t TestRegistry::connections() const { return impl_->next_connection_.load(); }

size_t TestRegistry::open_connections() const {
  return impl_->listener_.open_connections() + impl_->cdn_listener_.open_connections();
}

size_t TestRegistry::token_requests() const { return impl_->auth_.token_requests(); }

}  // namespace lazyblob::support

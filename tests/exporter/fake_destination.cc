#include "tests/exporter/fake_destination.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/support/gate.h"

namespace lazyblob::exporter {
namespace {

constexpr char kHttpPayload[] = "test/http";

absl::Status Live(const registry::CallContext& context) {
  if (context.cancel != nullptr && context.cancel->cancelled()) return absl::CancelledError("cancelled");
  return absl::OkStatus();
}

}  // namespace

absl::Status FakeRegistries::Refused(int http, const std::string& text) {
  absl::Status status = absl::InvalidArgumentError(text);
  if (http == 404) status = absl::NotFoundError(text);
  if (http == 403) status = absl::PermissionDeniedError(text);
  if (http == 401) status = absl::UnauthenticatedError(text);
  if (http == 416) status = absl::OutOfRangeError(text);
  if (http == 429 || http >= 500) status = absl::UnavailableError(text);
  status.SetPayload(kHttpPayload, absl::Cord(absl::StrCat(http)));
  return status;
}

class FakeDestination final : public internal::Destination {
 public:
  explicit FakeDestination(FakeRegistries* fake) : fake_(*fake) {}

  absl::StatusOr<uint64_t> Head(const oci::Reference& repository, const base::Digest& digest,
                                const registry::CallContext& context) override {
    RETURN_IF_ERROR(Enter({"head", repository.host, repository.repository, digest.ToString()}, context));
    const absl::MutexLock lock(&fake_.mutex_);
    const auto& blobs = fake_.blobs_[repository.Name()];
    const auto found = blobs.find(digest);
    if (found == blobs.end()) return FakeRegistries::Refused(404, "no such blob");
    return found->second.size();
  }
  absl::StatusOr<std::optional<registry::UploadSession>> Mount(
      const oci::Reference& repository, const base::Digest& digest, const std::string& from,
      const registry::CallContext& context) override {
    RETURN_IF_ERROR(Enter({"mount", repository.host, repository.repository, from}, context));
    const FakeHost& host = fake_.Host(repository.host);
    {
      const absl::MutexLock lock(&fake_.mutex_);
      for (const auto& [name, blobs] : fake_.blobs_) {
        const bool named = !from.empty() && name == repository.host + "/" + from && host.mounts &&
                           !host.unreadable.contains(from);
        const bool any = from.empty() && host.anonymous_mounts && name.starts_with(repository.host + "/");
        const auto found = blobs.find(digest);
        if ((!named && !any) || found == blobs.end()) continue;
        const std::string bytes = found->second;
        fake_.blobs_[repository.Name()][digest] = bytes;
        return std::optional<registry::UploadSession>();
      }
    }
    return std::optional(NewSession(repository));
  }
  absl::StatusOr<registry::UploadSession> Start(const oci::Reference& repository,
                                                const registry::CallContext& context) override {
    RETURN_IF_ERROR(Enter({"start", repository.host, repository.repository, ""}, context));
    if (fake_.Host(repository.host).denied.contains(repository.repository)) {
      return FakeRegistries::Refused(403, "denied");
    }
    return NewSession(repository);
  }
  absl::Status PutWhole(const oci::Reference& repository, const registry::UploadSession& session,
                        const oci::Descriptor& blob, registry::BodySource body,
                        const registry::CallContext& context) override {
    const FakeStep step{"put", repository.host, repository.repository, blob.digest.ToString(), blob.size};
    RETURN_IF_ERROR(Enter(step, context));
    const std::optional<uint64_t> cut = fake_.cut == nullptr ? std::nullopt : fake_.cut(step);
    std::string bytes;
    while (bytes.size() < std::min(blob.size, cut.value_or(UINT64_MAX))) {
      uint8_t buffer[1000];
      auto got = body(absl::MakeSpan(buffer).first(std::min<uint64_t>(1000, blob.size - bytes.size())));
      RETURN_IF_ERROR(got.status());
      if (*got == 0) return absl::DataLossError("the body ended early");
      bytes.append(reinterpret_cast<const char*>(buffer), *got);
      RETURN_IF_ERROR(Live(context));
    }
    const absl::MutexLock lock(&fake_.mutex_);
    fake_.body_bytes_ += bytes.size();
    const auto found = fake_.sessions_.find(session.location);
    if (found == fake_.sessions_.end()) return FakeRegistries::Refused(404, "no such session");
    if (cut.has_value()) {
      found->second.bytes = bytes.substr(0, *cut);
      if (fake_.Host(repository.host).forgets_broken_sessions) fake_.sessions_.erase(found);
      return absl::UnavailableError("the connection broke");
    }
    return End(repository, found, bytes, blob.digest);
  }
  absl::Status Patch(const oci::Reference& repository, registry::UploadSession* session,
                     absl::Span<const uint8_t> bytes, const registry::CallContext& context) override {
    const FakeStep step{"patch", repository.host, repository.repository, "", bytes.size()};
    RETURN_IF_ERROR(Enter(step, context));
    const FakeHost& host = fake_.Host(repository.host);
    if (!host.chunks) return FakeRegistries::Refused(404, "no chunks here");
    const std::optional<uint64_t> cut = fake_.cut == nullptr ? std::nullopt : fake_.cut(step);
    const absl::MutexLock lock(&fake_.mutex_);
    const auto found = fake_.sessions_.find(session->location);
    if (found == fake_.sessions_.end()) return FakeRegistries::Refused(404, "no such session");
    Session& held = found->second;
    if (held.bytes.size() != session->offset) return FakeRegistries::Refused(416, "not in order");
    const size_t count = std::min<uint64_t>(bytes.size(), cut.value_or(UINT64_MAX));
    fake_.body_bytes_ += count;
    if (host.drops_second_chunk && held.patches++ > 0)
      return absl::DataLossError("the registry drops chunks");
    held.bytes.append(reinterpret_cast<const char*>(bytes.data()), count);
    if (cut.has_value()) {
      if (host.forgets_broken_sessions) fake_.sessions_.erase(found);
      return absl::UnavailableError("the connection broke");
    }
    session->offset = held.bytes.size();
    return absl::OkStatus();
  }
  absl::Status Commit(const oci::Reference& repository, const registry::UploadSession& session,
                      const base::Digest& digest, const registry::CallContext& context) override {
    RETURN_IF_ERROR(Enter({"commit", repository.host, repository.repository, digest.ToString()}, context));
    const absl::MutexLock lock(&fake_.mutex_);
    const auto found = fake_.sessions_.find(session.location);
    if (found == fake_.sessions_.end()) return FakeRegistries::Refused(404, "no such session");
    const std::string bytes = found->second.bytes;
    return End(repository, found, bytes, digest);
  }
  absl::Status Query(const oci::Reference& repository, registry::UploadSession* session,
                     const registry::CallContext& context) override {
    RETURN_IF_ERROR(Enter({"query", repository.host, repository.repository, ""}, context));
    const absl::MutexLock lock(&fake_.mutex_);
    const auto found = fake_.sessions_.find(session->location);
    if (found == fake_.sessions_.end()) return FakeRegistries::Refused(404, "no such session");
    session->offset = found->second.bytes.size() < 2 ? 0 : found->second.bytes.size();
    return absl::OkStatus();
  }
  void Cancel(const oci::Reference& repository, const registry::UploadSession& session,
              const registry::CallContext&) override {
    Enter({"cancel", repository.host, repository.repository, ""}, {}).IgnoreError();
    const absl::MutexLock lock(&fake_.mutex_);
    fake_.sessions_.erase(session.location);
  }
  int HttpStatus(const absl::Status& status) const override {
    const auto payload = status.GetPayload(kHttpPayload);
    int http = 0;
    if (payload.has_value() && !absl::SimpleAtoi(std::string(*payload), &http)) http = 0;
    return http;
  }

 private:
  using Session = FakeRegistries::Session;

  absl::Status Enter(const FakeStep& step, const registry::CallContext& context) {
    {
      const absl::MutexLock lock(&fake_.mutex_);
      fake_.steps_.push_back(step);
    }
    RETURN_IF_ERROR(Live(context));
    if (fake_.before != nullptr) RETURN_IF_ERROR(fake_.before(step));
    return Live(context);
  }
  registry::UploadSession NewSession(const oci::Reference& repository) {
    const absl::MutexLock lock(&fake_.mutex_);
    registry::UploadSession session;
    session.location = absl::StrCat("http://", repository.host, "/upload/", fake_.next_session_++);
    session.min_chunk = fake_.Host(repository.host).min_chunk;
    fake_.sessions_[session.location].repository = repository.Name();
    return session;
  }
  absl::Status End(const oci::Reference& repository, std::map<std::string, Session>::iterator session,
                   const std::string& bytes, const base::Digest& digest)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(fake_.mutex_) {
    fake_.sessions_.erase(session);
    if (base::Digest::Of(bytes) != digest) return absl::DataLossError("DIGEST_INVALID");
    fake_.blobs_[repository.Name()][digest] = bytes;
    ++fake_.uploads_[{repository.host, digest}];
    return absl::OkStatus();
  }

  FakeRegistries& fake_;
};

std::unique_ptr<internal::Destination> FakeRegistries::NewDestination() {
  return std::make_unique<FakeDestination>(this);
}

void FakeRegistries::Put(const oci::Reference& repository, const std::string& bytes) {
  const absl::MutexLock lock(&mutex_);
  blobs_[repository.Name()][base::Digest::Of(bytes)] = bytes;
}

bool FakeRegistries::Has(const oci::Reference& repository, const base::Digest& digest) {
  const absl::MutexLock lock(&mutex_);
  return blobs_[repository.Name()].contains(digest);
}

size_t FakeRegistries::Count(const std::string& operation, const std::string& host) {
  const absl::MutexLock lock(&mutex_);
  return std::count_if(steps_.begin(), steps_.end(), [&](const FakeStep& step) {
    return step.operation == operation && (host.empty() || step.host == host);
  });
}

size_t FakeRegistries::Uploads(const std::string& host, const base::Digest& digest) {
  const absl::MutexLock lock(&mutex_);
  const auto found = uploads_.find({host, digest});
  return found == uploads_.end() ? 0 : found->second;
}

uint64_t FakeRegistries::body_bytes() {
  const absl::MutexLock lock(&mutex_);
  return body_bytes_;
}

size_t FakeRegistries::open_sessions() {
  const absl::MutexLock lock(&mutex_);
  return sessions_.size();
}

std::vector<FakeStep> FakeRegistries::steps() {
  const absl::MutexLock lock(&mutex_);
  return steps_;
}

bool FakeRegistries::AwaitCount(const std::string& operation, size_t count) {
  auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return static_cast<size_t>(std::count_if(steps_.begin(), steps_.end(), [&](const FakeStep& step) {
             return step.operation == operation;
           })) >= count;
  };
  const absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&enough), support::kPatience);
}

}  // namespace lazyblob::exporter

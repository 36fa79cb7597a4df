#include "exporter/internal/place_job.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::exporter::internal {
namespace {

constexpr size_t kMaxMountTries = 8;

absl::Status Cancelled() { return absl::CancelledError("cancelled"); }

// What another try with other bytes or another way cannot help.
bool EndsAll(const absl::Status& status) {
  return absl::IsCancelled(status) || absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status);
}

}  // namespace

void WaitingCredentials::Add(const void* waiter, Provider provider) {
  if (provider == nullptr) return;
  const absl::MutexLock lock(&mutex_);
  ones_.push_back({waiter, std::move(provider)});
}

void WaitingCredentials::Remove(const void* waiter) {
  const absl::MutexLock lock(&mutex_);
  std::erase_if(ones_, [waiter](const One& one) { return one.waiter == waiter; });
}

bool WaitingCredentials::Advance() {
  const absl::MutexLock lock(&mutex_);
  bool marked = false;
  for (One& one : ones_) {
    if (one.refused) continue;
    if (marked) return true;
    one.refused = marked = true;
  }
  return false;
}

bool WaitingCredentials::HasAsked(const void* waiter) const {
  const absl::MutexLock lock(&mutex_);
  const auto one = std::find_if(ones_.begin(), ones_.end(), [&](const One& o) { return o.waiter == waiter; });
  return one == ones_.end() || one->refused;
}

absl::StatusOr<std::optional<registry::Credentials>> WaitingCredentials::Lookup(
    absl::string_view host) const {
  return LookupFor(host, "");
}

absl::StatusOr<std::optional<registry::Credentials>> WaitingCredentials::LookupFor(
    absl::string_view host, absl::string_view repository) const {
  Provider provider;
  {
    const absl::MutexLock lock(&mutex_);
    for (const One& one : ones_) {
      if (provider == nullptr || !one.refused) provider = one.provider;
      if (!one.refused) break;
    }
  }
  if (provider == nullptr) return std::optional<registry::Credentials>();
  return provider->LookupFor(host, repository);
}

PlaceJob::PlaceJob(const PlacerParts* parts, const PlaceRequest& request, bool again)
    : parts_(*parts),
      blob_(request.blob),
      repository_(request.repository),
      again_(again),
      cancel_(std::make_shared<base::CancelToken>()),
      waiting_credentials_(std::make_shared<WaitingCredentials>()),
      own_credentials_(request.credentials == nullptr) {}

void PlaceJob::AddWatcher(const PlaceRequest* request) {
  waiting_credentials_->Add(request, request->credentials);
  const absl::MutexLock lock(&watch_mutex_);
  watchers_.push_back(request);
  SetPriority();
  if (request->progress != nullptr) request->progress(Progress(state_));
}

void PlaceJob::RemoveWatcher(const PlaceRequest* request) {
  waiting_credentials_->Remove(request);
  const absl::MutexLock lock(&watch_mutex_);
  std::erase(watchers_, request);
  SetPriority();
}

void PlaceJob::SetPriority() {
  if (watchers_.empty()) return;
  Priority priority = Priority::kCache;
  for (const PlaceRequest* watcher : watchers_) priority = std::min(priority, watcher->priority);
  parts_.claims->SetPriority(&party_, priority);
}

void PlaceJob::Report(PlacementState state) {
  const absl::MutexLock lock(&watch_mutex_);
  state_ = state;
  for (const PlaceRequest* watcher : watchers_) {
    if (watcher->progress != nullptr) watcher->progress(Progress(state));
  }
}

registry::CallContext PlaceJob::Context() const {
  registry::CallContext context;
  context.cancel = cancel_;
  context.access = registry::Access::kPush;
  if (!own_credentials_) context.credentials = waiting_credentials_;
  return context;
}

absl::StatusOr<PlacementState> PlaceJob::Run() {
  absl::StatusOr<PlacementState> state = Place();
  ReleaseClaims();
  if (state.ok()) return state;
  const std::optional<oci::Descriptor> descriptor = blob_->descriptor();
  return base::Annotate(
      state.status(),
      absl::StrCat("blob ", descriptor.has_value() ? descriptor->digest.ToString() : "not made yet", " for ",
                   base::Printable(repository_.Name())));
}

absl::StatusOr<PlacementState> PlaceJob::Place() {
  // From the first request on: cache uploads make room for an image that is about to send.
  const std::unique_ptr<HostGate::Transfer> transfer =
      parts_.gate->Begin(repository_.host, parts_.claims->PriorityOf(party_));
  parts_.claims->SetTransfer(&party_, transfer.get());
  const absl::Cleanup forget = [&] { parts_.claims->SetTransfer(&party_, nullptr); };
  std::optional<registry::UploadSession> session;
  RETURN_IF_ERROR(AwaitOrClaimMade());
  if (const std::optional<oci::Descriptor> descriptor = blob_->descriptor(); descriptor.has_value()) {
    absl::StatusOr<std::optional<PlacementState>> placed = WithoutBytes(*descriptor, &session);
    if (!placed.ok() || placed->has_value()) {
      if (session.has_value()) parts_.destination->Cancel(repository_, *session, Context());
      RETURN_IF_ERROR(placed.status());
      return **placed;
    }
  }
  return Upload(std::move(session), transfer.get());
}

// Of several placements of a blob that is being made, one on each host follows it. Who finds it made waits
// for that one, too: it may be about to commit.
absl::Status PlaceJob::AwaitOrClaimMade() {
  const Claims::Key key(repository_.host, absl::StrCat("made:", reinterpret_cast<uintptr_t>(blob_.get())));
  while (parts_.book->Mounts(repository_.host)) {
    const bool made = blob_->descriptor().has_value();
    const Claims::Answer answer = parts_.claims->Acquire(key, &party_, true, cancel_.get());
    if (answer == Claims::Answer::kCancelled) return Cancelled();
    if (answer == Claims::Answer::kMine) {
      if (made) {
        parts_.claims->Release(key, &party_);
      } else {
        claimed_.push_back(key);
      }
      break;
    }
    if (blob_->descriptor().has_value()) break;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<PlacementState>> PlaceJob::WithoutBytes(
    const oci::Descriptor& blob, std::optional<registry::UploadSession>* session) {
  if (!again_) {
    if (parts_.book->IsThere(blob.digest, repository_)) return std::optional(PlacementState::kExists);
    const absl::StatusOr<uint64_t> size = parts_.destination->Head(repository_, blob.digest, Context());
    if (!size.ok() && EndsAll(size.status())) return size.status();
    if (size.ok() && *size == blob.size) {
      parts_.book->NoteThere(blob.digest, repository_);
      return std::optional(PlacementState::kExists);
    }
    for (const oci::Reference& known : blob_->repositories()) {
      if (known.host == repository_.host) parts_.book->Learn(blob.digest, known);
    }
  }
  const Claims::Key key(repository_.host, blob.digest.ToString());
  while (true) {
    ASSIGN_OR_RETURN(const bool mounted, TryMounts(blob, session));
    if (mounted) return std::optional(PlacementState::kMounted);
    const bool wait = again_ || parts_.book->Mounts(repository_.host);
    const Claims::Answer answer = parts_.claims->Acquire(key, &party_, wait, cancel_.get());
    if (answer == Claims::Answer::kCancelled) return Cancelled();
    if (answer == Claims::Answer::kReleased) {
      const bool there = !again_ && parts_.book->IsThere(blob.digest, repository_);
      if (there) return std::optional(PlacementState::kExists);
      continue;
    }
    if (answer == Claims::Answer::kMine) claimed_.push_back(key);
    // Whoever had the claim before may have finished in between.
    ASSIGN_OR_RETURN(const bool mounted_now, TryMounts(blob, session));
    if (mounted_now) return std::optional(PlacementState::kMounted);
    break;
  }
  if (session->has_value() || again_) return std::optional<PlacementState>();
  ASSIGN_OR_RETURN(const bool mounted, TryAnonymous(blob, session));
  if (mounted) return std::optional(PlacementState::kMounted);
  return std::optional<PlacementState>();
}

absl::StatusOr<bool> PlaceJob::TryMounts(const oci::Descriptor& blob,
                                         std::optional<registry::UploadSession>* session) {
  if (again_) return false;
  const std::vector<std::string> candidates = parts_.book->Candidates(blob.digest, repository_);
  for (size_t i = 0; i < std::min(candidates.size(), kMaxMountTries); ++i) {
    if (!parts_.book->Mounts(repository_.host)) return false;
    Report(PlacementState::kMounting);
    auto opened = parts_.destination->Mount(repository_, blob.digest, candidates[i], Context());
    if (!opened.ok() && EndsAll(opened.status())) return opened.status();
    const bool mounted = opened.ok() && !opened->has_value();
    parts_.book->NoteMount(blob.digest, candidates[i], repository_, mounted);
    if (mounted) {
      parts_.book->NoteThere(blob.digest, repository_);
      return true;
    }
    if (opened.ok()) Keep(*std::move(opened), session);
  }
  if (!candidates.empty()) parts_.book->NoteNoneMounted(blob.digest, repository_);
  return false;
}

absl::StatusOr<bool> PlaceJob::TryAnonymous(const oci::Descriptor& blob,
                                            std::optional<registry::UploadSession>* session) {
  if (!parts_.book->TryAnonymous(repository_.host)) return false;
  Report(PlacementState::kMounting);
  auto opened = parts_.destination->Mount(repository_, blob.digest, "", Context());
  if (!opened.ok() && EndsAll(opened.status())) return opened.status();
  const bool mounted = opened.ok() && !opened->has_value();
  parts_.book->NoteAnonymous(repository_.host, mounted);
  if (mounted) parts_.book->NoteThere(blob.digest, repository_);
  if (!mounted && opened.ok()) Keep(*std::move(opened), session);
  return mounted;
}

void PlaceJob::Keep(std::optional<registry::UploadSession> opened,
                    std::optional<registry::UploadSession>* session) {
  if (!opened.has_value()) return;
  if (session->has_value()) {
    parts_.destination->Cancel(repository_, *opened, Context());
  } else {
    *session = std::move(opened);
  }
}

absl::StatusOr<PlacementState> PlaceJob::Upload(std::optional<registry::UploadSession> session,
                                                HostGate::Transfer* transfer) {
  Report(PlacementState::kStreaming);
  PlacementState otherwise = PlacementState::kExists;
  UploadTask task;
  task.repository = repository_;
  task.blob = blob_;
  task.call = Context();
  task.fetch.cancel = cancel_;
  task.fetch.credentials = task.call.credentials;
  task.transfer = transfer;
  task.read = read_;
  task.session = std::move(session);
  task.on_sent = [this](uint64_t bytes) {
    sent_.fetch_add(bytes, std::memory_order_relaxed);
    Report(PlacementState::kStreaming);
  };
  task.on_known = [&](const oci::Descriptor& blob) -> absl::StatusOr<bool> {
    if (again_) return false;
    parts_.become_known(this, blob.digest);
    std::optional<registry::UploadSession> opened;
    absl::StatusOr<std::optional<PlacementState>> placed = WithoutBytes(blob, &opened);
    if (opened.has_value()) parts_.destination->Cancel(repository_, *opened, Context());
    RETURN_IF_ERROR(placed.status());
    if (placed->has_value()) otherwise = **placed;
    Report(PlacementState::kStreaming);
    return placed->has_value();
  };
  task.on_refused = [this] { return !own_credentials_ && waiting_credentials_->Advance(); };
  ASSIGN_OR_RETURN(const Uploader::Outcome outcome, parts_.uploader->Upload(std::move(task)));
  if (const std::optional<oci::Descriptor> blob = blob_->descriptor(); blob.has_value()) {
    parts_.book->NoteThere(blob->digest, repository_);
  }
  return outcome == Uploader::Outcome::kUploaded ? PlacementState::kUploaded : otherwise;
}

void PlaceJob::ReleaseClaims() {
  for (const Claims::Key& key : claimed_) parts_.claims->Release(key, &party_);
  claimed_.clear();
}

}  // namespace lazyblob::exporter::internal

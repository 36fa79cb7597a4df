#include "exporter/placer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/cond_var.h"
#include "base/status.h"
#include "exporter/internal/placer_impl.h"

namespace lazyblob::exporter {
namespace internal {
namespace {

std::string RepositoryKey(const oci::Reference& repository, absl::string_view blob, bool again) {
  return absl::StrCat(repository.host, "\n", repository.repository, "\n", blob, again ? "\nagain" : "");
}

std::string MadeKeyOf(const PlaceRequest& request, bool again) {
  return RepositoryKey(request.repository,
                       absl::StrCat("made:", reinterpret_cast<uintptr_t>(request.blob.get())), again);
}

std::string KeyOf(const PlaceRequest& request, bool again) {
  const std::optional<oci::Descriptor> blob = request.blob->descriptor();
  if (!blob.has_value()) return MadeKeyOf(request, again);
  return RepositoryKey(request.repository, blob->digest.ToString(), again);
}

bool IsRefusal(const absl::Status& status) {
  return absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status);
}

UploaderOptions OptionsOf(const PlacerOptions& options, const PlacerSeams& seams) {
  UploaderOptions of_uploads;
  of_uploads.chunk_bytes = options.chunk_bytes;
  of_uploads.monolithic_bytes = options.monolithic_bytes;
  of_uploads.max_piece_bytes = std::max(options.chunk_bytes, options.max_memory_bytes / 4);
  of_uploads.clock = seams.clock;
  of_uploads.sleep = seams.sleep != nullptr ? seams.sleep : base::SleepUnlessCancelled;
  return of_uploads;
}

}  // namespace

PlacerImpl::PlacerImpl(PlacerOptions options, PlacerSeams seams, std::unique_ptr<Journal> journal)
    : journal_(std::move(journal)),
      destination_(std::move(seams.destination)),
      gate_(HostGateOptions{.slots = options.uploads_per_host}),
      reads_(options.max_memory_bytes),
      book_(seams.clock),
      uploader_(destination_.get(), &reads_, &gate_, journal_.get(), OptionsOf(options, seams)),
      parts_{destination_.get(),
             &uploader_,
             &gate_,
             &claims_,
             &book_,
             [this](PlaceJob* job, const base::Digest& digest) { BecomeKnown(job, digest); }} {}

PlacerImpl::~PlacerImpl() {
  std::list<JobPtr> threads;
  {
    const absl::MutexLock lock(&mutex_);
    threads.swap(threads_);
  }
  for (const JobPtr& job : threads) job->Cancel();
  for (const JobPtr& job : threads) job->thread.join();
}

void PlacerImpl::Learn(const base::Digest& digest, const oci::Reference& repository) {
  book_.Learn(digest, repository);
}

absl::StatusOr<PlacementState> PlacerImpl::PlaceAgain(const PlaceRequest& request) {
  if (const auto blob = request.blob->descriptor(); blob.has_value()) {
    book_.Forget(blob->digest, request.repository);
  }
  return Run(request, true);
}

absl::StatusOr<PlacementState> PlacerImpl::Run(const PlaceRequest& request, bool again) {
  Reap();
  absl::StatusOr<PlacementState> result;
  JobPtr job;
  for (bool over = false; !over;) {
    bool began = false;
    job = Join(request, again, &began);
    job->AddWatcher(&request);
    result = Await(request, job);
    // Joined while it failed with what others may not do: nobody has asked this request's credentials yet.
    over = began || !IsRefusal(result.status()) || job->HasAsked(&request);
    job->RemoveWatcher(&request);
  }
  if (request.progress != nullptr) {
    request.progress(job->Progress(result.ok() ? *result : PlacementState::kFailed));
  }
  return result;
}

PlacerImpl::JobPtr PlacerImpl::Join(const PlaceRequest& request, bool again, bool* began) {
  const absl::MutexLock lock(&mutex_);
  // A placement that began while the blob was being made may not have noticed yet that it is.
  const std::string key = KeyOf(request, again);
  auto found = running_.find(key);
  if (found == running_.end()) found = running_.find(MadeKeyOf(request, again));
  if (found != running_.end()) {
    ++found->second->waiters;
    return found->second;
  }
  *began = true;
  auto job = std::make_shared<PlaceJob>(&parts_, request, again);
  job->key = key;
  job->waiters = 1;
  running_.emplace(key, job);
  threads_.push_back(job);
  job->thread = std::thread([this, job = job.get()] { Finish(job, job->Run()); });
  return job;
}

absl::StatusOr<PlacementState> PlacerImpl::Await(const PlaceRequest& request, const JobPtr& job) {
  base::CancelToken none;
  base::CancelToken* const cancel = request.cancel == nullptr ? &none : request.cancel.get();
  const base::CancelToken::Registration wake =
      cancel->OnCancel([this] { const absl::MutexLock lock(&mutex_); });
  bool last = false;
  {
    const absl::MutexLock lock(&mutex_);
    auto over = [&] { return job->done || cancel->cancelled(); };
    mutex_.Await(absl::Condition(&over));
    --job->waiters;
    if (job->done) return job->result;
    last = job->waiters == 0;
    if (last) {
      job->abandoned = true;
      Unlist(job.get());
    }
  }
  if (last) job->Cancel();
  return absl::CancelledError(
      absl::StrCat("placement in ", base::Printable(request.repository.Name()), " was cancelled"));
}

void PlacerImpl::Unlist(PlaceJob* job) {
  for (const std::string& key : {job->key, job->other_key}) {
    const auto found = running_.find(key);
    if (found != running_.end() && found->second.get() == job) running_.erase(found);
  }
}

void PlacerImpl::Finish(PlaceJob* job, absl::StatusOr<PlacementState> result) {
  const absl::MutexLock lock(&mutex_);
  Unlist(job);
  job->result = std::move(result);
  job->done = true;
}

void PlacerImpl::BecomeKnown(PlaceJob* job, const base::Digest& digest) {
  const size_t cut = job->key.rfind("\nmade:");
  if (cut == std::string::npos) return;
  const std::string key = absl::StrCat(job->key.substr(0, cut), "\n", digest.ToString());
  const absl::MutexLock lock(&mutex_);
  const auto own = running_.find(job->key);
  if (own == running_.end() || own->second.get() != job) return;
  // Where an equal one runs already, the claim on the digest settles who sends.
  const JobPtr self = own->second;
  if (running_.emplace(key, self).second) job->other_key = key;
}

void PlacerImpl::Reap() {
  std::list<JobPtr> finished;
  {
    const absl::MutexLock lock(&mutex_);
    for (auto at = threads_.begin(); at != threads_.end();) {
      const auto next = std::next(at);
      if ((*at)->done) finished.splice(finished.end(), threads_, at);
      at = next;
    }
  }
  for (const JobPtr& job : finished) job->thread.join();
}

}  // namespace internal

absl::string_view PlacementStateName(PlacementState state) {
  switch (state) {
    case PlacementState::kQueued:
      return "queued";
    case PlacementState::kMounting:
      return "mounting";
    case PlacementState::kStreaming:
      return "streaming";
    case PlacementState::kExists:
      return "exists";
    case PlacementState::kMounted:
      return "mounted";
    case PlacementState::kUploaded:
      return "uploaded";
    case PlacementState::kFailed:
      return "failed";
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<Placer>> Placer::Create(PlacerOptions options) {
  std::unique_ptr<Journal> journal;
  if (!options.journal.empty()) {
    ASSIGN_OR_RETURN(journal, Journal::Open(options.journal));
  }
  internal::PlacerSeams seams;
  seams.destination = internal::MakeRegistryDestination(options.client);
  return std::make_unique<internal::PlacerImpl>(std::move(options), std::move(seams), std::move(journal));
}

}  // namespace lazyblob::exporter

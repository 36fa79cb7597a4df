#pragma once

// One placement and all who wait for it. Runs on a thread of its own, so that whoever began it may leave.

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "exporter/internal/claims.h"
#include "exporter/internal/destination.h"
#include "exporter/internal/mount_book.h"
#include "exporter/placer.h"
#include "exporter/uploader.h"

namespace lazyblob::exporter::internal {

// Asks those who wait now, in turn; never somebody who has left. Thread-safe.
class WaitingCredentials final : public registry::CredentialsProvider {
 public:
  using Provider = std::shared_ptr<const registry::CredentialsProvider>;
  void Add(const void* waiter, Provider provider) ABSL_LOCKS_EXCLUDED(mutex_);
  void Remove(const void* waiter) ABSL_LOCKS_EXCLUDED(mutex_);
  // What the present one has is refused: false when nobody is left who has not been asked.
  bool Advance() ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether what the waiter has was refused, or it has nothing of its own to be asked for.
  bool HasAsked(const void* waiter) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view host) const override;
  absl::StatusOr<std::optional<registry::Credentials>> LookupFor(absl::string_view host,
                                                                 absl::string_view repository) const override
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct One {
    const void* waiter;
    Provider provider;
    bool refused = false;
  };
  mutable absl::Mutex mutex_;
  std::vector<One> ones_ ABSL_GUARDED_BY(mutex_);
};

// What all placements share. Everything in it is thread-safe.
struct PlacerParts {
  Destination* destination;
  Uploader* uploader;
  HostGate* gate;
  Claims* claims;
  MountBook* book;
  // The digest of a job's blob has just become known: equal placements join it from now on.
  std::function<void(class PlaceJob* job, const base::Digest&)> become_known;
};

class PlaceJob {
 public:
  PlaceJob(const PlacerParts* parts, const PlaceRequest& request, bool again);

  // On the job's thread.
  absl::StatusOr<PlacementState> Run();
  void Cancel() { cancel_->Cancel(); }
  base::CancelToken* cancel() { return cancel_.get(); }

  // Who wants to hear of it.
  void AddWatcher(const PlaceRequest* request) ABSL_LOCKS_EXCLUDED(watch_mutex_);
  void RemoveWatcher(const PlaceRequest* request) ABSL_LOCKS_EXCLUDED(watch_mutex_);
  // Of one who watches: see WaitingCredentials.
  bool HasAsked(const PlaceRequest* request) const { return waiting_credentials_->HasAsked(request); }
  PlacementProgress Progress(PlacementState state) const { return {state, sent_, *read_}; }

  // Guarded by the mutex of the placer, which this class cannot name.
  std::string key;
  std::string other_key;  // by digest, once that is known
  int waiters = 0;
  bool abandoned = false;  // nobody waited any more: not to be joined
  bool done = false;
  absl::StatusOr<PlacementState> result = absl::UnknownError("not run");
  std::thread thread;

 private:
  // Whether the blob is, or can be, there without its bytes; unset: it has to be sent, and the claim on it is
  // held (or useless).
  absl::StatusOr<std::optional<PlacementState>> WithoutBytes(const oci::Descriptor& blob,
                                                             std::optional<registry::UploadSession>* session);
  absl::StatusOr<bool> TryMounts(const oci::Descriptor& blob,
                                 std::optional<registry::UploadSession>* session);
  absl::StatusOr<bool> TryAnonymous(const oci::Descriptor& blob,
                                    std::optional<registry::UploadSession>* session);
  absl::StatusOr<PlacementState> Place();
  absl::StatusOr<PlacementState> Upload(std::optional<registry::UploadSession> session,
                                        HostGate::Transfer* transfer);
  absl::Status AwaitOrClaimMade();
  // The session a mount left behind is used, or cancelled if there is one already.
  void Keep(std::optional<registry::UploadSession> opened, std::optional<registry::UploadSession>* session);
  void Report(PlacementState state) ABSL_LOCKS_EXCLUDED(watch_mutex_);
  // What those who wait make it worth; with nobody left it stays what it was.
  void SetPriority() ABSL_EXCLUSIVE_LOCKS_REQUIRED(watch_mutex_);
  void ReleaseClaims();
  registry::CallContext Context() const;

  const PlacerParts& parts_;
  const std::shared_ptr<Blob> blob_;  // shared by its placements
  const oci::Reference repository_;
  const bool again_;
  const std::shared_ptr<base::CancelToken> cancel_;                // shared with the calls it makes
  const std::shared_ptr<WaitingCredentials> waiting_credentials_;  // shared with the calls it makes
  const bool own_credentials_;                                     // of the client, not of those who wait
  Claims::Party party_;
  std::vector<Claims::Key> claimed_;
  std::atomic<uint64_t> sent_ = 0;
  // Shared with reads that others may go on with.
  const std::shared_ptr<std::atomic<uint64_t>> read_ = std::make_shared<std::atomic<uint64_t>>(0);

  absl::Mutex watch_mutex_;  // held while watchers are called; under it that of Claims may be taken
  PlacementState state_ ABSL_GUARDED_BY(watch_mutex_) = PlacementState::kQueued;
  std::vector<const PlaceRequest*> watchers_ ABSL_GUARDED_BY(watch_mutex_);
};

}  // namespace lazyblob::exporter::internal

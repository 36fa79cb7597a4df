#pragma once

// The placer over any Destination: what Placer::Create makes for a registry, and tests for a fake.

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "exporter/internal/place_job.h"
#include "exporter/internal/read_fan.h"

namespace lazyblob::exporter::internal {

struct PlacerSeams {
  std::unique_ptr<Destination> destination;
  const base::Clock* clock = &base::SystemClock();
  std::function<void(absl::Duration, base::CancelToken*)> sleep;  // empty: waits
};

class PlacerImpl final : public Placer {
 public:
  PlacerImpl(PlacerOptions options, PlacerSeams seams, std::unique_ptr<Journal> journal);
  ~PlacerImpl() override;

  absl::StatusOr<PlacementState> Place(const PlaceRequest& request) override { return Run(request, false); }
  absl::StatusOr<PlacementState> PlaceAgain(const PlaceRequest& request) override;
  void Learn(const base::Digest& digest, const oci::Reference& repository) override;
  void KeepSessions() override { uploader_.KeepSessions(); }

  const ReadFan& reads() const { return reads_; }

 private:
  using JobPtr = std::shared_ptr<PlaceJob>;  // of its thread, of those who wait, of the table

  absl::StatusOr<PlacementState> Run(const PlaceRequest& request, bool again) ABSL_LOCKS_EXCLUDED(mutex_);
  // Began: there was none to join.
  JobPtr Join(const PlaceRequest& request, bool again, bool* began) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<PlacementState> Await(const PlaceRequest& request, const JobPtr& job)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void BecomeKnown(PlaceJob* job, const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  void Finish(PlaceJob* job, absl::StatusOr<PlacementState> result) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unlist(PlaceJob* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Reap() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::unique_ptr<Journal> journal_;  // may be null
  const std::unique_ptr<Destination> destination_;
  HostGate gate_;
  ReadFan reads_;
  Claims claims_;
  MountBook book_;
  Uploader uploader_;
  PlacerParts parts_;

  absl::Mutex mutex_;
  std::map<std::string, JobPtr> running_ ABSL_GUARDED_BY(mutex_);
  std::list<JobPtr> threads_ ABSL_GUARDED_BY(mutex_);  // to be joined
};

}  // namespace lazyblob::exporter::internal

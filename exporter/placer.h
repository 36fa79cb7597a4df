#pragma once

// Placements: "this digest must exist in that repository". It exists, is mounted from another repository of
// the host, or is uploaded; each (host, repository, digest) once at a time, whoever asks: image, cache, tags,
// platforms, concurrent exports. Rules: docs/EXPORTER.md.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/cancel.h"
#include "exporter/blob.h"
#include "exporter/host_gate.h"
#include "oci/reference.h"
#include "registry/pusher.h"

namespace lazyblob::exporter {

enum class PlacementState : uint8_t {
  kQueued,
  kMounting,
  kStreaming,
  // final, exactly one of them:
  kExists,
  kMounted,
  kUploaded,
  kFailed,
};
absl::string_view PlacementStateName(PlacementState state);
inline bool IsFinal(PlacementState state) { return state >= PlacementState::kExists; }

struct PlacementProgress {
  PlacementState state = PlacementState::kQueued;
  uint64_t sent = 0;  // body bytes of this blob to this repository, repeats included
  uint64_t read = 0;  // of its sources for that; what placements share is counted by the one that began it
};
// Any thread; quick; not into the placer. The last call, with a final state, comes before Place returns.
using OnPlacement = std::function<void(const PlacementProgress&)>;

struct PlaceRequest {
  std::shared_ptr<Blob> blob;
  oci::Reference repository;  // tag and digest ignored
  Priority priority = Priority::kImage;
  OnPlacement progress;  // may be empty
  std::shared_ptr<base::CancelToken> cancel;
  std::shared_ptr<const registry::CredentialsProvider> credentials;  // of the requester; null: the client's,
                                                                     // also of those who join
};

struct PlacerOptions {
  registry::Client* client = nullptr;  // outlives the placer
  std::string journal;                 // directory for upload sessions that outlive the process; empty: none
  int uploads_per_host = 4;            // and one more for bodies up to 64 KiB
  uint64_t chunk_bytes = 8 << 20;      // unit of priority, retry and memory
  uint64_t monolithic_bytes = 64 << 20;  // blobs up to this go in one PUT
  uint64_t max_memory_bytes = 96 << 20;
};

// Thread-safe.
class Placer {
 public:
  // FailedPrecondition: the journal's directory is open to others, or another process has it.
  static absl::StatusOr<std::unique_ptr<Placer>> Create(PlacerOptions options);
  virtual ~Placer() = default;  // cancels what runs; nobody may wait in Place any more

  // Blocks until the blob is there. An equal placement under way is joined; the more urgent priority of
  // those who wait counts, cancelling one waiter ends only its own wait, the last one's ends the upload and
  // its session. An error wakes all and is not kept. What was placed or found is remembered for mounts.
  // Errors: DataLoss (no source has bytes of that digest; nothing was committed), PermissionDenied, provider
  // missing (typed), …: each names digest, host and repository.
  virtual absl::StatusOr<PlacementState> Place(const PlaceRequest& request) = 0;
  // The registry said MANIFEST_BLOB_UNKNOWN although the blob seemed to be there: forget what is believed
  // and upload it, once.
  virtual absl::StatusOr<PlacementState> PlaceAgain(const PlaceRequest& request) = 0;
  // Another repository where a digest is: a mount candidate.
  virtual void Learn(const base::Digest& digest, const oci::Reference& repository) = 0;
  // The process is about to end: uploads that are cancelled from now on leave their sessions to the next one,
  // where the journal has them.
  virtual void KeepSessions() {}
};

}  // namespace lazyblob::exporter

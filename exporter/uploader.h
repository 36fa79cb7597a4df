#pragma once

// One blob to one repository, byte by byte: in one PUT or in chunks, hashed on the way, resumed where the
// registry is, committed only when size and digest are right. Which way, and what each failure leads to:
// docs/EXPORTER.md. Thread-safe; Upload blocks.

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "exporter/blob.h"
#include "exporter/host_gate.h"
#include "exporter/internal/destination.h"
#include "exporter/internal/read_fan.h"
#include "exporter/journal.h"

namespace lazyblob::exporter {

struct UploaderOptions {
  uint64_t chunk_bytes = 8 << 20;
  uint64_t monolithic_bytes = 64 << 20;
  uint64_t max_piece_bytes = 32 << 20;                     // a registry that wants larger chunks gets one PUT
  int max_failures = 5;                                    // in a row, without a byte of progress
  absl::Duration first_backoff = absl::Milliseconds(100);  // doubled, up to 5 s
  absl::Duration downgrade_ttl = absl::Minutes(30);        // a host that does not do chunks is tried again
  const base::Clock* clock = &base::SystemClock();
  // Waits, or less when cancelled; tests do not wait.
  std::function<void(absl::Duration, base::CancelToken*)> sleep;
};

struct UploadTask {
  oci::Reference repository;
  std::shared_ptr<Blob> blob;
  registry::CallContext call;        // to the destination
  contentstore::FetchContext fetch;  // from the source
  HostGate::Transfer* transfer = nullptr;
  std::shared_ptr<std::atomic<uint64_t>> read;     // counts what its reads give; may be null
  std::optional<registry::UploadSession> session;  // an open one, with nothing in it
  std::function<void(uint64_t)> on_sent;           // body bytes handed to the connection
  // A blob that was being made is known now: whether it is in the repository without its bytes being sent.
  std::function<absl::StatusOr<bool>(const oci::Descriptor&)> on_known;
  // The source or the destination refused the credentials: whether there are others to try.
  std::function<bool()> on_refused;
};

class Uploader {
 public:
  enum class Outcome : uint8_t { kUploaded, kNotNeeded };

  // `journal` may be null. All outlive the uploader.
  Uploader(internal::Destination* destination, internal::ReadFan* reads, HostGate* gate, Journal* journal,
           UploaderOptions options);

  // Errors: those of the source as they are, if it gave none of what is wanted; DataLoss naming every source
  // whose bytes had another digest or size; those of the destination. After an error that another try may
  // get past, a journaled session is kept; after all others it is cancelled.
  absl::StatusOr<Outcome> Upload(UploadTask task);

  // From now on a cancelled upload keeps its journaled session too.
  void KeepSessions() { keep_sessions_ = true; }
  // What was learned of the host.
  bool TakesChunks(const std::string& host) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class UploadRun;
  void NoteNoChunks(const std::string& host) ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteRate(const std::string& host, uint64_t bytes, absl::Duration took) ABSL_LOCKS_EXCLUDED(mutex_);
  // What the host takes in about two seconds, at most a piece; the least while an image waits for that.
  uint64_t ChunkFor(const std::string& host, Priority priority) ABSL_LOCKS_EXCLUDED(mutex_);

  struct HostFacts {
    absl::Duration no_chunks_until = -absl::InfiniteDuration();
    double bytes_per_second = 0;
  };

  internal::Destination& destination_;
  internal::ReadFan& reads_;
  HostGate& gate_;
  Journal* const journal_;
  const UploaderOptions options_;
  std::atomic<bool> keep_sessions_ = false;
  absl::Mutex mutex_;
  std::map<std::string, HostFacts> hosts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::exporter

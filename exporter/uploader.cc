#include "exporter/uploader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "exporter/internal/upload_run.h"

namespace lazyblob::exporter {
namespace {

constexpr uint64_t kMinChunk = 1 << 20;
constexpr double kChunkSeconds = 2;

}  // namespace

Uploader::Uploader(internal::Destination* destination, internal::ReadFan* reads, HostGate* gate,
                   Journal* journal, UploaderOptions options)
    : destination_(*destination),
      reads_(*reads),
      gate_(*gate),
      journal_(journal),
      options_(std::move(options)) {}

absl::StatusOr<Uploader::Outcome> Uploader::Upload(UploadTask task) {
  return UploadRun(this, std::move(task)).Go();
}

bool Uploader::TakesChunks(const std::string& host) {
  const absl::MutexLock lock(&mutex_);
  return options_.clock->Monotonic() >= hosts_[host].no_chunks_until;
}

void Uploader::NoteNoChunks(const std::string& host) {
  const absl::MutexLock lock(&mutex_);
  hosts_[host].no_chunks_until = options_.clock->Monotonic() + options_.downgrade_ttl;
}

void Uploader::NoteRate(const std::string& host, uint64_t bytes, absl::Duration took) {
  if (bytes < kMinChunk / 2 || took <= absl::ZeroDuration()) return;
  const double rate = static_cast<double>(bytes) / absl::ToDoubleSeconds(took);
  const absl::MutexLock lock(&mutex_);
  double& known = hosts_[host].bytes_per_second;
  known = known == 0 ? rate : 0.7 * known + 0.3 * rate;
}

uint64_t Uploader::ChunkFor(const std::string& host, Priority priority) {
  const uint64_t smallest = std::min(kMinChunk, options_.chunk_bytes);
  if (priority == Priority::kCache && gate_.HasImageTransfers(host)) return smallest;
  const absl::MutexLock lock(&mutex_);
  const double rate = hosts_[host].bytes_per_second;
  if (rate == 0 || rate * kChunkSeconds >= static_cast<double>(UINT64_MAX / 2)) return UINT64_MAX;
  return std::max(smallest, static_cast<uint64_t>(rate * kChunkSeconds));
}

}  // namespace lazyblob::exporter

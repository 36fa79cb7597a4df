#pragma once

// New layers on top of a base: made side by side, compressed and hashed once, and to be placed while they are
// being made.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "exporter/blob.h"
#include "exporter/layer_writer.h"
#include "exporter/tree.h"
#include "proto/exporter.pb.h"

namespace lazyblob::exporter {

// The directory that holds what a snapshot changed; NotFound when there is no such snapshot.
using SnapshotDirectory = std::function<absl::StatusOr<std::string>(const std::string& key)>;

struct MakeOptions {
  std::string staging;         // directory for blobs while they are made; exists
  SnapshotDirectory snapshot;  // may be empty: there are no snapshots here
  LayerCompression compression = LayerCompression::kGzip;
  int level = 0;
  int64_t source_date_epoch = 0;  // 0: none
  bool docker_media_types = false;
  std::shared_ptr<base::CancelToken> cancel;  // never null
  std::function<void(const v1::Progress&)> progress;
};

// One layer that is being made. Thread-safe; shared by those who make and those who want it.
class MadeLayer {
 public:
  // Can be placed at once.
  const std::shared_ptr<Blob>& blob() const { return blob_; }
  const v1::LayerSource& source() const { return source_; }
  // Waits for the end: what it is, or why there is none.
  absl::StatusOr<LayerResult> Wait(base::CancelToken* cancel);

 private:
  friend class LayerMaker;
  explicit MadeLayer(v1::LayerSource source) : source_(std::move(source)) {}

  const v1::LayerSource source_;
  std::shared_ptr<Blob> blob_;  // set before anybody else sees the object
  absl::Mutex mutex_;
  LayerResult result_ ABSL_GUARDED_BY(mutex_);  // set before the blob is whole
};

// Makes layers on threads of its own. Destroyed: cancels what is under way, and waits for it.
class LayerMaker {
 public:
  explicit LayerMaker(MakeOptions options);
  ~LayerMaker();

  // Starts `source`. InvalidArgument, NotFound: there is nothing to make it of.
  // `cache`: it is wanted for the cache alone, so says its progress.
  absl::StatusOr<std::shared_ptr<MadeLayer>> Add(const v1::LayerSource& source, bool cache = false);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

absl::StatusOr<LayerCompression> CompressionOf(v1::Compression compression);

}  // namespace lazyblob::exporter

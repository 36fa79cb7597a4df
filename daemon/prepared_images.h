#pragma once

// Images on their way to being mounted layer by layer: each is resolved once and all its layers are worked on
// at once, whoever asks for which of them first; later callers join. What was resolved is remembered for some
// minutes, errors are not.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "base/cond_var.h"
#include "base/thread_pool.h"
#include "daemon/image_layers.h"

namespace lazyblob::daemon {

struct PreparedImagesOptions {
  // A plain layer that has no index is streamed once and kept; else it fails with "no-index".
  bool stream_plain = true;
  // A layer whose diffID nobody has compared is read whole before it is mounted.
  bool compare_first = false;
  absl::Duration resolve_timeout = absl::Seconds(60);  // of manifest, config and tables of contents
  size_t max_images = 64;                              // remembered
  absl::Duration keep = absl::Minutes(5);              // after the last use
  const base::Clock* clock = &base::SystemClock();
};

// Thread-safe. Errors of layers carry a snapshotter::NotLazyReason.
class PreparedImages {
 public:
  // `layers` outlives it.
  PreparedImages(ImageLayers* layers, PreparedImagesOptions options);
  ~PreparedImages();  // cancels what is under way and waits for it
  PreparedImages(const PreparedImages&) = delete;

 private:
  struct Image;

 public:
  // A resolved image in somebody's use. When the last user goes, cancelled, the work on the image is
  // cancelled.
  class Use {
   public:
    ~Use();
    Use(const Use&) = delete;

    const ResolvedImage& image() const;
    // It had been resolved before this use: a tag may have moved since.
    bool remembered() const { return remembered_; }
    // Waits until layer `i` is indexed, and complete if it is of no use otherwise; the store has it then.
    // Calls `progress`, if any, now and then, for all layers. A layer that has failed is tried again, once
    // somebody has been told.
    absl::Status AwaitLayer(size_t i, const LayerProgress& progress = nullptr);

   private:
    friend class PreparedImages;
    Use(PreparedImages* owner, std::shared_ptr<Image> image, std::shared_ptr<base::CancelToken> cancel)
        : owner_(owner), image_(std::move(image)), cancel_(std::move(cancel)) {}
    PreparedImages* const owner_;
    const std::shared_ptr<Image> image_;
    const std::shared_ptr<base::CancelToken> cancel_;  // may be null
    bool remembered_ = false;
  };

  // Waits until the image is resolved. `afresh`: not as it was remembered.
  absl::StatusOr<std::unique_ptr<Use>> Resolve(const ImageRequest& request, bool afresh,
                                               std::shared_ptr<base::CancelToken> cancel)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using ImagePtr = std::shared_ptr<Image>;

  ImagePtr FindOrStart(const ImageRequest& request, bool afresh, bool* remembered)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetOld() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Forget(const ImagePtr& image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Leave(const ImagePtr& image, bool cancelled) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status AwaitLayer(const ImagePtr& image, size_t i, base::CancelToken* cancel,
                          const LayerProgress& progress) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until `ready(image)`; Cancelled when `cancel` is first.
  template <typename Ready>
  absl::Status Await(const ImagePtr& image, base::CancelToken* cancel, const LayerProgress& progress,
                     Ready ready) ABSL_LOCKS_EXCLUDED(mutex_);

  // On the threads of the pools.
  void RunResolve(const ImagePtr& image) ABSL_LOCKS_EXCLUDED(mutex_);
  void StartLayer(const ImagePtr& image, size_t i) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunIndex(const ImagePtr& image, size_t i) ABSL_LOCKS_EXCLUDED(mutex_);
  void RunStream(const ImagePtr& image, size_t i, const LazyLayerPtr& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  void FinishLayer(const ImagePtr& image, size_t i, LazyLayerPtr layer, const absl::Status& status)
      ABSL_LOCKS_EXCLUDED(mutex_);
  contentstore::FetchContext Context(const ImagePtr& image, contentstore::FetchCause cause) const;

  ImageLayers* const layers_;
  const PreparedImagesOptions options_;

  absl::Mutex mutex_;
  base::CondVar changed_;  // an image is resolved, a layer finished, or a caller gone
  std::map<std::string, ImagePtr> images_ ABSL_GUARDED_BY(mutex_);  // some under two names
  std::map<Image*, ImagePtr> working_ ABSL_GUARDED_BY(mutex_);      // with tasks that are queued or run

  // Last, so that their tasks end before anything else does. Later stages first: earlier ones schedule them.
  // By host, so that a registry that hangs does not keep images of others waiting.
  base::ThreadPool streams_{"lb-img-stream", 64, 8};
  base::ThreadPool indexes_{"lb-img-index", 64, 8};
  base::ThreadPool resolves_{"lb-img-resolve", 64, 8};
};

}  // namespace lazyblob::daemon

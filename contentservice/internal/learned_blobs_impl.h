#pragma once

// The LearnedBlobs: lazy_blobs.cc answers and reads, learning.cc follows documents and labels, holding.cc
// what containerd's namespaces hold.
//
// Locks: `records_mutex_`, then `mutex_`, then the database's. Nothing blocks under `mutex_` but the waits of
// Find and WithChain, which let it go.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/cond_var.h"
#include "contentservice/internal/timed_tasks.h"
#include "contentservice/lazy_blobs.h"
#include "contentservice/lazy_records.h"
#include "contentservice/learned_images.h"

namespace lazyblob::contentservice {

class LearnedBlobsImpl final : public LearnedBlobs {
 public:
  LearnedBlobsImpl(LearnedBlobsOptions options, std::unique_ptr<LazyRecords> records);
  ~LearnedBlobsImpl() override { Stop(); }
  absl::Status Load();

  void Start(Content* content) override;
  void Stop() override ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<ChainLayer> WithChain(const base::Digest& chain, const base::Digest& diff_id,
                                    const std::shared_ptr<base::CancelToken>& cancel) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void HoldLater(const std::string& name_space, const base::Digest& layer) override;

  absl::StatusOr<Info> Find(const base::Digest& digest) override ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Info> TryFind(const base::Digest& digest) override ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<Info> Listed() override ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<Info> MayBeHeld() override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status SetLabels(const base::Digest& digest, const Labels& labels, absl::Time updated) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Forget(const base::Digest& digest) override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<size_t> Read(const base::Digest& digest, uint64_t offset, absl::Span<uint8_t> out,
                              const std::shared_ptr<base::CancelToken>& cancel) override;
  bool TryRead(const base::Digest& digest, uint64_t offset, uint64_t size, ReadRoom room) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Committed(const base::Digest& digest, uint64_t size, const std::string& ref) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Deleted(const base::Digest& digest) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Lost(const base::Digest& digest) override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A layer that some image has, or that was held.
  struct Blob {
    LazyRecord record;                 // while it is held, its repositories outlive the images that told them
    bool whole = false;                // committed to the store by a client: no lazy blob
    bool contradictory = false;        // images tell different sizes of it
    bool expected = false;             // somebody looks whether a namespace holds it
    std::vector<std::string> handled;  // the repositories that the content store knows
  };
  // What is being found out of an image.
  struct Learning {
    bool settled = false;             // nobody is to wait for more
    bool asking = false;              // until registries have answered, too
    absl::Duration until;             // monotonic; then it is settled anyway
    absl::Duration wait;              // before the next question
    std::vector<std::string> likely;  // repositories that are believed as long as they have not answered
    bool doubt = false;  // none is believed before it has answered: they did not give the manifest
  };

  // learning.cc
  void LearnLater(std::function<void()> learn) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LearnUnrecorded() ABSL_LOCKS_EXCLUDED(mutex_);
  void LearnDocument(const base::Digest& digest, const std::string& name_space) ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<std::string> ReadDocument(const base::Digest& digest);
  void LearnManifest(const base::Digest& digest, absl::string_view raw, ImageRecord known)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void LearnConfig(const base::Digest& digest, absl::string_view raw) ABSL_LOCKS_EXCLUDED(mutex_);
  // `again`: later too, until it is settled.
  void AskLabels(const base::Digest& manifest, bool again) ABSL_LOCKS_EXCLUDED(mutex_);
  void AskAtOnce(const LearnedImage& image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<LabelledSource>> ReadSources(const base::Digest& manifest,
                                                          const std::set<std::string>& namespaces);
  // Whether registries are being asked.
  bool FoundSources(const base::Digest& manifest, const std::vector<LabelledSource>& sources)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // `doubtful`: used only when they turn out to have the manifest.
  void CheckRepositories(const base::Digest& manifest, const std::vector<std::string>& likely,
                         const std::vector<std::string>& doubtful) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetRepositories(const base::Digest& manifest, std::vector<std::string> good,
                       const std::vector<std::string>& unanswered) ABSL_LOCKS_EXCLUDED(mutex_);
  // What images say of the layer: the first of them, until it is held, and whether all say the same.
  void CompareImages(const base::Digest& layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SaveImage(const base::Digest& manifest) ABSL_LOCKS_EXCLUDED(mutex_, records_mutex_);

  // lazy_blobs.cc
  // What Info tells; from now on somebody looks whether a namespace holds the blob.
  Info Looked(Blob* blob) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `checked`: without those that have not been asked for the manifest.
  std::vector<std::string> Repositories(const Blob& blob, bool checked = false)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether it is a lazy blob for clients.
  bool Known(const Blob& blob) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Undecided(const base::Digest& digest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Undecided(const base::Digest& chain, const base::Digest& diff_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<contentstore::LazyLayer>> Layer(const base::Digest& digest)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void DropUntaught(const base::Digest& digest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SaveBlob(const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_, records_mutex_);
  void Log(const absl::Status& status, absl::string_view what) const;

  // holding.cc
  // Looks into the namespaces until one holds the blob, or for `until`.
  void Expect(const base::Digest& digest, absl::Duration wait, absl::Duration until)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<bool> IsHeld(const base::Digest& digest);  // by any namespace
  void SetHeld(const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  // Tries again after `wait`, and longer each time.
  void Hold(const std::string& name_space, const base::Digest& digest, absl::Duration wait)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Asks each repository whether it has the blob; one that nobody has is dropped by all namespaces.
  void Recheck(const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  // Layers of an image that was believed to be somewhere, for a moment: a client may have shared them.
  void DropUnsourced(const base::Digest& manifest) ABSL_LOCKS_EXCLUDED(mutex_);
  void DropLater(const base::Digest& digest, Blob* blob) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartDropping(const base::Digest& digest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Until no namespace holds it, or it turns out to be here or to have a source.
  void Drop(const base::Digest& digest, absl::Duration wait) ABSL_LOCKS_EXCLUDED(mutex_);

  const LearnedBlobsOptions options_;
  const std::unique_ptr<LazyRecords> records_;
  Content* content_ = nullptr;                              // set by Start, before anything that reads it
  absl::Mutex records_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);  // what is saved last is what was known last
  absl::Mutex mutex_;
  base::CondVar
      changed_;  // what Find and WithChain wait for may have come: signalled by whoever learns or stops
  LearnedImages images_ ABSL_GUARDED_BY(mutex_);
  std::map<base::Digest, Learning> learning_ ABSL_GUARDED_BY(mutex_);  // by manifest, as images_
  std::map<base::Digest, Blob> blobs_ ABSL_GUARDED_BY(mutex_);
  // Holds to come, of namespace and blob.
  std::set<std::pair<std::string, base::Digest>> holding_ ABSL_GUARDED_BY(mutex_);
  size_t documents_ ABSL_GUARDED_BY(mutex_) = 0;            // that are being looked at, or will be
  std::vector<base::Digest> lost_ ABSL_GUARDED_BY(mutex_);  // before Start
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  const std::shared_ptr<base::CancelToken> stop_ = std::make_shared<base::CancelToken>();
  // Last, so that their threads end first. What reads labels does not wait behind what writes, and neither
  // behind registries.
  std::unique_ptr<TimedTasks> learners_;
  std::unique_ptr<TimedTasks> checkers_;
  std::unique_ptr<TimedTasks> holders_;
};

}  // namespace lazyblob::contentservice

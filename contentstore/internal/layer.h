#pragma once

// The store's own LazyLayer: identity, sources, index and cache of one layer. Chunks that are missing are the
// FetchEngine's affair.

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "contentstore/content_store.h"
#include "contentstore/internal/chunk_cache.h"
#include "contentstore/internal/diff_id_claims.h"
#include "contentstore/internal/layer_record.h"
#include "contentstore/internal/unpacked_digest.h"

namespace lazyblob::contentstore {

inline constexpr uint64_t kWholeBlob = UINT64_MAX;

class FetchEngine;

// What an indexed layer consists of. Immutable; lives as long as its layer.
struct LayerBody {
  std::shared_ptr<const layer::LayerIndex> index;
  std::shared_ptr<ChunkCache> cache;
  bool random_access = true;  // false: chunks cannot be decoded one by one

  // The chunks [first, end) that touch [offset, offset + length), length > 0.
  struct ChunkRange {
    uint64_t first = 0;
    uint64_t end = 0;
  };
  ChunkRange Chunks(uint64_t offset, uint64_t length) const;
};

// What the engine remembers of a layer between fetches. Guarded by the engine's mutex, which this class
// cannot name.
struct LayerFetchState {
  struct Cooling {
    uint64_t first = 0;
    uint64_t end = 0;
    absl::Duration until;
  };
  // A reader that goes on is somewhere between run_chunk and next_chunk: what was fetched on demand or asked
  // for ahead of it ends there.
  uint64_t run_chunk = UINT64_MAX;
  uint64_t next_chunk = UINT64_MAX;
  int streak = 0;            // how many ranges in a row continued the one before
  uint64_t run_blob = 0;     // blob offset at which the first of them began
  uint64_t ahead_chunk = 0;  // up to where reading ahead has been asked for

  // The streak if `first` is fetched on demand now.
  int StreakAt(uint64_t first) const {
    if (first < run_chunk || (first > next_chunk && first - next_chunk > 1)) return 0;
    return first < next_chunk ? streak : streak + 1;
  }
  std::vector<Cooling> cooling;
  std::string host;  // that its first source hangs on
};

// Thread-safe.
class Layer final : public LazyLayer, public std::enable_shared_from_this<Layer> {
 public:
  Layer(const LayerRecord& record, std::string directory, std::shared_ptr<FetchEngine> engine,
        SourceFactory factory);

  const oci::Descriptor& descriptor() const override { return identity()->descriptor; }
  const base::Digest& diff_id() const override { return identity()->diff_id; }
  uint32_t id() const override { return id_; }
  const std::string& directory() const override { return directory_; }
  LayerState state() const override;
  std::string not_lazy_reason() const override ABSL_LOCKS_EXCLUDED(mutex_);
  std::shared_ptr<const layer::LayerIndex> index() const override;
  uint64_t data_size() const override;
  std::optional<PinnedRange> TryAcquire(uint64_t offset, uint64_t length) override;
  void Acquire(uint64_t offset, uint64_t length, FetchContext context,
               absl::AnyInvocable<void(absl::StatusOr<PinnedRange>) &&> done) override;
  void FailOutstanding(const absl::Status& status) override;
  void Doubt(uint64_t offset, uint64_t length) override;
  LayerStats stats() const override ABSL_LOCKS_EXCLUDED(mutex_);
  DiffIdCheck diff_id_check() const override ABSL_LOCKS_EXCLUDED(mutex_);

  // Chunks that are present stay while the result lives; [first, end) is not empty.
  std::shared_ptr<const void> PinChunks(const LayerBody& body, LayerBody::ChunkRange chunks);
  // As ContentStore::PinForMount.
  absl::StatusOr<std::shared_ptr<const void>> PinForMount(bool mounted);

  // Not OK: its bytes may not be parsed, and why. Set before others know the layer.
  const absl::Status& refused() const { return refused_; }
  void Refuse(absl::Status why) { refused_ = std::move(why); }
  uint64_t served_bytes() const { return served_bytes_.load(std::memory_order_relaxed); }

  // Null while there is no index. What it points to stays valid as long as the layer.
  const LayerBody* body() const { return body_.load(std::memory_order_acquire); }
  void Install(std::unique_ptr<LayerBody> body) ABSL_LOCKS_EXCLUDED(mutex_);

  // The original bytes as the file `blob`: there is none, one that an earlier run left, one that this run has
  // compared with its digest. While there is one it is the first of the sources.
  enum class Kept : uint8_t { kNo, kClaimed, kVerified };
  Kept kept() const { return kept_.load(std::memory_order_acquire); }
  void SetKept(Kept kept) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetKeptCharge(CacheBudget::Charge charge) ABSL_LOCKS_EXCLUDED(mutex_);
  std::string kept_path() const { return directory_ + "/blob"; }

  struct Identity {
    oci::Descriptor descriptor;
    base::Digest diff_id;
  };
  // Adds sources, or replaces those of the same name. A layer that is not indexed yet takes over what the
  // handler says of it; an indexed one must agree (FailedPrecondition). A quarantine ends with something new:
  // one for wrong bytes also with a new source. FailedPrecondition when the handler contradicts what is
  // known.
  absl::Status Merge(const DescriptorHandler& handler) ABSL_LOCKS_EXCLUDED(mutex_);
  LayerRecord record() const ABSL_LOCKS_EXCLUDED(mutex_);
  void SetNotLazyReason(absl::string_view reason) ABSL_LOCKS_EXCLUDED(mutex_);
  // The table of contents was just found to be of no use. Taken by the next attempt to index the layer, so
  // that it is not read a second time; forgotten when a handler brings something new.
  void NoteTocUnusable() ABSL_LOCKS_EXCLUDED(mutex_);
  bool TakeTocUnusable() ABSL_LOCKS_EXCLUDED(mutex_);
  void Quarantine(absl::string_view why) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status QuarantineError() const ABSL_LOCKS_EXCLUDED(mutex_);

  // For whoever begins to read the whole blob: takes its bytes along. Null when nothing is to be learned of
  // them: no image said a diffID, or it was compared, or will be when the layer is indexed.
  std::unique_ptr<UnpackedDigest> StartUnpacking(const layer::BuildLimits& limits) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool Unverified() const ABSL_LOCKS_EXCLUDED(mutex_) { return !OpenAlgorithms().empty(); }
  bool CompleteAndCompared() const { return state() == LayerState::kComplete && !Unverified(); }
  // All bytes of the blob, which has its digest, were fed. Wrong claims are refused from now on; where none
  // is right the layer is quarantined. Says so in one line. The record has changed.
  void NoteUnpacked(UnpackedDigest& unpacked, const std::function<void(absl::string_view)>& log)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether the record is to be written for what was noted.
  bool TakeRecordChanged() { return record_changed_.exchange(false, std::memory_order_acq_rel); }
  void SetRecordChanged() { record_changed_.store(true, std::memory_order_release); }

  // The sources that can be had now, the one that served last first. Restored ones are made here, on first
  // use.
  std::vector<std::shared_ptr<BlobSource>> Sources() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status NoSourceError(FetchCause cause) const;
  // The last one that a handler brought; may be null.
  ExternalTocSource external_toc() const ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteServedBy(const BlobSource& source) ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteError(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteServedBytes(uint64_t bytes) { served_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  // Where body bytes of a call to `source` are counted; null for local ones.
  std::atomic<uint64_t>* FetchedCounter(const BlobSource& source, FetchCause cause) {
    return source.local() ? nullptr : FetchedCounter(cause);
  }
  std::atomic<uint64_t>* FetchedCounter(FetchCause cause) {
    return &fetched_bytes_[static_cast<size_t>(cause)];
  }

  // Reading past this data offset asks for more to be read ahead.
  std::atomic<uint64_t>& ahead_trigger() { return ahead_trigger_; }
  // Bytes that are on their way on this layer's link at any time; 0: unknown; kWholeBlob: it ignores ranges.
  std::atomic<uint64_t>& range_hint() { return range_hint_; }
  LayerFetchState& fetch_state() { return fetch_state_; }

 private:
  struct Source {
    std::string name;
    std::shared_ptr<BlobSource> source;  // null: to be made by the factory
  };
  const Identity* identity() const { return identity_.load(std::memory_order_acquire); }
  void SetIdentity(Identity identity) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A line for the operator; empty: all is well.
  std::string Judge(const absl::StatusOr<std::vector<base::Digest>>& found) ABSL_LOCKS_EXCLUDED(mutex_);
  void LeaveQuarantine() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string QuarantineLine() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status MergeClaim(const DescriptorHandler& handler, const layer::LayerInfo& info)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<base::DigestAlgorithm> OpenAlgorithms() const ABSL_LOCKS_EXCLUDED(mutex_);

  const uint32_t id_;
  const std::string directory_;
  const std::shared_ptr<FetchEngine> engine_;
  const SourceFactory factory_;
  absl::Status refused_;

  std::atomic<const Identity*> identity_;
  std::atomic<const LayerBody*> body_{nullptr};
  std::atomic<bool> quarantined_{false};
  std::atomic<bool> record_changed_{false};
  std::atomic<Kept> kept_{Kept::kNo};
  std::atomic<uint64_t> served_bytes_{0};
  std::array<std::atomic<uint64_t>, kFetchCauses> fetched_bytes_{};
  std::atomic<uint64_t> ahead_trigger_{UINT64_MAX};
  std::atomic<uint64_t> range_hint_{0};
  LayerFetchState fetch_state_;

  mutable absl::Mutex mutex_;  // a leaf: nothing is called under it
  // What the pointers above point to, past versions included: callers hold references to those.
  std::vector<std::unique_ptr<const Identity>> identities_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<const LayerBody>> bodies_ ABSL_GUARDED_BY(mutex_);
  std::vector<Source> sources_ ABSL_GUARDED_BY(mutex_);
  ExternalTocSource external_toc_ ABSL_GUARDED_BY(mutex_);
  std::string preferred_source_ ABSL_GUARDED_BY(mutex_);
  std::string not_lazy_reason_ ABSL_GUARDED_BY(mutex_);
  bool toc_unusable_ ABSL_GUARDED_BY(mutex_) = false;
  std::string quarantine_ ABSL_GUARDED_BY(mutex_);
  DiffIdClaims claims_ ABSL_GUARDED_BY(mutex_);
  CacheBudget::Charge kept_charge_ ABSL_GUARDED_BY(mutex_);
  std::string last_error_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::contentstore

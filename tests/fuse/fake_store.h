#pragma once

// A content store without network, and layers whose bytes arrive when a test says so: every Acquire is
// counted and waits until Release, Fail or its own cancellation. Thread-safe.

#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "contentstore/content_store.h"

namespace lazyblob::fuse {

class FakeLayer final : public contentstore::LazyLayer {
 public:
  // `data` is the data area; its size may be no multiple of 4096, to test padding.
  FakeLayer(uint32_t id, std::string name, std::string data, std::string directory = "");

  // Nothing is present until this.
  void MakePresent() ABSL_LOCKS_EXCLUDED(mutex_);
  void MakePresent(uint64_t begin, uint64_t end) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ranges come as memory instead of as the cache file.
  void ServeFromMemory() ABSL_LOCKS_EXCLUDED(mutex_);
  // The cache file loses its end, though everything is said to be present.
  void TruncateCacheFile(uint64_t size);
  // From its first doubt on nothing is present, and ranges come as memory.
  void HealWhenDoubted() ABSL_LOCKS_EXCLUDED(mutex_);
  void set_state(contentstore::LayerState state) ABSL_LOCKS_EXCLUDED(mutex_);

  // Lets everything that waits through; later Acquires are answered at once.
  void Release() ABSL_LOCKS_EXCLUDED(mutex_);
  // Lets what waits now through; later Acquires wait.
  void ReleaseWaiting() ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends everything that waits with `status`.
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  bool AwaitWaiting(size_t count) ABSL_LOCKS_EXCLUDED(mutex_);
  size_t waiting() const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t acquires() const ABSL_LOCKS_EXCLUDED(mutex_);
  bool AwaitCancelled(size_t count) ABSL_LOCKS_EXCLUDED(mutex_);
  // Called, without locks, whenever an Acquire has begun to wait.
  std::function<void()> on_wait;

  const oci::Descriptor& descriptor() const override { return descriptor_; }
  const base::Digest& diff_id() const override { return diff_id_; }
  uint32_t id() const override { return id_; }
  const std::string& directory() const override { return directory_; }
  contentstore::LayerState state() const override ABSL_LOCKS_EXCLUDED(mutex_);
  std::string not_lazy_reason() const override { return ""; }
  std::shared_ptr<const layer::LayerIndex> index() const override { return nullptr; }
  uint64_t data_size() const override;
  std::optional<contentstore::PinnedRange> TryAcquire(uint64_t offset, uint64_t length) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Acquire(uint64_t offset, uint64_t length, contentstore::FetchContext context,
               absl::AnyInvocable<void(absl::StatusOr<contentstore::PinnedRange>) &&> done) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void FailOutstanding(const absl::Status& status) override { Fail(status); }
  void Doubt(uint64_t offset, uint64_t length) override ABSL_LOCKS_EXCLUDED(mutex_);
  contentstore::LayerStats stats() const override { return {}; }

 private:
  struct Waiter {
    uint64_t offset = 0;
    uint64_t length = 0;
    absl::AnyInvocable<void(absl::StatusOr<contentstore::PinnedRange>) &&> done;
  };
  contentstore::PinnedRange Range(uint64_t offset, uint64_t length) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Present(uint64_t offset, uint64_t length) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Cancel(uint64_t number) ABSL_LOCKS_EXCLUDED(mutex_);

  const uint32_t id_;
  const std::string data_;
  const std::string directory_;
  oci::Descriptor descriptor_;
  const base::Digest diff_id_;
  base::UniqueFd file_;

  mutable absl::Mutex mutex_;
  contentstore::LayerState state_ ABSL_GUARDED_BY(mutex_) = contentstore::LayerState::kLazy;
  std::vector<std::pair<uint64_t, uint64_t>> present_ ABSL_GUARDED_BY(mutex_);
  bool in_memory_ ABSL_GUARDED_BY(mutex_) = false;
  bool heals_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_number_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  size_t acquires_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t cancelled_ ABSL_GUARDED_BY(mutex_) = 0;
  // Kept to the end: a registration must not be destroyed inside its own callback.
  struct Registered {
    std::shared_ptr<base::CancelToken> token;
    base::CancelToken::Registration registration;
  };
  std::list<Registered> registrations_ ABSL_GUARDED_BY(mutex_);
};

class FakeStore final : public contentstore::ContentStore {
 public:
  void Add(std::shared_ptr<FakeLayer> layer) ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(uint32_t id) ABSL_LOCKS_EXCLUDED(mutex_);

  absl::StatusOr<std::shared_ptr<contentstore::LazyLayer>> AddHandler(
      const contentstore::DescriptorHandler&) override {
    return absl::UnimplementedError("fake");
  }
  std::shared_ptr<contentstore::LazyLayer> Find(const base::Digest& digest) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  std::shared_ptr<contentstore::LazyLayer> FindById(uint32_t id) override ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<std::shared_ptr<contentstore::LazyLayer>> Layers() override { return {}; }
  absl::Status EnsureIndexed(contentstore::LazyLayer&, bool, const contentstore::FetchContext&,
                             const contentstore::Progress&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status EnsureIndexedFromToc(contentstore::LazyLayer&, const contentstore::FetchContext&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status Unlazy(contentstore::LazyLayer&, const contentstore::FetchContext&,
                      const contentstore::Progress&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status ReadBlobAt(contentstore::LazyLayer&, registry::ByteRange, registry::BodySink,
                          const contentstore::FetchContext&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status Remove(const base::Digest&) override { return absl::UnimplementedError("fake"); }

 private:
  absl::Mutex mutex_;
  std::map<uint32_t, std::shared_ptr<FakeLayer>> layers_ ABSL_GUARDED_BY(mutex_);
};

// `size` bytes that depend on seed and place only.
std::string Pattern(uint64_t size, uint64_t seed);

}  // namespace lazyblob::fuse

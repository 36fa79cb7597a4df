#pragma once

// What the tests of the content store share: a store on a directory of its own over a gated source, layers of
// made tars, and reads that can be waited for.

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "contentstore/content_store.h"
#include "tests/support/eventually.h"
#include "tests/support/fake_clock.h"
#include "tests/support/gate.h"
#include "tests/support/gated_blob_source.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::contentstore {

inline constexpr uint64_t kChunk = 4096;  // of the layers that StoreTest makes

// A read that has been asked for.
class PendingRead {
 public:
  // True when it has ended; waits for that up to support::kPatience.
  bool Await() { return done_.WaitForNotificationWithTimeout(support::kPatience); }
  bool ended() const { return done_.HasBeenNotified(); }
  // After Await.
  const absl::Status& status() const { return status_; }
  const std::string& bytes() const { return bytes_; }
  bool in_memory() const { return in_memory_; }

  void End(absl::StatusOr<PinnedRange> result);

 private:
  absl::Notification done_;
  absl::Status status_;
  std::string bytes_;
  bool in_memory_ = false;
};

std::shared_ptr<PendingRead> StartRead(LazyLayer& layer, uint64_t offset, uint64_t length,
                                       FetchContext context = {});
// Starts and awaits one.
absl::StatusOr<std::string> Read(LazyLayer& layer, uint64_t offset, uint64_t length,
                                 FetchContext context = {});

// Whether two long strings are the same; says where they differ, not what they are.
testing::AssertionResult Same(absl::string_view found, absl::string_view expected);

using support::Eventually;

class TestCredentials final : public registry::CredentialsProvider {
 public:
  explicit TestCredentials(std::string user) : user_(std::move(user)) {}
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view) const override {
    registry::Credentials credentials;
    credentials.username = user_;
    return std::optional<registry::Credentials>(credentials);
  }

 private:
  const std::string user_;
};

class StoreTest : public ::testing::Test {
 protected:
  StoreTest();
  ~StoreTest() override;

  // options_ may be changed before.
  void Open();
  void Close() { store_.reset(); }

  // A tar of one file of `chunks` chunks that do not compress, its header included.
  static support::Layer MakeTarLayer(uint64_t chunks, uint64_t seed = 1);
  // The data area of a plain layer.
  static std::string DataArea(const support::Layer& layer);

  // The layer is known, its bytes can be had from source_.
  std::shared_ptr<LazyLayer> Add(const support::Layer& layer) { return AddFrom(source_, layer); }
  std::shared_ptr<LazyLayer> AddFrom(const std::shared_ptr<support::GatedBlobSource>& source,
                                     const support::Layer& layer);
  // … and it is indexed, without data.
  std::shared_ptr<LazyLayer> AddIndexed(const support::Layer& layer) {
    return AddIndexedFrom(source_, layer);
  }
  std::shared_ptr<LazyLayer> AddIndexedFrom(const std::shared_ptr<support::GatedBlobSource>& source,
                                            const support::Layer& layer);

  // … and all its data is there.
  std::shared_ptr<LazyLayer> AddComplete(const support::Layer& layer);

  // Threads of the store may hold a layer a moment longer than its last answer.
  void RemoveOnceUnused(const base::Digest& digest) {
    EXPECT_TRUE(Eventually([&] { return store_->Remove(digest).ok(); })) << digest.ToString();
  }

  // Requests since the last call of ForgetRequests.
  std::vector<support::GatedBlobSource::Request> Requests() const;
  size_t RequestCount() const { return source_->request_count() - forgotten_; }
  bool AwaitRequests(size_t count) { return source_->AwaitRequests(forgotten_ + count); }
  void ForgetRequests() { forgotten_ = source_->request_count(); }
  // How many of those requests covered the byte.
  size_t TimesRequested(uint64_t blob_offset) const;

  static uint64_t Fetched(const LazyLayer& layer, FetchCause cause) {
    return layer.stats().fetched_bytes[static_cast<size_t>(cause)];
  }
  std::vector<std::string> Log() const;
  std::string LayerFile(const LazyLayer& layer, absl::string_view name) const;

  support::TempDir directory_;
  support::FakeClock clock_;
  std::shared_ptr<support::GatedBlobSource> source_ =
      std::make_shared<support::GatedBlobSource>("test:gated", &clock_);
  ContentStoreOptions options_;
  std::unique_ptr<ContentStore> store_;

 private:
  size_t forgotten_ = 0;
  mutable absl::Mutex mutex_;
  std::vector<std::string> log_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::contentstore

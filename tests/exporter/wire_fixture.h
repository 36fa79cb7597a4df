#pragma once

// Exports over loopback: the real placer and client between registries that fail on demand.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "exporter/export_job.h"
#include "tests/support/gate.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::exporter {

// What an export has told so far. Thread-safe.
class Events {
 public:
  using Matches = std::function<bool(const v1::ExportEvent&)>;

  void Add(const v1::ExportEvent& event) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    all_.push_back(event);
  }
  // Waits for one that matches; false after kPatience.
  bool Await(const Matches& matches) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    auto come = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return std::any_of(all_.begin(), all_.end(), matches);
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&come), support::kPatience);
  }
  std::vector<v1::ExportEvent> all() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return all_;
  }
  size_t Count(const Matches& matches) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return static_cast<size_t>(std::count_if(all_.begin(), all_.end(), matches));
  }

 private:
  absl::Mutex mutex_;
  std::vector<v1::ExportEvent> all_ ABSL_GUARDED_BY(mutex_);
};

class WireFixture : public ::testing::Test {
 protected:
  static constexpr uint64_t kChunk = 10'000;
  static constexpr uint64_t kLayer = 35'000;  // of random bytes: four chunks

  WireFixture() {
    registry::ClientOptions client;
    client.plain_http = true;
    client.max_attempts = 2;
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
    PlacerOptions placer;
    placer.client = client_.get();
    placer.chunk_bytes = kChunk;
    placer.monolithic_bytes = kChunk;
    placer.max_memory_bytes = 400'000;
    placer_ = Placer::Create(std::move(placer)).value();
  }

  // "dir:PATH" of a directory with one file that is like no other.
  std::string NewTree(const std::string& name, uint64_t seed) {
    const std::string path = directory_.File(name);
    EXPECT_TRUE(base::MakeDirectories(path).ok());
    EXPECT_TRUE(base::WriteFileAtomically(path + "/data", support::RandomBytes(kLayer, seed)).ok());
    return "dir:" + path;
  }
  // A layer of its own for each of both.
  v1::ExportRequest ImageAndCache() {
    v1::ExportRequest request;
    request.add_images()->set_base("scratch");
    request.mutable_images(0)->add_layers()->set_source(NewTree("image", 1));
    request.add_destinations(image_->host() + "/app:1");
    request.mutable_cache()->set_format(v1::PLAIN);
    request.mutable_cache()->add_layers()->set_source(NewTree("cache", 2));
    request.mutable_cache()->add_destinations(cache_->host() + "/cache:1");
    return request;
  }

  absl::Status Run(const v1::ExportRequest& request, Events* events) {
    ExportParts parts;
    parts.client = client_.get();
    parts.store = store_.get();
    parts.placer = placer_.get();
    parts.put = MakePutDocument(client_.get());
    parts.staging = directory_.File("staging");
    return RunExport(request, parts, {nullptr, cancel_},
                     [events](const v1::ExportEvent& event) { events->Add(event); });
  }
  std::future<absl::Status> Start(const v1::ExportRequest& request) {
    return std::async(std::launch::async, [this, request] { return Run(request, &events_); });
  }
  // Of the export that has ended.
  v1::Report Report() { return events_.all().back().done(); }
  static Events::Matches State(const std::string& state, bool cache) {
    return [=](const v1::ExportEvent& event) {
      return event.has_progress() && event.progress().state() == state && event.progress().cache() == cache &&
             !event.progress().destination().empty();
    };
  }
  static bool IsFinal(const std::string& state) {
    static const std::set<std::string> kFinal = {"exists", "mounted", "pushed", "written", "failed"};
    return kFinal.count(state) > 0;
  }
  // Everything that was told of ends, once, and nothing is told of it afterwards.
  void ExpectOneEndEach() {
    std::set<std::string> begun, ended;
    for (const v1::ExportEvent& event : events_.all()) {
      const v1::Progress& progress = event.progress();
      if (!event.has_progress() || progress.destination().empty()) continue;
      const std::string which = progress.name() + " to " + progress.destination();
      EXPECT_EQ(ended.count(which), 0u) << which << ": " << progress.state() << " after its end";
      (IsFinal(progress.state()) ? ended : begun).insert(which);
    }
    for (const std::string& which : begun) EXPECT_EQ(ended.count(which), 1u) << which << " does not end";
    EXPECT_FALSE(ended.empty());
  }

  support::TempDir directory_;
  std::unique_ptr<support::TestRegistry> image_ = std::make_unique<support::TestRegistry>();
  std::unique_ptr<support::TestRegistry> cache_ = std::make_unique<support::TestRegistry>();
  std::shared_ptr<base::CancelToken> cancel_ = std::make_shared<base::CancelToken>();
  Events events_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<Placer> placer_;
};

}  // namespace lazyblob::exporter

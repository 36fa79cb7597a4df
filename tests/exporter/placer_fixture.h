#pragma once

// A placer over registries in memory.

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "exporter/internal/placer_impl.h"
#include "tests/exporter/fake_destination.h"
#include "tests/exporter/test_blob.h"
#include "tests/support/gate.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::exporter {

class PlacerFixture : public testing::Test {
 protected:
  PlacerFixture() {
    options.chunk_bytes = 10'000;
    options.monolithic_bytes = 30'000;
    options.max_memory_bytes = 400'000;
  }

  internal::PlacerImpl& placer() {
    if (placer_ == nullptr) Restart();
    return *placer_;
  }
  // As a new process would.
  void Restart() {
    placer_.reset();
    std::unique_ptr<Journal> journal;
    if (!options.journal.empty()) journal = Journal::Open(options.journal).value();
    internal::PlacerSeams seams;
    seams.destination = registries.NewDestination();
    seams.sleep = [](absl::Duration, base::CancelToken*) {};
    placer_ = std::make_unique<internal::PlacerImpl>(options, std::move(seams), std::move(journal));
  }

  static PlaceRequest Request(std::shared_ptr<Blob> blob, const oci::Reference& repository,
                              Priority priority = Priority::kImage) {
    PlaceRequest request;
    request.blob = std::move(blob);
    request.repository = repository;
    request.priority = priority;
    request.cancel = std::make_shared<base::CancelToken>();
    return request;
  }
  std::future<absl::StatusOr<PlacementState>> Async(PlaceRequest request) {
    placer();
    return std::async(std::launch::async,
                      [this, request = std::move(request)] { return placer().Place(request); });
  }
  // As Async; returns when the request has joined its placement.
  std::future<absl::StatusOr<PlacementState>> AsyncJoined(PlaceRequest request) {
    auto joined = std::make_shared<std::promise<void>>();  // of the callback, which outlives this call
    auto once = std::make_shared<std::once_flag>();
    std::future<void> has_joined = joined->get_future();
    request.progress = [joined, once](const PlacementProgress&) {
      std::call_once(*once, [&] { joined->set_value(); });
    };
    auto result = Async(std::move(request));
    has_joined.wait();
    return result;
  }
  static std::shared_ptr<TestBlob> NewBlob(size_t size, uint64_t seed = 1) {
    return std::make_shared<TestBlob>(support::RandomBytes(size, seed));
  }

  PlacerOptions options;
  FakeRegistries registries;
  const oci::Reference app = Repository("registry:5001", "team/app");
  const oci::Reference cache = Repository("registry:5001", "team/cache");
  support::Gate gate;  // for blobs: threads of the placer may still come out of it when a test ends

 private:
  std::unique_ptr<internal::PlacerImpl> placer_;
};

}  // namespace lazyblob::exporter

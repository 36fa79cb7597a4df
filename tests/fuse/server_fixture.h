#pragma once

// A FuseServer between a fake kernel and a fake store.

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "fuse/internal/node_id.h"
#include "fuse/server.h"
#include "tests/fuse/fake_store.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_kernel.h"
#include "tests/support/gate.h"

namespace lazyblob::fuse {

class ServerFixture : public ::testing::Test {
 protected:
  static constexpr uint32_t kSizeA = (3 << 20) + 10000;  // no multiple of 4096

  ServerFixture() {
    layer_a_ = std::make_shared<FakeLayer>(7, "a", Pattern(kSizeA, 1));
    layer_b_ = std::make_shared<FakeLayer>(0xfffff, "b", Pattern(1 << 20, 2));
    store_.Add(layer_a_);
    store_.Add(layer_b_);
    node_a_ = internal::BlobNode(7);
    node_b_ = internal::BlobNode(0xfffff);
  }

  ServerOptions Options() {
    ServerOptions options;
    options.device = kernel_.ServerEnd();
    options.clock = &clock_;
    options.on_init = [this](const InitExchange& exchange) {
      absl::MutexLock lock(&mutex_);  // the answer that orders it before the test's reads is not seen by TSan
      init_ = exchange;
      return absl::OkStatus();
    };
    options.kill_pending = [this](uint32_t pid) {
      absl::MutexLock lock(&mutex_);
      ++kill_questions_;
      return killed_.count(pid) > 0;
    };
    options.log = [this](absl::string_view line) {
      absl::MutexLock lock(&mutex_);
      log_.emplace_back(line);
    };
    return options;
  }

  // A server on a new connection, INIT done.
  void StartServer() { StartServer(Options()); }
  void StartServer(ServerOptions options) {
    server_ = std::make_unique<FuseServer>(&store_, std::move(options));
    ASSERT_TRUE(server_->Start().ok());
    ASSERT_EQ(kernel_.Init().error, 0);
    absl::MutexLock lock(&mutex_);
  }
  // Another server takes the connection over from the one before, which is stopped.
  absl::Status TakeOver(uint64_t request_limit = 0) {
    server_->Stop();
    ServerOptions options = Options();
    options.request_limit = request_limit;
    options.replay_request = init_.request;
    options.replay_answer = init_.answer;
    server_ = std::make_unique<FuseServer>(&store_, std::move(options));
    return server_->Start();
  }

  void Kill(uint32_t pid) {
    absl::MutexLock lock(&mutex_);
    killed_.insert(pid);
  }
  size_t kill_questions() {
    absl::MutexLock lock(&mutex_);
    return kill_questions_;
  }
  std::vector<std::string> log() {
    absl::MutexLock lock(&mutex_);
    return log_;
  }
  bool AwaitKillQuestions(size_t count) {
    absl::MutexLock lock(&mutex_);
    auto asked = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return kill_questions_ >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&asked), support::kPatience);
  }

  support::FakeClock clock_;
  support::FakeKernel kernel_;
  FakeStore store_;
  std::shared_ptr<FakeLayer> layer_a_;
  std::shared_ptr<FakeLayer> layer_b_;
  uint64_t node_a_ = 0;
  uint64_t node_b_ = 0;
  InitExchange init_;

  absl::Mutex mutex_;
  std::set<uint32_t> killed_ ABSL_GUARDED_BY(mutex_);
  size_t kill_questions_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> log_ ABSL_GUARDED_BY(mutex_);

  std::unique_ptr<FuseServer> server_;  // goes first
};

}  // namespace lazyblob::fuse

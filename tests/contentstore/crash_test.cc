// What a store that was killed, or lost its power, leaves behind. The store that dies runs in a process of
// its own: this test program again, with the test of Victim alone and a fault point armed to kill.

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "base/crash_record.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "tests/contentstore/made_estargz.h"
#include "tests/contentstore/store_harness.h"

extern char** environ;

namespace lazyblob::contentstore {
namespace {

class CrashTest : public StoreTest {
 protected:
  // Runs the victim over our root until it dies; the signal that killed it, or 0.
  int RunVictim(const std::string& task, const std::string& faults) {
    const std::string root = "LAZYBLOB_VICTIM_ROOT=" + options_.root;
    const std::string what = "LAZYBLOB_VICTIM_TASK=" + task;
    const std::string fault = "LAZYBLOB_FAULTS=" + faults;
    std::vector<char*> environment = {const_cast<char*>(root.c_str()), const_cast<char*>(what.c_str()),
                                      const_cast<char*>(fault.c_str())};
    for (char** variable = environ; *variable != nullptr; ++variable) environment.push_back(*variable);
    environment.push_back(nullptr);
    char program[] = "/proc/self/exe";
    char filter[] = "--gtest_filter=Victim.*";
    char disabled[] = "--gtest_also_run_disabled_tests";
    char* arguments[] = {program, filter, disabled, nullptr};
    pid_t pid = 0;
    if (posix_spawn(&pid, program, nullptr, nullptr, arguments, environment.data()) != 0) return -1;
    int status = 0;
    if (waitpid(pid, &status, 0) != pid) return -1;
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  }
};

// The layer that victim and survivor agree on.
support::Layer SharedLayer() {
  return support::MakeLayer(support::MakeTar({support::File("file", support::RandomBytes(40 * kChunk, 11))}),
                            oci::Compression::kNone);
}

// And one that is indexed without being unpacked.
support::Layer SharedTocLayer() { return MakeEstargz({support::RandomBytes(70'000, 5)}, 64 << 10).layer; }

class Victim : public StoreTest {};

TEST_F(Victim, DISABLED_Runs) {
  const char* root = std::getenv("LAZYBLOB_VICTIM_ROOT");
  const char* task = std::getenv("LAZYBLOB_VICTIM_TASK");
  ASSERT_TRUE(root != nullptr && task != nullptr) << "runs only for the crash tests";
  options_.root = root;
  const std::string what = task;
  base::ArmFaultsFromEnvironment();
  const auto crashes = base::CrashRecord::Open(options_.root + ".crashes");
  ASSERT_TRUE(crashes.ok()) << crashes.status();
  if (what == "evict") options_.max_cache_bytes = 48 * kChunk;
  Open();
  if (what.starts_with("unpack")) {
    const std::shared_ptr<LazyLayer> toc = AddIndexed(SharedTocLayer());
    if (what == "unpack") store_->Unlazy(*toc, {}, {}).IgnoreError();
    if (what == "unpack-spool") store_->KeepBlob(*toc, {}, {}).IgnoreError();
    const auto sink = [](absl::Span<const uint8_t>) { return absl::OkStatus(); };
    if (what == "unpack-stream") {
      store_->ReadBlobAt(*toc, {0, toc->descriptor().size}, sink, {}).IgnoreError();
    }
    return;
  }
  std::shared_ptr<LazyLayer> layer = Add(SharedLayer());
  if (what == "evict") {
    ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
    ASSERT_EQ(layer->state(), LayerState::kComplete);
    const std::shared_ptr<LazyLayer> other = AddIndexed(MakeTarLayer(40));
    ASSERT_TRUE(Read(*other, 0, 20 * kChunk).ok());
    return;
  }
  if (what == "keep") store_->KeepBlob(*layer, {}, {}).IgnoreError();
  ASSERT_TRUE(store_->EnsureIndexed(*layer, what == "index", {}, {}).ok());
  ASSERT_TRUE(Read(*layer, 0, 20 * kChunk).ok());
  if (what == "unlazy") store_->Unlazy(*layer, {}, {}).IgnoreError();
  Close();  // syncs
}

TEST_F(CrashTest, ChunksOfAKilledStoreAreVerifiedBeforeUse) {
  ASSERT_EQ(RunVictim("read", "contentstore.sync.data=kill"), SIGKILL);
  const support::Layer made = SharedLayer();
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made);
  ASSERT_EQ(layer->state(), LayerState::kLazy);
  // They survived the process, so they are not fetched again …
  EXPECT_EQ(layer->stats().cached_bytes, 20 * kChunk);
  EXPECT_FALSE(layer->TryAcquire(0, kChunk).has_value());  // … but not believed yet.
  EXPECT_EQ(Read(*layer, 0, 10 * kChunk).value(), DataArea(made).substr(0, 10 * kChunk));
  EXPECT_EQ(RequestCount(), 0);
  EXPECT_TRUE(layer->TryAcquire(0, kChunk).has_value());
}

TEST_F(CrashTest, UnsyncedChunksThatThePowerTookAreFetchedAgain) {
  ASSERT_EQ(RunVictim("read", "contentstore.sync.data=kill"), SIGKILL);
  const support::Layer made = SharedLayer();
  const std::string data = options_.root + "/layers/sha256-" + made.descriptor.digest.hex() + "/data";
  {
    // The map reached the disk, the data of chunks 3 and 4 did not: zeros, as after a power loss.
    base::UniqueFd file = base::OpenFile(data, O_RDWR).value();
    ASSERT_TRUE(base::PwriteFull(file.get(), 3 * kChunk, std::vector<uint8_t>(2 * kChunk, 0)).ok());
  }
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made);
  EXPECT_EQ(Read(*layer, 0, 20 * kChunk).value(), DataArea(made).substr(0, 20 * kChunk));
  ASSERT_EQ(RequestCount(), 1);
  EXPECT_EQ(Requests()[0].range.offset, 3 * kChunk);
  EXPECT_EQ(Requests()[0].range.length, 2 * kChunk);
}

TEST_F(CrashTest, ALayerIsNotCompleteBeforeItsDataIsSynced) {
  ASSERT_EQ(RunVictim("unlazy", "contentstore.sync.data=kill"), SIGKILL);
  Open();
  std::shared_ptr<LazyLayer> layer = Add(SharedLayer());
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
}

TEST_F(CrashTest, AKilledBuildLeavesGarbageOnly) {
  for (const char* point : {"contentstore.record.write", "contentstore.stream.write",
                            "contentstore.seal.data", "contentstore.install", "contentstore.install.index"}) {
    SCOPED_TRACE(point);
    ASSERT_EQ(RunVictim("index", std::string(point) + "=kill"), SIGKILL);
    const support::Layer made = SharedLayer();
    Open();
    std::shared_ptr<LazyLayer> layer = store_->Find(made.descriptor.digest);
    if (layer != nullptr) {
      EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
      EXPECT_NE(access(LayerFile(*layer, "build").c_str(), F_OK), 0);
    }
    layer = Add(made);
    ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
    EXPECT_EQ(layer->state(), LayerState::kComplete);
    EXPECT_EQ(Read(*layer, 0, layer->data_size()).value(), DataArea(made));
    layer.reset();
    RemoveOnceUnused(made.descriptor.digest);
    Close();
  }
}

TEST_F(CrashTest, AKilledKeepLeavesTheWholeBlobOrNone) {
  for (const char* point : {"contentstore.blob.write", "contentstore.blob.sync", "contentstore.blob.link",
                            "contentstore.blob.linked"}) {
    SCOPED_TRACE(point);
    ASSERT_EQ(RunVictim("keep", std::string(point) + "=kill"), SIGKILL);
    const support::Layer made = SharedLayer();
    Open();
    std::shared_ptr<LazyLayer> layer = Add(made);
    const bool linked = access(LayerFile(*layer, "blob").c_str(), F_OK) == 0;
    EXPECT_EQ(linked, std::string(point) == "contentstore.blob.linked");
    ForgetRequests();
    const absl::StatusOr<std::string> path = store_->KeepBlob(*layer, {}, {});
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_EQ(base::ReadFile(*path, 1 << 20).value(), made.blob);
    EXPECT_EQ(RequestCount(), linked ? 0 : 1);
    layer.reset();
    RemoveOnceUnused(made.descriptor.digest);
    Close();
  }
}

TEST_F(CrashTest, AKilledEvictionNeverLeavesHolesInACompleteLayer) {
  for (const char* point :
       {"contentstore.evict.mark", "contentstore.evict.punch", "contentstore.evict.punched"}) {
    SCOPED_TRACE(point);
    ASSERT_EQ(RunVictim("evict", std::string(point) + "=kill"), SIGKILL);
    const support::Layer made = SharedLayer();
    Open();
    std::shared_ptr<LazyLayer> layer = Add(made);
    EXPECT_EQ(layer->state(), LayerState::kLazy);
    EXPECT_EQ(Read(*layer, 0, layer->data_size()).value(), DataArea(made));
    EXPECT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
    layer.reset();
    RemoveOnceUnused(made.descriptor.digest);
    RemoveOnceUnused(MakeTarLayer(40).descriptor.digest);
    Close();
  }
}

TEST_F(CrashTest, WhatParsingDiesOfIsRecordedAndAKillIsNot) {
  const std::string digest = SharedLayer().descriptor.digest.ToString();
  const auto recorded = [&] { return base::ReadFile(options_.root + ".crashes", 4096).value_or("none"); };
  ASSERT_EQ(RunVictim("index", "contentstore.stream.write=kill"), SIGKILL);
  EXPECT_EQ(recorded(), "");
  ASSERT_EQ(RunVictim("index", "contentstore.parse/" + digest + "=abort"), SIGABRT);
  EXPECT_EQ(recorded(), digest + "\n");
  ASSERT_EQ(RunVictim("read", "contentstore.chunk.decode=abort"), SIGABRT);
  EXPECT_EQ(recorded(), digest + "\n" + digest + "\n");
}

TEST_F(CrashTest, WhatUnpackingDiesOfIsRecordedWhoeverReads) {
  const std::string digest = SharedTocLayer().descriptor.digest.ToString();
  std::string recorded;
  for (const char* task : {"unpack", "unpack-spool", "unpack-stream"}) {
    SCOPED_TRACE(task);
    ASSERT_EQ(RunVictim(task, "contentstore.unpack=abort"), SIGABRT);
    recorded += digest + "\n";
    EXPECT_EQ(base::ReadFile(options_.root + ".crashes", 4096).value_or("none"), recorded);
  }
}

TEST_F(CrashTest, TwoStoresDoNotShareARoot) {
  Open();
  options_.lock_patience = absl::Milliseconds(50);
  EXPECT_TRUE(absl::IsFailedPrecondition(ContentStore::Open(options_).status()));
}

TEST_F(CrashTest, ADiskThatDoesNotTakeTheDataMakesItMissingAgain) {
  options_.sync_interval = absl::Milliseconds(1);
  Open();
  const support::Layer made = SharedLayer();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  {
    base::ScopedFault broken("contentstore.sync.data", [] { return base::ErrnoStatus(EIO, "sync"); });
    ASSERT_TRUE(Read(*layer, 0, kChunk).ok());
    ASSERT_TRUE(Eventually([&] { return layer->stats().cached_bytes == 0; }));
    EXPECT_FALSE(layer->TryAcquire(0, kChunk).has_value());
    EXPECT_TRUE(Eventually([&] { return !Log().empty(); }));
  }
  EXPECT_EQ(Read(*layer, 0, kChunk).value(), DataArea(made).substr(0, kChunk));
  EXPECT_EQ(TimesRequested(0), 2);
}

}  // namespace
}  // namespace lazyblob::contentstore

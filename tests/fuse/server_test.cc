// FuseServer as the kernel sees it: negotiation, names, reads, interrupts, deadlines, failing layers.

#include "fuse/server.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "fuse/internal/deadline.h"
#include "fuse/internal/protocol.h"
#include "gmock/gmock.h"
#include "tests/fuse/server_fixture.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::fuse {
namespace {

using support::As;
using support::BytesOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class ServerTest : public ServerFixture {
 protected:
  // A read of layer b that the cache file, which has lost its end, does not serve: it waits.
  uint64_t ReadThatTheCacheFileFails() {
    StartServer();
    layer_b_->MakePresent();
    layer_b_->TruncateCacheFile(100'000);
    layer_b_->HealWhenDoubted();
    const uint64_t unique = kernel_.SendRead(node_b_, 1, 65536, 65536);
    EXPECT_TRUE(layer_b_->AwaitWaiting(1));
    return unique;
  }
};

TEST_F(ServerTest, InitNegotiatesWhatTheDesignNeeds) {
  StartServer();
  const auto out = As<fuse_init_out>(init_.answer, sizeof(fuse_out_header));
  EXPECT_EQ(out.max_background, 65535);
  EXPECT_EQ(out.congestion_threshold, 65535);
  EXPECT_EQ(out.max_pages, 256);
  EXPECT_EQ(out.max_write, 1u << 20);
  EXPECT_EQ(out.max_readahead, 128u << 10);  // the kernel's offer, below ours
  EXPECT_TRUE(out.flags & FUSE_ASYNC_DIO);
  EXPECT_TRUE(out.flags & FUSE_MAX_PAGES);
  EXPECT_FALSE(out.flags & FUSE_WRITEBACK_CACHE);
  EXPECT_FALSE(out.flags &
               (FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT | FUSE_POSIX_ACL | FUSE_EXPORT_SUPPORT));
  EXPECT_EQ(out.flags2, 0u);  // passthrough and what else newer kernels offer
}

TEST_F(ServerTest, InitIsKeptBeforeItIsAnswered) {
  ServerOptions options = Options();
  const uint64_t unique = kernel_.NewUnique();
  bool answered_before = true;
  options.on_init = [&](const InitExchange& exchange) {
    absl::MutexLock lock(&mutex_);
    answered_before = kernel_.Answered(unique);
    init_ = exchange;
    return absl::OkStatus();
  };
  server_ = std::make_unique<FuseServer>(&store_, std::move(options));
  ASSERT_TRUE(server_->Start().ok());
  kernel_.SendAs(unique, FUSE_INIT, 0, support::FakeKernel::InitBody());
  const auto answer = kernel_.Await(unique);
  absl::MutexLock lock(&mutex_);
  EXPECT_FALSE(answered_before);
  EXPECT_EQ(init_.answer.substr(sizeof(fuse_out_header)), answer.body);
  EXPECT_EQ(init_.request.substr(sizeof(fuse_in_header)), support::FakeKernel::InitBody());
}

TEST_F(ServerTest, NoConnectionWithoutItsInitKept) {
  ServerOptions options = Options();
  options.on_init = [](const InitExchange&) { return absl::ResourceExhaustedError("no room"); };
  server_ = std::make_unique<FuseServer>(&store_, std::move(options));
  ASSERT_TRUE(server_->Start().ok());
  EXPECT_EQ(kernel_.Init().error, EIO);
  ASSERT_THAT(log(), SizeIs(1));
  EXPECT_THAT(log()[0], HasSubstr("no room"));
}

TEST_F(ServerTest, BlobsAreFoundByTheirLayersName) {
  StartServer();
  const uint64_t blobs = kernel_.LookupNode(1, "blobs");
  EXPECT_EQ(blobs, 2u);
  EXPECT_EQ(kernel_.LookupNode(1, "trees"), 3u);
  const auto answer = kernel_.Lookup(blobs, LayerName(layer_a_->descriptor().digest));
  ASSERT_EQ(answer.error, 0);
  const auto entry = As<fuse_entry_out>(answer.body);
  EXPECT_EQ(entry.nodeid, node_a_);
  EXPECT_EQ(entry.generation, 1u);
  EXPECT_GT(entry.entry_valid, 86400u * 365);
  EXPECT_GT(entry.attr_valid, 86400u * 365);
  EXPECT_EQ(entry.attr.mode, uint32_t{S_IFREG | 0444});
  EXPECT_EQ(entry.attr.size, (kSizeA + 4095) / 4096 * 4096);

  EXPECT_EQ(kernel_.Lookup(1, "other").error, ENOENT);
  EXPECT_EQ(kernel_.Lookup(blobs, "sha256-00").error, ENOENT);
  EXPECT_EQ(kernel_.Lookup(blobs, LayerName(base::Digest::Of(absl::string_view("unknown")))).error, ENOENT);
  EXPECT_EQ(kernel_.Lookup(blobs, std::string(256, 'a')).error, ENAMETOOLONG);
  EXPECT_EQ(kernel_.Lookup(node_a_, "x").error, ENOTDIR);
}

TEST_F(ServerTest, SizeOfABlobNeverShrinks) {
  StartServer();
  layer_a_->set_state(contentstore::LayerState::kNeedsIndex);
  EXPECT_EQ(As<fuse_attr_out>(kernel_.GetAttr(node_a_).body).attr.size, uint64_t{1} << 40);
  layer_a_->set_state(contentstore::LayerState::kLazy);
  EXPECT_EQ(As<fuse_attr_out>(kernel_.GetAttr(node_a_).body).attr.size, uint64_t{1} << 40);
}

TEST_F(ServerTest, NodesOfUnknownLayersAreStale) {
  StartServer();
  EXPECT_EQ(kernel_.GetAttr(internal::BlobNode(99)).error, ESTALE);
  EXPECT_EQ(kernel_.Open(internal::BlobNode(99)).error, ESTALE);
  EXPECT_EQ(kernel_.Read(internal::BlobNode(99), 5, 0, 4096).error, ESTALE);
  EXPECT_EQ(kernel_.GetAttr(12345).error, ESTALE);
  store_.Forget(7);
  EXPECT_EQ(kernel_.GetAttr(node_a_).error, ESTALE);
}

TEST_F(ServerTest, ReadsHaveExactlyTheLengthAsked) {
  StartServer();
  layer_a_->MakePresent();
  const std::string data = Pattern(kSizeA, 1) + std::string(8192, '\0');
  const uint64_t handle = kernel_.OpenHandle(node_a_);
  const uint64_t padded = (kSizeA + 4095) / 4096 * 4096;
  for (auto [offset, size] : std::vector<std::pair<uint64_t, uint32_t>>{{0, 4096},
                                                                        {0, 1 << 20},
                                                                        {512, 65536},
                                                                        {1 << 20, 1 << 20},
                                                                        {4097, 1},
                                                                        {padded - 4096, 4096},
                                                                        {padded - 8192, 8192},
                                                                        {kSizeA - 1, 2},
                                                                        {padded - 512, 512},
                                                                        {0, 0}}) {
    const auto answer = kernel_.Read(node_a_, handle, offset, size);
    ASSERT_EQ(answer.error, 0) << offset;
    ASSERT_EQ(answer.body.size(), size) << offset;
    EXPECT_TRUE(answer.body == data.substr(offset, size)) << offset;
  }
  // Over the end: an errno, never a short answer.
  EXPECT_EQ(kernel_.Read(node_a_, handle, padded - 4096, 8192).error, EIO);
  EXPECT_EQ(kernel_.Read(node_a_, handle, padded, 4096).error, EIO);
  EXPECT_EQ(kernel_.Read(node_a_, handle, ~uint64_t{0} - 100, 4096).error, EIO);
  EXPECT_NE(kernel_.Read(node_a_, handle, 0, (1 << 20) + 1).error, 0);
}

TEST_F(ServerTest, RangesInMemoryAreServedTheSame) {
  StartServer();
  layer_b_->MakePresent();
  layer_b_->ServeFromMemory();
  const auto answer = kernel_.Read(node_b_, 1, 8192, 65536);
  EXPECT_TRUE(answer.body == Pattern(1 << 20, 2).substr(8192, 65536));
}

TEST_F(ServerTest, ShortCacheFileIsAnErrorNotAShortAnswer) {
  StartServer();
  layer_b_->MakePresent();
  layer_b_->TruncateCacheFile(100'000);
  EXPECT_EQ(kernel_.Read(node_b_, 1, 65536, 65536).error, EIO);
  EXPECT_EQ(kernel_.Read(node_b_, 1, 0, 65536).error, 0);
  EXPECT_EQ(kernel_.Read(node_b_, 1, 131072, 4096).error, EIO);
  server_->Stop();  // what is counted after the answer is counted now
  EXPECT_EQ(server_->counters().failed_reads, 2u);
}

TEST_F(ServerTest, WhatTheCacheFileDoesNotGiveIsFetchedAndAnsweredAllTheSame) {
  const uint64_t unique = ReadThatTheCacheFileFails();
  layer_b_->Release();
  const auto answer = kernel_.Await(unique);
  EXPECT_EQ(answer.error, 0);
  EXPECT_TRUE(answer.body == Pattern(1 << 20, 2).substr(65536, 65536));
  EXPECT_EQ(layer_b_->acquires(), 1u);
  server_->Stop();
  EXPECT_EQ(server_->counters().reads, 1u);
  EXPECT_EQ(server_->counters().failed_reads, 0u);
}

TEST_F(ServerTest, AReadThatWaitsBecauseTheCacheFileFailedIsASuccessors) {
  const uint64_t unique = ReadThatTheCacheFileFails();
  server_->Stop();
  layer_b_->Release();
  EXPECT_EQ(kernel_.ResendUnanswered().count(unique), 1u) << "it is unanswered";
}

// Few threads, any number of waiting readers.
class HungReads : public ServerTest, public ::testing::WithParamInterface<int> {};

TEST_P(HungReads, DoNotKeepAHitWaiting) {
  StartServer();
  layer_b_->MakePresent();
  std::vector<uint64_t> hung;
  for (int i = 0; i < GetParam(); ++i) hung.push_back(kernel_.SendRead(node_a_, 1, 512 * i, 512));
  ASSERT_TRUE(layer_a_->AwaitWaiting(hung.size()));
  EXPECT_EQ(server_->counters().outstanding, hung.size());
  EXPECT_EQ(kernel_.Read(node_b_, 2, 0, 4096).error, 0);
  EXPECT_EQ(server_->counters().hits, 1u);
  EXPECT_EQ(server_->counters().outstanding, hung.size());
  EXPECT_FALSE(kernel_.Answered(hung[0]));

  layer_a_->Release();
  const std::string data = Pattern(kSizeA, 1);
  for (size_t i = 0; i < hung.size(); ++i) {
    const auto answer = kernel_.Await(hung[i]);
    ASSERT_EQ(answer.error, 0);
    ASSERT_TRUE(answer.body == data.substr(512 * i, 512)) << i;
  }
  EXPECT_EQ(server_->counters().outstanding, 0u);
  EXPECT_EQ(server_->counters().failed_reads, 0u);
}
INSTANTIATE_TEST_SUITE_P(Counts, HungReads, ::testing::Values(12, 5000));

TEST_F(ServerTest, OnlyKilledReadersAreInterrupted) {
  StartServer();
  const uint64_t alive = kernel_.SendRead(node_a_, 1, 0, 4096, 100);
  const uint64_t killed = kernel_.SendRead(node_a_, 1, 4096, 4096, 200);
  ASSERT_TRUE(layer_a_->AwaitWaiting(2));
  Kill(200);
  kernel_.Interrupt(alive);
  kernel_.Interrupt(killed);
  EXPECT_EQ(kernel_.Await(killed).error, EINTR);
  EXPECT_TRUE(layer_a_->AwaitCancelled(1));
  ASSERT_TRUE(AwaitKillQuestions(2));
  EXPECT_FALSE(kernel_.Answered(alive));
  layer_a_->Release();
  EXPECT_EQ(kernel_.Await(alive).error, 0);
}

TEST_F(ServerTest, KillAfterAnIgnoredInterruptIsSeenLater) {
  StartServer();
  const uint64_t read = kernel_.SendRead(node_a_, 1, 0, 4096, 100);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  kernel_.Interrupt(read);  // a timer's signal; the kernel will not say more
  ASSERT_TRUE(AwaitKillQuestions(1));
  EXPECT_FALSE(kernel_.Answered(read));
  Kill(100);
  EXPECT_EQ(kernel_.Await(read).error, EINTR);
}

TEST_F(ServerTest, InterruptThatOvertakesItsReadCounts) {
  StartServer();
  Kill(100);
  const uint64_t unique = kernel_.NewUnique();
  kernel_.Interrupt(unique);
  ASSERT_EQ(kernel_.GetAttr(1).error, 0);
  kernel_.SendAs(unique, FUSE_READ, node_a_, support::FakeKernel::ReadBody(1, 0, 4096), 100);
  EXPECT_EQ(kernel_.Await(unique).error, EINTR);
}

TEST_F(ServerTest, ADeadlineFailsTheSameRangeAtOnceForAWhile) {
  StartServer();
  const uint64_t first = kernel_.SendRead(node_a_, 1, 65536, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  layer_a_->Fail(absl::DeadlineExceededError("registry.example: no answer"));
  EXPECT_EQ(kernel_.Await(first).error, EIO);
  // The kernel's own next tries, one page of it or more around it.
  EXPECT_EQ(kernel_.Read(node_a_, 1, 65536, 4096).error, EIO);
  EXPECT_EQ(kernel_.Read(node_a_, 1, 0, 1 << 20).error, EIO);
  EXPECT_EQ(layer_a_->acquires(), 1u);
  // Elsewhere, and later, it is tried again.
  const uint64_t elsewhere = kernel_.SendRead(node_a_, 1, 3 << 20, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  clock_.Advance(absl::Seconds(6));
  const uint64_t later = kernel_.SendRead(node_a_, 1, 65536, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(2));
  layer_a_->Release();
  EXPECT_EQ(kernel_.Await(elsewhere).error, 0);
  EXPECT_EQ(kernel_.Await(later).error, 0);
}

TEST_F(ServerTest, AHitIsServedWhereADeadlineHasPassed) {
  StartServer();
  const uint64_t first = kernel_.SendRead(node_a_, 1, 65536, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  layer_a_->Fail(absl::DeadlineExceededError("slow"));
  EXPECT_EQ(kernel_.Await(first).error, EIO);
  layer_a_->MakePresent(0, 65536);
  EXPECT_EQ(kernel_.Read(node_a_, 1, 0, 4096).error, 0);
}

TEST_F(ServerTest, AStoreThatForgetsItsDeadlineDoesNotHangTheReader) {
  StartServer();
  const uint64_t read = kernel_.SendRead(node_a_, 1, 0, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  clock_.Advance(absl::Seconds(60));
  EXPECT_EQ(kernel_.Await(read).error, EIO);
  EXPECT_TRUE(layer_a_->AwaitCancelled(1));
}

TEST(RequestDeadlineTest, StaysInsideTheBudgetAndTheKernelsLimit) {
  using internal::RequestDeadline;
  EXPECT_EQ(RequestDeadline(absl::Seconds(60), 0), absl::Seconds(54));
  EXPECT_EQ(RequestDeadline(absl::Seconds(60), 1000), absl::Seconds(54));
  EXPECT_EQ(RequestDeadline(absl::Seconds(60), 20), absl::Seconds(10));
  EXPECT_EQ(RequestDeadline(absl::InfiniteDuration(), 0), absl::InfiniteDuration());
  EXPECT_EQ(RequestDeadline(absl::InfiniteDuration(), 20), absl::Seconds(10));
}

TEST(RequestDeadlineTest, WhatAPredecessorHadIsOlder) {
  EXPECT_EQ(internal::ResentDeadline(absl::Seconds(60), 0), absl::Seconds(54));
  EXPECT_EQ(internal::ResentDeadline(absl::Seconds(60), 20), absl::Seconds(2.5));
  EXPECT_EQ(internal::ResentDeadline(absl::Seconds(2), 20), absl::Seconds(1.8));
}

TEST(KernelRequestLimitTest, TheSmallerOneCountsButNotBelowWhatTheKernelTakes) {
  support::TempDir directory;
  auto limit = [&](absl::string_view by_default, absl::string_view most) {
    EXPECT_TRUE(base::WriteFileAtomically(directory.File("default_request_timeout"), by_default).ok());
    EXPECT_TRUE(base::WriteFileAtomically(directory.File("max_request_timeout"), most).ok());
    return KernelRequestLimit(directory.path());
  };
  EXPECT_EQ(KernelRequestLimit(directory.path()), 0u);  // an older kernel
  EXPECT_EQ(limit("0\n", "0\n"), 0u);
  EXPECT_EQ(limit("100\n", "0\n"), 100u);
  EXPECT_EQ(limit("0\n", "65535\n"), 65535u);
  EXPECT_EQ(limit("100\n", "20\n"), 20u);
  EXPECT_EQ(limit("30\n", "100\n"), 30u);
  EXPECT_EQ(limit("0\n", "3\n"), 15u);
}

TEST_F(ServerTest, AReadEndsBeforeTheKernelEndsTheConnection) {
  ServerOptions options = Options();
  options.request_limit = 20;
  StartServer(std::move(options));
  ASSERT_THAT(log(), SizeIs(1));
  EXPECT_THAT(log()[0], HasSubstr("no longer than 10s"));
  const uint64_t read = kernel_.SendRead(node_a_, 1, 0, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  clock_.Advance(absl::Seconds(13));
  EXPECT_EQ(kernel_.Await(read).error, EIO);
}

TEST_F(ServerTest, ReadsThatWaitAreToldByLayerWithTheAgeOfTheOldest) {
  StartServer();
  EXPECT_THAT(server_->waiting_reads(), SizeIs(0));
  kernel_.SendRead(node_a_, 1, 0, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  clock_.Advance(absl::Seconds(5));
  kernel_.SendRead(node_a_, 1, 8192, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(2));
  const auto reads = server_->waiting_reads();
  ASSERT_THAT(reads, SizeIs(1));
  EXPECT_EQ(reads[0].layer, layer_a_->descriptor().digest);
  EXPECT_EQ(reads[0].reads, 2u);
  EXPECT_EQ(reads[0].oldest, absl::Seconds(5));
}

TEST_F(ServerTest, WaitForEverIsForEver) {
  ServerOptions options = Options();
  options.read_deadline = absl::InfiniteDuration();
  StartServer(std::move(options));
  const uint64_t read = kernel_.SendRead(node_a_, 1, 0, 4096, 100);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  kernel_.Interrupt(read);
  clock_.Advance(absl::Hours(1000));
  ASSERT_TRUE(AwaitKillQuestions(3));  // the sweep has been there
  EXPECT_FALSE(kernel_.Answered(read));
  layer_a_->Release();
  EXPECT_EQ(kernel_.Await(read).error, 0);
}

TEST_F(ServerTest, ErrorsOfAnyKindAreEioWithOneLinePerSecond) {
  StartServer();
  const absl::Status causes[] = {absl::NotFoundError("gone"), absl::CancelledError("odd"),
                                 absl::ResourceExhaustedError("disk full"),
                                 absl::DataLossError("bad\nbytes")};
  for (const absl::Status& cause : causes) {
    const uint64_t read = kernel_.SendRead(node_a_, 1, 0, 4096);
    ASSERT_TRUE(layer_a_->AwaitWaiting(1));
    layer_a_->Fail(cause);
    EXPECT_EQ(kernel_.Await(read).error, EIO) << cause;
  }
  ASSERT_THAT(log(), SizeIs(1));
  EXPECT_THAT(log()[0], HasSubstr(layer_a_->descriptor().digest.ToString()));
  EXPECT_THAT(log()[0], HasSubstr("gone"));
  clock_.Advance(absl::Seconds(1));
  const uint64_t read = kernel_.SendRead(node_a_, 1, 0, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  layer_a_->Fail(absl::DataLossError("bad\nbytes"));
  EXPECT_EQ(kernel_.Await(read).error, EIO);
  ASSERT_THAT(log(), SizeIs(2));
  EXPECT_THAT(log()[1], HasSubstr("bad\\x0abytes"));
  EXPECT_THAT(log()[1], HasSubstr("3 more"));
  EXPECT_EQ(server_->counters().failed_reads, 5u);
}

TEST_F(ServerTest, AFailingLayerEndsItsReadsAndNoOthers) {
  StartServer();
  layer_a_->MakePresent(0, 4096);
  const uint64_t a = kernel_.SendRead(node_a_, 1, 8192, 4096);
  const uint64_t b = kernel_.SendRead(node_b_, 1, 0, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  ASSERT_TRUE(layer_b_->AwaitWaiting(1));
  server_->FailLayer(layer_a_->descriptor().digest);
  EXPECT_EQ(kernel_.Await(a).error, EIO);
  EXPECT_EQ(kernel_.Read(node_a_, 1, 0, 4096).error, EIO);  // even what is there
  EXPECT_EQ(kernel_.Read(node_a_, 1, 8192, 4096).error, EIO);
  EXPECT_FALSE(kernel_.Answered(b));
  server_->AllowLayer(layer_a_->descriptor().digest);
  EXPECT_EQ(kernel_.Read(node_a_, 1, 0, 4096).error, 0);
  layer_b_->Release();
  EXPECT_EQ(kernel_.Await(b).error, 0);
}

TEST_F(ServerTest, HandlesKeepTheLayerUntilTheirRelease) {
  StartServer();
  const base::Digest digest = layer_a_->descriptor().digest;
  const uint64_t one = kernel_.OpenHandle(node_a_);
  const uint64_t two = kernel_.OpenHandle(node_a_);
  EXPECT_NE(one, two);
  EXPECT_EQ(server_->open_handles(digest), 2u);
  EXPECT_EQ(server_->open_handles(layer_b_->descriptor().digest), 0u);

  layer_a_->MakePresent();
  std::weak_ptr<FakeLayer> weak = layer_a_;
  store_.Forget(7);
  layer_a_.reset();
  EXPECT_FALSE(weak.expired());
  EXPECT_EQ(kernel_.Read(node_a_, one, 0, 4096).error, 0);

  EXPECT_EQ(kernel_.Release(node_a_, one).error, 0);
  EXPECT_EQ(kernel_.Release(node_a_, one).error, 0);
  EXPECT_EQ(server_->open_handles(digest), 1u);
  EXPECT_EQ(kernel_.Release(node_a_, two).error, 0);
  EXPECT_EQ(server_->open_handles(digest), 0u);
  server_->Stop();  // no thread is still returning from a read
  EXPECT_TRUE(weak.expired());
}

TEST_F(ServerTest, OpenIsDirectAndReadOnly) {
  StartServer();
  const auto open = kernel_.Open(node_a_, O_RDONLY | O_LARGEFILE);
  ASSERT_EQ(open.error, 0);
  EXPECT_EQ(As<fuse_open_out>(open.body).open_flags, uint32_t{FOPEN_DIRECT_IO});
  EXPECT_EQ(kernel_.Open(node_a_, O_RDWR).error, EROFS);
  EXPECT_EQ(kernel_.Open(node_a_, O_WRONLY).error, EROFS);
  EXPECT_EQ(kernel_.Call(FUSE_WRITE, node_a_, BytesOf(fuse_write_in{})).error, EROFS);
  EXPECT_EQ(kernel_.Call(FUSE_UNLINK, 2, std::string("x\0", 2)).error, EROFS);
  EXPECT_EQ(kernel_.Call(FUSE_SETATTR, node_a_, BytesOf(fuse_setattr_in{})).error, EROFS);
  EXPECT_EQ(kernel_.Call(FUSE_LSEEK, node_a_, BytesOf(fuse_lseek_in{})).error, ENOSYS);
}

TEST_F(ServerTest, ForgottenNodesAreStillKnown) {
  StartServer();
  const size_t before = kernel_.messages();
  kernel_.Send(FUSE_FORGET, node_a_, BytesOf(fuse_forget_in{1}));
  EXPECT_EQ(kernel_.GetAttr(node_a_).error, 0);
  EXPECT_EQ(kernel_.messages(), before + 1);
}

TEST_F(ServerTest, FixedDirectories) {
  StartServer();
  const auto names = [&](uint64_t node) {
    std::vector<std::string> out;
    for (const auto& entry : kernel_.ReadDir(node, 0, 4096)) out.push_back(entry.name);
    return out;
  };
  EXPECT_EQ(names(1), (std::vector<std::string>{".", "..", "blobs", "trees"}));
  EXPECT_EQ(names(2), (std::vector<std::string>{".", ".."}));
  EXPECT_EQ(kernel_.ReadDir(1, 3, 4096).at(0).name, "trees");
  EXPECT_TRUE(kernel_.ReadDir(1, ~uint64_t{0}, 4096).empty());
  EXPECT_EQ(As<fuse_attr_out>(kernel_.GetAttr(1).body).attr.mode, uint32_t{S_IFDIR | 0555});
  const auto statistics = As<fuse_statfs_out>(kernel_.Call(FUSE_STATFS, node_b_, "").body);
  EXPECT_EQ(statistics.st.blocks, 256u);
  EXPECT_EQ(statistics.st.bsize, 4096u);
}

}  // namespace
}  // namespace lazyblob::fuse

// What a loss of power leaves of a content store: every blob whose commit was answered, whole; of an ingest
// what was synced. Root only.

#include <gmock/gmock.h>
#include <unistd.h>

#include "absl/strings/str_replace.h"
#include "contentservice/containerd_store.h"
#include "tests/contentservice/content_harness.h"
#include "tests/support/power_disk.h"

namespace lazyblob::contentservice {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

class PowerTest : public ContentTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    const absl::Status made = disk_.Make(dir_.path(), GetParam());
    ASSERT_TRUE(made.ok()) << made;
    options_.root = disk_.path() + "/content";
    Open();
  }
  void TearDown() override { content_.reset(); }
  void LosePower() {
    ASSERT_TRUE(disk_.CutPower().ok());
    content_.reset();  // can write nothing any more
    const absl::Status status = disk_.Restart();
    ASSERT_TRUE(status.ok()) << status;
    ForgetBoot();
    Open();
  }
  // Records of ingests look as another boot's.
  void ForgetBoot() {
    const std::string boot_id = base::ReadFile("/proc/sys/kernel/random/boot_id", 4096).value().substr(0, 36);
    const std::string ingests = options_.root + "/ingest";
    for (const std::string& name : base::ListDirectory(ingests).value_or(std::vector<std::string>())) {
      const std::string path = absl::StrCat(ingests, "/", name, "/ingest.json");
      std::string text = base::ReadFile(path, 4096).value_or("");
      if (absl::StrReplaceAll({{boot_id, "another"}}, &text) != 0) {
        ASSERT_TRUE(base::WriteFileAtomically(path, text).ok());
      }
    }
  }
  support::PowerDisk disk_;
};

TEST_P(PowerTest, WhatWasAnsweredHasHappened) {
  LosePower();  // an empty store is one
  const std::string bytes = Blob(3'000'000);
  const base::Digest digest = base::Digest::Of(bytes);
  ASSERT_TRUE(Write("ref", bytes, {{"l", "old"}}).ok());
  LosePower();
  EXPECT_EQ(Read(digest).value(), bytes);
  EXPECT_THAT(Refs(), IsEmpty());
  Info info;
  info.digest = digest;
  info.labels = {{"l", "new"}};
  ASSERT_TRUE(content_->Update(info, {}).ok());
  LosePower();
  EXPECT_EQ(content_->GetInfo(digest)->labels.at("l"), "new");
  const std::string store = disk_.path() + "/store";
  ASSERT_TRUE(base::MakeDirectories(store + "/blobs/sha256").ok());
  ASSERT_TRUE(
      base::WriteFileAtomically(store + "/blobs/sha256/" + base::Digest::Of("old").hex(), "old").ok());
  ASSERT_EQ(Import(*content_, store)->blobs, 1u);
  LosePower();
  EXPECT_EQ(Read(base::Digest::Of("old")).value(), "old");
  EXPECT_EQ(Read(digest).value(), bytes);
}

TEST_P(PowerTest, OfAnIngestStaysWhatWasSyncedAndItIsRight) {
  const std::string bytes = Blob(3'000'000);
  Leave("ref", bytes.substr(0, 1'000'000));  // closed
  {
    auto writer = Begin("ref");
    ASSERT_TRUE(writer->Append(Bytes(bytes.substr(1'000'000, 1'000'000))).ok());
    ASSERT_TRUE(disk_.CutPower().ok());
  }
  LosePower();
  auto writer = Begin("ref");
  ASSERT_NE(writer, nullptr);
  EXPECT_EQ(writer->status().offset, 1'000'000u);
  EXPECT_EQ(writer->digest(), base::Digest::Of(bytes.substr(0, 1'000'000)));
  ASSERT_TRUE(writer->Append(Bytes(bytes.substr(1'000'000))).ok());
  ASSERT_TRUE(writer->Commit(bytes.size(), base::Digest::Of(bytes), {}).ok());
  LosePower();
  EXPECT_EQ(Read(base::Digest::Of(bytes)).value(), bytes);
}

TEST_P(PowerTest, ManyBlobsStayWhole) {
  for (uint32_t round = 0; round < 3; ++round) {
    for (uint32_t i = 0; i < 20; ++i) {
      ASSERT_TRUE(Write(absl::StrCat("ref ", i), Blob(40'000, 1 + round * 100 + i)).ok());
    }
    Leave("left", Blob(50'000));
    LosePower();
    const std::vector<std::string> blobs = Listed();
    EXPECT_THAT(blobs, SizeIs(20 * (round + 1)));
    for (const std::string& blob : blobs) {
      const base::Digest digest = base::Digest::Parse(blob).value();
      EXPECT_EQ(base::Digest::Of(Read(digest).value()), digest);
    }
    EXPECT_THAT(Files("blobs/sha256"), SizeIs(blobs.size()));
  }
  absl::MutexLock lock(&log_mutex_);
  EXPECT_THAT(log_, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(FileSystems, PowerTest, testing::Values("ext4", "xfs"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lazyblob::contentservice

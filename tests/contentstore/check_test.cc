// What the check finds wrong with the files of a store, and what a store makes of them after a repair.

#include "contentstore/check.h"

#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kChunks = 32;

class CheckTest : public StoreTest {
 protected:
  // A complete layer in a store that was closed.
  void MakeComplete() {
    Open();
    layer_ = AddComplete(made_);
    Rest();
  }
  void Rest() {
    path_ = layer_->directory();
    layer_.reset();
    Close();
  }
  // What is found, "repaired" in front where it was.
  std::vector<std::string> Check(bool alone, bool repair) {
    std::vector<std::string> found;
    totals_ = CheckTotals();
    CheckOptions options;
    options.alone = alone;
    options.repair = repair;
    const absl::Status status = CheckLayers(
        options_.root, options,
        [&](const CheckFinding& finding) {
          found.push_back(absl::StrCat(finding.repaired ? "repaired " : "", finding.what));
        },
        &totals_);
    EXPECT_TRUE(status.ok()) << status;
    return found;
  }
  // Every byte of [offset, offset + length) becomes another.
  void Spoil(const std::string& name, uint64_t offset, uint64_t length) {
    const absl::StatusOr<base::UniqueFd> file = base::OpenFile(path_ + "/" + name, O_RDWR);
    ASSERT_TRUE(file.ok()) << file.status();
    std::vector<uint8_t> bytes(length);
    ASSERT_TRUE(base::PreadFull(file->get(), offset, absl::MakeSpan(bytes)).ok());
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(byte ^ 0x5a);
    ASSERT_TRUE(base::PwriteFull(file->get(), offset, bytes).ok());
  }
  std::string Content(const std::string& name) {
    return base::ReadFile(path_ + "/" + name, 1 << 30).value_or("none");
  }
  // Opens the store again; the layer reads as it should.
  void ExpectReadable() {
    Open();
    layer_ = store_->Find(made_.descriptor.digest);
    ASSERT_NE(layer_, nullptr);
    EXPECT_TRUE(Same(Read(*layer_, 0, layer_->data_size()).value_or("unreadable"), DataArea(made_)));
  }

  const support::Layer made_ = MakeTarLayer(kChunks);
  std::shared_ptr<LazyLayer> layer_;
  std::string path_;
  CheckTotals totals_;
};

TEST_F(CheckTest, AStoreThatIsWellIsCleanAndAllOfItIsCompared) {
  MakeComplete();
  EXPECT_THAT(Check(true, false), IsEmpty());
  EXPECT_EQ(totals_.layers, 1u);
  EXPECT_GE(totals_.chunks, kChunks);
  EXPECT_EQ(totals_.bytes, made_.tar.size());
  EXPECT_THAT(Check(true, true), IsEmpty());
  ForgetRequests();
  ExpectReadable();
  EXPECT_EQ(layer_->state(), LayerState::kComplete);
  EXPECT_EQ(RequestCount(), 0u) << "nothing was taken away";
}

TEST_F(CheckTest, RottenChunksAreToldAndNothingIsTouched) {
  MakeComplete();
  Spoil("data", 3 * kChunk, 1);
  const std::string presence = Content("presence");
  const std::vector<std::string> found = Check(true, false);
  EXPECT_THAT(found, ElementsAre(HasSubstr("data [12288, 16384) does not have the SHA-256")));
  EXPECT_EQ(Content("presence"), presence);
  EXPECT_THAT(Check(false, false), ElementsAre(found[0])) << "beside a store too";
}

TEST_F(CheckTest, RottenChunksAreDroppedAndOnlyTheyAreFetchedAgain) {
  MakeComplete();
  Spoil("data", 3 * kChunk + 5, 2 * kChunk - 5);
  Spoil("data", 25 * kChunk, 1);
  const std::vector<std::string> found = Check(true, true);
  EXPECT_THAT(found, ElementsAre(HasSubstr("data [12288, 20480)"), HasSubstr("data [102400, 106496)")));
  EXPECT_THAT(found, testing::Each(testing::StartsWith("repaired ")));
  const uint64_t all = totals_.chunks;
  EXPECT_THAT(Check(true, false), IsEmpty());
  EXPECT_EQ(totals_.chunks, all - 3);
  ForgetRequests();
  ExpectReadable();
  EXPECT_EQ(layer_->state(), LayerState::kLazy) << "no longer complete";
  EXPECT_GT(TimesRequested(3 * kChunk), 0u);
  EXPECT_GT(TimesRequested(25 * kChunk), 0u);
  EXPECT_EQ(TimesRequested(0), 0u);
  EXPECT_EQ(TimesRequested(15 * kChunk), 0u);
}

TEST_F(CheckTest, AMarkWithoutItsChunksIsTakenAway) {
  MakeComplete();
  const absl::StatusOr<base::UniqueFd> presence = base::OpenFile(path_ + "/presence", O_RDWR);
  ASSERT_TRUE(presence.ok());
  const uint8_t bits = 0xfe;
  ASSERT_TRUE(base::PwriteFull(presence->get(), 64, absl::MakeConstSpan(&bits, 1)).ok());
  EXPECT_THAT(Check(true, true), ElementsAre(HasSubstr("marked complete, and 1 chunks are missing")));
  EXPECT_THAT(Check(true, false), IsEmpty());
  ExpectReadable();
}

TEST_F(CheckTest, ADamagedMapCostsTheCacheAndNoMore) {
  MakeComplete();
  Spoil("presence", 8, 1);
  EXPECT_THAT(Check(true, true), ElementsAre(HasSubstr("presence or data is not of this index")));
  EXPECT_THAT(Check(true, false), IsEmpty());
  ExpectReadable();
}

TEST_F(CheckTest, DataOfAnotherSizeIsFound) {
  MakeComplete();
  ASSERT_EQ(truncate((path_ + "/data").c_str(), kChunk), 0);
  EXPECT_THAT(Check(true, true), ElementsAre(HasSubstr("presence or data is not of this index")));
  ExpectReadable();
}

TEST_F(CheckTest, AnIndexThatIsNotItsMetadatasIsMadeAnew) {
  for (const char* name : {"index", "meta.erofs"}) {
    MakeComplete();
    Spoil(name, 1500, 1);
    EXPECT_THAT(Check(true, false), ElementsAre(HasSubstr("indexed again"))) << name;
    EXPECT_THAT(Check(true, true), ElementsAre(HasSubstr("indexed again"))) << name;
    EXPECT_THAT(Check(true, false), IsEmpty()) << name;
    Open();
    layer_ = store_->Find(made_.descriptor.digest);
    ASSERT_NE(layer_, nullptr) << name;
    EXPECT_EQ(layer_->state(), LayerState::kNeedsIndex) << name;
    EXPECT_THAT(Log(), IsEmpty()) << "the store has nothing to say of it";
    ASSERT_TRUE(store_->EnsureIndexed(*layer_, false, {}, {}).ok()) << name;
    layer_.reset();
    RemoveOnceUnused(made_.descriptor.digest);
    Close();
  }
}

TEST_F(CheckTest, ABlobThatLostItsDigestIsFetchedAgain) {
  Open();
  layer_ = AddIndexed(made_);
  ASSERT_TRUE(store_->KeepBlob(*layer_, {}, {}).ok());
  Rest();
  EXPECT_THAT(Check(true, false), IsEmpty());
  Spoil("blob", 700, 1);
  EXPECT_THAT(Check(true, true), ElementsAre(HasSubstr("blob does not have its digest")));
  EXPECT_EQ(Content("blob"), "none");
  EXPECT_THAT(Check(true, false), IsEmpty());
  Open();
  layer_ = store_->Find(made_.descriptor.digest);
  ASSERT_NE(layer_, nullptr);
  ASSERT_TRUE(store_->KeepBlob(*layer_, {}, {}).ok());
  EXPECT_TRUE(Same(Content("blob"), made_.blob));
}

TEST_F(CheckTest, DamagedRecordsAreFoundAndWhatMayBeOnItsWayIsNot) {
  MakeComplete();
  const std::string other = options_.root + "/layers/sha256-" + std::string(64, 'a');
  ASSERT_TRUE(base::MakeDirectories(other).ok());
  EXPECT_THAT(Check(false, false), IsEmpty());
  EXPECT_THAT(Check(true, false), ElementsAre(HasSubstr("has no layer.json")));
  ASSERT_TRUE(base::WriteFileAtomically(other + "/layer.json", Content("layer.json")).ok());
  EXPECT_THAT(Check(false, false), ElementsAre(HasSubstr("layer.json is of another layer")));
  Spoil("layer.json", 0, 1);
  EXPECT_EQ(Check(true, true).size(), 2u);
  EXPECT_THAT(base::ListDirectory(options_.root + "/layers").value(), IsEmpty());
  EXPECT_THAT(Check(true, false), IsEmpty());
}

TEST_F(CheckTest, AStoreThatIsInUseIsCheckedAndNotRepaired) {
  Open();
  layer_ = AddIndexed(made_);
  ASSERT_TRUE(Read(*layer_, 0, 4 * kChunk).ok());
  EXPECT_THAT(Check(false, false), IsEmpty());
  EXPECT_GE(totals_.chunks, 4u);
  CheckOptions options;
  options.repair = true;
  const absl::Status refused = CheckLayers(options_.root, options, [](const CheckFinding&) {}, &totals_);
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
}

}  // namespace
}  // namespace lazyblob::contentstore

#include "snapshotter/metastore.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/stat.h>

#include "base/file.h"
#include "snapshotter/labels.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::snapshotter {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

using Transaction = MetaStore::Transaction;

class MetaStoreTest : public testing::Test {
 protected:
  void SetUp() override { Open(); }
  void Open() {
    store_.reset();
    auto opened = MetaStore::Open(path_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  static Record Make(const std::string& name, Kind kind, int64_t parent = 0, Labels labels = {}) {
    Record record;
    record.info.name = name;
    record.info.kind = kind;
    record.info.labels = std::move(labels);
    record.info.created = record.info.updated = absl::FromUnixNanos(1'700'000'000'123'456'789);
    record.parent_id = parent;
    return record;
  }
  static LayerMount Layer(absl::string_view name) {
    LayerMount layer;
    layer.layer = base::Digest::Of(name);
    layer.meta_path = "/layers/meta";
    layer.target = "/m/1";
    layer.mode = fuse::Mode::kLoop;
    layer.direct = true;
    layer.opaque_root = true;
    return layer;
  }
  absl::Status Insert(Record& record) {
    return store_->Write([&](Transaction& transaction) { return transaction.Insert(record); });
  }
  absl::StatusOr<Record> Get(const std::string& name) {
    absl::StatusOr<Record> record;
    store_
        ->Read([&](Transaction& transaction) {
          record = transaction.Get(name);
          return absl::OkStatus();
        })
        .IgnoreError();
    return record;
  }
  // Runs SQL beside the store, as a person with sqlite3 would.
  void Execute(const std::string& sql) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
    char* error = nullptr;
    EXPECT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, &error), SQLITE_OK) << error;
    sqlite3_close(db);
  }

  support::TempDir dir_;
  const std::string path_ = dir_.File("snapshots.db");
  std::unique_ptr<MetaStore> store_;
};

TEST_F(MetaStoreTest, KeepsEveryFieldAcrossReopening) {
  Record base = Make("base", Kind::kCommitted, 0, {{kLabelSnapshotRef, "ref"}, {"empty", ""}});
  base.layer = Layer("a");
  ASSERT_TRUE(Insert(base).ok());
  Record child = Make("ns/7/a key: with \"all\" \xc3\xbc", Kind::kActive, base.id, {{"k", "v=\n,"}});
  child.mapping = fuse::IdMapping{{{0, 100000, 65536}, {70000, 300000, 10}}, {{0, 200000, 65536}}};
  child.usage = {1ull << 40, 12};
  ASSERT_TRUE(Insert(child).ok());
  Open();

  Record read = Get("base").value();
  EXPECT_EQ(read.id, base.id);
  EXPECT_EQ(read.parent_id, 0);
  EXPECT_EQ(read.info.parent, "");
  EXPECT_EQ(read.info.labels, base.info.labels);
  ASSERT_TRUE(read.layer.has_value());
  EXPECT_EQ(read.layer->layer, base::Digest::Of("a"));
  EXPECT_EQ(read.layer->meta_path, "/layers/meta");
  EXPECT_EQ(read.layer->target, "/m/1");
  EXPECT_EQ(read.layer->mode, fuse::Mode::kLoop);
  EXPECT_TRUE(read.layer->direct);
  EXPECT_TRUE(read.layer->opaque_root);

  read = Get(child.info.name).value();
  EXPECT_EQ(read.info.parent, "base");
  EXPECT_EQ(read.parent_id, base.id);
  EXPECT_EQ(read.info.kind, Kind::kActive);
  EXPECT_EQ(read.info.labels, child.info.labels);
  EXPECT_EQ(read.info.created, child.info.created);
  EXPECT_EQ(absl::ToUnixNanos(read.info.updated), 1'700'000'000'123'456'789);
  EXPECT_EQ(read.mapping, child.mapping);
  EXPECT_EQ(read.usage.bytes, 1ull << 40);
  EXPECT_EQ(read.usage.inodes, 12u);
  EXPECT_FALSE(read.layer.has_value());
}

TEST_F(MetaStoreTest, ATransactionThatFailsLeavesNothing) {
  Record record = Make("a", Kind::kActive, 0, {{"k", "v"}});
  int undone = 0;
  EXPECT_TRUE(absl::IsCancelled(store_->Write(
      [&](Transaction& transaction) -> absl::Status {
        EXPECT_TRUE(transaction.Insert(record).ok());
        EXPECT_TRUE(transaction.Exists("a").value());
        return absl::CancelledError("no");
      },
      [&] { ++undone; })));
  EXPECT_EQ(undone, 1);
  EXPECT_TRUE(absl::IsNotFound(Get("a").status()));
  EXPECT_TRUE(Insert(record).ok());
}

TEST_F(MetaStoreTest, NamesAreTakenOnce) {
  Record first = Make("a", Kind::kActive);
  ASSERT_TRUE(Insert(first).ok());
  Record second = Make("a", Kind::kView);
  EXPECT_TRUE(absl::IsAlreadyExists(Insert(second)));
  Record other_case = Make("A", Kind::kView);
  EXPECT_TRUE(Insert(other_case).ok());
}

TEST_F(MetaStoreTest, NumbersOfDeletedSnapshotsAreNotGivenAgain) {
  Record first = Make("a", Kind::kActive, 0, {{"k", "v"}});
  ASSERT_TRUE(Insert(first).ok());
  ASSERT_TRUE(store_->Write([&](Transaction& transaction) { return transaction.Delete(first.id); }).ok());
  Open();
  Record second = Make("a", Kind::kActive);
  ASSERT_TRUE(Insert(second).ok());
  EXPECT_GT(second.id, first.id);
  EXPECT_THAT(Get("a")->info.labels, IsEmpty());
}

TEST_F(MetaStoreTest, AParentCannotBeDeletedBelowItsChild) {
  Record parent = Make("p", Kind::kCommitted);
  ASSERT_TRUE(Insert(parent).ok());
  Record child = Make("c", Kind::kActive, parent.id);
  ASSERT_TRUE(Insert(child).ok());
  EXPECT_FALSE(store_->Write([&](Transaction& transaction) { return transaction.Delete(parent.id); }).ok());
  EXPECT_TRUE(Get("p").ok());
}

TEST_F(MetaStoreTest, AChainStartsAtTheTop) {
  Record a = Make("a", Kind::kCommitted);
  ASSERT_TRUE(Insert(a).ok());
  Record b = Make("b", Kind::kCommitted, a.id);
  b.layer = Layer("b");
  ASSERT_TRUE(Insert(b).ok());
  Record c = Make("c", Kind::kActive, b.id);
  ASSERT_TRUE(Insert(c).ok());
  ASSERT_TRUE(store_
                  ->Read([&](Transaction& transaction) -> absl::Status {
                    std::vector<Link> chain = transaction.Chain(c.id).value();
                    EXPECT_THAT(chain, SizeIs(3));
                    EXPECT_EQ(chain[0].name, "c");
                    EXPECT_EQ(chain[1].name, "b");
                    EXPECT_TRUE(chain[1].layer.has_value());
                    EXPECT_EQ(chain[2].id, a.id);
                    EXPECT_THAT(transaction.Chain(99).value(), IsEmpty());
                    EXPECT_THAT(transaction.Children(b.id, 5).value(), ElementsAre("c"));
                    return absl::OkStatus();
                  })
                  .ok());
}

TEST_F(MetaStoreTest, LazySnapshotsAreFoundByRefAndParent) {
  Record base = Make("base", Kind::kCommitted);
  ASSERT_TRUE(Insert(base).ok());
  Record on_base = Make("x", Kind::kCommitted, base.id, {{kLabelSnapshotRef, "ref"}});
  on_base.layer = Layer("x");
  ASSERT_TRUE(Insert(on_base).ok());
  Record at_bottom = Make("y", Kind::kCommitted, 0, {{kLabelSnapshotRef, "ref"}});
  at_bottom.layer = Layer("y");
  ASSERT_TRUE(Insert(at_bottom).ok());
  Record local = Make("z", Kind::kCommitted, 0, {{kLabelSnapshotRef, "ref"}});  // not lazy
  ASSERT_TRUE(Insert(local).ok());
  auto find = [&](const std::string& ref, int64_t parent) {
    std::vector<std::string> names;
    store_
        ->Read([&](Transaction& transaction) -> absl::Status {
          std::vector<Record> records = transaction.LazyByRef(ref, parent).value();
          for (const Record& record : records) names.push_back(record.info.name);
          return absl::OkStatus();
        })
        .IgnoreError();
    return names;
  };
  EXPECT_THAT(find("ref", base.id), ElementsAre("x"));
  EXPECT_THAT(find("ref", 0), ElementsAre("y"));
  EXPECT_THAT(find("other", 0), IsEmpty());
}

TEST_F(MetaStoreTest, IsPrivate) {
  struct stat st;
  ASSERT_EQ(stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  ASSERT_EQ(stat((path_ + "-wal").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
}

TEST_F(MetaStoreTest, ANewerFormatIsRefused) {
  store_.reset();
  Execute("PRAGMA user_version = 2");
  absl::Status status = MetaStore::Open(path_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("newer version"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

TEST_F(MetaStoreTest, ADatabaseOfAnotherProgramIsRefused) {
  store_.reset();
  ASSERT_EQ(unlink(path_.c_str()), 0);
  Execute("CREATE TABLE bookmarks(url TEXT)");
  absl::Status status = MetaStore::Open(path_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("another program"));
}

TEST_F(MetaStoreTest, ADamagedFileIsAClearError) {
  for (int i = 0; i < 200; ++i) {
    Record record = Make("snapshot " + std::to_string(i), Kind::kActive, 0, {{"key", std::string(500, 'v')}});
    ASSERT_TRUE(Insert(record).ok());
  }
  store_.reset();  // the log is folded into the file
  const std::string good = base::ReadFile(path_, 64 << 20).value();
  // Not a database at all; a page in the middle overwritten; the end cut off.
  std::string overwritten = good;
  overwritten.replace(4096 * 5, 4096 * 3, std::string(4096 * 3, '\xff'));
  for (const std::string& bad : {std::string("what is this, no database for sure") + std::string(9000, 'x'),
                                 overwritten, good.substr(0, 4096 * 4)}) {
    ASSERT_TRUE(base::WriteFileAtomically(path_, bad, 0600).ok());
    absl::Status status = MetaStore::Open(path_).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
    EXPECT_THAT(std::string(status.message()), HasSubstr("move it away"));
  }
  ASSERT_TRUE(base::WriteFileAtomically(path_, good, 0600).ok());
  EXPECT_TRUE(MetaStore::Open(path_).ok());
}

TEST_F(MetaStoreTest, AnEmptyFileIsANewDatabase) {
  store_.reset();
  ASSERT_TRUE(base::WriteFileAtomically(path_, "").ok());
  Open();
  Record record = Make("a", Kind::kActive);
  EXPECT_TRUE(Insert(record).ok());
}

TEST_F(MetaStoreTest, CommitIsVisibleToOthersAtOnce) {
  Record record = Make("a", Kind::kActive);
  ASSERT_TRUE(Insert(record).ok());
  auto second = MetaStore::Open(path_).value();
  ASSERT_TRUE(
      second->Read([&](Transaction& transaction) -> absl::Status { return transaction.Get("a").status(); })
          .ok());
}

}  // namespace
}  // namespace lazyblob::snapshotter

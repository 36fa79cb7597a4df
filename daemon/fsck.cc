#include "daemon/fsck.h"

#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/crash_record.h"
#include "base/file.h"
#include "base/sqlite.h"
#include "base/status.h"
#include "contentservice/content_database.h"
#include "snapshotter/metastore.h"

namespace lazyblob::daemon {
namespace {

using snapshotter::MetaStore;

bool IsThere(const std::string& path) {
  struct stat st{};
  return lstat(path.c_str(), &st) == 0;
}

class RootCheck {
 public:
  RootCheck(std::string root, const contentstore::CheckOptions& options, contentstore::OnFinding found,
            FsckTotals* totals)
      : root_(std::move(root)), options_(options), found_(found), totals_(totals) {}

  // False: there is none, or it is damaged, which has been told.
  absl::StatusOr<bool> CheckDatabase(const std::string& path, absl::string_view what_to_do) {
    if (!IsThere(path)) return false;
    ASSIGN_OR_RETURN(const std::vector<std::string> problems, base::Sqlite::Check(path));
    for (const std::string& problem : problems) {
      Found(absl::StrCat(path, ": ", problem, "; ", what_to_do), false);
    }
    return problems.empty();
  }

  absl::Status CheckSnapshots() {
    const std::string path = root_ + "/snapshots.db";
    ASSIGN_OR_RETURN(const bool sound,
                     CheckDatabase(path, "restore the file, or move it and s/ away to start anew"));
    if (!sound) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::unique_ptr<MetaStore> store, MetaStore::Open(path));
    std::vector<MetaStore::Transaction::Row> rows;
    std::vector<snapshotter::Link> lazy;
    RETURN_IF_ERROR(store->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
      ASSIGN_OR_RETURN(rows, transaction.Rows());
      ASSIGN_OR_RETURN(lazy, transaction.LazyLinks());
      return absl::OkStatus();
    }));
    totals_->snapshots += rows.size();
    std::set<int64_t> with_directory;
    for (const MetaStore::Transaction::Row& row : rows) {
      if (row.lazy) continue;
      with_directory.insert(row.id);
      RETURN_IF_ERROR(Needs(*store, row.name, absl::StrCat(root_, "/s/", row.id, "/fs"),
                            "remove it and what stands on it, and pull again"));
    }
    for (const snapshotter::Link& link : lazy) {
      RETURN_IF_ERROR(Needs(*store, link.name, link.layer->meta_path, "pull its image again"));
      const std::string layer = link.layer->meta_path.substr(0, link.layer->meta_path.rfind('/'));
      RETURN_IF_ERROR(Needs(*store, link.name, layer + "/index", "pull its image again"));
    }
    return options_.alone ? CheckDirectories(with_directory) : absl::OkStatus();
  }

  absl::Status CheckCrashes() {
    const std::string path = root_ + "/crashes";
    const auto crashes = base::CrashRecord::Read(path);
    if (absl::IsNotFound(crashes.status())) return absl::OkStatus();
    RETURN_IF_ERROR(crashes.status());
    for (const auto& [subject, times] : *crashes) {
      Found(absl::StrCat(path, ": the daemon has crashed ", times, times == 1 ? " time" : " times", " over ",
                         subject, options_.repair ? "; it will be tried again" : ""),
            options_.repair);
    }
    return options_.repair ? base::RemoveTree(path) : absl::OkStatus();
  }

  absl::Status CheckContent() {
    const std::string root = root_ + "/content";
    RETURN_IF_ERROR(CheckDatabase(root + "/lazy.db", "move it away, and pull the images again").status());
    ASSIGN_OR_RETURN(const bool sound,
                     CheckDatabase(root + "/content.db", "move content/ away, and pull the images again"));
    if (!sound) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::unique_ptr<base::Sqlite> database, contentservice::OpenDatabase(root));
    ASSIGN_OR_RETURN(const auto records, contentservice::LoadBlobs(*database));
    totals_->blobs += records.size();
    std::vector<base::Digest> wrong;
    for (const contentservice::BlobRecord& record : records) {
      const absl::StatusOr<bool> right =
          contentstore::HasDigest(BlobPath(record.info.digest), record.info.digest);
      if (!right.ok() || !*right) wrong.push_back(record.info.digest);
    }
    if (wrong.empty()) return absl::OkStatus();
    // What containerd has deleted meanwhile is no finding.
    ASSIGN_OR_RETURN(const auto now, contentservice::LoadBlobs(*database));
    for (const base::Digest& digest : wrong) {
      const bool there = std::any_of(now.begin(), now.end(),
                                     [&](const auto& record) { return record.info.digest == digest; });
      if (!there) continue;
      Found(absl::StrCat("content ", digest.ToString(), ": ", BlobPath(digest),
                         IsThere(BlobPath(digest)) ? " does not have its digest" : " is missing",
                         "; pull its image again"),
            options_.repair);
      if (!options_.repair) continue;
      RETURN_IF_ERROR(contentservice::DeleteBlobs(*database, {digest}));
      RETURN_IF_ERROR(base::RemoveTree(BlobPath(digest)));
    }
    return absl::OkStatus();
  }

 private:
  std::string BlobPath(const base::Digest& digest) const {
    const bool is_256 = digest.algorithm() == base::DigestAlgorithm::kSha256;
    return absl::StrCat(root_, "/content/blobs/", is_256 ? "sha256/" : "sha512/", digest.hex());
  }

  void Found(absl::string_view what, bool repaired) { found_({base::Printable(what), repaired}); }

  // `path` is there, or the snapshot is not any more.
  absl::Status Needs(MetaStore& store, const std::string& snapshot, const std::string& path,
                     absl::string_view what_to_do) {
    if (IsThere(path)) return absl::OkStatus();
    bool exists = false;
    RETURN_IF_ERROR(store.Read([&](MetaStore::Transaction& transaction) -> absl::Status {
      ASSIGN_OR_RETURN(exists, transaction.Exists(snapshot));
      return absl::OkStatus();
    }));
    if (exists) Found(absl::StrCat("snapshot ", snapshot, ": ", path, " is missing; ", what_to_do), false);
    return absl::OkStatus();
  }

  absl::Status CheckDirectories(const std::set<int64_t>& ids) {
    const absl::StatusOr<std::vector<std::string>> names = base::ListDirectory(root_ + "/s");
    if (absl::IsNotFound(names.status())) return absl::OkStatus();
    RETURN_IF_ERROR(names.status());
    for (const std::string& name : *names) {
      int64_t id = 0;
      if (!absl::SimpleAtoi(name, &id) || ids.contains(id)) continue;  // others are made and removed by name
      const std::string path = absl::StrCat(root_, "/s/", name);
      Found(path + " belongs to no snapshot", options_.repair);
      if (options_.repair) RETURN_IF_ERROR(base::RemoveTree(path));
    }
    return absl::OkStatus();
  }

  const std::string root_;
  const contentstore::CheckOptions& options_;
  const contentstore::OnFinding found_;
  FsckTotals* const totals_;
};

}  // namespace

absl::Status Fsck(const std::string& root, const contentstore::CheckOptions& options,
                  contentstore::OnFinding found, FsckTotals* totals) {
  // Layers first: a snapshot may miss what is taken away there.
  RETURN_IF_ERROR(contentstore::CheckLayers(root + "/layers", options, found, &totals->layers));
  RootCheck check(root, options, found, totals);
  RETURN_IF_ERROR(check.CheckCrashes());
  RETURN_IF_ERROR(check.CheckSnapshots());
  return check.CheckContent();
}

}  // namespace lazyblob::daemon

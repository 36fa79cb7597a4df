#pragma once

// What is known of snapshots, in one SQLite file (docs/SNAPSHOTTER.md has its tables). A transaction that was
// committed survives the loss of power; one that was not leaves nothing.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sqlite.h"
#include "fuse/mounter.h"
#include "snapshotter/lazy_layers.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::snapshotter {

// One snapshot as it is stored. `info.labels` never holds containerd.io/snapshot/remote: being lazy is
// `layer`.
struct Record {
  int64_t id = 0;  // never given twice; names the directory
  Info info;
  int64_t parent_id = 0;                   // 0: none
  std::optional<LayerMount> layer;         // of a lazy snapshot, which has no directory
  std::optional<fuse::IdMapping> mapping;  // of an active snapshot or a view
  Usage usage;                             // of a committed snapshot that is not lazy
};

// A snapshot in a chain of parents.
struct Link {
  int64_t id = 0;
  std::string name;
  std::optional<LayerMount> layer;
};

class MetaStore {
 public:
  static constexpr int kVersion = 1;

  // Opens or creates. FailedPrecondition: made by a newer version, or not by us. DataLoss: damaged.
  static absl::StatusOr<std::unique_ptr<MetaStore>> Open(const std::string& path);
  MetaStore(const MetaStore&) = delete;
  MetaStore& operator=(const MetaStore&) = delete;

  // Lives inside Read and Write only. Every method may fail with DataLoss, ResourceExhausted (disk full) or
  // Internal, besides what it says.
  class Transaction {
   public:
    // NotFound names the snapshot.
    absl::StatusOr<Record> Get(const std::string& name);
    absl::StatusOr<bool> Exists(const std::string& name);
    // The snapshot `id`, its parent, that one's parent, …; empty when there is none of that id.
    absl::StatusOr<std::vector<Link>> Chain(int64_t id);
    // Names of the snapshots whose parent is `id`, at most `limit`.
    absl::StatusOr<std::vector<std::string>> Children(int64_t id, int limit);
    // Committed lazy snapshots with this parent whose label containerd.io/snapshot.ref is `ref`.
    absl::StatusOr<std::vector<Record>> LazyByRef(const std::string& ref, int64_t parent_id);
    // All of them, by name; `info` whole, `layer` set for lazy ones, nothing else.
    absl::StatusOr<std::vector<Record>> List();
    absl::StatusOr<std::vector<Link>> LazyLinks();
    absl::StatusOr<std::vector<Record>> MappedSnapshots();  // those with `mapping`
    struct Row {
      int64_t id = 0;
      std::string name;
      bool lazy = false;
    };
    absl::StatusOr<std::vector<Row>> Rows();

    // Takes the whole record but for `id`, which it sets, and `info.parent` (parent_id counts).
    // AlreadyExists: the name.
    absl::Status Insert(Record& record);
    // An active snapshot becomes a committed one: name, parent, labels, times, usage; the mapping is dropped.
    absl::Status SetCommitted(const Record& record);
    absl::Status SetLabels(int64_t id, const Labels& labels, absl::Time updated);
    // NotFound: no such lazy snapshot.
    absl::Status SetLayer(int64_t id, const LayerMount& layer);
    absl::Status Delete(int64_t id);

   private:
    friend class MetaStore;
    explicit Transaction(base::Sqlite::Transaction& db) : db_(db) {}
    base::Sqlite::Transaction& db_;
  };

  // As those of base::Sqlite.
  absl::Status Write(
      absl::FunctionRef<absl::Status(Transaction&)> body, absl::FunctionRef<void()> undone = [] {});
  absl::Status Read(absl::FunctionRef<absl::Status(Transaction&)> body);
  absl::StatusOr<RecordedFiles> Files();

 private:
  explicit MetaStore(std::unique_ptr<base::Sqlite> database);

  const std::unique_ptr<base::Sqlite> database_;
};

}  // namespace lazyblob::snapshotter

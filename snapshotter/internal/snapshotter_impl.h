#pragma once

// The Snapshotter: metadata, directories and lazy layers together.
//
// Locks: `revive_mutex_`, then the store's, then `mutex_`. A layer is restored under revive_mutex_; nothing
// blocks on the network, scans or deletes a tree under any of them.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "snapshotter/directories.h"
#include "snapshotter/metastore.h"
#include "snapshotter/mount_specs.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::snapshotter {

// InvalidArgument: not 1 … 4096 bytes of UTF-8 without NUL. `what` is for the message.
absl::Status CheckName(absl::string_view what, const std::string& name);
// For messages: in quotes, printable.
std::string Quoted(absl::string_view name);
// As clients see it: lazy snapshots have the label containerd.io/snapshot/remote, others never do.
Info ShownInfo(const Record& record);
// 0 for no parent. NotFound; InvalidArgument: not committed.
absl::StatusOr<int64_t> ParentId(MetaStore::Transaction& transaction, const std::string& parent);

class SnapshotterImpl final : public Snapshotter {
 public:
  SnapshotterImpl(SnapshotterOptions options, std::unique_ptr<MetaStore> store,
                  std::unique_ptr<Directories> directories);
  // Reconciles directories, restores lazy layers and id-mapped views.
  absl::Status Start();

  absl::StatusOr<std::vector<MountSpec>> Prepare(const std::string& key, const std::string& parent,
                                                 const Labels& labels,
                                                 std::shared_ptr<base::CancelToken> cancel) override;
  absl::StatusOr<std::vector<MountSpec>> View(const std::string& key, const std::string& parent,
                                              const Labels& labels) override;
  absl::StatusOr<std::vector<MountSpec>> Mounts(const std::string& key) override;
  absl::Status Commit(const std::string& name, const std::string& key, const Labels& labels,
                      const std::string& parent) override;
  absl::Status Remove(const std::string& key) override;
  absl::StatusOr<Info> Stat(const std::string& key) override;
  absl::StatusOr<Info> Update(const Info& info, const std::vector<std::string>& paths) override;
  absl::Status List(const std::vector<std::string>& filters,
                    absl::FunctionRef<absl::Status(const Info&)> visit) override;
  absl::StatusOr<Usage> GetUsage(const std::string& key) override;
  absl::Status Cleanup() override;
  std::vector<NotLazyLayer> NotLazyLayers() const override;
  std::vector<LayerMount> LazyMounts() const override;
  absl::StatusOr<RecordedFiles> Recorded() const override;

 private:
  // What a new snapshot is to be.
  struct Request {
    Kind kind = Kind::kActive;
    std::string key;
    std::string parent;
    Labels labels;  // without containerd.io/snapshot/remote
    std::optional<fuse::IdMapping> mapping;
    std::shared_ptr<base::CancelToken> cancel;
  };
  // What it will stand on, as read at the beginning of a call.
  struct Base {
    int64_t parent_id = 0;
    std::vector<Link> chain;    // the parent first
    std::vector<Lower> lowers;  // what of it is visible, all usable
  };
  struct MappedLower {
    std::string source;
    std::string path;
  };

  // prepare.cc
  absl::StatusOr<std::vector<MountSpec>> NewSnapshot(Request request);
  absl::StatusOr<Base> ReadBase(const Request& request);
  absl::StatusOr<std::vector<MountSpec>> Create(const Request& request, const Base& base);
  absl::StatusOr<Owner> OwnerOfNew(const Request& request, const Base& base);
  absl::Status InsertLocal(const Request& request, const Base& base, const std::string& directory,
                           const std::vector<MappedLower>& mapped, int64_t* id);
  // lazy.cc. nullopt: the layer is not lazy, which has been noted; else what Prepare answers.
  std::optional<absl::Status> TryLazy(const Request& request, const Base& base);
  // The layer that the labels name, or the only one that its chain is known to be of. nullopt: none, which
  // has been noted.
  absl::StatusOr<std::optional<LayerClaim>> FindClaim(const Request& request, const std::string& chain);
  // `dead`: the lazy snapshot of this layer whose mount is replaced; 0: there is none.
  std::optional<absl::Status> CommitLazily(const Request& request, const Base& base, const LayerClaim& claim,
                                           const LayerMount& mounted, int64_t dead);
  // What Prepare answers when the layer is there.
  absl::Status TargetExists(const Request& request, const LayerClaim& claim);
  void NoteNotLazy(const std::string& layer, const std::string& reference, absl::string_view reason,
                   absl::string_view detail) ABSL_LOCKS_EXCLUDED(mutex_);

  // chain.cc
  absl::StatusOr<std::vector<Lower>> UsableLowers(std::vector<Link>& chain);
  absl::Status EnsureAlive(Link& link) ABSL_LOCKS_EXCLUDED(revive_mutex_, mutex_);
  absl::StatusOr<LayerMount> Revive(int64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(revive_mutex_)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::vector<MappedLower>> MapLowers(const fuse::IdMapping& mapping,
                                                     const std::vector<Lower>& lowers);
  void UnmapLowers(const fuse::IdMapping& mapping, const std::vector<MappedLower>& mapped);
  // The views of a snapshot that exists; made again where they are not, or no longer, of these lowers.
  absl::StatusOr<std::vector<MappedLower>> MappedLowersOf(const Record& record,
                                                          const std::vector<Lower>& lowers)
      ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<MountSpec> MountsOf(Kind kind, int64_t id, const std::vector<Lower>& lowers,
                                  const std::vector<MappedLower>& mapped) const;
  void ReleaseLayers(const Record& record) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status RestoreLayers() ABSL_LOCKS_EXCLUDED(mutex_);
  void RestoreViews();
  bool Held(int64_t id) const ABSL_LOCKS_EXCLUDED(mutex_);

  absl::StatusOr<Record> PlanCommit(MetaStore::Transaction& transaction, const std::string& name,
                                    const std::string& key, const std::string& parent);
  absl::Status TryCommit(const std::string& name, const std::string& key, const Labels& labels,
                         const std::string& parent);
  absl::Status TakeOutGarbage();
  absl::Time Now() const;
  void Log(absl::string_view line) const;

  const SnapshotterOptions options_;
  const bool index_off_;
  const std::unique_ptr<MetaStore> store_;
  const std::unique_ptr<Directories> directories_;
  absl::Mutex revive_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);  // one layer is brought back at a time
  mutable absl::Mutex mutex_;
  // Lazy snapshots that count as users of their layer's mount.
  std::set<int64_t> held_ ABSL_GUARDED_BY(mutex_);
  std::map<int64_t, std::vector<MappedLower>> mapped_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, NotLazyLayer> not_lazy_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::snapshotter

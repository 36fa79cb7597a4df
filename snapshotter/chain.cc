// What snapshots stand on: layers that must be alive, views with ids mapped, and the mounts made of them.

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "snapshotter/internal/snapshotter_impl.h"

namespace lazyblob::snapshotter {
namespace {

constexpr int kRestoreThreads = 8;

bool SameMount(const LayerMount& a, const LayerMount& b) {
  return a.layer == b.layer && a.meta_path == b.meta_path && a.target == b.target && a.mode == b.mode &&
         a.direct == b.direct && a.opaque_root == b.opaque_root;
}

// A chain id stands for what its layers unpack to. Where that is known of all of them (topmost first), it
// must be the one of the name: containerd gives a snapshot to every image of that chain.
absl::Status CheckChain(const std::vector<Link>& chain, LazyLayers& layers) {
  std::string id;
  for (auto link = chain.rbegin(); link != chain.rend() && link->layer.has_value(); ++link) {
    const base::Digest diff_id = layers.VerifiedDiffId(link->layer->layer);
    if (diff_id.empty()) return absl::OkStatus();
    id = id.empty() ? diff_id.ToString()
                    : base::Digest::Of(absl::StrCat(id, " ", diff_id.ToString())).ToString();
    const auto named = base::Digest::Parse(absl::string_view(link->name).substr(link->name.rfind('/') + 1));
    if (!named.ok() || named->ToString() == id) continue;
    return absl::UnavailableError(absl::StrCat(
        "snapshot ", Quoted(link->name), ": its layer ", link->layer->layer.ToString(), " makes chain ", id,
        ", its image lied; remove the images of this chain and pull again"));
  }
  return absl::OkStatus();
}

}  // namespace

bool SnapshotterImpl::Held(int64_t id) const {
  absl::MutexLock lock(&mutex_);
  return held_.contains(id);
}

absl::StatusOr<std::vector<Lower>> SnapshotterImpl::UsableLowers(std::vector<Link>& chain) {
  std::vector<Lower> lowers;
  RETURN_IF_ERROR(CheckChain(chain, *options_.layers));
  for (Link& link : chain) {
    if (link.layer.has_value()) {
      RETURN_IF_ERROR(EnsureAlive(link));
      lowers.push_back({link.layer->target, link.layer->opaque_root});
      if (link.layer->opaque_root) break;
    } else {
      if (!directories_->Exists(link.id)) {
        return absl::UnavailableError(absl::StrCat("snapshot ", Quoted(link.name), ": its directory ",
                                                   directories_->Fs(link.id),
                                                   " is missing; remove the snapshot and pull it again"));
      }
      lowers.push_back({directories_->Fs(link.id), false});
    }
  }
  return VisibleLowers(std::move(lowers));
}

absl::Status SnapshotterImpl::EnsureAlive(Link& link) {
  if (Held(link.id) && options_.layers->Check(*link.layer).ok()) return absl::OkStatus();
  absl::MutexLock lock(&revive_mutex_);
  absl::StatusOr<LayerMount> revived = Revive(link.id);
  if (!revived.ok()) {
    return absl::UnavailableError(absl::StrCat("snapshot ", Quoted(link.name), ": its layer ",
                                               link.layer->layer.ToString(),
                                               " cannot be read: ", revived.status().message()));
  }
  link.layer = *std::move(revived);
  return absl::OkStatus();
}

absl::StatusOr<LayerMount> SnapshotterImpl::Revive(int64_t id) {
  std::vector<Link> chain;
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(chain, transaction.Chain(id));
    return absl::OkStatus();
  }));
  if (chain.empty() || !chain.front().layer.has_value()) return absl::NotFoundError("it was removed");
  const LayerMount known = *chain.front().layer;
  const bool held = Held(id);
  if (held && options_.layers->Check(known).ok()) return known;  // somebody else was quicker

  ASSIGN_OR_RETURN(LayerMount restored, options_.layers->Restore(known));
  absl::Status status = options_.layers->Check(restored);
  if (status.ok()) {
    auto body = [&](MetaStore::Transaction& transaction) -> absl::Status {
      RETURN_IF_ERROR(transaction.SetLayer(id, restored));
      absl::MutexLock lock(&mutex_);
      held_.insert(id);
      return absl::OkStatus();
    };
    status = store_->Write(body, [&] {
      absl::MutexLock lock(&mutex_);
      if (!held) held_.erase(id);
    });
  }
  if (!status.ok()) {
    options_.layers->Unmount(restored);
    return status;
  }
  if (held) options_.layers->Unmount(known);
  return restored;
}

absl::StatusOr<std::vector<SnapshotterImpl::MappedLower>> SnapshotterImpl::MapLowers(
    const fuse::IdMapping& mapping, const std::vector<Lower>& lowers) {
  std::vector<MappedLower> mapped;
  for (const Lower& lower : lowers) {
    absl::StatusOr<std::string> path = options_.layers->MapIds(lower.path, mapping);
    if (!path.ok()) {
      UnmapLowers(mapping, mapped);
      return base::Annotate(path.status(), absl::StrCat("map the ids of ", lower.path));
    }
    mapped.push_back({lower.path, *std::move(path)});
  }
  return mapped;
}

void SnapshotterImpl::UnmapLowers(const fuse::IdMapping& mapping, const std::vector<MappedLower>& mapped) {
  for (const MappedLower& lower : mapped) options_.layers->UnmapIds(lower.source, mapping);
}

absl::StatusOr<std::vector<SnapshotterImpl::MappedLower>> SnapshotterImpl::MappedLowersOf(
    const Record& record, const std::vector<Lower>& lowers) {
  auto fits = [&](const std::vector<MappedLower>& mapped) {
    if (mapped.size() != lowers.size()) return false;
    for (size_t i = 0; i < lowers.size(); ++i) {
      if (mapped[i].source != lowers[i].path) return false;
    }
    return true;
  };
  {
    absl::MutexLock lock(&mutex_);
    auto found = mapped_.find(record.id);
    if (found != mapped_.end() && fits(found->second)) return found->second;
  }
  ASSIGN_OR_RETURN(std::vector<MappedLower> mapped, MapLowers(*record.mapping, lowers));
  std::vector<MappedLower> superseded;
  // In a transaction, so that a Remove either sees the views or has made us see that the snapshot is gone.
  absl::Status status = store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(std::vector<Link> chain, transaction.Chain(record.id));
    if (chain.empty() || chain.front().name != record.info.name) {
      superseded = mapped;
      return absl::NotFoundError(absl::StrCat("snapshot ", Quoted(record.info.name), ": does not exist"));
    }
    absl::MutexLock lock(&mutex_);
    std::vector<MappedLower>& current = mapped_[record.id];
    superseded = std::exchange(current, mapped);
    return absl::OkStatus();
  });
  UnmapLowers(*record.mapping, superseded);
  RETURN_IF_ERROR(status);
  return mapped;
}

std::vector<MountSpec> SnapshotterImpl::MountsOf(Kind kind, int64_t id, const std::vector<Lower>& lowers,
                                                 const std::vector<MappedLower>& mapped) const {
  MountParts parts;
  parts.writable = kind == Kind::kActive;
  parts.fs = directories_->Fs(id);
  parts.work = directories_->Work(id);
  parts.index_off = index_off_;
  for (size_t i = 0; i < lowers.size(); ++i) {
    parts.lowers.push_back(mapped.empty() ? lowers[i].path : mapped[i].path);
  }
  return BuildMounts(parts);
}

void SnapshotterImpl::ReleaseLayers(const Record& record) {
  bool held = false;
  std::vector<MappedLower> mapped;
  {
    absl::MutexLock lock(&mutex_);
    held = held_.erase(record.id) > 0;
    auto found = mapped_.find(record.id);
    if (found != mapped_.end()) {
      mapped = std::move(found->second);
      mapped_.erase(found);
    }
  }
  if (record.mapping.has_value()) UnmapLowers(*record.mapping, mapped);
  if (held && record.layer.has_value()) options_.layers->Unmount(*record.layer);
}

absl::Status SnapshotterImpl::RestoreLayers() {
  std::vector<Link> links;
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(links, transaction.LazyLinks());
    return absl::OkStatus();
  }));
  std::vector<std::optional<LayerMount>> moved(links.size());
  {
    base::ThreadPool pool("lb-restore", kRestoreThreads);
    for (size_t i = 0; i < links.size(); ++i) {
      pool.Schedule([this, &link = links[i], &moved = moved[i]] {
        absl::StatusOr<LayerMount> restored = options_.layers->Restore(*link.layer);
        if (!restored.ok()) {
          Log(absl::StrCat("snapshot ", Quoted(link.name), ": layer ", link.layer->layer.ToString(),
                           " is not mounted: ", restored.status().message()));
          return;
        }
        if (!SameMount(*restored, *link.layer)) moved = *std::move(restored);
        absl::MutexLock lock(&mutex_);
        held_.insert(link.id);
      });
    }
  }
  return store_->Write([&](MetaStore::Transaction& transaction) -> absl::Status {
    for (size_t i = 0; i < links.size(); ++i) {
      if (moved[i].has_value()) RETURN_IF_ERROR(transaction.SetLayer(links[i].id, *moved[i]));
    }
    return absl::OkStatus();
  });
}

void SnapshotterImpl::RestoreViews() {
  std::vector<Record> records;
  std::vector<std::vector<Link>> chains;
  absl::Status status = store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(records, transaction.MappedSnapshots());
    for (const Record& record : records) {
      ASSIGN_OR_RETURN(std::vector<Link> chain, transaction.Chain(record.parent_id));
      chains.push_back(std::move(chain));
    }
    return absl::OkStatus();
  });
  for (size_t i = 0; status.ok() && i < records.size(); ++i) {
    absl::StatusOr<std::vector<Lower>> lowers = UsableLowers(chains[i]);
    absl::Status one = lowers.ok() ? MappedLowersOf(records[i], *lowers).status() : lowers.status();
    if (one.ok()) continue;
    Log(absl::StrCat("snapshot ", Quoted(records[i].info.name),
                     ": its id-mapped layers are not there: ", one.message()));
  }
  if (!status.ok()) Log(absl::StrCat("id-mapped snapshots: ", status.message()));
}

}  // namespace lazyblob::snapshotter

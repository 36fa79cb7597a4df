// Prepare and View of snapshots on the local disk.

#include <unistd.h>

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/status.h"
#include "snapshotter/idmap.h"
#include "snapshotter/internal/snapshotter_impl.h"
#include "snapshotter/labels.h"

namespace lazyblob::snapshotter {
namespace {

// What id 0 of the container is outside; the mapping has one.
uint32_t RootOf(const std::vector<fuse::IdRange>& ranges) {
  for (const fuse::IdRange& range : ranges) {
    if (range.container == 0) return range.host;
  }
  return 0;
}

}  // namespace

absl::StatusOr<std::vector<MountSpec>> SnapshotterImpl::Prepare(const std::string& key,
                                                                const std::string& parent,
                                                                const Labels& labels,
                                                                std::shared_ptr<base::CancelToken> cancel) {
  return NewSnapshot({Kind::kActive, key, parent, labels, std::nullopt, std::move(cancel)});
}

absl::StatusOr<std::vector<MountSpec>> SnapshotterImpl::View(const std::string& key,
                                                             const std::string& parent,
                                                             const Labels& labels) {
  return NewSnapshot({Kind::kView, key, parent, labels, std::nullopt, nullptr});
}

absl::StatusOr<std::vector<MountSpec>> SnapshotterImpl::NewSnapshot(Request request) {
  RETURN_IF_ERROR(CheckName("key", request.key));
  if (!request.parent.empty()) RETURN_IF_ERROR(CheckName("parent", request.parent));
  RETURN_IF_ERROR(CheckLabels(request.labels));
  ASSIGN_OR_RETURN(request.mapping, ParseIdMapping(request.labels));
  request.labels.erase(kLabelRemote);

  constexpr int kTries = 10;
  for (int i = 0;; ++i) {
    ASSIGN_OR_RETURN(Base base, ReadBase(request));
    std::optional<absl::Status> answer;
    if (request.kind == Kind::kActive) answer = TryLazy(request, base);
    absl::StatusOr<std::vector<MountSpec>> mounts =
        answer.has_value() ? absl::StatusOr<std::vector<MountSpec>>(*std::move(answer))
                           : Create(request, base);
    // The parent was removed and made anew meanwhile.
    if (!absl::IsAborted(mounts.status()) || i == kTries) return mounts;
  }
}

absl::StatusOr<SnapshotterImpl::Base> SnapshotterImpl::ReadBase(const Request& request) {
  Base base;
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(bool exists, transaction.Exists(request.key));
    if (exists) {
      return absl::AlreadyExistsError(absl::StrCat("snapshot ", Quoted(request.key), ": already exists"));
    }
    ASSIGN_OR_RETURN(base.parent_id, ParentId(transaction, request.parent));
    if (base.parent_id == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(base.chain, transaction.Chain(base.parent_id));
    return absl::OkStatus();
  }));
  ASSIGN_OR_RETURN(base.lowers, UsableLowers(base.chain));
  return base;
}

absl::StatusOr<Owner> SnapshotterImpl::OwnerOfNew(const Request& request, const Base& base) {
  if (request.mapping.has_value()) {
    return Owner{RootOf(request.mapping->uids), RootOf(request.mapping->gids)};
  }
  if (base.lowers.empty()) return Owner{geteuid(), getegid()};
  absl::StatusOr<Owner> owner = OwnerOf(base.lowers.front().path);
  if (owner.ok()) return owner;
  return absl::UnavailableError(
      absl::StrCat("snapshot ", Quoted(request.parent), " cannot be read: ", owner.status().message()));
}

absl::StatusOr<std::vector<MountSpec>> SnapshotterImpl::Create(const Request& request, const Base& base) {
  RETURN_IF_ERROR(base::FaultPoint("snapshotter/prepare/begin"));
  std::vector<MappedLower> mapped;
  if (request.mapping.has_value()) {
    ASSIGN_OR_RETURN(mapped, MapLowers(*request.mapping, base.lowers));
  }
  absl::Cleanup unmap = [&] {
    if (request.mapping.has_value()) UnmapLowers(*request.mapping, mapped);
  };
  ASSIGN_OR_RETURN(Owner owner, OwnerOfNew(request, base));
  ASSIGN_OR_RETURN(std::string directory, directories_->Make(request.kind == Kind::kActive, owner));
  absl::Cleanup finish = [&] { directories_->Finish(directory); };
  RETURN_IF_ERROR(base::FaultPoint("snapshotter/prepare/directory-made"));
  int64_t id = 0;
  RETURN_IF_ERROR(InsertLocal(request, base, directory, mapped, &id));
  std::move(unmap).Cancel();
  base::FaultPoint("snapshotter/prepare/done").IgnoreError();
  return MountsOf(request.kind, id, base.lowers, mapped);
}

absl::Status SnapshotterImpl::InsertLocal(const Request& request, const Base& base,
                                          const std::string& directory,
                                          const std::vector<MappedLower>& mapped, int64_t* id) {
  Record record;
  bool adopted = false;
  auto body = [&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(bool exists, transaction.Exists(request.key));
    if (exists) {
      return absl::AlreadyExistsError(absl::StrCat("snapshot ", Quoted(request.key), ": already exists"));
    }
    ASSIGN_OR_RETURN(record.parent_id, ParentId(transaction, request.parent));
    if (record.parent_id != base.parent_id) return absl::AbortedError("the parent was made anew meanwhile");
    record.info.name = request.key;
    record.info.kind = request.kind;
    record.info.labels = request.labels;
    record.info.created = record.info.updated = Now();
    record.mapping = request.mapping;
    RETURN_IF_ERROR(transaction.Insert(record));
    RETURN_IF_ERROR(base::FaultPoint("snapshotter/prepare/row-inserted"));
    adopted = true;
    RETURN_IF_ERROR(directories_->Adopt(directory, record.id));
    RETURN_IF_ERROR(base::FaultPoint("snapshotter/prepare/directory-renamed"));
    if (mapped.empty()) return absl::OkStatus();
    absl::MutexLock lock(&mutex_);
    mapped_[record.id] = mapped;
    return absl::OkStatus();
  };
  auto undone = [&] {
    if (!adopted) return;
    directories_->Abandon(directory, record.id);
    absl::MutexLock lock(&mutex_);
    mapped_.erase(record.id);
  };
  RETURN_IF_ERROR(store_->Write(body, undone));
  *id = record.id;
  return absl::OkStatus();
}

}  // namespace lazyblob::snapshotter

#include "snapshotter/snapshotter.h"

#include <cstdio>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "containerd/filter.h"
#include "snapshotter/internal/snapshotter_impl.h"
#include "snapshotter/labels.h"
#include "snapshotter/usage.h"

namespace lazyblob::snapshotter {
namespace {

constexpr size_t kMaxNameBytes = 4096;
constexpr char kRemoteValue[] = "remote snapshot";

absl::string_view KindName(Kind kind) {
  switch (kind) {
    case Kind::kView:
      return "view";
    case Kind::kActive:
      return "active";
    case Kind::kCommitted:
      return "committed";
  }
  return "";
}

// What List filters by, as containerd's adaptor of snapshots has it.
std::optional<absl::string_view> FieldOf(const Info& info, absl::string_view name, const std::string& rest) {
  if (name == "name") return info.name;
  if (name == "parent") return info.parent;
  if (name == "kind") return KindName(info.kind);
  if (name == "labels") return containerd::LabelOf(info.labels, rest);
  return std::nullopt;
}

// The labels after an Update of `current` by `paths`.
absl::StatusOr<Labels> UpdatedLabels(const Labels& current, const Labels& given,
                                     const std::vector<std::string>& paths) {
  auto replacement = [&] {
    Labels labels = given;
    std::erase_if(labels, [](const auto& label) { return label.second.empty(); });
    return labels;
  };
  Labels labels = paths.empty() ? replacement() : current;
  for (const std::string& path : paths) {
    absl::string_view key = path;
    if (path == "labels") {
      labels = replacement();
    } else if (absl::ConsumePrefix(&key, "labels.") && !key.empty()) {
      auto found = given.find(std::string(key));
      if (found == given.end() || found->second.empty()) {
        labels.erase(std::string(key));
      } else {
        labels[found->first] = found->second;
      }
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot update ", Quoted(path), ": only \"labels\" and \"labels.<key>\" can change"));
    }
  }
  labels.erase(kLabelRemote);
  return labels;
}

}  // namespace

std::string Quoted(absl::string_view name) { return absl::StrCat("\"", base::Printable(name), "\""); }

absl::Status CheckName(absl::string_view what, const std::string& name) {
  if (name.empty()) return absl::InvalidArgumentError(absl::StrCat("the ", what, " is empty"));
  if (name.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ", what, " has ", name.size(), " bytes; at most ", kMaxNameBytes, " are taken"));
  }
  if (name.find('\0') != std::string::npos || !base::IsUtf8(name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ", what, " ", Quoted(name), " holds NUL or is not UTF-8"));
  }
  return absl::OkStatus();
}

Info ShownInfo(const Record& record) {
  Info info = record.info;
  if (record.layer.has_value()) info.labels[kLabelRemote] = kRemoteValue;
  return info;
}

absl::StatusOr<int64_t> ParentId(MetaStore::Transaction& transaction, const std::string& parent) {
  if (parent.empty()) return 0;
  absl::StatusOr<Record> record = transaction.Get(parent);
  if (!record.ok()) return base::Annotate(record.status(), "parent");
  if (record->info.kind == Kind::kCommitted) return record->id;
  return absl::InvalidArgumentError(absl::StrCat("parent ", Quoted(parent), ": is not committed"));
}

absl::StatusOr<std::unique_ptr<Snapshotter>> Snapshotter::Open(SnapshotterOptions options) {
  if (options.layers == nullptr) return absl::InvalidArgumentError("snapshotter: no lazy layers");
  RETURN_IF_ERROR(CheckRoot(options.root));
  RETURN_IF_ERROR(base::MakeDirectories(options.root));
  ASSIGN_OR_RETURN(std::unique_ptr<MetaStore> store, MetaStore::Open(options.root + "/snapshots.db"));
  ASSIGN_OR_RETURN(std::unique_ptr<Directories> directories, Directories::Open(options.root));
  auto snapshotter =
      std::make_unique<SnapshotterImpl>(std::move(options), std::move(store), std::move(directories));
  RETURN_IF_ERROR(snapshotter->Start());
  return snapshotter;
}

SnapshotterImpl::SnapshotterImpl(SnapshotterOptions options, std::unique_ptr<MetaStore> store,
                                 std::unique_ptr<Directories> directories)
    : options_(std::move(options)),
      index_off_(OverlayHasIndex()),
      store_(std::move(store)),
      directories_(std::move(directories)) {}

absl::Status SnapshotterImpl::Start() {
  std::vector<MetaStore::Transaction::Row> rows;
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(rows, transaction.Rows());
    return absl::OkStatus();
  }));
  for (const MetaStore::Transaction::Row& row : rows) {
    if (row.lazy || directories_->Exists(row.id)) continue;
    Log(absl::StrCat("snapshot ", Quoted(row.name), ": its directory ", directories_->Fs(row.id),
                     " is missing; it can be removed, not used"));
  }
  if (absl::Status status = TakeOutGarbage(); !status.ok()) {
    Log(absl::StrCat("directories that belong to no snapshot stay: ", status.message()));
  }
  RETURN_IF_ERROR(RestoreLayers());
  RestoreViews();
  return absl::OkStatus();
}

absl::Time SnapshotterImpl::Now() const {
  return absl::FromUnixNanos(absl::ToUnixNanos(options_.clock->WallTime()));
}

void SnapshotterImpl::Log(absl::string_view line) const {
  if (options_.log != nullptr) {
    options_.log(line);
  } else {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  }
}

absl::StatusOr<std::vector<MountSpec>> SnapshotterImpl::Mounts(const std::string& key) {
  RETURN_IF_ERROR(CheckName("key", key));
  Record record;
  std::vector<Link> chain;
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(record, transaction.Get(key));
    if (record.parent_id == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(chain, transaction.Chain(record.parent_id));
    return absl::OkStatus();
  }));
  if (record.info.kind == Kind::kCommitted) {
    return absl::FailedPreconditionError(
        absl::StrCat("snapshot ", Quoted(key), ": is committed and has no mounts; prepare or view a child"));
  }
  ASSIGN_OR_RETURN(std::vector<Lower> lowers, UsableLowers(chain));
  std::vector<MappedLower> mapped;
  if (record.mapping.has_value()) {
    ASSIGN_OR_RETURN(mapped, MappedLowersOf(record, lowers));
  }
  return MountsOf(record.info.kind, record.id, lowers, mapped);
}

absl::StatusOr<Record> SnapshotterImpl::PlanCommit(MetaStore::Transaction& transaction,
                                                   const std::string& name, const std::string& key,
                                                   const std::string& parent) {
  ASSIGN_OR_RETURN(bool taken, transaction.Exists(name));
  if (taken) return absl::AlreadyExistsError(absl::StrCat("snapshot ", Quoted(name), ": already exists"));
  ASSIGN_OR_RETURN(Record record, transaction.Get(key));
  if (record.info.kind != Kind::kActive) {
    return absl::FailedPreconditionError(absl::StrCat(
        "snapshot ", Quoted(key), ": is ", record.info.kind == Kind::kView ? "a view" : "committed already",
        "; only an active snapshot can be committed"));
  }
  if (parent.empty() || parent == record.info.parent) return record;
  if (record.parent_id != 0) {
    return absl::InvalidArgumentError(absl::StrCat("snapshot ", Quoted(key), ": has the parent ",
                                                   Quoted(record.info.parent), " and cannot get ",
                                                   Quoted(parent)));
  }
  absl::StatusOr<int64_t> id = ParentId(transaction, parent);
  if (absl::IsInvalidArgument(id.status())) return absl::FailedPreconditionError(id.status().message());
  RETURN_IF_ERROR(id.status());
  record.parent_id = *id;
  return record;
}

absl::Status SnapshotterImpl::Commit(const std::string& name, const std::string& key, const Labels& labels,
                                     const std::string& parent) {
  RETURN_IF_ERROR(CheckName("name", name));
  RETURN_IF_ERROR(CheckName("key", key));
  if (!parent.empty()) RETURN_IF_ERROR(CheckName("parent", parent));
  RETURN_IF_ERROR(CheckLabels(labels));
  constexpr int kTries = 10;
  for (int i = 0;; ++i) {
    absl::Status status = TryCommit(name, key, labels, parent);
    // The key was removed and made anew while its size was measured.
    if (!absl::IsAborted(status) || i == kTries) return status;
  }
}

absl::Status SnapshotterImpl::TryCommit(const std::string& name, const std::string& key, const Labels& labels,
                                        const std::string& parent) {
  RETURN_IF_ERROR(base::FaultPoint("snapshotter/commit/begin"));
  Record record;
  auto plan = [&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(record, PlanCommit(transaction, name, key, parent));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(store_->Read(plan));
  const int64_t id = record.id;
  absl::StatusOr<Usage> usage = ScanUsage(directories_->Fs(id));
  if (absl::IsNotFound(usage.status()) && !directories_->Exists(id)) {
    // Removed meanwhile, or lost: the transaction tells.
    usage = absl::FailedPreconditionError(
        absl::StrCat("snapshot ", Quoted(key), ": its directory ", directories_->Fs(id), " is missing"));
  }
  RETURN_IF_ERROR(base::FaultPoint("snapshotter/commit/measured"));
  RETURN_IF_ERROR(store_->Write([&](MetaStore::Transaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(plan(transaction));
    if (record.id != id) return absl::AbortedError(absl::StrCat(Quoted(key), " was made anew meanwhile"));
    RETURN_IF_ERROR(usage.status());
    record.info.name = name;
    record.info.labels = labels;
    record.info.labels.erase(kLabelRemote);
    record.info.created = record.info.updated = Now();
    record.usage = *usage;
    RETURN_IF_ERROR(transaction.SetCommitted(record));
    return base::FaultPoint("snapshotter/commit/row-written");
  }));
  base::FaultPoint("snapshotter/commit/done").IgnoreError();
  ReleaseLayers(record);
  return absl::OkStatus();
}

absl::Status SnapshotterImpl::Remove(const std::string& key) {
  RETURN_IF_ERROR(CheckName("key", key));
  RETURN_IF_ERROR(base::FaultPoint("snapshotter/remove/begin"));
  Record record;
  RETURN_IF_ERROR(store_->Write([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(record, transaction.Get(key));
    ASSIGN_OR_RETURN(std::vector<std::string> children, transaction.Children(record.id, 1));
    if (!children.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "cannot remove snapshot ", Quoted(key), ": it has children, such as ", Quoted(children.front())));
    }
    RETURN_IF_ERROR(transaction.Delete(record.id));
    return base::FaultPoint("snapshotter/remove/row-deleted");
  }));
  base::FaultPoint("snapshotter/remove/committed").IgnoreError();
  ReleaseLayers(record);
  base::FaultPoint("snapshotter/remove/released").IgnoreError();
  if (absl::Status status = directories_->Remove(record.id); !status.ok()) {
    Log(absl::StrCat("snapshot ", Quoted(key), " is removed, but not all of its directory: ",
                     status.message(), "; Cleanup tries again"));
  }
  base::FaultPoint("snapshotter/remove/done").IgnoreError();
  return absl::OkStatus();
}

absl::StatusOr<Info> SnapshotterImpl::Stat(const std::string& key) {
  RETURN_IF_ERROR(CheckName("key", key));
  Record record;
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(record, transaction.Get(key));
    return absl::OkStatus();
  }));
  return ShownInfo(record);
}

absl::StatusOr<Info> SnapshotterImpl::Update(const Info& info, const std::vector<std::string>& paths) {
  RETURN_IF_ERROR(CheckName("name", info.name));
  RETURN_IF_ERROR(CheckLabels(info.labels));
  RETURN_IF_ERROR(base::FaultPoint("snapshotter/update/begin"));
  Record record;
  RETURN_IF_ERROR(store_->Write([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(record, transaction.Get(info.name));
    ASSIGN_OR_RETURN(record.info.labels, UpdatedLabels(record.info.labels, info.labels, paths));
    RETURN_IF_ERROR(CheckLabels(record.info.labels));
    record.info.updated = Now();
    RETURN_IF_ERROR(transaction.SetLabels(record.id, record.info.labels, record.info.updated));
    return base::FaultPoint("snapshotter/update/row-written");
  }));
  base::FaultPoint("snapshotter/update/done").IgnoreError();
  return ShownInfo(record);
}

absl::Status SnapshotterImpl::List(const std::vector<std::string>& filters,
                                   absl::FunctionRef<absl::Status(const Info&)> visit) {
  ASSIGN_OR_RETURN(containerd::Filter filter, containerd::ParseFilters(filters));
  std::vector<Record> records;
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(records, transaction.List());
    return absl::OkStatus();
  }));
  for (const Record& record : records) {
    const Info info = ShownInfo(record);
    auto field = [&](absl::string_view name, const std::string& rest) { return FieldOf(info, name, rest); };
    if (filter.Matches(field)) RETURN_IF_ERROR(visit(info));
  }
  return absl::OkStatus();
}

absl::StatusOr<Usage> SnapshotterImpl::GetUsage(const std::string& key) {
  RETURN_IF_ERROR(CheckName("key", key));
  Record record;
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(record, transaction.Get(key));
    return absl::OkStatus();
  }));
  if (record.layer.has_value()) return options_.layers->CacheUsage(record.layer->layer);
  if (record.info.kind == Kind::kCommitted) return record.usage;
  absl::StatusOr<Usage> usage = ScanUsage(directories_->Fs(record.id));
  if (absl::IsNotFound(usage.status())) return Usage{};  // its directory is gone
  return usage;
}

absl::Status SnapshotterImpl::TakeOutGarbage() {
  RETURN_IF_ERROR(store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(std::vector<MetaStore::Transaction::Row> rows, transaction.Rows());
    std::set<int64_t> ids;
    for (const MetaStore::Transaction::Row& row : rows) {
      if (!row.lazy) ids.insert(row.id);
    }
    return directories_->MarkGarbage(ids);
  }));
  RETURN_IF_ERROR(base::FaultPoint("snapshotter/cleanup/marked"));
  return directories_->RemoveGarbage();
}

absl::Status SnapshotterImpl::Cleanup() {
  RETURN_IF_ERROR(base::FaultPoint("snapshotter/cleanup/begin"));
  absl::Status status = TakeOutGarbage();
  base::FaultPoint("snapshotter/cleanup/removed").IgnoreError();
  status.Update(options_.layers->Trim());
  return status;
}

std::vector<NotLazyLayer> SnapshotterImpl::NotLazyLayers() const {
  absl::MutexLock lock(&mutex_);
  std::vector<NotLazyLayer> layers;
  for (const auto& [layer, noted] : not_lazy_) layers.push_back(noted);
  return layers;
}

std::vector<LayerMount> SnapshotterImpl::LazyMounts() const {
  std::vector<Link> links;
  absl::Status status = store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(links, transaction.LazyLinks());
    return absl::OkStatus();
  });
  if (!status.ok()) Log(absl::StrCat("list of lazy snapshots: ", status.message()));
  std::vector<LayerMount> mounts;
  absl::MutexLock lock(&mutex_);
  for (const Link& link : links) {
    if (held_.contains(link.id)) mounts.push_back(*link.layer);
  }
  return mounts;
}

absl::StatusOr<RecordedFiles> SnapshotterImpl::Recorded() const { return store_->Files(); }

}  // namespace lazyblob::snapshotter

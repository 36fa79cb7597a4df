#include "daemon/garbage.h"

#include <sys/stat.h>

#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "contentservice/lazy_records.h"
#include "snapshotter/metastore.h"
#include "snapshotter/usage.h"

namespace lazyblob::daemon {
namespace {

using snapshotter::MetaStore;

bool IsThere(const std::string& path) {
  struct stat st{};
  return lstat(path.c_str(), &st) == 0;
}

uint64_t BytesOf(const std::string& directory) {
  const absl::StatusOr<snapshotter::Usage> usage = snapshotter::ScanUsage(directory);
  return usage.ok() ? usage->bytes : 0;
}

// What is recorded of snapshots. A process opens a database once: SQLite's locks are those of the process.
absl::StatusOr<snapshotter::RecordedFiles> Snapshots(const GarbageParts& parts) {
  if (parts.snapshotter != nullptr) return parts.snapshotter->Recorded();
  const std::string path = parts.root + "/snapshots.db";
  if (!IsThere(path)) return snapshotter::RecordedFiles();
  ASSIGN_OR_RETURN(const std::unique_ptr<MetaStore> store, MetaStore::Open(path));
  return store->Files();
}

// The lazy blobs that namespaces of containerd hold.
absl::StatusOr<std::set<base::Digest>> HeldContent(const GarbageParts& parts) {
  std::set<base::Digest> held;
  if (parts.content != nullptr) {
    for (const contentservice::Info& blob : parts.content->Listed()) held.insert(blob.digest);
    return held;
  }
  const std::string path = parts.root + "/content/lazy.db";
  if (!IsThere(path)) return held;
  ASSIGN_OR_RETURN(const std::unique_ptr<contentservice::LazyRecords> lazy,
                   contentservice::LazyRecords::Open(path));
  ASSIGN_OR_RETURN(const std::vector<contentservice::LazyRecord> blobs, lazy->Blobs());
  for (const contentservice::LazyRecord& record : blobs) {
    if (record.held) held.insert(record.blob.digest);
  }
  return held;
}

absl::Status CollectLayers(const GarbageParts& parts, const std::set<base::Digest>& needed, bool dry_run,
                           std::vector<Garbage>* garbage) {
  struct Unused {
    base::Digest digest;
    std::string directory;
  };
  std::vector<Unused> unused;  // not the layers themselves: holding one keeps it
  for (const auto& layer : parts.store->Layers()) {
    const base::Digest& digest = layer->descriptor().digest;
    if (needed.contains(digest)) continue;
    unused.push_back({digest, layer->directory()});
  }
  absl::Status failure;
  for (const Unused& layer : unused) {
    const Garbage found{"layer " + layer.digest.ToString(), BytesOf(layer.directory)};
    const absl::Status removed = dry_run ? absl::OkStatus() : parts.store->Remove(layer.digest);
    if (removed.ok()) {
      garbage->push_back(found);
    } else if (!absl::IsFailedPrecondition(removed) && !absl::IsNotFound(removed)) {
      failure.Update(removed);
    }
  }
  return failure;
}

absl::Status CollectDirectories(const GarbageParts& parts, const std::set<int64_t>& needed, bool dry_run,
                                std::vector<Garbage>* garbage) {
  const std::string top = parts.root + "/s";
  ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(top));
  std::vector<Garbage> found;
  for (const std::string& name : names) {
    int64_t id = 0;
    if (absl::SimpleAtoi(name, &id) && needed.contains(id)) continue;
    const std::string path = absl::StrCat(top, "/", name);
    found.push_back({base::Printable(path), BytesOf(path)});
  }
  absl::Status failure;
  if (!dry_run && !found.empty()) failure = parts.snapshotter->Cleanup();
  for (Garbage& one : found) {
    // What stays belongs to a snapshot that is being made.
    if (dry_run || !IsThere(one.what)) garbage->push_back(std::move(one));
  }
  return failure;
}

}  // namespace

absl::StatusOr<std::vector<Garbage>> CollectGarbage(const GarbageParts& parts, bool dry_run) {
  std::vector<Garbage> garbage;
  ASSIGN_OR_RETURN(snapshotter::RecordedFiles recorded, Snapshots(parts));
  ASSIGN_OR_RETURN(std::set<base::Digest> needed, HeldContent(parts));
  needed.merge(recorded.layers);
  needed.merge(parts.in_use());
  absl::Status failure = CollectLayers(parts, needed, dry_run, &garbage);
  if (parts.snapshotter != nullptr) {
    failure.Update(CollectDirectories(parts, recorded.directories, dry_run, &garbage));
  }
  if (!failure.ok()) return failure;
  return garbage;
}

}  // namespace lazyblob::daemon

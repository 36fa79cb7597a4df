#pragma once

// containerd's snapshotter contract (containerd.services.snapshots.v1, core/snapshots/snapshotter.go), with
// lazy layers. A snapshot is *active* (writable, from Prepare), a *view* (read-only, from View) or
// *committed* (immutable, from Commit or lazily); its parent is always committed. Names and keys are opaque
// and share one space.
//
// A Prepare that names a layer by labels, and whose layer can be mounted lazily, commits that layer under
// the name its `containerd.io/snapshot.ref` gives and answers AlreadyExists: the client then neither fetches
// nor unpacks it. A layer that cannot be lazy is never an error: the caller gets a normal writable snapshot.
//
// Errors are absl codes that equal the gRPC codes on the wire (docs/SNAPSHOTTER.md has the table).

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "base/digest.h"
#include "snapshotter/lazy_layers.h"

namespace lazyblob::snapshotter {

using Labels = std::map<std::string, std::string>;

enum class Kind : uint8_t { kView = 1, kActive = 2, kCommitted = 3 };  // values of the wire and the database

struct Info {
  std::string name;
  std::string parent;  // empty: none
  Kind kind = Kind::kActive;
  Labels labels;
  absl::Time created;  // both to the nanosecond, equal at creation
  absl::Time updated;
};

// What a client passes to mount(2).
struct MountSpec {
  std::string type;
  std::string source;
  std::vector<std::string> options;
};

struct SnapshotterOptions {
  // `<root>/snapshots.db` and `<root>/s/<id>/{fs,work}`; short, so that many lower directories fit one mount.
  std::string root;
  LazyLayers* layers = nullptr;     // outlives the snapshotter
  LearnedChains* chains = nullptr;  // likewise; null: only labels name layers
  const base::Clock* clock = &base::SystemClock();
  std::function<void(absl::string_view)> log;  // one line each, any thread; empty: stderr
};

// A layer that had to be prepared as a normal snapshot, and why; one per layer digest, the latest.
struct NotLazyLayer {
  std::string layer;  // digest, or the chain when no digest was told
  std::string reference;
  std::string reason;
  std::string detail;  // one line
  uint64_t times = 0;
};

// What snapshots are made of.
struct RecordedFiles {
  std::set<base::Digest> layers;  // of lazy ones
  std::set<int64_t> directories;  // <root>/s/<id> of the others
};

// Thread-safe and linearizable: every change is one transaction.
class Snapshotter {
 public:
  // Opens or creates; finishes or undoes what a crash left half done; mounts every committed lazy snapshot
  // again (a layer that cannot be is logged, and Unavailable to those who need it).
  static absl::StatusOr<std::unique_ptr<Snapshotter>> Open(SnapshotterOptions options);
  virtual ~Snapshotter() = default;  // leaves everything mounted

  // AlreadyExists: the key exists, or the layer is there lazily (only with a containerd.io/snapshot.ref
  // label). NotFound: no such parent. InvalidArgument: the parent is not committed, bad labels. Unavailable:
  // a layer below cannot be read.
  virtual absl::StatusOr<std::vector<MountSpec>> Prepare(const std::string& key, const std::string& parent,
                                                         const Labels& labels,
                                                         std::shared_ptr<base::CancelToken> cancel) = 0;
  virtual absl::StatusOr<std::vector<MountSpec>> View(const std::string& key, const std::string& parent,
                                                      const Labels& labels) = 0;
  // Of an active snapshot or a view: FailedPrecondition for a committed one. Stable across restarts.
  virtual absl::StatusOr<std::vector<MountSpec>> Mounts(const std::string& key) = 0;
  // AlreadyExists: the name; NotFound: the key; FailedPrecondition: the key is not active. `parent`, if not
  // empty, becomes the parent of a snapshot that has none (InvalidArgument otherwise; FailedPrecondition: it
  // is not committed). Labels replace those of the key.
  virtual absl::Status Commit(const std::string& name, const std::string& key, const Labels& labels,
                              const std::string& parent) = 0;
  // FailedPrecondition: it has children.
  virtual absl::Status Remove(const std::string& key) = 0;
  virtual absl::StatusOr<Info> Stat(const std::string& key) = 0;
  // `paths`: "labels", "labels.<key>"; none: all that may change (the labels). An absent or empty value of
  // "labels.<key>" deletes it. InvalidArgument: any other path.
  virtual absl::StatusOr<Info> Update(const Info& info, const std::vector<std::string>& paths) = 0;
  // Every snapshot that any of `filters` matches (none, or an empty one: all), ordered by name; fields
  // are name, parent, kind (view, active, committed) and labels.<key> (containerd/filter.h). No lock is held
  // while `visit` runs; its error ends the walk. InvalidArgument: a filter that is not one.
  virtual absl::Status List(const std::vector<std::string>& filters,
                            absl::FunctionRef<absl::Status(const Info&)> visit) = 0;
  virtual absl::StatusOr<Usage> GetUsage(const std::string& key) = 0;
  // Removes directories that no snapshot owns; idempotent.
  virtual absl::Status Cleanup() = 0;

  virtual std::vector<NotLazyLayer> NotLazyLayers() const = 0;
  // Mounts of all committed lazy snapshots.
  virtual std::vector<LayerMount> LazyMounts() const = 0;
  // What the database names, whether or not it could be mounted.
  virtual absl::StatusOr<RecordedFiles> Recorded() const = 0;
};

}  // namespace lazyblob::snapshotter

#pragma once

// Names that keep layers: what a lease holds the content store cannot drop, until it is released. The lease
// of an export to "store:NAME" has an image too: an image layout from which the layers that can be had from
// their sources are missing. A lease outlives the process; files: docs/BLOBS_SERVICE.md.

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/digest.h"
#include "contentstore/content_store.h"
#include "exporter/content.h"
#include "exporter/local_destinations.h"
#include "oci/layout.h"
#include "proto/blobs.pb.h"

namespace lazyblob::exporter {

// What is known of a layer.
v1::Blob DescribeLayer(contentstore::ContentStore& store, contentstore::LazyLayer& layer);
// InvalidArgument: no layer descriptor, or a source of which there is none. Sources that labels name come
// last.
absl::StatusOr<contentstore::DescriptorHandler> HandlerOf(const v1::Blob& blob,
                                                          const contentstore::SourceFactory& sources);

struct LeasesOptions {
  std::string directory;                        // is made 0700; one process
  contentstore::ContentStore* store = nullptr;  // outlives the leases
  contentstore::SourceFactory sources;
  std::function<void(absl::string_view)> log = [](absl::string_view) {};  // one line each
};

// Thread-safe. Names: CheckLeaseName of spec.h, whose error every function gives back.
class Leases {
 public:
  using Layers = std::vector<std::shared_ptr<contentstore::LazyLayer>>;

  // Takes hold again of what leases on disk name; a layer that the store has lost becomes known again, with
  // its recorded sources. What was being written is removed.
  static absl::StatusOr<std::unique_ptr<Leases>> Open(LeasesOptions options);

  // Makes the lease, or adds to it. Durable on return.
  absl::Status Hold(const std::string& name, const Layers& layers) ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes it the lease of `content` instead of what it was before; durable on return. Layers that have
  // sources elsewhere are held, everything else is written; with `whole` everything is. As WriteToLayout.
  absl::StatusOr<v1::Ready> HoldImage(const std::string& name, const Content& content, bool whole,
                                      const LocalOptions& options) ABSL_LOCKS_EXCLUDED(mutex_);
  // Its image, the only one in the layout; whoever holds it can read it and has its layers, also when the
  // lease is released or another image takes its place. NotFound.
  absl::StatusOr<std::shared_ptr<const oci::Layout>> Image(const std::string& name)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // NotFound.
  absl::Status Release(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::Lease> List() ABSL_LOCKS_EXCLUDED(mutex_);
  // All layers that any lease holds.
  std::set<base::Digest> Held() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // The files of a lease.
  struct Tree {
    ~Tree();
    std::string discarded;  // where they were moved to, and go with this object; empty: they stay
    std::function<void(absl::string_view)> log;
  };
  struct Entry {
    v1::Lease lease;
    Layers layers;               // holding them is what keeps them
    std::shared_ptr<Tree> tree;  // shared with who reads the image
  };

  explicit Leases(LeasesOptions options) : options_(std::move(options)) {}
  absl::Status Restore(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  std::string PathOf(absl::string_view name) const;
  // A name below the directory that no lease can have.
  std::string Temporary() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<Tree> NewTree() const;
  bool StaysLazy(const ContentBlob& blob, contentstore::LazyLayer& layer) const;
  // What `name` is to be, and holds already.
  Entry NewEntry(const std::string& name, const Layers& layers) const;

  const LeasesOptions options_;
  absl::Mutex mutex_;  // held while lease files are written
  uint64_t temporaries_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, Entry> leases_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::exporter

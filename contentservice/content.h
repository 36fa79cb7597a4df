#pragma once

// containerd's content store contract (containerd.services.content.v1, core/content): blobs by digest,
// written through ingests that can be resumed. Blobs are *held*, whole files below the root, or *lazy*: known
// by descriptor, their bytes are read from a source when somebody asks (LazyBlobs).
//
// Errors are absl codes that equal the gRPC codes on the wire; codes and races are those of containerd's
// local store (plugins/content/local). docs/CONTENT_SERVICE.md has the table, the files and what a crash
// leaves.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "base/digest.h"

namespace lazyblob::contentservice {

using Labels = std::map<std::string, std::string>;

struct Info {
  base::Digest digest;
  uint64_t size = 0;  // bytes
  Labels labels;
  absl::Time created;
  absl::Time updated;
};

struct IngestStatus {
  std::string ref;
  uint64_t offset = 0;    // bytes written so far
  uint64_t total = 0;     // 0: not told
  base::Digest expected;  // empty: not told
  absl::Time started;
  absl::Time updated;
};

// Bytes of a blob, in order; its error ends the read.
using ReadSink = absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)>;

// Room for that many bytes; empty: that is more than is wanted.
using ReadRoom = absl::FunctionRef<absl::Span<uint8_t>(uint64_t)>;

// One ingest in somebody's hands; one thread at a time. Destroyed, it stays, and can be opened again.
class Writer {
 public:
  virtual ~Writer() = default;
  virtual IngestStatus status() const = 0;
  // The digest of what was written so far.
  virtual base::Digest digest() const = 0;
  virtual absl::Status Append(absl::Span<const uint8_t> bytes) = 0;
  // Only to what was written (nothing happens) or to 0, which begins anew. OutOfRange otherwise.
  virtual absl::Status Truncate(uint64_t size) = 0;
  // The ingest becomes the blob: durable on return; the writer is of no more use. `size` 0 and an empty
  // `expected` are not compared. AlreadyExists: the blob is there (the ingest is gone). FailedPrecondition:
  // size or digest differ (the ingest is kept). NotFound: aborted meanwhile.
  virtual absl::Status Commit(uint64_t size, const base::Digest& expected, const Labels& labels) = 0;
};

// Blobs that are known though their bytes are elsewhere, as a role. Everything but Read answers from memory:
// containerd calls Info, List and Delete inside its database transaction.
class LazyBlobs {
 public:
  virtual ~LazyBlobs() = default;
  // NotFound: not a lazy blob, or one whose sources turned out not to have it.
  virtual absl::StatusOr<Info> Find(const base::Digest& digest) = 0;
  // The same at once; nullopt where Find might wait, or fails.
  virtual std::optional<Info> TryFind(const base::Digest&) { return std::nullopt; }
  // Those that a namespace of containerd holds; containerd would collect all others.
  virtual std::vector<Info> Listed() = 0;
  // All that a namespace may hold: those that nobody has looked for yet, too.
  virtual std::vector<Info> MayBeHeld() { return Listed(); }
  virtual absl::Status SetLabels(const base::Digest& digest, const Labels& labels, absl::Time updated) = 0;
  // NotFound: not a lazy blob. What snapshots use of it stays.
  virtual absl::Status Forget(const base::Digest& digest) = 0;
  // Blocks until at least one byte at `offset` is there; as many as there are, up to out.size(); 0 at the
  // end. The last bytes are given out only when the digest of the whole is right.
  virtual absl::StatusOr<size_t> Read(const base::Digest& digest, uint64_t offset, absl::Span<uint8_t> out,
                                      const std::shared_ptr<base::CancelToken>& cancel) = 0;
  // As Content::TryRead.
  virtual bool TryRead(const base::Digest&, uint64_t, uint64_t, ReadRoom) { return false; }
  // A blob was committed to the store through `ref` ("<namespace>/<number>/<reference>" where containerd
  // wrote it). Quick, as it is called before the commit is answered: containerd holds its database lock.
  virtual void Committed(const base::Digest& digest, uint64_t size, const std::string& ref) = 0;
  // A held blob was deleted.
  virtual void Deleted(const base::Digest& digest) = 0;
  // A held blob turned out to be damaged or gone. Namespaces that hold it all the same let it go, unless it
  // is lazy from now on: else no client would write it again.
  virtual void Lost(const base::Digest& digest) { Deleted(digest); }
};

struct ContentOptions {
  std::string root;           // created 0700: content.db, blobs/<algorithm>/<hex>, ingest/
  LazyBlobs* lazy = nullptr;  // outlives the store; null: nothing is lazy
  const base::Clock* clock = &base::SystemClock();
  std::function<void(absl::string_view)> log;  // one line each, any thread; empty: stderr
};

// Thread-safe. Outlives its writers.
class Content {
 public:
  // Opens or creates; finishes or undoes what a crash left half done. Reads the database, no blob.
  static absl::StatusOr<std::unique_ptr<Content>> Open(ContentOptions options);
  virtual ~Content() = default;

  // From memory; lazy blobs too.
  virtual absl::StatusOr<Info> GetInfo(const base::Digest& digest) = 0;
  // The same at once; nullopt where GetInfo might wait for something to be learned, or fails.
  virtual std::optional<Info> TryInfo(const base::Digest&) { return std::nullopt; }
  // `paths`: "labels", "labels.<key>"; none: all labels. An empty value deletes a key. InvalidArgument: any
  // other path.
  virtual absl::StatusOr<Info> Update(const Info& info, const std::vector<std::string>& paths) = 0;
  // Every blob that any of `filters` matches (none: all), ordered by digest. Fields: digest, labels.<key>.
  // No lock is held while `visit` runs; its error ends the walk.
  virtual absl::Status List(const std::vector<std::string>& filters,
                            absl::FunctionRef<absl::Status(const Info&)> visit) = 0;
  // Lazy blobs that a namespace of containerd may hold, listed or not.
  virtual std::vector<Info> MayBeHeldLazily() { return {}; }
  // From memory; record and file go a moment later, so that a crash at once may bring it back. Reads under
  // way keep what they read.
  virtual absl::Status Delete(const base::Digest& digest) = 0;
  // [offset, offset+size) of the blob, size 0: to its end. OutOfRange: beyond it. DataLoss: the file is not
  // what its name says.
  virtual absl::Status Read(const base::Digest& digest, uint64_t offset, uint64_t size, ReadSink sink,
                            const std::shared_ptr<base::CancelToken>& cancel) = 0;

  // The bytes of [offset, offset+size), cut at the end of the blob (size 0: to it), where all of them are in
  // memory, and `room` has room: for threads that must not wait. False: ask Read, which can, and knows
  // errors.
  virtual bool TryRead(const base::Digest&, uint64_t, uint64_t, ReadRoom) { return false; }

  // Begins or resumes an ingest; what is there is hashed again. One that began with another total begins
  // anew; `expected` may be told late, or another. AlreadyExists: the blob `expected` is there. Unavailable:
  // somebody has the ref open. InvalidArgument: a ref that is none.
  virtual absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(const std::string& ref, uint64_t total,
                                                             const base::Digest& expected) = 0;
  virtual absl::StatusOr<IngestStatus> Status(const std::string& ref) = 0;
  // Fields of filters: ref.
  virtual absl::StatusOr<std::vector<IngestStatus>> ListStatuses(const std::vector<std::string>& filters) = 0;
  // NotFound: no such ingest. One that somebody has open is removed under its writer, whose Commit fails.
  virtual absl::Status Abort(const std::string& ref) = 0;

  // A whole held blob's file, for those who work on bytes in place; NotFound for lazy ones too. Bytes of
  // imported blobs may not be verified yet.
  virtual absl::StatusOr<std::string> HeldFile(const base::Digest& digest) = 0;

  // The files `directory`/<algorithm>/<hex> become blobs, hard links where the file system allows it and
  // copies elsewhere, durable on return; how many were not there before. Their names are believed until they
  // are read first: what then has another digest is dropped.
  virtual absl::StatusOr<size_t> Adopt(const std::string& directory,
                                       const std::vector<base::Digest>& digests) = 0;
};

}  // namespace lazyblob::contentservice

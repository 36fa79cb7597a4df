#pragma once

// Lazy blobs: layers that are known by descriptor and descriptor handlers, whose bytes are fetched, verified
// and cached chunk by chunk when somebody reads them. docs/ARCHITECTURE.md tells the life of a layer on disk.
//
// Vocabulary: a *chunk* is the unit of fetch, verification and caching; the *data area* the flat uncompressed
// address space of a layer; *blob* offsets count the bytes the registry stores (docs/GLOSSARY.md).

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "contentstore/blob_source.h"
#include "layer/index_builder.h"
#include "layer/layer_index.h"
#include "oci/descriptor.h"

namespace lazyblob::contentstore {

// Why bytes are wanted; also the order of service, first is most urgent.
enum class FetchCause : uint8_t { kDemand, kTracePrefetch, kReadAhead, kBackground, kIndex, kStream };
inline constexpr size_t kFetchCauses = 6;
absl::string_view FetchCauseName(FetchCause cause);

// Flows down every read.
struct FetchContext {
  FetchCause cause = FetchCause::kDemand;
  absl::Duration deadline = absl::InfiniteDuration();                // monotonic, absolute
  std::shared_ptr<base::CancelToken> cancel;                         // may be null
  std::shared_ptr<const registry::CredentialsProvider> credentials;  // of the requester; null: the client's
  size_t first_source = 0;  // ReadBlobAt: which of the layer's sources is asked first, counted round
  bool keep_blob = false;   // ReadBlob, ReadBlobAt: as ContentStoreOptions::keep_blobs, for this blob
};

// Fetches the TOC of an eStargz layer whose TOC lies in another image; NotFound: that has none for it. May be
// called by several threads at once; what it gives is verified by whoever calls.
using ExternalTocSource = std::function<absl::StatusOr<std::string>(const base::Digest& layer,
                                                                    const registry::CallContext& context)>;

// How the bytes of one descriptor can be had. Given per layer, never per chain.
struct DescriptorHandler {
  oci::Descriptor descriptor;
  base::Digest diff_id;                              // from the image config; empty when unknown
  std::vector<std::shared_ptr<BlobSource>> sources;  // tried in order
  // Null: there is none. Not recorded: a layer that has no index after a restart gets one by its next
  // handler.
  ExternalTocSource external_toc = nullptr;
};

// A blob for which no handler is known.
struct MissingProvider {
  base::Digest digest;
  uint64_t size = 0;
  std::string wanted_by;
};
// The typed "provider missing" error: lists every digest at once. GetMissingProviders is empty for other
// errors.
absl::Status ProviderMissingError(const std::vector<MissingProvider>& missing);
std::vector<MissingProvider> GetMissingProviders(const absl::Status& status);

// Bytes of a data area that are verified and stay readable while the object lives: a range of the cache file,
// or memory when the disk could not take them. Movable.
class PinnedRange {
 public:
  PinnedRange() = default;
  PinnedRange(int fd, uint64_t offset, uint64_t length, std::shared_ptr<const void> pin)
      : fd_(fd), offset_(offset), length_(length), pin_(std::move(pin)) {}
  explicit PinnedRange(std::shared_ptr<const std::vector<uint8_t>> memory, uint64_t offset, uint64_t length)
      : offset_(offset), length_(length), memory_(std::move(memory)) {}

  bool in_memory() const { return memory_ != nullptr; }
  // The bytes are [offset, offset+length) of fd() (the layer's cache file, same addresses as the data area) …
  int fd() const { return fd_; }
  uint64_t offset() const { return offset_; }
  uint64_t length() const { return length_; }
  // … or these.
  absl::Span<const uint8_t> memory() const { return {memory_->data() + offset_, length_}; }
  // Copies length() bytes out.
  absl::Status CopyTo(absl::Span<uint8_t> out) const;

 private:
  int fd_ = -1;
  uint64_t offset_ = 0;
  uint64_t length_ = 0;
  std::shared_ptr<const void> pin_;
  std::shared_ptr<const std::vector<uint8_t>> memory_;
};

struct LayerStats {
  std::array<uint64_t, kFetchCauses>
      fetched_bytes{};        // body bytes received, by cause; retries and TOC included
  uint64_t served_bytes = 0;  // data-area bytes given out by Acquire/TryAcquire
  uint64_t cached_bytes = 0;  // data-area bytes present
  std::string last_source;    // which source served last; information only
  std::string last_error;     // of the last failed read; empty if none

  uint64_t rotten_chunks = 0;  // cached ones that this process found wrong or unreadable
};

// LazyLayer::not_lazy_reason of a layer that ContentStoreOptions::may_parse refuses.
inline constexpr absl::string_view kReasonCrashed = "crashed";

enum class LayerState : uint8_t {
  kNeedsIndex,   // plain layer never seen: must be streamed once
  kLazy,         // indexed; chunks come when read
  kComplete,     // all bytes local, synced and verified
  kQuarantined,  // bytes did not match digest or diffID: never served again
};

// Whether the layer unpacks to what images say (diffID). Known when it was read whole: when it was indexed
// for layers without a table of contents, else when anything reads all of its blob.
enum class DiffIdCheck : uint8_t {
  kUnknown,   // no image said a diffID, or none said the right one
  kClaimed,   // all images say the same, nobody has compared it
  kDisputed,  // images say different ones, nobody has compared them
  kVerified,
};

// One layer. Thread-safe; lives as long as somebody holds it (open FUSE handles do: rule 7 of the design).
class LazyLayer {
 public:
  virtual ~LazyLayer() = default;

  virtual const oci::Descriptor& descriptor() const = 0;
  virtual const base::Digest& diff_id() const = 0;
  // Small number, stable over restarts, unique below the store's root: FUSE node ids are made from it. 1 …
  // 2^20-1.
  virtual uint32_t id() const = 0;
  // Where `index`, `meta.erofs`, `data` and `presence` are.
  virtual const std::string& directory() const = 0;
  virtual LayerState state() const = 0;
  // Why the layer is not lazy, as a short reason code ("no-index", "toc-missing", …); empty if it is.
  virtual std::string not_lazy_reason() const = 0;
  // Null while kNeedsIndex.
  virtual std::shared_ptr<const layer::LayerIndex> index() const = 0;
  // Bytes of the data area, a multiple of 4096; 0 while kNeedsIndex.
  virtual uint64_t data_size() const = 0;

  // [offset, offset+length) must lie inside the data area (InvalidArgument otherwise).
  // At once, or nullopt when any byte of it is not there yet. Never blocks on the network.
  virtual std::optional<PinnedRange> TryAcquire(uint64_t offset, uint64_t length) = 0;
  // Calls `done` once, on a thread of the store or, if nothing has to be fetched, on the caller's.
  // Any number of callers cause one request per chunk. Cancelling one waiter ends only its own wait.
  // Errors: DeadlineExceeded, Cancelled, DataLoss (bytes never right), ProviderMissing, what the last source
  // said.
  virtual void Acquire(uint64_t offset, uint64_t length, FetchContext context,
                       absl::AnyInvocable<void(absl::StatusOr<PinnedRange>) &&> done) = 0;
  // Ends all outstanding Acquires of this layer with `status` (used before its mount goes away).
  virtual void FailOutstanding(const absl::Status& status) = 0;
  // Reading what TryAcquire or Acquire gave has failed: what is cached of the range is compared with its
  // digests, and fetched if it is not right, before it is given out again.
  virtual void Doubt(uint64_t offset, uint64_t length) {
    static_cast<void>(offset), static_cast<void>(length);
  }

  virtual LayerStats stats() const = 0;
  virtual DiffIdCheck diff_id_check() const { return DiffIdCheck::kUnknown; }
};

// Called now and then while a layer is streamed: bytes received so far of descriptor.size.
using Progress = std::function<void(uint64_t received)>;

struct ContentStoreOptions {
  std::string root;                      // created 0700; must not be shared with another ContentStore
  int fetch_threads = 16;                // for one registry at most; eight times as many for all together
  uint64_t min_range_bytes = 256 << 10;  // request sizes follow bandwidth × round trip between these two
  uint64_t max_range_bytes = 8 << 20;
  uint64_t max_memory_bytes = 64 << 20;              // fetched and decoded bytes in flight
  absl::Duration sync_interval = absl::Seconds(5);   // how often data and presence are made durable
  absl::Duration lock_patience = absl::Seconds(10);  // for a killed predecessor to let go of the root
  // Original bytes that were read whole stay, as the file `blob` of the layer.
  bool keep_blobs = false;
  uint64_t blob_window_bytes = 32 << 20;  // how far ReadBlob reads ahead of the furthest reader at most
  absl::Duration blob_idle = absl::Seconds(30);  // how long what it has read outlives its last reader
  // What it has on the disk, without what is kept. A larger blob is read while there is no other.
  uint64_t max_spool_bytes = uint64_t{8} << 30;
  // Of all layers' data, kept blobs and spools; indexes and metadata images are not in it. Never more is
  // stored: the blobs kept and the chunks not used for longest give way, and where none can, reads are served
  // from memory. 0: no limit.
  uint64_t max_cache_bytes = 0;
  uint64_t min_free_bytes = 0;    // the same while the disk has less left than this; 0: not looked at
  uint64_t max_pinned_bytes = 0;  // of layers that PinForMount holds; 0: no limit
  std::function<absl::StatusOr<uint64_t>()> free_bytes;  // for tests; empty: of the root's file system
  // How often everything cached is compared with its digests, in the background; infinite: never.
  absl::Duration scrub_interval = absl::InfiniteDuration();
  uint64_t scrub_bytes_per_second = 8 << 20;  // 0: as fast as it goes
  // Asked once per layer whether its bytes may be parsed; an error is what indexing and fetching it end with.
  std::function<absl::Status(const base::Digest&)> may_parse;  // empty: all may
  layer::BuildLimits limits;
  SourceFactory
      source_factory;  // may be empty: then restored layers have no sources until a handler is added
  const base::Clock* clock = &base::SystemClock();
  // Takes what an operator should know (a full disk, a layer that cannot be lazy), one line each, on any
  // thread. Empty: stderr.
  std::function<void(absl::string_view)> log;
};

// What the comparison of the cache with its digests has done.
struct ScrubStatus {
  bool running = false;
  absl::Time ended = absl::InfinitePast();  // of the last that was finished
  uint64_t chunks = 0;                      // compared by the one that runs, else by the last of this process
  uint64_t bytes = 0;
  uint64_t rotten = 0;  // chunks found wrong or unreadable by this process, at its start or later
};

// Thread-safe.
class ContentStore {
 public:
  // Opens or creates; restores every layer whose record is on disk (no network). After an unclean stop
  // complete layers are compared with their digests, in the background, before PinForMount gives them.
  static absl::StatusOr<std::unique_ptr<ContentStore>> Open(ContentStoreOptions options);
  virtual ~ContentStore() = default;  // waits for running fetches; syncs

  // Makes the layer known, or adds the handler's sources to it. The record is durable on return.
  // FailedPrecondition: what it says of the layer is known to be wrong; others are served.
  virtual absl::StatusOr<std::shared_ptr<LazyLayer>> AddHandler(const DescriptorHandler& handler) = 0;
  // Null when unknown.
  virtual std::shared_ptr<LazyLayer> Find(const base::Digest& digest) = 0;
  virtual std::shared_ptr<LazyLayer> FindById(uint32_t id) = 0;
  virtual std::vector<std::shared_ptr<LazyLayer>> Layers() = 0;

  // Brings a layer out of kNeedsIndex. TOC formats: a few range reads. Plain layers: streamed once; with
  // `keep_data` the data area is written on the way and the layer is kComplete after it, else only the index
  // is kept and the layer is kLazy. A TOC that cannot be used makes the layer plain (not_lazy_reason says
  // why). Single flight per layer; blocks; no-op when indexed.
  virtual absl::Status EnsureIndexed(LazyLayer& layer, bool keep_data, const FetchContext& context,
                                     const Progress& progress) = 0;
  // The same without ever streaming a layer: FailedPrecondition, and not_lazy_reason, where that would take
  // it.
  virtual absl::Status EnsureIndexedFromToc(LazyLayer& layer, const FetchContext& context) = 0;
  // Makes all bytes of the data area local, verified and synced: kComplete on success. Single flight; blocks.
  // A layer whose diffID was not compared is read whole for that, what it has already included; where no
  // image says the right one it is quarantined (DataLoss). FetchCause::kBackground: of an indexed layer, one
  // request at a time, below all readers and what is read ahead of them, and only into room that nothing has
  // to give way for (ResourceExhausted). Cancelled by calls with another cause.
  virtual absl::Status Unlazy(LazyLayer& layer, const FetchContext& context, const Progress& progress) = 0;
  // Original blob bytes, streamed from a source, failing over between them; digest-verified when the range is
  // the whole blob.
  virtual absl::Status ReadBlobAt(LazyLayer& layer, registry::ByteRange range, registry::BodySink sink,
                                  const FetchContext& context) = 0;
  // Original blob bytes from `offset` on: blocks until at least one is there, gives as many as there are up
  // to out.size(), 0 at the blob's end. One pass over the sources is shared by all who read the blob at the
  // same time, each call on its own: it goes on for a while between calls, and far enough ahead for a reader
  // that comes in small steps. The last bytes (32 KiB) are given out only when the digest of the whole is
  // right, so a far offset waits for all before it. Where the digest is wrong the next source is tried first.
  // OutOfRange: beyond the end. DataLoss: the bytes are never right, or what was given before `offset` was
  // not: read again from 0 (calls are not tied together: what was read in several is compared with the digest
  // by who must be sure). ResourceExhausted: the disk is full, whole blobs cannot be read without it.
  // Others as of Acquire; an error is not remembered.
  virtual absl::StatusOr<size_t> ReadBlob(LazyLayer& layer, uint64_t offset, absl::Span<uint8_t> out,
                                          const FetchContext& context) {
    static_cast<void>(layer), static_cast<void>(offset), static_cast<void>(out), static_cast<void>(context);
    return absl::UnimplementedError("this store does not read whole blobs");
  }
  // All of `out` at once, where ReadBlob would give it and the bytes are in memory: never blocks. False:
  // ReadBlob knows.
  virtual bool TryReadBlob(LazyLayer& layer, uint64_t offset, absl::Span<uint8_t> out) {
    static_cast<void>(layer), static_cast<void>(offset), static_cast<void>(out);
    return false;
  }
  // Makes the original bytes local, verified and durable; the path of their file, which stays as long as the
  // layer, or until max_cache_bytes wants its room. Joins a pass of ReadBlob. Blocks.
  virtual absl::StatusOr<std::string> KeepBlob(LazyLayer& layer, const FetchContext& context,
                                               const Progress& progress) {
    static_cast<void>(layer), static_cast<void>(context), static_cast<void>(progress);
    return absl::UnimplementedError("this store does not keep whole blobs");
  }
  // The names of the layer's sources in the order ReadBlobAt asks them.
  virtual std::vector<std::string> SourceNames(LazyLayer& layer) {
    static_cast<void>(layer);
    return {};
  }
  // Before `data` itself is mounted: nothing of it is evicted while the result lives. FailedPrecondition: the
  // layer is not complete, or not compared yet after an unclean stop. ResourceExhausted: it would be above
  // max_pinned_bytes. Neither when it is `mounted` already.
  virtual absl::StatusOr<std::shared_ptr<const void>> PinForMount(LazyLayer& layer, bool mounted) {
    static_cast<void>(layer), static_cast<void>(mounted);
    return nullptr;
  }
  // Forgets a layer that nobody holds and removes its files; FailedPrecondition while it is held.
  virtual absl::Status Remove(const base::Digest& digest) = 0;
  virtual ScrubStatus scrub_status() const { return {}; }
};

}  // namespace lazyblob::contentstore

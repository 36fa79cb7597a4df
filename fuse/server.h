#pragma once

// The one FUSE file system of the daemon: `/blobs/<layer>` (data areas, opened direct, infinite timeouts) and
// `/trees/<layer>/…` (the fallback trees, buffered). <layer> is the layer's digest with '-' for ':', as
// LayerName() makes it: `blobs/sha256-<hex>`. Both directories can be looked into, not listed; everything is
// read-only. One libfuse low-level session on a /dev/fuse descriptor that the keeper owns. Node ids,
// directory cookies and file handles are functions of layer ids and indexes, so a successor can take the
// connection over. docs/FUSE.md: threads, locks, numbers, the sequence of a takeover.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/file.h"
#include "contentstore/content_store.h"
#include "fuse/mounter.h"

namespace lazyblob::fuse {

// Seconds after which the kernel aborts a connection made now that leaves a request unanswered
// (default_request_timeout and max_request_timeout in `sysctls`, Linux 6.15); 0: never. Later changes of
// these do not touch connections that are there.
uint64_t KernelRequestLimit(const std::string& sysctls = "/proc/sys/fs/fuse");

// The FUSE_INIT exchange, kept by the keeper over the life of the connection. Opaque bytes, at most 4 KiB
// each.
struct InitExchange {
  std::string request;
  std::string answer;
};

struct ServerOptions {
  base::UniqueFd device;       // /dev/fuse, or one end of a socketpair in tests
  std::string replay_request;  // empty: a new connection; else the recorded INIT exchange of the old one
  std::string replay_answer;
  // Called once on a new connection, before INIT is answered: the exchange must be safe when it returns.
  std::function<absl::Status(const InitExchange&)> on_init;
  int threads = 4;
  absl::Duration read_deadline = absl::Seconds(60);  // total, over the kernel's 2-3 tries of one read()
  uint64_t request_limit =
      0;  // KernelRequestLimit of when the connection was made: reads wait for half of it
  // Whether process `pid` has SIGKILL pending; default reads /proc/PID/status only (design rule 5).
  std::function<bool(uint32_t pid)> kill_pending;
  // Takes one line per event worth an operator's eye (failed reads: at most one per layer and second).
  // Default: stderr.
  std::function<void(absl::string_view line)> log;
  const base::Clock* clock = &base::SystemClock();
};

// Start, then Stop once. Thread-safe.
class FuseServer {
 public:
  FuseServer(contentstore::ContentStore* store, ServerOptions options);
  ~FuseServer();
  FuseServer(const FuseServer&) = delete;

  // Serves until Stop or until the connection ends. With a replay: FailedPrecondition when libfuse would
  // negotiate differently now; then FUSE_NOTIFY_RESEND is written so that unanswered requests come again.
  absl::Status Start();
  // Stops reading requests; outstanding ones stay unanswered for the successor. The connection lives on in
  // the keeper.
  void Stop();
  // Asks for unanswered requests again (the keeper says when the predecessor has been reaped).
  absl::Status Resend();

  // Ends all outstanding reads of the layer with EIO; new ones fail too until Allow (a mount that goes away).
  void FailLayer(const base::Digest& layer);
  void AllowLayer(const base::Digest& layer);
  // Open handles on the layer's blob or tree (OPEN without RELEASE, as far as this process has seen).
  uint64_t open_handles(const base::Digest& layer) const;

  struct Counters {
    uint64_t reads = 0;
    uint64_t hits = 0;  // answered without waiting
    uint64_t failed_reads = 0;
    uint64_t outstanding = 0;  // reads that wait for bytes now
  };
  Counters counters() const;

  // Reads under way, by layer; layers without any are left out.
  struct LayerReads {
    base::Digest layer;
    uint64_t reads = 0;
    absl::Duration oldest;  // how long the oldest has waited, since this process has it
  };
  std::vector<LayerReads> waiting_reads() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::fuse

#pragma once

// Mounting, as a role: lazyblobd asks, the keeper does (design rule 2: no thread of lazyblobd ever enters one
// of its own file systems). tests/support has a fake. Thread-safe; calls block until the kernel has answered.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"

namespace lazyblob::fuse {

// How the kernel sees a layer (design rule 9).
enum class Mode : uint8_t {
  kErofs,  // EROFS straight from the metadata file, data area as a file (Linux >= 6.12.2)
  kLoop,   // EROFS on loop devices over the same two files (>= 6.4)
  kFuse,   // our FUSE tree
};
absl::string_view ModeName(Mode mode);  // "erofs", "loop", "fuse"
// "auto" is nullopt.
absl::StatusOr<std::optional<Mode>> ParseMode(absl::string_view text);

struct LayerMountRequest {
  base::Digest layer;     // its data area is blobs/<digest> of our FUSE file system, its tree trees/<digest>
  std::string meta_path;  // EROFS image; unused in mode kFuse
  std::string data_path;  // complete layers: the cache file, mounted without FUSE; empty: the FUSE blob
  std::string target;     // existing directory below the state root
  Mode mode = Mode::kErofs;
};

struct OverlayRequest {
  std::vector<std::string> lowers;  // topmost first; mounted layer targets. One lower: a bind of it
  std::string target;               // existing directory
};

// `length` ids from `container` on, inside a container, are those from `host` on outside.
struct IdRange {
  uint32_t container = 0;
  uint32_t host = 0;
  uint32_t length = 0;
  auto operator<=>(const IdRange&) const = default;
};
struct IdMapping {
  std::vector<IdRange> uids;  // 1 to kMaxIdRanges, no overlaps on either side, no range past 2^32-2
  std::vector<IdRange> gids;
  auto operator<=>(const IdMapping&) const = default;
};

inline constexpr size_t kMaxIdRanges =
    124;  // a map of that many always fits into the one page the kernel takes
// InvalidArgument, naming the range, for what IdMapping does not allow.
absl::Status CheckIdMapping(const IdMapping& mapping);

struct IdMappedRequest {
  std::string source;  // directory, or a mount of ours; what is mounted there now is what is shown
  std::string target;  // existing directory below the state root
  IdMapping mapping;
};

struct ProbeResult {
  Mode mode = Mode::kFuse;  // the best that works here
  bool direct = false;      // a complete layer may be mounted with its cache file as device (design rule 6)
  std::string why;          // one line: what was tried and what it did
};

// "sha256-<hex>": the name of a layer below `blobs` and `trees`.
std::string LayerName(const base::Digest& layer);

class Mounter {
 public:
  virtual ~Mounter() = default;
  // Read-only, nodev, nosuid; read_ahead_kb of EROFS mounts is 1024. On error nothing stays mounted.
  virtual absl::Status MountLayer(const LayerMountRequest& request) = 0;
  virtual absl::Status MountOverlay(const OverlayRequest& request) = 0;
  // A view of `source` at `target` in which an id i of the file system's is what `mapping` maps i to; ids it
  // does not map are shown as 65534. Read-only, nodev, nosuid; without what is mounted below `source`; stays
  // when `source` is unmounted. Unimplemented: the file system at `source` knows no id-mapped mounts (our
  // FUSE tree, overlays), or the keeper is too old. FailedPrecondition: `source` is id-mapped already.
  virtual absl::Status MountIdMapped(const IdMappedRequest& request) = 0;
  // Detaches; NotFound when nothing of ours is mounted there. FailedPrecondition: busy (with `lazy`, never).
  virtual absl::Status Unmount(const std::string& target, bool lazy) = 0;
  // Mounts a built-in image each way and reads it as an unprivileged child.
  virtual absl::StatusOr<ProbeResult> Probe(const std::string& state_root) = 0;
};

}  // namespace lazyblob::fuse

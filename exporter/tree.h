#pragma once

// Where a new layer's contents come from: a directory, the upper directory of an overlay mount, or a tar
// file. A tree is walked once and pushed, member by member, in one order that depends on the tree alone:
// docs/LAYER_WRITING.md. Functions here block on the file system; any number may run at the same time.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "layer/entry.h"

namespace lazyblob::exporter {

enum class SourceKind : uint8_t {
  kDirectory,     // as it is
  kOverlayUpper,  // what an overlay mount keeps of changes: OCI whiteouts and opaque markers are made from it
  kTar,           // a tar file, as it is or compressed by gzip or zstd
};

struct Source {
  SourceKind kind = SourceKind::kDirectory;
  std::string path;
  // Where in the layer the tree goes: "opt/app"; empty is the layer's root. Directories above it get no
  // entries: they stay what the layers below have there.
  std::string target;
};

// "dir:PATH[:TARGET]" or "tar:PATH"; a PATH with a colon needs TARGET given ("dir:/a:b:/"). InvalidArgument
// names what is wrong: unknown kind, empty PATH, a TARGET with ".." or NUL in it.
absl::StatusOr<Source> ParseSource(absl::string_view text);

// Which landmark of eStargz the tree gets: a file at the layer's root that tells stargz-snapshotter what to
// fetch ahead.
enum class Landmark : uint8_t { kNone, kNoPrefetch, kPrefetch };

struct TreeOptions {
  // An entry for the tree's own root. Unset: exactly when the source has a target (the root of a temporary
  // directory must not change the mode of "/").
  std::optional<bool> root_entry;
  // SOURCE_DATE_EPOCH, seconds since 1970: later modification times become this one, earlier ones stay.
  std::optional<int64_t> latest_mtime;
  // Paths in the layer that come first, in this order, each after its directories. NotFound when the tree
  // lacks one.
  std::vector<std::string> first;
  // kPrefetch stands after `first`, kNoPrefetch before everything. Landmarks that the tree has are then left
  // out.
  Landmark landmark = Landmark::kNone;
  const base::CancelToken* cancel = nullptr;  // checked at least once per 1 MiB
};

// Takes a tree. For each entry: Begin, then exactly entry.size bytes of a regular file by Data (pieces of at
// most 1 MiB, none empty; holes come as zeros). Paths of directories end in "/", no path starts with one; the
// root is "./". extents are not set. The first error ends the walk and is what it returns.
class TreeSink {
 public:
  virtual ~TreeSink() = default;
  virtual absl::Status Begin(const layer::Entry& entry) = 0;
  virtual absl::Status Data(absl::Span<const uint8_t> bytes) = 0;
};

struct TreeSummary {
  uint64_t entries = 0;
  uint64_t data_bytes = 0;
  uint64_t sockets_skipped = 0;  // no tar can hold one
};

// Walks a kDirectory or kOverlayUpper. Nothing outside the directory is opened and no symbolic link followed.
// Aborted: the tree changed while it was read (named); what the sink has got must not be used.
// InvalidArgument: something no layer can say (named): a name that would be read as a whiteout, overlay
// redirect or metacopy marks, an xattr name with "=". Cancelled.
absl::StatusOr<TreeSummary> WalkTree(const Source& source, const TreeOptions& options, TreeSink* sink);

// Reads a kTar: gives the tar's own bytes (decompressed), unchanged and whole, to `sink`.
// InvalidArgument: compressed by something else, or damaged; Aborted: it changed while it was read.
absl::Status ReadTar(const Source& source, const base::CancelToken* cancel,
                     absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)> sink);

}  // namespace lazyblob::exporter

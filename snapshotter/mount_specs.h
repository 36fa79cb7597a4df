#pragma once

// From a snapshot's place in its chain to what a client passes to mount(2). Pure; thread-safe.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::snapshotter {

// A layer below a snapshot, as overlayfs sees it.
struct Lower {
  std::string path;
  bool opaque_root = false;  // hides everything below it
};

// The layers that matter, topmost first: nothing below an opaque root, and a directory that is there more
// than once (overlayfs refuses that) only at its uppermost place, where it decides.
std::vector<Lower> VisibleLowers(std::vector<Lower> lowers);

struct MountParts {
  bool writable = false;
  std::string fs;                   // the snapshot's own directory
  std::string work;                 // overlayfs's, if writable
  std::vector<std::string> lowers;  // topmost first, of VisibleLowers
  bool index_off = false;           // overlayfs here has the option `index`
};

// One mount: a bind where one directory is all there is, else an overlay.
std::vector<MountSpec> BuildMounts(const MountParts& parts);

// Whether overlayfs here has the option `index`. It is turned off: with it, a lower directory could be used
// by one mount only.
bool OverlayHasIndex();

// InvalidArgument when directories below `root` could not be written into an overlay's options.
absl::Status CheckRoot(const std::string& root);

}  // namespace lazyblob::snapshotter

#pragma once

// What is mounted: the record of standalone mounts, kept in `mounts.json` so that a successor of a daemon
// that died knows them. Not thread-safe by itself: MountManager guards it.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/digest.h"
#include "fuse/mounter.h"

namespace lazyblob::daemon {

// One layer as it is mounted.
struct MountedLayer {
  base::Digest digest;
  std::string meta_path;  // the layer's EROFS image, or one made for its chain
  std::string target;     // where it is mounted, below the state root
  bool direct = false;    // on its cache file, without FUSE
};

struct MountedImage {
  std::string reference;
  base::Digest manifest_digest;
  std::string directory;
  fuse::Mode mode = fuse::Mode::kErofs;
  std::string mode_reason;
  std::string docker_config;
  std::vector<MountedLayer> layers;  // bottom first
};

absl::StatusOr<std::vector<MountedImage>> LoadMountTable(const std::string& path);
absl::Status SaveMountTable(const std::string& path, const std::vector<MountedImage>& mounts);

}  // namespace lazyblob::daemon

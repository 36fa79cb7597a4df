#pragma once

// What the command line shows: JSON with stable keys, tables for people, and progress.

#include <ostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/control.pb.h"

namespace lazyblob::daemon {

// {"reference", "manifest_digest", "directory", "mode", "mode_reason", "layers": [{"digest", "format",
// "mode", "size", "fetched_bytes", "served_bytes", "lazy", "reason", …}]}
nlohmann::json ToJson(const control::v1::MountStatus& mount);
// {"mounts": [...], "layers": [every layer once], "snapshot_layers": [those of lazy snapshots],
// "not_lazy": [{"layer", "reference", "reason", "detail", "times"}], "not_lazy_reasons": {reason: times},
// "scrub": {"running", "ended", "chunks", "bytes", "rotten"}}
nlohmann::json ToJson(const control::v1::StatusResponse& status);

// Some lines per mount.
void PrintMount(const control::v1::MountStatus& mount, std::ostream& out);
// What containerd's snapshots hold; nothing when there are none.
void PrintSnapshots(const control::v1::StatusResponse& status, std::ostream& out);
// A comparison of the cache that runs, and what comparisons have found; nothing when there is none.
void PrintScrub(const control::v1::StatusResponse& status, std::ostream& out);

// Progress of layers that are being fetched. One thread at a time.
class ProgressPrinter {
 public:
  enum class Style { kNone, kTerminal, kPlain, kJson };
  // "auto" is redrawn bars if `terminal`, else nothing.
  static Style ParseStyle(absl::string_view text, bool terminal);

  ProgressPrinter(Style style, std::ostream& out) : style_(style), out_(out) {}
  void Update(const control::v1::MountEvent::LayerProgress& progress);
  // Takes what is drawn away.
  void Finish();

 private:
  struct Layer {
    std::string digest;
    uint64_t received = 0;
    uint64_t size = 0;
  };
  void Draw();

  const Style style_;
  std::ostream& out_;
  std::vector<Layer> layers_;  // in order of appearance
  size_t drawn_lines_ = 0;
  absl::Time drawn_at_ = absl::InfinitePast();
};

}  // namespace lazyblob::daemon

#pragma once

// What the command line shows: JSON with stable keys, tables for people, and progress.

#include <map>
#include <ostream>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/strings/string_view.h"
#include "proto/control.pb.h"

namespace lazyblob::daemon {

// {"reference", "manifest_digest", "directory", "mode", "mode_reason", "layers": [{"digest", "format",
// "mode", "size", "fetched_bytes", "served_bytes", "lazy", "reason", …}]}
nlohmann::json ToJson(const control::v1::MountStatus& mount);
// {"mounts": [...], "layers": [every layer once], "snapshot_layers": [those of lazy snapshots],
// "not_lazy": [{"layer", "reference", "reason", "detail", "times"}], "not_lazy_reasons": {reason: times}}
nlohmann::json ToJson(const control::v1::StatusResponse& status);

// Some lines per mount.
void PrintMount(const control::v1::MountStatus& mount, std::ostream& out);
// What containerd's snapshots hold; nothing when there are none.
void PrintSnapshots(const control::v1::StatusResponse& status, std::ostream& out);

// Progress of layers that are being fetched. One thread at a time.
class ProgressPrinter {
 public:
  enum class Style { kNone, kTerminal, kPlain, kJson };
  // "auto" is a terminal's redrawn line if `terminal`, else nothing.
  static Style ParseStyle(absl::string_view text, bool terminal);

  ProgressPrinter(Style style, std::ostream& out) : style_(style), out_(out) {}
  void Update(const control::v1::MountEvent::LayerProgress& progress);
  // Ends a redrawn line.
  void Finish();

 private:
  const Style style_;
  std::ostream& out_;
  std::map<std::string, std::pair<uint64_t, uint64_t>> layers_;  // digest -> received, size
  bool drawn_ = false;
};

}  // namespace lazyblob::daemon

#pragma once

// Progress of an export for people and machines: one line per layer and destination, which ends in exactly
// one final state.

#include <ostream>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "daemon/report.h"
#include "proto/exporter.pb.h"

namespace lazyblob::daemon {

// One thread at a time.
class ExportProgress {
 public:
  using Style = ProgressPrinter::Style;
  ExportProgress(Style style, std::ostream& out) : style_(style), out_(out) {}

  // kPlain prints final states, kJson every change as a line, kTerminal redraws what is under way.
  void Update(const v1::Progress& progress);
  // A line of its own, in every style: of kJson an object with "warning".
  void Warn(const std::string& warning);
  // Takes what is drawn away.
  void Finish();

 private:
  // One that has begun and not ended.
  struct Running {
    v1::Progress latest;
    absl::Time since;
    uint64_t from = 0;      // bytes that were there then
    uint64_t Rate() const;  // bytes per second
  };
  void Draw();

  const Style style_;
  std::ostream& out_;
  std::vector<Running> running_;
  size_t drawn_lines_ = 0;
  absl::Time drawn_at_ = absl::InfinitePast();
};

// Whether a layer in this state goes on no more.
bool IsFinalState(absl::string_view state);

}  // namespace lazyblob::daemon

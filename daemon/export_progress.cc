#include "daemon/export_progress.h"

#include <algorithm>
#include <set>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/status.h"

namespace lazyblob::daemon {
namespace {

constexpr size_t kShortName = 19;  // "sha256:" and 12 digits
constexpr size_t kMaxLines = 16;
constexpr absl::Duration kRedrawInterval = absl::Milliseconds(50);

std::string Megabytes(uint64_t bytes) { return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6); }

bool Same(const v1::Progress& a, const v1::Progress& b) {
  return a.name() == b.name() && a.destination() == b.destination() && a.cache() == b.cache();
}

std::string Line(const v1::Progress& progress) {
  const std::string name =
      progress.digest().empty() ? base::Printable(progress.name()) : progress.digest().substr(0, kShortName);
  return absl::StrFormat("%-19s %-9s %10s of %10s  %s%s", name, progress.state(), Megabytes(progress.bytes()),
                         Megabytes(progress.size()), base::Printable(progress.destination()),
                         progress.cache() ? " (cache)" : "");
}

}  // namespace

bool IsFinalState(absl::string_view state) {
  static const std::set<absl::string_view> kFinal = {"exists", "mounted", "pushed", "written", "failed"};
  return kFinal.count(state) > 0;
}

void ExportProgress::Update(const v1::Progress& progress) {
  if (style_ == Style::kJson) {
    nlohmann::json line = {
        {"digest", progress.digest()}, {"name", progress.name()},   {"destination", progress.destination()},
        {"state", progress.state()},   {"bytes", progress.bytes()}, {"size", progress.size()},
        {"cache", progress.cache()}};
    out_ << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n" << std::flush;
    return;
  }
  const bool final = IsFinalState(progress.state());
  if (style_ == Style::kPlain && final) out_ << Line(progress) << "\n" << std::flush;
  if (style_ != Style::kTerminal) return;
  auto running = std::find_if(running_.begin(), running_.end(),
                              [&](const v1::Progress& known) { return Same(known, progress); });
  if (final) {
    Finish();
    out_ << Line(progress) << "\n";
    if (running != running_.end()) running_.erase(running);
  } else if (running != running_.end()) {
    *running = progress;
  } else {
    running_.push_back(progress);
  }
  if (final || absl::Now() - drawn_at_ >= kRedrawInterval) Draw();
}

void ExportProgress::Draw() {
  Finish();
  drawn_at_ = absl::Now();
  for (const v1::Progress& progress : running_) {
    if (drawn_lines_ == kMaxLines) break;
    out_ << Line(progress) << "\n";
    ++drawn_lines_;
  }
  out_ << std::flush;
}

void ExportProgress::Say(const std::string& line) {
  Finish();
  out_ << line << "\n" << std::flush;
}

void ExportProgress::Finish() {
  if (drawn_lines_ > 0) out_ << absl::StrCat("\x1b[", drawn_lines_, "F\x1b[J") << std::flush;
  drawn_lines_ = 0;
}

}  // namespace lazyblob::daemon

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

std::string Line(const v1::Progress& progress, uint64_t rate) {
  const std::string name =
      progress.digest().empty() ? base::Printable(progress.name()) : progress.digest().substr(0, kShortName);
  return absl::StrFormat(
      "%-19s %-9s %10s of %10s %10s/s  %s%s%s", name, progress.state(), Megabytes(progress.bytes()),
      Megabytes(progress.size()), Megabytes(rate), base::Printable(progress.destination()),
      progress.cache() ? " (cache)" : "",
      progress.unpacked() > 0 ? absl::StrCat(" (", Megabytes(progress.unpacked()), " unpacked)") : "");
}

}  // namespace

bool IsFinalState(absl::string_view state) {
  static const std::set<absl::string_view> kFinal = {"exists", "mounted", "pushed", "written", "failed"};
  return kFinal.count(state) > 0;
}

uint64_t ExportProgress::Running::Rate() const {
  const double seconds = absl::ToDoubleSeconds(absl::Now() - since);
  if (latest.bytes() <= from || seconds <= 0) return 0;
  return static_cast<uint64_t>(static_cast<double>(latest.bytes() - from) / seconds);
}

void ExportProgress::Update(const v1::Progress& progress) {
  auto running = std::find_if(running_.begin(), running_.end(),
                              [&](const Running& known) { return Same(known.latest, progress); });
  if (running == running_.end()) {
    running = running_.insert(running_.end(), {progress, absl::Now(), progress.bytes()});
  }
  running->latest = progress;
  const uint64_t rate = running->Rate();
  const bool final = IsFinalState(progress.state());
  if (final) running_.erase(running);
  if (style_ == Style::kJson) {
    nlohmann::json line = {{"digest", progress.digest()},
                           {"name", progress.name()},
                           {"destination", progress.destination()},
                           {"state", progress.state()},
                           {"bytes", progress.bytes()},
                           {"size", progress.size()},
                           {"unpacked", progress.unpacked()},
                           {"bytes_per_second", rate},
                           {"cache", progress.cache()}};
    out_ << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n" << std::flush;
    return;
  }
  if (style_ == Style::kPlain && final) out_ << Line(progress, rate) << "\n" << std::flush;
  if (style_ != Style::kTerminal) return;
  if (final) {
    Finish();
    out_ << Line(progress, rate) << "\n";
  }
  if (final || absl::Now() - drawn_at_ >= kRedrawInterval) Draw();
}

void ExportProgress::Draw() {
  Finish();
  drawn_at_ = absl::Now();
  for (const Running& running : running_) {
    if (drawn_lines_ == kMaxLines) break;
    out_ << Line(running.latest, running.Rate()) << "\n";
    ++drawn_lines_;
  }
  out_ << std::flush;
}

void ExportProgress::Warn(const std::string& warning) {
  Finish();
  if (style_ == Style::kJson) {
    const nlohmann::json line = {{"warning", warning}};
    out_ << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n" << std::flush;
  } else {
    out_ << "lazyblob: warning: " << warning << "\n" << std::flush;
  }
}

void ExportProgress::Finish() {
  if (drawn_lines_ > 0) out_ << absl::StrCat("\x1b[", drawn_lines_, "F\x1b[J") << std::flush;
  drawn_lines_ = 0;
}

}  // namespace lazyblob::daemon

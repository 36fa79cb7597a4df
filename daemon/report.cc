#include "daemon/report.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace lazyblob::daemon {
namespace {

namespace api = ::lazyblob::control::v1;
using nlohmann::json;

constexpr size_t kShortDigest = 19;  // "sha256:" and 12 digits
constexpr size_t kBarWidth = 20;
constexpr size_t kMaxBars = 16;
constexpr absl::Duration kRedrawInterval = absl::Milliseconds(50);

std::string Megabytes(uint64_t bytes) { return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6); }

json LayerToJson(const api::LayerStatus& layer) {
  json causes = json::object();
  for (const auto& [cause, bytes] : layer.fetched_by_cause()) causes[cause] = bytes;
  return {{"digest", layer.digest()},
          {"format", layer.format()},
          {"mode", layer.mode()},
          {"size", layer.size()},
          {"fetched_bytes", layer.fetched_bytes()},
          {"fetched_by_cause", std::move(causes)},
          {"served_bytes", layer.served_bytes()},
          {"rotten_chunks", layer.rotten_chunks()},
          {"data_size", layer.data_size()},
          {"cached_bytes", layer.cached_bytes()},
          {"diff_id", layer.diff_id()},
          {"fill", layer.fill()},
          {"waiting_reads", layer.waiting_reads()},
          {"oldest_read_ms", layer.oldest_read_ms()},
          {"lazy", layer.lazy()},
          {"reason", layer.reason()},
          {"source", layer.source()},
          {"last_error", layer.last_error()}};
}

void PrintLayer(const api::LayerStatus& layer, std::ostream& out) {
  out << absl::StrFormat("  %s  %-12s %10s  fetched %10s  served %10s  %s\n", layer.digest().substr(0, 19),
                         layer.format(), Megabytes(layer.size()), Megabytes(layer.fetched_bytes()),
                         Megabytes(layer.served_bytes()),
                         layer.lazy()             ? "lazy"
                         : layer.reason().empty() ? "complete"
                                                  : layer.reason());
  if (layer.waiting_reads() > 0) {
    out << absl::StrFormat("    %d reads wait for bytes, the oldest for %.1f s\n", layer.waiting_reads(),
                           static_cast<double>(layer.oldest_read_ms()) / 1e3);
  }
  if (!layer.fill().empty()) {
    out << absl::StrFormat("    background fill: %s, %s of %s\n", layer.fill(),
                           Megabytes(layer.cached_bytes()), Megabytes(layer.data_size()));
  }
  if (!layer.last_error().empty()) out << "    last error: " << layer.last_error() << "\n";
}

}  // namespace

json ToJson(const api::MountStatus& mount) {
  json layers = json::array();
  for (const auto& layer : mount.layers()) layers.push_back(LayerToJson(layer));
  return {{"reference", mount.reference()},     {"manifest_digest", mount.manifest_digest()},
          {"directory", mount.directory()},     {"mode", mount.mode()},
          {"mode_reason", mount.mode_reason()}, {"layers", std::move(layers)}};
}

json ToJson(const api::StatusResponse& status) {
  json mounts = json::array();
  json layers = json::array();
  std::set<std::string> seen;
  for (const auto& mount : status.mounts()) {
    mounts.push_back(ToJson(mount));
    for (const auto& layer : mount.layers()) {
      if (seen.insert(layer.digest()).second) layers.push_back(LayerToJson(layer));
    }
  }
  json snapshot_layers = json::array();
  for (const auto& layer : status.snapshot_layers()) {
    snapshot_layers.push_back(LayerToJson(layer));
    if (seen.insert(layer.digest()).second) layers.push_back(LayerToJson(layer));
  }
  json not_lazy = json::array();
  json reasons = json::object();
  for (const auto& layer : status.not_lazy()) {
    not_lazy.push_back({{"layer", layer.layer()},
                        {"reference", layer.reference()},
                        {"reason", layer.reason()},
                        {"detail", layer.detail()},
                        {"times", layer.times()}});
    reasons[layer.reason()] = reasons.value(layer.reason(), uint64_t{0}) + layer.times();
  }
  return {{"mounts", std::move(mounts)},
          {"layers", std::move(layers)},
          {"snapshot_layers", std::move(snapshot_layers)},
          {"not_lazy", std::move(not_lazy)},
          {"not_lazy_reasons", std::move(reasons)},
          {"scrub",
           {{"running", status.scrub().running()},
            {"ended", status.scrub().ended()},
            {"chunks", status.scrub().chunks()},
            {"bytes", status.scrub().bytes()},
            {"rotten", status.scrub().rotten()}}}};
}

void PrintMount(const api::MountStatus& mount, std::ostream& out) {
  out << mount.reference() << "\n";
  if (!mount.directory().empty()) out << "  at " << mount.directory() << ", mode " << mount.mode() << "\n";
  for (const auto& layer : mount.layers()) PrintLayer(layer, out);
}

void PrintSnapshots(const api::StatusResponse& status, std::ostream& out) {
  if (!status.snapshot_layers().empty()) out << "lazy layers of snapshots\n";
  for (const auto& layer : status.snapshot_layers()) PrintLayer(layer, out);
  if (!status.not_lazy().empty()) out << "layers that the client had to unpack\n";
  for (const auto& layer : status.not_lazy()) {
    out << absl::StrFormat("  %s  %s, %d times: %s\n", layer.layer().substr(0, 19), layer.reason(),
                           layer.times(), layer.reference());
    if (!layer.detail().empty()) out << "    " << layer.detail() << "\n";
  }
}

void PrintScrub(const api::StatusResponse& status, std::ostream& out) {
  const api::ScrubStatus& scrub = status.scrub();
  if (scrub.running()) {
    out << absl::StrFormat("the cache is being compared with its digests: %d chunks, %s so far\n",
                           scrub.chunks(), Megabytes(scrub.bytes()));
  }
  if (scrub.rotten() > 0) {
    out << absl::StrFormat("%d cached chunks were found rotten: look after the disk (the log tells which)\n",
                           scrub.rotten());
  }
}

ProgressPrinter::Style ProgressPrinter::ParseStyle(absl::string_view text, bool terminal) {
  if (text == "plain") return Style::kPlain;
  if (text == "json") return Style::kJson;
  if (text == "none") return Style::kNone;
  return terminal ? Style::kTerminal : Style::kNone;
}

void ProgressPrinter::Update(const api::MountEvent::LayerProgress& progress) {
  auto layer = std::find_if(layers_.begin(), layers_.end(),
                            [&](const Layer& known) { return known.digest == progress.digest(); });
  if (layer == layers_.end()) layer = layers_.insert(layers_.end(), {progress.digest(), 0, 0});
  const bool complete = progress.received() >= progress.size() && layer->received < progress.size();
  layer->received = progress.received();
  layer->size = progress.size();
  if (style_ == Style::kJson) {
    out_ << json{{"digest", layer->digest}, {"received", layer->received}, {"size", layer->size}}.dump()
         << "\n"
         << std::flush;
  } else if (style_ == Style::kPlain && complete) {
    out_ << layer->digest.substr(0, kShortDigest) << " " << Megabytes(layer->size) << " received\n"
         << std::flush;
  } else if (style_ == Style::kTerminal && (complete || absl::Now() - drawn_at_ >= kRedrawInterval)) {
    Draw();
  }
}

// A bar for each layer that is not complete, and the sum below.
void ProgressPrinter::Draw() {
  Finish();
  drawn_at_ = absl::Now();
  uint64_t total = 0;
  uint64_t have = 0;
  size_t done = 0;
  for (const Layer& layer : layers_) {
    have += layer.received;
    total += layer.size;
    if (layer.received >= layer.size) {
      ++done;
      continue;
    }
    if (drawn_lines_ == kMaxBars) continue;
    ++drawn_lines_;
    const size_t filled = static_cast<size_t>(static_cast<double>(layer.received) /
                                              static_cast<double>(layer.size) * kBarWidth);
    out_ << absl::StrFormat("%s [%s%s] %s of %s\n", layer.digest.substr(0, kShortDigest),
                            std::string(filled, '#'), std::string(kBarWidth - filled, '.'),
                            Megabytes(layer.received), Megabytes(layer.size));
  }
  ++drawn_lines_;
  out_ << Megabytes(have) << " of " << Megabytes(total) << ", " << done << " of " << layers_.size()
       << " layers\n"
       << std::flush;
}

void ProgressPrinter::Finish() {
  if (drawn_lines_ > 0) out_ << "\033[" << drawn_lines_ << "A\033[J" << std::flush;
  drawn_lines_ = 0;
}

}  // namespace lazyblob::daemon

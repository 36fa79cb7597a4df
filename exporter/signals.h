#pragma once

// How others learn that an image or a cache is complete: files, a report and hooks, made by whoever asked for
// the export, never by the daemon on behalf of a request. docs/EXPORT_COMMANDS.md has the formats.

#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "proto/exporter.pb.h"

namespace lazyblob::exporter {

struct SignalOptions {  // empty: none
  std::string image_ready_file;
  std::string cache_ready_file;
  std::string report;  // JSON if its name ends in ".json", else TOML
  std::string hooks;   // directory of "exporter-image-exported" and "exporter-cache-exported"
};

// Takes the events of one export, in order, one thread at a time.
class Signals {
 public:
  explicit Signals(SignalOptions options) : options_(std::move(options)) {}
  ~Signals();  // waits for hooks

  // Removes files of an export before, which would say that this one is complete.
  absl::Status Start();
  // Writes what the event calls for and starts hooks; these run beside the export. Errors are kept for
  // Finish.
  void OnEvent(const v1::ExportEvent& event);
  // Waits for the hooks. The first thing that failed: a file that cannot be written, a hook's exit status.
  absl::Status Finish() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Keep(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void StartHooks(const std::string& name, const v1::AllReady& ready);

  const SignalOptions options_;
  v1::Report so_far_;
  std::vector<std::thread> hooks_;
  absl::Mutex mutex_;
  absl::Status first_ ABSL_GUARDED_BY(mutex_);
};

// One line per destination.
std::string ReadyText(const v1::AllReady& ready);
// Keys as in the message Report; complete is false until the export has ended.
std::string ReportToml(const v1::Report& report, bool complete);
std::string ReportJson(const v1::Report& report, bool complete);

// Runs DIRECTORY/NAME with one argument and waits. OK if there is no such file. FailedPrecondition: it ended
// with a status other than 0.
absl::Status RunHook(const std::string& directory, const std::string& name, const std::string& argument);

}  // namespace lazyblob::exporter

#pragma once

// The commands that place images: `lazyblob export`, `lazyblob copy` and `lazyblob unlazy`. Each is an
// ExportRequest to the daemon, its events as progress, and its signals made here.

#include <functional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/cli.h"
#include "proto/exporter.pb.h"

namespace CLI {
class App;
}

namespace lazyblob::daemon {

struct ExportArguments {
  enum class Command { kCopy, kUnlazy, kExport };
  Command command = Command::kCopy;
  std::string source;
  std::vector<std::string> destinations;
  std::string platform;  // empty: all of them for a copy, else the host's
  bool plain_http = false;
  bool keep = false;
  bool append = false;
  std::string progress = "auto";
  // Of kExport only.
  std::string base;
  std::vector<std::string> layers;
  std::vector<std::string> caches;
  std::vector<std::string> cache_layers;
  std::vector<std::string> cache_imports;
  std::string cache_format;   // "buildkit", "buildkit-index", "inline", "plain"; empty: not given
  std::string cache_mode;     // "min", "max"; empty: not given
  std::string cache_records;  // file
  std::string compression;    // empty: not given
  int level = 0;
  std::string config_file;
  std::string parallel;    // "on", "off"; empty: not given
  std::string on_failure;  // empty: not given
  std::string spec;        // file; instead of all that says what is exported
  std::string cache_ready_file;

  std::string image_ready_file;
  std::string report;
  std::string hooks;
};

// Adds the commands to `app`. What was parsed goes to `arguments`, then `chosen` is called. Both outlive
// `app`.
void AddExportCommands(CLI::App* app, ExportArguments* arguments, std::function<void()> chosen);

// The parts of it that other commands share which are an ExportRequest too (cli_artifact.h).
void AddRequestOptions(CLI::App* command, ExportArguments* arguments);
absl::Status AddSourceDateEpoch(v1::ExportRequest* request);  // of the environment
// Access, absolute paths, and the check of it all.
absl::Status CompleteRequest(const ExportArguments& arguments, const std::string& directory,
                             const std::string& docker_config, v1::ExportRequest* request);
using MakeRequest = absl::FunctionRef<absl::StatusOr<v1::ExportRequest>(const std::string& directory)>;
absl::Status RunRequest(MakeRequest make, const ExportArguments& arguments, const std::string& root,
                        bool json, CliIo io);

// What is asked of the daemon; paths made absolute in `directory`. InvalidArgument: a reference or an option
// that is wrong.
absl::StatusOr<v1::ExportRequest> MakeExportRequest(const ExportArguments& arguments,
                                                    const std::string& directory,
                                                    const std::string& docker_config);

// Runs it on the daemon of `root`, which is started if need be, and prints what was made: a line per
// destination, or with `json` the report. SIGINT and SIGTERM cancel.
absl::Status RunExportCommand(const ExportArguments& arguments, const std::string& root,
                              const std::string& docker_config, bool json, CliIo io);

}  // namespace lazyblob::daemon

#include "daemon/cli_export.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <map>
#include <memory>
#include <utility>
#include <variant>

#include <CLI/CLI.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/control_client.h"
#include "daemon/export_progress.h"
#include "daemon/interrupt.h"
#include "exporter/build_cache.h"
#include "exporter/signals.h"
#include "exporter/spec.h"
#include "oci/reference.h"

namespace lazyblob::daemon {
namespace {

using Command = ExportArguments::Command;

void AddCommonOptions(CLI::App* command, ExportArguments* arguments) {
  command->add_option("--platform", arguments->platform, "os/arch[/variant]");
  AddRequestOptions(command, arguments);
}

CLI::Option* AddAppend(CLI::App* command, ExportArguments* arguments) {
  return command->add_flag("--append", arguments->append,
                           "put it beside other platforms in the index that DST has");
}

void AddExportOptions(CLI::App* command, ExportArguments* arguments) {
  auto* spec = command->add_option("--spec", arguments->spec, "file with an ExportRequest in proto3 JSON");
  std::vector<CLI::Option*> others = {
      command->add_option("--base", arguments->base, "REF or scratch"),
      command->add_option("--layer", arguments->layers, "dir:PATH[:TARGET], tar:PATH or snapshot:KEY")
          ->allow_extra_args(false),
      command->add_option("--image", arguments->destinations, "destination")->allow_extra_args(false),
      command->add_option("--cache", arguments->caches, "destination of the cache")->allow_extra_args(false),
      command
          ->add_option("--cache-layer", arguments->cache_layers,
                       "as --layer: a directory of a plain cache image, or a layer of --cache-records")
          ->allow_extra_args(false),
      command
          ->add_option("--cache-import", arguments->cache_imports,
                       "REF of a cache that becomes part of this one; its layers stay where they are")
          ->allow_extra_args(false),
      command
          ->add_option("--cache-format", arguments->cache_format,
                       "default: plain with --cache-layer alone, else buildkit")
          ->check(CLI::IsMember({"buildkit", "buildkit-index", "inline", "plain"})),
      command
          ->add_option("--cache-mode", arguments->cache_mode,
                       "max: all stages of the build; default: min, the last one")
          ->check(CLI::IsMember({"min", "max"})),
      command->add_option(
          "--cache-records", arguments->cache_records,
          "file with BuildKit's CacheConfig, whose layers are those of --cache-layer in order"),
      command->add_option("--compression", arguments->compression)
          ->check(CLI::IsMember({"gzip", "zstd", "estargz", "zstdchunked", "none"})),
      command->add_option("--compression-level", arguments->level),
      AddAppend(command, arguments),
      command->add_option("--config", arguments->config_file, "JSON to merge over the base's image config"),
      command->add_option("--parallel", arguments->parallel, "image and cache at the same time; default: on")
          ->check(CLI::IsMember({"on", "off"})),
      command->add_option("--on-failure", arguments->on_failure)
          ->check(CLI::IsMember({"independent", "cache-required", "fail-fast"}))};
  for (CLI::Option* other : others) spec->excludes(other);
  command->add_option("--cache-ready-file", arguments->cache_ready_file,
                      "gets repo@digest when the cache is complete");
}

// Records go to the layers they are of; places in the file become ids.
absl::Status AddCacheRecords(const std::string& file, v1::Cache* cache) {
  ASSIGN_OR_RETURN(const std::string config, base::ReadFile(file, exporter::kMaxCacheDocumentBytes));
  auto read = exporter::ReadCacheRecords(config, static_cast<size_t>(cache->layers_size()));
  if (!read.ok()) return base::Annotate(read.status(), base::Printable(file));
  for (int i = 0; i < cache->layers_size(); ++i) {
    const int parent = read->layers[static_cast<size_t>(i)].parent;
    if (parent >= i) {
      return absl::InvalidArgumentError(absl::StrCat(base::Printable(file), ": layer ", i, " lies on layer ",
                                                     parent, ", which does not stand before it"));
    }
    cache->mutable_layers(i)->set_parent(parent < 0 ? "-" : cache->layers(parent).source());
  }
  for (size_t i = 0; i < read->records.size(); ++i) {
    const exporter::CacheRecord& record = read->records[i];
    v1::CacheRecord given;
    given.set_digest(record.digest);
    given.set_id(absl::StrCat("record ", i));
    for (const std::vector<exporter::CacheLink>& alternatives : record.inputs) {
      auto* input = given.add_inputs();
      for (const exporter::CacheLink& link : alternatives) {
        auto* added = input->add_links();
        added->set_selector(link.selector);
        added->set_digest(absl::StrCat("record ", link.record));
      }
    }
    if (record.results.empty()) *cache->add_records() = given;
    for (const exporter::CacheResult& result : record.results) {
      absl::Time created = absl::UnixEpoch();
      std::string wrong;
      if (!result.created_at.empty() &&
          !absl::ParseTime(absl::RFC3339_full, result.created_at, &created, &wrong)) {
        return absl::InvalidArgumentError(absl::StrCat(
            base::Printable(file), ": record ", base::Printable(record.digest), ": createdAt: ", wrong));
      }
      given.set_created_at(absl::ToUnixNanos(created));
      *cache->mutable_layers(result.layer)->add_records() = given;
    }
  }
  return absl::OkStatus();
}

absl::Status AddCache(const ExportArguments& arguments, v1::ExportRequest* request) {
  const bool any = !arguments.caches.empty() || !arguments.cache_layers.empty() ||
                   !arguments.cache_imports.empty() || !arguments.cache_format.empty() ||
                   !arguments.cache_mode.empty() || !arguments.cache_records.empty();
  if (!any) return absl::OkStatus();
  static const std::map<std::string, v1::CacheFormat> kFormats = {{"buildkit", v1::BUILDKIT},
                                                                  {"buildkit-index", v1::BUILDKIT_INDEX},
                                                                  {"inline", v1::INLINE},
                                                                  {"plain", v1::PLAIN}};
  v1::Cache* cache = request->mutable_cache();
  if (!arguments.cache_format.empty()) {
    cache->set_format(kFormats.at(arguments.cache_format));
  } else {
    const bool plain = arguments.cache_records.empty() && !arguments.cache_layers.empty();
    cache->set_format(plain ? v1::PLAIN : v1::BUILDKIT);
  }
  cache->set_max(arguments.cache_mode == "max");
  for (const std::string& destination : arguments.caches) cache->add_destinations(destination);
  for (const std::string& layer : arguments.cache_layers) cache->add_layers()->set_source(layer);
  for (const std::string& import : arguments.cache_imports) cache->add_imports(import);
  return arguments.cache_records.empty() ? absl::OkStatus() : AddCacheRecords(arguments.cache_records, cache);
}

absl::StatusOr<v1::ExportRequest> ExportOfArguments(const ExportArguments& arguments) {
  v1::ExportRequest request;
  if (!arguments.spec.empty()) {
    ASSIGN_OR_RETURN(std::string json, base::ReadFile(arguments.spec, 16 << 20));
    return exporter::ParseSpec(json);
  }
  RETURN_IF_ERROR(AddCache(arguments, &request));
  for (const std::string& destination : arguments.destinations) request.add_destinations(destination);
  const bool with_image =
      !arguments.base.empty() || !arguments.layers.empty() || !arguments.config_file.empty();
  if (with_image || !request.has_cache() || !request.destinations().empty()) {
    v1::Image* image = request.add_images();
    image->set_base(arguments.base);
    image->set_platform(arguments.platform);
    image->set_config_file(arguments.config_file);
    for (const std::string& layer : arguments.layers) image->add_layers()->set_source(layer);
  }
  static const std::map<std::string, v1::Compression> kCompressions = {
      {"", v1::COMPRESSION_UNSPECIFIED}, {"gzip", v1::GZIP}, {"zstd", v1::ZSTD}, {"estargz", v1::ESTARGZ},
      {"zstdchunked", v1::ZSTDCHUNKED},  {"none", v1::NONE}};
  static const std::map<std::string, v1::OnFailure> kPolicies = {{"", v1::ON_FAILURE_UNSPECIFIED},
                                                                 {"independent", v1::INDEPENDENT},
                                                                 {"cache-required", v1::CACHE_REQUIRED},
                                                                 {"fail-fast", v1::FAIL_FAST}};
  request.set_compression(kCompressions.at(arguments.compression));
  request.set_compression_level(arguments.level);
  if (arguments.append) request.set_index(v1::INDEX_APPEND);
  if (!arguments.parallel.empty()) request.set_parallel(arguments.parallel == "on" ? v1::ON : v1::OFF);
  request.set_on_failure(kPolicies.at(arguments.on_failure));
  request.set_keep(arguments.keep);
  RETURN_IF_ERROR(AddSourceDateEpoch(&request));
  return request;
}

// The hosts that are named: plain http goes for them, for nobody else.
absl::Status AddPlainHttpHosts(v1::ExportRequest* request) {
  auto add = [request](const std::string& text) -> absl::Status {
    ASSIGN_OR_RETURN(exporter::Destination destination, exporter::ParseDestination(text));
    if (const auto* reference = std::get_if<oci::Reference>(&destination)) {
      request->mutable_access()->add_plain_http_hosts(reference->host);
    }
    return absl::OkStatus();
  };
  for (const v1::Image& image : request->images()) {
    if (image.base() != "scratch") RETURN_IF_ERROR(add(image.base()));
  }
  for (const std::string& destination : request->destinations()) RETURN_IF_ERROR(add(destination));
  for (const std::string& cache : request->cache().destinations()) RETURN_IF_ERROR(add(cache));
  for (const std::string& import : request->cache().imports()) RETURN_IF_ERROR(add(import));
  const std::string& subject = request->artifact().subject();
  if (!subject.empty()) RETURN_IF_ERROR(add(subject));
  return absl::OkStatus();
}

v1::ExportRequest PlacementOfArguments(const ExportArguments& arguments) {
  v1::ExportRequest request;
  v1::Image* image = request.add_images();
  image->set_base(arguments.source);
  image->set_platform(arguments.platform);
  bool unpacked = false;
  for (const std::string& destination : arguments.destinations) {
    request.add_destinations(destination);
    unpacked = unpacked || absl::StartsWith(destination, "dir:");
  }
  if (arguments.command == Command::kCopy) {
    image->set_all_platforms(arguments.platform.empty() && !unpacked);
  } else {
    request.set_unlazy(arguments.destinations.empty());
  }
  request.set_keep(arguments.keep);
  if (arguments.append) request.set_index(v1::INDEX_APPEND);
  return request;
}

// What the command line asks for and the request does not take up.
std::vector<std::string> IdleOptions(const ExportArguments& arguments, const v1::ExportRequest& request) {
  std::vector<std::string> idle;
  auto say = [&](bool holds, absl::string_view text) {
    if (holds) idle.emplace_back(text);
  };
  const bool spec = !arguments.spec.empty();
  const bool image = !request.images().empty() || request.has_artifact();
  const bool cache = request.has_cache() && request.cache().format() != v1::INLINE;
  const char* epoch = std::getenv("SOURCE_DATE_EPOCH");
  say(spec && !arguments.platform.empty(), "--platform has no effect: the spec names platforms");
  say(spec && arguments.keep, "--keep has no effect: the spec says what is kept");
  say(spec && epoch != nullptr && *epoch != '\0',
      "SOURCE_DATE_EPOCH has no effect: the spec has its sourceDateEpoch");
  say(!spec && !image && !arguments.platform.empty(), "--platform has no effect: there is no image");
  say(!image && !arguments.image_ready_file.empty(), "--image-ready-file has no effect: there is no image");
  say(!cache && !arguments.cache_ready_file.empty(),
      "--cache-ready-file has no effect: there is no cache with a destination of its own");
  say(arguments.cache_mode == "min" && request.cache().format() == v1::PLAIN,
      "cache mode min has no effect: the cache is a plain image");
  return idle;
}

// Absent is not the same as a directory without hooks.
absl::Status CheckHooks(const std::string& directory) {
  struct stat st{};
  if (directory.empty()) return absl::OkStatus();
  const std::string name = absl::StrCat("--hooks ", base::Printable(directory));
  if (stat(directory.c_str(), &st) != 0) return base::ErrnoStatus(errno, name);
  return S_ISDIR(st.st_mode) ? absl::OkStatus() : absl::InvalidArgumentError(name + ": not a directory");
}

absl::StatusOr<std::string> WorkingDirectory() {
  char buffer[PATH_MAX];
  if (getcwd(buffer, sizeof buffer) == nullptr) return base::ErrnoStatus(errno, "getcwd");
  return std::string(buffer);
}

}  // namespace

void AddRequestOptions(CLI::App* command, ExportArguments* arguments) {
  command->add_flag("--plain-http", arguments->plain_http,
                    "talk http, not https, to the registries named here");
  command->add_option("--progress", arguments->progress, "auto, plain, json or none")
      ->check(CLI::IsMember({"auto", "plain", "json", "none"}));
  command->add_option("--image-ready-file", arguments->image_ready_file,
                      "gets repo@digest when every destination is complete");
  command->add_option("--report", arguments->report, "gets a report: JSON if it is called *.json, else TOML");
  command->add_option("--hooks", arguments->hooks,
                      "directory of executables: exporter-image-exported, exporter-cache-exported");
}

absl::Status AddSourceDateEpoch(v1::ExportRequest* request) {
  if (const char* epoch = std::getenv("SOURCE_DATE_EPOCH"); epoch != nullptr && *epoch != '\0') {
    int64_t seconds = 0;
    if (!absl::SimpleAtoi(epoch, &seconds) || seconds < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("SOURCE_DATE_EPOCH=", base::Printable(epoch), ": not a number of seconds"));
    }
    request->set_source_date_epoch(seconds);
  }
  return absl::OkStatus();
}

void AddExportCommands(CLI::App* app, ExportArguments* arguments, std::function<void()> chosen) {
  const char* what = "host[:port]/name[:tag|@digest] or oci:DIR[:tag]";
  CLI::App* copy = app->add_subcommand("copy", "copy an image, moving as few bytes as possible");
  copy->add_option("SRC", arguments->source, what)->required();
  copy->add_option("DST", arguments->destinations,
                   "host[:port]/name[:tag], oci:DIR[:tag], oci-archive:FILE[:tag], dir:PATH or store:NAME")
      ->required();
  AddCommonOptions(copy, arguments);
  copy->add_flag("--keep", arguments->keep, "layers become known to the daemon");
  AddAppend(copy, arguments);
  copy->callback([arguments, chosen] {
    arguments->command = Command::kCopy;
    chosen();
  });

  CLI::App* unlazy = app->add_subcommand("unlazy", "make all bytes of an image local");
  unlazy->add_option("REF", arguments->source, what)->required();
  unlazy->add_option("DST", arguments->destinations,
                     "dir:PATH, oci-archive:FILE[:tag] or oci:DIR[:tag]; default: the daemon's own store");
  AddCommonOptions(unlazy, arguments);
  unlazy->callback([arguments, chosen] {
    arguments->command = Command::kUnlazy;
    chosen();
  });

  CLI::App* exported = app->add_subcommand("export", "make an image of a base and new layers, and push it");
  AddExportOptions(exported, arguments);
  AddCommonOptions(exported, arguments);
  exported->add_flag("--keep", arguments->keep, "with store:NAME: its layers whole");
  exported->callback([arguments, chosen] {
    arguments->command = Command::kExport;
    chosen();
  });
}

absl::Status CompleteRequest(const ExportArguments& arguments, const std::string& directory,
                             const std::string& docker_config, v1::ExportRequest* request) {
  if (request->access().docker_config().empty()) request->mutable_access()->set_docker_config(docker_config);
  if (arguments.plain_http) RETURN_IF_ERROR(AddPlainHttpHosts(request));
  RETURN_IF_ERROR(exporter::MakePathsAbsolute(directory, request));
  return exporter::CheckRequest(*request).status();
}

absl::StatusOr<v1::ExportRequest> MakeExportRequest(const ExportArguments& arguments,
                                                    const std::string& directory,
                                                    const std::string& docker_config) {
  ASSIGN_OR_RETURN(v1::ExportRequest request, arguments.command == Command::kExport
                                                  ? ExportOfArguments(arguments)
                                                  : PlacementOfArguments(arguments));
  RETURN_IF_ERROR(CompleteRequest(arguments, directory, docker_config, &request));
  return request;
}

absl::Status RunExportCommand(const ExportArguments& arguments, const std::string& root,
                              const std::string& docker_config, bool json, CliIo io) {
  auto make = [&](const std::string& directory) {
    return MakeExportRequest(arguments, directory, docker_config);
  };
  return RunRequest(make, arguments, root, json, io);
}

absl::Status RunRequest(MakeRequest make, const ExportArguments& arguments, const std::string& root,
                        bool json, CliIo io) {
  if (geteuid() != 0) return absl::PermissionDeniedError("must run as root: the daemon serves root only");
  ASSIGN_OR_RETURN(const std::string directory, WorkingDirectory());
  ASSIGN_OR_RETURN(const v1::ExportRequest request, make(directory));
  RETURN_IF_ERROR(CheckHooks(arguments.hooks));
  exporter::SignalOptions options;
  options.image_ready_file = arguments.image_ready_file;
  options.cache_ready_file = arguments.cache_ready_file;
  options.report = arguments.report;
  options.hooks = arguments.hooks;
  exporter::Signals signals(options);
  RETURN_IF_ERROR(signals.Start());

  auto cancel = std::make_shared<base::CancelToken>();
  InterruptCancels interrupt(cancel);
  ExportProgress progress(ProgressPrinter::ParseStyle(arguments.progress, io.terminal), io.err);
  for (const std::string& warning : IdleOptions(arguments, request)) progress.Warn(warning);
  v1::Report report;
  auto on_event = [&](const v1::ExportEvent& event) {
    if (event.has_progress()) progress.Update(event.progress());
    if (event.event_case() == v1::ExportEvent::kWarning) {
      progress.Warn(event.warning());
    }
    if (event.has_done()) report = event.done();
    signals.OnEvent(event);
  };
  // A daemon that was just ending is replaced once.
  absl::Status status = absl::AbortedError("no daemon");
  for (int attempt = 0; attempt < 2 && absl::IsAborted(status); ++attempt) {
    ASSIGN_OR_RETURN(auto client, ControlClient::ConnectOrStart(root));
    status = client->Export(request, cancel, on_event);
  }
  progress.Finish();
  const absl::Status signalled = signals.Finish();
  if (!status.ok()) return cancel->cancelled() ? absl::CancelledError("interrupted") : status;
  if (json) {
    io.out << exporter::ReportJson(report, true);
  } else {
    for (const v1::Ready& ready : report.images()) io.out << ready.reference() << "\n";
    for (const v1::Ready& ready : report.caches()) io.out << ready.reference() << "\n";
  }
  return signalled;
}

}  // namespace lazyblob::daemon

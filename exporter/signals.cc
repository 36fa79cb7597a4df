#include "exporter/signals.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

extern char** environ;

namespace lazyblob::exporter {
namespace {

using nlohmann::json;

absl::Status RemoveFile(const std::string& path) {
  if (path.empty() || unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  return base::ErrnoStatus(errno, base::Printable(path));
}

// A TOML basic string; what it cannot hold is escaped as JSON does, which it understands.
std::string Quoted(const std::string& text) {
  return json(base::IsUtf8(text) ? text : base::Printable(text)).dump();
}

json ReadyToJson(const google::protobuf::RepeatedPtrField<v1::Ready>& all) {
  json list = json::array();
  for (const v1::Ready& ready : all) {
    list.push_back({{"reference", ready.reference()}, {"digest", ready.digest()}, {"size", ready.size()}});
  }
  return list;
}

std::string ReadyToToml(absl::string_view table, const google::protobuf::RepeatedPtrField<v1::Ready>& all) {
  std::string text;
  for (const v1::Ready& ready : all) {
    absl::StrAppend(&text, "\n[[", table, "]]\nreference = ", Quoted(ready.reference()),
                    "\ndigest = ", Quoted(ready.digest()), "\nsize = ", ready.size(), "\n");
  }
  return text;
}

}  // namespace

std::string ReadyText(const v1::AllReady& ready) {
  std::string text;
  for (const v1::Ready& one : ready.ready()) absl::StrAppend(&text, one.reference(), "\n");
  return text;
}

std::string ReportToml(const v1::Report& report, bool complete) {
  std::string text = absl::StrCat("id = ", Quoted(report.id()), "\ncomplete = ", complete ? "true" : "false",
                                  "\nimage_error = ", Quoted(report.image_error()),
                                  "\ncache_error = ", Quoted(report.cache_error()),
                                  "\nuploaded_bytes = ", report.uploaded_bytes(),
                                  "\nsource_bytes = ", report.source_bytes(), "\nwarnings = [");
  for (int i = 0; i < report.warnings_size(); ++i) {
    absl::StrAppend(&text, i == 0 ? "" : ", ", Quoted(report.warnings(i)));
  }
  return absl::StrCat(text, "]\n", ReadyToToml("images", report.images()),
                      ReadyToToml("caches", report.caches()));
}

std::string ReportJson(const v1::Report& report, bool complete) {
  json warnings = json::array();
  for (const std::string& warning : report.warnings()) warnings.push_back(warning);
  json out = {{"id", report.id()},
              {"complete", complete},
              {"images", ReadyToJson(report.images())},
              {"caches", ReadyToJson(report.caches())},
              {"image_error", report.image_error()},
              {"cache_error", report.cache_error()},
              {"uploaded_bytes", report.uploaded_bytes()},
              {"source_bytes", report.source_bytes()},
              {"warnings", std::move(warnings)}};
  return out.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

absl::Status RunHook(const std::string& directory, const std::string& name, const std::string& argument) {
  const std::string path = absl::StrCat(directory, "/", name);
  if (access(path.c_str(), F_OK) != 0) {
    return errno == ENOENT ? absl::OkStatus() : base::ErrnoStatus(errno, base::Printable(path));
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, 2, 1);  // stdout is for our own output
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  std::string words[] = {path, argument};
  char* argv[] = {words[0].data(), words[1].data(), nullptr};
  pid_t pid = 0;
  const int error = posix_spawn(&pid, path.c_str(), &actions, &attributes, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return base::ErrnoStatus(error, absl::StrCat("hook ", base::Printable(path)));
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return base::ErrnoStatus(errno, absl::StrCat("hook ", base::Printable(path)));
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "hook ", base::Printable(path), WIFEXITED(status) ? ": exit status " : ": ended by signal ",
      WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status)));
}

Signals::~Signals() {
  for (std::thread& hook : hooks_) hook.join();
}

absl::Status Signals::Start() {
  RETURN_IF_ERROR(RemoveFile(options_.image_ready_file));
  RETURN_IF_ERROR(RemoveFile(options_.cache_ready_file));
  return RemoveFile(options_.report);
}

void Signals::Keep(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  first_.Update(status);
}

void Signals::StartHooks(const std::string& name, const v1::AllReady& ready) {
  if (options_.hooks.empty()) return;
  hooks_.emplace_back([this, name, ready] {
    for (const v1::Ready& one : ready.ready()) Keep(RunHook(options_.hooks, name, one.reference()));
  });
}

void Signals::OnEvent(const v1::ExportEvent& event) {
  auto write = [this](const std::string& path, const std::string& text) {
    if (!path.empty()) Keep(base::WriteFileAtomically(path, text, 0644));
  };
  auto write_report = [&](const v1::Report& report, bool complete) {
    const bool as_json = absl::EndsWith(options_.report, ".json");
    write(options_.report, as_json ? ReportJson(report, complete) : ReportToml(report, complete));
  };
  if (event.has_image_ready()) {
    *so_far_.mutable_images() = event.image_ready().ready();
    write_report(so_far_, false);
    write(options_.image_ready_file, ReadyText(event.image_ready()));
    StartHooks("exporter-image-exported", event.image_ready());
  } else if (event.has_cache_ready()) {
    *so_far_.mutable_caches() = event.cache_ready().ready();
    write(options_.cache_ready_file, ReadyText(event.cache_ready()));
    StartHooks("exporter-cache-exported", event.cache_ready());
  } else if (event.event_case() == v1::ExportEvent::kWarning) {
    so_far_.add_warnings(event.warning());
  } else if (event.has_done()) {
    write_report(event.done(), true);
  }
}

absl::Status Signals::Finish() {
  for (std::thread& hook : hooks_) hook.join();
  hooks_.clear();
  absl::MutexLock lock(&mutex_);
  return first_;
}

}  // namespace lazyblob::exporter

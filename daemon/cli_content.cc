#include "daemon/cli_content.h"

#include <unistd.h>

#include <memory>
#include <utility>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "contentservice/containerd_store.h"
#include "contentservice/content.h"
#include "contentstore/content_store.h"
#include "daemon/config.h"
#include "daemon/content_learner.h"
#include "daemon/doctor.h"
#include "daemon/interrupt.h"
#include "daemon/plain_http_hosts.h"
#include "daemon/recorded_sources.h"
#include "daemon/registry_access.h"
#include "daemon/state_root.h"
#include "registry/client.h"

namespace lazyblob::daemon {
namespace {

// The parts of the daemon that blobs are read with, lazy ones too; members are destroyed in the opposite
// order.
class OfflineContent {
 public:
  OfflineContent(Config config, std::ostream* log)
      : config_(std::move(config)),
        log_([log](absl::string_view line) { *log << absl::StrCat("lazyblob: ", line, "\n"); }) {}
  ~OfflineContent() {
    if (learner_ != nullptr) learner_->Stop();
    content_.reset();
  }

  absl::Status Open() {
    absl::StatusOr<base::UniqueFd> lock = LockStateRoot(config_.root, absl::ZeroDuration());
    if (absl::IsFailedPrecondition(lock.status())) {
      return absl::FailedPreconditionError(
          absl::StrCat(lock.status().message(), "; if lazyblobd runs: systemctl stop containerd lazyblob"));
    }
    RETURN_IF_ERROR(lock.status());
    lock_ = *std::move(lock);
    if (NamespaceBehind(config_.content.containerd_address).ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("containerd listens on ", config_.content.containerd_address,
                       ", and its content must not change meanwhile: systemctl stop containerd"));
    }
    registry::ClientOptions client = access_.Options();
    RETURN_IF_ERROR(plain_http_.Load(config_.root + "/plain_http_hosts.json"));
    client.is_plain_http = [this](const std::string& host) { return plain_http_.Contains(host); };
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = config_.root + "/layers";
    store.source_factory = RecordedSources(client_.get(), config_.snapshotter.url_hosts);
    store.log = log_;
    ASSIGN_OR_RETURN(store_, contentstore::ContentStore::Open(std::move(store)));
    ContentLearnerOptions learner;
    learner.root = config_.root + "/content";
    learner.containerd = config_.content.containerd_address;
    learner.hosts_path = config_.registry.config_path;
    learner.store = store_.get();
    learner.sources = RecordedSources(client_.get(), config_.snapshotter.url_hosts);
    learner.client = client_.get();
    learner.log = log_;
    ASSIGN_OR_RETURN(learner_, ContentLearner::Create(std::move(learner)));
    contentservice::ContentOptions content;
    content.root = config_.root + "/content";
    content.lazy = learner_->blobs();
    content.log = log_;
    ASSIGN_OR_RETURN(content_, contentservice::Content::Open(std::move(content)));
    learner_->Start(content_.get());
    return absl::OkStatus();
  }
  contentservice::Content& content() { return *content_; }

 private:
  const Config config_;
  const std::function<void(absl::string_view)> log_;
  base::UniqueFd lock_;
  RegistryAccess access_{config_, log_};
  PlainHttpHosts plain_http_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<ContentLearner> learner_;
  std::unique_ptr<contentservice::Content> content_;
};

absl::Status RunImport(contentservice::Content& content, const std::string& directory, bool json, CliIo io) {
  ASSIGN_OR_RETURN(contentservice::ImportResult result, contentservice::Import(content, directory));
  if (json) {
    io.out << nlohmann::json{{"imported", result.blobs},
                             {"present", result.present},
                             {"skipped", result.skipped}}
                  .dump(2)
           << "\n";
    return absl::OkStatus();
  }
  io.out << absl::StrCat("imported ", result.blobs, " blobs from ", directory, "; ", result.present,
                         " were there\n");
  for (const std::string& path : result.skipped) {
    io.out << absl::StrCat("not a blob: ", base::Printable(path), "\n");
  }
  return absl::OkStatus();
}

absl::Status RunExport(contentservice::Content& content, const std::string& directory, bool unlazy, bool json,
                       CliIo io) {
  auto cancel = std::make_shared<base::CancelToken>();
  InterruptCancels interrupt(cancel);
  ASSIGN_OR_RETURN(contentservice::ExportResult result,
                   contentservice::Export(content, directory, unlazy, cancel));
  if (json) {
    nlohmann::json lazy = nlohmann::json::array();
    for (const base::Digest& digest : result.lazy) lazy.push_back(digest.ToString());
    io.out << nlohmann::json{{"exported", result.blobs},
                             {"present", result.present},
                             {"fetched", std::move(lazy)}}
                  .dump(2)
           << "\n";
    return absl::OkStatus();
  }
  io.out << absl::StrCat("exported ", result.blobs, " blobs to ", directory, ", ", result.lazy.size(),
                         " of them fetched; ", result.present, " were there\n");
  return absl::OkStatus();
}

}  // namespace

void AddContentCommands(CLI::App* app, ContentArguments* arguments, std::function<void()> chosen) {
  CLI::App* content =
      app->add_subcommand("content", "move between containerd's own content store and lazyblob's");
  content->require_subcommand(1);
  auto add = [&](const char* name, const char* what, ContentArguments::Command command) {
    CLI::App* one = content->add_subcommand(name, what);
    one->add_option("DIR", arguments->directory, "containerd's content directory")->capture_default_str();
    one->add_option("--config", arguments->config, "lazyblobd's configuration")->capture_default_str();
    one->callback([=] {
      arguments->command = command;
      chosen();
    });
    return one;
  };
  add("import", "take over the blobs of DIR, hard-linked where possible", ContentArguments::Command::kImport);
  add("export", "write all blobs to DIR, for a containerd with its own content store",
      ContentArguments::Command::kExport)
      ->add_flag("--unlazy", arguments->unlazy, "fetch the blobs that are not here, instead of refusing");
}

absl::Status RunContentCommand(const ContentArguments& arguments, const std::string& root, bool json,
                               CliIo io) {
  if (geteuid() != 0) return absl::PermissionDeniedError("must run as root: content is root's alone");
  ASSIGN_OR_RETURN(Config config, LoadConfig(arguments.config, /*required=*/false));
  if (!root.empty()) config.root = root;
  OfflineContent offline(std::move(config), &io.err);
  RETURN_IF_ERROR(offline.Open());
  if (arguments.command == ContentArguments::Command::kImport) {
    return RunImport(offline.content(), arguments.directory, json, io);
  }
  return RunExport(offline.content(), arguments.directory, arguments.unlazy, json, io);
}

}  // namespace lazyblob::daemon

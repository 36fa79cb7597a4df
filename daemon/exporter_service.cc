#include "daemon/exporter_service.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "daemon/client_watcher.h"
#include "daemon/credential_chain.h"
#include "daemon/error_details.h"
#include "daemon/event_stream.h"
#include "proto/exporter.grpc.pb.h"

namespace lazyblob::daemon {
namespace {

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
          ErrorDetailsOf(status)};
}

class Service final : public v1::Exporter::Service, public ExporterService {
 public:
  explicit Service(ExporterParts parts)
      : indexes_(parts.exporter.client), parts_(WithIndexes(std::move(parts), &indexes_)) {}

  grpc::Service* service() override { return this; }

  void CancelAll() override ABSL_LOCKS_EXCLUDED(mutex_) {
    std::vector<std::shared_ptr<base::CancelToken>> tokens;
    {
      absl::MutexLock lock(&mutex_);
      for (const auto& [id, running] : running_) tokens.push_back(running.cancel);
    }
    for (const auto& token : tokens) token->Cancel();
  }

  grpc::Status Export(grpc::ServerContext* context, const v1::ExportRequest* asked,
                      grpc::ServerWriter<v1::ExportEvent>* writer) override {
    if (!parts_.activity->Begin()) {
      return ToGrpc(absl::AbortedError("the daemon is just ending; try again"));
    }
    absl::Cleanup end = [this] { parts_.activity->End(parts_.mounts ? parts_.mounts() : 0); };
    v1::ExportRequest request = *asked;
    exporter::ExportCaller caller;
    caller.cancel = std::make_shared<base::CancelToken>();
    caller.credentials = CredentialsOfCall(request.access().docker_config(), parts_.credentials);
    absl::Status status = Enter(&request, caller.cancel);
    if (!status.ok()) return ToGrpc(status);
    absl::Cleanup leave = [&] {
      absl::MutexLock lock(&mutex_);
      running_.erase(request.id());
    };
    for (const std::string& host : request.access().plain_http_hosts()) {
      status = parts_.plain_http->Add(host);
      if (!status.ok()) return ToGrpc(status);
    }
    ClientWatcher watcher([context] { return context->IsCancelled(); }, caller.cancel);
    EventStream<v1::ExportEvent> stream(
        [writer](const v1::ExportEvent& event) { return writer->Write(event); },
        [context] { context->TryCancel(); });
    status = exporter::RunExport(request, parts_.exporter, caller, [&](const v1::ExportEvent& event) {
      Note(request.id(), event);
      event.has_progress() ? stream.Put(event, event.progress()) : stream.Put(event);
    });
    stream.Finish(*caller.cancel);
    return ToGrpc(status);
  }

  grpc::Status Cancel(grpc::ServerContext*, const v1::CancelExportRequest* request,
                      v1::CancelExportResponse*) override ABSL_LOCKS_EXCLUDED(mutex_) {
    std::shared_ptr<base::CancelToken> token;
    {
      absl::MutexLock lock(&mutex_);
      auto found = running_.find(request->id());
      if (found == running_.end()) {
        return ToGrpc(
            absl::NotFoundError(absl::StrCat("export ", base::Printable(request->id()), ": does not run")));
      }
      token = found->second.cancel;
    }
    token->Cancel();
    return grpc::Status::OK;
  }

  grpc::Status List(grpc::ServerContext*, const v1::ListExportsRequest*,
                    v1::ListExportsResponse* response) override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, running] : running_) *response->add_running() = running.report;
    return grpc::Status::OK;
  }

 private:
  struct Running {
    std::shared_ptr<base::CancelToken> cancel;
    v1::Report report;  // so far
  };

  // Gives the export a name if it has none.
  absl::Status Enter(v1::ExportRequest* request, std::shared_ptr<base::CancelToken> cancel)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    while (request->id().empty()) {
      const std::string name = absl::StrCat("export-", ++last_);
      if (running_.count(name) == 0) request->set_id(name);
    }
    Running running{std::move(cancel), {}};
    running.report.set_id(request->id());
    if (!running_.emplace(request->id(), std::move(running)).second) {
      return absl::AlreadyExistsError(
          absl::StrCat("export ", base::Printable(request->id()), ": one of this name runs already"));
    }
    return absl::OkStatus();
  }

  void Note(const std::string& id, const v1::ExportEvent& event) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (event.has_progress()) return;
    absl::MutexLock lock(&mutex_);
    v1::Report& report = running_[id].report;
    if (event.has_image_ready()) *report.mutable_images() = event.image_ready().ready();
    if (event.has_cache_ready()) *report.mutable_caches() = event.cache_ready().ready();
    if (event.event_case() == v1::ExportEvent::kWarning) report.add_warnings(event.warning());
    if (event.has_done()) report = event.done();
  }

  static ExporterParts WithIndexes(ExporterParts parts, exporter::IndexWriter* indexes) {
    parts.exporter.indexes = indexes;
    return parts;
  }

  exporter::IndexWriter indexes_;
  const ExporterParts parts_;
  absl::Mutex mutex_;
  uint64_t last_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, Running> running_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<ExporterService> ExporterService::Create(ExporterParts parts) {
  return std::make_unique<Service>(std::move(parts));
}

}  // namespace lazyblob::daemon

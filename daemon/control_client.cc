#include "daemon/control_client.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "base/cond_var.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/error_details.h"
#include "proto/blobs.grpc.pb.h"
#include "proto/control.grpc.pb.h"
#include "proto/exporter.grpc.pb.h"
#include "proto/maintenance.grpc.pb.h"

extern char** environ;

namespace lazyblob::daemon {
namespace {

namespace api = ::lazyblob::control::v1;

constexpr int kStartTimeoutMs = 60'000;
constexpr int kCancelAttempts = 20;

absl::Status FromGrpc(const grpc::Status& status) {
  return WithErrorDetails(
      absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()),
      status.error_details());
}

class Client final : public ControlClient {
 public:
  Client(base::UniqueFd directory, std::shared_ptr<grpc::Channel> channel)
      : directory_(std::move(directory)),
        stub_(api::Control::NewStub(channel)),
        exporter_(v1::Exporter::NewStub(channel)),
        blobs_(v1::Blobs::NewStub(channel)),
        maintenance_(maintenance::v1::Maintenance::NewStub(channel)) {}

  absl::StatusOr<api::MountStatus> Mount(const api::MountRequest& request, OnProgress progress) override {
    grpc::ClientContext context;
    return Drain(stub_->Mount(&context, request), progress);
  }
  absl::StatusOr<api::MountStatus> Index(const api::IndexRequest& request, OnProgress progress) override {
    grpc::ClientContext context;
    return Drain(stub_->Index(&context, request), progress);
  }
  absl::StatusOr<api::MountStatus> Prepare(const api::PrepareRequest& request,
                                           std::shared_ptr<base::CancelToken> cancel,
                                           OnProgress progress) override {
    grpc::ClientContext context;
    if (cancel == nullptr) cancel = std::make_shared<base::CancelToken>();
    auto registration = cancel->OnCancel([&context] { context.TryCancel(); });
    return Drain(stub_->Prepare(&context, request), progress);
  }
  absl::Status Export(const v1::ExportRequest& request, std::shared_ptr<base::CancelToken> cancel,
                      OnExportEvent on_event) override {
    grpc::ClientContext context;
    if (cancel == nullptr) cancel = std::make_shared<base::CancelToken>();
    v1::ExportRequest named = request;
    if (named.id().empty()) named.set_id(absl::StrCat("export-", getpid(), "-", absl::GetCurrentTimeNanos()));
    auto reader = exporter_->Export(&context, named);
    base::CancelToken ended;
    absl::Notification wanted;
    std::thread canceller([&] {
      wanted.WaitForNotification();
      // Until the daemon knows it; by its name, so that what it has to tell still comes.
      for (int i = 0; i < kCancelAttempts && !ended.cancelled(); ++i) {
        if (CancelExport(named.id()).ok()) return;
        base::SleepUnlessCancelled(absl::Milliseconds(100), &ended);
      }
      if (!ended.cancelled()) context.TryCancel();
    });
    absl::Mutex mutex;
    auto wake = [&] {
      const absl::MutexLock lock(&mutex);
      if (!wanted.HasBeenNotified()) wanted.Notify();
    };
    auto registration = cancel->OnCancel(wake);
    const absl::Cleanup join = [&] {
      ended.Cancel();
      wake();
      canceller.join();
    };
    v1::ExportEvent event;
    bool done = false;
    while (reader->Read(&event)) {
      done = done || event.has_done();
      on_event(event);
    }
    RETURN_IF_ERROR(FromGrpc(reader->Finish()));
    return done ? absl::OkStatus() : absl::InternalError("the daemon ended the export without a result");
  }
  absl::StatusOr<std::vector<v1::Lease>> Leases() override {
    grpc::ClientContext context;
    v1::ListLeasesResponse response;
    RETURN_IF_ERROR(FromGrpc(blobs_->ListLeases(&context, {}, &response)));
    return std::vector<v1::Lease>(response.leases().begin(), response.leases().end());
  }
  absl::Status ReleaseLease(const std::string& name) override {
    grpc::ClientContext context;
    v1::ReleaseLeaseRequest request;
    request.set_name(name);
    v1::ReleaseLeaseResponse response;
    return FromGrpc(blobs_->Release(&context, request, &response));
  }
  absl::StatusOr<std::vector<maintenance::v1::Garbage>> CollectGarbage(bool dry_run) override {
    grpc::ClientContext context;
    maintenance::v1::CollectRequest request;
    request.set_dry_run(dry_run);
    maintenance::v1::CollectResponse response;
    RETURN_IF_ERROR(FromGrpc(maintenance_->Collect(&context, request, &response)));
    return std::vector<maintenance::v1::Garbage>(response.garbage().begin(), response.garbage().end());
  }
  absl::Status Upgrade(const std::string& program) override {
    grpc::ClientContext context;
    api::UpgradeRequest request;
    request.set_program(program);
    api::UpgradeResponse response;
    return FromGrpc(stub_->Upgrade(&context, request, &response));
  }
  absl::Status Unmount(const std::string& directory) override {
    grpc::ClientContext context;
    api::UnmountRequest request;
    request.set_directory(directory);
    api::UnmountResponse response;
    return FromGrpc(stub_->Unmount(&context, request, &response));
  }
  absl::StatusOr<api::StatusResponse> Status(const std::string& target, bool probe) override {
    grpc::ClientContext context;
    api::StatusRequest request;
    request.set_target(target);
    request.set_probe(probe);
    api::StatusResponse response;
    RETURN_IF_ERROR(FromGrpc(stub_->Status(&context, request, &response)));
    return response;
  }

 private:
  absl::Status CancelExport(const std::string& id) {
    grpc::ClientContext context;
    context.set_deadline(gpr_time_from_seconds(10, GPR_TIMESPAN));
    v1::CancelExportRequest request;
    request.set_id(id);
    v1::CancelExportResponse response;
    return FromGrpc(exporter_->Cancel(&context, request, &response));
  }

  static absl::StatusOr<api::MountStatus> Drain(std::unique_ptr<grpc::ClientReader<api::MountEvent>> reader,
                                                OnProgress progress) {
    api::MountEvent event;
    api::MountStatus result;
    bool done = false;
    while (reader->Read(&event)) {
      if (event.has_progress()) progress(event.progress());
      if (event.has_done()) {
        result = event.done();
        done = true;
      }
    }
    RETURN_IF_ERROR(FromGrpc(reader->Finish()));
    if (!done) return absl::InternalError("the daemon ended the call without a result");
    return result;
  }

  base::UniqueFd directory_;  // the channel's address goes through it
  std::unique_ptr<api::Control::Stub> stub_;
  std::unique_ptr<v1::Exporter::Stub> exporter_;
  std::unique_ptr<v1::Blobs::Stub> blobs_;
  std::unique_ptr<maintenance::v1::Maintenance::Stub> maintenance_;
};

// Whether somebody listens there now.
absl::Status TryConnect(const std::string& path) {
  base::UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return absl::UnavailableError("no daemon");
  }
  return absl::OkStatus();
}

// Starts the daemon and waits for its one line: "ready" or "error: …".
absl::Status StartDaemon(const std::string& root) {
  char self[4096];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  if (n <= 0) return base::ErrnoStatus(errno, "readlink /proc/self/exe");
  std::string program(self, static_cast<size_t>(n));
  program = absl::StrCat(program.substr(0, program.rfind('/')), "/lazyblobd");

  int pipe_fds[2];
  if (pipe2(pipe_fds, 0) != 0) return base::ErrnoStatus(errno, "pipe");
  base::UniqueFd reader(pipe_fds[0]);
  base::UniqueFd writer(pipe_fds[1]);
  fcntl(reader.get(), F_SETFD, FD_CLOEXEC);

  std::string ready = absl::StrCat("--ready-fd=", writer.get());
  std::string words[] = {program, "--standalone", "--root", root, ready};
  char* argv[] = {words[0].data(), words[1].data(), words[2].data(),
                  words[3].data(), words[4].data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  std::string log = root + "/lazyblobd.log";
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  if (base::OpenFile(log, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600).ok()) {
    posix_spawn_file_actions_addopen(&actions, 2, log.c_str(), O_WRONLY | O_APPEND, 0600);
  } else {
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  }
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  pid_t pid = 0;
  int error = posix_spawn(&pid, program.c_str(), &actions, &attributes, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return base::ErrnoStatus(error, absl::StrCat("start ", program));
  writer.Reset();

  std::string line;
  while (line.find('\n') == std::string::npos) {
    pollfd wait{reader.get(), POLLIN, 0};
    if (poll(&wait, 1, kStartTimeoutMs) <= 0)
      return absl::DeadlineExceededError("lazyblobd did not become ready");
    char buffer[1024];
    ssize_t got = read(reader.get(), buffer, sizeof buffer);
    if (got <= 0) return absl::UnavailableError(absl::StrCat("lazyblobd ended while starting; see ", log));
    line.append(buffer, static_cast<size_t>(got));
  }
  absl::string_view text = absl::StripSuffix(line, "\n");
  if (text == "ready") return absl::OkStatus();
  absl::ConsumePrefix(&text, "error: ");
  return absl::FailedPreconditionError(text);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ControlClient>> ControlClient::Connect(const std::string& root) {
  auto directory = base::OpenFile(root, O_RDONLY | O_DIRECTORY);
  if (!directory.ok()) {
    if (absl::IsNotFound(directory.status()))
      return absl::UnavailableError(absl::StrCat("no daemon serves ", root));
    return directory.status();
  }
  std::string path = absl::StrCat("/proc/self/fd/", directory->get(), "/control.sock");
  if (!TryConnect(path).ok()) return absl::UnavailableError(absl::StrCat("no daemon serves ", root));
  auto channel = grpc::CreateChannel("unix:" + path, grpc::InsecureChannelCredentials());
  return std::make_unique<Client>(*std::move(directory), std::move(channel));
}

absl::StatusOr<std::unique_ptr<ControlClient>> ControlClient::ConnectOrStart(const std::string& root) {
  auto client = Connect(root);
  if (!absl::IsUnavailable(client.status())) return client;
  RETURN_IF_ERROR(base::MakeDirectories(root));
  // One start at a time: whoever comes second finds the first one's daemon.
  ASSIGN_OR_RETURN(base::UniqueFd turn,
                   base::OpenFile(root + "/start.lock", O_RDWR | O_CREAT | O_NOFOLLOW, 0600));
  if (flock(turn.get(), LOCK_EX) != 0)
    return base::ErrnoStatus(errno, absl::StrCat("lock ", root, "/start.lock"));
  client = Connect(root);
  if (!absl::IsUnavailable(client.status())) return client;
  RETURN_IF_ERROR(StartDaemon(root));
  return Connect(root);
}

}  // namespace lazyblob::daemon

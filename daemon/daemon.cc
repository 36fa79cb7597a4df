#include "daemon/daemon.h"

#include <malloc.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "contentstore/content_store.h"
#include "daemon/activity.h"
#include "daemon/control_service.h"
#include "daemon/image_layers.h"
#include "daemon/living_requesters.h"
#include "daemon/mount_manager.h"
#include "daemon/page_sweeper.h"
#include "daemon/plain_http_hosts.h"
#include "fuse/keeper_client.h"
#include "fuse/server.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::daemon {
namespace {

// How long a daemon that was started for one command waits for it.
constexpr absl::Duration kFirstCallGrace = absl::Seconds(20);
constexpr absl::Duration kSweepInterval = absl::Seconds(2);

void Announce(int ready_fd, absl::string_view line) {
  if (ready_fd < 0) return;
  std::string text = absl::StrCat(line, "\n");
  base::WriteFull(ready_fd, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(text.data()), text.size()))
      .IgnoreError();
  close(ready_fd);
}

// Sources by name, for layers that come back from disk.
absl::StatusOr<std::shared_ptr<contentstore::BlobSource>> MakeSource(registry::Client* client,
                                                                     absl::string_view name) {
  constexpr absl::string_view kRegistry = "registry:";
  constexpr absl::string_view kLayout = "layout:";
  if (name.substr(0, kRegistry.size()) == kRegistry) {
    ASSIGN_OR_RETURN(oci::Reference repository, oci::ParseReference(name.substr(kRegistry.size())));
    return contentstore::MakeRegistrySource(client, repository);
  }
  if (name.substr(0, kLayout.size()) == kLayout) {
    return contentstore::MakeLayoutSource(std::string(name.substr(kLayout.size())));
  }
  return absl::NotFoundError(absl::StrCat("no such kind of source: ", base::Printable(name)));
}

// The parts in the order they are built; members are destroyed in the opposite order.
class Daemon {
 public:
  explicit Daemon(DaemonOptions options) : options_(std::move(options)) {}

  absl::Status Start() {
    ASSIGN_OR_RETURN(keeper_, fuse::KeeperClient::Connect(base::UniqueFd(options_.keeper_fd)));
    ASSIGN_OR_RETURN(auto connection, keeper_->TakeConnection());

    registry::ClientOptions client;
    client.credentials = std::shared_ptr<const registry::CredentialsProvider>(&requesters_, [](auto*) {});
    RETURN_IF_ERROR(plain_http_.Load(options_.root + "/plain_http_hosts.json"));
    client.is_plain_http = [this](const std::string& host) { return plain_http_.Contains(host); };
    client_ = std::make_unique<registry::Client>(std::move(client));

    contentstore::ContentStoreOptions store;
    store.root = options_.root + "/layers";
    store.source_factory = [client = client_.get()](absl::string_view name) {
      return MakeSource(client, name);
    };
    ASSIGN_OR_RETURN(store_, contentstore::ContentStore::Open(std::move(store)));

    fuse::ServerOptions server;
    server.device = std::move(connection.device);
    server.replay_request = std::move(connection.init.request);
    server.replay_answer = std::move(connection.init.answer);
    server.on_init = [this](const fuse::InitExchange& init) { return keeper_->SaveInit(init); };
    server_ = std::make_unique<fuse::FuseServer>(store_.get(), std::move(server));
    RETURN_IF_ERROR(server_->Start());
    keeper_->OnPredecessorReaped([this] { server_->Resend().IgnoreError(); });

    ImageLayers::Parts shared;
    shared.root = options_.root;
    shared.client = client_.get();
    shared.store = store_.get();
    shared.mounter = keeper_.get();
    shared.reads = {[this](const base::Digest& layer) { server_->FailLayer(layer); },
                    [this](const base::Digest& layer) { server_->AllowLayer(layer); }};
    shared.plain_http = &plain_http_;
    layers_ = std::make_unique<ImageLayers>(shared);
    MountManager::Parts parts;
    parts.layers = layers_.get();
    parts.mounter = keeper_.get();
    parts.requesters = &requesters_;
    mounts_ = std::make_unique<MountManager>(parts);
    ASSIGN_OR_RETURN(std::vector<std::string> found, keeper_->Mounted());
    const std::set<std::string> mounted(found.begin(), found.end());
    layers_->mounts().Inherit(mounted);
    RETURN_IF_ERROR(mounts_->Restore(mounted));
    layers_->mounts().UnmountInherited();
    sweeper_ =
        std::make_unique<PageSweeper>(kSweepInterval, [this] { return layers_->mounts().DirectFiles(); });
    ASSIGN_OR_RETURN(control_, ControlServer::Start(options_.root, "control.sock", mounts_.get(),
                                                    store_.get(), &activity_));
    return absl::OkStatus();
  }

  void Serve() { activity_.Wait(options_.standalone, mounts_->List().size(), kFirstCallGrace); }

  // Whatever was started; the order matters: no new calls, then no mounts, then no connection.
  void Stop() {
    control_.reset();
    sweeper_.reset();
    if (mounts_ != nullptr) mounts_->UnmountAll();
    if (keeper_ != nullptr) keeper_->Shutdown().IgnoreError();  // unmounting needs the server
    if (server_ != nullptr) server_->Stop();
    mounts_.reset();
    layers_.reset();
    keeper_.reset();  // its callback uses the server
  }

  Activity& activity() { return activity_; }

 private:
  const DaemonOptions options_;
  Activity activity_;
  LivingRequesters requesters_;
  PlainHttpHosts plain_http_;
  std::unique_ptr<fuse::KeeperClient> keeper_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<fuse::FuseServer> server_;
  std::unique_ptr<ImageLayers> layers_;
  std::unique_ptr<MountManager> mounts_;
  std::unique_ptr<PageSweeper> sweeper_;
  std::unique_ptr<ControlServer> control_;
};

// Turns SIGTERM and SIGINT, blocked in every thread, into a request to stop. SIGUSR1 ends the thread itself.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&set_);
    for (int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&set_, signal);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
  }
  void Watch(Activity* activity) {
    thread_ = std::thread([this, activity] {
      int signal = 0;
      sigwait(&set_, &signal);
      if (signal != SIGUSR1) activity->RequestStop();
    });
  }
  ~StopSignals() {
    if (!thread_.joinable()) return;
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
  }

 private:
  sigset_t set_;
  std::thread thread_;
};

}  // namespace

absl::Status RunDaemon(const DaemonOptions& options) {
  mallopt(M_ARENA_MAX, 2);  // many threads, few of them busy: arenas cost more than they save
  StopSignals signals;
  Daemon daemon(options);
  absl::Status status = daemon.Start();
  if (status.ok()) {
    signals.Watch(&daemon.activity());
    Announce(options.ready_fd, "ready");
    daemon.Serve();
  } else {
    Announce(options.ready_fd, absl::StrCat("error: ", status.message()));
  }
  daemon.Stop();
  return status;
}

}  // namespace lazyblob::daemon

#include "daemon/daemon.h"

#include <malloc.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/crash_record.h"
#include "base/file.h"
#include "base/status.h"
#include "containerd/grpc_server.h"
#include "contentservice/content.h"
#include "contentservice/content_service.h"
#include "contentstore/content_store.h"
#include "daemon/activity.h"
#include "daemon/background_fill.h"
#include "daemon/blobs_service.h"
#include "daemon/content_learner.h"
#include "daemon/control_service.h"
#include "daemon/exporter_service.h"
#include "daemon/image_layers.h"
#include "daemon/maintenance_service.h"
#include "daemon/memory_limit.h"
#include "daemon/mount_manager.h"
#include "daemon/page_sweeper.h"
#include "daemon/plain_http_hosts.h"
#include "daemon/prepared_images.h"
#include "daemon/recorded_sources.h"
#include "daemon/registry_access.h"
#include "daemon/snapshot_layers.h"
#include "daemon/socket_address.h"
#include "exporter/leases.h"
#include "exporter/placer.h"
#include "exporter/publish.h"
#include "fuse/keeper_client.h"
#include "fuse/server.h"
#include "registry/client.h"
#include "snapshotter/snapshots_service.h"

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

// Everything the parts say is worth an operator's eye: level warning.
std::function<void(absl::string_view)> MakeLog(const std::string& level) {
  if (level == "error") return [](absl::string_view) {};
  return [](absl::string_view line) {
    const std::string text = absl::StrCat("lazyblobd: ", line, "\n");
    fwrite(text.data(), 1, text.size(), stderr);
  };
}

// A standalone daemon has no credentials but those that come with its mounts.
Config AccessConfig(const DaemonOptions& options) {
  Config config = options.config;
  if (options.standalone) config.credentials.docker_config.clear();
  return config;
}

// The parts in the order they are built; members are destroyed in the opposite order.
class Daemon {
 public:
  explicit Daemon(DaemonOptions options) : options_(std::move(options)) {}

  absl::Status Start() {
    ASSIGN_OR_RETURN(keeper_, fuse::KeeperClient::Connect(base::UniqueFd(options_.keeper_fd)));
    ASSIGN_OR_RETURN(fuse::KeeperClient::Connection connection, keeper_->TakeConnection());
    generation_ = connection.generation;
    RETURN_IF_ERROR(StartReading(std::move(connection)));
    RETURN_IF_ERROR(StartMounts());
    if (!options_.standalone) {
      if (options_.config.content.enabled) RETURN_IF_ERROR(StartContent());
      RETURN_IF_ERROR(StartSnapshots());
    }
    layers_->mounts().UnmountInherited();
    sweeper_ =
        std::make_unique<PageSweeper>(kSweepInterval, [this] { return layers_->mounts().DirectFiles(); });
    StartFill();
    ControlParts control;
    control.mounts = mounts_.get();
    control.prepared = prepared_.get();
    control.layers = layers_.get();
    control.store = store_.get();
    control.snapshotter = snapshotter_.get();
    control.activity = &activity_;
    control.fill = fill_.get();
    control.waiting_reads = [this] { return server_->waiting_reads(); };
    RETURN_IF_ERROR(StartExporter());
    StartMaintenance();
    control.beside = {exporter_->service(), blobs_->service(), maintenance_->service()};
    control.generation = generation_;
    control.replace = [this](const std::string& program) { return keeper_->Replace(program); };
    // The root is locked: nobody else listens there.
    ASSIGN_OR_RETURN(control_,
                     ControlServer::Start(root() + "/control.sock", control, Holder("control", true)));
    if (options_.standalone) return absl::OkStatus();
    CriProxy* const cri = access_.cri();
    snapshots_service_ = snapshotter::SnapshotsService::Create(snapshotter_.get());
    std::vector<grpc::Service*> services = {snapshots_service_->service()};
    if (content_service_ != nullptr) services.push_back(content_service_->service());
    ASSIGN_OR_RETURN(server_of_containerd_,
                     containerd::GrpcServer::Start(options_.config.address, services,
                                                   cri == nullptr ? nullptr : cri->service(),
                                                   Holder("containerd", successor())));
    NoteAddress(root(), options_.config.address);
    return absl::OkStatus();
  }

  void Serve() { activity_.Wait(options_.standalone, mounts_->List().size(), kFirstCallGrace); }

  // Whatever was started; the order matters: no new calls, then no mounts, then no connection. With
  // `hand_over` everything stays mounted for the successor, and reads wait for it.
  void Stop(bool hand_over) {
    if (hand_over && server_of_containerd_ != nullptr) server_of_containerd_->LeaveSocket();
    if (hand_over && control_ != nullptr) control_->LeaveSocket();
    server_of_containerd_.reset();
    snapshots_service_.reset();
    content_service_.reset();
    if (placer_ != nullptr) placer_->KeepSessions();
    if (exporter_ != nullptr) exporter_->CancelAll();
    if (blobs_ != nullptr) blobs_->CancelAll();
    control_.reset();
    blobs_.reset();
    exporter_.reset();
    placer_.reset();
    sweeper_.reset();
    fill_.reset();
    prepared_.reset();
    snapshotter_.reset();
    if (learner_ != nullptr) learner_->Stop();
    content_.reset();
    learner_.reset();
    if (!hand_over) {
      if (mounts_ != nullptr) mounts_->UnmountAll();
      if (keeper_ != nullptr) keeper_->Shutdown().IgnoreError();  // unmounting needs the server
    }
    if (server_ != nullptr) server_->Stop();
    snapshots_.reset();
    mounts_.reset();
    layers_.reset();
    keeper_.reset();  // its callback uses the server
  }

  Activity& activity() { return activity_; }
  bool successor() const { return generation_ > 1; }
  // From now on this program is what the keeper goes back to.
  void Ready() { keeper_->Ready().IgnoreError(); }

 private:
  const std::string& root() const { return options_.config.root; }

  // The keeper, as what outlives this process.
  containerd::SocketHolder Holder(const std::string& name, bool replace) {
    containerd::SocketHolder holder;
    holder.take = [this, name](const std::string& place) { return keeper_->TakeSocket(name, place); };
    holder.keep = [this, name](int socket, const std::string& place) {
      return keeper_->KeepSocket(name, place, socket);
    };
    holder.replace = replace;
    return holder;
  }

  // The kernel decides on its limit when a connection is made, and tells nobody: it is kept for successors.
  std::string LimitPath() const { return root() + "/fuse_request_limit"; }
  uint64_t RequestLimit(bool made_now) const {
    absl::StatusOr<std::string> kept = base::ReadFile(LimitPath(), 64);
    uint64_t limit = 0;
    if (!made_now && kept.ok() && absl::SimpleAtoi(*kept, &limit)) return limit;
    return fuse::KernelRequestLimit();
  }

  // Sources, cache and the FUSE server: from here on reads of what is mounted are answered.
  absl::Status StartReading(fuse::KeeperClient::Connection connection) {
    registry::ClientOptions client = access_.Options();
    RETURN_IF_ERROR(plain_http_.Load(root() + "/plain_http_hosts.json"));
    client.is_plain_http = [this](const std::string& host) { return plain_http_.Contains(host); };
    if (options_.standalone) client.local_hosts_may_be_insecure = false;  // --plain-http says so
    client_ = std::make_unique<registry::Client>(std::move(client));

    auto crashes = base::CrashRecord::Open(root() + "/crashes");
    if (crashes.ok()) {
      crashes_ = *std::move(crashes);
    } else {
      log_(absl::StrCat("an image that crashes this daemon will not be skipped: ",
                        base::Printable(crashes.status().message())));
    }
    contentstore::ContentStoreOptions store;
    store.root = root() + "/layers";
    store.may_parse = [this](const base::Digest& digest) {
      return crashes_ == nullptr ? absl::OkStatus() : crashes_->Check(digest.ToString());
    };
    store.source_factory = RecordedSources(client_.get(), options_.config.snapshotter.url_hosts);
    const Config::Cache& cache = options_.config.cache;
    store.keep_blobs = cache.keep_blobs;
    store.scrub_interval = cache.scrub;
    store.max_cache_bytes = cache.max_bytes;
    store.min_free_bytes = cache.min_free;
    store.max_pinned_bytes = cache.pinned_max == 0 ? cache.max_bytes / 2 : cache.pinned_max;
    if (cache.max_bytes != 0) store.max_spool_bytes = std::min(store.max_spool_bytes, cache.max_bytes / 2);
    const uint64_t memory = MemoryLimit();
    store.max_memory_bytes = std::clamp<uint64_t>(memory / 4, 8 << 20, store.max_memory_bytes);
    store.log = log_;
    ASSIGN_OR_RETURN(store_, contentstore::ContentStore::Open(std::move(store)));
    exporter::LeasesOptions leases;
    leases.directory = root() + "/leases";
    leases.store = store_.get();
    leases.sources = RecordedSources(client_.get(), options_.config.snapshotter.url_hosts);
    leases.log = log_;
    ASSIGN_OR_RETURN(leases_, exporter::Leases::Open(std::move(leases)));

    fuse::ServerOptions server;
    server.device = std::move(connection.device);
    server.replay_request = std::move(connection.init.request);
    server.replay_answer = std::move(connection.init.answer);
    server.request_limit = RequestLimit(/*made_now=*/server.replay_request.empty());
    server.on_init = [this, limit = server.request_limit](const fuse::InitExchange& init) {
      base::WriteFileAtomically(LimitPath(), absl::StrCat(limit, "\n")).IgnoreError();  // a guess will do
      return keeper_->SaveInit(init);
    };
    server.read_deadline = options_.config.fuse.read_deadline;
    server.log = log_;
    server_ = std::make_unique<fuse::FuseServer>(store_.get(), std::move(server));
    RETURN_IF_ERROR(server_->Start());
    keeper_->OnPredecessorReaped([this] { server_->Resend().IgnoreError(); });
    return absl::OkStatus();
  }

  void StartFill() {
    if (!options_.config.cache.fill) return;
    BackgroundFillOptions fill;
    fill.store = store_.get();
    fill.mounted = [this] { return layers_->mounts().Layers(); };
    fill_ = std::make_unique<BackgroundFill>(std::move(fill));
  }

  absl::Status StartMounts() {
    ImageLayers::Parts shared;
    shared.root = root();
    shared.client = client_.get();
    shared.store = store_.get();
    shared.mounter = keeper_.get();
    shared.reads = {[this](const base::Digest& layer) { server_->FailLayer(layer); },
                    [this](const base::Digest& layer) { server_->AllowLayer(layer); }};
    shared.plain_http = &plain_http_;
    shared.crashes = crashes_.get();
    layers_ = std::make_unique<ImageLayers>(shared);
    PreparedImagesOptions prepared;
    prepared.stream_plain = options_.config.snapshotter.plain_layers == "stream";
    prepared.compare_first = options_.config.snapshotter.compare_diff_ids == "mount";
    prepared.resolve_timeout = options_.config.snapshotter.resolve_timeout;
    prepared_ = std::make_unique<PreparedImages>(layers_.get(), prepared);
    MountManager::Parts parts;
    parts.layers = layers_.get();
    parts.mounter = keeper_.get();
    parts.requesters = access_.requesters();
    mounts_ = std::make_unique<MountManager>(parts);
    ASSIGN_OR_RETURN(std::vector<std::string> found, keeper_->Mounted());
    const std::set<std::string> mounted(found.begin(), found.end());
    layers_->mounts().Inherit(mounted);
    return mounts_->Restore(mounted);
  }

  // The key that containerd made of its client's: NAMESPACE/NUMBER/KEY.
  absl::StatusOr<std::string> FullKey(const std::string& key) {
    std::vector<std::string> found;
    const std::string end = absl::StrCat("/", key);
    RETURN_IF_ERROR(snapshotter_->List({"kind==active"}, [&](const snapshotter::Info& info) {
      if (info.name == key || absl::EndsWith(info.name, end)) found.push_back(info.name);
      return absl::OkStatus();
    }));
    if (found.size() == 1) return found.front();
    if (found.empty() || std::find(found.begin(), found.end(), key) != found.end()) return key;
    return absl::InvalidArgumentError(absl::StrCat("snapshot ", base::Printable(key), ": name one of ",
                                                   base::Printable(absl::StrJoin(found, ", "))));
  }

  // What containerd's snapshot has changed.
  absl::StatusOr<std::string> UpperDirectory(const std::string& asked) {
    ASSIGN_OR_RETURN(const std::string key, FullKey(asked));
    ASSIGN_OR_RETURN(std::vector<snapshotter::MountSpec> mounts, snapshotter_->Mounts(key));
    for (const snapshotter::MountSpec& mount : mounts) {
      for (const std::string& option : mount.options) {
        if (absl::StartsWith(option, "upperdir=")) return option.substr(9);
      }
      const auto& options = mount.options;
      const bool writable = std::find(options.begin(), options.end(), "rw") != options.end();
      if (mount.type == "bind" && writable) return mount.source;  // nothing is below it
    }
    return absl::FailedPreconditionError(
        absl::StrCat("snapshot ", base::Printable(key), ": a view has no changes; name an active snapshot"));
  }

  absl::Status StartExporter() {
    exporter::PlacerOptions placer;
    placer.client = client_.get();
    placer.journal = root() + "/uploads";
    placer.max_memory_bytes = std::clamp<uint64_t>(MemoryLimit() / 4, 16 << 20, placer.max_memory_bytes);
    ASSIGN_OR_RETURN(placer_, exporter::Placer::Create(std::move(placer)));
    ExporterParts parts;
    parts.exporter.client = client_.get();
    parts.exporter.store = store_.get();
    parts.exporter.placer = placer_.get();
    parts.exporter.put = exporter::MakePutDocument(client_.get());
    parts.exporter.staging = root() + "/staging";
    parts.exporter.leases = leases_.get();
    if (snapshotter_ != nullptr) {
      parts.exporter.snapshot = [this](const std::string& key) { return UpperDirectory(key); };
    }
    parts.plain_http = &plain_http_;
    parts.activity = &activity_;
    parts.credentials = access_.configured();
    parts.mounts = [this] { return mounts_->List().size(); };
    exporter_ = ExporterService::Create(std::move(parts));
    BlobsParts blobs;
    blobs.store = store_.get();
    blobs.leases = leases_.get();
    blobs.sources = RecordedSources(client_.get(), options_.config.snapshotter.url_hosts);
    blobs.plain_http = &plain_http_;
    blobs.activity = &activity_;
    blobs.credentials = access_.configured();
    blobs.mounts = [this] { return mounts_->List().size(); };
    blobs_ = BlobsService::Create(std::move(blobs));
    return absl::OkStatus();
  }

  void StartMaintenance() {
    MaintenanceParts parts;
    parts.garbage.root = root();
    parts.garbage.store = store_.get();
    parts.garbage.snapshotter = snapshotter_.get();
    parts.garbage.content = learner_ == nullptr ? nullptr : learner_->blobs();
    parts.garbage.in_use = [this] {
      std::set<base::Digest> layers = layers_->mounts().Layers();
      layers.merge(leases_->Held());
      return layers;
    };
    parts.activity = &activity_;
    parts.mounts = [this] { return mounts_->List().size(); };
    maintenance_ = MaintenanceService::Create(std::move(parts));
  }

  // containerd's content store: what it holds, and layers that are known without being held.
  absl::Status StartContent() {
    ContentLearnerOptions learner;
    learner.root = root() + "/content";
    learner.containerd = options_.config.content.containerd_address;
    learner.hosts_path = options_.config.registry.config_path;
    learner.store = store_.get();
    learner.sources = RecordedSources(client_.get(), options_.config.snapshotter.url_hosts);
    learner.client = client_.get();
    learner.log = log_;
    ASSIGN_OR_RETURN(learner_, ContentLearner::Create(std::move(learner)));
    contentservice::ContentOptions content;
    content.root = root() + "/content";
    content.lazy = learner_->blobs();
    content.log = log_;
    ASSIGN_OR_RETURN(content_, contentservice::Content::Open(std::move(content)));
    learner_->Start(content_.get());
    content_service_ = contentservice::ContentService::Create(content_.get());
    return absl::OkStatus();
  }

  absl::Status StartSnapshots() {
    SnapshotLayers::Options snapshots;
    ASSIGN_OR_RETURN(snapshots.mode, fuse::ParseMode(options_.config.fuse.mode));
    snapshots.max_cache_bytes = options_.config.cache.max_bytes;
    snapshots.url_hosts = options_.config.snapshotter.url_hosts;
    snapshots.held = [this] { return leases_->Held(); };
    snapshots.log = log_;
    snapshots_ = std::make_unique<SnapshotLayers>(layers_.get(), prepared_.get(), snapshots);
    snapshotter::SnapshotterOptions options;
    options.root = root();
    options.layers = snapshots_.get();
    options.chains = learner_.get();
    options.log = log_;
    ASSIGN_OR_RETURN(snapshotter_, snapshotter::Snapshotter::Open(std::move(options)));
    return absl::OkStatus();
  }

  const DaemonOptions options_;
  const std::function<void(absl::string_view)> log_ = MakeLog(options_.config.log_level);
  Activity activity_;
  RegistryAccess access_{AccessConfig(options_), log_};
  PlainHttpHosts plain_http_;
  uint64_t generation_ = 0;
  std::unique_ptr<fuse::KeeperClient> keeper_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<base::CrashRecord> crashes_;  // null: it cannot be kept
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<exporter::Leases> leases_;
  std::unique_ptr<fuse::FuseServer> server_;
  std::unique_ptr<ImageLayers> layers_;
  std::unique_ptr<PreparedImages> prepared_;
  std::unique_ptr<MountManager> mounts_;
  std::unique_ptr<SnapshotLayers> snapshots_;
  std::unique_ptr<ContentLearner> learner_;  // null, as the next two, unless [content] is enabled
  std::unique_ptr<contentservice::Content> content_;
  std::unique_ptr<contentservice::ContentService> content_service_;
  std::unique_ptr<snapshotter::Snapshotter> snapshotter_;
  std::unique_ptr<PageSweeper> sweeper_;
  std::unique_ptr<BackgroundFill> fill_;  // null unless cache.fill
  std::unique_ptr<exporter::Placer> placer_;
  std::unique_ptr<ExporterService> exporter_;
  std::unique_ptr<BlobsService> blobs_;
  std::unique_ptr<MaintenanceService> maintenance_;
  std::unique_ptr<ControlServer> control_;
  std::unique_ptr<snapshotter::SnapshotsService> snapshots_service_;
  std::unique_ptr<containerd::GrpcServer> server_of_containerd_;
};

// Turns SIGTERM, SIGINT and SIGHUP, blocked in every thread, into a request to stop. SIGUSR1 ends the thread
// itself.
class StopSignals {
 public:
  // `keeper_fd`: the socket that the keeper has made.
  explicit StopSignals(int keeper_fd) : keeper_(fuse::KeeperProcess(keeper_fd)) {
    sigemptyset(&set_);
    for (int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&set_, signal);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    signal(SIGPIPE, SIG_IGN);
  }
  void Watch(Activity* activity) {
    thread_ = std::thread([this, activity] {
      int signal = 0;
      sigwait(&set_, &signal);
      if (signal == SIGUSR1) return;
      // The keeper's death sends SIGTERM. If somebody kept what it held, its successor goes on from here.
      hand_over_ = signal == SIGHUP || getppid() != keeper_;
      activity->RequestStop();
    });
  }
  // Whether a successor is to find everything as it is.
  bool hand_over() const { return hand_over_; }
  ~StopSignals() {
    if (!thread_.joinable()) return;
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
  }

 private:
  const pid_t keeper_;
  sigset_t set_;
  std::atomic<bool> hand_over_{false};
  std::thread thread_;
};

}  // namespace

absl::Status RunDaemon(const DaemonOptions& options) {
  prctl(PR_SET_DUMPABLE, 0);           // credentials are in memory: no core files, no other process looks in
  mallopt(M_ARENA_MAX, 2);             // many threads, few of them busy: arenas cost more than they save
  mallopt(M_MMAP_THRESHOLD, 1 << 20);  // pieces of blobs go back to the kernel, whatever was freed before
  StopSignals signals(options.keeper_fd);
  Daemon daemon(options);
  absl::Status status = daemon.Start();
  if (status.ok()) {
    signals.Watch(&daemon.activity());
    daemon.Ready();
    Announce(options.ready_fd, "ready");
    daemon.Serve();
  } else {
    Announce(options.ready_fd, absl::StrCat("error: ", status.message()));
  }
  // A successor that cannot start leaves everything to the next one.
  daemon.Stop(status.ok() ? signals.hand_over() : daemon.successor());
  return status;
}

}  // namespace lazyblob::daemon

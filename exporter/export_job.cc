#include "exporter/export_job.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "base/status.h"
#include "exporter/artifact.h"
#include "exporter/assembly.h"
#include "exporter/content.h"
#include "exporter/internal/at_once.h"
#include "exporter/internal/commit_gate.h"
#include "exporter/local_destinations.h"
#include "exporter/spec.h"
#include "exporter/unlazy.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {
namespace {

constexpr absl::Duration kResolveDeadline = absl::Minutes(2);

class Job {
 public:
  Job(const v1::ExportRequest& request, const ExportParts& parts, const ExportCaller& caller,
      const OnEvent& on_event)
      : request_(request), parts_(parts), caller_(caller), on_event_(on_event) {
    report_.set_id(request.id());
  }

  absl::Status Run() {
    absl::Status status = RunBoth();
    stop_->Cancel();
    maker_.reset();  // nothing is told after the report
    v1::ExportEvent event;
    {
      absl::MutexLock lock(&mutex_);
      if (!status.ok() && report_.image_error().empty() && report_.cache_error().empty()) {
        report_.set_image_error(std::string(status.message()));
      }
      report_.set_uploaded_bytes(uploaded_);
      report_.set_source_bytes(read_);
      *event.mutable_done() = report_;
    }
    Emit(event);
    return status;
  }

 private:
  void Emit(const v1::ExportEvent& event) ABSL_LOCKS_EXCLUDED(event_mutex_) {
    absl::MutexLock lock(&event_mutex_);
    if (on_event_) on_event_(event);
  }
  void Tell(const v1::Progress& progress) {
    v1::ExportEvent event;
    *event.mutable_progress() = progress;
    Emit(event);
  }
  void Warn(const std::string& warning) ABSL_LOCKS_EXCLUDED(mutex_) {
    v1::ExportEvent event;
    event.set_warning(warning);
    {
      absl::MutexLock lock(&mutex_);
      report_.add_warnings(warning);
    }
    Emit(event);
  }

  registry::CallContext ResolveCall() const {
    registry::CallContext call;
    call.deadline = base::SystemClock().Monotonic() + kResolveDeadline;
    call.cancel = stop_;
    call.credentials = caller_.credentials;
    return call;
  }

  using Destinations = google::protobuf::RepeatedPtrField<std::string>;

  // For content that goes to `destinations`.
  ContentParts Reading(const Destinations& destinations, bool keep) const {
    // In a lease layers are to stay lazy; what is kept is in it.
    const bool to_store = std::any_of(destinations.begin(), destinations.end(),
                                      [](const std::string& one) { return absl::StartsWith(one, "store:"); });
    ContentParts parts;
    parts.client = parts_.client;
    parts.store = parts_.store;
    parts.keep = keep || request_.keep() || to_store;
    parts.keep_blobs = request_.keep() && !to_store;
    return parts;
  }

  absl::StatusOr<Content> Resolve(const v1::Image& image) {
    ASSIGN_OR_RETURN(const ImageSource source, ParseImageSource(image.base()));
    std::optional<oci::Platform> platform;
    if (!image.all_platforms()) {
      platform = oci::HostPlatform();
      if (!image.platform().empty()) {
        ASSIGN_OR_RETURN(platform, oci::ParsePlatform(image.platform()));
      }
    }
    const ContentParts reading = Reading(request_.destinations(), request_.unlazy());
    if (const auto* reference = std::get_if<oci::ImageReference>(&source)) {
      return ReadContent(reading, *reference, platform, ResolveCall());
    }
    RETURN_IF_ERROR(NeedLeases());
    ASSIGN_OR_RETURN(auto layout, parts_.leases->Image(std::get<StoreDestination>(source).name));
    return ReadContent(reading, std::move(layout), image.base(), platform, ResolveCall());
  }

  absl::Status NeedLeases() const {
    if (parts_.leases != nullptr) return absl::OkStatus();
    return absl::FailedPreconditionError("store: is only for exports of a daemon");
  }

  bool IsCopy(const v1::Image& image) const {
    return image.layers().empty() && image.config_file().empty() && image.annotations().empty() &&
           request_.cache().format() != v1::INLINE;
  }

  // Checks, resolves and starts what is to be made; then image and cache run side by side.
  absl::Status RunBoth() {
    ASSIGN_OR_RETURN(CheckedRequest checked, CheckRequest(request_));
    if (request_.index() != v1::INDEX_UNSPECIFIED && parts_.indexes == nullptr) {
      return absl::FailedPreconditionError("indexes of several platforms are only for exports of a daemon");
    }
    for (const std::string& warning : checked.warnings) Warn(warning);
    RETURN_IF_ERROR(StartMaking());
    cache_.request = &request_;
    // What the image wants is made first.
    for (const v1::Image& image : request_.images()) RETURN_IF_ERROR(AddLayers(image.layers()).status());
    ASSIGN_OR_RETURN(cache_.layers, AddLayers(request_.cache().layers(), true));
    const bool with_cache = !checked.caches.empty();
    const bool with_image = !request_.images().empty() || request_.has_artifact();
    absl::Status image;
    absl::Status cache;
    auto run_image = [&] {
      image = Ended(request_.has_artifact() ? Artifact(checked.images) : Images(checked.images), false);
    };
    auto run_cache = [&] { cache = Ended(Caches(checked.caches), true); };
    if (with_image && with_cache && request_.parallel() != v1::OFF) {
      std::thread beside(run_cache);
      run_image();
      beside.join();
    } else {
      if (with_image) run_image();
      const bool give_up = !image.ok() && request_.on_failure() == v1::FAIL_FAST;
      if (with_cache && !give_up) run_cache();
    }
    if (!with_image) return cache;
    const bool for_cache = absl::IsCancelled(image) && first_failed_ == 2 && !caller_.cancel->cancelled();
    if (!image.ok() && !for_cache) return WithMissing(image, cache);
    if (!cache.ok() && request_.on_failure() != v1::INDEPENDENT &&
        request_.on_failure() != v1::ON_FAILURE_UNSPECIFIED) {
      return base::Annotate(cache, "cache");
    }
    if (!cache.ok()) Warn(absl::StrCat("the cache was not exported: ", cache.message()));
    return image;
  }

  // What nobody can provide is listed of both.
  static absl::Status WithMissing(const absl::Status& image, const absl::Status& cache) {
    auto missing = contentstore::GetMissingProviders(image);
    const auto more = contentstore::GetMissingProviders(cache);
    if (missing.empty() || more.empty()) return image;
    std::set<base::Digest> named;
    for (const auto& one : missing) named.insert(one.digest);
    for (const auto& one : more) {
      if (named.insert(one.digest).second) missing.push_back(one);
    }
    return contentstore::ProviderMissingError(missing);
  }

  // Keeps what one of both ended with, and ends the other if that is wanted.
  absl::Status Ended(const absl::Status& status, bool is_cache) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (status.ok()) return status;
    {
      absl::MutexLock lock(&mutex_);
      const std::string message(status.message());
      is_cache ? report_.set_cache_error(message) : report_.set_image_error(message);
    }
    int none = 0;
    first_failed_.compare_exchange_strong(none, is_cache ? 2 : 1);
    if (request_.on_failure() == v1::FAIL_FAST) stop_->Cancel();
    return status;
  }

  absl::Status StartMaking() {
    bool any = !request_.cache().layers().empty() || request_.has_artifact();
    for (const v1::Image& image : request_.images()) any = any || !image.layers().empty();
    if (!any) return absl::OkStatus();
    RETURN_IF_ERROR(base::MakeDirectories(parts_.staging));
    MakeOptions options;
    options.staging = parts_.staging;
    options.snapshot = parts_.snapshot;
    ASSIGN_OR_RETURN(options.compression, CompressionOf(request_.compression()));
    options.level = request_.compression_level();
    options.source_date_epoch = request_.source_date_epoch();
    options.docker_media_types = request_.docker_media_types();
    options.cancel = stop_;
    options.progress = [this](const v1::Progress& progress) { Tell(progress); };
    maker_ = std::make_unique<LayerMaker>(std::move(options));
    return absl::OkStatus();
  }

  // Starts layers; one that was started already is made once, whoever wants it.
  absl::StatusOr<MadeLayers> AddLayers(const google::protobuf::RepeatedPtrField<v1::LayerSource>& sources,
                                       bool cache = false) ABSL_LOCKS_EXCLUDED(mutex_) {
    MadeLayers layers;
    for (const v1::LayerSource& source : sources) {
      absl::MutexLock lock(&mutex_);
      auto known = made_.find(source.source());
      if (known == made_.end()) {
        ASSIGN_OR_RETURN(auto layer, maker_->Add(source, cache));
        known = made_.emplace(source.source(), std::move(layer)).first;
      }
      layers.push_back(known->second);
    }
    return layers;
  }

  contentstore::FetchContext Fetch() const {
    contentstore::FetchContext fetch;
    fetch.cause = contentstore::FetchCause::kStream;
    fetch.cancel = stop_;
    fetch.credentials = caller_.credentials;
    return fetch;
  }

  absl::StatusOr<ImageAssembly> Start(const v1::Image& image) {
    ImageAssembly assembly;
    assembly.request = &request_;
    assembly.image = &image;
    ASSIGN_OR_RETURN(assembly.layers, AddLayers(image.layers()));
    if (request_.cache().format() == v1::INLINE) assembly.cache = &cache_;
    if (image.base() != "scratch") {
      ASSIGN_OR_RETURN(assembly.base, Resolve(image));
    }
    return assembly;
  }

  absl::Status Images(const std::vector<Destination>& destinations) {
    std::vector<ImageAssembly> assemblies;
    Content early;
    bool copies_only = true;
    for (const v1::Image& image : request_.images()) {
      ASSIGN_OR_RETURN(ImageAssembly assembly, Start(image));
      copies_only = copies_only && IsCopy(image);
      Content part = EarlyContent(assembly);
      for (ContentBlob& blob : part.blobs) early.blobs.push_back(std::move(blob));
      assemblies.push_back(std::move(assembly));
    }
    Content whole;
    auto finish = [&]() -> absl::Status {
      if (request_.cache().format() == v1::INLINE) RETURN_IF_ERROR(Import());
      std::vector<Content> contents;
      for (ImageAssembly& assembly : assemblies) {
        if (IsCopy(*assembly.image)) {
          contents.push_back(std::move(*assembly.base));
          continue;
        }
        ASSIGN_OR_RETURN(Content one, WholeContent(assembly, Fetch()));
        contents.push_back(std::move(one));
      }
      ASSIGN_OR_RETURN(whole, JoinPlatforms(std::move(contents), request_, Fetch()));
      return absl::OkStatus();
    };
    const bool finished = copies_only || request_.unlazy();
    if (finished) RETURN_IF_ERROR(finish());
    if (request_.unlazy()) {
      RETURN_IF_ERROR(
          Unlazy(whole, parts_.store, Fetch(), [this](const v1::Progress& progress) { Tell(progress); }));
    }
    ASSIGN_OR_RETURN(v1::AllReady ready, PutAll(finished ? whole : early, finished, finish, whole,
                                                destinations, Priority::kImage));
    if (!ready.ready().empty()) ImageReady(ready);
    return absl::OkStatus();
  }

  void ImageReady(const v1::AllReady& ready) ABSL_LOCKS_EXCLUDED(mutex_) {
    v1::ExportEvent event;
    *event.mutable_image_ready() = ready;
    {
      absl::MutexLock lock(&mutex_);
      *report_.mutable_images() = ready.ready();
    }
    Emit(event);
  }

  absl::Status Artifact(const std::vector<Destination>& destinations) {
    google::protobuf::RepeatedPtrField<v1::LayerSource> sources;
    for (const v1::ArtifactLayer& layer : request_.artifact().layers()) {
      sources.Add()->set_source(layer.source());
    }
    ImageAssembly assembly;
    ASSIGN_OR_RETURN(assembly.layers, AddLayers(sources));
    ASSIGN_OR_RETURN(const auto subject, SubjectOf(request_.artifact(), parts_.client, ResolveCall()));
    Content whole;
    auto finish = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(whole, WholeArtifact(request_.artifact(), assembly.layers, subject, stop_.get()));
      return absl::OkStatus();
    };
    ASSIGN_OR_RETURN(v1::AllReady ready,
                     PutAll(EarlyContent(assembly), false, finish, whole, destinations, Priority::kImage));
    ImageReady(ready);
    return absl::OkStatus();
  }

  // Reads what the cache takes over. Once, by whoever makes the cache.
  absl::Status Import() {
    ImportOptions options;
    options.plain = request_.cache().format() == v1::PLAIN;
    if (options.plain) {
      for (const v1::LayerSource& layer : request_.cache().layers())
        options.skip.insert(PlainCacheName(layer));
    }
    options.fetch = Fetch();
    for (const std::string& import : request_.cache().imports()) {
      ASSIGN_OR_RETURN(const oci::ImageReference reference, oci::ParseImageReference(import));
      options.call = ResolveCall();
      RETURN_IF_ERROR(
          ImportCache(Reading(request_.cache().destinations(), false), reference, options, &cache_.imported));
    }
    for (const std::string& warning : cache_.imported.warnings) Warn(warning);
    return absl::OkStatus();
  }

  absl::Status Caches(const std::vector<Destination>& destinations) {
    RETURN_IF_ERROR(Import());
    const Content early = EarlyCache(cache_);
    Content whole;
    auto finish = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(whole, WholeCache(cache_, stop_.get()));
      return absl::OkStatus();
    };
    ASSIGN_OR_RETURN(v1::AllReady ready, PutAll(early, false, finish, whole, destinations, Priority::kCache));
    v1::ExportEvent event;
    *event.mutable_cache_ready() = ready;
    {
      absl::MutexLock lock(&mutex_);
      *report_.mutable_caches() = ready.ready();
    }
    Emit(event);
    return absl::OkStatus();
  }

  // All destinations side by side; a failure of one ends the others, and none has a name then. `finish` makes
  // `whole`, unless `finished`.
  absl::StatusOr<v1::AllReady> PutAll(const Content& early, bool finished,
                                      const std::function<absl::Status()>& finish, const Content& whole,
                                      const std::vector<Destination>& destinations, Priority priority) {
    auto stop = std::make_shared<base::CancelToken>();
    auto registration = stop_->OnCancel([stop] { stop->Cancel(); });
    absl::Mutex mutex;
    std::optional<absl::Status> made;
    if (finished) made = absl::OkStatus();
    auto get_whole = [&]() -> absl::StatusOr<const Content*> {
      absl::MutexLock lock(&mutex);  // the first one makes it, the others wait for that
      if (!made.has_value()) made = finish();
      if (!made->ok()) return *made;
      return &whole;
    };
    std::vector<oci::Reference> references;
    std::vector<const Destination*> others;
    for (const Destination& destination : destinations) {
      if (const auto* reference = std::get_if<oci::Reference>(&destination)) {
        references.push_back(*reference);
      } else {
        others.push_back(&destination);
      }
    }
    std::vector<v1::Ready> ready;
    std::vector<v1::Ready> local(others.size());
    const size_t tasks = others.size() + (references.empty() ? 0 : 1);
    CommitGate gate(tasks, !references.empty(), stop);
    RETURN_IF_ERROR(AtOnce(tasks, tasks, stop.get(), [&](size_t i) -> absl::Status {
      if (i == others.size()) {
        PublishOptions publishing = Publishing(stop, priority);
        publishing.prepared = [&gate] { return gate.WaitToTag(); };
        ASSIGN_OR_RETURN(ready, Publish(early, get_whole, references, publishing));
        gate.Tagged();
        return absl::OkStatus();
      }
      ASSIGN_OR_RETURN(const Content* content, get_whole());
      ASSIGN_OR_RETURN(LocalOptions writing, Writing(stop, priority));
      writing.prepared = [&gate] { return gate.WaitToCommit(); };
      ASSIGN_OR_RETURN(local[i], WriteLocal(*content, *others[i], writing));
      return absl::OkStatus();
    }));
    v1::AllReady all;
    for (v1::Ready& one : ready) *all.add_ready() = std::move(one);
    for (v1::Ready& one : local) *all.add_ready() = std::move(one);
    return all;
  }

  PublishOptions Publishing(const std::shared_ptr<base::CancelToken>& stop, Priority priority) {
    PublishOptions options;
    options.placer = parts_.placer;
    options.put = parts_.put;
    options.priority = priority;
    options.cancel = stop;
    options.credentials = caller_.credentials;
    options.progress = [this](const v1::Progress& progress) { Tell(progress); };
    options.uploaded = &uploaded_;
    options.read = &read_;
    if (request_.index() != v1::INDEX_UNSPECIFIED && priority == Priority::kImage) {
      options.indexes = parts_.indexes;
      options.append = request_.index() == v1::INDEX_APPEND;
    }
    return options;
  }

  absl::StatusOr<LocalOptions> Writing(const std::shared_ptr<base::CancelToken>& stop, Priority priority) {
    LocalOptions options;
    options.cache = priority == Priority::kCache;
    options.append = request_.index() == v1::INDEX_APPEND && !options.cache;
    options.artifact = request_.images_size() == 1 && request_.images(0).artifact();
    if (options.artifact && !request_.images(0).all_platforms()) {
      options.platform = oci::HostPlatform();
      if (!request_.images(0).platform().empty()) {
        ASSIGN_OR_RETURN(options.platform, oci::ParsePlatform(request_.images(0).platform()));
      }
    }
    options.cancel = stop;
    options.credentials = caller_.credentials;
    options.progress = [this](const v1::Progress& progress) { Tell(progress); };
    return options;
  }

  absl::StatusOr<v1::Ready> WriteLocal(const Content& content, const Destination& destination,
                                       const LocalOptions& options) {
    if (const auto* layout = std::get_if<oci::LayoutReference>(&destination)) {
      return WriteToLayout(content, *layout, options);
    }
    if (const auto* archive = std::get_if<ArchiveDestination>(&destination)) {
      return WriteToArchive(content, *archive, options);
    }
    if (const auto* store = std::get_if<StoreDestination>(&destination)) {
      RETURN_IF_ERROR(NeedLeases());
      return parts_.leases->HoldImage(store->name, content, request_.keep(), options);
    }
    return WriteToDirectory(content, std::get<DirectoryDestination>(destination), options);
  }

  const v1::ExportRequest& request_;
  const ExportParts& parts_;
  const ExportCaller& caller_;
  const OnEvent& on_event_;
  const std::shared_ptr<base::CancelToken> stop_ = std::make_shared<base::CancelToken>();
  const base::CancelToken::Registration caller_gone_{
      caller_.cancel->OnCancel([stop = stop_] { stop->Cancel(); })};
  std::atomic<uint64_t> uploaded_{0};
  std::atomic<uint64_t> read_{0};
  absl::Mutex event_mutex_;  // held while an event is given out; nothing else is locked under it
  absl::Mutex mutex_;
  v1::Report report_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<MadeLayer>> made_ ABSL_GUARDED_BY(mutex_);  // by source
  std::atomic<int> first_failed_{0};                                                // 1: image, 2: cache
  CacheAssembly cache_;
  std::unique_ptr<LayerMaker> maker_;  // tells of its progress until it is gone
};

}  // namespace

absl::Status RunExport(const v1::ExportRequest& request, const ExportParts& parts, const ExportCaller& caller,
                       const OnEvent& on_event) {
  return Job(request, parts, caller, on_event).Run();
}

}  // namespace lazyblob::exporter

#include "contentstore/content_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/cond_var.h"
#include "base/crash_record.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "contentstore/internal/blob_spools.h"
#include "contentstore/internal/cache_budget.h"
#include "contentstore/internal/fetch_engine.h"
#include "contentstore/internal/layer.h"
#include "contentstore/internal/layer_builder.h"
#include "contentstore/internal/scrub.h"
#include "contentstore/internal/shared_task.h"
#include "contentstore/internal/store_root.h"
#include "contentstore/internal/unlazy.h"
#include "contentstore/internal/whole_read.h"

namespace lazyblob::contentstore {
namespace {

// Whole layers that are indexed or unlazied at the same time.
constexpr int kLayerThreads = 8;  // for layers of one registry
// Of threads for one registry there are so many: room for others while some hang.
constexpr int kHosts = 8;
constexpr int kRemoveLooks = 50;

// Lives while a thread parses bytes of the layer: where it dies, it is known of what.
struct Parsing {
  explicit Parsing(const Layer& layer) : subject(layer.descriptor().digest.ToString()) {
    base::FaultPoint(absl::StrCat("contentstore.parse/", layer.descriptor().digest.ToString())).IgnoreError();
  }
  const base::CrashSubject subject;
};

absl::Status MayParse(Layer& layer) {
  if (!layer.refused().ok() && layer.body() == nullptr) layer.SetNotLazyReason(kReasonCrashed);
  return layer.refused();
}

class Store final : public ContentStore {
 public:
  explicit Store(ContentStoreOptions options)
      : options_(std::move(options)),
        layers_directory_(options_.root + "/layers"),
        budget_(std::make_shared<CacheBudget>(CacheLimits{
            options_.max_cache_bytes, options_.min_free_bytes, options_.max_pinned_bytes,
            options_.free_bytes ? options_.free_bytes : FreeBytesOf(options_.root), options_.clock})),
        spools_({options_.blob_window_bytes, options_.blob_idle, options_.max_spool_bytes,
                 options_.keep_blobs, budget_, options_.clock, options_.log, options_.limits}),
        builder_options_{options_.limits, options_.log, &spools_, budget_},
        engine_(std::make_shared<FetchEngine>(
            FetchEngineOptions{{options_.min_range_bytes, options_.max_range_bytes, options_.max_memory_bytes,
                                options_.fetch_threads, kHosts * options_.fetch_threads},
                               options_.clock,
                               options_.log,
                               [this](auto& layer, auto& context) { return Unlazy(layer, context, {}); }})) {}
  ~Store() override;
  absl::Status Start();

  absl::StatusOr<std::shared_ptr<LazyLayer>> AddHandler(const DescriptorHandler& handler) override;
  std::shared_ptr<LazyLayer> Find(const base::Digest& digest) override;
  std::shared_ptr<LazyLayer> FindById(uint32_t id) override;
  std::vector<std::shared_ptr<LazyLayer>> Layers() override;
  absl::Status EnsureIndexed(LazyLayer& layer, bool keep_data, const FetchContext& context,
                             const Progress& progress) override;
  absl::Status EnsureIndexedFromToc(LazyLayer& layer, const FetchContext& context) override;
  absl::Status Unlazy(LazyLayer& layer, const FetchContext& context, const Progress& progress) override;
  absl::Status ReadBlobAt(LazyLayer& layer, registry::ByteRange range, registry::BodySink sink,
                          const FetchContext& context) override;
  absl::StatusOr<size_t> ReadBlob(LazyLayer& layer, uint64_t offset, absl::Span<uint8_t> out,
                                  const FetchContext& context) override;
  bool TryReadBlob(LazyLayer& layer, uint64_t offset, absl::Span<uint8_t> out) override;
  absl::StatusOr<std::string> KeepBlob(LazyLayer& layer, const FetchContext& context,
                                       const Progress& progress) override;
  std::vector<std::string> SourceNames(LazyLayer& layer) override;
  absl::StatusOr<std::shared_ptr<const void>> PinForMount(LazyLayer& layer, bool mounted) override {
    return static_cast<Layer&>(layer).PinForMount(mounted);
  }
  absl::Status Remove(const base::Digest& digest) override;
  ScrubStatus scrub_status() const override { return scrubber_->status(); }

 private:
  // The whole-layer work going on for a layer. Entries stay until the layer is removed.
  struct LayerTasks {
    std::shared_ptr<SharedTask> toc;
    std::shared_ptr<SharedTask> index;
    std::shared_ptr<SharedTask> unlazy;
    std::shared_ptr<SharedTask> fill;  // the same in the background
    absl::Mutex build;  // held by the thread that writes below `build`; taken before all others
  };

  std::shared_ptr<Layer> FindLayer(const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Restore() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status RestoreLayer(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  std::shared_ptr<Layer> NewLayer(const LayerRecord& record, const std::string& directory) const;
  void StartScrubber();
  absl::StatusOr<std::shared_ptr<Layer>> MakeLayer(const DescriptorHandler& handler)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(record_mutex_);
  absl::StatusOr<uint32_t> TakeId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(record_mutex_);
  absl::Status WriteRecord(const Layer& layer) ABSL_LOCKS_EXCLUDED(record_mutex_);
  // What was noted of a layer since its record was written, if anything.
  void WriteNoted(Layer& layer) ABSL_LOCKS_EXCLUDED(record_mutex_);
  void StopFill(const Layer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  void SyncLoop() ABSL_LOCKS_EXCLUDED(mutex_);
  bool SyncAll() ABSL_LOCKS_EXCLUDED(mutex_);
  bool DropOldestBlob() ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<std::shared_ptr<Layer>> AllLayers() ABSL_LOCKS_EXCLUDED(mutex_);

  using Work = std::function<absl::Status(const std::shared_ptr<Layer>&, SharedTask&)>;
  absl::Status RunShared(const std::shared_ptr<Layer>& layer, base::ThreadPool& threads,
                         std::shared_ptr<SharedTask> LayerTasks::* slot, const FetchContext& context,
                         const Progress& progress, const Work& work) ABSL_LOCKS_EXCLUDED(mutex_);

  const ContentStoreOptions options_;
  const std::string layers_directory_;
  const std::shared_ptr<CacheBudget> budget_;  // shared with layers that outlive the store
  BlobSpools spools_;
  const LayerBuilderOptions builder_options_;
  const std::shared_ptr<FetchEngine> engine_;  // shared with layers that outlive the store
  const UnlazyParts unlazy_parts_{engine_.get(), &spools_, budget_, options_.limits, options_.max_range_bytes,
                                  options_.log};
  base::UniqueFd lock_;
  std::unique_ptr<base::ThreadPool> layer_threads_;
  std::unique_ptr<base::ThreadPool> toc_threads_;  // a few ranges must not wait behind whole layers
  std::thread sync_thread_;
  std::unique_ptr<Scrubber> scrubber_;
  absl::Time clean_mark_;  // of the run before; InfinitePast: it did not end well, or another one came since

  absl::Mutex record_mutex_
      ABSL_ACQUIRED_BEFORE(mutex_);  // writing of records, making and removing of layers
  uint32_t next_id_ ABSL_GUARDED_BY(record_mutex_) = 1;

  base::CancelToken stop_;
  absl::Mutex mutex_;
  std::map<base::Digest, std::shared_ptr<Layer>> layers_ ABSL_GUARDED_BY(mutex_);
  std::map<uint32_t, std::shared_ptr<Layer>> by_id_ ABSL_GUARDED_BY(mutex_);
  std::map<uint32_t, std::shared_ptr<LayerTasks>> tasks_ ABSL_GUARDED_BY(mutex_);
};

absl::Status Store::Start() {
  if (options_.fetch_threads < 1 || options_.min_range_bytes > options_.max_range_bytes) {
    return absl::InvalidArgumentError(
        "fetch_threads must be positive and min_range_bytes at most max_range_bytes");
  }
  ASSIGN_OR_RETURN(lock_, TakeRoot(options_.root, options_.lock_patience));
  ASSIGN_OR_RETURN(clean_mark_, TakeCleanMark(options_.root));
  RETURN_IF_ERROR(Restore());
  budget_->SetBlobDropper([this] { return DropOldestBlob(); });
  engine_->Start();
  spools_.Start();
  layer_threads_ = std::make_unique<base::ThreadPool>("lb-layer", kHosts * kLayerThreads, kLayerThreads);
  toc_threads_ = std::make_unique<base::ThreadPool>("lb-toc", kHosts * kLayerThreads, kLayerThreads);
  sync_thread_ = std::thread([this] { SyncLoop(); });
  StartScrubber();
  return absl::OkStatus();
}

void Store::StartScrubber() {
  ScrubOptions scrub;
  scrub.state_path = options_.root + "/scrub";
  scrub.interval = options_.scrub_interval;
  scrub.bytes_per_second = options_.scrub_bytes_per_second;
  scrub.clock = options_.clock;
  scrub.log = options_.log;
  scrub.layers = [this] { return AllLayers(); };
  scrubber_ = std::make_unique<Scrubber>(std::move(scrub));
  scrubber_->Start(/*unclean=*/clean_mark_ == absl::InfinitePast());
}

Store::~Store() {
  if (scrubber_ != nullptr) scrubber_->Stop();
  stop_.Cancel();
  std::vector<std::shared_ptr<SharedTask>> tasks;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, of_layer] : tasks_) {
      for (const auto& task : {of_layer->toc, of_layer->index, of_layer->unlazy, of_layer->fill}) {
        if (task != nullptr) tasks.push_back(task);
      }
    }
  }
  for (const auto& task : tasks) task->cancel()->Cancel();
  budget_->SetBlobDropper(nullptr);
  engine_->Stop();
  spools_.Stop();
  toc_threads_.reset();
  layer_threads_.reset();
  if (sync_thread_.joinable()) sync_thread_.join();
  const bool compared = scrubber_ != nullptr && scrubber_->Finish();
  // What was not compared is left to the next run.
  if (SyncAll() && compared) PutCleanMark(options_.root);
}

absl::Status Store::Restore() {
  {
    absl::MutexLock lock(&record_mutex_);
    next_id_ = ReadNextId(options_.root);
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(layers_directory_));
  for (const std::string& name : names) {
    const absl::Status status = RestoreLayer(name);
    if (status.ok()) continue;
    // A directory without a record was never promised to anybody; one with a damaged record can be had again.
    if (!absl::IsNotFound(status) && !absl::IsDataLoss(status)) return status;
    options_.log(absl::StrCat("removing ", base::Printable(layers_directory_ + "/" + name), ": ",
                              base::Printable(status.message())));
    RETURN_IF_ERROR(base::RemoveTree(layers_directory_ + "/" + name));
  }
  return absl::OkStatus();
}

absl::Status Store::RestoreLayer(const std::string& name) {
  const std::string directory = layers_directory_ + "/" + name;
  ASSIGN_OR_RETURN(const LayerRecord record, ReadLayerRecord(directory));
  if (LayerDirectoryName(record.descriptor.digest) != name)
    return absl::DataLossError("layer.json is of another layer");
  RETURN_IF_ERROR(base::RemoveTree(directory + "/build"));
  std::shared_ptr<Layer> layer = NewLayer(record, directory);
  if (struct stat kept{}; stat(layer->kept_path().c_str(), &kept) == 0) {
    CacheBudget::Charge charge(budget_);
    charge.Set(static_cast<uint64_t>(kept.st_blocks) * 512);
    layer->SetKeptCharge(std::move(charge));
    layer->SetKept(Layer::Kept::kClaimed);
  }
  absl::StatusOr<std::unique_ptr<LayerBody>> body = OpenLayerBody(directory, false, budget_);
  if (body.ok()) {
    if (StillClean(directory, &clean_mark_)) (*body)->cache->Trust();
    layer->Install(*std::move(body));
  } else if (!absl::IsNotFound(body.status())) {
    options_.log(absl::StrCat("the index of layer ", record.descriptor.digest.ToString(),
                              " will be built again: ", base::Printable(body.status().message())));
  }
  absl::MutexLock record_lock(&record_mutex_);
  absl::MutexLock lock(&mutex_);
  if (by_id_.count(record.id) != 0) return absl::DataLossError(absl::StrCat("id ", record.id, " is taken"));
  next_id_ = std::max(next_id_, record.id % kMaxLayerId + 1);
  layers_[record.descriptor.digest] = layer;
  by_id_[record.id] = layer;
  return absl::OkStatus();
}

std::shared_ptr<Layer> Store::NewLayer(const LayerRecord& record, const std::string& directory) const {
  auto layer = std::make_shared<Layer>(record, directory, engine_, options_.source_factory);
  if (options_.may_parse) layer->Refuse(options_.may_parse(record.descriptor.digest));
  return layer;
}

// Ids are handed out in turn, so that the kernel, which may remember a removed layer's inodes, does not meet
// them soon.
absl::StatusOr<uint32_t> Store::TakeId() {
  for (uint32_t tries = 0; tries < kMaxLayerId; ++tries) {
    const uint32_t id = next_id_;
    next_id_ = id % kMaxLayerId + 1;
    if (FindById(id) != nullptr) continue;
    RETURN_IF_ERROR(WriteNextId(options_.root, next_id_));
    return id;
  }
  return absl::ResourceExhaustedError("there are too many layers; remove some");
}

absl::StatusOr<std::shared_ptr<Layer>> Store::MakeLayer(const DescriptorHandler& handler) {
  LayerRecord record;
  record.descriptor = handler.descriptor;
  record.diff_id = handler.diff_id;
  for (const auto& source : handler.sources) record.sources.push_back(source->name());
  ASSIGN_OR_RETURN(record.id, TakeId());
  const std::string directory = layers_directory_ + "/" + LayerDirectoryName(handler.descriptor.digest);
  RETURN_IF_ERROR(base::RemoveTree(directory));
  RETURN_IF_ERROR(base::MakeDirectories(directory));
  RETURN_IF_ERROR(WriteLayerRecord(directory, record));
  RETURN_IF_ERROR(base::SyncDirectory(layers_directory_));
  std::shared_ptr<Layer> layer = NewLayer(record, directory);
  RETURN_IF_ERROR(layer->Merge(handler));
  return layer;
}

absl::StatusOr<std::shared_ptr<LazyLayer>> Store::AddHandler(const DescriptorHandler& handler) {
  if (handler.descriptor.digest.empty()) return absl::InvalidArgumentError("a layer without a digest");
  absl::MutexLock record_lock(&record_mutex_);
  std::shared_ptr<Layer> known = FindLayer(handler.descriptor.digest);
  if (known != nullptr && access((known->directory() + "/layer.json").c_str(), F_OK) != 0) {
    // Its files were removed under us: who has it open reads on, others get a new one.
    absl::MutexLock lock(&mutex_);
    by_id_.erase(known->id());
    layers_.erase(handler.descriptor.digest);
    known = nullptr;
  }
  if (known != nullptr) {
    RETURN_IF_ERROR(known->Merge(handler));
    RETURN_IF_ERROR(WriteLayerRecord(known->directory(), known->record()));
    return std::shared_ptr<LazyLayer>(known);
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<Layer> layer, MakeLayer(handler));
  absl::MutexLock lock(&mutex_);
  layers_[handler.descriptor.digest] = layer;
  by_id_[layer->id()] = layer;
  return std::shared_ptr<LazyLayer>(layer);
}

absl::Status Store::WriteRecord(const Layer& layer) {
  absl::MutexLock lock(&record_mutex_);
  return WriteLayerRecord(layer.directory(), layer.record());
}

std::shared_ptr<Layer> Store::FindLayer(const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  const auto found = layers_.find(digest);
  return found == layers_.end() ? nullptr : found->second;
}

std::shared_ptr<LazyLayer> Store::Find(const base::Digest& digest) { return FindLayer(digest); }

std::shared_ptr<LazyLayer> Store::FindById(uint32_t id) {
  absl::MutexLock lock(&mutex_);
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<Layer>> Store::AllLayers() {
  std::vector<std::shared_ptr<Layer>> layers;
  absl::MutexLock lock(&mutex_);
  for (const auto& [digest, layer] : layers_) layers.push_back(layer);
  return layers;
}

std::vector<std::shared_ptr<LazyLayer>> Store::Layers() {
  const std::vector<std::shared_ptr<Layer>> layers = AllLayers();
  return {layers.begin(), layers.end()};
}

absl::Status Store::RunShared(const std::shared_ptr<Layer>& layer, base::ThreadPool& threads,
                              std::shared_ptr<SharedTask> LayerTasks::* slot, const FetchContext& context,
                              const Progress& progress, const Work& work) {
  std::shared_ptr<SharedTask> task;
  uint64_t ticket = 0;
  const std::vector<std::shared_ptr<BlobSource>> sources = layer->Sources();
  const std::string host = sources.empty() ? "" : sources.front()->host();
  {
    absl::MutexLock lock(&mutex_);
    if (stop_.cancelled()) return absl::CancelledError("the content store is being closed");
    std::shared_ptr<LayerTasks>& tasks = tasks_[layer->id()];
    if (tasks == nullptr) tasks = std::make_shared<LayerTasks>();
    task = (*tasks).*slot;
    if (task == nullptr || !task->Join(context, &ticket)) {
      task = std::make_shared<SharedTask>(options_.clock);
      (*tasks).*slot = task;
      task->Join(context, &ticket);
      threads.Schedule(host, [layer = layer, tasks, task, work]() mutable {
        absl::Status status = absl::CancelledError("nobody waits for the layer any more");
        {
          // One that was given up may still be on its way out.
          absl::MutexLock build_lock(&tasks->build);
          if (!task->cancel()->cancelled()) status = work(layer, *task);
        }
        layer.reset();  // who was told that this is over may remove the layer
        task->Finish(status);
      });
    }
  }
  return task->Wait(ticket, context, progress);
}

absl::Status Store::EnsureIndexed(LazyLayer& lazy, bool keep_data, const FetchContext& context,
                                  const Progress& progress) {
  const std::shared_ptr<Layer> layer = static_cast<Layer&>(lazy).shared_from_this();
  if (layer->state() == LayerState::kQuarantined) return layer->QuarantineError();
  if (layer->body() != nullptr) return absl::OkStatus();
  RETURN_IF_ERROR(MayParse(*layer));
  return RunShared(layer, *layer_threads_, &LayerTasks::index, context, progress,
                   [this, keep_data](const std::shared_ptr<Layer>& one, SharedTask& task) -> absl::Status {
                     if (one->body() != nullptr) return absl::OkStatus();
                     const Parsing parsing(*one);
                     const absl::Status status =
                         LayerBuilder(builder_options_, *one, task).BuildIndex(keep_data);
                     if (!status.ok() && !absl::IsCancelled(status)) one->NoteError(status);
                     const absl::Status written = WriteRecord(*one);
                     return status.ok() ? written : status;
                   });
}

absl::Status Store::EnsureIndexedFromToc(LazyLayer& lazy, const FetchContext& context) {
  const std::shared_ptr<Layer> layer = static_cast<Layer&>(lazy).shared_from_this();
  if (layer->state() == LayerState::kQuarantined) return layer->QuarantineError();
  if (layer->body() != nullptr) return absl::OkStatus();
  RETURN_IF_ERROR(MayParse(*layer));
  return RunShared(layer, *toc_threads_, &LayerTasks::toc, context, {},
                   [this](const std::shared_ptr<Layer>& one, SharedTask& task) -> absl::Status {
                     if (one->body() != nullptr) return absl::OkStatus();
                     const Parsing parsing(*one);
                     const auto indexed = LayerBuilder(builder_options_, *one, task).IndexFromToc();
                     if (indexed.ok() && !*indexed) {
                       return absl::FailedPreconditionError(absl::StrCat(
                           "layer ", one->descriptor().digest.ToString(),
                           " has no table of contents that can be used: ", one->not_lazy_reason()));
                     }
                     if (!indexed.ok() && !absl::IsCancelled(indexed.status())) {
                       one->NoteError(indexed.status());
                     }
                     const absl::Status written = WriteRecord(*one);
                     return indexed.ok() ? written : indexed.status();
                   });
}

absl::Status Store::Unlazy(LazyLayer& lazy, const FetchContext& context, const Progress& progress) {
  const std::shared_ptr<Layer> layer = static_cast<Layer&>(lazy).shared_from_this();
  const bool fill = context.cause == FetchCause::kBackground;
  if (fill && layer->body() == nullptr) return absl::FailedPreconditionError("the layer has no index");
  if (!fill) StopFill(*layer);
  RETURN_IF_ERROR(EnsureIndexed(lazy, true, context, progress));
  if (layer->CompleteAndCompared()) return absl::OkStatus();
  return RunShared(
      layer, *layer_threads_, fill ? &LayerTasks::fill : &LayerTasks::unlazy, context, progress,
      [this, fill](const std::shared_ptr<Layer>& one, SharedTask& task) -> absl::Status {
        if (one->CompleteAndCompared()) return absl::OkStatus();
        RETURN_IF_ERROR(one->refused());
        const Parsing parsing(*one);
        if (one->body()->random_access) {
          const absl::Status status = UnlazyLayer(unlazy_parts_, one, fill, task);
          WriteNoted(*one);
          return status;
        }
        const absl::Status status = LayerBuilder(builder_options_, *one, task).BuildData();
        const absl::Status written = WriteRecord(*one);
        if (!status.ok()) return status;
        if (one->state() != LayerState::kComplete) {
          return absl::ResourceExhaustedError(absl::StrCat("layer ", one->descriptor().digest.ToString(),
                                                           " does not fit on the disk: free space"));
        }
        return written;
      });
}

void Store::StopFill(const Layer& layer) {
  std::shared_ptr<SharedTask> fill;
  {
    absl::MutexLock lock(&mutex_);
    const auto tasks = tasks_.find(layer.id());
    if (tasks != tasks_.end()) fill = tasks->second->fill;
  }
  if (fill != nullptr) fill->GiveUp();
}

void Store::WriteNoted(Layer& layer) {
  if (!layer.TakeRecordChanged()) return;
  const absl::Status status = WriteRecord(layer);
  if (status.ok()) return;
  layer.SetRecordChanged();  // with the next sync, then
  options_.log(absl::StrCat("the record of layer ", layer.descriptor().digest.ToString(),
                            " cannot be written: ", base::Printable(status.message())));
}

absl::Status Store::ReadBlobAt(LazyLayer& lazy, registry::ByteRange range, registry::BodySink sink,
                               const FetchContext& context) {
  Layer& layer = static_cast<Layer&>(lazy);
  const oci::Descriptor& blob = layer.descriptor();
  if (range.offset > blob.size || range.length > blob.size - range.offset) {
    return absl::InvalidArgumentError(
        absl::StrCat("[", range.offset, ", +", range.length, ") is outside blob ", blob.digest.ToString()));
  }
  const bool whole = range.length == blob.size;
  const bool spooled = spools_.Joinable(layer, context.keep_blob);  // and unpacked by that
  WholeCheck check(layer, whole && !spooled ? layer.StartUnpacking(options_.limits) : nullptr);
  const CredentialsList requesters = {context.credentials};
  RETURN_IF_ERROR(spools_.Stream(
      layer.shared_from_this(), range,
      [&](absl::Span<const uint8_t> bytes) {
        if (whole) check.Feed(bytes);
        return sink(bytes);
      },
      StreamCaller{context.cause, context.deadline, context.cancel, [&] { return requesters; },
                   context.first_source},
      context.keep_blob));
  if (!whole) return absl::OkStatus();
  const absl::Status right = check.Finish(options_.log);
  WriteNoted(layer);
  return right;
}

absl::StatusOr<size_t> Store::ReadBlob(LazyLayer& lazy, uint64_t offset, absl::Span<uint8_t> out,
                                       const FetchContext& context) {
  return spools_.Read(static_cast<Layer&>(lazy).shared_from_this(), offset, out, context);
}

bool Store::TryReadBlob(LazyLayer& lazy, uint64_t offset, absl::Span<uint8_t> out) {
  return spools_.TryRead(static_cast<Layer&>(lazy), offset, out);
}

absl::StatusOr<std::string> Store::KeepBlob(LazyLayer& lazy, const FetchContext& context,
                                            const Progress& progress) {
  return spools_.Keep(static_cast<Layer&>(lazy).shared_from_this(), context, progress);
}

std::vector<std::string> Store::SourceNames(LazyLayer& lazy) {
  std::vector<std::string> names;
  for (const auto& source : static_cast<Layer&>(lazy).Sources()) names.push_back(source->name());
  return names;
}

absl::Status Store::Remove(const base::Digest& digest) {
  absl::MutexLock record_lock(&record_mutex_);
  spools_.Drop(digest);
  std::string directory;
  // A fetch whose waiters have been answered holds the layer for some moments more.
  for (int looks = 0; directory.empty(); ++looks) {
    if (looks > 0) absl::SleepFor(absl::Milliseconds(2));
    absl::MutexLock lock(&mutex_);
    const auto found = layers_.find(digest);
    if (found == layers_.end()) return absl::NotFoundError(absl::StrCat("no layer ", digest.ToString()));
    const std::shared_ptr<Layer>& layer = found->second;
    engine_->StopReadingAhead(layer.get());
    // The two maps hold it; others come only from Find and its kin, under our mutex, or from one that has it
    // already.
    if (layer.use_count() > 2) {
      if (looks < kRemoveLooks) continue;
      return absl::FailedPreconditionError(absl::StrCat("layer ", digest.ToString(), " is in use"));
    }
    directory = layer->directory();
    tasks_.erase(layer->id());
    by_id_.erase(layer->id());
    layers_.erase(found);
  }
  // Without its record the directory is garbage, whatever becomes of the rest.
  if (unlink((directory + "/layer.json").c_str()) != 0 && errno != ENOENT) {
    return base::ErrnoStatus(errno, absl::StrCat("remove ", directory, "/layer.json"));
  }
  RETURN_IF_ERROR(base::SyncDirectory(directory));
  return base::RemoveTree(directory);
}

void Store::SyncLoop() {
  while (!base::SleepUnlessCancelled(options_.sync_interval, &stop_)) {
    SyncAll();
    budget_->Tend();
  }
}

// Of the blobs that can be fetched again.
bool Store::DropOldestBlob() {
  std::vector<std::pair<absl::Time, std::shared_ptr<Layer>>> kept;
  for (const std::shared_ptr<Layer>& layer : AllLayers()) {
    struct stat st{};
    if (layer->kept() == Layer::Kept::kNo || layer->Sources().size() < 2) continue;
    if (stat(layer->kept_path().c_str(), &st) == 0)
      kept.emplace_back(absl::TimeFromTimespec(st.st_mtim), layer);
  }
  std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return std::any_of(kept.begin(), kept.end(),
                     [this](const auto& one) { return spools_.DropKept(*one.second); });
}

// Whether all is durable.
bool Store::SyncAll() {
  bool durable = true;
  for (const std::shared_ptr<Layer>& layer : AllLayers()) {
    WriteNoted(*layer);
    const LayerBody* const body = layer->body();
    if (body == nullptr) continue;
    const absl::Status status = body->cache->Sync();
    if (status.ok()) continue;
    durable = false;
    options_.log(absl::StrCat(
        "cached chunks of layer ", layer->descriptor().digest.ToString(),
        " did not reach the disk and will be fetched again: ", base::Printable(status.message())));
  }
  return durable;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ContentStore>> ContentStore::Open(ContentStoreOptions options) {
  if (!options.log) {
    options.log = [](absl::string_view line) {
      const std::string text = absl::StrCat("lazyblob: ", line, "\n");
      std::fwrite(text.data(), 1, text.size(), stderr);
    };
  }
  auto store = std::make_unique<Store>(std::move(options));
  RETURN_IF_ERROR(store->Start());
  return store;
}

}  // namespace lazyblob::contentstore

#include "contentservice/lazy_blobs.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "contentservice/internal/learned_blobs_impl.h"

namespace lazyblob::contentservice {
namespace {

constexpr absl::Duration kFirstLook = absl::Milliseconds(20);  // whether a namespace holds a blob
constexpr size_t kMaxDocuments = 4096;                         // waiting to be looked at

absl::Status NotLazy(const base::Digest& digest) {
  return absl::NotFoundError(absl::StrCat("content ", digest.ToString(), ": not found"));
}

Info InfoOf(const LazyRecord& record) {
  return {record.blob.digest, record.blob.size, record.labels, record.created, record.updated};
}

}  // namespace

absl::StatusOr<std::unique_ptr<LearnedBlobs>> LearnedBlobs::Open(LearnedBlobsOptions options) {
  ASSIGN_OR_RETURN(auto records, LazyRecords::Open(options.root + "/lazy.db"));
  auto blobs = std::make_unique<LearnedBlobsImpl>(std::move(options), std::move(records));
  RETURN_IF_ERROR(blobs->Load());
  return blobs;
}

LearnedBlobsImpl::LearnedBlobsImpl(LearnedBlobsOptions options, std::unique_ptr<LazyRecords> records)
    : options_(std::move(options)), records_(std::move(records)) {}

absl::Status LearnedBlobsImpl::Load() {
  ASSIGN_OR_RETURN(std::vector<LazyRecord> records, records_->Blobs());
  absl::MutexLock lock(&mutex_);
  for (LazyRecord& record : records) {
    const base::Digest digest = record.blob.digest;
    blobs_[digest].record = std::move(record);
  }
  return absl::OkStatus();
}

void LearnedBlobsImpl::Start(Content* content) {
  content_ = content;
  learners_ = std::make_unique<TimedTasks>("lb-learn", 4);
  checkers_ = std::make_unique<TimedTasks>("lb-check", 4);
  holders_ = std::make_unique<TimedTasks>("lb-hold", 4);
  absl::StatusOr<std::vector<ImageRecord>> images = records_->Images();
  Log(images.status(), "images are not known again");
  if (!images.ok()) return;
  for (ImageRecord& image : *images) {
    const base::Digest manifest = image.manifest;
    if (std::optional<std::string> raw = ReadDocument(manifest)) {
      LearnManifest(manifest, *raw, std::move(image));
    } else {
      Log(records_->RemoveImage(manifest), "record of an image");
    }
  }
  absl::MutexLock lock(&mutex_);
  // What was committed just before a crash, or adopted from another store.
  learners_->Run([this] { LearnUnrecorded(); });
  for (const base::Digest& digest : lost_) StartDropping(digest);
  for (auto& [digest, blob] : blobs_) {
    if (blob.whole) continue;
    if (Repositories(blob).empty()) {
      if (blob.record.held || !blob.record.failed.empty()) StartDropping(digest);
      continue;
    }
    // A namespace may have begun to hold what nobody looked for any more.
    if (blob.record.held) continue;
    blob.expected = true;
    holders_->Run([this, digest = digest] { Expect(digest, absl::Seconds(1), absl::ZeroDuration()); });
  }
}

void LearnedBlobsImpl::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.SignalAll();
  }
  stop_->Cancel();
  learners_.reset();
  checkers_.reset();
  holders_.reset();
}

void LearnedBlobsImpl::Log(const absl::Status& status, absl::string_view what) const {
  if (!status.ok()) options_.log(absl::StrCat(what, ": ", status.message()));
}

std::vector<std::string> LearnedBlobsImpl::Repositories(const Blob& blob, bool checked) {
  std::vector<std::string> result;
  const auto add = [&](const std::vector<std::string>& repositories) {
    for (const std::string& repository : repositories) {
      if (blob.record.failed.contains(repository)) continue;
      if (std::find(result.begin(), result.end(), repository) == result.end()) result.push_back(repository);
    }
  };
  const std::vector<LearnedImage*> images = images_.WithLayer(blob.record.blob.digest);
  for (const LearnedImage* image : images) add(image->repositories);
  add(blob.record.repositories);
  if (checked) return result;
  for (const LearnedImage* image : images) add(learning_[image->manifest].likely);
  return result;
}

bool LearnedBlobsImpl::Known(const Blob& blob) {
  // Of one that is held, a client has taken the size that was told.
  if (blob.whole || (blob.contradictory && !blob.record.held)) return false;
  return !Repositories(blob).empty();
}

bool LearnedBlobsImpl::Undecided(const base::Digest& digest) {
  if (documents_ > 0) return true;
  for (const LearnedImage* image : images_.WithLayer(digest)) {
    if (image->repositories.empty() && !learning_[image->manifest].settled) return true;
  }
  return false;
}

absl::StatusOr<Info> LearnedBlobsImpl::Find(const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  const auto known = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    auto found = blobs_.find(digest);
    return found != blobs_.end() && Known(found->second);
  };
  if (!known()) {
    if (stopped_) return NotLazy(digest);
    for (const LearnedImage* image : images_.WithLayer(digest)) AskAtOnce(*image);
    const auto decided = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return known() || !Undecided(digest) || stopped_;
    };
    changed_.AwaitFor(&mutex_, decided, options_.find_patience);
    if (!known()) return NotLazy(digest);
  }
  return Looked(&blobs_[digest]);
}

std::optional<Info> LearnedBlobsImpl::TryFind(const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  const auto found = blobs_.find(digest);
  if (found == blobs_.end() || !Known(found->second)) return std::nullopt;
  return Looked(&found->second);
}

Info LearnedBlobsImpl::Looked(Blob* blob) {
  if (!blob->record.held && !blob->expected && holders_ != nullptr && !stopped_) {
    blob->expected = true;
    const absl::Duration until = options_.clock->Monotonic() + options_.hold_patience;
    holders_->RunAfter(
        kFirstLook, [this, digest = blob->record.blob.digest, until] { Expect(digest, kFirstLook, until); });
  }
  return InfoOf(blob->record);
}

std::vector<Info> LearnedBlobsImpl::Listed() {
  std::vector<Info> listed;
  absl::MutexLock lock(&mutex_);
  for (const auto& [digest, blob] : blobs_) {
    if (blob.record.held && !blob.whole) listed.push_back(InfoOf(blob.record));
  }
  return listed;
}

std::vector<Info> LearnedBlobsImpl::MayBeHeld() {
  std::vector<Info> blobs;
  absl::MutexLock lock(&mutex_);
  for (const auto& [digest, blob] : blobs_) {
    if (Known(blob) || (blob.record.held && !blob.whole)) blobs.push_back(InfoOf(blob.record));
  }
  return blobs;
}

absl::Status LearnedBlobsImpl::SetLabels(const base::Digest& digest, const Labels& labels,
                                         absl::Time updated) {
  {
    absl::MutexLock lock(&mutex_);
    auto found = blobs_.find(digest);
    if (found == blobs_.end()) return NotLazy(digest);
    found->second.record.labels = labels;
    found->second.record.updated = updated;
  }
  SaveBlob(digest);
  return absl::OkStatus();
}

absl::Status LearnedBlobsImpl::Forget(const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  auto found = blobs_.find(digest);
  if (found == blobs_.end() || found->second.whole) return NotLazy(digest);
  Blob& blob = found->second;
  blob.record.held = false;
  blob.record.labels.clear();
  blob.record.repositories.clear();
  blob.handled.clear();
  DropUntaught(digest);
  if (holders_ == nullptr) return absl::OkStatus();
  holders_->Run([this, digest] {
    SaveBlob(digest);
    // FailedPrecondition: somebody uses it.
    const absl::Status removed = options_.store->Remove(digest);
    if (!absl::IsNotFound(removed) && !absl::IsFailedPrecondition(removed)) {
      Log(removed, absl::StrCat("files of layer ", digest.ToString()));
    }
  });
  return absl::OkStatus();
}

void LearnedBlobsImpl::DropUntaught(const base::Digest& digest) {
  auto found = blobs_.find(digest);
  if (found == blobs_.end() || found->second.record.held) return;
  if (images_.WithLayer(digest).empty()) blobs_.erase(found);
}

void LearnedBlobsImpl::SaveBlob(const base::Digest& digest) {
  absl::MutexLock order(&records_mutex_);
  std::optional<LazyRecord> record;
  {
    absl::MutexLock lock(&mutex_);
    auto found = blobs_.find(digest);
    if (found != blobs_.end() && !found->second.whole &&
        (found->second.record.held || !found->second.record.failed.empty())) {
      Blob& blob = found->second;
      // Images may go that told where a blob is.
      if (blob.record.held) blob.record.repositories = Repositories(blob, /*checked=*/true);
      record = blob.record;
    }
  }
  Log(record.has_value() ? records_->Put(*record) : records_->RemoveBlob(digest),
      absl::StrCat("record of layer ", digest.ToString()));
}

absl::StatusOr<std::shared_ptr<contentstore::LazyLayer>> LearnedBlobsImpl::Layer(const base::Digest& digest) {
  contentstore::DescriptorHandler handler;
  std::vector<std::string> repositories;
  {
    absl::MutexLock lock(&mutex_);
    auto found = blobs_.find(digest);
    if (found == blobs_.end() || found->second.whole) return NotLazy(digest);
    repositories = Repositories(found->second);
    if (repositories.empty()) return NotLazy(digest);
    handler.descriptor = found->second.record.blob;
    if (found->second.handled == repositories) {
      if (auto layer = options_.store->Find(digest)) return layer;
    }
  }
  // Whole blobs are the same for all images, whatever these annotate.
  if (const auto layer = options_.store->Find(digest);
      layer != nullptr && layer->descriptor().size == handler.descriptor.size) {
    handler.descriptor = layer->descriptor();
  }
  for (const std::string& repository : repositories) {
    ASSIGN_OR_RETURN(auto source, options_.sources("registry:" + repository));
    handler.sources.push_back(std::move(source));
  }
  ASSIGN_OR_RETURN(auto layer, options_.store->AddHandler(handler));
  absl::MutexLock lock(&mutex_);
  if (auto found = blobs_.find(digest); found != blobs_.end()) found->second.handled = repositories;
  return layer;
}

absl::StatusOr<size_t> LearnedBlobsImpl::Read(const base::Digest& digest, uint64_t offset,
                                              absl::Span<uint8_t> out,
                                              const std::shared_ptr<base::CancelToken>& cancel) {
  ASSIGN_OR_RETURN(const std::shared_ptr<contentstore::LazyLayer> layer, Layer(digest));
  contentstore::FetchContext context;
  context.cancel = cancel;
  absl::StatusOr<size_t> read = options_.store->ReadBlob(*layer, offset, out, context);
  if (absl::IsNotFound(read.status())) {
    Recheck(digest);
  } else if (!read.ok()) {
    absl::MutexLock lock(&mutex_);
    for (const LearnedImage* image : images_.WithLayer(digest)) {
      if (image->repositories.empty()) AskAtOnce(*image);
    }
  }
  return read;
}

bool LearnedBlobsImpl::TryRead(const base::Digest& digest, uint64_t offset, uint64_t size, ReadRoom room) {
  std::shared_ptr<contentstore::LazyLayer> layer;
  uint64_t left = 0;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = blobs_.find(digest);
    if (found == blobs_.end() || found->second.whole) return false;
    const Blob& blob = found->second;
    // The content store knows no blob of ours, or other sources, before Read has told it.
    if (blob.handled.empty() || blob.handled != Repositories(blob)) return false;
    if (offset >= blob.record.blob.size) return false;
    left = blob.record.blob.size - offset;
    layer = options_.store->Find(digest);
  }
  if (layer == nullptr) return false;
  if (size != 0) left = std::min(left, size);
  const absl::Span<uint8_t> out = room(left);
  return !out.empty() && options_.store->TryReadBlob(*layer, offset, out);
}

void LearnedBlobsImpl::Committed(const base::Digest& digest, uint64_t size, const std::string& ref) {
  absl::MutexLock lock(&mutex_);
  if (learners_ == nullptr || stopped_) return;
  if (auto found = blobs_.find(digest); found != blobs_.end() && !found->second.whole) {
    found->second.whole = true;
    found->second.record.held = false;
    learners_->Run([this, digest] { SaveBlob(digest); });
  }
  if (size > oci::kMaxManifestBytes || documents_ >= kMaxDocuments) return;
  LearnLater([this, digest, name_space = NamespaceOf(ref)] { LearnDocument(digest, name_space); });
}

void LearnedBlobsImpl::Deleted(const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  changed_.SignalAll();
  if (auto found = blobs_.find(digest); found != blobs_.end()) {
    found->second.whole = false;
    DropUntaught(digest);
  }
  const LearnedImage* const image = images_.Find(digest);
  if (image == nullptr) return;
  const std::vector<oci::Descriptor> layers = image->layers;
  for (const oci::Descriptor& layer : layers) {
    if (auto found = blobs_.find(layer.digest); found != blobs_.end() && found->second.record.held) {
      found->second.record.repositories = Repositories(found->second, /*checked=*/true);
    }
  }
  images_.Remove(digest);
  learning_.erase(digest);
  for (const oci::Descriptor& layer : layers) {
    DropUntaught(layer.digest);
    CompareImages(layer.digest);
  }
  if (learners_ == nullptr) return;
  learners_->Run([this, digest] { SaveImage(digest); });
  for (const oci::Descriptor& layer : layers) {
    learners_->Run([this, layer = layer.digest] { SaveBlob(layer); });
  }
}

bool LearnedBlobsImpl::Undecided(const base::Digest& chain, const base::Digest& diff_id) {
  if (documents_ > 0) return true;
  for (const auto& [image, i] : images_.WithChain(chain, diff_id)) {
    if (!learning_[image->manifest].settled) return true;
  }
  return false;
}

std::vector<ChainLayer> LearnedBlobsImpl::WithChain(const base::Digest& chain, const base::Digest& diff_id,
                                                    const std::shared_ptr<base::CancelToken>& cancel) {
  bool cancelled = false;
  std::optional<base::CancelToken::Registration> registration;
  if (cancel != nullptr) {
    registration.emplace(cancel->OnCancel([&] {
      absl::MutexLock lock(&mutex_);
      cancelled = true;
      changed_.SignalAll();
    }));
  }
  absl::MutexLock lock(&mutex_);
  const auto decided = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return cancelled || stopped_ || !Undecided(chain, diff_id);
  };
  for (const auto& [image, i] : images_.WithChain(chain, diff_id)) {
    if (image->repositories.empty()) AskAtOnce(*image);
  }
  changed_.AwaitFor(&mutex_, decided, options_.chain_patience);
  std::map<base::Digest, ChainLayer> layers;
  for (const auto& [image, i] : images_.WithChain(chain, diff_id)) {
    ChainLayer& layer = layers[image->layers[i].digest];
    layer.layer = image->layers[i].digest;
    if (!layer.reference.empty()) continue;
    const std::set<std::string>& failed = blobs_[layer.layer].record.failed;
    std::vector<std::string> repositories = image->repositories;
    if (repositories.empty()) repositories = learning_[image->manifest].likely;
    for (const std::string& repository : repositories) {
      if (failed.contains(repository)) continue;
      layer.manifest = image->manifest;
      layer.reference = absl::StrCat(repository, "@", image->manifest.ToString());
      break;
    }
  }
  // One that nobody can be asked for is told only beside others: the chain is then not to be trusted.
  std::vector<ChainLayer> result;
  for (auto& [digest, layer] : layers) {
    if (layers.size() > 1 || !layer.reference.empty()) result.push_back(std::move(layer));
  }
  return result;
}

}  // namespace lazyblob::contentservice

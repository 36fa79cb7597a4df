#include "daemon/prepared_images.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "snapshotter/lazy_layers.h"

namespace lazyblob::daemon {
namespace {

using snapshotter::NotLazyError;

constexpr absl::Duration kProgressInterval = absl::Milliseconds(100);

// Why the layer, or what the image says of it, cannot be used.
absl::Status NotUsable(const LazyLayerPtr& layer, const base::Digest& diff_id, const absl::Status& why) {
  absl::string_view reason = "index-failed";
  if (layer != nullptr && layer->state() == contentstore::LayerState::kQuarantined) {
    reason = "quarantined";
  } else if (layer != nullptr && absl::IsFailedPrecondition(why) && layer->diff_id() != diff_id) {
    reason = "diff-id-mismatch";
  }
  return NotLazyError(reason, why);
}

// Equal for requests that mean the same image.
std::string KeyOf(const ImageRequest& request) {
  auto reference = oci::ParseImageReference(request.reference);
  if (!reference.ok()) return request.reference;
  if (auto* remote = std::get_if<oci::Reference>(&*reference);
      remote != nullptr && remote->digest.has_value()) {
    return absl::StrCat(remote->Name(), "@", remote->digest->ToString(), " ", request.platform);
  }
  return absl::StrCat(oci::ToString(*reference), " ", request.platform);
}

}  // namespace

struct PreparedImages::Image {
  struct Layer {
    enum class State { kRunning, kReady, kFailed } state = State::kRunning;
    absl::Status status;
    bool told = false;  // somebody has been told of the failure
    LazyLayerPtr pin;   // while the image is worked on
    uint64_t received = 0;
  };

  ImageRequest request;
  std::shared_ptr<const registry::CredentialsProvider> credentials;
  std::string host;  // of the registry; empty: none
  const std::shared_ptr<base::CancelToken> cancel = std::make_shared<base::CancelToken>();

  // Written once, before `done`.
  ResolvedImage resolved;

  // The rest is guarded by PreparedImages::mutex_.
  bool done = false;
  absl::Status status;
  std::vector<Layer> layers;
  size_t tasks = 0;  // queued or running
  size_t users = 0;
  bool abandoned = false;
  absl::Duration last_use = absl::ZeroDuration();
};

PreparedImages::Use::~Use() { owner_->Leave(image_, cancel_ != nullptr && cancel_->cancelled()); }

const ResolvedImage& PreparedImages::Use::image() const { return image_->resolved; }

absl::Status PreparedImages::Use::AwaitLayer(size_t i, const LayerProgress& progress) {
  return owner_->AwaitLayer(image_, i, cancel_.get(), progress);
}

PreparedImages::PreparedImages(ImageLayers* layers, PreparedImagesOptions options)
    : layers_(layers), options_(options) {}

PreparedImages::~PreparedImages() {
  std::map<Image*, ImagePtr> working;
  {
    absl::MutexLock lock(&mutex_);
    working = working_;
  }
  for (const auto& [address, image] : working) image->cancel->Cancel();
}

void PreparedImages::Forget(const ImagePtr& image) {
  for (auto entry = images_.begin(); entry != images_.end();) {
    entry = entry->second == image ? images_.erase(entry) : std::next(entry);
  }
}

void PreparedImages::ForgetOld() {
  const absl::Duration now = options_.clock->Monotonic();
  while (true) {
    ImagePtr oldest;
    size_t count = 0;
    for (const auto& [name, image] : images_) {
      ++count;
      if (image->users > 0 || image->tasks > 0) continue;
      if (oldest == nullptr || image->last_use < oldest->last_use) oldest = image;
    }
    if (oldest == nullptr) return;
    if (count <= options_.max_images && now - oldest->last_use < options_.keep) return;
    Forget(oldest);
  }
}

PreparedImages::ImagePtr PreparedImages::FindOrStart(const ImageRequest& request, bool afresh,
                                                     bool* remembered) {
  ForgetOld();
  const std::string key = KeyOf(request);
  if (auto found = images_.find(key); found != images_.end()) {
    *remembered = found->second->done;
    if (!(afresh && found->second->done)) return found->second;
  }
  *remembered = false;
  auto image = std::make_shared<Image>();
  image->request = request;
  if (auto reference = oci::ParseImageReference(request.reference); reference.ok()) {
    const auto* remote = std::get_if<oci::Reference>(&*reference);
    if (remote != nullptr) image->host = remote->host;
  }
  image->credentials = CredentialsOf(request.docker_config);
  image->tasks = 1;
  images_[key] = image;
  working_[image.get()] = image;
  resolves_.Schedule(image->host, [this, image] { RunResolve(image); });
  return image;
}

void PreparedImages::Leave(const ImagePtr& image, bool cancelled) {
  {
    absl::MutexLock lock(&mutex_);
    --image->users;
    image->last_use = options_.clock->Monotonic();
    if (!cancelled || image->users > 0 || image->tasks == 0) return;
    Forget(image);  // who comes next begins anew
    image->abandoned = true;
  }
  image->cancel->Cancel();
}

template <typename Ready>
absl::Status PreparedImages::Await(const ImagePtr& image, base::CancelToken* cancel,
                                   const LayerProgress& progress, Ready ready) {
  bool cancelled = false;
  auto wake = [&] {
    absl::MutexLock lock(&mutex_);
    cancelled = true;
    changed_.SignalAll();
  };
  std::optional<base::CancelToken::Registration> registration;
  if (cancel != nullptr) registration.emplace(cancel->OnCancel(wake));
  const auto over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return cancelled || ready(); };
  std::vector<uint64_t> told;
  while (true) {
    std::vector<uint64_t> received;
    {
      absl::MutexLock lock(&mutex_);
      if (changed_.AwaitFor(&mutex_, over, progress ? kProgressInterval : absl::InfiniteDuration())) {
        return ready() ? absl::OkStatus() : absl::CancelledError("the caller has gone");
      }
      for (const Image::Layer& layer : image->layers) received.push_back(layer.received);
    }
    told.resize(received.size());
    for (size_t i = 0; i < received.size(); ++i) {
      if (received[i] != told[i]) progress(image->resolved.layers[i], received[i]);
    }
    told = std::move(received);
  }
}

absl::StatusOr<std::unique_ptr<PreparedImages::Use>> PreparedImages::Resolve(
    const ImageRequest& request, bool afresh, std::shared_ptr<base::CancelToken> cancel) {
  ImagePtr image;
  bool remembered = false;
  {
    absl::MutexLock lock(&mutex_);
    image = FindOrStart(request, afresh, &remembered);
    ++image->users;
  }
  std::unique_ptr<Use> use(new Use(this, image, cancel));
  use->remembered_ = remembered;
  auto done = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return image->done; };
  RETURN_IF_ERROR(Await(image, cancel.get(), nullptr, done));
  absl::MutexLock lock(&mutex_);
  if (!image->status.ok()) return image->status;
  return use;
}

void PreparedImages::RunResolve(const ImagePtr& image) {
  registry::CallContext call;
  call.deadline = options_.clock->Monotonic() + options_.resolve_timeout;
  call.cancel = image->cancel;
  call.credentials = image->credentials;
  absl::StatusOr<ResolvedImage> resolved = layers_->Resolve(image->request, call);
  absl::MutexLock lock(&mutex_);
  --image->tasks;
  if (resolved.ok()) {
    image->resolved = *std::move(resolved);
    image->resolved.documents.clear();  // megabytes, perhaps
    image->layers.resize(image->resolved.layers.size());
    for (size_t i = 0; i < image->layers.size(); ++i) StartLayer(image, i);
    // The same under the name that clients use once they have the manifest.
    ImageRequest by_digest = image->request;
    by_digest.platform.clear();
    auto reference = oci::ParseImageReference(by_digest.reference);
    auto* remote = reference.ok() ? std::get_if<oci::Reference>(&*reference) : nullptr;
    if (remote != nullptr && !image->abandoned) {
      remote->tag.reset();
      remote->digest = image->resolved.manifest_digest;
      by_digest.reference = remote->ToString();
      images_[KeyOf(by_digest)] = image;
    }
  } else {
    image->status = resolved.status();
    Forget(image);
  }
  image->last_use = options_.clock->Monotonic();
  image->done = true;
  changed_.SignalAll();
  if (image->tasks == 0) working_.erase(image.get());
}

void PreparedImages::StartLayer(const ImagePtr& image, size_t i) {
  Image::Layer& layer = image->layers[i];
  layer.state = Image::Layer::State::kRunning;
  layer.received = 0;
  ++image->tasks;
  working_[image.get()] = image;
  indexes_.Schedule(image->host, [this, image, i] { RunIndex(image, i); });
}

contentstore::FetchContext PreparedImages::Context(const ImagePtr& image,
                                                   contentstore::FetchCause cause) const {
  contentstore::FetchContext context;
  context.cause = cause;
  context.cancel = image->cancel;
  context.credentials = image->credentials;
  return context;
}

void PreparedImages::RunIndex(const ImagePtr& image, size_t i) {
  if (absl::Status type = CheckLayerType(image->resolved.layers[i]); !type.ok()) {
    return FinishLayer(image, i, nullptr, NotLazyError("unsupported-format", type));
  }
  absl::StatusOr<LazyLayerPtr> added = layers_->Add(image->resolved, i);
  if (!added.ok()) {
    const LazyLayerPtr known = layers_->store().Find(image->resolved.layers[i].digest);
    return FinishLayer(image, i, nullptr, NotUsable(known, image->resolved.diff_ids[i], added.status()));
  }
  const LazyLayerPtr layer = *std::move(added);
  contentstore::FetchContext context = Context(image, contentstore::FetchCause::kIndex);
  context.deadline = options_.clock->Monotonic() + options_.resolve_timeout;
  absl::Status status = layers_->store().EnsureIndexedFromToc(*layer, context);
  if (!status.ok() && layer->not_lazy_reason() == contentstore::kReasonCrashed) {
    return FinishLayer(image, i, layer, NotLazyError(contentstore::kReasonCrashed, status));
  }
  const bool plain = absl::IsFailedPrecondition(status) && layer->index() == nullptr;
  const bool whole = status.ok() && !layer->index()->info().random_access &&
                     layer->state() != contentstore::LayerState::kComplete;
  if (layer->state() == contentstore::LayerState::kQuarantined) {
    return FinishLayer(image, i, layer, NotLazyError("quarantined", status));
  }
  const bool compare = status.ok() && MustCompare(*layer, options_.compare_first);
  if (((plain || whole) && options_.stream_plain) || (compare && !whole)) {
    streams_.Schedule(image->host, [this, image, i, layer] { RunStream(image, i, layer); });
    return;
  }
  if (plain) {
    const std::string reason = layer->not_lazy_reason();
    status = NotLazyError(reason.empty() ? "no-index" : reason, status);
  } else if (whole) {
    status = NotLazyError("no-random-access",
                          absl::FailedPreconditionError("any part of it costs reading all of it"));
  } else if (!status.ok()) {
    status = NotLazyError("index-failed", status);
  }
  FinishLayer(image, i, layer, status);
}

void PreparedImages::RunStream(const ImagePtr& image, size_t i, const LazyLayerPtr& layer) {
  const contentstore::FetchContext context = Context(image, contentstore::FetchCause::kStream);
  auto report = [&](uint64_t received) {
    absl::MutexLock lock(&mutex_);
    image->layers[i].received = received;
  };
  absl::Status status = layers_->store().EnsureIndexed(*layer, /*keep_data=*/true, context, report);
  if (status.ok()) status = layers_->MakeReadable(*layer, context, report);
  if (status.ok()) {
    status = layers_->CompareDiffId(image->resolved, i, options_.compare_first, context, report);
    if (!status.ok())
      return FinishLayer(image, i, layer, NotUsable(layer, image->resolved.diff_ids[i], status));
  }
  if (!status.ok()) {
    const bool quarantined = layer->state() == contentstore::LayerState::kQuarantined;
    const bool crashed = layer->not_lazy_reason() == contentstore::kReasonCrashed;
    status = NotLazyError(quarantined ? "quarantined" : crashed ? "crashed" : "index-failed", status);
  }
  FinishLayer(image, i, layer, status);
}

void PreparedImages::FinishLayer(const ImagePtr& image, size_t i, LazyLayerPtr layer,
                                 const absl::Status& status) {
  std::vector<LazyLayerPtr> unpinned;  // let go of after the lock
  absl::MutexLock lock(&mutex_);
  Image::Layer& result = image->layers[i];
  result.state = status.ok() ? Image::Layer::State::kReady : Image::Layer::State::kFailed;
  result.status = status;
  changed_.SignalAll();
  result.told = false;
  result.pin = std::move(layer);
  image->last_use = options_.clock->Monotonic();
  if (--image->tasks > 0) return;
  for (Image::Layer& one : image->layers) unpinned.push_back(std::move(one.pin));
  working_.erase(image.get());
}

absl::Status PreparedImages::AwaitLayer(const ImagePtr& image, size_t i, base::CancelToken* cancel,
                                        const LayerProgress& progress) {
  const base::Digest& digest = image->resolved.layers[i].digest;
  const LazyLayerPtr known = layers_->store().Find(digest);
  const bool gone = known == nullptr || known->index() == nullptr;  // removed since
  {
    absl::MutexLock lock(&mutex_);
    const Image::Layer& layer = image->layers[i];
    const bool told = layer.state == Image::Layer::State::kFailed && layer.told;
    if (told || (layer.state == Image::Layer::State::kReady && gone)) StartLayer(image, i);
  }
  auto settled = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return image->layers[i].state != Image::Layer::State::kRunning;
  };
  absl::Status waited = Await(image, cancel, progress, settled);
  if (!waited.ok()) return NotLazyError("cancelled", waited);
  absl::MutexLock lock(&mutex_);
  image->layers[i].told = true;
  return image->layers[i].status;
}

}  // namespace lazyblob::daemon

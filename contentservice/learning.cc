// Learning of images: their documents as they are committed, and where labels say that they are from.

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "contentservice/internal/learned_blobs_impl.h"
#include "oci/manifest.h"
#include "oci/reference.h"

namespace lazyblob::contentservice {
namespace {

constexpr absl::Duration kFirstQuestion = absl::Milliseconds(2);
constexpr absl::Duration kLastQuestion = absl::Seconds(1);
constexpr size_t kMaxRepositories = 8;  // of one image

// Whether the registry has been asked and does not have it, or does not give it to this daemon.
bool IsRefused(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status);
}

void AddOnce(const std::vector<std::string>& more, std::vector<std::string>* repositories) {
  for (const std::string& repository : more) {
    if (std::find(repositories->begin(), repositories->end(), repository) == repositories->end()) {
      repositories->push_back(repository);
    }
  }
}

void AddRepository(absl::string_view host, const std::string& name, std::vector<std::string>* repositories) {
  const std::string text = absl::StrCat(host, "/", name);
  const absl::StatusOr<oci::Reference> parsed = oci::ParseReference(text);
  // A name that is understood otherwise is none that containerd wrote.
  if (!parsed.ok() || parsed->Name() != text || repositories->size() >= kMaxRepositories) return;
  AddOnce({text}, repositories);
}

}  // namespace

std::optional<std::string> LearnedBlobsImpl::ReadDocument(const base::Digest& digest) {
  if (!content_->HeldFile(digest).ok()) return std::nullopt;
  std::string raw;
  const absl::Status read = content_->Read(
      digest, 0, 0,
      [&](absl::Span<const uint8_t> bytes) -> absl::Status {
        raw.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        if (!absl::StartsWith(raw, "{")) return absl::InvalidArgumentError("no document");
        if (raw.size() <= oci::kMaxConfigBytes) return absl::OkStatus();
        return absl::ResourceExhaustedError("too large for a document");
      },
      nullptr);
  if (!read.ok() || raw.empty()) return std::nullopt;
  return raw;
}

void LearnedBlobsImpl::LearnDocument(const base::Digest& digest, const std::string& name_space) {
  if (const std::optional<std::string> raw = ReadDocument(digest)) {
    bool config = false;
    {
      absl::MutexLock lock(&mutex_);
      config = images_.IsConfig(digest);
    }
    if (config) {
      LearnConfig(digest, *raw);
    } else {
      ImageRecord record;
      if (!name_space.empty()) record.namespaces.insert(name_space);
      LearnManifest(digest, *raw, std::move(record));
    }
  }
}

void LearnedBlobsImpl::LearnUnrecorded() {
  std::vector<base::Digest> documents;
  const absl::Status listed = content_->List({}, [&](const Info& info) {
    if (info.size <= oci::kMaxManifestBytes) documents.push_back(info.digest);
    return absl::OkStatus();
  });
  Log(listed, "images are not known again");
  for (const base::Digest& digest : documents) {
    {
      absl::MutexLock lock(&mutex_);
      if (stopped_) return;
      if (images_.Find(digest) != nullptr || images_.IsConfig(digest)) continue;
      ++documents_;
    }
    LearnDocument(digest, "");
    absl::MutexLock lock(&mutex_);
    --documents_;
    changed_.SignalAll();
  }
}

void LearnedBlobsImpl::LearnLater(std::function<void()> learn) {
  ++documents_;
  learners_->Run([this, learn = std::move(learn)] {
    learn();
    absl::MutexLock lock(&mutex_);
    --documents_;
    changed_.SignalAll();
  });
}

void LearnedBlobsImpl::LearnConfig(const base::Digest& digest, absl::string_view raw) {
  const absl::StatusOr<oci::ImageConfig> config = oci::ParseImageConfig(raw, digest);
  if (!config.ok()) return;
  absl::MutexLock lock(&mutex_);
  images_.AddConfig(digest, config->diff_ids);
  changed_.SignalAll();
}

void LearnedBlobsImpl::LearnManifest(const base::Digest& digest, absl::string_view raw, ImageRecord known) {
  const auto parsed = oci::ParseManifestOrIndex(raw, digest, "");
  if (!parsed.ok() || !std::holds_alternative<oci::Manifest>(*parsed)) return;
  const auto& manifest = std::get<oci::Manifest>(*parsed);
  std::set<base::Digest> whole;
  for (const oci::Descriptor& layer : manifest.layers) {
    if (content_->HeldFile(layer.digest).ok()) whole.insert(layer.digest);
  }
  bool ask = false;
  const bool save = known.manifest.empty();  // else it is recorded
  {
    absl::MutexLock lock(&mutex_);
    LearnedImage* const image = images_.Add(digest, manifest);
    if (image == nullptr) return;
    image->namespaces.merge(known.namespaces);
    AddOnce(known.repositories, &image->repositories);
    const absl::Time now = options_.clock->WallTime();
    for (const oci::Descriptor& layer : image->layers) {
      if (!LearnedImages::IsCandidate(layer)) continue;
      const auto [blob, anew] = blobs_.try_emplace(layer.digest);
      if (anew) {
        blob->second.whole = whole.contains(layer.digest);
        blob->second.record.created = blob->second.record.updated = now;
      }
      CompareImages(layer.digest);
    }
    const auto [entry, anew] = learning_.try_emplace(digest);
    Learning& learning = entry->second;
    if (anew) {
      learning.settled = !image->repositories.empty();
      learning.doubt = !save;  // recorded, and from nowhere
      learning.wait = kFirstQuestion;
      learning.until = options_.clock->Monotonic() + options_.learn_patience;
    }
    ask = anew && !learning.settled;
    changed_.SignalAll();
  }
  if (const std::optional<std::string> config = ReadDocument(manifest.config.digest)) {
    LearnConfig(manifest.config.digest, *config);
  }
  if (save) SaveImage(digest);
  absl::MutexLock lock(&mutex_);
  if (!ask || stopped_) return;
  learners_->Run([this, digest] { AskLabels(digest, true); });
}

void LearnedBlobsImpl::CompareImages(const base::Digest& layer) {
  const auto found = blobs_.find(layer);
  if (found == blobs_.end()) return;
  Blob& blob = found->second;
  oci::Descriptor& known = blob.record.blob;
  bool first = !blob.record.held;
  blob.contradictory = false;
  for (const LearnedImage* image : images_.WithLayer(layer)) {
    for (const oci::Descriptor& told : image->layers) {
      if (told.digest != layer) continue;
      if (std::exchange(first, false)) {
        known = oci::Descriptor();
        known.media_type = told.media_type;
        known.digest = told.digest;
        known.size = told.size;
        known.annotations = told.annotations;
      }
      if (told.size != known.size) blob.contradictory = true;
    }
  }
}

void LearnedBlobsImpl::AskAtOnce(const LearnedImage& image) {
  Learning& learning = learning_[image.manifest];
  if (learning.asking || learners_ == nullptr || stopped_) return;
  learning.asking = true;
  learners_->Run([this, manifest = image.manifest] { AskLabels(manifest, false); });
}

void LearnedBlobsImpl::AskLabels(const base::Digest& manifest, bool again) {
  std::set<std::string> namespaces;
  {
    absl::MutexLock lock(&mutex_);
    const LearnedImage* const image = images_.Find(manifest);
    if (image == nullptr || stopped_) return;
    Learning& learning = learning_[manifest];
    if (again && learning.settled) return;
    if (again && learning.asking) {
      learners_->RunAfter(learning.wait, [this, manifest] { AskLabels(manifest, true); });
      learning.wait = std::min(2 * learning.wait, kLastQuestion);
      return;
    }
    learning.asking = true;
    namespaces = image->namespaces;
  }
  const absl::StatusOr<std::vector<LabelledSource>> sources = ReadSources(manifest, namespaces);
  const bool found = sources.ok() && !sources->empty();
  const bool checking = found && FoundSources(manifest, *sources);
  absl::MutexLock lock(&mutex_);
  auto known = learning_.find(manifest);
  if (known == learning_.end()) return;
  Learning& learning = known->second;
  if (checking || stopped_) return;  // asking, still; or done already
  learning.asking = false;
  changed_.SignalAll();
  if (found) learning.settled = true;  // nothing that can be asked
  // A containerd that is not there yet may tell later.
  if (options_.clock->Monotonic() >= learning.until && !absl::IsUnavailable(sources.status())) {
    learning.settled = true;
  }
  if (!again || learning.settled) return;
  learners_->RunAfter(learning.wait, [this, manifest] { AskLabels(manifest, true); });
  learning.wait = std::min(2 * learning.wait, kLastQuestion);
}

absl::StatusOr<std::vector<LabelledSource>> LearnedBlobsImpl::ReadSources(
    const base::Digest& manifest, const std::set<std::string>& namespaces) {
  std::vector<std::string> asked(namespaces.begin(), namespaces.end());
  if (asked.empty()) {
    ASSIGN_OR_RETURN(asked, options_.namespaces->List());
  }
  std::vector<LabelledSource> sources;
  for (const std::string& name_space : asked) {
    absl::StatusOr<Labels> labels = options_.namespaces->BlobLabels(name_space, manifest);
    if (absl::IsNotFound(labels.status())) continue;
    RETURN_IF_ERROR(labels.status());
    for (LabelledSource& source : LabelledSources(*labels)) sources.push_back(std::move(source));
  }
  return sources;
}

bool LearnedBlobsImpl::FoundSources(const base::Digest& manifest,
                                    const std::vector<LabelledSource>& sources) {
  std::vector<std::string> likely;
  std::vector<std::string> doubtful;
  for (const LabelledSource& source : sources) {
    const bool ipv6 = absl::StrContains(source.host_name, ":");
    const std::string plain = ipv6 ? absl::StrCat("[", source.host_name, "]") : source.host_name;
    std::vector<std::string> hosts = options_.hosts(source.host_name);
    // The host without a port first: the label says no more.
    std::partition(hosts.begin(), hosts.end(), [&](const std::string& host) { return host == plain; });
    for (const std::string& host : hosts) AddRepository(host, source.repository, &likely);
    if (hosts.empty() || hosts.front() != plain) AddRepository(plain, source.repository, &doubtful);
  }
  absl::MutexLock lock(&mutex_);
  const LearnedImage* const image = images_.Find(manifest);
  if (image == nullptr || stopped_) return false;
  Learning& learning = learning_[manifest];
  if (learning.doubt) {
    doubtful.insert(doubtful.begin(), likely.begin(), likely.end());
    likely.clear();
  }
  if (likely.empty() && doubtful.empty()) return false;
  if (image->repositories.empty()) learning.likely = likely;
  changed_.SignalAll();
  checkers_->Run([this, manifest, likely = std::move(likely), doubtful = std::move(doubtful)] {
    CheckRepositories(manifest, likely, doubtful);
  });
  return true;
}

void LearnedBlobsImpl::CheckRepositories(const base::Digest& manifest, const std::vector<std::string>& likely,
                                         const std::vector<std::string>& doubtful) {
  std::vector<std::string> good;
  std::vector<std::string> unanswered;
  const auto has_it = [&](const std::string& repository, bool keep) {
    if (stop_->cancelled()) return false;
    const absl::Status status = options_.check(absl::StrCat(repository, "@", manifest.ToString()), stop_);
    if (status.ok()) good.push_back(repository);
    if (!status.ok() && !IsRefused(status) && keep) unanswered.push_back(repository);
    return status.ok();
  };
  for (size_t i = 0; i < likely.size(); ++i) {
    if (!has_it(likely[i], true)) continue;
    unanswered.insert(unanswered.end(), likely.begin() + static_cast<ptrdiff_t>(i) + 1, likely.end());
    break;
  }
  for (size_t i = 0; good.empty() && i < doubtful.size(); ++i) has_it(doubtful[i], false);
  if (stop_->cancelled()) return;
  SetRepositories(manifest, std::move(good), unanswered);
}

void LearnedBlobsImpl::SetRepositories(const base::Digest& manifest, std::vector<std::string> good,
                                       const std::vector<std::string>& unanswered) {
  std::vector<base::Digest> held;
  bool believed = false;
  {
    absl::MutexLock lock(&mutex_);
    LearnedImage* const image = images_.Find(manifest);
    if (image == nullptr) return;
    Learning& learning = learning_[manifest];
    believed = !learning.likely.empty();
    learning.asking = false;
    learning.settled = true;
    changed_.SignalAll();
    learning.likely.clear();
    learning.doubt = good.empty() && unanswered.empty();
    if (good.empty()) {
      if (image->repositories.empty()) learning.likely = unanswered;
    } else {
      AddOnce(unanswered, &good);
      AddOnce(image->repositories, &good);  // who had it once may let nobody in for a moment
      image->repositories = std::move(good);
      for (const oci::Descriptor& layer : image->layers) {
        const auto found = blobs_.find(layer.digest);
        if (found != blobs_.end() && found->second.record.held) held.push_back(layer.digest);
      }
    }
  }
  if (believed) DropUnsourced(manifest);
  SaveImage(manifest);
  for (const base::Digest& digest : held) SaveBlob(digest);
}

void LearnedBlobsImpl::SaveImage(const base::Digest& manifest) {
  absl::MutexLock order(&records_mutex_);
  std::optional<ImageRecord> record;
  {
    absl::MutexLock lock(&mutex_);
    if (const LearnedImage* const image = images_.Find(manifest)) {
      record = ImageRecord{manifest, image->namespaces, image->repositories};
    }
  }
  Log(record.has_value() ? records_->Put(*record) : records_->RemoveImage(manifest),
      absl::StrCat("record of image ", manifest.ToString()));
}

}  // namespace lazyblob::contentservice

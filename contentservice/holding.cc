// What containerd's namespaces hold of lazy blobs. A zero-byte commit of a shared blob never reaches the
// store behind containerd, so it is asked for; and where no client writes a blob, it is held for them.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status.h"
#include "contentservice/internal/learned_blobs_impl.h"

namespace lazyblob::contentservice {
namespace {

constexpr absl::Duration kLongestLook = absl::Seconds(10);
constexpr absl::Duration kFirstTry = absl::Milliseconds(100);
constexpr absl::Duration kLastTry = absl::Minutes(1);
constexpr absl::Duration kRecheckPatience = absl::Seconds(10);  // of one registry

}  // namespace

absl::StatusOr<bool> LearnedBlobsImpl::IsHeld(const base::Digest& digest) {
  ASSIGN_OR_RETURN(const std::vector<std::string> namespaces, options_.namespaces->List());
  for (const std::string& name_space : namespaces) {
    const absl::Status found = options_.namespaces->BlobLabels(name_space, digest).status();
    if (found.ok()) return true;
    if (!absl::IsNotFound(found)) return found;
  }
  return false;
}

void LearnedBlobsImpl::Expect(const base::Digest& digest, absl::Duration wait, absl::Duration until) {
  const absl::StatusOr<bool> held = IsHeld(digest);
  if (held.ok() && *held) {
    SetHeld(digest);
    return;
  }
  absl::MutexLock lock(&mutex_);
  auto found = blobs_.find(digest);
  if (found == blobs_.end() || stopped_) return;
  const bool late = options_.clock->Monotonic() + wait > until && !absl::IsUnavailable(held.status());
  if (late || found->second.record.held || found->second.whole) {
    found->second.expected = false;
    return;
  }
  holders_->RunAfter(
      wait, [this, digest, wait, until] { Expect(digest, std::min(2 * wait, kLongestLook), until); });
}

void LearnedBlobsImpl::SetHeld(const base::Digest& digest) {
  {
    absl::MutexLock lock(&mutex_);
    auto found = blobs_.find(digest);
    if (found == blobs_.end() || found->second.whole) return;
    found->second.expected = false;
    if (Repositories(found->second).empty()) return;  // being dropped
    found->second.record.held = true;
    changed_.SignalAll();
  }
  SaveBlob(digest);
}

void LearnedBlobsImpl::HoldLater(const std::string& name_space, const base::Digest& layer) {
  if (name_space.empty()) return;
  absl::MutexLock lock(&mutex_);
  if (stopped_ || holders_ == nullptr || !holding_.emplace(name_space, layer).second) return;
  holders_->Run([this, name_space, layer] { Hold(name_space, layer, kFirstTry); });
}

void LearnedBlobsImpl::Hold(const std::string& name_space, const base::Digest& digest, absl::Duration wait) {
  // Lazy or whole.
  const absl::StatusOr<Info> known = content_->GetInfo(digest);
  absl::Status held = known.status();
  if (known.ok()) held = options_.namespaces->BlobLabels(name_space, digest).status();
  if (known.ok() && absl::IsNotFound(held)) {
    oci::Descriptor blob;
    blob.digest = digest;
    blob.size = known->size;
    std::vector<std::string> repositories;
    bool contradictory = false;
    {
      absl::MutexLock lock(&mutex_);
      if (auto found = blobs_.find(digest); found != blobs_.end()) {
        repositories = Repositories(found->second);
        contradictory = found->second.contradictory && !found->second.whole;
      }
    }
    held = contradictory ? absl::FailedPreconditionError("images tell different sizes of it")
                         : options_.namespaces->Hold(name_space, blob, SourceLabels(repositories));
  }
  if (held.ok()) SetHeld(digest);
  absl::MutexLock lock(&mutex_);
  if (held.ok() || stopped_ || wait > kLastTry) {
    holding_.erase({name_space, digest});
    if (!held.ok() && !stopped_) {
      Log(held, absl::StrCat("namespace ", base::Printable(name_space), " does not hold layer ",
                             digest.ToString(), ", so it cannot be pushed from there; pull the image again"));
    }
    return;
  }
  holders_->RunAfter(wait, [this, name_space, digest, wait] { Hold(name_space, digest, 2 * wait); });
}

void LearnedBlobsImpl::Recheck(const base::Digest& digest) {
  oci::Descriptor blob;
  std::vector<std::string> repositories;
  {
    absl::MutexLock lock(&mutex_);
    auto found = blobs_.find(digest);
    if (found == blobs_.end()) return;
    blob = found->second.record.blob;
    repositories = Repositories(found->second);
  }
  std::set<std::string> failed;
  for (const std::string& repository : repositories) {
    registry::CallContext context;
    context.deadline = base::SystemClock().Monotonic() + kRecheckPatience;
    context.cancel = stop_;
    const auto source = options_.sources("registry:" + repository);
    const auto sink = [](absl::Span<const uint8_t>) { return absl::OkStatus(); };
    // Who is not let in today, because credentials have changed, may be tomorrow.
    const absl::Status read = source.ok() ? (*source)->Read(blob, {0, 1}, sink, context) : source.status();
    if (!source.ok() || absl::IsNotFound(read)) failed.insert(repository);
  }
  if (failed.empty()) return;
  {
    absl::MutexLock lock(&mutex_);
    auto found = blobs_.find(digest);
    if (found == blobs_.end()) return;
    found->second.record.failed.merge(failed);
    if (Repositories(found->second).empty()) DropLater(digest, &found->second);
  }
  SaveBlob(digest);
}

void LearnedBlobsImpl::DropUnsourced(const base::Digest& manifest) {
  absl::MutexLock lock(&mutex_);
  const LearnedImage* const image = images_.Find(manifest);
  if (image == nullptr) return;
  for (const oci::Descriptor& layer : image->layers) {
    auto found = blobs_.find(layer.digest);
    if (found == blobs_.end() || found->second.whole || !Repositories(found->second).empty()) continue;
    DropLater(layer.digest, &found->second);
  }
}

void LearnedBlobsImpl::DropLater(const base::Digest& digest, Blob* blob) {
  blob->record.held = false;
  if (stopped_ || holders_ == nullptr) return;
  options_.log(absl::StrCat("layer ", digest.ToString(),
                            ": no registry that it is said to be from gives it, so ",
                            "it is not lazy; where it is missed, pull its image again"));
  StartDropping(digest);
}

void LearnedBlobsImpl::StartDropping(const base::Digest& digest) {
  holders_->Run([this, digest] { Drop(digest, kFirstTry); });
}

void LearnedBlobsImpl::Lost(const base::Digest& digest) {
  Deleted(digest);
  absl::MutexLock lock(&mutex_);
  if (stopped_) return;
  if (holders_ == nullptr) {
    lost_.push_back(digest);
  } else {
    StartDropping(digest);
  }
}

void LearnedBlobsImpl::Drop(const base::Digest& digest, absl::Duration wait) {
  if (content_->HeldFile(digest).ok()) return;  // a client has written it meanwhile
  {
    absl::MutexLock lock(&mutex_);
    if (stopped_) return;
    const auto found = blobs_.find(digest);
    if (found != blobs_.end() && !Repositories(found->second).empty()) {
      if (found->second.record.held || found->second.expected) return;
      found->second.expected = true;
      const absl::Duration until = options_.clock->Monotonic() + options_.hold_patience;
      holders_->Run([this, digest, until] { Expect(digest, kFirstTry, until); });
      return;
    }
    if (Undecided(digest)) {
      holders_->RunAfter(wait, [this, digest, wait] { Drop(digest, std::min(2 * wait, kLongestLook)); });
      return;
    }
  }
  absl::Status status;
  const absl::StatusOr<std::vector<std::string>> namespaces = options_.namespaces->List();
  status.Update(namespaces.status());
  if (namespaces.ok()) {
    for (const std::string& name_space : *namespaces) {
      status.Update(options_.namespaces->Drop(name_space, digest));
    }
  }
  if (status.ok()) {
    {
      absl::MutexLock lock(&mutex_);
      const auto found = blobs_.find(digest);
      if (found != blobs_.end() && Repositories(found->second).empty()) found->second.record.held = false;
      DropUntaught(digest);
    }
    return SaveBlob(digest);
  }
  absl::MutexLock lock(&mutex_);
  if (stopped_) return;
  // A containerd that is not there is waited for.
  if (wait > kLastTry && !absl::IsUnavailable(status)) {
    return Log(status, absl::StrCat("blob ", digest.ToString(), " cannot be forgotten"));
  }
  wait = std::min(wait, kLastTry);
  holders_->RunAfter(wait, [this, digest, wait] { Drop(digest, 2 * wait); });
}

}  // namespace lazyblob::contentservice

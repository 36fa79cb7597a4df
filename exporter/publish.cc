#include "exporter/publish.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <tuple>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "exporter/internal/at_once.h"
#include "oci/manifest.h"
#include "oci/manifest_writer.h"
#include "registry/pusher.h"

namespace lazyblob::exporter {
namespace {

constexpr size_t kPlacementsAtOnce = 16;
constexpr size_t kDocumentsAtOnce = 8;

// A repository and what it gets.
struct Repository {
  oci::Reference name;  // without tag and digest
  std::vector<std::string> tags;
};

// What a registry need not have, and often must not: layers that stay where their URLs say.
bool StaysOutside(const oci::Descriptor& descriptor) {
  return !descriptor.urls.empty() && (absl::StrContains(descriptor.media_type, ".foreign.") ||
                                      absl::StrContains(descriptor.media_type, "nondistributable"));
}

class Publication {
 public:
  Publication(absl::Span<const oci::Reference> destinations, const PublishOptions& options)
      : destinations_(destinations), options_(options) {}

  absl::StatusOr<std::vector<v1::Ready>> Run(const Content& early, WholeContentSource whole)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    GroupDestinations();
    auto registration = options_.cancel->OnCancel([stop = stop_] { stop->Cancel(); });
    if (!early.documents.empty()) RETURN_IF_ERROR(CheckDigests(early));
    // The rest is known once the early blobs are made: it need not wait until they are placed, too.
    const std::vector<Placement> first = Unplaced(early);
    absl::Status rest;
    std::thread beside([&] {
      rest = PlaceRest(early, whole);
      if (!rest.ok()) stop_->Cancel();
    });
    const absl::Status placed = PlaceBlobs(first);
    beside.join();
    if (!absl::IsCancelled(placed)) RETURN_IF_ERROR(placed);
    RETURN_IF_ERROR(rest);  // before what it has cancelled
    RETURN_IF_ERROR(placed);
    RETURN_IF_ERROR(PutDocuments());
    std::vector<v1::Ready> ready;
    const absl::MutexLock lock(&mutex_);
    for (const oci::Reference& destination : destinations_) {
      const auto merged = merged_.find(Tagged(destination).ToString());
      const oci::Descriptor& top = merged == merged_.end() ? content_->top().descriptor : merged->second;
      v1::Ready one;
      one.set_reference(absl::StrCat(destination.Name(), "@", top.digest.ToString()));
      one.set_digest(top.digest.ToString());
      one.set_size(top.size);
      ready.push_back(std::move(one));
    }
    return ready;
  }

 private:
  static oci::Reference Tagged(const oci::Reference& destination) {
    oci::Reference tagged = destination;
    if (!tagged.tag.has_value()) tagged.tag = "latest";
    return tagged;
  }

  absl::Status CheckDigests(const Content& content) const {
    const base::Digest& top = content.top().descriptor.digest;
    for (const oci::Reference& destination : destinations_) {
      if (!destination.digest.has_value() || *destination.digest == top) continue;
      return absl::InvalidArgumentError(absl::StrCat(destination.ToString(), ": ", content.name, " is ",
                                                     top.ToString(), "; name a tag instead of a digest"));
    }
    return absl::OkStatus();
  }

  void GroupDestinations() {
    for (const oci::Reference& destination : destinations_) {
      auto known = std::find_if(
          repositories_.begin(), repositories_.end(),
          [&](const Repository& repository) { return repository.name.Name() == destination.Name(); });
      if (known == repositories_.end()) {
        Repository repository{destination, {}};
        repository.name.tag.reset();
        repository.name.digest.reset();
        known = repositories_.insert(repositories_.end(), std::move(repository));
      }
      if (!destination.digest.has_value()) known->tags.push_back(destination.tag.value_or("latest"));
    }
  }

  PlaceRequest Request(const ContentBlob& blob, const Repository& repository) {
    PlaceRequest request;
    request.blob = blob.blob;
    request.repository = repository.name;
    request.priority = options_.priority;
    request.cancel = stop_;
    request.credentials = options_.credentials;
    return request;
  }

  // What is told of one blob on its way to one repository: one final state, whatever calls come late.
  class Teller {
   public:
    Teller(const PublishOptions& options, const ContentBlob& blob, const Repository& repository)
        : options_(options) {
      if (!blob.descriptor.digest.empty()) told_.set_digest(blob.descriptor.digest.ToString());
      told_.set_name(blob.name.empty() ? told_.digest() : blob.name);
      told_.set_destination(repository.name.Name());
      told_.set_size(blob.descriptor.size);
      told_.set_cache(options.priority == Priority::kCache);
    }
    void Tell(const std::string& state, std::optional<uint64_t> sent, bool final)
        ABSL_LOCKS_EXCLUDED(mutex_) {
      absl::MutexLock lock(&mutex_);
      if (ended_) return;
      ended_ = final;
      if (sent.has_value()) told_.set_bytes(*sent);
      told_.set_state(state);
      if (final && options_.uploaded != nullptr) *options_.uploaded += told_.bytes();
      if (final && options_.read != nullptr) *options_.read += read_;
      if (options_.progress) options_.progress(told_);
    }
    // Bytes that belong to the final state, which is told when the call returns.
    void Moved(const PlacementProgress& progress) ABSL_LOCKS_EXCLUDED(mutex_) {
      absl::MutexLock lock(&mutex_);
      told_.set_bytes(progress.sent);
      read_ = progress.read;
    }

   private:
    const PublishOptions& options_;
    absl::Mutex mutex_;
    v1::Progress told_ ABSL_GUARDED_BY(mutex_);
    uint64_t read_ ABSL_GUARDED_BY(mutex_) = 0;
    bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  };

  // As users read it.
  static std::string Name(PlacementState state) {
    return state == PlacementState::kUploaded ? "pushed" : std::string(PlacementStateName(state));
  }

  absl::Status PlaceOne(const ContentBlob& blob, const Repository& repository, bool again) {
    auto teller =
        std::make_shared<Teller>(options_, blob, repository);  // shared with callbacks that come late
    PlaceRequest request = Request(blob, repository);
    request.progress = [teller, again](const PlacementProgress& progress) {
      if (!IsFinal(progress.state) && !again) teller->Tell(Name(progress.state), progress.sent, false);
      if (IsFinal(progress.state)) teller->Moved(progress);
    };
    auto placed = again ? options_.placer->PlaceAgain(request) : options_.placer->Place(request);
    // One that is sent again has been told to have ended.
    if (!again) teller->Tell(Name(placed.ok() ? *placed : PlacementState::kFailed), std::nullopt, true);
    return placed.status();
  }

  struct Placement {
    const ContentBlob* blob;
    const Repository* repository;
  };

  absl::Status PlaceRest(const Content& early, WholeContentSource whole) {
    for (const ContentBlob& blob : early.blobs) {
      RETURN_IF_ERROR(blob.blob->WaitDescriptor(stop_.get()).status());
    }
    ASSIGN_OR_RETURN(content_, whole());
    RETURN_IF_ERROR(CheckDigests(*content_));
    return PlaceBlobs(Unplaced(*content_));
  }

  // What no placement was begun for yet.
  std::vector<Placement> Unplaced(const Content& content) {
    std::vector<Placement> placements;
    for (const ContentBlob& blob : content.blobs) {
      if (StaysOutside(blob.descriptor) || !placed_.insert(blob.blob.get()).second) continue;
      for (const Repository& repository : repositories_) placements.push_back({&blob, &repository});
    }
    // The largest first: what is long ends the whole.
    // (Blobs lie in one vector: their addresses are their order.)
    std::sort(placements.begin(), placements.end(), [](const Placement& a, const Placement& b) {
      return std::make_tuple(b.blob->descriptor.size, a.blob, a.repository) <
             std::make_tuple(a.blob->descriptor.size, b.blob, b.repository);
    });
    return placements;
  }

  absl::Status PlaceBlobs(const std::vector<Placement>& placements) {
    absl::Mutex mutex;
    std::vector<contentstore::MissingProvider> missing;
    std::set<base::Digest> named;
    auto place = [&](size_t i) {
      absl::Status status = PlaceOne(*placements[i].blob, *placements[i].repository, false);
      auto lacking = contentstore::GetMissingProviders(status);
      if (lacking.empty()) return status;
      // Others go on: the error is to list all of them.
      absl::MutexLock lock(&mutex);
      for (auto& one : lacking) {
        if (named.insert(one.digest).second) missing.push_back(std::move(one));
      }
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(AtOnce(placements.size(), kPlacementsAtOnce, stop_.get(), place));
    return missing.empty() ? absl::OkStatus() : contentstore::ProviderMissingError(missing);
  }

  registry::CallContext Call() const {
    registry::CallContext call;
    call.deadline = base::SystemClock().Monotonic() + absl::Minutes(2);
    call.cancel = stop_;
    call.credentials = options_.credentials;
    return call;
  }

  // A registry may say that a blob is unknown which it said it has: then it is sent again, once.
  absl::Status Put(const oci::Reference& reference, const Repository& repository, const Document& document) {
    absl::Status status = options_.put(reference, document, Call());
    if (status.ok()) return status;
    const std::optional<registry::Refusal> refusal = registry::RefusalOf(status);
    if (!refusal.has_value() || refusal->code != "MANIFEST_BLOB_UNKNOWN") return status;
    for (const base::Digest& digest : document.blobs) {
      const auto& named = refusal->digests;
      if (!named.empty() && std::find(named.begin(), named.end(), digest) == named.end()) continue;
      const ContentBlob* blob = content_->Find(digest);
      if (blob != nullptr) RETURN_IF_ERROR(PlaceOne(*blob, repository, true));
    }
    return options_.put(reference, document, Call());
  }

  absl::Status PutByDigest(const Repository& repository, const Document& document) {
    oci::Reference reference = repository.name;
    reference.digest = document.descriptor.digest;
    return Put(reference, repository, document);
  }

  absl::Status PutDocuments() {
    auto put_all = [&](size_t i) -> absl::Status {
      const Repository& repository = repositories_[i];
      std::vector<const Document*> manifests;
      std::vector<const Document*> indexes;
      for (const Document& document : content_->documents) {
        if (&document == &content_->top()) continue;
        (document.index ? indexes : manifests).push_back(&document);
      }
      RETURN_IF_ERROR(AtOnce(manifests.size(), kDocumentsAtOnce, stop_.get(),
                             [&](size_t m) { return PutByDigest(repository, *manifests[m]); }));
      for (const Document* index : indexes) RETURN_IF_ERROR(PutByDigest(repository, *index));
      // With one tag to set, that request says it all; an index that joins another is not put by itself.
      return OnlyOneTag() || options_.indexes != nullptr ? absl::OkStatus()
                                                         : PutByDigest(repository, content_->top());
    };
    RETURN_IF_ERROR(AtOnce(repositories_.size(), kDocumentsAtOnce, stop_.get(), put_all));
    if (options_.prepared) RETURN_IF_ERROR(options_.prepared());
    std::vector<std::pair<const Repository*, const std::string*>> tags;
    for (const Repository& repository : repositories_) {
      for (const std::string& tag : repository.tags) tags.emplace_back(&repository, &tag);
    }
    return AtOnce(tags.size(), kDocumentsAtOnce, stop_.get(), [&](size_t i) {
      oci::Reference reference = tags[i].first->name;
      reference.tag = *tags[i].second;
      return options_.indexes != nullptr ? PutIndex(reference)
                                         : Put(reference, *tags[i].first, content_->top());
    });
  }

  absl::Status PutIndex(const oci::Reference& tag) ABSL_LOCKS_EXCLUDED(mutex_) {
    ASSIGN_OR_RETURN(oci::Descriptor merged,
                     options_.indexes->PutPlatforms(tag, content_->top(), options_.append, Call()));
    absl::MutexLock lock(&mutex_);
    merged_[tag.ToString()] = std::move(merged);
    return absl::OkStatus();
  }

  bool OnlyOneTag() const {
    return repositories_.size() == 1 && repositories_[0].tags.size() == 1 && destinations_.size() == 1;
  }

  const absl::Span<const oci::Reference> destinations_;
  const PublishOptions& options_;
  const std::shared_ptr<base::CancelToken> stop_ = std::make_shared<base::CancelToken>();
  std::vector<Repository> repositories_;
  const Content* content_ = nullptr;  // once it is whole
  std::set<const Blob*> placed_;
  absl::Mutex mutex_;
  std::map<std::string, oci::Descriptor> merged_ ABSL_GUARDED_BY(mutex_);  // by reference
};

// The manifest's own entry in an index of referrers; nullopt: it has no subject.
std::optional<std::pair<base::Digest, oci::Descriptor>> AsReferrer(const Document& document) {
  auto parsed = oci::ParseManifestOrIndex(document.raw, std::nullopt, document.descriptor.media_type);
  if (!parsed.ok() || !std::holds_alternative<oci::Manifest>(*parsed)) return std::nullopt;
  const auto& manifest = std::get<oci::Manifest>(*parsed);
  if (!manifest.subject.has_value()) return std::nullopt;
  oci::Descriptor entry = oci::DescriptorOf(document.raw, manifest.media_type);
  entry.artifact_type = manifest.artifact_type.empty() ? manifest.config.media_type : manifest.artifact_type;
  entry.annotations = manifest.annotations;
  return std::pair(manifest.subject->digest, std::move(entry));
}

}  // namespace

PutDocument MakePutDocument(registry::Client* client) {
  auto indexes = std::make_shared<IndexWriter>(client);  // shared by copies of the function
  return [client, indexes](const oci::Reference& reference, const Document& document,
                           const registry::CallContext& context) -> absl::Status {
    ASSIGN_OR_RETURN(const registry::Pusher::ManifestPut put,
                     registry::Pusher(client).PutManifest(reference, document.descriptor.media_type,
                                                          document.raw, context));
    const auto referrer = AsReferrer(document);
    if (!referrer.has_value() || put.subject_indexed) return absl::OkStatus();
    return indexes->AddReferrer(reference, referrer->first, referrer->second, context);
  };
}

absl::StatusOr<std::vector<v1::Ready>> Publish(const Content& early, WholeContentSource whole,
                                               absl::Span<const oci::Reference> destinations,
                                               const PublishOptions& options) {
  return Publication(destinations, options).Run(early, whole);
}

}  // namespace lazyblob::exporter

#include "exporter/assemble.h"

#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "exporter/image_builder.h"
#include "exporter/unlazy.h"
#include "oci/index_merge.h"
#include "oci/manifest.h"
#include "oci/manifest_writer.h"
#include "registry/pusher.h"

namespace lazyblob::exporter {
namespace {

constexpr int kAttempts = 5;

// nullopt: the config says none, as those of artifacts.
absl::StatusOr<std::optional<oci::Platform>> PlatformOf(absl::string_view config,
                                                        const base::Digest& digest) {
  absl::StatusOr<oci::ImageConfig> parsed = oci::ParseImageConfig(config, digest);
  if (absl::IsDataLoss(parsed.status())) return parsed.status();
  if (!parsed.ok() || parsed->platform.os.empty() || parsed->platform.architecture.empty()) {
    return std::nullopt;
  }
  return parsed->platform;
}

// What `image` contributes to an index.
absl::StatusOr<std::vector<oci::Descriptor>> Entries(const Content& content, const v1::Image& image,
                                                     const contentstore::FetchContext& context) {
  const Document& top = content.top();
  if (top.index) return ListedIn(top);
  oci::Descriptor entry = top.descriptor;
  ASSIGN_OR_RETURN(auto parsed, oci::ParseManifestOrIndex(top.raw, entry.digest, entry.media_type));
  const auto& manifest = std::get<oci::Manifest>(parsed);
  ASSIGN_OR_RETURN(std::string config, ReadSmall(content, manifest.config, oci::kMaxConfigBytes, context));
  ASSIGN_OR_RETURN(entry.platform, PlatformOf(config, manifest.config.digest));
  if (!image.platform().empty()) {
    ASSIGN_OR_RETURN(oci::Platform asked, oci::ParsePlatform(image.platform()));
    if (entry.platform &&
        (entry.platform->os != asked.os || entry.platform->architecture != asked.architecture)) {
      return absl::InvalidArgumentError(absl::StrCat("its config says ",
                                                     base::Printable(entry.platform->ToString()), ", not ",
                                                     asked.ToString(), "; name the right image"));
    }
    entry.platform = std::move(asked);
  }
  return std::vector<oci::Descriptor>{std::move(entry)};
}

}  // namespace

absl::StatusOr<std::vector<oci::Descriptor>> ListedIn(const Document& document) {
  ASSIGN_OR_RETURN(auto parsed, oci::ParseManifestOrIndex(document.raw, document.descriptor.digest,
                                                          document.descriptor.media_type));
  if (!std::holds_alternative<oci::Index>(parsed)) return absl::InvalidArgumentError("not an image index");
  return std::get<oci::Index>(std::move(parsed)).manifests;
}

absl::StatusOr<Content> JoinPlatforms(std::vector<Content> contents, const v1::ExportRequest& request,
                                      const contentstore::FetchContext& context) {
  if (contents.size() == 1 && request.index() == v1::INDEX_UNSPECIFIED) return std::move(contents[0]);
  Content whole;
  std::vector<oci::Descriptor> manifests;
  for (size_t i = 0; i < contents.size(); ++i) {
    auto entries = Entries(contents[i], request.images(static_cast<int>(i)), context);
    if (!entries.ok()) return base::Annotate(entries.status(), base::Printable(contents[i].name));
    for (oci::Descriptor& entry : *entries) {
      entry.annotations = PublicAnnotations(entry.annotations);
      entry.annotations.erase(oci::kRefNameAnnotation);
      manifests.push_back(std::move(entry));
    }
    absl::StrAppend(&whole.name, i == 0 ? "" : ", ", contents[i].name);
    if (contents[i].top().index) contents[i].documents.pop_back();  // what it lists is listed here
    for (Document& document : contents[i].documents) {
      if (whole.FindDocument(document.descriptor.digest) == nullptr) {
        whole.documents.push_back(std::move(document));
      }
    }
    for (ContentBlob& blob : contents[i].blobs) {
      if (whole.Find(blob.descriptor.digest) == nullptr) whole.blobs.push_back(std::move(blob));
    }
  }
  const char* media_type =
      request.docker_media_types() ? oci::kMediaTypeDockerIndex : oci::kMediaTypeOciIndex;
  Document index;
  index.index = true;
  ASSIGN_OR_RETURN(index.raw, oci::MergePlatforms("", media_type, manifests));
  index.descriptor = oci::DescriptorOf(index.raw, media_type);
  whole.documents.push_back(std::move(index));
  return whole;
}

class IndexWriter::Impl {
 public:
  explicit Impl(registry::Client* client) : client_(*client) {}

  // What a tag names; empty: nothing.
  struct Tagged {
    std::string raw;
    std::string media_type;
  };
  using Edit = absl::FunctionRef<absl::StatusOr<Tagged>(const Tagged& current)>;

  absl::StatusOr<oci::Descriptor> Update(const oci::Reference& tag, int attempts, Edit edit,
                                         const registry::CallContext& caller) ABSL_LOCKS_EXCLUDED(mutex_) {
    registry::CallContext context = caller;
    context.access = registry::Access::kPush;  // of the registry itself, never a mirror's
    const Turn turn(this, tag.ToString(), context.cancel);
    if (context.cancel != nullptr && context.cancel->cancelled()) return absl::CancelledError("cancelled");
    for (int attempt = 0; attempt < attempts; ++attempt) {
      ASSIGN_OR_RETURN(const Tagged current, Read(tag, context));
      ASSIGN_OR_RETURN(const Tagged changed, edit(current));
      oci::Descriptor wanted = oci::DescriptorOf(changed.raw, changed.media_type);
      if (changed.raw == current.raw) return wanted;
      RETURN_IF_ERROR(
          registry::Pusher(&client_).PutManifest(tag, changed.media_type, changed.raw, context).status());
      ASSIGN_OR_RETURN(const oci::Descriptor there, client_.HeadManifest(tag, context));
      if (there.digest == wanted.digest) return wanted;
    }
    return absl::FailedPreconditionError(absl::StrCat(tag.ToString(),
                                                      ": somebody else writes it at the same time; let ",
                                                      "one program write it, and try again"));
  }

  // A single image, as an index of one.
  absl::StatusOr<Tagged> AsIndex(const oci::Reference& tag, const Tagged& current,
                                 const oci::Manifest& manifest, const registry::CallContext& context) {
    oci::Descriptor entry = oci::DescriptorOf(current.raw, current.media_type);
    ASSIGN_OR_RETURN(std::string config,
                     client_.GetSmallBlob(tag, manifest.config, oci::kMaxConfigBytes, context));
    ASSIGN_OR_RETURN(entry.platform, PlatformOf(config, manifest.config.digest));
    if (!entry.platform) {
      return absl::FailedPreconditionError(absl::StrCat(
          tag.ToString(), ": what is there says no platform, so none can be put beside it; use another tag"));
    }
    Tagged index;
    index.media_type = manifest.media_type == oci::kMediaTypeDockerManifest ? oci::kMediaTypeDockerIndex
                                                                            : oci::kMediaTypeOciIndex;
    ASSIGN_OR_RETURN(index.raw, oci::MergePlatforms("", index.media_type, {entry}));
    return index;
  }

 private:
  // Whoever has it is the only one here that writes `key`. Has none when cancelled.
  class Turn {
   public:
    Turn(Impl* impl, std::string key, const std::shared_ptr<base::CancelToken>& cancel)
        : impl_(*impl), key_(std::move(key)) {
      std::optional<base::CancelToken::Registration> wake;
      if (cancel != nullptr) {
        // Whoever waits looks again when the mutex is let go.
        wake.emplace(cancel->OnCancel([this] { absl::MutexLock lock(&impl_.mutex_); }));
      }
      absl::MutexLock lock(&impl_.mutex_);
      auto free = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_.mutex_) {
        return impl_.busy_.count(key_) == 0 || (cancel != nullptr && cancel->cancelled());
      };
      impl_.mutex_.Await(absl::Condition(&free));
      mine_ = impl_.busy_.insert(key_).second;
    }
    ~Turn() {
      absl::MutexLock lock(&impl_.mutex_);
      if (mine_) impl_.busy_.erase(key_);
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    Impl& impl_;
    const std::string key_;
    bool mine_ = false;
  };

  absl::StatusOr<Tagged> Read(const oci::Reference& tag, const registry::CallContext& context) {
    auto fetched = client_.GetManifest(tag, context);
    if (absl::IsNotFound(fetched.status())) return Tagged();
    RETURN_IF_ERROR(fetched.status());
    return Tagged{std::move(fetched->raw), std::move(fetched->descriptor.media_type)};
  }

  registry::Client& client_;
  absl::Mutex mutex_;
  std::set<std::string> busy_ ABSL_GUARDED_BY(mutex_);  // tags
};

IndexWriter::IndexWriter(registry::Client* client) : impl_(std::make_unique<Impl>(client)) {}
IndexWriter::~IndexWriter() = default;

absl::StatusOr<oci::Descriptor> IndexWriter::PutPlatforms(const oci::Reference& tag, const Document& index,
                                                          bool append, const registry::CallContext& context) {
  ASSIGN_OR_RETURN(const std::vector<oci::Descriptor> listed, ListedIn(index));
  auto edit = [&](const Impl::Tagged& current) -> absl::StatusOr<Impl::Tagged> {
    Impl::Tagged changed{index.raw, index.descriptor.media_type};
    if (!append || current.raw.empty()) return changed;
    changed = current;
    ASSIGN_OR_RETURN(auto parsed, oci::ParseManifestOrIndex(current.raw, std::nullopt, current.media_type));
    if (const auto* manifest = std::get_if<oci::Manifest>(&parsed)) {
      changed.media_type = manifest->media_type;
      ASSIGN_OR_RETURN(changed, impl_->AsIndex(tag, changed, *manifest, context));
    } else {
      changed.media_type = std::get<oci::Index>(parsed).media_type;
    }
    ASSIGN_OR_RETURN(changed.raw, oci::MergePlatforms(changed.raw, changed.media_type, listed));
    return changed;
  };
  return impl_->Update(tag, append ? kAttempts : 1, edit, context);
}

absl::Status IndexWriter::AddReferrer(const oci::Reference& repository, const base::Digest& subject,
                                      const oci::Descriptor& referrer, const registry::CallContext& context) {
  oci::Reference tag = repository;
  tag.digest.reset();
  tag.tag = absl::StrCat(subject.algorithm() == base::DigestAlgorithm::kSha256 ? "sha256-" : "sha512-",
                         subject.hex().substr(0, 64));
  auto edit = [&](const Impl::Tagged& current) -> absl::StatusOr<Impl::Tagged> {
    Impl::Tagged changed{"", oci::kMediaTypeOciIndex};
    ASSIGN_OR_RETURN(changed.raw, oci::MergeReferrer(current.raw, referrer));
    return changed;
  };
  absl::StatusOr<oci::Descriptor> put = impl_->Update(tag, kAttempts, edit, context);
  return base::Annotate(put.status(), absl::StrCat("referrers ", tag.ToString()));
}

}  // namespace lazyblob::exporter

#include "exporter/content.h"

#include <algorithm>
#include <set>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "oci/layout.h"

namespace lazyblob::exporter {
namespace {

constexpr int kMaxDepth = 4;
constexpr size_t kMaxDocuments = 1000;

class SourceBlob final : public Blob {
 public:
  SourceBlob(std::shared_ptr<contentstore::BlobSource> source, oci::Descriptor descriptor,
             std::vector<oci::Reference> repositories)
      : source_(std::move(source)),
        descriptor_(std::move(descriptor)),
        repositories_(std::move(repositories)) {}

  std::optional<oci::Descriptor> descriptor() const override { return descriptor_; }
  absl::StatusOr<oci::Descriptor> WaitDescriptor(base::CancelToken*) override { return descriptor_; }
  absl::Status Read(uint64_t offset, registry::BodySink sink,
                    const contentstore::FetchContext& context) override {
    if (offset > descriptor_.size) {
      return absl::OutOfRangeError(
          absl::StrCat("blob ", descriptor_.digest.ToString(), ": ", offset, " is behind its end"));
    }
    registry::CallContext call;
    call.deadline = context.deadline;
    call.cancel = context.cancel;
    call.credentials = context.credentials;
    return source_->Read(descriptor_, {offset, descriptor_.size - offset}, sink, call);
  }
  std::vector<oci::Reference> repositories() const override { return repositories_; }
  std::string origin() const override { return source_->name(); }
  bool local() const override { return source_->local(); }

 private:
  const std::shared_ptr<contentstore::BlobSource> source_;  // shared with other blobs of the image
  const oci::Descriptor descriptor_;
  const std::vector<oci::Reference> repositories_;
};

class MissingBlob final : public Blob {
 public:
  MissingBlob(oci::Descriptor descriptor, std::string wanted_by)
      : descriptor_(std::move(descriptor)), wanted_by_(std::move(wanted_by)) {}

  std::optional<oci::Descriptor> descriptor() const override { return descriptor_; }
  absl::StatusOr<oci::Descriptor> WaitDescriptor(base::CancelToken*) override { return descriptor_; }
  absl::Status Read(uint64_t, registry::BodySink, const contentstore::FetchContext&) override {
    return contentstore::ProviderMissingError({{descriptor_.digest, descriptor_.size, wanted_by_}});
  }
  bool provided() const override { return false; }
  bool local() const override { return true; }

 private:
  const oci::Descriptor descriptor_;
  const std::string wanted_by_;
};

// Where documents and blobs are: a repository or a layout.
class Origin {
 public:
  virtual ~Origin() = default;
  virtual absl::StatusOr<registry::FetchedManifest> Top(const registry::CallContext& context) = 0;
  virtual absl::StatusOr<registry::FetchedManifest> Read(const oci::Descriptor& descriptor,
                                                         const registry::CallContext& context) = 0;
  // What layers are to be had from later; null: nothing that stays.
  virtual std::shared_ptr<contentstore::BlobSource> source() const = 0;
  virtual std::vector<oci::Reference> repositories() const = 0;
  // Null: the blob is not there. Does not ask anybody. `repositories`: all that are known to have it.
  virtual std::shared_ptr<Blob> Open(const oci::Descriptor& descriptor,
                                     std::vector<oci::Reference> repositories) const = 0;
};

class RegistryOrigin final : public Origin {
 public:
  RegistryOrigin(registry::Client* client, oci::Reference reference)
      : client_(*client),
        reference_(std::move(reference)),
        source_(contentstore::MakeRegistrySource(client, reference_)) {}

  absl::StatusOr<registry::FetchedManifest> Top(const registry::CallContext& context) override {
    return client_.GetManifest(reference_, context);
  }
  absl::StatusOr<registry::FetchedManifest> Read(const oci::Descriptor& descriptor,
                                                 const registry::CallContext& context) override {
    oci::Reference by_digest = reference_;
    by_digest.tag.reset();
    by_digest.digest = descriptor.digest;
    return client_.GetManifest(by_digest, context);
  }
  std::shared_ptr<contentstore::BlobSource> source() const override { return source_; }
  std::vector<oci::Reference> repositories() const override { return {reference_}; }
  std::shared_ptr<Blob> Open(const oci::Descriptor& descriptor,
                             std::vector<oci::Reference> repositories) const override {
    return MakeSourceBlob(source_, descriptor, std::move(repositories));
  }

 private:
  registry::Client& client_;
  const oci::Reference reference_;
  const std::shared_ptr<contentstore::BlobSource> source_;  // shared with its blobs
};

class LayoutOrigin final : public Origin {
 public:
  LayoutOrigin(std::shared_ptr<const oci::Layout> layout, std::optional<std::string> tag, bool stays)
      : layout_(std::move(layout)), tag_(std::move(tag)), stays_(stays) {}

  absl::StatusOr<registry::FetchedManifest> Top(const registry::CallContext& context) override {
    ASSIGN_OR_RETURN(oci::Descriptor top, layout_->Resolve(tag_));
    return Read(top, context);
  }
  absl::StatusOr<registry::FetchedManifest> Read(const oci::Descriptor& descriptor,
                                                 const registry::CallContext&) override {
    registry::FetchedManifest document;
    document.descriptor = descriptor;
    document.content_type = descriptor.media_type;
    ASSIGN_OR_RETURN(document.raw, layout_->ReadBlob(descriptor.digest, oci::kMaxManifestBytes));
    return document;
  }
  std::shared_ptr<contentstore::BlobSource> source() const override {
    return stays_ ? contentstore::MakeLayoutSource(layout_->directory()) : nullptr;
  }
  std::vector<oci::Reference> repositories() const override { return {}; }
  std::shared_ptr<Blob> Open(const oci::Descriptor& descriptor,
                             std::vector<oci::Reference> repositories) const override {
    if (!layout_->OpenBlob(descriptor.digest).ok()) return nullptr;
    return MakeLayoutBlob(layout_, descriptor, std::move(repositories));
  }

 private:
  const std::shared_ptr<const oci::Layout> layout_;  // shared with its blobs
  const std::optional<std::string> tag_;
  const bool stays_;
};

class Reader {
 public:
  Reader(const ContentParts& parts, Origin* origin, const registry::CallContext& context, Content* content)
      : parts_(parts), origin_(*origin), context_(context), content_(*content) {}

  absl::Status Read(const std::optional<oci::Platform>& platform) {
    ASSIGN_OR_RETURN(registry::FetchedManifest top, origin_.Top(context_));
    return AddDocument(std::move(top), platform, 0);
  }

 private:
  absl::Status AddDocument(registry::FetchedManifest fetched, const std::optional<oci::Platform>& platform,
                           int depth) {
    if (depth > kMaxDepth || content_.documents.size() > kMaxDocuments) {
      return absl::InvalidArgumentError("indexes are nested too deep, or list too much");
    }
    ASSIGN_OR_RETURN(auto parsed,
                     oci::ParseManifestOrIndex(fetched.raw, fetched.descriptor.digest, fetched.content_type));
    Document document;
    document.descriptor = std::move(fetched.descriptor);
    document.descriptor.size = fetched.raw.size();
    document.raw = std::move(fetched.raw);
    if (const auto* manifest = std::get_if<oci::Manifest>(&parsed)) {
      document.descriptor.media_type = manifest->media_type;
      RETURN_IF_ERROR(AddBlob(manifest->config, &document));
      for (const oci::Descriptor& layer : manifest->layers) RETURN_IF_ERROR(AddBlob(layer, &document));
    } else {
      const auto& index = std::get<oci::Index>(parsed);
      document.descriptor.media_type = index.media_type;
      document.index = true;
      if (platform.has_value()) {  // the index itself is not wanted
        ASSIGN_OR_RETURN(oci::Descriptor chosen, oci::SelectPlatform(index, *platform));
        ASSIGN_OR_RETURN(registry::FetchedManifest child, origin_.Read(chosen, context_));
        return AddDocument(std::move(child), platform, depth + 1);
      }
      for (const oci::Descriptor& child : index.manifests) RETURN_IF_ERROR(AddChild(child, depth, &document));
    }
    content_.documents.push_back(std::move(document));
    return absl::OkStatus();
  }

  absl::Status AddChild(const oci::Descriptor& child, int depth, Document* parent) {
    // Build caches list layers and configs in an index.
    if (!oci::IsManifestMediaType(child.media_type) && !oci::IsIndexMediaType(child.media_type)) {
      return AddBlob(child, parent);
    }
    if (!seen_.insert(child.digest).second) return absl::OkStatus();
    auto fetched = origin_.Read(child, context_);
    if (!fetched.ok()) {
      absl::Status status = fetched.status();
      if (absl::IsNotFound(status)) status = absl::DataLossError(status.message());
      return base::Annotate(status, absl::StrCat("listed in ", parent->descriptor.digest.ToString(),
                                                 " (name one platform to leave others out)"));
    }
    return AddDocument(*std::move(fetched), std::nullopt, depth + 1);
  }

  absl::Status AddBlob(const oci::Descriptor& descriptor, Document* document) {
    document->blobs.push_back(descriptor.digest);
    if (!seen_.insert(descriptor.digest).second) return absl::OkStatus();
    ContentBlob blob;
    blob.descriptor = descriptor;
    blob.layer = oci::LayerCompression(descriptor.media_type).has_value();
    ASSIGN_OR_RETURN(blob.blob, OpenBlob(blob));
    content_.blobs.push_back(std::move(blob));
    return absl::OkStatus();
  }

  absl::StatusOr<std::shared_ptr<Blob>> OpenBlob(const ContentBlob& wanted) {
    const oci::Descriptor& descriptor = wanted.descriptor;
    const std::shared_ptr<contentstore::LazyLayer> known = parts_.store->Find(descriptor.digest);
    const std::shared_ptr<contentstore::BlobSource> source = origin_.source();
    std::shared_ptr<Blob> here =
        origin_.Open(descriptor, known != nullptr ? Repositories(*known) : origin_.repositories());
    if (here != nullptr && source == nullptr) return here;
    if (known != nullptr || (parts_.keep && wanted.layer)) {
      contentstore::DescriptorHandler handler;
      handler.descriptor = descriptor;
      if (here != nullptr) handler.sources.push_back(source);
      ASSIGN_OR_RETURN(std::shared_ptr<contentstore::LazyLayer> layer, parts_.store->AddHandler(handler));
      return MakeLazyBlob(parts_.store, layer, descriptor, Repositories(*layer), parts_.keep_blobs);
    }
    return here != nullptr ? here : MakeMissingBlob(descriptor, content_.name);
  }

  // Every repository that is known to have it: candidates for a mount.
  std::vector<oci::Reference> Repositories(contentstore::LazyLayer& layer) {
    std::vector<oci::Reference> repositories = origin_.repositories();
    for (const std::string& source : parts_.store->SourceNames(layer)) {
      absl::string_view name = source;
      if (!absl::ConsumePrefix(&name, "registry:")) continue;
      auto parsed = oci::ParseReference(name);
      const auto same = [&](const oci::Reference& one) { return one.Name() == parsed->Name(); };
      if (!parsed.ok() || std::any_of(repositories.begin(), repositories.end(), same)) continue;
      repositories.push_back(*std::move(parsed));
    }
    return repositories;
  }

  const ContentParts& parts_;
  Origin& origin_;
  const registry::CallContext& context_;
  Content& content_;
  std::set<base::Digest> seen_;
};

absl::StatusOr<Content> ReadFrom(Origin* origin, const ContentParts& parts, std::string name,
                                 const std::optional<oci::Platform>& platform,
                                 const registry::CallContext& context) {
  Content content;
  content.name = std::move(name);
  absl::Status status = Reader(parts, origin, context, &content).Read(platform);
  if (!status.ok()) return base::Annotate(status, base::Printable(content.name));
  return content;
}

}  // namespace

const ContentBlob* Content::Find(const base::Digest& digest) const {
  auto found = std::find_if(blobs.begin(), blobs.end(),
                            [&](const ContentBlob& blob) { return blob.descriptor.digest == digest; });
  return found == blobs.end() ? nullptr : &*found;
}

const Document* Content::FindDocument(const base::Digest& digest) const {
  auto found = std::find_if(documents.begin(), documents.end(),
                            [&](const Document& document) { return document.descriptor.digest == digest; });
  return found == documents.end() ? nullptr : &*found;
}

absl::Status CheckProvided(const Content& content, const std::vector<base::Digest>& wanted) {
  std::vector<contentstore::MissingProvider> missing;
  std::set<base::Digest> seen;
  for (const base::Digest& digest : wanted) {
    const ContentBlob* blob = content.Find(digest);
    if (blob == nullptr || blob->blob->provided() || !seen.insert(digest).second) continue;
    missing.push_back({digest, blob->descriptor.size, content.name});
  }
  return missing.empty() ? absl::OkStatus() : contentstore::ProviderMissingError(missing);
}

std::shared_ptr<Blob> MakeSourceBlob(std::shared_ptr<contentstore::BlobSource> source,
                                     oci::Descriptor descriptor, std::vector<oci::Reference> repositories) {
  return std::make_shared<SourceBlob>(std::move(source), std::move(descriptor), std::move(repositories));
}

std::shared_ptr<Blob> MakeMissingBlob(oci::Descriptor descriptor, std::string wanted_by) {
  return std::make_shared<MissingBlob>(std::move(descriptor), std::move(wanted_by));
}

absl::StatusOr<Content> ReadContent(const ContentParts& parts, const oci::ImageReference& reference,
                                    const std::optional<oci::Platform>& platform,
                                    const registry::CallContext& context) {
  const std::string name = oci::ToString(reference);
  if (const auto* remote = std::get_if<oci::Reference>(&reference)) {
    RegistryOrigin origin(parts.client, *remote);
    return ReadFrom(&origin, parts, name, platform, context);
  }
  const auto& local = std::get<oci::LayoutReference>(reference);
  auto layout = oci::Layout::Open(local.directory);
  if (!layout.ok()) return base::Annotate(layout.status(), base::Printable(name));
  LayoutOrigin origin(std::make_shared<const oci::Layout>(*std::move(layout)), local.tag, /*stays=*/true);
  return ReadFrom(&origin, parts, name, platform, context);
}

absl::StatusOr<Content> ReadContent(const ContentParts& parts, std::shared_ptr<const oci::Layout> layout,
                                    std::string name, const std::optional<oci::Platform>& platform,
                                    const registry::CallContext& context) {
  LayoutOrigin origin(std::move(layout), std::nullopt, /*stays=*/false);
  return ReadFrom(&origin, parts, std::move(name), platform, context);
}

}  // namespace lazyblob::exporter

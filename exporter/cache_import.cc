#include "exporter/cache_import.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "exporter/unlazy.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {
namespace {

constexpr char kOciImageConfig[] = "application/vnd.oci.image.config.v1+json";
constexpr char kDockerImageConfig[] = "application/vnd.docker.container.image.v1+json";

class Importer {
 public:
  Importer(const Content& content, const ImportOptions& options, ImportedCache* imported)
      : content_(content), options_(options), imported_(*imported) {}

  // False: there is no cache in it.
  absl::StatusOr<bool> Run() {
    ASSIGN_OR_RETURN(const auto top, Parse(content_.top()));
    if (const auto config = CacheConfigOf(top); config.has_value()) {
      if (options_.plain) return OfBuildKit();
      ASSIGN_OR_RETURN(const std::string text, Config(*config, kMaxCacheDocumentBytes));
      ASSIGN_OR_RETURN(Cache cache, ReadCache(top, text));
      RETURN_IF_ERROR(AddBuild(std::move(cache)));
      return true;
    }
    bool any = false;
    for (const Document& document : content_.documents) {
      if (document.index) continue;
      ASSIGN_OR_RETURN(const auto parsed, Parse(document));
      const auto& manifest = std::get<oci::Manifest>(parsed);
      const std::string& kind = manifest.config.media_type;
      if (kind != kOciImageConfig && kind != kDockerImageConfig) continue;
      ASSIGN_OR_RETURN(const std::string config, Config(manifest.config, oci::kMaxConfigBytes));
      ASSIGN_OR_RETURN(const bool found, AddImage(manifest, config));
      any = any || found;
    }
    return any;
  }

 private:
  static absl::Status OfBuildKit() {
    return absl::InvalidArgumentError(
        "a build cache of BuildKit, whose records a plain cache image cannot hold; choose another format");
  }

  static absl::StatusOr<std::variant<oci::Manifest, oci::Index>> Parse(const Document& document) {
    return oci::ParseManifestOrIndex(document.raw, document.descriptor.digest,
                                     document.descriptor.media_type);
  }

  absl::StatusOr<std::string> Config(const oci::Descriptor& descriptor, uint64_t max_bytes) const {
    auto config = ReadSmall(content_, descriptor, max_bytes, options_.fetch);
    if (!absl::IsNotFound(config.status())) return config;
    return absl::DataLossError(absl::StrCat("its config is missing: ", config.status().message()));
  }

  absl::StatusOr<bool> AddImage(const oci::Manifest& manifest, const std::string& config) {
    ASSIGN_OR_RETURN(auto plain, ReadPlainCache(manifest, config));
    ASSIGN_OR_RETURN(auto inlined, ReadInlineCache(manifest, config));
    if (options_.plain) {
      if (plain.has_value()) AddPlain(*std::move(plain));
      if (!plain.has_value() && inlined.has_value()) return OfBuildKit();
      return plain.has_value();
    }
    if (plain.has_value()) {
      return absl::InvalidArgumentError(
          "a plain cache image, which has no records that a build cache needs; choose format plain");
    }
    if (inlined.has_value()) RETURN_IF_ERROR(AddBuild(*std::move(inlined)));
    return inlined.has_value();
  }

  absl::Status AddBuild(Cache cache) {
    for (const auto& [digest, blob] : cache.blobs) AddBlob(digest);
    ASSIGN_OR_RETURN(imported_.build, MergeCaches({std::move(imported_.build), std::move(cache)}));
    return absl::OkStatus();
  }

  void AddPlain(std::vector<PlainCacheLayer> layers) {
    for (PlainCacheLayer& layer : layers) {
      const auto same = [&](const PlainCacheLayer& known) { return known.name == layer.name; };
      if (options_.skip.contains(layer.name) ||
          std::any_of(imported_.plain.begin(), imported_.plain.end(), same)) {
        continue;
      }
      AddBlob(layer.layer.descriptor.digest);
      imported_.plain.push_back(std::move(layer));
    }
  }

  // Every blob that a manifest names is in the content, but for one that is a document there.
  void AddBlob(const base::Digest& digest) {
    const ContentBlob* const blob = content_.Find(digest);
    if (blob != nullptr && imported_.Find(digest) == nullptr) imported_.blobs.push_back(*blob);
  }

  const Content& content_;
  const ImportOptions& options_;
  ImportedCache& imported_;
};

}  // namespace

const ContentBlob* ImportedCache::Find(const base::Digest& digest) const {
  const auto found = std::find_if(blobs.begin(), blobs.end(),
                                  [&](const ContentBlob& blob) { return blob.descriptor.digest == digest; });
  return found == blobs.end() ? nullptr : &*found;
}

absl::Status ImportCache(const ContentParts& parts, const oci::ImageReference& reference,
                         const ImportOptions& options, ImportedCache* imported) {
  const std::string name = base::Printable(oci::ToString(reference));
  auto content = ReadContent(parts, reference, std::nullopt, options.call);
  if (absl::IsNotFound(content.status())) {
    imported->warnings.push_back(absl::StrCat(name, ": there is no such cache yet; nothing is imported"));
    return absl::OkStatus();
  }
  if (!content.ok()) return base::Annotate(content.status(), "import of a cache");
  const auto found = Importer(*content, options, imported).Run();
  if (!found.ok()) return base::Annotate(found.status(), absl::StrCat("import of a cache: ", name));
  if (!*found) imported->warnings.push_back(absl::StrCat(name, ": holds no cache; nothing is imported"));
  return absl::OkStatus();
}

}  // namespace lazyblob::exporter

#include "oci/index_merge.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"
#include "oci/manifest.h"
#include "oci/manifest_writer.h"

namespace lazyblob::oci {
namespace {

using nlohmann::json;

// An entry as it was read, with what is known of it.
struct Entry {
  json value;
  Descriptor descriptor;

  bool about_another() const { return descriptor.annotations.count(kAboutAnnotation) > 0; }
  std::string about() const { return about_another() ? descriptor.annotations.at(kAboutAnnotation) : ""; }
  std::string platform() const {
    if (!descriptor.platform) return "";
    Platform platform = *descriptor.platform;
    if (platform.architecture == "arm64" && platform.variant == "v8") platform.variant.clear();  // the same
    return absl::StrCat(platform.ToString(), platform.os_version.empty() ? "" : " ", platform.os_version);
  }
};

struct Document {
  json value;  // without its manifests
  std::vector<Entry> entries;
};

absl::StatusOr<Document> Read(absl::string_view raw, absl::string_view media_type) {
  Document document;
  if (raw.empty()) {
    document.value = {{"schemaVersion", 2}, {"mediaType", std::string(media_type)}};
    return document;
  }
  ASSIGN_OR_RETURN(auto parsed, ParseManifestOrIndex(raw, std::nullopt, ""));
  if (!std::holds_alternative<Index>(parsed)) return absl::InvalidArgumentError("not an image index");
  const std::vector<Descriptor>& descriptors = std::get<Index>(parsed).manifests;
  ASSIGN_OR_RETURN(document.value, base::ParseJson(raw, kMaxManifestBytes));
  const json& manifests = document.value["manifests"];
  if (manifests.size() != descriptors.size()) return absl::InvalidArgumentError("not an image index");
  for (size_t i = 0; i < descriptors.size(); ++i) document.entries.push_back({manifests[i], descriptors[i]});
  return document;
}

absl::StatusOr<std::string> Write(Document document) {
  json manifests = json::array();
  for (Entry& entry : document.entries) manifests.push_back(std::move(entry.value));
  document.value["manifests"] = std::move(manifests);
  std::string raw = WriteJson(document.value);
  if (raw.size() > kMaxManifestBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the image index would have ", raw.size(), " bytes, limit is ", kMaxManifestBytes));
  }
  return raw;
}

// What is added, by platform; what is about another comes after them.
absl::StatusOr<std::vector<Entry>> Added(absl::Span<const Descriptor> manifests) {
  std::vector<Entry> added;
  std::map<std::string, base::Digest> platforms;
  std::set<base::Digest> seen;
  for (const Descriptor& manifest : manifests) {
    Entry entry{ToJson(manifest), manifest};
    if (!entry.about_another()) {
      if (!manifest.platform) {
        return absl::InvalidArgumentError(absl::StrCat("manifest ", manifest.digest.ToString(),
                                                       " says no platform, an index wants one; name it"));
      }
      const auto [known, first] = platforms.try_emplace(entry.platform(), manifest.digest);
      if (!first && known->second != manifest.digest) {
        return absl::InvalidArgumentError(absl::StrCat(
            "two images for ", base::Printable(known->first.substr(0, 128)), ": ", known->second.ToString(),
            " and ", manifest.digest.ToString(), "; an index holds one of each platform"));
      }
      if (!first) continue;
    } else if (!seen.insert(manifest.digest).second) {
      continue;
    }
    added.push_back(std::move(entry));
  }
  return added;
}

}  // namespace

absl::StatusOr<std::string> MergePlatforms(absl::string_view raw, absl::string_view media_type,
                                           absl::Span<const Descriptor> manifests) {
  ASSIGN_OR_RETURN(Document document, Read(raw, media_type));
  ASSIGN_OR_RETURN(std::vector<Entry> added, Added(manifests));
  std::set<std::string> platforms;
  std::set<std::string> digests;
  for (const Entry& entry : added) {
    if (!entry.about_another()) platforms.insert(entry.platform());
    digests.insert(entry.descriptor.digest.ToString());
  }
  auto replaced = [&](const Entry& entry) {
    return digests.count(entry.descriptor.digest.ToString()) > 0 ||
           (!entry.about_another() && platforms.count(entry.platform()) > 0);
  };
  std::set<std::string> gone;
  for (const Entry& entry : document.entries) {
    const std::string digest = entry.descriptor.digest.ToString();
    if (replaced(entry) && digests.count(digest) == 0) gone.insert(digest);
  }
  std::erase_if(document.entries,
                [&](const Entry& entry) { return replaced(entry) || gone.count(entry.about()) > 0; });
  for (Entry& entry : added) document.entries.push_back(std::move(entry));
  auto order = [](const Entry& entry) {
    return std::tuple(entry.about_another(), entry.platform(), entry.descriptor.digest.ToString(),
                      entry.value.dump());
  };
  std::sort(document.entries.begin(), document.entries.end(),
            [&](const Entry& a, const Entry& b) { return order(a) < order(b); });
  return Write(std::move(document));
}

absl::StatusOr<std::string> MergeReferrer(absl::string_view raw, const Descriptor& referrer) {
  ASSIGN_OR_RETURN(Document document, Read(raw, kMediaTypeOciIndex));
  for (const Entry& entry : document.entries) {
    if (entry.descriptor.digest == referrer.digest) return std::string(raw);
  }
  document.entries.push_back({ToJson(referrer), referrer});
  return Write(std::move(document));
}

}  // namespace lazyblob::oci

#include "tests/support/internal/registry_contents.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "oci/descriptor.h"

namespace lazyblob::support::internal {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxDocument = 16 << 20;

std::string BlobPath(const std::string& directory, const std::string& digest) {
  std::string path = absl::StrCat(directory, "/blobs/", digest);
  path[path.rfind(':')] = '/';
  return path;
}

// One manifest's line in a referrers index; empty when it has another subject.
json Referrer(const StoredManifest& stored, absl::string_view subject) {
  const json manifest = json::parse(stored.raw.Read(0, stored.raw.size), nullptr, false);
  if (!manifest.is_object() || !manifest.contains("subject")) return {};
  if (manifest["subject"].value("digest", "") != std::string(subject)) return {};
  json line = {
      {"mediaType", stored.media_type}, {"digest", stored.digest.ToString()}, {"size", stored.raw.size}};
  if (manifest.contains("artifactType")) {
    line["artifactType"] = manifest["artifactType"];
  } else if (manifest.contains("config")) {
    line["artifactType"] = manifest["config"].value("mediaType", "");
  }
  if (manifest.contains("annotations")) line["annotations"] = manifest["annotations"];
  return line;
}

}  // namespace

Bytes Bytes::Of(std::string bytes) {
  Bytes out;
  out.size = bytes.size();
  out.memory = std::make_shared<const std::string>(std::move(bytes));
  return out;
}

std::string Bytes::Read(uint64_t offset, uint64_t length) const {
  if (memory != nullptr) return memory->substr(offset, length);
  absl::StatusOr<base::UniqueFd> fd = base::OpenFile(file, O_RDONLY);
  std::string out(length, '\0');
  if (!fd.ok() || !base::PreadFull(fd->get(), offset, {reinterpret_cast<uint8_t*>(out.data()), length}).ok())
    return {};
  return out;
}

void RegistryContents::PutBlob(absl::string_view repository, const base::Digest& digest, Bytes bytes) {
  absl::MutexLock lock(&mutex_);
  repositories_[std::string(repository)].blobs[digest.ToString()] = std::move(bytes);
}

void RegistryContents::RemoveBlob(absl::string_view repository, const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  repositories_[std::string(repository)].blobs.erase(digest.ToString());
}

void RegistryContents::PutManifest(absl::string_view repository, absl::string_view tag,
                                   StoredManifest manifest) {
  absl::MutexLock lock(&mutex_);
  Repository& into = repositories_[std::string(repository)];
  const std::string digest = manifest.digest.ToString();
  if (!tag.empty()) into.tags[std::string(tag)] = digest;
  into.manifests[digest] = std::move(manifest);
}

absl::Status RegistryContents::PutLayout(absl::string_view repository, const std::string& directory) {
  struct Pending {
    json descriptor;
    bool required;
  };
  ASSIGN_OR_RETURN(const std::string index_text, base::ReadFile(directory + "/index.json", kMaxDocument));
  ASSIGN_OR_RETURN(const json index, base::ParseJson(index_text, kMaxDocument));
  std::vector<Pending> pending;
  for (const json& entry : index.value("manifests", json::array())) pending.push_back({entry, true});
  while (!pending.empty()) {
    const Pending next = std::move(pending.back());
    pending.pop_back();
    const std::string digest_text = next.descriptor.value("digest", "");
    ASSIGN_OR_RETURN(const base::Digest digest, base::Digest::Parse(digest_text));
    absl::StatusOr<std::string> raw = base::ReadFile(BlobPath(directory, digest_text), kMaxDocument);
    // A layout may hold only some platforms of an index.
    if (absl::IsNotFound(raw.status()) && !next.required) continue;
    if (!raw.ok()) return raw.status();
    ASSIGN_OR_RETURN(const json document, base::ParseJson(*raw, kMaxDocument));
    std::string tag;
    if (next.descriptor.contains("annotations")) {
      tag = next.descriptor["annotations"].value("org.opencontainers.image.ref.name", "");
    }
    PutManifest(repository, tag, {Bytes::Of(*raw), next.descriptor.value("mediaType", ""), digest});
    for (const json& entry : document.value("manifests", json::array())) pending.push_back({entry, false});
    json blobs = document.value("layers", json::array());
    if (document.contains("config")) blobs.push_back(document["config"]);
    for (const json& blob : blobs) {
      ASSIGN_OR_RETURN(const base::Digest blob_digest, base::Digest::Parse(blob.value("digest", "")));
      Bytes bytes;
      bytes.file = BlobPath(directory, blob_digest.ToString());
      struct stat info{};
      if (stat(bytes.file.c_str(), &info) != 0) continue;
      bytes.size = static_cast<uint64_t>(info.st_size);
      PutBlob(repository, blob_digest, std::move(bytes));
    }
  }
  return absl::OkStatus();
}

std::optional<Bytes> RegistryContents::FindBlob(absl::string_view repository,
                                                absl::string_view digest) const {
  absl::MutexLock lock(&mutex_);
  const auto found = repositories_.find(std::string(repository));
  if (found == repositories_.end()) return std::nullopt;
  const auto blob = found->second.blobs.find(std::string(digest));
  if (blob == found->second.blobs.end()) return std::nullopt;
  return blob->second;
}

std::optional<Bytes> RegistryContents::FindAnywhere(absl::string_view digest) const {
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, repository] : repositories_) {
    const auto blob = repository.blobs.find(std::string(digest));
    if (blob != repository.blobs.end()) return blob->second;
  }
  return std::nullopt;
}

std::optional<StoredManifest> RegistryContents::FindManifest(absl::string_view repository,
                                                             absl::string_view reference) const {
  absl::MutexLock lock(&mutex_);
  const auto found = repositories_.find(std::string(repository));
  if (found == repositories_.end()) return std::nullopt;
  std::string digest(reference);
  if (const auto tag = found->second.tags.find(digest); tag != found->second.tags.end()) digest = tag->second;
  const auto manifest = found->second.manifests.find(digest);
  if (manifest == found->second.manifests.end()) return std::nullopt;
  return manifest->second;
}

std::string RegistryContents::Referrers(absl::string_view repository, absl::string_view subject,
                                        absl::string_view artifact_type) const {
  json index = {{"schemaVersion", 2}, {"mediaType", oci::kMediaTypeOciIndex}, {"manifests", json::array()}};
  absl::MutexLock lock(&mutex_);
  if (const auto found = repositories_.find(std::string(repository)); found != repositories_.end()) {
    for (const auto& [digest, manifest] : found->second.manifests) {
      const json line = Referrer(manifest, subject);
      if (line.is_null()) continue;
      if (!artifact_type.empty() && line.value("artifactType", "") != std::string(artifact_type)) continue;
      index["manifests"].push_back(line);
    }
  }
  return index.dump();
}

std::string RegistryContents::TagList(absl::string_view repository) const {
  json list = {{"name", std::string(repository)}, {"tags", json::array()}};
  absl::MutexLock lock(&mutex_);
  if (const auto found = repositories_.find(std::string(repository)); found != repositories_.end()) {
    for (const auto& [tag, digest] : found->second.tags) list["tags"].push_back(tag);
  }
  return list.dump();
}

}  // namespace lazyblob::support::internal

#include "contentservice/learned_images.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace lazyblob::contentservice {
namespace {

constexpr absl::string_view kSourceLabel = "containerd.io/distribution.source.";

void Forget(std::map<base::Digest, std::set<base::Digest>>* index, const base::Digest& key,
            const base::Digest& manifest) {
  auto found = index->find(key);
  if (found == index->end()) return;
  found->second.erase(manifest);
  if (found->second.empty()) index->erase(found);
}

}  // namespace

bool LearnedImages::IsCandidate(const oci::Descriptor& layer) {
  return layer.urls.empty() && layer.size > 0 && oci::LayerCompression(layer.media_type).has_value();
}

LearnedImage* LearnedImages::Add(const base::Digest& manifest, const oci::Manifest& parsed) {
  if (LearnedImage* known = Find(manifest)) return known;
  if (std::none_of(parsed.layers.begin(), parsed.layers.end(), IsCandidate)) return nullptr;
  LearnedImage& image = images_[manifest];
  image.manifest = manifest;
  image.config = parsed.config.digest;
  image.layers = parsed.layers;
  by_config_[image.config].insert(manifest);
  for (const oci::Descriptor& layer : image.layers) {
    if (IsCandidate(layer)) by_layer_[layer.digest].insert(manifest);
  }
  return &image;
}

void LearnedImages::AddConfig(const base::Digest& config, const std::vector<base::Digest>& diff_ids) {
  auto found = by_config_.find(config);
  if (found == by_config_.end()) return;
  for (const base::Digest& manifest : found->second) {
    LearnedImage& image = images_.at(manifest);
    if (image.layers.size() != diff_ids.size()) continue;
    image.diff_ids = diff_ids;
    image.chains = ChainIds(diff_ids);
    for (const base::Digest& chain : image.chains) by_chain_[chain].insert(manifest);
  }
}

void LearnedImages::Remove(const base::Digest& manifest) {
  auto found = images_.find(manifest);
  if (found == images_.end()) return;
  const LearnedImage& image = found->second;
  Forget(&by_config_, image.config, manifest);
  for (const oci::Descriptor& layer : image.layers) Forget(&by_layer_, layer.digest, manifest);
  for (const base::Digest& chain : image.chains) Forget(&by_chain_, chain, manifest);
  images_.erase(found);
}

LearnedImage* LearnedImages::Find(const base::Digest& manifest) {
  auto found = images_.find(manifest);
  return found == images_.end() ? nullptr : &found->second;
}

std::vector<LearnedImage*> LearnedImages::WithLayer(const base::Digest& layer) {
  std::vector<LearnedImage*> images;
  if (auto found = by_layer_.find(layer); found != by_layer_.end()) {
    for (const base::Digest& manifest : found->second) images.push_back(&images_.at(manifest));
  }
  return images;
}

std::vector<std::pair<LearnedImage*, size_t>> LearnedImages::WithChain(const base::Digest& chain,
                                                                       const base::Digest& diff_id) {
  std::vector<std::pair<LearnedImage*, size_t>> result;
  auto found = by_chain_.find(chain);
  if (found == by_chain_.end()) return result;
  for (const base::Digest& manifest : found->second) {
    LearnedImage& image = images_.at(manifest);
    for (size_t i = 0; i < image.chains.size(); ++i) {
      if (image.chains[i] != chain || !IsCandidate(image.layers[i])) continue;
      if (diff_id.empty() || image.diff_ids[i] == diff_id) result.emplace_back(&image, i);
    }
  }
  return result;
}

std::vector<base::Digest> ChainIds(const std::vector<base::Digest>& diff_ids) {
  std::vector<base::Digest> chains;
  for (const base::Digest& diff_id : diff_ids) {
    chains.push_back(chains.empty()
                         ? diff_id
                         : base::Digest::Of(absl::StrCat(chains.back().ToString(), " ", diff_id.ToString())));
  }
  return chains;
}

std::string NamespaceOf(absl::string_view name) {
  const std::vector<absl::string_view> parts = absl::StrSplit(name, absl::MaxSplits('/', 2));
  uint64_t number = 0;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[1], &number)) return "";
  return std::string(parts[0]);
}

std::vector<LabelledSource> LabelledSources(const Labels& labels) {
  std::vector<LabelledSource> sources;
  for (const auto& [key, value] : labels) {
    absl::string_view host = key;
    if (!absl::ConsumePrefix(&host, kSourceLabel) || host.empty()) continue;
    for (absl::string_view repository : absl::StrSplit(value, ',', absl::SkipEmpty())) {
      sources.push_back({std::string(host), std::string(repository)});
    }
  }
  return sources;
}

Labels SourceLabels(const std::vector<std::string>& repositories) {
  std::map<std::string, std::set<std::string>> by_host;
  for (const std::string& repository : repositories) {
    const size_t slash = repository.find('/');
    if (slash == std::string::npos) continue;
    by_host[HostName(repository.substr(0, slash))].insert(repository.substr(slash + 1));
  }
  Labels labels;
  for (const auto& [host, names] : by_host) {
    labels[absl::StrCat(kSourceLabel, host)] = absl::StrJoin(names, ",");
  }
  return labels;
}

std::string HostName(absl::string_view host) {
  if (absl::ConsumePrefix(&host, "[")) return std::string(host.substr(0, host.find(']')));
  return std::string(host.substr(0, host.find(':')));
}

}  // namespace lazyblob::contentservice

#pragma once

// What the documents of images say: which layers a manifest has, and which chain ids its config makes of
// them. Pure; not thread-safe.

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"
#include "contentservice/content.h"
#include "oci/descriptor.h"
#include "oci/manifest.h"

namespace lazyblob::contentservice {

struct LearnedImage {
  base::Digest manifest;
  base::Digest config;
  std::vector<oci::Descriptor> layers;    // bottom first
  std::vector<base::Digest> diff_ids;     // as many; none: the config is not known, or not an image's
  std::vector<base::Digest> chains;       // of diff_ids
  std::set<std::string> namespaces;       // of containerd, where it was committed
  std::vector<std::string> repositories;  // "host/name", in the order in which they are asked; one had it
};

class LearnedImages {
 public:
  // Whether the layer can be a lazy blob: a file system layer that the registry of its manifest has.
  static bool IsCandidate(const oci::Descriptor& layer);

  // The image, new or as it is known. Null: no layer of it is a candidate.
  LearnedImage* Add(const base::Digest& manifest, const oci::Manifest& parsed);
  // Of all images with this config. One that lists another number of layers than a manifest gives it no
  // chain.
  void AddConfig(const base::Digest& config, const std::vector<base::Digest>& diff_ids);
  void Remove(const base::Digest& manifest);

  // Null: not known.
  LearnedImage* Find(const base::Digest& manifest);
  bool IsConfig(const base::Digest& config) const { return by_config_.contains(config); }
  // The images that have the layer.
  std::vector<LearnedImage*> WithLayer(const base::Digest& layer);
  // Images and which layer of them makes the chain, where its diffID is `diff_id`, unless that is empty.
  std::vector<std::pair<LearnedImage*, size_t>> WithChain(const base::Digest& chain,
                                                          const base::Digest& diff_id);
  const std::map<base::Digest, LearnedImage>& all() const { return images_; }

 private:
  using Manifests = std::set<base::Digest>;
  std::map<base::Digest, LearnedImage> images_;  // by manifest
  std::map<base::Digest, Manifests> by_config_;
  std::map<base::Digest, Manifests> by_layer_;
  std::map<base::Digest, Manifests> by_chain_;
};

// The chain ids of an image: of layer i, the digest of everything up to it (OCI image-spec, config.md).
std::vector<base::Digest> ChainIds(const std::vector<base::Digest>& diff_ids);

// The namespace in a name that containerd made, "<namespace>/<number>/<name>"; empty: it is not one.
std::string NamespaceOf(absl::string_view name);

// Where labels `containerd.io/distribution.source.<host name>` say a blob is from.
struct LabelledSource {
  std::string host_name;  // as in a URL: without port, an IPv6 address without brackets
  std::string repository;
};
std::vector<LabelledSource> LabelledSources(const Labels& labels);
// The labels of a blob from these repositories ("host[:port]/name").
Labels SourceLabels(const std::vector<std::string>& repositories);
// "host[:port]" without the port and brackets.
std::string HostName(absl::string_view host);

}  // namespace lazyblob::contentservice

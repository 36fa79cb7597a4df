#pragma once

// Build caches: what a build step's result is found by, and the layers it consists of. BuildKit's registry
// cache (application/vnd.buildkit.cacheconfig.v0, in an image manifest or in an index), its inline cache
// ("moby.buildkit.cache.v0" in an image's config), and plain cache images of named directories. Pure and
// thread-safe; the same arguments give the same bytes. Format: docs/EXPORT_FORMATS.md.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"
#include "exporter/image_builder.h"
#include "oci/descriptor.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {

inline constexpr char kMediaTypeCacheConfig[] = "application/vnd.buildkit.cacheconfig.v0";
// BuildKit reads neither configs nor manifests of caches that are larger.
inline constexpr uint64_t kMaxCacheDocumentBytes = 1 << 20;

// A layer on its parents: the same blob has several places when it lies on several chains.
struct CacheLayer {
  base::Digest blob;
  int parent = -1;  // index in Cache::layers; -1: bottom

  friend bool operator==(const CacheLayer&, const CacheLayer&) = default;
};

struct CacheLink {
  std::string selector;
  int record = 0;  // index in Cache::records

  friend auto operator<=>(const CacheLink&, const CacheLink&) = default;
};

struct CacheResult {
  int layer = 0;           // the topmost
  std::string created_at;  // RFC 3339; empty: unknown

  friend auto operator<=>(const CacheResult&, const CacheResult&) = default;
};

struct CacheRecord {
  std::string digest;                          // of the step
  std::vector<CacheResult> results;            // may be empty: only linked to
  std::vector<std::vector<CacheLink>> inputs;  // for each input what it may be; none empty
};

// Links and parents are in range and without loops: Read… and Normalize see to it.
struct Cache {
  std::vector<CacheLayer> layers;
  std::vector<CacheRecord> records;
  // Of every blob in `layers`; with containerd.io/uncompressed (the diffID) where that is known.
  std::map<base::Digest, oci::Descriptor> blobs;
};

// A layer that is exported, and the records whose result it is.
struct NewCacheRecord {
  struct Link {
    std::string selector;
    std::string digest;  // or id, of the record it links to

    friend bool operator==(const Link&, const Link&) = default;
  };
  std::string digest;
  std::vector<std::vector<Link>> inputs;
  int64_t created_at = 0;  // nanoseconds since 1970; 0: unknown
  std::string id = {};     // empty: links name the digest
};
struct NewCacheLayer {
  oci::Descriptor descriptor;
  base::Digest diff_id;
  // What it lies on, counting the layers of `imported` and then those before it in the list; -1: bottom.
  int parent = -1;
  std::vector<NewCacheRecord> records;
};
// `imported` with new layers, and with records that have none and are only linked to. A link goes to the new
// record of that name, or else to the imported one.
// InvalidArgument, naming it: a layer that has no record and lies below none that has, a link to a record
// that is not there, or to several that are not equal (a guess could give a build another step's result), a
// loop.
absl::StatusOr<Cache> CacheOfLayers(const std::vector<NewCacheLayer>& layers,
                                    const std::vector<NewCacheRecord>& only_linked = {},
                                    const Cache& imported = {});

// Where the config of a cache is: nullopt when `document` is no cache of this kind (but perhaps an image with
// an inline cache, or a plain one).
std::optional<oci::Descriptor> CacheConfigOf(const std::variant<oci::Manifest, oci::Index>& document);
// `config` has been verified against that descriptor. Results whose blobs `document` does not name are left
// out, as BuildKit does. InvalidArgument, for the whole cache: an input without links, a loop, an index that
// is out of range. ResourceExhausted: larger than BuildKit reads.
absl::StatusOr<Cache> ReadCache(const std::variant<oci::Manifest, oci::Index>& document,
                                absl::string_view config);
// The records of a config for `layers` layers that are known by their place only: what `config` says of blobs
// is not looked at, and without "layers" in it each layer lies on the one before. Errors: as ReadCache.
absl::StatusOr<Cache> ReadCacheRecords(absl::string_view config, size_t layers);
// From an image's manifest and config; nullopt when there is none in it. Chains become layers on parents.
absl::StatusOr<std::optional<Cache>> ReadInlineCache(const oci::Manifest& manifest, absl::string_view config);

// All of them in one: equal records become one that has the results of all.
absl::StatusOr<Cache> MergeCaches(const std::vector<Cache>& caches);
// mode=min: only results that are part of the last step's (one that nothing links to), and the records on the
// way to them. mode=max is a cache as it is.
absl::StatusOr<Cache> KeepMin(const Cache& cache);
// One order and no duplicates, whatever way the cache came about; layers and records nobody needs are gone.
absl::StatusOr<Cache> Normalize(const Cache& cache);

enum class CacheForm : uint8_t { kImageManifest, kIndex };
struct BuiltCache {
  std::string config;
  oci::Descriptor config_descriptor;
  std::string manifest;  // or index
  oci::Descriptor manifest_descriptor;
  std::vector<oci::Descriptor> layers;  // each blob once
};
// FailedPrecondition: there is no result in it, so nothing to export. InvalidArgument: a blob without
// descriptor or diffID. ResourceExhausted: BuildKit would not read it.
absl::StatusOr<BuiltCache> BuildCache(const Cache& cache, CacheForm form, bool docker_media_types);

// The value of the config's member for ImageSpec::inline_cache: results that consist of `layers` of the image
// only. Empty when there are none.
absl::StatusOr<std::string> InlineCache(const Cache& cache, const std::vector<oci::Descriptor>& layers);

// A cache image: the layers of named directories, each usable alone.
struct PlainCacheLayer {
  std::string name;
  NewLayer layer;
};
// InvalidArgument: a name twice, or empty.
absl::StatusOr<BuiltImage> BuildPlainCache(const std::vector<PlainCacheLayer>& layers,
                                           std::optional<int64_t> created, bool docker_media_types);
// nullopt when it is no such image; InvalidArgument for one that contradicts itself.
absl::StatusOr<std::optional<std::vector<PlainCacheLayer>>> ReadPlainCache(const oci::Manifest& manifest,
                                                                           absl::string_view config);

}  // namespace lazyblob::exporter

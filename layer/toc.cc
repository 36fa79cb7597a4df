#include <map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "layer/index_builder.h"
#include "layer/internal/toc.h"

namespace lazyblob::layer {
namespace {

using internal::TocNames;

constexpr char kStargzDigest[] = "containerd.io/snapshot/stargz/toc.digest";
// The newer prefix of containers/storage, and the one that older versions and stargz-snapshotter write.
constexpr const char* kChunkedPrefixes[] = {"io.github.containers.zstd-chunked.",
                                            "io.containers.zstd-chunked."};
constexpr uint64_t kManifestTypeCrfs = 1;

absl::Status NotLazy(const oci::Descriptor& layer, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat("layer ", layer.digest.ToString(), ": ", why));
}

// "" when absent, empty, or both prefixes absent.
absl::StatusOr<std::string> ChunkedAnnotation(const oci::Descriptor& layer, absl::string_view name) {
  std::string value;
  for (const char* prefix : kChunkedPrefixes) {
    const auto found = layer.annotations.find(absl::StrCat(prefix, name));
    if (found == layer.annotations.end() || found->second.empty()) continue;
    if (!value.empty() && value != found->second) {
      return NotLazy(layer, absl::StrCat("two zstd:chunked ", name, " annotations disagree"));
    }
    value = found->second;
  }
  return value;
}

absl::StatusOr<base::Digest> DigestOf(const oci::Descriptor& layer, absl::string_view text) {
  auto digest = base::Digest::Parse(text);
  if (!digest.ok()) {
    return NotLazy(layer,
                   absl::StrCat("TOC digest \"", base::Printable(text.substr(0, 200)), "\" is malformed"));
  }
  return digest;
}

absl::StatusOr<TocNames::Position> PositionOf(const oci::Descriptor& layer, absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  uint64_t numbers[4];
  bool good = parts.size() == 4;
  for (size_t i = 0; good && i < 4; ++i) {
    good = !parts[i].empty() && parts[i].find_first_not_of("0123456789") == absl::string_view::npos &&
           absl::SimpleAtoi(parts[i], &numbers[i]);
  }
  if (!good) {
    return NotLazy(layer, absl::StrCat("zstd:chunked manifest-position \"",
                                       base::Printable(text.substr(0, 200)), "\" is malformed"));
  }
  if (numbers[3] != kManifestTypeCrfs) return NotLazy(layer, "its zstd:chunked TOC is of an unknown type");
  return TocNames::Position{numbers[0], numbers[1], numbers[2]};
}

}  // namespace

namespace internal {

absl::StatusOr<TocNames> ReadTocNames(const oci::Descriptor& layer) {
  TocNames names;
  const auto stargz = layer.annotations.find(kStargzDigest);
  if (stargz != layer.annotations.end() && !stargz->second.empty()) {
    ASSIGN_OR_RETURN(names.json_digest, DigestOf(layer, stargz->second));
  }
  ASSIGN_OR_RETURN(const std::string checksum, ChunkedAnnotation(layer, "manifest-checksum"));
  if (!checksum.empty()) {
    ASSIGN_OR_RETURN(names.compressed_digest, DigestOf(layer, checksum));
  }
  ASSIGN_OR_RETURN(const std::string position, ChunkedAnnotation(layer, "manifest-position"));
  if (!position.empty()) {
    ASSIGN_OR_RETURN(names.position, PositionOf(layer, position));
  }
  return names;
}

}  // namespace internal

absl::StatusOr<Format> PlainFormatOf(const oci::Descriptor& layer) {
  const auto compression = oci::LayerCompression(layer.media_type);
  if (!compression.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer.digest.ToString(), ": media type \"",
                                                   base::Printable(layer.media_type.substr(0, 200)),
                                                   "\" is not a layer that can be mounted"));
  }
  switch (*compression) {
    case oci::Compression::kNone:
      return Format::kTar;
    case oci::Compression::kGzip:
      return Format::kTarGzip;
    case oci::Compression::kZstd:
      return Format::kTarZstd;
  }
  return absl::InternalError("unknown compression");
}

absl::StatusOr<Format> FormatOf(const oci::Descriptor& layer) {
  ASSIGN_OR_RETURN(const Format plain, PlainFormatOf(layer));
  ASSIGN_OR_RETURN(const TocNames names, internal::ReadTocNames(layer));
  if (!names.any()) return plain;
  switch (plain) {
    case Format::kTarGzip:
      if (!names.compressed_digest.empty()) {
        return NotLazy(layer, "it is gzip, but its annotations name a zstd:chunked TOC");
      }
      return Format::kEstargz;
    case Format::kTarZstd:
      return Format::kZstdChunked;
    default:
      return NotLazy(layer, "it is not compressed, but its annotations name a TOC");
  }
}

absl::Status IndexFromToc(Format format, const oci::Descriptor& layer, BlobReader read,
                          const BuildLimits& limits, const std::string& directory,
                          const ExternalToc& external) {
  if (format != Format::kEstargz && format != Format::kZstdChunked) {
    return absl::InvalidArgumentError(absl::StrCat("a ", FormatName(format), " layer has no TOC"));
  }
  ASSIGN_OR_RETURN(const TocNames names, internal::ReadTocNames(layer));
  if (!names.any()) return NotLazy(layer, "its annotations name no TOC digest");
  const std::string context = absl::StrCat("TOC of layer ", layer.digest.ToString());
  auto toc = internal::ReadToc(format, layer, names, read, external, limits);
  if (!toc.ok()) return base::Annotate(toc.status(), context);
  auto built = internal::BuildTocLayer(format, layer, *toc, limits);
  if (!built.ok()) return base::Annotate(built.status(), context);
  return internal::WriteLayerFiles(built->contents, built->tree, directory);
}

}  // namespace lazyblob::layer

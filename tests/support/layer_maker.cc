#include "tests/support/layer_maker.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::support {
namespace {

using nlohmann::json;

constexpr char kOciConfig[] = "application/vnd.oci.image.config.v1+json";
constexpr char kDockerConfig[] = "application/vnd.docker.container.image.v1+json";

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "layer maker: %s\n", what);
  std::abort();
}

std::string InPieces(absl::string_view bytes, uint64_t piece_size,
                     const std::function<std::string(absl::string_view)>& compress) {
  std::string out;
  do {
    const absl::string_view piece = bytes.substr(0, piece_size);
    out += compress(piece);
    bytes.remove_prefix(piece.size());
  } while (!bytes.empty());
  return out;
}

std::string LayerMediaType(oci::Compression compression) {
  switch (compression) {
    case oci::Compression::kNone:
      return "application/vnd.oci.image.layer.v1.tar";
    case oci::Compression::kGzip:
      return "application/vnd.oci.image.layer.v1.tar+gzip";
    case oci::Compression::kZstd:
      return "application/vnd.oci.image.layer.v1.tar+zstd";
  }
  Die("unknown compression");
}

// Docker has names for uncompressed and gzip layers only.
std::string DockerLayerMediaType(const std::string& oci_type) {
  if (oci_type == LayerMediaType(oci::Compression::kGzip))
    return "application/vnd.docker.image.rootfs.diff.tar.gzip";
  if (oci_type == LayerMediaType(oci::Compression::kNone))
    return "application/vnd.docker.image.rootfs.diff.tar";
  return "application/vnd.docker.image.rootfs.diff.tar.zstd";
}

json PlatformJson(const oci::Platform& platform) {
  json out = {{"architecture", platform.architecture}, {"os", platform.os}};
  if (!platform.variant.empty()) out["variant"] = platform.variant;
  if (!platform.os_version.empty()) out["os.version"] = platform.os_version;
  return out;
}

json ToJson(const oci::Descriptor& descriptor) {
  json out = {{"mediaType", descriptor.media_type},
              {"digest", descriptor.digest.ToString()},
              {"size", descriptor.size}};
  if (!descriptor.annotations.empty()) out["annotations"] = descriptor.annotations;
  if (descriptor.platform.has_value()) out["platform"] = PlatformJson(*descriptor.platform);
  if (!descriptor.urls.empty()) out["urls"] = descriptor.urls;
  if (!descriptor.artifact_type.empty()) out["artifactType"] = descriptor.artifact_type;
  return out;
}

std::string ConfigJson(const std::vector<Layer>& layers, const ImageOptions& options) {
  json diff_ids = json::array();
  json history = json::array();
  for (const Layer& layer : layers) {
    diff_ids.push_back(layer.diff_id.ToString());
    history.push_back({{"created", "2020-01-01T00:00:00Z"}, {"created_by", "test"}});
  }
  json config = PlatformJson(options.platform);
  config["created"] = "2020-01-01T00:00:00Z";
  config["config"] = {{"Env", options.environment}, {"Cmd", options.command}};
  config["rootfs"] = {{"type", "layers"}, {"diff_ids", diff_ids}};
  config["history"] = history;
  return config.dump();
}

absl::Status WriteBlob(const std::string& directory, const base::Digest& digest, absl::string_view bytes) {
  return base::WriteFileAtomically(absl::StrCat(directory, "/blobs/sha256/", digest.hex()), bytes, 0644);
}

}  // namespace

std::string Gzip(absl::string_view bytes, int level, int strategy) {
  z_stream stream{};
  if (deflateInit2(&stream, level, Z_DEFLATED, 15 + 16, 8, strategy) != Z_OK) Die("deflateInit2 failed");
  std::string out;
  std::string buffer(256 << 10, '\0');
  int result = Z_OK;
  do {
    if (stream.avail_in == 0 && !bytes.empty()) {
      const absl::string_view piece = bytes.substr(0, 1 << 30);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(piece.data()));
      stream.avail_in = static_cast<uInt>(piece.size());
      bytes.remove_prefix(piece.size());
    }
    stream.next_out = reinterpret_cast<Bytef*>(buffer.data());
    stream.avail_out = static_cast<uInt>(buffer.size());
    result = deflate(&stream, bytes.empty() ? Z_FINISH : Z_NO_FLUSH);
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) Die("deflate failed");
    out.append(buffer, 0, buffer.size() - stream.avail_out);
  } while (result != Z_STREAM_END);
  deflateEnd(&stream);
  return out;
}

std::string GzipMembers(absl::string_view bytes, uint64_t member_size, int level) {
  return InPieces(bytes, member_size, [level](absl::string_view piece) { return Gzip(piece, level); });
}

std::string Zstd(absl::string_view bytes, int level) {
  std::string out(ZSTD_compressBound(bytes.size()), '\0');
  const size_t size = ZSTD_compress(out.data(), out.size(), bytes.data(), bytes.size(), level);
  if (ZSTD_isError(size) != 0) Die(ZSTD_getErrorName(size));
  out.resize(size);
  return out;
}

std::string ZstdFrames(absl::string_view bytes, uint64_t frame_size, int level) {
  return InPieces(bytes, frame_size, [level](absl::string_view piece) { return Zstd(piece, level); });
}

Layer MakeLayer(std::string tar, oci::Compression compression, uint64_t member_size) {
  std::string blob = tar;
  if (compression == oci::Compression::kGzip)
    blob = member_size > 0 ? GzipMembers(tar, member_size) : Gzip(tar);
  if (compression == oci::Compression::kZstd)
    blob = member_size > 0 ? ZstdFrames(tar, member_size) : Zstd(tar);
  return MakeLayerOf(std::move(tar), std::move(blob), compression);
}

Layer MakeLayerOf(std::string tar, std::string blob, oci::Compression compression,
                  std::map<std::string, std::string> annotations) {
  Layer layer;
  layer.descriptor = DescriptorOf(blob, LayerMediaType(compression));
  layer.descriptor.annotations = std::move(annotations);
  layer.diff_id = base::Digest::Of(tar);
  layer.tar = std::move(tar);
  layer.blob = std::move(blob);
  return layer;
}

Image MakeImage(std::vector<Layer> layers, const ImageOptions& options) {
  Image image;
  image.config = ConfigJson(layers, options);
  image.config_descriptor = DescriptorOf(image.config, options.docker ? kDockerConfig : kOciConfig);
  const char* media_type = options.docker ? oci::kMediaTypeDockerManifest : oci::kMediaTypeOciManifest;
  json manifest = {
      {"schemaVersion", 2}, {"mediaType", media_type}, {"config", ToJson(image.config_descriptor)}};
  manifest["layers"] = json::array();
  for (Layer& layer : layers) {
    if (options.docker) layer.descriptor.media_type = DockerLayerMediaType(layer.descriptor.media_type);
    manifest["layers"].push_back(ToJson(layer.descriptor));
  }
  if (!options.annotations.empty()) manifest["annotations"] = options.annotations;
  if (options.subject.has_value()) manifest["subject"] = ToJson(*options.subject);
  if (!options.artifact_type.empty()) manifest["artifactType"] = options.artifact_type;
  image.manifest = manifest.dump();
  image.manifest_descriptor = DescriptorOf(image.manifest, media_type);
  image.manifest_descriptor.platform = options.platform;
  image.layers = std::move(layers);
  return image;
}

ImageIndex MakeIndex(std::vector<Image> images, bool docker) {
  const char* media_type = docker ? oci::kMediaTypeDockerIndex : oci::kMediaTypeOciIndex;
  json index = {{"schemaVersion", 2}, {"mediaType", media_type}, {"manifests", json::array()}};
  for (const Image& image : images) index["manifests"].push_back(ToJson(image.manifest_descriptor));
  ImageIndex out;
  out.images = std::move(images);
  out.raw = index.dump();
  out.descriptor = DescriptorOf(out.raw, media_type);
  return out;
}

oci::Descriptor DescriptorOf(absl::string_view bytes, std::string media_type) {
  oci::Descriptor descriptor;
  descriptor.media_type = std::move(media_type);
  descriptor.digest = base::Digest::Of(bytes);
  descriptor.size = bytes.size();
  return descriptor;
}

std::string DescriptorJson(const oci::Descriptor& descriptor) { return ToJson(descriptor).dump(); }

absl::Status WriteLayout(const std::string& directory, absl::string_view tag, const Image& image) {
  RETURN_IF_ERROR(base::MakeDirectories(directory + "/blobs/sha256"));
  RETURN_IF_ERROR(
      base::WriteFileAtomically(directory + "/oci-layout", R"({"imageLayoutVersion":"1.0.0"})", 0644));
  for (const Layer& layer : image.layers) {
    RETURN_IF_ERROR(WriteBlob(directory, layer.descriptor.digest, layer.blob));
  }
  RETURN_IF_ERROR(WriteBlob(directory, image.config_descriptor.digest, image.config));
  RETURN_IF_ERROR(WriteBlob(directory, image.manifest_descriptor.digest, image.manifest));
  json index = {{"schemaVersion", 2}, {"manifests", json::array()}};
  if (auto old = base::ReadFile(directory + "/index.json", 1 << 20); old.ok()) index = json::parse(*old);
  oci::Descriptor entry = image.manifest_descriptor;
  entry.annotations["org.opencontainers.image.ref.name"] = std::string(tag);
  index["manifests"].push_back(ToJson(entry));
  return base::WriteFileAtomically(directory + "/index.json", index.dump(), 0644);
}

}  // namespace lazyblob::support

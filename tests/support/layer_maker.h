#pragma once

// Layers and images for tests in a few lines:
//   Layer layer = MakeLayer(MakeTar({Directory("etc"), File("etc/a", "hello")}), oci::Compression::kGzip);
//   Image image = MakeImage({layer});
//   registry.PutImage("test/image", "latest", image);   // tests/support/test_registry.h
// Pure; ends the test program when a compressor fails.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "oci/descriptor.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::support {

// One gzip member; level 0 … 9, `strategy` a Z_* strategy of zlib (4, Z_FIXED, makes fixed Huffman blocks).
std::string Gzip(absl::string_view bytes, int level = 6, int strategy = 0);
// A member for every `member_size` bytes.
std::string GzipMembers(absl::string_view bytes, uint64_t member_size, int level = 6);
std::string Zstd(absl::string_view bytes, int level = 3);
// A frame for every `frame_size` bytes, each stating its content size.
std::string ZstdFrames(absl::string_view bytes, uint64_t frame_size, int level = 3);

struct Layer {
  std::string tar;
  std::string blob;
  oci::Descriptor descriptor;
  base::Digest diff_id;
};

// `member_size` > 0: multi-member gzip, or multi-frame zstd.
Layer MakeLayer(std::string tar, oci::Compression compression, uint64_t member_size = 0);
// A layer whose blob was made elsewhere.
Layer MakeLayerOf(std::string tar, std::string blob, oci::Compression compression,
                  std::map<std::string, std::string> annotations = {});

struct ImageOptions {
  bool docker = false;  // Docker's media types instead of OCI's
  oci::Platform platform = {"linux", "amd64", "", ""};
  std::map<std::string, std::string> annotations = {};
  std::vector<std::string> environment = {"PATH=/usr/bin:/bin"};
  std::vector<std::string> command = {"/bin/sh"};
  std::optional<oci::Descriptor> subject = {};
  std::string artifact_type = {};
};

struct Image {
  std::vector<Layer> layers;
  std::string config;
  oci::Descriptor config_descriptor;
  std::string manifest;
  oci::Descriptor manifest_descriptor;  // with platform
};

Image MakeImage(std::vector<Layer> layers, const ImageOptions& options = {});

// An image index over `images`.
struct ImageIndex {
  std::vector<Image> images;
  std::string raw;
  oci::Descriptor descriptor;
};
ImageIndex MakeIndex(std::vector<Image> images, bool docker = false);

// Descriptor of `bytes`.
oci::Descriptor DescriptorOf(absl::string_view bytes, std::string media_type);
// The JSON of a descriptor, as manifests hold it.
std::string DescriptorJson(const oci::Descriptor& descriptor);

// Writes an OCI image layout: all blobs, and `image` as the tag `tag` beside those already there.
absl::Status WriteLayout(const std::string& directory, absl::string_view tag, const Image& image);

}  // namespace lazyblob::support

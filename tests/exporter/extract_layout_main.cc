// extract_layout LAYOUT TAG DIRECTORY [staged]
//
// Unpacks an image of an image layout, as "dir:DIRECTORY" does; "staged" fetches its layers as if they were
// remote. Prints how long fetching and unpacking took.

#include <unistd.h>

#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "exporter/extract.h"
#include "oci/layout.h"

namespace lazyblob::exporter {
namespace {

class LayoutBlob final : public Blob {
 public:
  LayoutBlob(const oci::Layout* layout, oci::Descriptor descriptor, bool local)
      : layout_(layout), descriptor_(std::move(descriptor)), local_(local) {}
  std::optional<oci::Descriptor> descriptor() const override { return descriptor_; }
  absl::StatusOr<oci::Descriptor> WaitDescriptor(base::CancelToken*) override { return descriptor_; }
  absl::Status Read(uint64_t offset, registry::BodySink sink, const contentstore::FetchContext&) override {
    ASSIGN_OR_RETURN(const base::UniqueFd file, layout_->OpenBlob(descriptor_.digest));
    std::vector<uint8_t> piece(1 << 20);
    for (;;) {
      const ssize_t size = ::pread(file.get(), piece.data(), piece.size(), static_cast<off_t>(offset));
      if (size < 0) return base::ErrnoStatus(errno, "read");
      if (size == 0) return absl::OkStatus();
      RETURN_IF_ERROR(sink(absl::MakeSpan(piece).first(static_cast<size_t>(size))));
      offset += static_cast<uint64_t>(size);
    }
  }
  bool local() const override { return local_; }

 private:
  const oci::Layout* const layout_;
  const oci::Descriptor descriptor_;
  const bool local_;
};

absl::Status Run(const std::string& directory, const std::string& tag, const std::string& to, bool local) {
  ASSIGN_OR_RETURN(const oci::Layout layout, oci::Layout::Open(directory));
  ASSIGN_OR_RETURN(const oci::Descriptor descriptor, layout.Resolve(tag));
  ASSIGN_OR_RETURN(const std::string raw, layout.ReadBlob(descriptor.digest, oci::kMaxManifestBytes));
  ASSIGN_OR_RETURN(const auto document, oci::ParseManifestOrIndex(raw, descriptor.digest, ""));
  const auto* manifest = std::get_if<oci::Manifest>(&document);
  if (manifest == nullptr) return absl::InvalidArgumentError("an index");
  ASSIGN_OR_RETURN(const std::string config, layout.ReadBlob(manifest->config.digest, oci::kMaxConfigBytes));
  ASSIGN_OR_RETURN(const oci::ImageConfig image, oci::ParseImageConfig(config, manifest->config.digest));
  if (image.diff_ids.size() != manifest->layers.size())
    return absl::InvalidArgumentError("layers and diffIDs");
  std::vector<ExtractLayer> layers;
  for (size_t i = 0; i < manifest->layers.size(); ++i) {
    layers.push_back({std::make_shared<LayoutBlob>(&layout, manifest->layers[i], local), image.diff_ids[i]});
  }
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const ExtractSummary summary, ExtractLayers(layers, to, {}));
  std::cout << absl::StrCat(summary.entries, " entries in ", absl::FormatDuration(absl::Now() - start), "\n");
  return absl::OkStatus();
}

}  // namespace
}  // namespace lazyblob::exporter

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "extract_layout LAYOUT TAG DIRECTORY [staged]\n";
    return 2;
  }
  const absl::Status status = lazyblob::exporter::Run(argv[1], argv[2], argv[3], argc == 4);
  if (!status.ok()) std::cerr << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

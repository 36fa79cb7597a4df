#pragma once

// A blob that is to be placed somewhere, wherever its bytes are: lazy in the content store, being made,
// in memory, in an image layout. Thread-safe; shared by every placement that wants it. Blocks where it says.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/cancel.h"
#include "contentstore/content_store.h"
#include "exporter/staged_blob.h"
#include "oci/descriptor.h"
#include "oci/layout.h"
#include "oci/reference.h"

namespace lazyblob::exporter {

class Blob {
 public:
  virtual ~Blob() = default;
  // nullopt while the blob is still being made; never waits.
  virtual std::optional<oci::Descriptor> descriptor() const = 0;
  // Waits until it is made; what its maker failed with.
  virtual absl::StatusOr<oci::Descriptor> WaitDescriptor(base::CancelToken* cancel) = 0;
  // Streams blob bytes from `offset` to the end, in order; follows a blob that is being made. The bytes come
  // from one source at a time, failing over between them; not verified here: whoever sends them hashes.
  virtual absl::Status Read(uint64_t offset, registry::BodySink sink,
                            const contentstore::FetchContext& context) = 0;
  // The names of what Read can read from; context.first_source says with which of them it begins. Empty:
  // there is one way to read it.
  virtual std::vector<std::string> sources() const { return {}; }
  // Where it is known to exist already: candidates for a mount.
  virtual std::vector<oci::Reference> repositories() const { return {}; }
  // Blobs of one digest and one origin have their bytes from the same place: one read can serve them all.
  // Empty: it shares with nobody.
  virtual std::string origin() const { return {}; }
  // False: nobody has its bytes, reading it is the "provider missing" error.
  virtual bool provided() const { return true; }
  // Local bytes cost no network to read.
  virtual bool local() const = 0;
};

// `store` outlives it. The layer's descriptor keeps its media type and annotations as the manifest named
// them. With `keep` its bytes stay in the store once they were read.
std::shared_ptr<Blob> MakeLazyBlob(contentstore::ContentStore* store,
                                   std::shared_ptr<contentstore::LazyLayer> layer, oci::Descriptor descriptor,
                                   std::vector<oci::Reference> repositories, bool keep = false);
// `descriptor` is called once, when `staged` is complete, to turn digest and size into a descriptor.
std::shared_ptr<Blob> MakeStagedBlob(std::shared_ptr<StagedBlob> staged,
                                     std::function<oci::Descriptor(const StagedBlob::Whole&)> descriptor);
std::shared_ptr<Blob> MakeMemoryBlob(std::string bytes, std::string media_type);
std::shared_ptr<Blob> MakeLayoutBlob(std::shared_ptr<const oci::Layout> layout, oci::Descriptor descriptor,
                                     std::vector<oci::Reference> repositories = {});

}  // namespace lazyblob::exporter

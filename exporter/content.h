#pragma once

// An image, an index of images or an artifact as it is somewhere, whole: its documents, and its blobs as
// things that can be read when somebody needs their bytes.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "contentstore/content_store.h"
#include "exporter/blob.h"
#include "oci/descriptor.h"
#include "oci/layout.h"
#include "oci/manifest.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::exporter {

// A manifest or an index.
struct Document {
  oci::Descriptor descriptor;
  std::string raw;
  bool index = false;
  std::vector<base::Digest> blobs;  // those it names
};

struct ContentBlob {
  std::shared_ptr<Blob> blob;
  oci::Descriptor descriptor;  // empty while it is being made
  std::string name;            // for people; empty: the digest
  // A file system layer; else a config or some other payload.
  bool layer = false;
};

struct Content {
  std::string name;                 // what was asked for, for messages
  std::vector<Document> documents;  // what a document names stands before it; the last one is the whole
  std::vector<ContentBlob> blobs;   // each digest once

  const Document& top() const { return documents.back(); }
  // Null when there is none of that digest.
  const ContentBlob* Find(const base::Digest& digest) const;
  const Document* FindDocument(const base::Digest& digest) const;
};

struct ContentParts {
  registry::Client* client = nullptr;
  contentstore::ContentStore* store = nullptr;
  // Layers become known to the store, for their bytes are to be kept there.
  bool keep = false;
  // So do the original bytes of layers that are read.
  bool keep_blobs = false;
};

// Reads the documents, no blob: those stay where they are. With `platform` only what an index has for it,
// else everything it lists. The parts outlive the result. Errors: as those of registry::Client; DataLoss when
// something listed is not there; InvalidArgument for what is no manifest or index, or too many of them.
absl::StatusOr<Content> ReadContent(const ContentParts& parts, const oci::ImageReference& reference,
                                    const std::optional<oci::Platform>& platform,
                                    const registry::CallContext& context);

// The same of a layout that is no source of layers, because it may go (Leases::Image): what lies in it is
// local. `name` is for messages.
absl::StatusOr<Content> ReadContent(const ContentParts& parts, std::shared_ptr<const oci::Layout> layout,
                                    std::string name, const std::optional<oci::Platform>& platform,
                                    const registry::CallContext& context);

// One "provider missing" error for all of these of which nobody has the bytes; OK when there is none.
absl::Status CheckProvided(const Content& content, const std::vector<base::Digest>& wanted);

// A blob whose bytes come from `source` alone, and which the content store does not know.
std::shared_ptr<Blob> MakeSourceBlob(std::shared_ptr<contentstore::BlobSource> source,
                                     oci::Descriptor descriptor, std::vector<oci::Reference> repositories);
// A blob of which nobody has the bytes: reading it is the "provider missing" error.
std::shared_ptr<Blob> MakeMissingBlob(oci::Descriptor descriptor, std::string wanted_by);

}  // namespace lazyblob::exporter

#pragma once

// What containerd alone knows, as a role: which namespace holds which blob, with which labels. It keeps both
// in its own database and tells the store behind it neither.
//
// Calls block. None is made while containerd waits for an answer of this store: Hold and Drop need its
// database lock, under which it asks for Info, writers and commits.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "contentservice/content.h"
#include "oci/descriptor.h"

namespace lazyblob::contentservice {

// Thread-safe. Unavailable: containerd is not there.
class Namespaces {
 public:
  virtual ~Namespaces() = default;
  virtual absl::StatusOr<std::vector<std::string>> List() = 0;
  // NotFound: the namespace does not hold the blob.
  virtual absl::StatusOr<Labels> BlobLabels(const std::string& name_space, const base::Digest& digest) = 0;
  // Makes the namespace hold a blob that this store has, without a byte written, under a lease that ends by
  // itself: what refers to the blob must do so by then. FailedPrecondition: this store does not have it.
  virtual absl::Status Hold(const std::string& name_space, const oci::Descriptor& blob,
                            const Labels& labels) = 0;
  // The namespace holds it no more.
  virtual absl::Status Drop(const std::string& name_space, const base::Digest& digest) = 0;
};

}  // namespace lazyblob::contentservice

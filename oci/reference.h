#pragma once

// Image references: "host[:port]/name[:tag|@digest]" with Docker's defaults, or "oci:DIR[:tag]" for a layout.
// Grammar: distribution/reference (host, path components, tag [\w][\w.-]{0,127}); a name without a host is on
// docker.io, and without a path there under library/. Values; thread-safe as such.

#include <optional>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"

namespace lazyblob::oci {

// An image in a registry. At least one of tag and digest is set after parsing ("latest" by default); where
// both are, the digest decides and the tag is information.
struct Reference {
  std::string host;        // "docker.io", "localhost:5000", "[::1]:5000"; never empty
  std::string repository;  // "library/debian"
  std::optional<std::string> tag;
  std::optional<base::Digest> digest;

  // Canonical: host/repository[:tag][@digest].
  std::string ToString() const;
  // "host/repository".
  std::string Name() const;
};

// An image in an OCI image layout directory.
struct LayoutReference {
  std::string directory;
  std::optional<std::string> tag;  // org.opencontainers.image.ref.name; absent: the layout's only image

  std::string ToString() const;
};

using ImageReference = std::variant<Reference, LayoutReference>;

// InvalidArgument names the text and what is wrong with it.
absl::StatusOr<Reference> ParseReference(absl::string_view text);
// As ParseReference, and "oci:DIR[:tag]".
absl::StatusOr<ImageReference> ParseImageReference(absl::string_view text);
std::string ToString(const ImageReference& reference);

}  // namespace lazyblob::oci

#pragma once

// Changes to image indexes (OCI image-spec 1.1 image-index.md) that others may have written: members that are
// not known stay as they are. What comes out depends on what is in it, not on the order in which it came, so
// that many writers end with the same bytes. Pure; thread-safe.
// Indexes are at most kMaxManifestBytes, before (InvalidArgument) and after (ResourceExhausted).

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "oci/descriptor.h"

namespace lazyblob::oci {

// The annotation of manifests that say something about another one in the same index, as BuildKit attaches
// attestations: that one's digest.
inline constexpr char kAboutAnnotation[] = "vnd.docker.reference.digest";

// `raw`, an index, with `manifests` in it; empty: a new one of `media_type`. Each takes the place of what
// there was for its platform, and of what was about that (kAboutAnnotation).
// InvalidArgument: one that says no platform and is about no other, or two for one platform with different
// digests.
absl::StatusOr<std::string> MergePlatforms(absl::string_view raw, absl::string_view media_type,
                                           absl::Span<const Descriptor> manifests);

// `raw` with `referrer` in it, once: the index that clients keep where the registry does not list referrers
// (distribution-spec 1.1, "Referrers Tag Schema").
absl::StatusOr<std::string> MergeReferrer(absl::string_view raw, const Descriptor& referrer);

}  // namespace lazyblob::oci

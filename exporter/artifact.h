#pragma once

// Artifacts of several platforms: one manifest with a layer, a packed directory, per platform, and layers for
// any. A builder fetches what is its own, a task for sources fetches all. Thread-safe; pure, except for the
// last two functions. Format: OCI image-spec 1.1 manifest.md, "Guidelines for Artifact Usage";
// docs/EXPORT_FORMATS.md.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/cancel.h"
#include "base/digest.h"
#include "exporter/assembly.h"
#include "exporter/content.h"
#include "oci/descriptor.h"
#include "oci/manifest.h"
#include "proto/exporter.pb.h"
#include "registry/client.h"

namespace lazyblob::exporter {

inline constexpr char kArtifactType[] = "application/vnd.lazyblob.artifact.v1";

struct ArtifactLayer {
  std::optional<oci::Platform> platform;  // absent: any
  oci::Descriptor descriptor;
  base::Digest diff_id;
};

// "PLATFORM=…" or "any=…": the platform, and what stands behind the "=". InvalidArgument.
struct ArtifactSource {
  std::optional<oci::Platform> platform;
  std::string path;
};
absl::StatusOr<ArtifactSource> ParseArtifactSource(absl::string_view text);

struct ArtifactSpec {
  std::vector<ArtifactLayer> layers;
  std::string artifact_type = kArtifactType;
  std::map<std::string, std::string> annotations;
  std::optional<oci::Descriptor> subject;  // need not be in the registry yet
};

struct BuiltArtifact {
  std::string config;  // "{}"
  oci::Descriptor config_descriptor;
  std::string manifest;
  oci::Descriptor manifest_descriptor;  // with the artifact type
  std::vector<oci::Descriptor> layers;
};
// InvalidArgument: no layers, too many, or one without a diffID.
absl::StatusOr<BuiltArtifact> BuildArtifact(const ArtifactSpec& spec);

// The layers of an artifact, in the order they are unpacked. InvalidArgument when it is none of ours.
absl::StatusOr<std::vector<ArtifactLayer>> ReadArtifact(const oci::Manifest& manifest);
// Those for `platform` and for any; all of them without one. NotFound, listing what is there, when nothing is
// for that platform.
absl::StatusOr<std::vector<ArtifactLayer>> SelectArtifactLayers(const std::vector<ArtifactLayer>& layers,
                                                                const std::optional<oci::Platform>& platform);

// What an artifact refers to, as it is in its registry or layout now; nullopt: nothing. Blocks. NotFound says
// how to refer to what is in no registry yet.
absl::StatusOr<std::optional<oci::Descriptor>> SubjectOf(const v1::Artifact& artifact,
                                                         registry::Client* client,
                                                         const registry::CallContext& context);
// Waits for `layers`, those of `artifact` in its order.
absl::StatusOr<Content> WholeArtifact(const v1::Artifact& artifact, const MadeLayers& layers,
                                      std::optional<oci::Descriptor> subject, base::CancelToken* cancel);

}  // namespace lazyblob::exporter

#pragma once

// What an export is asked to do: the ExportRequest of proto/exporter.proto, read and checked before anything
// is fetched, made or sent. Pure; thread-safe.

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"
#include "oci/reference.h"
#include "proto/exporter.pb.h"

namespace lazyblob::exporter {

// One tar of an image layout: "oci-archive:FILE[:tag]".
struct ArchiveDestination {
  std::string file;
  std::optional<std::string> tag;
};
// The unpacked root file system: "dir:PATH".
struct DirectoryDestination {
  std::string path;
};
// A lease of the daemon's own store, which keeps the image: "store:NAME".
struct StoreDestination {
  std::string name;
};
using Destination = std::variant<oci::Reference, oci::LayoutReference, ArchiveDestination,
                                 DirectoryDestination, StoreDestination>;

// InvalidArgument names the text and what is wrong with it.
absl::StatusOr<Destination> ParseDestination(absl::string_view text);
std::string ToString(const Destination& destination);

// InvalidArgument unless [A-Za-z0-9][A-Za-z0-9_.-]{0,127}.
absl::Status CheckLeaseName(absl::string_view name);
// What an image is read from: "store:NAME" too.
using ImageSource = std::variant<oci::ImageReference, StoreDestination>;
absl::StatusOr<ImageSource> ParseImageSource(absl::string_view text);

// proto3 JSON, strictly: unknown and duplicate keys are InvalidArgument, which names them. 16 MiB at most.
absl::StatusOr<v1::ExportRequest> ParseSpec(absl::string_view json);
std::string SpecToJson(const v1::ExportRequest& request);

// Paths that are relative to `directory` become absolute: a daemon works elsewhere than whoever asks it.
absl::Status MakePathsAbsolute(const std::string& directory, v1::ExportRequest* request);

// What a layer of a build cache lies on.
struct CacheParent {
  int layer = -1;                        // index in the list; -1: none of it
  std::optional<base::Digest> imported;  // a layer of an import
};
// For each layer of `cache`. InvalidArgument: a parent that is not there, or not before it.
absl::StatusOr<std::vector<CacheParent>> CacheParents(const v1::Cache& cache);

// A request without contradictions.
struct CheckedRequest {
  std::vector<Destination> images;
  std::vector<Destination> caches;
  std::vector<std::string> warnings;  // options that have no effect, one line each
};
// InvalidArgument: one line that names the option. Paths must be absolute.
absl::StatusOr<CheckedRequest> CheckRequest(const v1::ExportRequest& request);

}  // namespace lazyblob::exporter

#include "daemon/error_details.h"

#include <vector>

#include "contentstore/content_store.h"
#include "proto/exporter.pb.h"

namespace lazyblob::daemon {

std::string ErrorDetailsOf(const absl::Status& status) {
  const std::vector<contentstore::MissingProvider> missing = contentstore::GetMissingProviders(status);
  if (missing.empty()) return "";
  v1::ProvidersMissing detail;
  for (const contentstore::MissingProvider& one : missing) {
    v1::ProvidersMissing::Blob* blob = detail.add_blobs();
    blob->set_digest(one.digest.ToString());
    blob->set_size(one.size);
    blob->set_wanted_by(one.wanted_by);
  }
  v1::ErrorDetails details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(std::string(status.message()));
  details.add_details()->PackFrom(detail);
  return details.SerializeAsString();
}

absl::Status WithErrorDetails(const absl::Status& status, const std::string& details) {
  v1::ErrorDetails parsed;
  if (status.ok() || !parsed.ParseFromString(details)) return status;
  for (const auto& detail : parsed.details()) {
    v1::ProvidersMissing missing;
    if (!detail.UnpackTo(&missing)) continue;
    std::vector<contentstore::MissingProvider> providers;
    for (const auto& blob : missing.blobs()) {
      auto digest = base::Digest::Parse(blob.digest());
      if (digest.ok()) providers.push_back({*digest, blob.size(), blob.wanted_by()});
    }
    if (!providers.empty()) return contentstore::ProviderMissingError(providers);
  }
  return status;
}

}  // namespace lazyblob::daemon

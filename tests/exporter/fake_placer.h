#pragma once

// A placer that keeps what it is given in memory, by repository and digest, and a log of what was asked.

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "exporter/placer.h"
#include "exporter/publish.h"
#include "registry/pusher.h"

namespace lazyblob::exporter {

// Thread-safe.
class FakePlacer final : public Placer {
 public:
  absl::StatusOr<PlacementState> Place(const PlaceRequest& request) override {
    return Take(request, /*again=*/false);
  }
  absl::StatusOr<PlacementState> PlaceAgain(const PlaceRequest& request) override {
    return Take(request, /*again=*/true);
  }
  void Learn(const base::Digest&, const oci::Reference&) override {}

  // As a registry does: a document's blobs, or the documents of an index, must be there.
  PutDocument Put() {
    return [this](const oci::Reference& reference, const Document& document, const registry::CallContext&) {
      absl::MutexLock lock(&mutex);
      const std::string to = reference.ToString();
      log.push_back("put " + to);
      if (refused.count(to) > 0) return absl::PermissionDeniedError(absl::StrCat(to, ": denied"));
      for (const base::Digest& digest : document.blobs) {
        if (blobs[reference.Name()].count(digest) == 0) {
          return absl::FailedPreconditionError(absl::StrCat(to, ": lacks blob ", digest.ToString()));
        }
      }
      documents[to] = document.raw;
      return absl::OkStatus();
    };
  }

  absl::Mutex mutex;
  std::map<std::string, std::map<base::Digest, std::string>> blobs ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::string> documents ABSL_GUARDED_BY(mutex);  // by reference
  std::vector<std::string> log ABSL_GUARDED_BY(mutex);
  std::set<std::string> refused ABSL_GUARDED_BY(mutex);         // references, repositories
  std::set<base::Digest> there_already ABSL_GUARDED_BY(mutex);  // in every repository

 private:
  absl::StatusOr<PlacementState> Take(const PlaceRequest& request, bool again) {
    auto descriptor = request.blob->WaitDescriptor(request.cancel.get());
    if (!descriptor.ok()) return descriptor.status();
    const std::string name = request.repository.Name();
    {
      absl::MutexLock lock(&mutex);
      log.push_back(absl::StrCat(again ? "again " : "place ", name, " ", descriptor->digest.ToString()));
      if (refused.count(name) > 0) return absl::PermissionDeniedError(absl::StrCat(name, ": denied"));
      if (there_already.count(descriptor->digest) > 0) {
        blobs[name][descriptor->digest] = "";
        return PlacementState::kExists;
      }
    }
    if (request.progress) request.progress({PlacementState::kStreaming, 0});
    contentstore::FetchContext context;
    context.cancel = request.cancel;
    std::string bytes;
    absl::Status status = request.blob->Read(
        0,
        [&](absl::Span<const uint8_t> part) {
          bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
          return absl::OkStatus();
        },
        context);
    if (!status.ok()) return status;
    if (base::Digest::Of(bytes) != descriptor->digest) return absl::DataLossError("other bytes");
    if (request.progress) request.progress({PlacementState::kUploaded, bytes.size()});
    absl::MutexLock lock(&mutex);
    blobs[name][descriptor->digest] = std::move(bytes);
    return PlacementState::kUploaded;
  }
};

}  // namespace lazyblob::exporter

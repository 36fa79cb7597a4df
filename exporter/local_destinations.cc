#include "exporter/local_destinations.h"

#include <set>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status.h"
#include "exporter/archive_writer.h"
#include "exporter/extract.h"
#include "exporter/internal/at_once.h"
#include "exporter/unlazy.h"
#include "oci/layout_writer.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {
namespace {

constexpr size_t kBlobsAtOnce = 4;
constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);

class Writing {
 public:
  Writing(const Content& content, std::string destination, const LocalOptions& options)
      : content_(content), destination_(std::move(destination)), options_(options) {}

  // Gives every blob to `put(descriptor, producer)`, `limit` at a time.
  template <typename Put>
  absl::Status Blobs(size_t limit, Put put) {
    auto registration = options_.cancel->OnCancel([stop = stop_] { stop->Cancel(); });
    return Finished(AtOnce(content_.blobs.size(), limit, stop_.get(), [&](size_t i) {
      const ContentBlob& blob = content_.blobs[i];
      uint64_t received = 0;
      absl::Duration told = absl::ZeroDuration();
      Tell(blob, "queued", 0);
      auto produce = [&](registry::BodySink sink) {
        contentstore::FetchContext fetch;
        fetch.cause = contentstore::FetchCause::kStream;
        fetch.cancel = stop_;
        fetch.credentials = options_.credentials;
        return blob.blob->Read(
            0,
            [&](absl::Span<const uint8_t> bytes) {
              received += bytes.size();
              if (const auto now = base::SystemClock().Monotonic(); now - told > kProgressInterval) {
                told = now;
                Tell(blob, "fetching", received);
              }
              return sink(bytes);
            },
            fetch);
      };
      absl::Status status = put(blob.descriptor, oci::BlobProducer(produce));
      Tell(blob,
           !status.ok()                                ? "failed"
           : received == 0 && blob.descriptor.size > 0 ? "exists"
                                                       : "written",
           received);
      return Collect(status);
    }));
  }

  v1::Ready Ready() const {
    const oci::Descriptor& top = content_.top().descriptor;
    v1::Ready ready;
    ready.set_reference(destination_);
    ready.set_digest(top.digest.ToString());
    ready.set_size(top.size);
    return ready;
  }

 private:
  void Tell(const ContentBlob& blob, const char* state, uint64_t bytes) {
    if (!options_.progress) return;
    v1::Progress told;
    told.set_digest(blob.descriptor.digest.ToString());
    told.set_name(told.digest());
    told.set_destination(destination_);
    told.set_state(state);
    told.set_bytes(bytes);
    told.set_size(blob.descriptor.size);
    told.set_cache(options_.cache);
    options_.progress(told);
  }

  // Blobs that nobody can provide do not end the others: all of them are to be listed.
  absl::Status Collect(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_) {
    auto lacking = contentstore::GetMissingProviders(status);
    if (lacking.empty()) return base::Annotate(status, base::Printable(destination_));
    absl::MutexLock lock(&mutex_);
    for (auto& one : lacking) {
      if (named_.insert(one.digest).second) missing_.push_back(std::move(one));
    }
    return absl::OkStatus();
  }
  absl::Status Finished(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (!status.ok() || missing_.empty()) return status;
    return contentstore::ProviderMissingError(missing_);
  }

  const Content& content_;
  const std::string destination_;
  const LocalOptions& options_;
  const std::shared_ptr<base::CancelToken> stop_ = std::make_shared<base::CancelToken>();
  absl::Mutex mutex_;
  std::vector<contentstore::MissingProvider> missing_ ABSL_GUARDED_BY(mutex_);
  std::set<base::Digest> named_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<v1::Ready> WriteToLayout(const Content& content, const oci::LayoutReference& destination,
                                        const LocalOptions& options) {
  Writing writing(content, destination.ToString(), options);
  ASSIGN_OR_RETURN(auto layout, oci::LayoutWriter::Open(destination.directory));
  RETURN_IF_ERROR(writing.Blobs(kBlobsAtOnce, [&](const oci::Descriptor& blob, oci::BlobProducer produce) {
    return layout->PutBlob(blob, produce);
  }));
  for (const Document& document : content.documents) {
    RETURN_IF_ERROR(layout->PutBlob(document.descriptor, document.raw));
  }
  RETURN_IF_ERROR(layout->Publish(content.top().descriptor, destination.tag));
  return writing.Ready();
}

absl::StatusOr<v1::Ready> WriteToArchive(const Content& content, const ArchiveDestination& destination,
                                         const LocalOptions& options) {
  Writing writing(content, ToString(destination), options);
  ASSIGN_OR_RETURN(auto archive, ArchiveWriter::Create(destination.file));
  RETURN_IF_ERROR(writing.Blobs(1, [&](const oci::Descriptor& blob, oci::BlobProducer produce) {
    return archive->AddBlob(blob, produce);
  }));
  for (const Document& document : content.documents) {
    RETURN_IF_ERROR(archive->AddBlob(document.descriptor, document.raw));
  }
  RETURN_IF_ERROR(archive->AddImage(content.top().descriptor, destination.tag));
  RETURN_IF_ERROR(archive->Finish());
  return writing.Ready();
}

absl::StatusOr<v1::Ready> WriteToDirectory(const Content& content, const DirectoryDestination& destination,
                                           const LocalOptions& options) {
  const Document& top = content.top();
  if (top.index) {
    return absl::InvalidArgumentError(
        absl::StrCat(content.name, ": an index; name the platform that is to be unpacked"));
  }
  ASSIGN_OR_RETURN(auto parsed,
                   oci::ParseManifestOrIndex(top.raw, top.descriptor.digest, top.descriptor.media_type));
  const auto& manifest = std::get<oci::Manifest>(parsed);
  ExtractOptions extract;
  extract.context.cause = contentstore::FetchCause::kStream;
  extract.context.cancel = options.cancel;
  extract.context.credentials = options.credentials;
  ASSIGN_OR_RETURN(std::string raw,
                   ReadSmall(content, manifest.config, oci::kMaxConfigBytes, extract.context));
  ASSIGN_OR_RETURN(oci::ImageConfig config, oci::ParseImageConfig(raw, manifest.config.digest));
  if (config.diff_ids.size() != manifest.layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat(content.name, ": the config lists ",
                                                   config.diff_ids.size(), " diff_ids for ",
                                                   manifest.layers.size(), " layers"));
  }
  std::vector<ExtractLayer> layers;
  for (size_t i = 0; i < manifest.layers.size(); ++i) {
    layers.push_back({content.Find(manifest.layers[i].digest)->blob, config.diff_ids[i]});
  }
  const std::string name = ToString(Destination(destination));
  extract.progress = [&](const ExtractProgress& progress) {
    if (!options.progress) return;
    const oci::Descriptor& layer = manifest.layers[progress.layer];
    v1::Progress told;
    told.set_digest(layer.digest.ToString());
    told.set_name(told.digest());
    told.set_destination(name);
    told.set_state(progress.done ? "written" : progress.fetched < progress.size ? "fetching" : "unpacking");
    told.set_bytes(progress.fetched);
    told.set_unpacked(progress.unpacked);
    told.set_size(progress.size);
    options.progress(told);
  };
  RETURN_IF_ERROR(base::Annotate(ExtractLayers(layers, destination.path, extract).status(), name));
  v1::Ready ready;
  ready.set_reference(name);
  ready.set_digest(top.descriptor.digest.ToString());
  ready.set_size(top.descriptor.size);
  return ready;
}

}  // namespace lazyblob::exporter

#include "contentstore/internal/layer_builder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "contentstore/internal/source_read.h"
#include "contentstore/internal/toc_reader.h"

namespace lazyblob::contentstore {
namespace {

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

absl::Status Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return base::ErrnoStatus(errno, absl::StrCat("rename ", from));
  return absl::OkStatus();
}

// What may be the fault of whoever gave the bytes.
bool WrongBytes(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsInvalidArgument(status);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LayerBody>> OpenLayerBody(const std::string& directory, bool verified,
                                                         std::shared_ptr<CacheBudget> budget) {
  if (!Exists(directory + "/index")) return absl::NotFoundError("no index");
  auto body = std::make_unique<LayerBody>();
  ASSIGN_OR_RETURN(body->index, layer::LayerIndex::Open(directory));
  ASSIGN_OR_RETURN(body->cache, ChunkCache::Open(body->index, directory, verified, std::move(budget)));
  body->random_access = body->index->info().random_access;
  return body;
}

absl::Status LayerBuilder::StartDirectory() {
  data_.Reset();
  RETURN_IF_ERROR(base::RemoveTree(directory_));
  charge_.Set(0);
  return base::MakeDirectories(directory_);
}

absl::StatusOr<bool> LayerBuilder::IndexFromToc() {
  layer_.SetNotLazyReason("no-index");
  absl::StatusOr<layer::Format> format = layer::FormatOf(layer_.descriptor());
  if (absl::IsFailedPrecondition(format.status())) {
    layer_.SetNotLazyReason("toc-conflict");
    layer_.NoteTocUnusable();
    options_.log(absl::StrCat("layer ", layer_.descriptor().digest.ToString(),
                              " is read as a plain one: ", base::Printable(format.status().message())));
    return false;
  }
  RETURN_IF_ERROR(format.status());
  if (*format != layer::Format::kEstargz && *format != layer::Format::kZstdChunked) return false;
  ASSIGN_OR_RETURN(const bool indexed, TryTableOfContents(*format));
  if (!indexed) return false;
  layer_.SetNotLazyReason("");
  RETURN_IF_ERROR(Install(false));
  return true;
}

absl::Status LayerBuilder::BuildIndex(bool keep_data) {
  if (!layer_.TakeTocUnusable()) {
    ASSIGN_OR_RETURN(const bool indexed, IndexFromToc());
    if (indexed) return absl::OkStatus();
    layer_.TakeTocUnusable();
  }
  RETURN_IF_ERROR(StreamPlain(keep_data));
  // One whose data came along was not lazy this time; the others are, with an index of our own.
  if (layer_.state() != LayerState::kComplete) layer_.SetNotLazyReason("");
  return absl::OkStatus();
}

absl::Status LayerBuilder::BuildData() { return StreamPlain(true); }

absl::StatusOr<std::string> LayerBuilder::FetchExternalToc(const ExternalTocSource& source) {
  std::string toc;
  RETURN_IF_ERROR(WithLivingCredentials([this] { return task_.Requesters(); },
                                        [&](const CredentialsPtr& credentials) -> absl::Status {
                                          registry::CallContext context;
                                          context.cancel = task_.cancel();
                                          context.credentials = credentials;
                                          context.bytes_received = layer_.FetchedCounter(FetchCause::kIndex);
                                          ASSIGN_OR_RETURN(toc, source(layer_.descriptor().digest, context));
                                          return absl::OkStatus();
                                        }));
  return toc;
}

absl::StatusOr<bool> LayerBuilder::TryTableOfContents(layer::Format format) {
  const oci::Descriptor& blob = layer_.descriptor();
  const std::vector<std::shared_ptr<BlobSource>> sources = layer_.Sources();
  if (sources.empty()) return layer_.NoSourceError(FetchCause::kIndex);
  absl::Status status;
  // A table that is wrong may be the fault of one source, or of one connection: it is read twice at least.
  for (size_t attempt = 0; attempt < std::max<size_t>(2, sources.size()); ++attempt) {
    RETURN_IF_ERROR(StartDirectory());
    const StreamCaller caller{FetchCause::kIndex, absl::InfiniteDuration(), task_.cancel(),
                              [this] { return task_.Requesters(); }, attempt};
    const auto fetch = [&](uint64_t offset, absl::Span<uint8_t> out) -> absl::Status {
      size_t done = 0;
      return StreamFromSources(
          layer_, {offset, out.size()},
          [&](absl::Span<const uint8_t> bytes) {
            std::copy(bytes.begin(), bytes.end(), out.begin() + static_cast<ptrdiff_t>(done));
            done += bytes.size();
            return absl::OkStatus();
          },
          caller);
    };
    TocReader reader(blob.size, fetch);
    layer::ExternalToc external;
    if (const ExternalTocSource source = layer_.external_toc(); source != nullptr) {
      external = [this, source] { return FetchExternalToc(source); };
    }
    status = layer::IndexFromToc(
        format, blob, [&](uint64_t offset, absl::Span<uint8_t> out) { return reader.Read(offset, out); },
        options_.limits, directory_, external);
    if (status.ok()) return true;
    RETURN_IF_ERROR(reader.source_status());
    if (absl::IsFailedPrecondition(status)) break;
    if (!WrongBytes(status)) return status;
  }
  if (!absl::IsFailedPrecondition(status)) {
    return base::Annotate(status,
                          absl::StrCat("layer ", blob.digest.ToString(),
                                       " is damaged or forged, its table of contents cannot be right"));
  }
  layer_.SetNotLazyReason("toc-missing");
  layer_.NoteTocUnusable();
  options_.log(absl::StrCat(
      "layer ", blob.digest.ToString(),
      " is read as a plain one, its table of contents cannot be used: ", base::Printable(status.message())));
  return false;
}

absl::Status LayerBuilder::StreamPlain(bool keep_data) {
  const oci::Descriptor& blob = layer_.descriptor();
  ASSIGN_OR_RETURN(const layer::Format format, layer::PlainFormatOf(blob));
  absl::Status status;
  bool wrong = false;
  // Of every source, or of the only one over another connection.
  const size_t attempts = std::max<size_t>(2, layer_.Sources().size());
  for (size_t attempt = 0; attempt < attempts; ++attempt) {
    status = StreamOnce(format, keep_data, attempt, &wrong);
    if (!WrongBytes(status)) break;
  }
  if (wrong) {
    layer_.Quarantine(base::Printable(status.message()));
    base::RemoveTree(directory_).IgnoreError();
    return layer_.QuarantineError();
  }
  if (!status.ok()) base::RemoveTree(directory_).IgnoreError();
  // Of a part of the bytes nothing is known but that somebody on the way broke off.
  return absl::IsDataLoss(status) ? absl::UnavailableError(status.message()) : status;
}

void LayerBuilder::GiveUpData(const absl::Status& status) {
  gone_wrong_ = std::string(status.message());
  data_.Reset();
  unlink((directory_ + "/data").c_str());
  charge_.Set(0);
}

absl::Status LayerBuilder::StreamOnce(layer::Format format, bool keep_data, size_t first_source,
                                      bool* wrong) {
  *wrong = false;
  const oci::Descriptor& blob = layer_.descriptor();
  RETURN_IF_ERROR(StartDirectory());
  if (keep_data) {
    ASSIGN_OR_RETURN(data_, base::OpenFile(directory_ + "/data", O_RDWR | O_CREAT | O_EXCL));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<layer::StreamIndexer> indexer,
                   layer::StreamIndexer::Create(format, blob, layer_.diff_id(), options_.limits));
  const auto sink = [this](uint64_t offset, absl::Span<const uint8_t> bytes) -> absl::Status {
    if (!data_.valid()) return absl::OkStatus();
    absl::Status written = base::FaultPoint("contentstore.stream.write");
    if (written.ok()) written = charge_.Grow(bytes.size());
    if (written.ok()) written = base::PwriteFull(data_.get(), offset, bytes);
    if (!written.ok()) GiveUpData(written);  // the index is still worth having
    return absl::OkStatus();
  };
  uint64_t received = 0;
  const StreamCaller caller{keep_data ? FetchCause::kStream : FetchCause::kIndex, absl::InfiniteDuration(),
                            task_.cancel(), [this] { return task_.Requesters(); }, first_source};
  RETURN_IF_ERROR(options_.spools->Stream(
      layer_.shared_from_this(), {0, blob.size},
      [&](absl::Span<const uint8_t> bytes) -> absl::Status {
        received += bytes.size();
        task_.Report(received);
        return indexer->Feed(bytes, sink);
      },
      caller, /*keep=*/false));
  const absl::Status finished = indexer->Finish(directory_, sink);
  *wrong = absl::IsDataLoss(finished);
  RETURN_IF_ERROR(finished);
  if (keep_data && !data_.valid()) {
    options_.log(absl::StrCat("layer ", blob.digest.ToString(),
                              " was indexed but its data could not be kept (", base::Printable(gone_wrong_),
                              "): free space below the root, or raise cache.max_bytes"));
  }
  return Install(data_.valid());
}

// Moves what was built into place. `index` goes last and is removed first: while it is there, the files
// beside it are its own.
absl::Status LayerBuilder::Install(bool with_data) {
  const std::string& target = layer_.directory();
  if (with_data) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const layer::LayerIndex> index,
                     layer::LayerIndex::Open(directory_));
    RETURN_IF_ERROR(ChunkCache::Seal(*index, directory_));
    data_.Reset();
  }
  RETURN_IF_ERROR(base::SyncDirectory(directory_));
  if (unlink((target + "/index").c_str()) != 0 && errno != ENOENT) {
    return base::ErrnoStatus(errno, absl::StrCat("remove ", target, "/index"));
  }
  RETURN_IF_ERROR(ChunkCache::Discard(target));
  RETURN_IF_ERROR(base::SyncDirectory(target));
  RETURN_IF_ERROR(base::FaultPoint("contentstore.install"));
  if (with_data) {
    RETURN_IF_ERROR(Rename(directory_ + "/data", target + "/data"));
    RETURN_IF_ERROR(Rename(directory_ + "/presence", target + "/presence"));
  }
  RETURN_IF_ERROR(Rename(directory_ + "/meta.erofs", target + "/meta.erofs"));
  RETURN_IF_ERROR(base::SyncDirectory(target));
  RETURN_IF_ERROR(base::FaultPoint("contentstore.install.index"));
  RETURN_IF_ERROR(Rename(directory_ + "/index", target + "/index"));
  RETURN_IF_ERROR(base::SyncDirectory(target));
  RETURN_IF_ERROR(base::RemoveTree(directory_));
  ASSIGN_OR_RETURN(std::unique_ptr<LayerBody> body, OpenLayerBody(target, with_data, options_.budget));
  layer_.Install(std::move(body));
  return absl::OkStatus();
}

}  // namespace lazyblob::contentstore

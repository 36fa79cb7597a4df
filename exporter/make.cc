#include "exporter/make.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status.h"
#include "base/thread_pool.h"

namespace lazyblob::exporter {
namespace {

constexpr absl::string_view kSnapshot = "snapshot:";
constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);

int Threads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 8); }

}  // namespace

absl::StatusOr<LayerCompression> CompressionOf(v1::Compression compression) {
  switch (compression) {
    case v1::COMPRESSION_UNSPECIFIED:
    case v1::GZIP:
      return LayerCompression::kGzip;
    case v1::ZSTD:
      return LayerCompression::kZstd;
    case v1::ESTARGZ:
      return LayerCompression::kEstargz;
    case v1::ZSTDCHUNKED:
      return LayerCompression::kZstdChunked;
    case v1::NONE:
      return LayerCompression::kNone;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("compression ", static_cast<int>(compression), ": unknown"));
  }
}

absl::StatusOr<LayerResult> MadeLayer::Wait(base::CancelToken* cancel) {
  RETURN_IF_ERROR(blob_->WaitDescriptor(cancel).status());
  absl::MutexLock lock(&mutex_);
  return result_;
}

class LayerMaker::Impl {
 public:
  explicit Impl(MakeOptions options)
      : options_(std::move(options)),
        registration_(options_.cancel->OnCancel([stop = stop_] { stop->Cancel(); })) {}
  ~Impl() {
    stop_->Cancel();
    threads_.reset();
  }

  absl::StatusOr<std::shared_ptr<MadeLayer>> Add(const v1::LayerSource& asked, bool cache) {
    ASSIGN_OR_RETURN(Source source, SourceOf(asked.source()));
    ASSIGN_OR_RETURN(auto writer, StagedBlobWriter::Create(options_.staging));
    std::shared_ptr<MadeLayer> layer(new MadeLayer(asked));
    layer->blob_ = MakeStagedBlob(writer->blob(),
                                  [docker = options_.docker_media_types,
                                   made = std::weak_ptr<MadeLayer>(layer)](const StagedBlob::Whole& whole) {
                                    oci::Descriptor descriptor;
                                    if (auto held = made.lock()) {
                                      absl::MutexLock lock(&held->mutex_);
                                      descriptor = held->result_.Descriptor(docker);
                                    }
                                    descriptor.digest = whole.digest;
                                    descriptor.size = whole.size;
                                    return descriptor;
                                  });
    // Shared only with its task.
    std::shared_ptr<StagedBlobWriter> shared = std::move(writer);
    threads_->Schedule(
        [this, layer, shared, cache, source = std::move(source)] { Make(*layer, *shared, source, cache); });
    return layer;
  }

 private:
  absl::StatusOr<Source> SourceOf(const std::string& text) {
    if (!absl::StartsWith(text, kSnapshot)) return ParseSource(text);
    if (!options_.snapshot) {
      return absl::FailedPreconditionError(absl::StrCat(
          base::Printable(text), ": this daemon has no snapshots; name the root of the one that does"));
    }
    Source source;
    source.kind = SourceKind::kOverlayUpper;
    ASSIGN_OR_RETURN(source.path, options_.snapshot(text.substr(kSnapshot.size())));
    return source;
  }

  void Make(MadeLayer& layer, StagedBlobWriter& writer, const Source& source, bool cache) {
    const std::string name = layer.source().source();
    uint64_t made = 0;
    absl::Duration told = absl::ZeroDuration();
    auto tell = [&](const char* state) {
      if (!options_.progress) return;
      v1::Progress progress;
      progress.set_name(name);
      progress.set_state(state);
      progress.set_bytes(made);
      progress.set_cache(cache);
      options_.progress(progress);
    };
    tell("making");
    TreeOptions tree;
    if (options_.source_date_epoch != 0) tree.latest_mtime = options_.source_date_epoch;
    tree.cancel = stop_.get();
    LayerOptions options;
    options.compression = options_.compression;
    options.level = options_.level;
    options.cancel = stop_.get();
    auto result = WriteLayer(source, tree, options, [&](absl::Span<const uint8_t> bytes) {
      made += bytes.size();
      if (const auto now = base::SystemClock().Monotonic(); now - told > kProgressInterval) {
        told = now;
        tell("compressing");
      }
      return writer.Append(bytes);
    });
    absl::Status status = result.status();
    if (status.ok()) {
      {
        absl::MutexLock lock(&layer.mutex_);
        layer.result_ = *result;
      }
      status = writer.Finish(result->digest, result->size);
    } else {
      status = base::Annotate(status, base::Printable(name));
      writer.Fail(status);
    }
    tell(status.ok() ? "written" : "failed");
  }

  const MakeOptions options_;
  const std::shared_ptr<base::CancelToken> stop_ = std::make_shared<base::CancelToken>();
  const base::CancelToken::Registration registration_;
  std::unique_ptr<base::ThreadPool> threads_ = std::make_unique<base::ThreadPool>("lb-make", Threads());
};

LayerMaker::LayerMaker(MakeOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
LayerMaker::~LayerMaker() = default;

absl::StatusOr<std::shared_ptr<MadeLayer>> LayerMaker::Add(const v1::LayerSource& source, bool cache) {
  return impl_->Add(source, cache);
}

}  // namespace lazyblob::exporter

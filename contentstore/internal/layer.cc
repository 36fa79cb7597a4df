#include "contentstore/internal/layer.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/status.h"
#include "contentstore/internal/fetch_engine.h"

namespace lazyblob::contentstore {

LayerBody::ChunkRange LayerBody::Chunks(uint64_t offset, uint64_t length) const {
  const uint64_t first = index->FindChunk(offset);
  uint64_t end = index->FindChunk(offset + length - 1);
  if (end < index->chunk_count() && index->chunk(end).data_offset < offset + length) ++end;
  return {first, std::max(first, end)};
}

Layer::Layer(const LayerRecord& record, std::string directory, std::shared_ptr<FetchEngine> engine,
             SourceFactory factory)
    : id_(record.id),
      directory_(std::move(directory)),
      engine_(std::move(engine)),
      factory_(std::move(factory)),
      quarantined_(!record.quarantine.empty()),
      preferred_source_(),
      not_lazy_reason_(record.not_lazy_reason),
      quarantine_(record.quarantine) {
  std::vector<base::Digest> claims = record.claims;
  const bool known = !record.diff_id.empty() && record.quarantine.empty();
  if (claims.empty() && known) claims.push_back(record.diff_id);
  claims_ = DiffIdClaims(std::move(claims), record.unpacked);
  identities_.push_back(std::make_unique<const Identity>(Identity{record.descriptor, record.diff_id}));
  identity_.store(identities_.back().get(), std::memory_order_release);
  if (!quarantine_.empty()) last_error_ = QuarantineLine();
  for (const std::string& name : record.sources) sources_.push_back({name, nullptr});
}

LayerState Layer::state() const {
  if (quarantined_.load(std::memory_order_acquire)) return LayerState::kQuarantined;
  const LayerBody* const now = body();
  if (now == nullptr) return LayerState::kNeedsIndex;
  return now->cache->complete() ? LayerState::kComplete : LayerState::kLazy;
}

std::string Layer::not_lazy_reason() const {
  const LayerBody* const now = body();
  absl::MutexLock lock(&mutex_);
  if (!quarantine_.empty()) return "quarantined";
  if (!not_lazy_reason_.empty()) return not_lazy_reason_;
  if (now != nullptr && !now->random_access) return "no-random-access";
  return "";
}

std::shared_ptr<const layer::LayerIndex> Layer::index() const {
  const LayerBody* const now = body();
  return now == nullptr ? nullptr : now->index;
}

uint64_t Layer::data_size() const {
  const LayerBody* const now = body();
  return now == nullptr ? 0 : now->index->info().data_size;
}

void Layer::Install(std::unique_ptr<LayerBody> body) {
  absl::MutexLock lock(&mutex_);
  bodies_.push_back(std::move(body));
  body_.store(bodies_.back().get(), std::memory_order_release);
}

namespace {

struct PinnedChunks {
  PinnedChunks(std::shared_ptr<const Layer> layer_in, ChunkCache& cache, LayerBody::ChunkRange chunks)
      : layer(std::move(layer_in)), pin(cache, chunks.first, chunks.end) {}
  const std::shared_ptr<const Layer> layer;  // which the cache lives as long as
  const ChunkCache::Pin pin;
};

}  // namespace

std::shared_ptr<const void> Layer::PinChunks(const LayerBody& body, LayerBody::ChunkRange chunks) {
  return std::make_shared<const PinnedChunks>(shared_from_this(), *body.cache, chunks);
}

absl::StatusOr<std::shared_ptr<const void>> Layer::PinForMount(bool mounted) {
  const LayerBody* const now = body();
  if (now == nullptr) return absl::FailedPreconditionError("the layer has no index");
  return now->cache->PinMounted(mounted);
}

std::optional<PinnedRange> Layer::TryAcquire(uint64_t offset, uint64_t length) {
  const LayerBody* const now = body();
  if (now == nullptr || quarantined_.load(std::memory_order_acquire)) return std::nullopt;
  if (!base::RangeWithin(offset, length, now->index->info().data_size)) return std::nullopt;
  std::shared_ptr<const void> pin;
  const LayerBody::ChunkRange chunks = length > 0 ? now->Chunks(offset, length) : LayerBody::ChunkRange();
  if (chunks.first < chunks.end) {
    if (!now->cache->AllPresent(chunks.first, chunks.end)) return std::nullopt;
    pin = PinChunks(*now, chunks);
    if (!now->cache->AllPresent(chunks.first, chunks.end)) return std::nullopt;
  }
  if (const uint64_t end = offset + length; end > ahead_trigger_.load(std::memory_order_relaxed)) {
    engine_->ReadAhead(shared_from_this(), end);
  }
  NoteServedBytes(length);
  if (pin == nullptr) pin = shared_from_this();
  return PinnedRange(now->cache->fd(), offset, length, std::move(pin));
}

void Layer::Acquire(uint64_t offset, uint64_t length, FetchContext context,
                    absl::AnyInvocable<void(absl::StatusOr<PinnedRange>) &&> done) {
  if (quarantined_.load(std::memory_order_acquire)) return std::move(done)(QuarantineError());
  const LayerBody* const now = body();
  if (now == nullptr) {
    return std::move(done)(absl::FailedPreconditionError(absl::StrCat(
        "layer ", descriptor().digest.ToString(), " has no index yet; index or mount it first")));
  }
  if (!base::RangeWithin(offset, length, now->index->info().data_size)) {
    return std::move(done)(absl::InvalidArgumentError(absl::StrCat(
        "[", offset, ", +", length, ") is outside the data area of ", descriptor().digest.ToString())));
  }
  if (std::optional<PinnedRange> hit = TryAcquire(offset, length)) return std::move(done)(*std::move(hit));
  auto waiter = std::make_shared<Waiter>();
  waiter->layer = shared_from_this();
  waiter->body = now;
  waiter->offset = offset;
  waiter->length = length;
  if (length > 0) {
    const LayerBody::ChunkRange chunks = now->Chunks(offset, length);
    if (chunks.first < chunks.end) waiter->pin = PinChunks(*now, chunks);
  }
  waiter->context = std::move(context);
  waiter->done = std::move(done);
  engine_->Acquire(std::move(waiter));
}

void Layer::Doubt(uint64_t offset, uint64_t length) {
  const LayerBody* const now = body();
  if (now == nullptr || length == 0) return;
  if (!base::RangeWithin(offset, length, now->index->info().data_size)) return;
  const LayerBody::ChunkRange chunks = now->Chunks(offset, length);
  now->cache->Doubt(chunks.first, chunks.end);
}

void Layer::FailOutstanding(const absl::Status& status) { engine_->FailOutstanding(this, status); }

void Layer::SetKept(Kept kept) {
  kept_.store(kept, std::memory_order_release);
  if (kept == Kept::kNo) SetKeptCharge({});
}

void Layer::SetKeptCharge(CacheBudget::Charge charge) {
  absl::MutexLock lock(&mutex_);
  kept_charge_ = std::move(charge);
}

LayerStats Layer::stats() const {
  LayerStats stats;
  for (size_t i = 0; i < kFetchCauses; ++i)
    stats.fetched_bytes[i] = fetched_bytes_[i].load(std::memory_order_relaxed);
  stats.served_bytes = served_bytes_.load(std::memory_order_relaxed);
  if (const LayerBody* const now = body()) {
    stats.cached_bytes = now->cache->cached_bytes();
    stats.rotten_chunks = now->cache->rotten();
  }
  absl::MutexLock lock(&mutex_);
  stats.last_source = preferred_source_;
  stats.last_error = last_error_;
  return stats;
}

namespace {

// The annotations that name a table of contents.
std::map<std::string, std::string> TocAnnotations(const oci::Descriptor& descriptor) {
  std::map<std::string, std::string> found;
  for (const auto& [key, value] : descriptor.annotations) {
    if (absl::StrContains(key, "stargz") || absl::StrContains(key, "zstd-chunked")) found.emplace(key, value);
  }
  return found;
}

bool SameClaims(const oci::Descriptor& a, const oci::Descriptor& b) {
  return a.size == b.size && a.media_type == b.media_type && TocAnnotations(a) == TocAnnotations(b);
}

// Whether an image may have the layer as it is indexed. An index made from a table of contents is true only
// for images that name the same table: its digest is what binds the chunks to the manifest.
absl::Status CheckClaims(const DescriptorHandler& handler, const Layer::Identity& known,
                         const layer::LayerInfo& info) {
  const std::string name = known.descriptor.digest.ToString();
  if (handler.descriptor.size != known.descriptor.size) {
    return absl::FailedPreconditionError(absl::StrCat("layer ", name, " has ", known.descriptor.size,
                                                      " bytes, but another image says ",
                                                      handler.descriptor.size));
  }
  if (!handler.diff_id.empty() && !info.diff_id.empty() && handler.diff_id != info.diff_id) {
    return absl::FailedPreconditionError(absl::StrCat("layer ", name, " has diffID ", info.diff_id.ToString(),
                                                      ", but this image says ", handler.diff_id.ToString(),
                                                      "; the image's config does not fit its layers"));
  }
  const bool by_toc = info.format == layer::Format::kEstargz || info.format == layer::Format::kZstdChunked;
  if (by_toc && TocAnnotations(handler.descriptor) != TocAnnotations(known.descriptor)) {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", name,
                     " is known by another table of contents than this image names; mount it "
                     "with another --root"));
  }
  return absl::OkStatus();
}

}  // namespace

void Layer::SetIdentity(Identity identity) {
  identities_.push_back(std::make_unique<const Identity>(std::move(identity)));
  identity_.store(identities_.back().get(), std::memory_order_release);
}

void Layer::LeaveQuarantine() {
  quarantine_.clear();
  quarantined_.store(false, std::memory_order_release);
}

// What an image says of a layer whose index was not made from all of its bytes.
absl::Status Layer::MergeClaim(const DescriptorHandler& handler, const layer::LayerInfo& info) {
  if (!info.diff_id.empty() || handler.diff_id.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(
      base::Annotate(claims_.Add(handler.diff_id), absl::StrCat("layer ", info.blob_digest.ToString())));
  Identity identity = *identities_.back();
  // It is for what others said. Where nobody can tell yet, it is compared before anything is mounted.
  const bool others = claims_.OpenAlgorithms().empty() || handler.diff_id != identity.diff_id;
  if (!quarantine_.empty() && others) {
    if (!identity.diff_id.empty()) claims_.Add(identity.diff_id).IgnoreError();
    LeaveQuarantine();
  }
  if (claims_.Has(identity.diff_id)) return absl::OkStatus();
  identity.diff_id = handler.diff_id;
  SetIdentity(std::move(identity));
  return absl::OkStatus();
}

absl::Status Layer::Merge(const DescriptorHandler& handler) {
  const LayerBody* const now = body();
  absl::MutexLock lock(&mutex_);
  Identity merged = *identities_.back();
  if (now == nullptr) {
    if (!handler.diff_id.empty()) {
      RETURN_IF_ERROR(base::Annotate(claims_.Replace(handler.diff_id),
                                     absl::StrCat("layer ", merged.descriptor.digest.ToString())));
    }
    // Nothing was verified yet: what another image said of this blob must not stand in the way of this one.
    merged.descriptor = handler.descriptor;
    if (!handler.diff_id.empty()) merged.diff_id = handler.diff_id;
    if (!SameClaims(merged.descriptor, identities_.back()->descriptor) ||
        merged.diff_id != identities_.back()->diff_id) {
      not_lazy_reason_.clear();
      toc_unusable_ = false;
      LeaveQuarantine();
      SetIdentity(std::move(merged));
    }
  } else {
    RETURN_IF_ERROR(CheckClaims(handler, merged, now->index->info()));
    RETURN_IF_ERROR(MergeClaim(handler, now->index->info()));
  }
  if (handler.external_toc != nullptr) {
    external_toc_ = handler.external_toc;
    toc_unusable_ = false;
  }
  // That is the fault of the sources there were; a diffID's is of the images (MergeClaim).
  const bool bytes_were_wrong =
      !quarantine_.empty() && (now == nullptr || !now->index->info().diff_id.empty());
  for (const std::shared_ptr<BlobSource>& source : handler.sources) {
    const std::string source_name = source->name();
    auto found = std::find_if(sources_.begin(), sources_.end(),
                              [&](const Source& s) { return s.name == source_name; });
    if (found == sources_.end()) {
      sources_.push_back({source_name, source});
      if (!bytes_were_wrong) continue;
      LeaveQuarantine();
      preferred_source_ = source_name;
      not_lazy_reason_.clear();
    } else {
      found->source = source;
    }
  }
  return absl::OkStatus();
}

ExternalTocSource Layer::external_toc() const {
  absl::MutexLock lock(&mutex_);
  return external_toc_;
}

LayerRecord Layer::record() const {
  absl::MutexLock lock(&mutex_);
  LayerRecord record;
  record.id = id_;
  record.descriptor = identities_.back()->descriptor;
  record.diff_id = identities_.back()->diff_id;
  if (claims_.claims().size() > 1) record.claims = claims_.claims();
  record.unpacked = claims_.found();
  for (const Source& source : sources_) record.sources.push_back(source.name);
  record.not_lazy_reason = not_lazy_reason_;
  record.quarantine = quarantine_;
  return record;
}

void Layer::SetNotLazyReason(absl::string_view reason) {
  absl::MutexLock lock(&mutex_);
  not_lazy_reason_ = std::string(reason);
}

void Layer::NoteTocUnusable() {
  absl::MutexLock lock(&mutex_);
  toc_unusable_ = true;
}

bool Layer::TakeTocUnusable() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(toc_unusable_, false);
}

void Layer::Quarantine(absl::string_view why) {
  absl::MutexLock lock(&mutex_);
  quarantine_ = std::string(why);
  quarantined_.store(true, std::memory_order_release);
}

std::string Layer::QuarantineLine() const {
  return absl::StrCat("layer ", identities_.back()->descriptor.digest.ToString(),
                      " is quarantined: ", quarantine_);
}

absl::Status Layer::QuarantineError() const {
  absl::MutexLock lock(&mutex_);
  return absl::DataLossError(absl::StrCat("layer ", identities_.back()->descriptor.digest.ToString(),
                                          " is quarantined and will not be served: ", quarantine_));
}

std::vector<base::DigestAlgorithm> Layer::OpenAlgorithms() const {
  const LayerBody* const now = body();
  if (now == nullptr) {
    // Of others all bytes pass by when they are indexed.
    const absl::StatusOr<layer::Format> format = layer::FormatOf(descriptor());
    if (!format.ok() || (*format != layer::Format::kEstargz && *format != layer::Format::kZstdChunked)) {
      return {};
    }
  } else if (!now->index->info().diff_id.empty()) {
    return {};
  }
  absl::MutexLock lock(&mutex_);
  return claims_.OpenAlgorithms();
}

std::unique_ptr<UnpackedDigest> Layer::StartUnpacking(const layer::BuildLimits& limits) const {
  const std::vector<base::DigestAlgorithm> algorithms = OpenAlgorithms();
  const std::optional<oci::Compression> compression = oci::LayerCompression(descriptor().media_type);
  if (algorithms.empty() || !compression.has_value() || !refused_.ok()) return nullptr;
  return std::make_unique<UnpackedDigest>(descriptor(), *compression, algorithms, limits);
}

DiffIdCheck Layer::diff_id_check() const {
  const LayerBody* const now = body();
  if (now != nullptr && !now->index->info().diff_id.empty()) return DiffIdCheck::kVerified;
  absl::MutexLock lock(&mutex_);
  if (claims_.claims().empty()) return DiffIdCheck::kUnknown;
  if (claims_.OpenAlgorithms().empty()) return DiffIdCheck::kVerified;
  return claims_.disputed() ? DiffIdCheck::kDisputed : DiffIdCheck::kClaimed;
}

void Layer::NoteUnpacked(UnpackedDigest& unpacked, const std::function<void(absl::string_view)>& log) {
  if (const std::string line = Judge(unpacked.Finish()); !line.empty()) log(line);
}

std::string Layer::Judge(const absl::StatusOr<std::vector<base::Digest>>& found) {
  const bool cannot = absl::IsInvalidArgument(found.status()) || absl::IsDataLoss(found.status());
  absl::MutexLock lock(&mutex_);
  if (!found.ok() && !cannot) {
    std::string line =
        absl::StrCat("layer ", identities_.back()->descriptor.digest.ToString(),
                     ": its diffID is not compared: ", base::Printable(found.status().message()));
    if (line == last_error_) return "";
    last_error_ = line;
    return line;
  }
  const std::vector<base::Digest> wrong = cannot ? claims_.RefuseAll() : claims_.SetFound(*found);
  SetRecordChanged();
  if (wrong.empty()) return "";
  Identity identity = *identities_.back();
  const auto text = [](std::string* out, const base::Digest& one) { out->append(one.ToString()); };
  const std::string name = absl::StrCat("layer ", identity.descriptor.digest.ToString());
  const std::string why = absl::StrCat(
      cannot ? absl::StrCat("it cannot be unpacked (", base::Printable(found.status().message()), ")")
             : absl::StrCat("it unpacks to ", absl::StrJoin(*found, ", ", text)),
      ", its image says ", absl::StrJoin(wrong, ", ", text));
  if (!claims_.claims().empty()) {
    if (!claims_.Has(identity.diff_id)) {
      identity.diff_id = claims_.claims().front();
      SetIdentity(std::move(identity));
    }
    return absl::StrCat(name, ": ", why, "; that image is refused, others that hold the layer are not");
  }
  quarantine_ = why;
  last_error_ = QuarantineLine();
  quarantined_.store(true, std::memory_order_release);
  return absl::StrCat(last_error_, "; remove the images that hold it");
}

std::vector<std::shared_ptr<BlobSource>> Layer::Sources() {
  std::vector<std::string> to_make;
  {
    absl::MutexLock lock(&mutex_);
    for (const Source& source : sources_) {
      if (source.source == nullptr) to_make.push_back(source.name);
    }
  }
  std::map<std::string, std::shared_ptr<BlobSource>> made;
  for (const std::string& name : to_make) {
    if (!factory_) break;
    absl::StatusOr<std::shared_ptr<BlobSource>> source = factory_(name);
    if (source.ok() && *source != nullptr) made[name] = *std::move(source);
  }
  std::vector<std::shared_ptr<BlobSource>> result;
  const size_t kept = kept_.load(std::memory_order_acquire) == Kept::kNo ? 0 : 1;
  if (kept > 0) result.push_back(MakeFileSource(kept_path()));
  absl::MutexLock lock(&mutex_);
  for (Source& source : sources_) {
    const auto found = made.find(source.name);
    if (source.source == nullptr && found != made.end()) source.source = found->second;
    if (source.source == nullptr) continue;
    const bool first = source.name == preferred_source_;
    result.insert(first ? result.begin() + static_cast<ptrdiff_t>(kept) : result.end(), source.source);
  }
  return result;
}

absl::Status Layer::NoSourceError(FetchCause cause) const {
  const oci::Descriptor& blob = descriptor();
  return ProviderMissingError({{blob.digest, blob.size, absl::StrCat(FetchCauseName(cause), " read")}});
}

void Layer::NoteServedBy(const BlobSource& source) {
  std::string name = source.name();
  absl::MutexLock lock(&mutex_);
  preferred_source_ = std::move(name);
}

void Layer::NoteError(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  last_error_ = std::string(status.message());
}

}  // namespace lazyblob::contentstore

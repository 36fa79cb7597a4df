#include "contentstore/internal/blob_spools.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

// How often the clock is looked at while there are spools.
constexpr absl::Duration kLookInterval = absl::Milliseconds(50);
// A spool that nobody has read for so long gives way to one that is wanted.
constexpr absl::Duration kYieldAfter = absl::Seconds(1);
constexpr uint64_t kStreamBlockBytes = 256 << 10;

}  // namespace

BlobSpools::~BlobSpools() { Stop(); }

void BlobSpools::Start() {
  thread_ = std::thread([this] { Watch(); });
}

void BlobSpools::Stop() {
  Dropped dropped;
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = true;
    for (auto& [digest, entry] : spools_) dropped.push_back(std::move(entry.spool));
    spools_.clear();
    reserved_ = 0;
    changed_.SignalAll();
  }
  for (const auto& spool : dropped) spool->Stop();
  if (thread_.joinable()) thread_.join();
}

void BlobSpools::Watch() {
  while (true) {
    Dropped dropped;
    const absl::MutexLock lock(&mutex_);
    while (spools_.empty() && !stopping_) changed_.Wait(&mutex_);
    if (stopping_) return;
    changed_.WaitFor(&mutex_, kLookInterval);
    DropIdle(options_.idle, SIZE_MAX, &dropped);
  }
}

void BlobSpools::DropIdle(absl::Duration idle, size_t most, Dropped* dropped) {
  const absl::Duration now = options_.clock->Monotonic();
  while (most-- > 0) {
    auto oldest = spools_.end();
    absl::Duration since = now - idle;
    for (auto at = spools_.begin(); at != spools_.end(); ++at) {
      const std::optional<absl::Duration> unused = at->second.spool->IdleSince();
      if (!unused.has_value() || *unused > since) continue;
      oldest = at;
      since = *unused;
    }
    if (oldest == spools_.end()) return;
    reserved_ -= oldest->second.reserved;
    dropped->push_back(std::move(oldest->second.spool));
    spools_.erase(oldest);
    changed_.SignalAll();
  }
}

std::shared_ptr<BlobSpool> BlobSpools::FindOrMake(const Layer& layer, Dropped* dropped) {
  const oci::Descriptor& blob = layer.descriptor();
  const auto found = spools_.find(blob.digest);
  if (found != spools_.end()) {
    if (found->second.spool->size() == blob.size) return found->second.spool;
    reserved_ -= found->second.reserved;  // another image told another size
    dropped->push_back(std::move(found->second.spool));
    spools_.erase(found);
  }
  const uint64_t size = layer.kept() == Layer::Kept::kNo ? blob.size : 0;
  const auto fits = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return size == 0 || reserved_ == 0 ||
           (reserved_ <= options_.max_bytes && size <= options_.max_bytes - reserved_);
  };
  while (!fits()) {
    const size_t before = spools_.size();
    DropIdle(std::min(kYieldAfter, options_.idle), 1, dropped);
    if (spools_.size() == before) return nullptr;
  }
  auto spool = std::make_shared<BlobSpool>(options_, blob);
  spools_[blob.digest] = Entry{spool, size};
  reserved_ += size;
  changed_.SignalAll();
  return spool;
}

absl::StatusOr<std::unique_ptr<BlobSpool::Reader>> BlobSpools::Enter(const std::shared_ptr<Layer>& layer,
                                                                     const FetchContext& context) {
  while (true) {
    Dropped dropped;
    if (context.cancel != nullptr && context.cancel->cancelled()) return absl::CancelledError("cancelled");
    const absl::MutexLock lock(&mutex_);
    if (stopping_) return absl::CancelledError("the content store is being closed");
    if (std::shared_ptr<BlobSpool> spool = FindOrMake(*layer, &dropped)) {
      return std::make_unique<BlobSpool::Reader>(std::move(spool), layer, context);
    }
    if (options_.clock->Monotonic() >= context.deadline) {
      return absl::DeadlineExceededError(absl::StrCat("blob ", layer->descriptor().digest.ToString(),
                                                      " found no room: other whole blobs are being read"));
    }
    changed_.WaitFor(&mutex_, kLookInterval);
  }
}

absl::StatusOr<size_t> BlobSpools::Read(const std::shared_ptr<Layer>& layer, uint64_t offset,
                                        absl::Span<uint8_t> out, const FetchContext& context) {
  const oci::Descriptor& blob = layer->descriptor();
  if (offset > blob.size) {
    return absl::OutOfRangeError(absl::StrCat("offset ", offset, " of blob ", blob.digest.ToString(),
                                              ", which has ", blob.size, " bytes"));
  }
  if (offset == blob.size || out.empty()) return 0;
  ASSIGN_OR_RETURN(const std::unique_ptr<BlobSpool::Reader> reader, Enter(layer, context));
  return reader->spool().Read(*reader, offset, out);
}

bool BlobSpools::TryRead(const Layer& layer, uint64_t offset, absl::Span<uint8_t> out) {
  std::shared_ptr<const base::UniqueFd> file;
  {
    const absl::MutexLock lock(&mutex_);  // the spool stays meanwhile, and does not end with us
    const auto found = spools_.find(layer.descriptor().digest);
    if (found == spools_.end() || found->second.spool->size() != layer.descriptor().size) return false;
    file = found->second.spool->TryGive(offset, out.size());
  }
  return file != nullptr && base::TryPreadFull(file->get(), offset, out);
}

absl::StatusOr<std::string> BlobSpools::Keep(const std::shared_ptr<Layer>& layer, const FetchContext& context,
                                             const Progress& progress) {
  ASSIGN_OR_RETURN(const std::unique_ptr<BlobSpool::Reader> reader, Enter(layer, context));
  return reader->spool().Keep(*reader, progress);
}

bool BlobSpools::Joinable(const Layer& layer, bool keep) const {
  if (keep || options_.keep || layer.kept() != Layer::Kept::kNo) return true;
  const absl::MutexLock lock(&mutex_);
  return spools_.count(layer.descriptor().digest) != 0;
}

absl::Status BlobSpools::Stream(const std::shared_ptr<Layer>& layer, registry::ByteRange range,
                                registry::BodySink sink, const StreamCaller& caller, bool keep) {
  uint64_t at = range.offset;
  const uint64_t end = range.offset + range.length;
  if (at < end && Joinable(*layer, keep)) {
    FetchContext context;
    context.cause = caller.cause;
    context.deadline = caller.deadline;
    context.cancel = caller.cancel;
    context.keep_blob = keep;
    std::vector<uint8_t> block(std::min(kStreamBlockBytes, range.length));
    ASSIGN_OR_RETURN(const std::unique_ptr<BlobSpool::Reader> reader, Enter(layer, context));
    while (at < end) {
      const CredentialsList requesters = caller.requesters();
      context.credentials = requesters.empty() ? nullptr : requesters.front();
      const auto part = absl::MakeSpan(block).first(std::min<uint64_t>(block.size(), end - at));
      const absl::StatusOr<size_t> got = reader->spool().Read(*reader, at, part);
      if (absl::IsResourceExhausted(got.status())) break;  // the disk is full; it can be done without
      RETURN_IF_ERROR(got.status());
      RETURN_IF_ERROR(sink(part.first(*got)));
      at += *got;
    }
  }
  if (at == end && range.length > 0) return absl::OkStatus();
  return StreamFromSources(*layer, {at, end - at}, sink, caller);
}

void BlobSpools::Drop(const base::Digest& digest) {
  Dropped dropped;
  const absl::MutexLock lock(&mutex_);
  const auto found = spools_.find(digest);
  if (found == spools_.end() || !found->second.spool->IdleSince().has_value()) return;
  reserved_ -= found->second.reserved;
  dropped.push_back(std::move(found->second.spool));
  spools_.erase(found);
  changed_.SignalAll();
}

bool BlobSpools::DropKept(Layer& layer) {
  const absl::MutexLock lock(&mutex_);  // nobody begins to read it meanwhile
  if (spools_.count(layer.descriptor().digest) != 0) return false;
  if (unlink(layer.kept_path().c_str()) != 0 && errno != ENOENT) return false;
  layer.SetKept(Layer::Kept::kNo);
  return true;
}

uint64_t BlobSpools::reserved() const {
  const absl::MutexLock lock(&mutex_);
  return reserved_;
}

}  // namespace lazyblob::contentstore

#include "contentstore/internal/job_runner.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/crash_record.h"
#include "base/fault.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

// Bytes that are not needed any more are dropped from the front in steps of this.
constexpr uint64_t kDropBytes = 512 << 10;
constexpr absl::Duration kSpeculativePatience = absl::Seconds(20);

}  // namespace

// The part of the blob range that is still needed: arriving bytes at its end, decoded ones dropped at its
// front.
class JobRunner::Window {
 public:
  Window(JobRunner& runner, std::vector<Job::Item*> items) : runner_(runner), items_(std::move(items)) {
    needed_from_.resize(items_.size() + 1, UINT64_MAX);
    for (size_t i = items_.size(); i-- > 0;) {
      needed_from_[i] = std::min(needed_from_[i + 1], items_[i]->chunk.blob_offset);
      end_ = std::max(end_, items_[i]->chunk.blob_offset + items_[i]->chunk.blob_size);
    }
    base_ = needed_from_[0];
    begin_ = base_;
    uint64_t largest = 0;
    for (const Job::Item* item : items_) largest = std::max(largest, item->chunk.blob_size);
    buffer_.reserve(std::min(end_ - base_, largest + kDropBytes));  // what the job's memory counts
  }

  registry::ByteRange range() const { return {begin_, end_ - begin_}; }
  bool whole() const { return base_ + buffer_.size() == end_; }

  absl::Status Take(absl::Span<const uint8_t> bytes) {
    if (runner_.job_.cancel->cancelled())
      return absl::CancelledError("nobody waits for these bytes any more");
    if (bytes.size() > end_ - base_ - buffer_.size())
      return absl::DataLossError("more bytes than were asked for");
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    const uint64_t arrived = base_ + buffer_.size();
    for (; next_ < items_.size(); ++next_) {
      const layer::Chunk& chunk = items_[next_]->chunk;
      if (chunk.blob_offset + chunk.blob_size > arrived) break;
      runner_.Decode(items_[next_],
                     absl::MakeConstSpan(buffer_).subspan(chunk.blob_offset - base_, chunk.blob_size));
    }
    const uint64_t drop = std::min(needed_from_[next_], arrived) - base_;
    if (drop >= kDropBytes) {
      buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(drop));
      base_ += drop;
    }
    return absl::OkStatus();
  }

 private:
  JobRunner& runner_;
  const std::vector<Job::Item*> items_;
  std::vector<uint64_t> needed_from_;  // the first byte that items_[i…] need
  size_t next_ = 0;
  uint64_t begin_ = 0;
  uint64_t base_ = 0;  // blob offset of buffer_[0]
  uint64_t end_ = 0;
  std::vector<uint8_t> buffer_;
};

std::vector<Job::Item*> JobRunner::Remaining() {
  std::vector<Job::Item*> items;
  for (Job::Item& item : job_.items) {
    if (!item.done) items.push_back(&item);
  }
  return items;
}

bool JobRunner::Decode(Job::Item* item, absl::Span<const uint8_t> blob_bytes) {
  const base::CrashSubject subject(job_.layer->descriptor().digest.ToString());
  base::FaultPoint("contentstore.chunk.decode").IgnoreError();
  scratch_.resize(item->chunk.data_size);
  absl::Status status = job_.body->index->Decode(item->chunk_number, blob_bytes, absl::MakeSpan(scratch_));
  if (!status.ok()) {
    wrong_ = std::move(status);
    return false;
  }
  // What comes in the background takes nobody's room, and is the first to give way.
  const bool wanted = job_.cause != FetchCause::kBackground;
  // Nobody can take it away before those who wait for it, and have pinned it, know that it is there.
  const ChunkCache::Pin pin(*job_.body->cache, item->chunk_number, item->chunk_number + 1, /*use=*/wanted);
  Bytes memory;
  status =
      job_.body->cache->Store(item->chunk_number, scratch_, wanted ? CacheRoom::kEvicting : CacheRoom::kFree);
  if (!status.ok()) {
    if (wanted || !absl::IsResourceExhausted(status)) host_.NoteDiskError(*job_.layer, status);
    memory = std::make_shared<const std::vector<uint8_t>>(std::move(scratch_));
    scratch_ = {};
  }
  item->done = true;
  if (source_ != noted_) job_.layer->NoteServedBy(*source_);  // before anybody is answered, who may ask
  noted_ = source_;
  host_.Deliver(job_, item->chunk_number, memory);
  return true;
}

absl::Status JobRunner::ReadFrom(BlobSource& source) {
  return WithLivingCredentials(
      [this] { return host_.Requesters(job_); },
      [&](const CredentialsPtr& credentials) -> absl::Status {
        Window window(*this, Remaining());
        registry::CallContext context;
        context.deadline = host_.Deadline(job_);
        // Who joins what is read ahead must not wait as long as that could.
        if (job_.speculative)
          context.deadline = std::min(context.deadline, host_.Now() + kSpeculativePatience);
        context.distrust_mirrors = !wrong_.ok();
        context.cancel = job_.cancel;
        context.credentials = credentials;
        context.bytes_received = job_.layer->FetchedCounter(source, job_.cause);
        const absl::Status status = source.Read(
            job_.layer->descriptor(), window.range(),
            [&window](absl::Span<const uint8_t> bytes) { return window.Take(bytes); }, context);
        if (status.ok() && !window.whole())
          return absl::DataLossError("fewer bytes arrived than were asked for");
        if (absl::IsDeadlineExceeded(status) && host_.Now() < context.deadline) {
          return absl::UnavailableError(status.message());  // a time limit of the source's own
        }
        return status;
      });
}

absl::Status JobRunner::Run() {
  RETURN_IF_ERROR(job_.layer->refused());
  const std::string digest = job_.layer->descriptor().digest.ToString();
  for (Job::Item* item : Remaining()) {
    if (item->chunk.blob_size == 0) Decode(item, {});
  }
  if (Remaining().empty()) return absl::OkStatus();
  if (!wrong_.ok()) return base::Annotate(wrong_, absl::StrCat("index of layer ", digest));
  for (const Job::Item& item : job_.items) {
    if (item.chunk.blob_size <= kMaxChunkBlobBytes) continue;
    return absl::ResourceExhaustedError(absl::StrCat("layer ", digest, ": chunk ", item.chunk_number,
                                                     " needs ", item.chunk.blob_size,
                                                     " bytes of the blob at once"));
  }
  const std::vector<std::shared_ptr<BlobSource>> sources = job_.layer->Sources();
  if (sources.empty()) return job_.layer->NoSourceError(job_.cause);
  std::vector<bool> failed(sources.size(), false);
  absl::Status last;
  size_t position = 0;
  // Wrong bytes are asked for once more, from the next source or over the only one; a source that fails is
  // not.
  for (size_t tries = 0; tries <= sources.size(); ++tries, ++position) {
    size_t looked = 0;
    while (looked < sources.size() && failed[position % sources.size()]) ++position, ++looked;
    if (looked == sources.size()) break;
    BlobSource& source = *sources[position % sources.size()];
    source_ = &source;
    const absl::Status status = ReadFrom(source);
    if (Remaining().empty()) return absl::OkStatus();
    if (job_.cancel->cancelled()) return absl::CancelledError("nobody waits for these bytes any more");
    if (absl::IsDeadlineExceeded(status)) return status;
    if (status.ok()) {
      last = absl::DataLossError(
          absl::StrCat("layer ", digest, ": ", source.name(), " gives wrong bytes: ", wrong_.message()));
    } else {
      failed[position % sources.size()] = true;
      last = base::Annotate(status, absl::StrCat("layer ", digest, " from ", source.name()));
    }
  }
  return last;
}

}  // namespace lazyblob::contentstore

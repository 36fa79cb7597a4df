#include "contentstore/internal/chunk_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/fault.h"
#include "base/status.h"
#include "contentstore/internal/presence.h"

namespace lazyblob::contentstore {
namespace {

constexpr size_t kVerifyBlockBytes = 256 << 10;
constexpr uint64_t kMaxSegments = 1 << 16;  // of one layer
constexpr uint64_t kDiskBlockBytes = 4096;

absl::Status Resize(int fd, uint64_t size, absl::string_view what) {
  if (ftruncate(fd, static_cast<off_t>(size)) != 0)
    return base::ErrnoStatus(errno, absl::StrCat("resize ", what));
  return absl::OkStatus();
}

absl::Status DataSync(int fd, absl::string_view what) {
  if (fdatasync(fd) != 0) return base::ErrnoStatus(errno, absl::StrCat("sync ", what));
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SizeOf(int fd) {
  struct stat st{};
  if (fstat(fd, &st) != 0) return base::ErrnoStatus(errno, "stat the cache file");
  return static_cast<uint64_t>(st.st_size);
}

}  // namespace

ChunkCache::ChunkCache(std::shared_ptr<const layer::LayerIndex> index, base::UniqueFd data,
                       base::UniqueFd presence, std::shared_ptr<CacheBudget> budget)
    : index_(std::move(index)),
      data_(std::move(data)),
      presence_(std::move(presence)),
      budget_(std::move(budget)),
      segment_bytes_(std::max(budget_->segment_bytes(), index_->info().data_size / kMaxSegments)),
      present_(index_->chunk_count()),
      claimed_(index_->chunk_count()),
      segments_(index_->info().data_size / segment_bytes_ + 1),
      evictable_(index_->info().random_access),
      charge_(budget_) {}

absl::StatusOr<std::shared_ptr<ChunkCache>> ChunkCache::Open(std::shared_ptr<const layer::LayerIndex> index,
                                                             const std::string& directory, bool verified,
                                                             std::shared_ptr<CacheBudget> budget) {
  ASSIGN_OR_RETURN(base::UniqueFd data, base::OpenFile(directory + "/data", O_RDWR | O_CREAT));
  ASSIGN_OR_RETURN(base::UniqueFd presence, base::OpenFile(directory + "/presence", O_RDWR | O_CREAT));
  // Who opens the file while OpenElsewhere looks at it must not kill us: SIGIO, the default, would.
  if (fcntl(data.get(), F_SETSIG, SIGURG) != 0) return base::ErrnoStatus(errno, "set up the cache file");
  std::shared_ptr<ChunkCache> cache(
      new ChunkCache(std::move(index), std::move(data), std::move(presence), std::move(budget)));
  RETURN_IF_ERROR(cache->Load(verified));
  {
    absl::MutexLock lock(&cache->mutex_);
    cache->Recount();
  }
  cache->budget_->Add(cache);
  return cache;
}

absl::Status ChunkCache::Load(bool verified) {
  const uint64_t chunks = index_->chunk_count();
  const uint64_t data_size = index_->info().data_size;
  const PresenceHeader lazy = MakePresenceHeader(*index_, false);
  const PresenceHeader whole = MakePresenceHeader(*index_, true);
  PresenceHeader header{};
  ASSIGN_OR_RETURN(const uint64_t data_bytes, SizeOf(data_.get()));
  ASSIGN_OR_RETURN(const uint64_t presence_bytes, SizeOf(presence_.get()));
  bool usable = data_bytes == data_size && presence_bytes == PresenceBytes(chunks) &&
                base::PreadFull(presence_.get(), 0, absl::MakeSpan(header)).ok() &&
                (header == lazy || header == whole);
  std::vector<uint8_t> bits(PresenceBytes(chunks) - kPresenceHeaderBytes);
  if (usable && !base::PreadFull(presence_.get(), kPresenceHeaderBytes, absl::MakeSpan(bits)).ok())
    usable = false;
  if (!usable) {
    // The map is emptied before the data is touched: a crash in between must not leave old claims on new
    // zeros.
    RETURN_IF_ERROR(Resize(presence_.get(), 0, "presence map"));
    RETURN_IF_ERROR(Resize(data_.get(), 0, "cache file"));
    RETURN_IF_ERROR(Resize(data_.get(), data_size, "cache file"));
    RETURN_IF_ERROR(Resize(presence_.get(), PresenceBytes(chunks), "presence map"));
    return base::PwriteFull(presence_.get(), 0, lazy);
  }
  uint64_t cached = 0;
  for (uint64_t i = 0; i < chunks; ++i) {
    if ((bits[i / 8] >> (i % 8) & 1) == 0) continue;
    (verified ? present_ : claimed_).Set(i);
    cached += index_->chunk(i).data_size;
  }
  cached_bytes_.store(cached, std::memory_order_relaxed);
  complete_.store(header == whole, std::memory_order_release);
  may_be_marked_.store(header == whole, std::memory_order_release);
  return absl::OkStatus();
}

absl::Status ChunkCache::Seal(const layer::LayerIndex& index, const std::string& directory) {
  ASSIGN_OR_RETURN(base::UniqueFd data, base::OpenFile(directory + "/data", O_RDWR));
  RETURN_IF_ERROR(Resize(data.get(), index.info().data_size, "cache file"));
  RETURN_IF_ERROR(base::FaultPoint("contentstore.seal.data"));
  RETURN_IF_ERROR(DataSync(data.get(), "cache file"));
  const PresenceHeader header = MakePresenceHeader(index, true);
  std::string presence(reinterpret_cast<const char*>(header.data()), header.size());
  presence.resize(PresenceBytes(index.chunk_count()), '\0');
  for (uint64_t i = 0; i < index.chunk_count(); ++i) {
    char& byte = presence[kPresenceHeaderBytes + i / 8];
    byte = static_cast<char>(static_cast<uint8_t>(byte) | (1U << (i % 8)));
  }
  return base::WriteFileAtomically(directory + "/presence", presence);
}

absl::Status ChunkCache::Discard(const std::string& directory) {
  for (const char* name : {"/presence", "/data"}) {
    if (unlink((directory + name).c_str()) != 0 && errno != ENOENT) {
      return base::ErrnoStatus(errno, absl::StrCat("remove ", directory, name));
    }
  }
  return absl::OkStatus();
}

absl::Status ChunkCache::WriteWord(uint64_t word) {
  std::array<uint8_t, 8> bytes{};
  PutUint64(bytes.data(), present_.word(word) | claimed_.word(word));
  return base::PwriteFull(presence_.get(), kPresenceHeaderBytes + word * 8, bytes);
}

void ChunkCache::Forget(uint64_t chunk) {
  const bool was_present = present_.Clear(chunk);
  if (!claimed_.Clear(chunk) && !was_present) return;
  cached_bytes_.fetch_sub(index_->chunk(chunk).data_size, std::memory_order_relaxed);
  // A map that cannot be written keeps a wrong claim; the next run will find it out by the SHA-256.
  WriteWord(chunk / 64).IgnoreError();
  ForgetMark();
}

void ChunkCache::ForgetMark() {
  if (!complete_.exchange(false, std::memory_order_acq_rel)) return;
  base::PwriteFull(presence_.get(), 0, MakePresenceHeader(*index_, false)).IgnoreError();
}

absl::StatusOr<bool> ChunkCache::HasItsBytes(uint64_t chunk) const {
  const layer::Chunk wanted = index_->chunk(chunk);
  base::Hasher hasher;
  std::vector<uint8_t> block(std::min<uint64_t>(kVerifyBlockBytes, wanted.data_size));
  RETURN_IF_ERROR(base::FaultPoint("contentstore.chunk.read"));
  for (uint64_t done = 0; done < wanted.data_size;) {
    const auto part = absl::MakeSpan(block).first(std::min<uint64_t>(block.size(), wanted.data_size - done));
    RETURN_IF_ERROR(base::PreadFull(data_.get(), wanted.data_offset + done, part));
    hasher.Update(part);
    done += part.size();
  }
  return hasher.Finish() == base::Digest::FromSha256(wanted.sha256);
}

absl::StatusOr<bool> ChunkCache::HasItsBytesAtLast(uint64_t chunk) const {
  absl::StatusOr<bool> right = HasItsBytes(chunk);
  return base::HasErrno(right.status()) ? HasItsBytes(chunk) : right;
}

absl::Status ChunkCache::Settle(uint64_t chunk, const absl::StatusOr<bool>& right, bool was_present) {
  absl::MutexLock lock(&mutex_);
  if (Present(chunk) && !was_present) return absl::OkStatus();  // somebody else verified or repaired it
  if (Missing(chunk)) return absl::NotFoundError("chunk is not cached");
  if (right.ok() && *right) {
    present_.Set(chunk);
    claimed_.Clear(chunk);
    return absl::OkStatus();
  }
  Forget(chunk);
  rotten_.fetch_add(1, std::memory_order_relaxed);
  if (!right.ok()) {
    read_failed_.store(true, std::memory_order_relaxed);
    return right.status();
  }
  return absl::DataLossError(absl::StrCat("cached chunk ", chunk, " does not have its SHA-256"));
}

absl::Status ChunkCache::Verify(uint64_t chunk) {
  if (Present(chunk)) return absl::OkStatus();
  if (!Claimed(chunk)) return absl::NotFoundError("chunk is not cached");
  return Settle(chunk, HasItsBytesAtLast(chunk), /*was_present=*/false);
}

absl::Status ChunkCache::Recheck(uint64_t chunk) {
  const Pin pin(*this, chunk, chunk + 1, /*use=*/false);  // a hole that is made meanwhile is no finding
  const bool was_present = Present(chunk);
  if (!was_present && !Claimed(chunk)) return absl::NotFoundError("chunk is not cached");
  const layer::Chunk wanted = index_->chunk(chunk);
  const auto let_go = [&] {
    posix_fadvise(data_.get(), static_cast<off_t>(wanted.data_offset), static_cast<off_t>(wanted.data_size),
                  POSIX_FADV_DONTNEED);
  };
  let_go();
  const absl::StatusOr<bool> right = HasItsBytesAtLast(chunk);
  let_go();
  return Settle(chunk, right, was_present);
}

void ChunkCache::Doubt(uint64_t first, uint64_t end) {
  absl::MutexLock lock(&mutex_);
  for (uint64_t i = first; i < end; ++i) {
    if (!present_.Test(i)) continue;
    claimed_.Set(i);
    present_.Clear(i);
  }
  ForgetMark();
}

absl::Status ChunkCache::Store(uint64_t chunk, absl::Span<const uint8_t> bytes, CacheRoom room) {
  const layer::Chunk wanted = index_->chunk(chunk);
  if (bytes.size() != wanted.data_size) return absl::InternalError("chunk of the wrong size");
  RETURN_IF_ERROR(base::FaultPoint("contentstore.chunk.write"));
  CacheBudget::Charge coming(budget_);
  RETURN_IF_ERROR(coming.Grow((wanted.data_size / kDiskBlockBytes + 2) * kDiskBlockBytes, room));
  absl::ReaderMutexLock writing(&evict_mutex_);
  RETURN_IF_ERROR(base::PwriteFull(data_.get(), wanted.data_offset, bytes));
  RETURN_IF_ERROR(base::FaultPoint("contentstore.chunk.written"));
  if (read_failed_.load(std::memory_order_relaxed)) {
    ASSIGN_OR_RETURN(const bool right, HasItsBytes(chunk));
    if (!right) return absl::DataLossError("the disk gives other bytes than it was given");
    read_failed_.store(false, std::memory_order_relaxed);
  }
  absl::MutexLock lock(&mutex_);
  Recount();
  const bool was_claimed = claimed_.Test(chunk);
  if (!present_.Set(chunk)) return absl::OkStatus();
  claimed_.Clear(chunk);
  unsynced_.push_back(chunk);
  if (!was_claimed) cached_bytes_.fetch_add(wanted.data_size, std::memory_order_relaxed);
  WriteWord(chunk / 64).IgnoreError();  // unrecorded, the chunk is fetched again by the next run
  return absl::OkStatus();
}

absl::Status ChunkCache::Sync() {
  absl::MutexLock lock(&sync_mutex_);
  return SyncLocked();
}

absl::Status ChunkCache::SyncLocked() {
  std::vector<uint64_t> chunks;
  {
    absl::MutexLock lock(&mutex_);
    if (unsynced_.empty()) return absl::OkStatus();
    chunks.swap(unsynced_);
  }
  absl::Status status = base::FaultPoint("contentstore.sync.data");
  if (status.ok()) status = DataSync(data_.get(), "cache file");
  if (!status.ok()) {
    absl::MutexLock lock(&mutex_);
    for (const uint64_t chunk : chunks) Forget(chunk);
    return status;
  }
  {
    absl::MutexLock lock(&mutex_);
    Recount();
  }
  RETURN_IF_ERROR(base::FaultPoint("contentstore.sync.presence"));
  return DataSync(presence_.get(), "presence map");
}

absl::Status ChunkCache::MarkComplete() {
  absl::MutexLock lock(&sync_mutex_);
  if (complete()) return absl::OkStatus();
  RETURN_IF_ERROR(SyncLocked());
  // Chunks of earlier runs may never have been synced.
  RETURN_IF_ERROR(DataSync(data_.get(), "cache file"));
  absl::MutexLock map_lock(&mutex_);
  if (!AllPresent(0, index_->chunk_count())) return absl::FailedPreconditionError("chunks are missing");
  for (uint64_t word = 0; word < present_.words(); ++word) RETURN_IF_ERROR(WriteWord(word));
  RETURN_IF_ERROR(DataSync(presence_.get(), "presence map"));
  may_be_marked_.store(true, std::memory_order_release);
  RETURN_IF_ERROR(base::PwriteFull(presence_.get(), 0, MakePresenceHeader(*index_, true)));
  RETURN_IF_ERROR(DataSync(presence_.get(), "presence map"));
  complete_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

ChunkCache::Pin::Pin(ChunkCache& cache, uint64_t first, uint64_t end, bool use)
    : cache_(cache), first_(cache.SegmentOf(first)), last_(cache.SegmentOf(end - 1)) {
  const uint64_t now = cache.budget_->tick();
  for (uint64_t i = first_; i <= last_; ++i) {
    Segment& segment = cache.segments_[i];
    segment.pins.fetch_add(1, std::memory_order_seq_cst);
    if (use && segment.last_use.load(std::memory_order_relaxed) != now) {
      segment.last_use.store(now, std::memory_order_relaxed);
    }
  }
}

ChunkCache::Pin::~Pin() {
  for (uint64_t i = first_; i <= last_; ++i) {
    cache_.segments_[i].pins.fetch_sub(1, std::memory_order_seq_cst);
  }
}

std::shared_ptr<const void> ChunkCache::PinWhole() {
  {
    absl::MutexLock lock(&evict_mutex_);
    ++whole_pins_;
  }
  return {this, [self = shared_from_this()](const void*) {
            absl::MutexLock lock(&self->evict_mutex_);
            --self->whole_pins_;
          }};
}

absl::StatusOr<std::shared_ptr<const void>> ChunkCache::PinMounted(bool mounted) {
  const uint64_t bytes = index_->info().data_size;
  {
    absl::MutexLock lock(&evict_mutex_);
    if (!complete() && !mounted) return absl::FailedPreconditionError("the layer is not complete");
    const bool compared = trusted_.load(std::memory_order_acquire) || AllPresent(0, index_->chunk_count());
    if (!compared && !mounted) {
      return absl::FailedPreconditionError("the layer's chunks are not compared with their digests yet");
    }
    if (mounted_pins_ == 0) RETURN_IF_ERROR(budget_->TakePinned(bytes, mounted));
    ++mounted_pins_;
    ++whole_pins_;
  }
  return std::shared_ptr<const void>(this, [self = shared_from_this(), bytes](const void*) {
    absl::MutexLock lock(&self->evict_mutex_);
    --self->whole_pins_;
    if (--self->mounted_pins_ == 0) self->budget_->ReleasePinned(bytes);
  });
}

bool ChunkCache::mounted() const {
  absl::ReaderMutexLock lock(&evict_mutex_);
  return mounted_pins_ > 0;
}

void ChunkCache::Recount() {
  if (!budget_->limited()) return;
  uint64_t bytes = 0;
  // Blocks that are being given their place at this moment may be missing in what the file system says.
  for (int looks = 0; looks < 2; ++looks) {
    struct stat st{};
    if (fstat(data_.get(), &st) != 0) return;
    bytes = std::max(bytes, static_cast<uint64_t>(st.st_blocks) * 512);
  }
  charge_.Set(bytes);
  allocated_.store(bytes, std::memory_order_relaxed);
}

// Chunks, or bytes that nobody knows of any more.
bool ChunkCache::HasBytes(uint64_t first, uint64_t end) const {
  for (uint64_t i = first; i < end; ++i) {
    if (!Missing(i)) return true;
  }
  const layer::Chunk last = index_->chunk(end - 1);
  const off_t data = lseek(data_.get(), static_cast<off_t>(index_->chunk(first).data_offset), SEEK_DATA);
  return data >= 0 && static_cast<uint64_t>(data) < last.data_offset + last.data_size;
}

// A write lease is given only where nobody has the file open but we: neither a mount, in whatever namespace,
// nor one who is about to make one. Who opens it now waits until it is let go of.
bool ChunkCache::OpenElsewhere() const {
  if (fcntl(data_.get(), F_SETLEASE, F_WRLCK) != 0) return true;
  return fcntl(data_.get(), F_SETLEASE, F_UNLCK) != 0;
}

absl::Status ChunkCache::RemoveMark() {
  if (!may_be_marked_.load(std::memory_order_acquire)) return absl::OkStatus();
  {
    absl::MutexLock lock(&mutex_);
    complete_.store(false, std::memory_order_release);
    RETURN_IF_ERROR(base::PwriteFull(presence_.get(), 0, MakePresenceHeader(*index_, false)));
  }
  RETURN_IF_ERROR(base::FaultPoint("contentstore.evict.mark"));
  RETURN_IF_ERROR(DataSync(presence_.get(), "presence map"));
  may_be_marked_.store(false, std::memory_order_release);
  return absl::OkStatus();
}

// False, and nothing is changed, where somebody has pinned the segment meanwhile.
bool ChunkCache::MakeMissing(uint64_t segment, uint64_t first, uint64_t end) {
  std::vector<uint64_t> present;
  std::vector<uint64_t> claimed;
  uint64_t bytes = 0;
  absl::MutexLock lock(&mutex_);
  for (uint64_t i = first; i < end; ++i) {
    const bool was_present = present_.Clear(i);
    const bool was_claimed = claimed_.Clear(i);
    if (was_present) present.push_back(i);
    if (was_claimed) claimed.push_back(i);
    if (was_present || was_claimed) bytes += index_->chunk(i).data_size;
  }
  if (segments_[segment].pins.load(std::memory_order_seq_cst) > 0) {
    for (const uint64_t i : present) present_.Set(i);
    for (const uint64_t i : claimed) claimed_.Set(i);
    return false;
  }
  cached_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
  // A map that cannot be written keeps wrong claims; the next run will find them out by the SHA-256.
  for (uint64_t word = first / 64; word <= (end - 1) / 64; ++word) WriteWord(word).IgnoreError();
  return true;
}

// The blocks at both ends belong to neighbours too; they go if those are missing as well.
absl::Status ChunkCache::Punch(uint64_t first, uint64_t end) const {
  const layer::Chunk last = index_->chunk(end - 1);
  uint64_t from = index_->chunk(first).data_offset;
  uint64_t to = last.data_offset + last.data_size;
  const uint64_t outer_from = from / kDiskBlockBytes * kDiskBlockBytes;
  const uint64_t outer_to = (to + kDiskBlockBytes - 1) / kDiskBlockBytes * kDiskBlockBytes;
  bool alone = true;
  for (uint64_t i = first; alone && i-- > 0;) {
    const layer::Chunk below = index_->chunk(i);
    if (below.data_offset + below.data_size <= outer_from) break;
    alone = Missing(i);
  }
  if (alone) from = outer_from;
  alone = true;
  for (uint64_t i = end; alone && i < index_->chunk_count(); ++i) {
    if (index_->chunk(i).data_offset >= outer_to) break;
    alone = Missing(i);
  }
  if (alone) to = outer_to;
  RETURN_IF_ERROR(base::FaultPoint("contentstore.evict.punch"));
  if (fallocate(data_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from),
                static_cast<off_t>(to - from)) != 0) {
    return base::ErrnoStatus(errno, "make a hole in the cache file");
  }
  return base::FaultPoint("contentstore.evict.punched");
}

uint64_t ChunkCache::Evict(uint64_t segment) {
  absl::MutexLock lock(&evict_mutex_);
  if (!evictable_ || whole_pins_ > 0) return 0;
  if (segments_[segment].pins.load(std::memory_order_seq_cst) > 0) return 0;
  const auto first_from = [this](uint64_t offset) {
    uint64_t chunk = index_->FindChunk(offset);
    if (chunk < index_->chunk_count() && index_->chunk(chunk).data_offset < offset) ++chunk;
    return chunk;
  };
  const uint64_t first = first_from(segment * segment_bytes_);
  const uint64_t end = first_from((segment + 1) * segment_bytes_);
  if (first >= end || !HasBytes(first, end) || OpenElsewhere()) return 0;
  if (!RemoveMark().ok() || !MakeMissing(segment, first, end)) return 0;
  const absl::Status punched = Punch(first, end);
  // Where no holes can be made, nothing but fetching would come of it.
  if (!punched.ok()) evictable_ = false;
  const uint64_t before = allocated();
  absl::MutexLock map_lock(&mutex_);
  Recount();
  return before - std::min(before, allocated());
}

}  // namespace lazyblob::contentstore

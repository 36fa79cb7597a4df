#include "contentstore/internal/chunk_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/fault.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

constexpr size_t kHeaderBytes = 64;
constexpr size_t kHeaderSummedBytes = 32;
constexpr char kMagic[9] = "LBPRES01";
constexpr uint64_t kFlagComplete = 1;
constexpr size_t kVerifyBlockBytes = 256 << 10;

using Header = std::array<uint8_t, kHeaderBytes>;

void PutUint64(uint8_t* at, uint64_t value) {
  for (int i = 0; i < 8; ++i) at[i] = static_cast<uint8_t>(value >> (8 * i));
}

Header MakeHeader(const layer::LayerIndex& index, bool complete) {
  Header header{};
  std::memcpy(header.data(), kMagic, 8);
  PutUint64(&header[8], index.chunk_count());
  PutUint64(&header[16], index.info().data_size);
  PutUint64(&header[24], complete ? kFlagComplete : 0);
  const base::Sha256Bytes sum = base::Sha256({header.data(), kHeaderSummedBytes});
  std::copy(sum.begin(), sum.end(), header.begin() + kHeaderSummedBytes);
  return header;
}

uint64_t PresenceBytes(uint64_t chunks) { return kHeaderBytes + (chunks + 63) / 64 * 8; }

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
                       base::UniqueFd presence)
    : index_(std::move(index)),
      data_(std::move(data)),
      presence_(std::move(presence)),
      present_(index_->chunk_count()),
      claimed_(index_->chunk_count()) {}

absl::StatusOr<std::shared_ptr<ChunkCache>> ChunkCache::Open(std::shared_ptr<const layer::LayerIndex> index,
                                                             const std::string& directory, bool verified) {
  ASSIGN_OR_RETURN(base::UniqueFd data, base::OpenFile(directory + "/data", O_RDWR | O_CREAT));
  ASSIGN_OR_RETURN(base::UniqueFd presence, base::OpenFile(directory + "/presence", O_RDWR | O_CREAT));
  std::shared_ptr<ChunkCache> cache(new ChunkCache(std::move(index), std::move(data), std::move(presence)));
  RETURN_IF_ERROR(cache->Load(verified));
  return cache;
}

absl::Status ChunkCache::Load(bool verified) {
  const uint64_t chunks = index_->chunk_count();
  const uint64_t data_size = index_->info().data_size;
  const Header lazy = MakeHeader(*index_, false);
  const Header whole = MakeHeader(*index_, true);
  Header header{};
  ASSIGN_OR_RETURN(const uint64_t data_bytes, SizeOf(data_.get()));
  ASSIGN_OR_RETURN(const uint64_t presence_bytes, SizeOf(presence_.get()));
  bool usable = data_bytes == data_size && presence_bytes == PresenceBytes(chunks) &&
                base::PreadFull(presence_.get(), 0, absl::MakeSpan(header)).ok() &&
                (header == lazy || header == whole);
  std::vector<uint8_t> bits(PresenceBytes(chunks) - kHeaderBytes);
  if (usable && !base::PreadFull(presence_.get(), kHeaderBytes, absl::MakeSpan(bits)).ok()) usable = false;
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
  return absl::OkStatus();
}

absl::Status ChunkCache::Seal(const layer::LayerIndex& index, const std::string& directory) {
  ASSIGN_OR_RETURN(base::UniqueFd data, base::OpenFile(directory + "/data", O_RDWR));
  RETURN_IF_ERROR(Resize(data.get(), index.info().data_size, "cache file"));
  RETURN_IF_ERROR(base::FaultPoint("contentstore.seal.data"));
  RETURN_IF_ERROR(DataSync(data.get(), "cache file"));
  const Header header = MakeHeader(index, true);
  std::string presence(reinterpret_cast<const char*>(header.data()), header.size());
  presence.resize(PresenceBytes(index.chunk_count()), '\0');
  for (uint64_t i = 0; i < index.chunk_count(); ++i) {
    char& byte = presence[kHeaderBytes + i / 8];
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
  return base::PwriteFull(presence_.get(), kHeaderBytes + word * 8, bytes);
}

void ChunkCache::Forget(uint64_t chunk) {
  const bool was_present = present_.Clear(chunk);
  if (!claimed_.Clear(chunk) && !was_present) return;
  cached_bytes_.fetch_sub(index_->chunk(chunk).data_size, std::memory_order_relaxed);
  // A map that cannot be written keeps a wrong claim; the next run will find it out by the SHA-256.
  WriteWord(chunk / 64).IgnoreError();
  if (complete_.exchange(false, std::memory_order_acq_rel)) {
    base::PwriteFull(presence_.get(), 0, MakeHeader(*index_, false)).IgnoreError();
  }
}

absl::Status ChunkCache::Verify(uint64_t chunk) {
  if (Present(chunk)) return absl::OkStatus();
  if (!Claimed(chunk)) return absl::NotFoundError("chunk is not cached");
  const layer::Chunk wanted = index_->chunk(chunk);
  base::Hasher hasher;
  std::vector<uint8_t> block(std::min<uint64_t>(kVerifyBlockBytes, wanted.data_size));
  absl::Status status = base::FaultPoint("contentstore.chunk.read");
  for (uint64_t done = 0; status.ok() && done < wanted.data_size;) {
    const auto part = absl::MakeSpan(block).first(std::min<uint64_t>(block.size(), wanted.data_size - done));
    status = base::PreadFull(data_.get(), wanted.data_offset + done, part);
    hasher.Update(part);
    done += part.size();
  }
  const bool right = hasher.Finish() == base::Digest::FromSha256(wanted.sha256);
  absl::MutexLock lock(&mutex_);
  if (Present(chunk)) return absl::OkStatus();  // somebody else verified or repaired it meanwhile
  if (status.ok() && right) {
    if (!Claimed(chunk)) return absl::NotFoundError("chunk is not cached");
    present_.Set(chunk);
    claimed_.Clear(chunk);
    return absl::OkStatus();
  }
  Forget(chunk);
  if (!status.ok()) return status;
  return absl::DataLossError(absl::StrCat("cached chunk ", chunk, " does not have its SHA-256"));
}

absl::Status ChunkCache::Store(uint64_t chunk, absl::Span<const uint8_t> bytes) {
  const layer::Chunk wanted = index_->chunk(chunk);
  if (bytes.size() != wanted.data_size) return absl::InternalError("chunk of the wrong size");
  RETURN_IF_ERROR(base::FaultPoint("contentstore.chunk.write"));
  RETURN_IF_ERROR(base::PwriteFull(data_.get(), wanted.data_offset, bytes));
  RETURN_IF_ERROR(base::FaultPoint("contentstore.chunk.written"));
  absl::MutexLock lock(&mutex_);
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
  RETURN_IF_ERROR(base::PwriteFull(presence_.get(), 0, MakeHeader(*index_, true)));
  RETURN_IF_ERROR(DataSync(presence_.get(), "presence map"));
  complete_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

}  // namespace lazyblob::contentstore

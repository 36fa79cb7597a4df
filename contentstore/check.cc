#include "contentstore/check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "base/status.h"
#include "contentstore/internal/chunk_cache.h"
#include "contentstore/internal/layer_record.h"
#include "contentstore/internal/presence.h"
#include "layer/layer_index.h"

namespace lazyblob::contentstore {
namespace {

constexpr size_t kBlockBytes = 1 << 20;

// 0: there is no such file.
ino_t InodeOf(const std::string& path) {
  struct stat st{};
  return lstat(path.c_str(), &st) == 0 ? st.st_ino : 0;
}

// The first bytes of `presence`.
std::string Header(const layer::LayerIndex& index, bool complete) {
  const PresenceHeader header = MakePresenceHeader(index, complete);
  return {header.begin(), header.end()};
}

absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// One layer's directory.
class LayerCheck {
 public:
  LayerCheck(std::string directory, const CheckOptions& options, OnFinding found, CheckTotals* totals)
      : directory_(std::move(directory)), options_(options), found_(found), totals_(totals) {}

  absl::Status Run() {
    const ino_t record_before = InodeOf(Path("layer.json"));
    const ino_t index_before = InodeOf(Path("index"));
    const absl::Status status = CheckAll();
    // A layer that was removed, or indexed anew, meanwhile.
    const bool changed =
        (record_before != 0 && InodeOf(Path("layer.json")) == 0) || InodeOf(Path("index")) != index_before;
    if (!options_.alone && changed) return absl::OkStatus();
    RETURN_IF_ERROR(status);
    for (const CheckFinding& finding : findings_) found_(finding);
    return absl::OkStatus();
  }

 private:
  std::string Path(absl::string_view name) const { return absl::StrCat(directory_, "/", name); }

  // `repair` is done if repairing is asked for.
  absl::Status Found(absl::string_view what, absl::FunctionRef<absl::Status()> repair) {
    findings_.push_back({base::Printable(absl::StrCat(directory_, ": ", what)), options_.repair});
    return options_.repair ? repair() : absl::OkStatus();
  }

  absl::Status CheckAll() {
    const absl::StatusOr<LayerRecord> record = ReadLayerRecord(directory_);
    auto remove = [&] { return base::RemoveTree(directory_); };
    if (absl::IsNotFound(record.status())) {
      // The store makes the directory first, and removes the record first.
      return options_.alone ? Found("has no layer.json: garbage", remove) : absl::OkStatus();
    }
    if (absl::IsDataLoss(record.status())) {
      return Found(absl::StrCat(record.status().message(), "; the layer is unknown until it is pulled again"),
                   remove);
    }
    RETURN_IF_ERROR(record.status());
    const base::Digest& digest = record->descriptor.digest;
    if (!absl::EndsWith(directory_, absl::StrCat("-", digest.hex()))) {
      return Found("layer.json is of another layer; the layer is unknown until it is pulled again", remove);
    }
    ++totals_->layers;
    RETURN_IF_ERROR(CheckIndex(digest));
    return CheckBlob(digest);
  }

  absl::Status CheckIndex(const base::Digest& digest) {
    if (InodeOf(Path("index")) == 0) return absl::OkStatus();  // not indexed yet
    const absl::StatusOr<std::shared_ptr<const layer::LayerIndex>> index =
        layer::LayerIndex::Open(directory_);
    std::string why;
    if (!index.ok()) {
      if (!absl::IsDataLoss(index.status())) return index.status();
      why = std::string(index.status().message());
    } else if ((*index)->info().blob_digest != digest) {
      why = absl::StrCat("index is of another blob, ", (*index)->info().blob_digest.ToString());
    }
    if (why.empty()) return CheckCache(**index);
    return Found(absl::StrCat(why, "; indexed again when the layer is next pulled or mounted"), [&] {
      for (const char* name : {"index", "meta.erofs"}) {
        if (unlink(Path(name).c_str()) != 0 && errno != ENOENT) {
          return base::ErrnoStatus(errno, absl::StrCat("remove ", Path(name)));
        }
      }
      RETURN_IF_ERROR(ChunkCache::Discard(directory_));
      return base::SyncDirectory(directory_);
    });
  }

  absl::Status CheckCache(const layer::LayerIndex& index) {
    const uint64_t size = PresenceBytes(index.chunk_count());
    absl::StatusOr<std::string> presence = base::ReadFile(Path("presence"), size);
    if (absl::IsNotFound(presence.status())) return absl::OkStatus();  // nothing is claimed
    if (!presence.ok() && !absl::IsResourceExhausted(presence.status())) return presence.status();
    const std::string lazy = Header(index, false), whole = Header(index, true);
    struct stat data{};
    const bool sized = lstat(Path("data").c_str(), &data) == 0 &&
                       static_cast<uint64_t>(data.st_size) == index.info().data_size;
    if (!presence.ok() || presence->size() != size || !sized ||
        (!absl::StartsWith(*presence, lazy) && !absl::StartsWith(*presence, whole))) {
      return Found("presence or data is not of this index; all chunks are to be fetched again",
                   [&] { return ChunkCache::Discard(directory_); });
    }
    const bool complete = absl::StartsWith(*presence, whole);
    const int access = options_.repair ? O_RDWR : O_RDONLY;
    ASSIGN_OR_RETURN(const base::UniqueFd map, base::OpenFile(Path("presence"), access));
    ASSIGN_OR_RETURN(const base::UniqueFd file, base::OpenFile(Path("data"), O_RDONLY));
    posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);  // as the disk has them, where that can be had
    bool changed = false;
    RETURN_IF_ERROR(CheckChunks(index, map.get(), file.get(), complete, &*presence, &changed));
    posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
    if (!changed || !options_.repair) return absl::OkStatus();
    // The mark goes before what it vouches for.
    RETURN_IF_ERROR(base::PwriteFull(map.get(), 0, Bytes(lazy)));
    RETURN_IF_ERROR(
        base::PwriteFull(map.get(), kPresenceHeaderBytes, Bytes(*presence).subspan(kPresenceHeaderBytes)));
    if (fdatasync(map.get()) != 0) return base::ErrnoStatus(errno, absl::StrCat("sync ", Path("presence")));
    return absl::OkStatus();
  }

  static bool Bit(absl::string_view presence, uint64_t chunk) {
    return (static_cast<uint8_t>(presence[kPresenceHeaderBytes + chunk / 8]) >> (chunk % 8) & 1) != 0;
  }

  // Whether the store has let go of the chunk since `presence` was read.
  static bool GoneMeanwhile(int map, uint64_t chunk) {
    uint8_t byte = 0;
    if (!base::PreadFull(map, kPresenceHeaderBytes + chunk / 8, absl::MakeSpan(&byte, 1)).ok()) return false;
    return (byte >> (chunk % 8) & 1) == 0;
  }

  // Clears the bits of wrong chunks in `presence`; `changed`: there are some, or the mark is wrong.
  absl::Status CheckChunks(const layer::LayerIndex& index, int map, int data, bool complete,
                           std::string* presence, bool* changed) {
    auto none = [] { return absl::OkStatus(); };
    std::vector<uint8_t> bytes;
    std::vector<uint64_t> wrong;
    uint64_t missing = 0;
    for (uint64_t i = 0; i < index.chunk_count(); ++i) {
      if (!Bit(*presence, i)) {
        ++missing;
        continue;
      }
      const layer::Chunk chunk = index.chunk(i);
      ++totals_->chunks;
      totals_->bytes += chunk.data_size;
      bytes.resize(chunk.data_size);
      auto right = [&] {
        return base::PreadFull(data, chunk.data_offset, absl::MakeSpan(bytes)).ok() &&
               base::Sha256(bytes) == chunk.sha256;
      };
      if (right() || GoneMeanwhile(map, i)) continue;
      // It may have gone and come back.
      if (options_.alone || !right()) wrong.push_back(i);
    }
    for (size_t first = 0, end = 0; first < wrong.size(); first = end) {
      while (end < wrong.size() && wrong[end] - wrong[first] == end - first) ++end;
      const layer::Chunk from = index.chunk(wrong[first]), to = index.chunk(wrong[end - 1]);
      RETURN_IF_ERROR(Found(
          absl::StrCat("data [", from.data_offset, ", ", to.data_offset + to.data_size,
                       ") does not have the SHA-256 of its ", end - first, " chunks; to be fetched again"),
          none));
    }
    for (const uint64_t chunk : wrong) {
      char& byte = (*presence)[kPresenceHeaderBytes + chunk / 8];
      byte = static_cast<char>(static_cast<uint8_t>(byte) & ~(1U << (chunk % 8)));
    }
    *changed = !wrong.empty();
    if (!complete || missing == 0) return absl::OkStatus();
    std::string header(kPresenceHeaderBytes, '\0');
    RETURN_IF_ERROR(
        base::PreadFull(map, 0, absl::MakeSpan(reinterpret_cast<uint8_t*>(header.data()), header.size())));
    if (header != Header(index, true)) return absl::OkStatus();  // lazy since then
    *changed = true;
    return Found(absl::StrCat("marked complete, and ", missing, " chunks are missing; lazy again"), none);
  }

  absl::Status CheckBlob(const base::Digest& digest) {
    const absl::StatusOr<bool> right = HasDigest(Path("blob"), digest);
    if (absl::IsNotFound(right.status())) return absl::OkStatus();  // not kept
    if (right.ok() && *right) return absl::OkStatus();
    return Found(right.ok()
                     ? "blob does not have its digest; to be fetched again"
                     : absl::StrCat("blob cannot be read, to be fetched again: ", right.status().message()),
                 [&] {
                   if (unlink(Path("blob").c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
                   return base::ErrnoStatus(errno, absl::StrCat("remove ", Path("blob")));
                 });
  }

  const std::string directory_;
  const CheckOptions& options_;
  const OnFinding found_;
  CheckTotals* const totals_;
  std::vector<CheckFinding> findings_;
};

}  // namespace

absl::StatusOr<bool> HasDigest(const std::string& path, const base::Digest& digest) {
  ASSIGN_OR_RETURN(const base::UniqueFd file, base::OpenFile(path, O_RDONLY | O_NOFOLLOW));
  posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  base::Hasher hasher(digest.algorithm());
  std::vector<uint8_t> block(kBlockBytes);
  for (;;) {
    const ssize_t got = read(file.get(), block.data(), block.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::ErrnoStatus(errno, absl::StrCat("read ", path));
    if (got == 0) break;
    hasher.Update(absl::MakeConstSpan(block).first(static_cast<size_t>(got)));
  }
  posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  return hasher.Finish() == digest;
}

absl::Status CheckLayers(const std::string& root, const CheckOptions& options, OnFinding found,
                         CheckTotals* totals) {
  if (options.repair && !options.alone) return absl::InvalidArgumentError("only a store at rest is repaired");
  const absl::StatusOr<std::vector<std::string>> names = base::ListDirectory(root + "/layers");
  if (absl::IsNotFound(names.status())) return absl::OkStatus();
  RETURN_IF_ERROR(names.status());
  for (const std::string& name : *names) {
    RETURN_IF_ERROR(LayerCheck(absl::StrCat(root, "/layers/", name), options, found, totals).Run());
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::contentstore

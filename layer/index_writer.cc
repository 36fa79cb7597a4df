#include "layer/internal/index_writer.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "layer/erofs.h"
#include "layer/internal/index_tables.h"

namespace lazyblob::layer::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

template <typename T>
Bytes AsBytes(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof(T)};
}

Bytes AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

template <typename T>
void Append(std::string* out, const T& record) {
  out->append(reinterpret_cast<const char*>(&record), sizeof(T));
}

ChunkRecord ToRecord(const Chunk& chunk) {
  ChunkRecord record{};
  record.data_offset = chunk.data_offset;
  record.blob_offset = chunk.blob_offset;
  record.blob_size = chunk.blob_size;
  record.codec_argument = chunk.codec_argument;
  record.data_size = static_cast<uint32_t>(chunk.data_size);
  record.codec = static_cast<uint8_t>(chunk.codec);
  std::memcpy(record.sha256, chunk.sha256.data(), chunk.sha256.size());
  return record;
}

absl::Status StoreDigest(const base::Digest& digest, char (&field)[kDigestTextBytes]) {
  const std::string text = digest.empty() ? "" : digest.ToString();
  if (text.size() >= sizeof(field)) return absl::InvalidArgumentError("digest is too long for an index");
  std::memcpy(field, text.data(), text.size());
  return absl::OkStatus();
}

// Header and tables, checksum included. Parts follow them in the file: windows first, then inline chunks.
absl::StatusOr<std::string> MakeTables(const IndexContents& contents, const Tree& tree,
                                       const FileIdentity& meta) {
  IndexHeader header{};
  std::memcpy(header.magic, kIndexMagic, sizeof(kIndexMagic));
  header.version = kIndexVersion;
  header.header_size = sizeof(IndexHeader);
  header.format = static_cast<uint8_t>(contents.info.format);
  header.flags = static_cast<uint8_t>((tree.has_whiteouts ? kFlagWhiteouts : 0) |
                                      (contents.info.random_access ? kFlagRandomAccess : 0));
  header.blob_size = contents.info.blob_size;
  header.data_size = contents.info.data_size;
  header.inode_count = tree.inodes.size();
  RETURN_IF_ERROR(StoreDigest(contents.info.blob_digest, header.blob_digest));
  RETURN_IF_ERROR(StoreDigest(contents.info.diff_id, header.diff_id));
  header.meta_size = meta.size;
  std::memcpy(header.meta_sha256, meta.sha256.data(), meta.sha256.size());

  std::string directories;
  for (const std::string& directory : tree.implied_directories)
    absl::StrAppend(&directories, directory, absl::string_view("\0", 1));
  uint64_t end = sizeof(IndexHeader);
  const auto place = [&](TableRef* ref, uint64_t count, uint64_t record_size) {
    *ref = {end, count};
    end += count * record_size;
  };
  place(&header.chunks, contents.chunks.size(), sizeof(ChunkRecord));
  place(&header.checkpoints, contents.checkpoints.size(), sizeof(CheckpointRecord));
  place(&header.inline_chunks, contents.inline_chunks.size(), sizeof(InlineRecord));
  place(&header.scrub, contents.scrub.size(), sizeof(ScrubRecord));
  place(&header.directories, directories.size(), 1);
  header.tables_end = end;

  std::string out;
  out.reserve(end);
  Append(&out, header);
  for (const Chunk& chunk : contents.chunks) {
    if (chunk.data_size > kMaxChunkBytes)
      return absl::InvalidArgumentError("chunk is larger than an index allows");
    Append(&out, ToRecord(chunk));
  }
  for (const GzipCheckpoint& checkpoint : contents.checkpoints) {
    if ((checkpoint.window_size > 0) == checkpoint.window.empty()) {
      return absl::ResourceExhaustedError("a window of the index could not be compressed");
    }
    const bool has_window = checkpoint.window_size > 0;
    Append(&out, CheckpointRecord{checkpoint.bit_offset, checkpoint.data_offset, has_window ? end : 0,
                                  static_cast<uint32_t>(checkpoint.window.size()), checkpoint.window_size});
    end += checkpoint.window.size();
  }
  for (const std::string& part : contents.inline_chunks) {
    Append(&out, InlineRecord{end, part.size()});
    end += part.size();
  }
  for (const ScrubRange& range : contents.scrub) Append(&out, ScrubRecord{range.offset, range.length});
  out += directories;
  header.file_size = end;
  std::memcpy(out.data(), &header, sizeof(header));
  const base::Sha256Bytes sum = base::Sha256(AsBytes(out).subspan(kHashedFrom));
  std::memcpy(out.data() + offsetof(IndexHeader, tables_sha256), sum.data(), sum.size());
  return out;
}

absl::Status WriteIndex(const IndexContents& contents, const std::string& tables,
                        const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kIndexName), temporary = path + ".tmp";
  ASSIGN_OR_RETURN(const base::UniqueFd file, base::OpenFile(temporary, O_WRONLY | O_CREAT | O_TRUNC));
  absl::Cleanup remove = [&] { unlink(temporary.c_str()); };
  RETURN_IF_ERROR(base::WriteFull(file.get(), AsBytes(tables)));
  for (const GzipCheckpoint& checkpoint : contents.checkpoints) {
    RETURN_IF_ERROR(base::WriteFull(file.get(), AsBytes(checkpoint.window)));
  }
  for (const std::string& part : contents.inline_chunks) {
    RETURN_IF_ERROR(base::WriteFull(file.get(), AsBytes(part)));
  }
  RETURN_IF_ERROR(base::FaultPoint("layer.index.before_sync"));
  if (fdatasync(file.get()) != 0) return base::ErrnoStatus(errno, absl::StrCat("sync ", temporary));
  if (rename(temporary.c_str(), path.c_str()) != 0)
    return base::ErrnoStatus(errno, absl::StrCat("rename ", temporary));
  std::move(remove).Cancel();
  return base::SyncDirectory(directory);
}

}  // namespace

absl::StatusOr<FileIdentity> IdentifyFile(const std::string& path) {
  ASSIGN_OR_RETURN(const base::UniqueFd file, base::OpenFile(path, O_RDONLY));
  base::Hasher hasher;
  FileIdentity identity;
  std::vector<uint8_t> buffer(256 << 10);
  for (;;) {
    const ssize_t got = read(file.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::ErrnoStatus(errno, absl::StrCat("read ", path));
    if (got == 0) break;
    hasher.Update(Bytes(buffer.data(), static_cast<size_t>(got)));
    identity.size += static_cast<uint64_t>(got);
  }
  const base::Digest digest = hasher.Finish();
  std::copy(digest.bytes().begin(), digest.bytes().end(), identity.sha256.begin());
  return identity;
}

absl::Status WriteLayerFiles(const IndexContents& contents, const Tree& tree, const std::string& directory) {
  const std::string meta_path = absl::StrCat(directory, "/", kMetaName);
  // An index from before must not outlive the metadata image it names.
  if (const std::string old = absl::StrCat(directory, "/", kIndexName);
      unlink(old.c_str()) != 0 && errno != ENOENT) {
    return base::ErrnoStatus(errno, absl::StrCat("remove ", old));
  }
  ErofsOptions options;
  options.layer = contents.info.blob_digest;
  options.data_size = contents.info.data_size;
  RETURN_IF_ERROR(WriteErofs(tree, options, meta_path));
  ASSIGN_OR_RETURN(const FileIdentity meta, IdentifyFile(meta_path));
  ASSIGN_OR_RETURN(const std::string tables, MakeTables(contents, tree, meta));
  // What Open() would refuse is not written.
  const uint64_t file_size = reinterpret_cast<const IndexHeader*>(tables.data())->file_size;
  if (absl::Status status = IndexTables::ParseTables(AsBytes(tables), file_size, true).status();
      !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("index of ", contents.info.blob_digest.ToString(),
                                                   " breaks its own rules: ", status.message()));
  }
  return WriteIndex(contents, tables, directory);
}

}  // namespace lazyblob::layer::internal

#pragma once

// Tar streams for tests, made byte by byte so that every dialect and every fault of one can be had:
// POSIX ustar and PAX (IEEE Std 1003.1, pax), GNU (tar's "Basic Tar Format"). Values; not thread-safe.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace lazyblob::support {

enum class TarDialect {
  kPax,    // ustar headers; extended records for whatever does not fit
  kUstar,  // name prefix only; what does not fit is cut
  kGnu,    // 'L' and 'K' members for long names, base-256 numbers
};

// How the holes of a sparse file are written.
enum class SparseStyle { kNone, kOldGnu, kPax00, kPax01, kPax10 };

struct TarMember {
  std::string name = {};
  char type = '0';  // '0' file, '1' hard link, '2' symlink, '3' char, '4' block, '5' directory, '6' fifo
  std::string contents = {};
  uint32_t mode = 0644;
  uint64_t uid = 0;
  uint64_t gid = 0;
  int64_t mtime = 1'600'000'000;
  uint32_t mtime_nanoseconds = 0;
  std::string link = {};
  uint32_t device_major = 0;
  uint32_t device_minor = 0;
  std::vector<std::pair<std::string, std::string>> xattrs = {};  // as SCHILY.xattr.* (PAX only)
  TarDialect dialect = TarDialect::kPax;
  std::vector<std::pair<std::string, std::string>> pax_records = {};  // further ones, verbatim
  // Sparse: `contents` is the expanded file; only these runs (offset, length) are stored.
  SparseStyle sparse = SparseStyle::kNone;
  std::vector<std::pair<uint64_t, uint64_t>> runs = {};
  // Lies, for hostile input: the size the header states, a wrong checksum.
  std::optional<uint64_t> claimed_size = {};
  bool bad_checksum = false;
};

TarMember File(std::string name, std::string contents, uint32_t mode = 0644);
TarMember Directory(std::string name, uint32_t mode = 0755);
TarMember Symlink(std::string name, std::string target);
TarMember HardLink(std::string name, std::string target);
TarMember CharDevice(std::string name, uint32_t major, uint32_t minor, uint32_t mode = 0600);
TarMember BlockDevice(std::string name, uint32_t major, uint32_t minor, uint32_t mode = 0600);
TarMember Fifo(std::string name, uint32_t mode = 0644);
// OCI whiteouts: ".wh.<base>" beside, and ".wh..wh..opq" inside, the path.
TarMember Whiteout(absl::string_view path);
TarMember OpaqueMarker(absl::string_view directory);

class TarMaker {
 public:
  TarMaker& Add(const TarMember& member);
  // Bytes as they are, say a damaged header.
  TarMaker& AddRaw(absl::string_view bytes);
  // A PAX global header ('g').
  TarMaker& AddGlobalPax(const std::vector<std::pair<std::string, std::string>>& records);
  // Where the next member's header will be.
  uint64_t offset() const { return bytes_.size(); }
  // The stream with its two zero blocks; padded to 10240 as tar does when `padded`.
  std::string Finish(bool padded = false) const;
  // The stream without an end.
  const std::string& Unfinished() const { return bytes_; }

 private:
  std::string bytes_;
};

std::string MakeTar(const std::vector<TarMember>& members);

// One 512-byte header: exactly the fields of `member`, numbers that do not fit in base-256 when kGnu, else
// cut.
std::string TarHeader(const TarMember& member, uint64_t size);

// Deterministic bytes that do not compress (a fixed generator seeded with `seed`), and bytes that do.
std::string RandomBytes(size_t size, uint64_t seed);
std::string TextBytes(size_t size, uint64_t seed = 0);

}  // namespace lazyblob::support

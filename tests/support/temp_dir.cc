#include "tests/support/temp_dir.h"

#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace lazyblob::support {
namespace {

constexpr unsigned long kXfsMagic = 0x58465342;  // not in linux/magic.h of older kernels

bool IsDiskFileSystem(const std::string& directory) {
  struct statfs info{};
  if (statfs(directory.c_str(), &info) != 0) return false;
  const auto type = static_cast<unsigned long>(info.f_type);
  return type == EXT4_SUPER_MAGIC || type == kXfsMagic || type == BTRFS_SUPER_MAGIC;
}

std::vector<std::string> Candidates() {
  std::vector<std::string> candidates;
  if (const char* chosen = std::getenv("LAZYBLOB_TEST_TMPDIR"); chosen != nullptr && *chosen != '\0') {
    return {chosen};
  }
  candidates.push_back("/var/tmp");
  char current[4096];
  if (getcwd(current, sizeof current) != nullptr) candidates.push_back(current);
  candidates.push_back("/tmp");
  return candidates;
}

std::string MakeBelow(const std::string& parent) {
  std::string pattern = absl::StrCat(parent, "/lazyblob-test-XXXXXX");
  return mkdtemp(pattern.data()) != nullptr ? pattern : std::string();
}

}  // namespace

TempDir::TempDir() {
  const std::vector<std::string> candidates = Candidates();
  for (const bool want_disk : {true, false}) {
    for (const std::string& parent : candidates) {
      if (IsDiskFileSystem(parent) != want_disk) continue;
      path_ = MakeBelow(parent);
      on_disk_ = want_disk;
      if (!path_.empty()) return;
    }
  }
  std::fprintf(stderr, "no directory for the files of tests: %s\n", std::strerror(errno));
  std::abort();
}

TempDir::~TempDir() {
  if (absl::Status status = base::RemoveTree(path_); !status.ok()) {
    std::fprintf(stderr, "cannot remove %s: %s\n", path_.c_str(), status.ToString().c_str());
  }
}

std::string TempDir::File(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

}  // namespace lazyblob::support

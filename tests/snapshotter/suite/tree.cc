#include "tests/snapshotter/suite/tree.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::snapshotter::suite {
namespace {

void Must(bool ok, const std::string& what) {
  if (ok) return;
  fprintf(stderr, "%s\n", base::ErrnoStatus(errno, what).ToString().c_str());
  abort();
}

std::string At(const std::string& root, const std::string& path) { return absl::StrCat(root, "/", path); }

void Describe(const std::string& root, const std::string& path,
              std::map<std::pair<dev_t, ino_t>, std::string>* seen, std::string* out) {
  const std::string full = path.empty() ? root : At(root, path);
  struct stat status{};
  Must(lstat(full.c_str(), &status) == 0, "lstat " + full);
  absl::StrAppendFormat(out, "/%s %06o %d:%d", path, status.st_mode, status.st_uid, status.st_gid);
  if (S_ISREG(status.st_mode)) {
    auto contents = base::ReadFile(full, 1 << 26);
    Must(contents.ok(), "read " + full);
    absl::StrAppend(out, " ", contents->size(), " ", base::Digest::Of(*contents).ToString());
    auto [first, fresh] = seen->try_emplace({status.st_dev, status.st_ino}, path);
    if (!fresh) absl::StrAppend(out, " = /", first->second);
  } else if (S_ISLNK(status.st_mode)) {
    char target[4096];
    ssize_t length = readlink(full.c_str(), target, sizeof target);
    Must(length >= 0, "readlink " + full);
    absl::StrAppend(out, " -> ", absl::string_view(target, static_cast<size_t>(length)));
  } else if (S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode)) {
    absl::StrAppend(out, " ", status.st_rdev);
  }
  absl::StrAppend(out, "\n");
  if (!S_ISDIR(status.st_mode)) return;
  auto names = base::ListDirectory(full);
  Must(names.ok(), "list " + full);
  for (const std::string& name : *names) {
    Describe(root, path.empty() ? name : absl::StrCat(path, "/", name), seen, out);
  }
}

}  // namespace

Change File(std::string path, std::string contents, unsigned mode) {
  return [=](const std::string& root) {
    const std::string full = At(root, path);
    base::UniqueFd fd(open(full.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    Must(fd.valid(), "open " + full);
    Must(write(fd.get(), contents.data(), contents.size()) == static_cast<ssize_t>(contents.size()), "write");
    Must(fchmod(fd.get(), mode) == 0, "chmod " + full);
  };
}

Change Directory(std::string path, unsigned mode) {
  return [=](const std::string& root) {
    Must(mkdir(At(root, path).c_str(), mode) == 0, "mkdir " + path);
    Must(chmod(At(root, path).c_str(), mode) == 0, "chmod " + path);
  };
}

Change RemoveAll(std::string path) {
  return [=](const std::string& root) {
    absl::Status status = base::RemoveTree(At(root, path));
    Must(status.ok(), "remove " + path);
  };
}

Change Chown(std::string path, unsigned uid, unsigned gid) {
  return
      [=](const std::string& root) { Must(lchown(At(root, path).c_str(), uid, gid) == 0, "chown " + path); };
}

Change Link(std::string from, std::string to) {
  return [=](const std::string& root) {
    Must(link(At(root, from).c_str(), At(root, to).c_str()) == 0, "link " + to);
  };
}

Change Rename(std::string from, std::string to) {
  return [=](const std::string& root) {
    Must(rename(At(root, from).c_str(), At(root, to).c_str()) == 0, "rename " + from);
  };
}

Change SameTime(std::string path) {
  return [=](const std::string& root) {
    const timespec times[2] = {{1'700'000'000, 0}, {1'700'000'000, 0}};
    Must(utimensat(AT_FDCWD, At(root, path).c_str(), times, 0) == 0, "utimensat " + path);
  };
}

Change All(std::vector<Change> changes) {
  return [=](const std::string& root) {
    for (const Change& change : changes) change(root);
  };
}

std::string TreeOf(const std::string& root) {
  std::map<std::pair<dev_t, ino_t>, std::string> seen;
  std::string out;
  Describe(root, "", &seen, &out);
  return out;
}

}  // namespace lazyblob::snapshotter::suite

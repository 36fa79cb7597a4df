#include "tests/layer/tree_text.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace lazyblob::layer {
namespace {

struct Facts {
  uint32_t mode, uid, gid, nlink, major, minor, nanoseconds;
  int64_t seconds;
  uint64_t size;
  std::string link;
  std::vector<std::pair<std::string, std::string>> xattrs;
};

std::string Line(const Facts& facts) {
  std::string line = absl::StrCat("mode=", absl::Hex(facts.mode), " uid=", facts.uid, " gid=", facts.gid,
                                  " nlink=", facts.nlink, " mtime=", facts.seconds, ".", facts.nanoseconds);
  if (S_ISCHR(facts.mode) || S_ISBLK(facts.mode))
    absl::StrAppend(&line, " dev=", facts.major, ":", facts.minor);
  if (!S_ISDIR(facts.mode)) absl::StrAppend(&line, " size=", facts.size);
  if (S_ISLNK(facts.mode)) absl::StrAppend(&line, " -> ", absl::CHexEscape(facts.link));
  for (const auto& [name, value] : facts.xattrs) {
    absl::StrAppend(&line, " ", name, "=", absl::CHexEscape(value));
  }
  return line;
}

}  // namespace

TreeText DescribeTree(const Tree& tree, const TreeTextOptions& options) {
  TreeText text;
  std::map<uint32_t, std::string> first_path;
  std::vector<std::pair<std::string, uint32_t>> stack = {{"", 0}};
  while (!stack.empty()) {
    auto [path, number] = stack.back();
    stack.pop_back();
    const Inode& inode = tree.inodes[number];
    Facts facts{inode.mode,
                inode.uid,
                inode.gid,
                inode.nlink,
                inode.device_major,
                inode.device_minor,
                inode.mtime_nanoseconds,
                inode.mtime_seconds,
                inode.size,
                inode.symlink,
                inode.xattrs};
    if (inode.opaque) facts.xattrs.emplace_back(options.opaque_xattr, "y");
    std::sort(facts.xattrs.begin(), facts.xattrs.end());
    std::string line = Line(facts);
    if (options.extents) {
      for (const Extent& extent : inode.extents) {
        absl::StrAppend(&line, " [", extent.file_offset, "+", extent.length, "@", extent.data_offset, "]");
      }
    }
    text[path] = line;
    if (!S_ISDIR(inode.mode) && inode.nlink > 1) {
      std::string& first = first_path[number];
      if (first.empty() || path < first) first = path;
    }
    for (const auto& [name, child] : inode.children) {
      stack.emplace_back(path.empty() ? name : path + "/" + name, child);
    }
  }
  stack = {{"", 0}};
  while (!stack.empty()) {
    auto [path, number] = stack.back();
    stack.pop_back();
    if (auto found = first_path.find(number); found != first_path.end())
      text[path] += " same as " + found->second;
    for (const auto& [name, child] : tree.inodes[number].children) {
      stack.emplace_back(path.empty() ? name : path + "/" + name, child);
    }
  }
  return text;
}

TreeText DescribeDirectory(const std::string& directory) {
  TreeText text;
  std::map<std::pair<dev_t, ino_t>, std::string> first_path;
  std::map<std::string, std::pair<dev_t, ino_t>> linked;
  std::vector<std::string> stack = {""};
  while (!stack.empty()) {
    const std::string path = stack.back();
    stack.pop_back();
    const std::string full = path.empty() ? directory : directory + "/" + path;
    struct stat st{};
    if (::lstat(full.c_str(), &st) != 0) {
      text[path] = absl::StrCat("lstat: ", std::strerror(errno));
      continue;
    }
    Facts facts{st.st_mode,
                st.st_uid,
                st.st_gid,
                static_cast<uint32_t>(st.st_nlink),
                major(st.st_rdev),
                minor(st.st_rdev),
                static_cast<uint32_t>(st.st_mtim.tv_nsec),
                st.st_mtim.tv_sec,
                static_cast<uint64_t>(st.st_size),
                "",
                {}};
    if (S_ISLNK(st.st_mode)) {
      std::string target(8192, '\0');
      const ssize_t size = ::readlink(full.c_str(), target.data(), target.size());
      facts.link = size < 0 ? absl::StrCat("readlink: ", std::strerror(errno))
                            : target.substr(0, static_cast<size_t>(size));
    }
    std::string names(128 << 10, '\0');
    const ssize_t size = ::llistxattr(full.c_str(), names.data(), names.size());
    if (size < 0) facts.xattrs.emplace_back("llistxattr", std::strerror(errno));
    for (ssize_t at = 0; at < size;) {
      const std::string name = names.c_str() + at;
      at += static_cast<ssize_t>(name.size()) + 1;
      std::string value(64 << 10, '\0');
      const ssize_t bytes = ::lgetxattr(full.c_str(), name.c_str(), value.data(), value.size());
      value = bytes < 0 ? absl::StrCat("lgetxattr: ", std::strerror(errno))
                        : value.substr(0, static_cast<size_t>(bytes));
      facts.xattrs.emplace_back(name, value);
    }
    std::sort(facts.xattrs.begin(), facts.xattrs.end());
    text[path] = Line(facts);
    if (!S_ISDIR(st.st_mode)) {
      if (st.st_nlink > 1) {
        linked[path] = {st.st_dev, st.st_ino};
        std::string& first = first_path[{st.st_dev, st.st_ino}];
        if (first.empty() || path < first) first = path;
      }
      continue;
    }
    DIR* dir = ::opendir(full.c_str());
    if (dir == nullptr) {
      text[path] += absl::StrCat(" opendir: ", std::strerror(errno));
      continue;
    }
    errno = 0;
    while (const dirent* entry = ::readdir(dir)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") stack.push_back(path.empty() ? name : path + "/" + name);
    }
    if (errno != 0) text[path] += absl::StrCat(" readdir: ", std::strerror(errno));
    ::closedir(dir);
  }
  for (const auto& [path, inode] : linked) text[path] += " same as " + first_path[inode];
  return text;
}

std::string Difference(const TreeText& expected, const TreeText& actual) {
  std::string out;
  int shown = 0;
  auto show = [&](const std::string& path, absl::string_view what, const std::string& line) {
    if (++shown <= 20)
      absl::StrAppend(&out, what, " \"", absl::CHexEscape(path), "\": ", line.substr(0, 600), "\n");
  };
  for (const auto& [path, line] : expected) {
    auto found = actual.find(path);
    if (found == actual.end()) {
      show(path, "missing ", line);
    } else if (found->second != line) {
      show(path, "expected", line);
      show(path, "actual  ", found->second);
    }
  }
  for (const auto& [path, line] : actual) {
    if (expected.find(path) == expected.end()) show(path, "surplus ", line);
  }
  return out;
}

}  // namespace lazyblob::layer

// What programs do to a root file system, timed: bench_tree walk|readall|open4k ROOT [LIST]
// LIST: paths below ROOT, each ended by a NUL (readall and open4k read these; nothing is looked for while the
// clock runs). Prints nanoseconds, count and bytes. Ends with status 1 on any error: a time for half the work
// is no time.

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

struct Work {
  uint64_t count = 0;
  uint64_t bytes = 0;
};

[[noreturn]] void Fail(const std::string& what) {
  fprintf(stderr, "bench_tree: %s: %s\n", what.c_str(), strerror(errno));
  exit(1);
}

// Lists every directory and stats every entry, as find(1) does.
Work Walk(const std::string& root) {
  Work work;
  std::vector<std::string> todo = {root};
  while (!todo.empty()) {
    std::string path = std::move(todo.back());
    todo.pop_back();
    DIR* directory = opendir(path.c_str());
    if (directory == nullptr) Fail(path);
    while (dirent* entry = readdir(directory)) {
      if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
      struct stat st;
      if (fstatat(dirfd(directory), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        Fail(path + "/" + entry->d_name);
      ++work.count;
      if (S_ISDIR(st.st_mode)) todo.push_back(path + "/" + entry->d_name);
    }
    closedir(directory);
  }
  return work;
}

// Reads at most `limit` bytes of each file, by pieces of 128 KiB.
Work Read(int root, const std::vector<std::string>& files, uint64_t limit) {
  Work work;
  std::vector<char> buffer(128 << 10);
  for (const std::string& file : files) {
    int fd = openat(root, file.c_str(), O_RDONLY | O_NOFOLLOW);
    if (fd < 0) Fail(file);
    for (uint64_t done = 0; done < limit;) {
      size_t want = limit - done < buffer.size() ? limit - done : buffer.size();
      ssize_t n = read(fd, buffer.data(), want);
      if (n < 0) Fail(file);
      if (n == 0) break;
      done += static_cast<uint64_t>(n);
      work.bytes += static_cast<uint64_t>(n);
    }
    close(fd);
    ++work.count;
  }
  return work;
}

std::vector<std::string> ReadList(const char* path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) Fail(path);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::string> list;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\0', at);
    if (end == std::string::npos) end = text.size();
    list.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return list;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const bool walk = what == "walk" && argc == 3;
  if (!walk && !((what == "readall" || what == "open4k") && argc == 4)) {
    fprintf(stderr, "usage: bench_tree walk ROOT | readall ROOT LIST | open4k ROOT LIST\n");
    return 2;
  }
  std::vector<std::string> files;
  if (!walk) files = ReadList(argv[3]);
  int root = open(argv[2], O_RDONLY | O_DIRECTORY);
  if (root < 0) Fail(argv[2]);
  auto start = std::chrono::steady_clock::now();
  Work work = walk ? Walk(argv[2]) : Read(root, files, what == "open4k" ? 4096 : UINT64_MAX);
  auto elapsed = std::chrono::steady_clock::now() - start;
  close(root);
  printf("%lld %llu %llu\n",
         static_cast<long long>(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count()),
         static_cast<unsigned long long>(work.count), static_cast<unsigned long long>(work.bytes));
  return 0;
}

// As many readers as there are lines on stdin ("FILE EXPECTED", no spaces in names), each a thread that opens
// its file and reads it once, all at the same moment. A line per reader on stdout: "right|wrong|ERRNO
// MILLISECONDS FILE", the time until the first 4096 bytes were there. Status 1 when bytes were wrong.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <latch>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kFirst = 4096;

struct Reader {
  std::string file;
  std::string expected;
  std::string outcome;
  double milliseconds = 0;
};

// 0, or why it could not be read whole.
int ReadFile(const std::string& path, std::string* bytes, std::chrono::steady_clock::time_point* first_read) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  char buffer[64 << 10];
  ssize_t n = 0;
  int error = 0;
  while ((n = read(fd, buffer, bytes->empty() ? kFirst : sizeof buffer)) > 0) {
    if (bytes->empty() && first_read != nullptr) *first_read = std::chrono::steady_clock::now();
    bytes->append(buffer, static_cast<size_t>(n));
  }
  if (n < 0) error = errno;
  close(fd);
  return error;
}

void Read(Reader* reader, std::latch* start) {
  start->arrive_and_wait();
  const auto begin = std::chrono::steady_clock::now();
  auto end = begin;
  std::string bytes;
  const int error = ReadFile(reader->file, &bytes, &end);
  if (bytes.empty()) end = std::chrono::steady_clock::now();
  reader->milliseconds = std::chrono::duration<double, std::milli>(end - begin).count();
  std::string expected;
  if (error != 0) {
    reader->outcome = error == EIO ? "EIO" : "errno" + std::to_string(error);
  } else if (ReadFile(reader->expected, &expected, nullptr) != 0 || bytes.empty() || bytes != expected) {
    reader->outcome = "wrong";
  } else {
    reader->outcome = "right";
  }
}

}  // namespace

int main() {
  std::vector<Reader> readers;
  std::string line;
  while (std::getline(std::cin, line)) {
    Reader reader;
    std::istringstream(line) >> reader.file >> reader.expected;
    readers.push_back(std::move(reader));
  }
  std::latch start(static_cast<std::ptrdiff_t>(readers.size()));
  std::vector<std::thread> threads;
  threads.reserve(readers.size());
  for (Reader& reader : readers) threads.emplace_back(Read, &reader, &start);
  for (std::thread& thread : threads) thread.join();
  bool wrong = false;
  for (const Reader& reader : readers) {
    wrong = wrong || reader.outcome == "wrong";
    std::printf("%s %.1f %s\n", reader.outcome.c_str(), reader.milliseconds, reader.file.c_str());
  }
  return wrong ? 1 : 0;
}

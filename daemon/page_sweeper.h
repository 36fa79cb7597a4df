#pragma once

// Keeps the bytes of complete layers in the page cache once instead of twice. The kernel reads a cache file
// that is mounted directly into EROFS's pages through the file's own, and nobody but us would ever let those
// go.

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "base/cancel.h"

namespace lazyblob::daemon {

// Every `interval`, on a thread of its own, asks `files` for the cache files that are mounted now and drops
// their clean pages. Dropping what is not cached costs next to nothing.
class PageSweeper {
 public:
  PageSweeper(absl::Duration interval, std::function<std::vector<std::string>()> files);
  ~PageSweeper();
  PageSweeper(const PageSweeper&) = delete;
  PageSweeper& operator=(const PageSweeper&) = delete;

 private:
  void Run();

  const absl::Duration interval_;
  const std::function<std::vector<std::string>()> files_;
  base::CancelToken stop_;
  std::thread thread_;
};

}  // namespace lazyblob::daemon

#include "daemon/page_sweeper.h"

#include <fcntl.h>

#include <utility>

#include "base/cond_var.h"
#include "base/file.h"

namespace lazyblob::daemon {

PageSweeper::PageSweeper(absl::Duration interval, std::function<std::vector<std::string>()> files)
    : interval_(interval), files_(std::move(files)), thread_([this] { Run(); }) {}

PageSweeper::~PageSweeper() {
  stop_.Cancel();
  thread_.join();
}

void PageSweeper::Run() {
  while (!base::SleepUnlessCancelled(interval_, &stop_)) {
    for (const std::string& path : files_()) {
      auto file = base::OpenFile(path, O_RDONLY | O_NOFOLLOW);
      if (file.ok()) posix_fadvise(file->get(), 0, 0, POSIX_FADV_DONTNEED);
    }
  }
}

}  // namespace lazyblob::daemon

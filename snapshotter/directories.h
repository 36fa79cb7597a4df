#pragma once

// The directories of snapshots: <root>/s/<id>/fs, and <id>/work for active ones. One is made as new-<random>
// and renamed when its snapshot is being committed to the database, so a crash leaves garbage at worst, which
// TakeGarbage finds. Thread-safe.

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace lazyblob::snapshotter {

struct Owner {
  uid_t uid = 0;
  gid_t gid = 0;
};

// Owner of a directory that may be a mount of ours: answered from the kernel's memory, never by our own FUSE
// server.
absl::StatusOr<Owner> OwnerOf(const std::string& directory);

class Directories {
 public:
  // `root` exists. Makes s, 0700; FailedPrecondition when it is there and belongs to somebody else.
  static absl::StatusOr<std::unique_ptr<Directories>> Open(const std::string& root);

  // Makes a directory with fs, exactly 0755 whatever the umask, and work, 0711, if wanted. Returns its name,
  // which no garbage collection touches before Finish.
  absl::StatusOr<std::string> Make(bool work, Owner owner) ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives it to the snapshot `id`, durably. What lies there already is nobody's and moved out of the way.
  // Called in the transaction that makes `id`, and undone by Abandon when that is undone.
  absl::Status Adopt(const std::string& name, int64_t id);
  void Abandon(const std::string& name, int64_t id);
  // Ends every Make: removes what it made unless it was adopted.
  void Finish(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);

  // Deletes the directory of a snapshot that is gone. OK when there is none.
  absl::Status Remove(int64_t id);
  // Makes everything that belongs to none of `ids` recognisable as garbage. No snapshot is made meanwhile
  // (the caller is in a transaction).
  absl::Status MarkGarbage(const std::set<int64_t>& ids) ABSL_LOCKS_EXCLUDED(mutex_);
  // Deletes what is recognisable as garbage.
  absl::Status RemoveGarbage() ABSL_LOCKS_EXCLUDED(mutex_);

  bool Exists(int64_t id) const;
  std::string Fs(int64_t id) const;
  std::string Work(int64_t id) const;

 private:
  explicit Directories(std::string top) : top_(std::move(top)) {}
  std::string Path(const std::string& name) const { return top_ + "/" + name; }
  std::string NewName();

  const std::string top_;  // <root>/s
  absl::Mutex mutex_;
  std::set<std::string> in_use_ ABSL_GUARDED_BY(mutex_);  // new-… of calls that have not ended
};

}  // namespace lazyblob::snapshotter

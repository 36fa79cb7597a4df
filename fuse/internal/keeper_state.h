#pragma once

// What a keeper must know to go on where another one ended: its successor in the same process (a new
// program), or a new process that the service manager started with the descriptors it kept. Byte by byte in
// docs/KEEPER_PROTOCOL.md.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/file.h"
#include "fuse/server.h"

namespace lazyblob::fuse::internal {

struct KeeperState {
  struct Process {
    pid_t pid = -1;
    uint64_t start = 0;  // clock ticks since boot: tells a number that was used again
  };
  struct Mount {
    uint64_t sequence = 0;
    std::string target;
    uint64_t mount_id = 0;
    bool tree = false;
  };
  struct Socket {
    std::string name;
    std::string place;
    std::string held;
  };

  // Names of descriptors; "": none.
  std::string device;
  std::string mount;
  std::string good_program;
  std::vector<Socket> sockets;
  uint64_t next_name = 1;

  uint32_t connection = 0;  // its number under fusectl
  bool connection_used = false;
  bool init_ever_saved = false;
  InitExchange init;

  uint64_t session = 0;
  Process daemon;
  std::vector<Process> predecessors;
  std::string program;
  std::vector<std::string> arguments;  // of every daemon, as the keeper was given them
  std::string oom_score_adj;
  bool ready = false;
  bool taken = false;
  bool fall_back = false;
  bool hand_over = false;  // the first thing to do

  uint64_t next_sequence = 1;
  std::vector<Mount> mounts;
  std::vector<std::string> pending;  // targets of mounts that were under way
};

std::string EncodeState(const KeeperState& state);
// InvalidArgument for bytes that are no state; FailedPrecondition for one of a newer keeper that this one
// would not understand.
absl::StatusOr<KeeperState> DecodeState(absl::string_view bytes);

// A file in memory with the last state that was written whole: a write that is cut short by SIGKILL leaves
// the one of before. Not thread-safe.
class StateFile {
 public:
  StateFile() = default;
  static absl::StatusOr<StateFile> Create();
  // One that another process has created.
  explicit StateFile(base::UniqueFd file) : file_(std::move(file)) {}

  absl::Status Write(absl::string_view state);
  // DataLoss when none was ever written whole.
  absl::StatusOr<std::string> Read();
  int fd() const { return file_.get(); }

 private:
  base::UniqueFd file_;
  uint64_t sequence_ = 0;  // of the last one
};

}  // namespace lazyblob::fuse::internal

#pragma once

// lazyblobd's side of the keeper: a SOCK_SEQPACKET socket it inherits. docs/KEEPER_PROTOCOL.md fixes the
// messages. Thread-safe; calls are matched to answers by number, several may be outstanding.

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file.h"
#include "fuse/mounter.h"
#include "fuse/server.h"

namespace lazyblob::fuse {

// The process that has made the inherited socket, even if it is dead. While it lives it is the parent.
pid_t KeeperProcess(int socket);

class KeeperClient final : public Mounter {
 public:
  // `socket` is the inherited descriptor.
  static absl::StatusOr<std::unique_ptr<KeeperClient>> Connect(base::UniqueFd socket);
  ~KeeperClient() override;

  // A duplicate of the connection's /dev/fuse descriptor and, when this is not the first daemon on it, the
  // exchange.
  struct Connection {
    uint64_t generation = 0;  // number of daemons the keeper has started, this one included
    base::UniqueFd device;
    bool taken_over = false;
    InitExchange init;
  };
  absl::StatusOr<Connection> TakeConnection();
  absl::Status SaveInit(const InitExchange& init);
  // The keeper calls back when the predecessor has been reaped: time for FuseServer::Resend. At once if that
  // was before this call. Callbacks run on the thread that takes the keeper's answers: no call of this class
  // from there.
  void OnPredecessorReaped(std::function<void()> callback);
  // The keeper is gone, and with it every mount's future: time to end. At most once; not by the destructor.
  void OnKeeperGone(std::function<void()> callback);
  // The daemon ends for good: the keeper unmounts everything it mounted (lazily where busy) while this daemon
  // still answers reads, then answers; it ends too once this process has. Later requests are Unavailable.
  absl::Status Shutdown();
  // Paths of what the keeper holds mounted now, in order of mounting.
  absl::StatusOr<std::vector<std::string>> Mounted();

  // Listening unix sockets that outlive this process; who connects while no daemon runs waits. One per
  // `name`; `place` says which socket it is (both 1 to 255 bytes, opaque to the keeper). The keeper keeps a
  // duplicate. Unimplemented by keepers of before.
  absl::Status KeepSocket(const std::string& name, const std::string& place, int socket);
  // NotFound when none is kept under the name, or one of another place.
  absl::StatusOr<base::UniqueFd> TakeSocket(const std::string& name, const std::string& place);
  // This daemon serves. If its successor ends before it says so, this one's program is started again.
  absl::Status Ready();
  // From now on `program` (absolute; empty: the same as before) is the daemon's program; then the keeper
  // sends SIGHUP to this process.
  absl::Status Replace(const std::string& program);

  absl::Status MountLayer(const LayerMountRequest& request) override;
  absl::Status MountOverlay(const OverlayRequest& request) override;
  absl::Status MountIdMapped(const IdMappedRequest& request) override;
  absl::Status Unmount(const std::string& target, bool lazy) override;
  absl::StatusOr<ProbeResult> Probe(const std::string& state_root) override;

 private:
  class Impl;
  explicit KeeperClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::fuse

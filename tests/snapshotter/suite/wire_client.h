#pragma once

// A client of containerd.services.snapshots.v1, as containerd's own proxy is one: the contract's types on
// this side of the wire. Thread-safe.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/snapshots.grpc.pb.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::snapshotter::suite {

class WireClient {
 public:
  using Api = ::containerd::services::snapshots::v1::Snapshots;

  // `address`: path of the socket, at most 107 bytes.
  explicit WireClient(const std::string& address);

  absl::StatusOr<std::vector<MountSpec>> Prepare(const std::string& key, const std::string& parent,
                                                 const Labels& labels = {});
  absl::StatusOr<std::vector<MountSpec>> View(const std::string& key, const std::string& parent,
                                              const Labels& labels = {});
  absl::StatusOr<std::vector<MountSpec>> Mounts(const std::string& key);
  absl::Status Commit(const std::string& name, const std::string& key, const Labels& labels = {},
                      const std::string& parent = "");
  absl::Status Remove(const std::string& key);
  absl::StatusOr<Info> Stat(const std::string& key);
  absl::StatusOr<Info> Update(const Info& info, const std::vector<std::string>& paths = {});
  // `messages`, if given: how many Infos each message of the stream had.
  absl::StatusOr<std::vector<Info>> List(const std::vector<std::string>& filters = {},
                                         std::vector<int>* messages = nullptr);
  absl::StatusOr<Usage> GetUsage(const std::string& key);
  absl::Status Cleanup();

  Api::Stub& stub() { return *stub_; }

 private:
  std::unique_ptr<Api::Stub> stub_;
};

absl::Status FromGrpc(const grpc::Status& status);
Info FromProto(const ::containerd::services::snapshots::v1::Info& info);

}  // namespace lazyblob::snapshotter::suite

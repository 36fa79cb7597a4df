#pragma once

// The services of containerd that its clients use in a pull, in this process and in memory, on a unix socket.
// It proves nothing about containerd (tests/e2e has the real one); it answers what the real one answers
// seldom.
//
//   FakeContainerd containerd(directory.File("c.sock"));
//   containerd.lazy = true;
//   … pull …
//   EXPECT_EQ(containerd.images().at(name), digest);
//
// Thread-safe, except that tests set the knobs while nobody calls.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"

namespace lazyblob::support {

class FakeContainerd {
 public:
  using Labels = std::map<std::string, std::string>;

  struct Blob {
    std::string bytes;
    Labels labels;
    std::string lease;  // under which it was written last
  };
  struct Snapshot {
    std::string parent;
    bool committed = false;
    Labels labels;  // as given to Prepare
  };
  struct Plugin {
    std::string type;
    std::string id;
    Labels exports;
    std::vector<std::string> capabilities;
    std::string init_error;
  };

  // Listens on return.
  explicit FakeContainerd(const std::string& socket);
  ~FakeContainerd();
  FakeContainerd(const FakeContainerd&) = delete;
  FakeContainerd& operator=(const FakeContainerd&) = delete;

  // Whether a Prepare with a containerd.io/snapshot.ref commits that name lazily; by layer digest, if set.
  std::function<bool(const std::string& layer)> lazy = [](const std::string&) { return true; };
  // What Apply says a blob unpacks to; empty: an error.
  std::function<std::string(const std::string& blob)> unpacks_to = [](const std::string&) {
    return std::string();
  };
  // Prepares answer AlreadyExists so many times without the snapshot being there.
  int vanishing = 0;
  // Digest to bytes: what the store behind has. Writers find it written.
  std::map<std::string, std::string> shared;
  // Writes are refused (another writer holds the reference) so many times.
  int locked = 0;
  // Waited for by every Prepare, if set.
  std::shared_ptr<absl::Notification> prepare_gate;
  std::string version = "1.7.24";
  std::vector<Plugin> plugins;

  std::map<std::string, Blob> blobs() const;
  std::map<std::string, std::string> images() const;  // name -> target's digest
  std::map<std::string, Snapshot> snapshots() const;
  std::map<std::string, std::string> leases() const;  // id -> gc.expire
  std::vector<std::string> log() const;               // "Create lease", "Write sha256:…", … in order
  std::vector<std::string> namespaces() const;        // of all calls, each once

  void PutBlob(const std::string& digest, const std::string& bytes, const Labels& labels);
  // What an interrupted writer left under `ref`.
  void PutIngest(const std::string& ref, const std::string& bytes);
  void PutImage(const std::string& name, const std::string& target);
  void DeleteLeases();
  // Waits until a line of the log begins so; false after 10 s.
  bool AwaitLog(const std::string& prefix) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::support

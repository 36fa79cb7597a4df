#pragma once

// A real keeper with a fake daemon, in a temporary state directory on a disk file system.

#include <sys/types.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "fuse/internal/builtin_image.h"
#include "gtest/gtest.h"

namespace lazyblob::fuse {

// One daemon generation, as the test sees it. Calls block until it answers; "" when it died instead.
class FakeDaemon {
 public:
  explicit FakeDaemon(base::UniqueFd control) : control_(std::move(control)) {}
  std::string Do(const std::string& command);
  // Sends without waiting for the answer, which is dropped when it comes.
  void Begin(const std::string& command);
  pid_t pid();
  void Kill();  // SIGKILL

 private:
  base::UniqueFd control_;
  int next_ = 1;
  pid_t pid_ = -1;
};

class FakeServiceManager;

class KeeperHarness {
 public:
  KeeperHarness();
  ~KeeperHarness();
  KeeperHarness(const KeeperHarness&) = delete;

  void Start(const std::vector<std::string>& keeper_words = {},
             const std::vector<std::string>& daemon_words = {});
  // The next Start is by this manager, and with other programs; again after a keeper's death.
  void SetManager(FakeServiceManager* manager) { manager_ = manager; }
  void SetPrograms(const std::string& keeper, const std::string& daemon) {
    keeper_program_ = keeper;
    daemon_program_ = daemon;
  }
  // The next daemon that the keeper starts; nullptr when the keeper ends instead.
  std::unique_ptr<FakeDaemon> AcceptDaemon();
  pid_t keeper() const { return keeper_; }
  // Waits for the keeper's end. Its exit code, or -signal.
  int Wait();
  std::string stderr_text() const;
  // Until the keeper or its daemons have said so; false after kPatience.
  bool AwaitStderr(const std::string& text) const;

  const std::string& root() const { return root_; }
  const internal::BuiltinImage& image() const { return image_; }
  std::string MakeTarget(const std::string& name);
  // "serve" with the image's data file, padded to its full size.
  std::string ServeCommand() const { return "serve " + blob_path_; }
  std::string MountCommand(const std::string& mode, const std::string& target) const {
    return "mount " + mode + " " + image_.meta_path + " - " + target;
  }
  const std::string& blob_path() const { return blob_path_; }

 private:
  std::string root_;
  std::string blob_path_;
  std::string control_name_;
  internal::BuiltinImage image_;
  base::UniqueFd listener_;
  base::UniqueFd keeper_exit_;  // pidfd
  pid_t keeper_ = -1;
  FakeServiceManager* manager_ = nullptr;
  std::string keeper_program_ = LAZYBLOB_KEEPER;
  std::string daemon_program_ = LAZYBLOB_FAKE_DAEMON;
};

// Tests on the real kernel, as root.
class KeeperTest : public ::testing::Test {
 protected:
  void SetUp() override;
  // The next daemon; nullptr, and the test has failed, when the keeper ends instead.
  std::unique_ptr<FakeDaemon> Next();
  // A keeper with a first daemon that serves.
  std::unique_ptr<FakeDaemon> StartServing(const std::vector<std::string>& keeper_words = {});

  std::unique_ptr<KeeperHarness> harness_;
};

// Of a file, or why it cannot be read.
std::string Contents(const std::string& path);
// To a listening socket: 0, or an errno; and the connection, which lasts as long as that.
std::pair<int, base::UniqueFd> ConnectTo(const std::string& path);
// Lines of /proc/self/mountinfo that contain `text`.
std::vector<std::string> MountLines(const std::string& text);
// Reads the file in a child with uid and gid 65534, below a directory that is open already. Contents, or
// "errno N".
std::string ReadAsNobody(const std::string& directory, const std::string& name);

}  // namespace lazyblob::fuse

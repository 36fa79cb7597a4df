// Where containerd reaches the daemon, when the configuration changes.

#include "daemon/socket_address.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <string>

#include "base/file.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

base::UniqueFd Listen(const std::string& path) {
  base::UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  EXPECT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0) << path;
  EXPECT_EQ(listen(listener.get(), 1), 0);
  return listener;
}

bool Exists(const std::string& path) {
  struct stat status;
  return lstat(path.c_str(), &status) == 0;
}

TEST(NoteAddress, TheSocketOfBeforeGoesWhenNobodyListens) {
  support::TempDir root;
  const std::string one = root.path() + "/one";
  const std::string two = root.path() + "/two";
  NoteAddress(root.path(), one);
  base::UniqueFd listener = Listen(one);
  NoteAddress(root.path(), one);  // a restart
  EXPECT_TRUE(Exists(one));
  shutdown(listener.get(), SHUT_RDWR);  // as the keeper does when another takes its name
  Listen(two).Reset();
  NoteAddress(root.path(), two);
  EXPECT_FALSE(Exists(one));
  EXPECT_TRUE(Exists(two));
}

TEST(NoteAddress, WhatSomebodyElseHasThereStays) {
  support::TempDir root;
  const std::string one = root.path() + "/one";
  NoteAddress(root.path(), one);
  base::UniqueFd listener = Listen(one);
  NoteAddress(root.path(), root.path() + "/two");
  EXPECT_TRUE(Exists(one)) << "another daemon answers there";
  const std::string file = root.path() + "/file";
  ASSERT_TRUE(base::WriteFileAtomically(file, "mine").ok());
  NoteAddress(root.path(), file);
  NoteAddress(root.path(), root.path() + "/no/such/directory/socket");
  EXPECT_TRUE(Exists(file));
  NoteAddress(root.path(), one);
}

}  // namespace
}  // namespace lazyblob::daemon

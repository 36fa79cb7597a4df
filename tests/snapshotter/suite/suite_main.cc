// Runs a suite in a mount namespace of its own.

#include <gtest/gtest.h>

#include <cstdio>

#include "tests/snapshotter/suite/mounted.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  absl::Status status = lazyblob::snapshotter::suite::OwnMountNamespace();
  if (!status.ok()) {
    fprintf(stderr, "%s: this test mounts, run it as root\n", status.ToString().c_str());
    return 1;
  }
  return RUN_ALL_TESTS();
}

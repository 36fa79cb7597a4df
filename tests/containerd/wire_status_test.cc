#include "containerd/wire_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::containerd {
namespace {

using ::testing::HasSubstr;

TEST(WireStatusTest, CodesOfTheContractStay) {
  EXPECT_TRUE(WireStatus(absl::OkStatus()).ok());
  for (absl::StatusCode code :
       {absl::StatusCode::kInvalidArgument, absl::StatusCode::kNotFound, absl::StatusCode::kAlreadyExists,
        absl::StatusCode::kFailedPrecondition, absl::StatusCode::kUnavailable, absl::StatusCode::kCancelled,
        absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kResourceExhausted,
        absl::StatusCode::kUnimplemented, absl::StatusCode::kInternal, absl::StatusCode::kOutOfRange,
        absl::StatusCode::kDataLoss}) {
    EXPECT_EQ(WireStatus(absl::Status(code, "m")).code(), code);
  }
  for (absl::StatusCode code : {absl::StatusCode::kAborted, absl::StatusCode::kUnknown,
                                absl::StatusCode::kPermissionDenied, absl::StatusCode::kUnauthenticated}) {
    EXPECT_EQ(WireStatus(absl::Status(code, "m")).code(), absl::StatusCode::kInternal);
  }
}

TEST(WireStatusTest, AnErrorOfASystemCallSaysNothingOfSnapshots) {
  EXPECT_EQ(WireStatus(base::ErrnoStatus(ENOENT, "open x")).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(WireStatus(base::ErrnoStatus(EEXIST, "mkdir x")).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(WireStatus(base::ErrnoStatus(EBUSY, "umount x")).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(WireStatus(base::Annotate(base::ErrnoStatus(EINVAL, "x"), "y")).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(WireStatus(base::ErrnoStatus(ENOSPC, "write x")).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(WireStatus(base::ErrnoStatus(ENOENT, "open x")).message()), HasSubstr("open x"));
}

TEST(WireStatusTest, NoMessageEndsLikeAnotherError) {
  for (const char* text : {"a: conflict", "conflict", "a: not modified", "not modified"}) {
    std::string message(WireStatus(absl::FailedPreconditionError(text)).message());
    EXPECT_EQ(message, absl::StrCat(text, "."));
  }
}

TEST(WireStatusTest, LongMessagesAreCutBetweenCharacters) {
  std::string text(kMaxStatusMessage - 1, 'a');
  std::string message(WireStatus(absl::NotFoundError(text + "\xE7\x89\x9B")).message());
  EXPECT_EQ(message, text);
}

}  // namespace
}  // namespace lazyblob::containerd

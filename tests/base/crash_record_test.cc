// Deaths that are recorded are those of a thread that said what it worked on, by its own doing.

#include "base/crash_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/support/sanitizers.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::base {
namespace {

using ::testing::HasSubstr;

void Abort() {
  const CrashSubject outer("outer");
  {
    const CrashSubject before("before");
  }
  const CrashSubject subject("inner");
  std::abort();
}
void WildPointer() {
  const CrashSubject subject("wild");
  *reinterpret_cast<volatile int*>(8) = 1;
}
int Deeper(volatile int* level) {  // NOLINT(misc-no-recursion)
  volatile char frame[4096];
  frame[0] = static_cast<char>(*level);
  if (*level < 0) return 0;  // which it never is
  int next = *level + 1;
  return Deeper(&next) + frame[0];
}
void NoStackLeft() {
  const CrashSubject subject("deep");
  int level = 0;
  _exit(Deeper(&level));
}
// A page that its file does not have, as one that the disk does not give.
void PageThatIsNotThere() {
  const CrashSubject subject("innocent");
  const int file = memfd_create("empty", MFD_CLOEXEC);
  const void* const page = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, file, 0);
  _exit(*static_cast<const volatile char*>(page));
}
void NothingToTell() { std::abort(); }
void KilledFromOutside() {
  const CrashSubject subject("innocent");
  raise(SIGKILL);
}
// Another's signal, whatever its name.
void SignalFromOutside() {
  const CrashSubject subject("innocent");
  const pid_t self = getpid();
  const pid_t child = fork();
  if (child == 0) {
    kill(self, SIGSEGV);
    _exit(0);
  }
  while (true) pause();
}

class CrashRecordTest : public ::testing::Test {
 protected:
  // The signal that ends a process that opened the record and did `deed`; 0: none.
  int Die(void (*deed)()) {
    const pid_t child = fork();
    if (child == 0) {
      const auto record = CrashRecord::Open(path_);
      if (!record.ok()) _exit(3);
      deed();
      _exit(4);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  }
  std::string Recorded() { return ReadFile(path_, 4096).value_or("none"); }

  support::TempDir directory_;
  const std::string path_ = directory_.File("crashes");
};

TEST_F(CrashRecordTest, TheInnermostSubjectIsRecorded) {
  EXPECT_EQ(Die(Abort), SIGABRT);
  EXPECT_EQ(Recorded(), "inner\n");
}

TEST_F(CrashRecordTest, SoAreWildPointersAndStacksThatAreUsedUp) {
  if (support::kSanitized) GTEST_SKIP() << "the sanitizer's own handler ends the process";
  EXPECT_EQ(Die(WildPointer), SIGSEGV);
  EXPECT_EQ(Recorded(), "wild\n");
  EXPECT_EQ(Die(NoStackLeft), SIGSEGV);
  EXPECT_EQ(Recorded(), "wild\ndeep\n");
}

TEST_F(CrashRecordTest, WhoIsKilledOrHasNothingInHandLeavesNothing) {
  EXPECT_EQ(Die(NothingToTell), SIGABRT);
  EXPECT_EQ(Die(KilledFromOutside), SIGKILL);
  if (!support::kSanitized) {
    EXPECT_EQ(Die(SignalFromOutside), SIGSEGV);
    EXPECT_EQ(Die(PageThatIsNotThere), SIGBUS);
  }
  EXPECT_EQ(Recorded(), "");
}

TEST_F(CrashRecordTest, ThreeDeathsAreEnoughAndOthersAreNotConcerned) {
  ASSERT_TRUE(WriteFileAtomically(path_, "a\na\nb\n").ok());
  {
    const auto record = CrashRecord::Open(path_);
    ASSERT_TRUE(record.ok()) << record.status();
    EXPECT_TRUE((*record)->Check("a").ok());
    EXPECT_TRUE((*record)->Check("b").ok());
  }
  ASSERT_TRUE(WriteFileAtomically(path_, "a\na\nb\na\n").ok());
  const auto record = CrashRecord::Open(path_);
  ASSERT_TRUE(record.ok()) << record.status();
  const absl::Status refused = (*record)->Check("a");
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr(absl::StrCat("crashed 3 times over it. To try again, remove ", path_)));
  EXPECT_TRUE((*record)->Check("b").ok());
  EXPECT_TRUE((*record)->Check("c").ok());
}

TEST_F(CrashRecordTest, WhereManyHaveKilledOneDeathIsEnough) {
  ASSERT_TRUE(WriteFileAtomically(path_, "a\na\na\nb\nb\nc\n").ok());
  const auto record = CrashRecord::Open(path_);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_FALSE((*record)->Check("c").ok());
  EXPECT_TRUE((*record)->Check("d").ok());
}

TEST_F(CrashRecordTest, AFileThatIsNotOursIsEmptied) {
  ASSERT_TRUE(WriteFileAtomically(path_, std::string((1 << 20) + 1, 'x')).ok());
  const auto record = CrashRecord::Open(path_);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(Recorded(), "");
}

}  // namespace
}  // namespace lazyblob::base

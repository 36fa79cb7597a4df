#pragma once

// Of which inputs a process has died. A thread says what it works on; where it then dies of a signal of its
// own making (a wild pointer, abort()), a handler adds that to a file, which outlives the process but not
// necessarily a loss of power. Who is killed from outside (SIGKILL, also by the kernel for want of memory)
// leaves nothing there.

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lazyblob::base {

// What this thread works on while the object lives; the innermost one counts. One printable word.
class CrashSubject {
 public:
  explicit CrashSubject(std::string subject);
  ~CrashSubject();
  CrashSubject(const CrashSubject&) = delete;
  CrashSubject& operator=(const CrashSubject&) = delete;

 private:
  const std::string line_;
  const CrashSubject* const outer_;
  friend struct CrashHandler;
};

// The file, one line per death: the subject. At most one object per process has it open at a time; the
// functions are thread-safe.
class CrashRecord {
 public:
  // Counts what is there, and installs the handlers of SIGSEGV, SIGBUS, SIGILL, SIGFPE and SIGABRT; those of
  // before (sanitizers') are called afterwards.
  static absl::StatusOr<std::unique_ptr<CrashRecord>> Open(const std::string& path);
  // Counts what is there, and no more. NotFound: there is no file.
  static absl::StatusOr<std::map<std::string, int>> Read(const std::string& path);
  ~CrashRecord();
  CrashRecord(const CrashRecord&) = delete;
  CrashRecord& operator=(const CrashRecord&) = delete;

  // FailedPrecondition, in words for an operator, where processes before this one died of it so often that it
  // shall not be tried again: 3 times, or once where there were 6 such deaths in all, so that many inputs of
  // that kind do not wear out whoever starts the process again.
  absl::Status Check(absl::string_view subject) const;

 private:
  CrashRecord(std::string path, std::map<std::string, int> deaths);

  const std::string path_;
  const std::map<std::string, int> deaths_;  // by subject
  int all_ = 0;
};

}  // namespace lazyblob::base

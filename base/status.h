#pragma once

// The one error style of the project: absl::Status, with errno and "provider missing" as typed payloads.
// Exceptions never cross a folder. Thread-safe (pure functions).

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lazyblob::base {

// A status for a failed system call: "<what>: <strerror(error)>". The code is absl::ErrnoToStatusCode(error);
// the errno itself is kept and ErrnoOf() returns it.
absl::Status ErrnoStatus(int error, absl::string_view what);

// The errno that best describes `status` to a caller of a system call: the one given to ErrnoStatus where
// there is one, else EIO for everything that has no exact twin (never 0 for an error, 0 for OK).
int ErrnoOf(const absl::Status& status);

// Whether `status` comes from ErrnoStatus: its code then tells of a file, not of what was asked for.
bool HasErrno(const absl::Status& status);

// `status` with "<context>: " in front of its message; payloads are kept. OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

// `text` fit for one line of a log or terminal: control bytes, DEL, backslash and invalid UTF-8 become \xNN.
// Names from images and registries pass through here before they are printed.
std::string Printable(absl::string_view text);

// Whether `text` is well-formed UTF-8 (RFC 3629). NUL is.
bool IsUtf8(absl::string_view text);

}  // namespace lazyblob::base

#define LB_CONCAT_INNER(a, b) a##b
#define LB_CONCAT(a, b) LB_CONCAT_INNER(a, b)

// Returns from the enclosing function when `expr` is not OK.
#define RETURN_IF_ERROR(expr)                                               \
  do {                                                                      \
    if (absl::Status lb_status = (expr); !lb_status.ok()) return lb_status; \
  } while (false)

// Declares or assigns `lhs` from a StatusOr, or returns its error.
#define ASSIGN_OR_RETURN(lhs, expr) ASSIGN_OR_RETURN_IMPL(LB_CONCAT(lb_statusor_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr)    \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = std::move(tmp).value()

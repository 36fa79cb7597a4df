#pragma once

// Whether what a content store has on the disk is what it claims to be. Only files are looked at
// (docs/CONTENT_STORE.md has their formats), so a store may have them open meanwhile: what it changes under
// the check is no finding.

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/digest.h"

namespace lazyblob::contentstore {

struct CheckOptions {
  bool alone = false;   // no store has the root open, and none will before the check returns
  bool repair = false;  // takes away what is wrong, to be fetched again; needs `alone`
};

struct CheckFinding {
  std::string what;       // one printable line: which file, what is wrong, what becomes of it
  bool repaired = false;  // false: not asked for, or not possible
};
using OnFinding = absl::FunctionRef<void(const CheckFinding&)>;

struct CheckTotals {
  uint64_t layers = 0;
  uint64_t chunks = 0;  // that are cached; each was compared with its SHA-256
  uint64_t bytes = 0;   // of those chunks
};

// All layers of the store at `root`. What is wrong goes to `found`; an error: the check could not go on.
absl::Status CheckLayers(const std::string& root, const CheckOptions& options, OnFinding found,
                         CheckTotals* totals);

// Whether the file has the digest, as the disk has it where the kernel lets go of its pages. NotFound: there
// is none.
absl::StatusOr<bool> HasDigest(const std::string& path, const base::Digest& digest);

}  // namespace lazyblob::contentstore

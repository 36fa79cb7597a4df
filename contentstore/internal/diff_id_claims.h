#pragma once

// What images say that one layer unpacks to (their diffIDs), and what it does once somebody has read it
// whole. Not thread-safe.

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/digest.h"

namespace lazyblob::contentstore {

class DiffIdClaims {
 public:
  DiffIdClaims() = default;
  // As recorded; wrong claims are not kept.
  DiffIdClaims(std::vector<base::Digest> claims, std::vector<base::Digest> found)
      : claims_(std::move(claims)), found_(std::move(found)) {}

  // FailedPrecondition: the layer is known to unpack to something else, or too many images disagree.
  absl::Status Add(const base::Digest& claim);
  // Instead of all claims before.
  absl::Status Replace(const base::Digest& claim);
  // What the layer unpacks to. Takes the wrong claims out and returns them.
  std::vector<base::Digest> SetFound(std::vector<base::Digest> found);
  // It cannot be unpacked at all: the same for all claims.
  std::vector<base::Digest> RefuseAll();

  bool Has(const base::Digest& claim) const;
  // Of claims that nobody has compared yet.
  std::vector<base::DigestAlgorithm> OpenAlgorithms() const;
  // Not to be believed before they are compared.
  bool disputed() const { return (claims_.size() > 1 || !found_.empty()) && !OpenAlgorithms().empty(); }
  const std::vector<base::Digest>& claims() const { return claims_; }
  const std::vector<base::Digest>& found() const { return found_; }

 private:
  const base::Digest* Found(base::DigestAlgorithm algorithm) const;
  absl::Status Check(const base::Digest& claim) const;

  std::vector<base::Digest> claims_;  // different ones
  std::vector<base::Digest> found_;   // one for each algorithm that was claimed when the layer was read
};

}  // namespace lazyblob::contentstore

#include "contentstore/internal/diff_id_claims.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

constexpr size_t kMaxClaims = 16;

}  // namespace

const base::Digest* DiffIdClaims::Found(base::DigestAlgorithm algorithm) const {
  const auto found = std::find_if(found_.begin(), found_.end(),
                                  [&](const base::Digest& one) { return one.algorithm() == algorithm; });
  return found == found_.end() ? nullptr : &*found;
}

absl::Status DiffIdClaims::Check(const base::Digest& claim) const {
  const base::Digest* const found = Found(claim.algorithm());
  if (found == nullptr || *found == claim) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("it has diffID ", found->ToString(),
                                                    ", but this image says ", claim.ToString(),
                                                    "; the image's config does not fit its layers"));
}

absl::Status DiffIdClaims::Add(const base::Digest& claim) {
  RETURN_IF_ERROR(Check(claim));
  if (Has(claim)) return absl::OkStatus();
  if (claims_.size() == kMaxClaims) {
    return absl::FailedPreconditionError(absl::StrCat(
        kMaxClaims, " images say different diffIDs of it; read it whole with lazyblob unlazy to know which"));
  }
  claims_.push_back(claim);
  return absl::OkStatus();
}

absl::Status DiffIdClaims::Replace(const base::Digest& claim) {
  RETURN_IF_ERROR(Check(claim));
  claims_ = {claim};
  return absl::OkStatus();
}

std::vector<base::Digest> DiffIdClaims::SetFound(std::vector<base::Digest> found) {
  for (base::Digest& one : found) {
    if (Found(one.algorithm()) == nullptr) found_.push_back(std::move(one));
  }
  const auto right =
      std::partition(claims_.begin(), claims_.end(), [this](const auto& one) { return Check(one).ok(); });
  std::vector<base::Digest> wrong(right, claims_.end());
  claims_.erase(right, claims_.end());
  return wrong;
}

std::vector<base::Digest> DiffIdClaims::RefuseAll() { return std::exchange(claims_, {}); }

bool DiffIdClaims::Has(const base::Digest& claim) const {
  return std::find(claims_.begin(), claims_.end(), claim) != claims_.end();
}

std::vector<base::DigestAlgorithm> DiffIdClaims::OpenAlgorithms() const {
  std::vector<base::DigestAlgorithm> open;
  for (const base::Digest& claim : claims_) {
    const bool known = Found(claim.algorithm()) != nullptr ||
                       std::find(open.begin(), open.end(), claim.algorithm()) != open.end();
    if (!known) open.push_back(claim.algorithm());
  }
  return open;
}

}  // namespace lazyblob::contentstore

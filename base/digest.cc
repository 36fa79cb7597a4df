#include "base/digest.h"

#include <openssl/evp.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::base {
namespace {

absl::Span<const uint8_t> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

bool IsLowerHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

}  // namespace

absl::StatusOr<Digest> Digest::Parse(absl::string_view text) {
  Digest digest;
  absl::string_view hex;
  if (text.substr(0, 7) == "sha256:") {
    digest.algorithm_ = DigestAlgorithm::kSha256;
  } else if (text.substr(0, 7) == "sha512:") {
    digest.algorithm_ = DigestAlgorithm::kSha512;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("digest \"", Printable(text.substr(0, 160)), "\": want sha256:<hex> or sha512:<hex>"));
  }
  hex = text.substr(7);
  if (hex.size() != 2 * digest.size() || !IsLowerHex(hex)) {
    return absl::InvalidArgumentError(absl::StrCat("digest \"", Printable(text.substr(0, 160)), "\": want ",
                                                   2 * digest.size(), " lower-case hexadecimal digits"));
  }
  std::string raw = absl::HexStringToBytes(hex);
  std::copy(raw.begin(), raw.end(), digest.bytes_.begin());
  return digest;
}

Digest Digest::FromSha256(const Sha256Bytes& bytes) {
  Digest digest;
  std::copy(bytes.begin(), bytes.end(), digest.bytes_.begin());
  return digest;
}

Digest Digest::Of(absl::Span<const uint8_t> data) { return FromSha256(Sha256(data)); }
Digest Digest::Of(absl::string_view data) { return Of(AsBytes(data)); }

bool Digest::empty() const {
  return std::all_of(bytes_.begin(), bytes_.end(), [](uint8_t b) { return b == 0; });
}

std::string Digest::hex() const {
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes_.data()), size()));
}

std::string Digest::ToString() const {
  return absl::StrCat(algorithm_ == DigestAlgorithm::kSha256 ? "sha256:" : "sha512:", hex());
}

Hasher::Hasher(DigestAlgorithm algorithm) : algorithm_(algorithm), context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(context_, algorithm == DigestAlgorithm::kSha256 ? EVP_sha256() : EVP_sha512(), nullptr);
}

Hasher::~Hasher() { EVP_MD_CTX_free(context_); }

Hasher::Hasher(Hasher&& other) noexcept
    : algorithm_(other.algorithm_), context_(std::exchange(other.context_, nullptr)) {}

Hasher& Hasher::operator=(Hasher&& other) noexcept {
  std::swap(algorithm_, other.algorithm_);
  std::swap(context_, other.context_);
  return *this;
}

void Hasher::Update(absl::Span<const uint8_t> data) { EVP_DigestUpdate(context_, data.data(), data.size()); }
void Hasher::Update(absl::string_view data) { Update(AsBytes(data)); }

Digest Hasher::Current() const {
  Hasher copy(algorithm_);
  EVP_MD_CTX_copy_ex(copy.context_, context_);
  return copy.Finish();
}

Digest Hasher::Finish() {
  Digest digest;
  digest.algorithm_ = algorithm_;
  EVP_DigestFinal_ex(context_, digest.bytes_.data(), nullptr);
  return digest;
}

Sha256Bytes Sha256(absl::Span<const uint8_t> data) {
  Sha256Bytes out;
  unsigned length = 0;
  EVP_Digest(data.data(), data.size(), out.data(), &length, EVP_sha256(), nullptr);
  return out;
}

}  // namespace lazyblob::base

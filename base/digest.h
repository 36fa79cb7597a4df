#pragma once

// OCI content digests ("sha256:<64 lower-case hex>", "sha512:<128 …>") and the hashers that make them.
// Source: OCI image-spec, descriptor.md, "Digests". Digest is a value; a Hasher belongs to one thread.

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

struct evp_md_ctx_st;

namespace lazyblob::base {

enum class DigestAlgorithm : uint8_t { kSha256, kSha512 };

// The raw 32 bytes of a SHA-256: what chunk tables store.
using Sha256Bytes = std::array<uint8_t, 32>;

class Digest {
 public:
  // All-zero SHA-256: "no digest". Never equal to a parsed or computed one in practice.
  Digest() = default;

  // InvalidArgument unless `text` is a digest of a supported algorithm, in canonical form.
  static absl::StatusOr<Digest> Parse(absl::string_view text);
  static Digest FromSha256(const Sha256Bytes& bytes);
  // SHA-256 of `data`.
  static Digest Of(absl::Span<const uint8_t> data);
  static Digest Of(absl::string_view data);

  DigestAlgorithm algorithm() const { return algorithm_; }
  absl::Span<const uint8_t> bytes() const { return {bytes_.data(), size()}; }
  bool empty() const;
  std::string hex() const;
  // "sha256:…"
  std::string ToString() const;

  friend bool operator==(const Digest& a, const Digest& b) {
    return a.algorithm_ == b.algorithm_ && a.bytes_ == b.bytes_;
  }
  friend bool operator!=(const Digest& a, const Digest& b) { return !(a == b); }
  friend bool operator<(const Digest& a, const Digest& b) {
    return a.algorithm_ != b.algorithm_ ? a.algorithm_ < b.algorithm_ : a.bytes_ < b.bytes_;
  }
  template <typename H>
  friend H AbslHashValue(H h, const Digest& d) {
    return H::combine(std::move(h), d.algorithm_, d.bytes_);
  }

 private:
  friend class Hasher;
  size_t size() const { return algorithm_ == DigestAlgorithm::kSha256 ? 32 : 64; }

  DigestAlgorithm algorithm_ = DigestAlgorithm::kSha256;
  std::array<uint8_t, 64> bytes_{};
};

// Streaming hash. Finish() may be called once; the object is then done.
class Hasher {
 public:
  explicit Hasher(DigestAlgorithm algorithm = DigestAlgorithm::kSha256);
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  void Update(absl::Span<const uint8_t> data);
  void Update(absl::string_view data);
  // Of what was given so far; more may follow.
  Digest Current() const;
  Digest Finish();

 private:
  DigestAlgorithm algorithm_;
  evp_md_ctx_st* context_;
};

// One-shot SHA-256.
Sha256Bytes Sha256(absl::Span<const uint8_t> data);

}  // namespace lazyblob::base

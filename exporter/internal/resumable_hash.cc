// The one-shot interfaces of OpenSSL 3 do not give their state away; the older ones are plain structs.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "exporter/internal/resumable_hash.h"

#include <openssl/sha.h>

#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace lazyblob::exporter::internal {
namespace {

template <typename Word>
void AppendBigEndian(Word word, std::string* out) {
  for (size_t i = sizeof(Word); i-- > 0;) out->push_back(static_cast<char>((word >> (8 * i)) & 0xff));
}

template <typename Word>
Word ReadBigEndian(absl::string_view bytes) {
  Word word = 0;
  for (size_t i = 0; i < sizeof(Word); ++i) {
    word = static_cast<Word>((word << 8) | static_cast<uint8_t>(bytes[i]));
  }
  return word;
}

}  // namespace

struct ResumableHash::Context {
  SHA256_CTX sha256;
  SHA512_CTX sha512;
};

ResumableHash::ResumableHash(base::DigestAlgorithm algorithm)
    : algorithm_(algorithm), context_(std::make_unique<Context>()) {
  SHA256_Init(&context_->sha256);
  SHA512_Init(&context_->sha512);
}
ResumableHash::~ResumableHash() = default;
ResumableHash::ResumableHash(const ResumableHash& other)
    : algorithm_(other.algorithm_),
      size_(other.size_),
      context_(std::make_unique<Context>(*other.context_)) {}
ResumableHash& ResumableHash::operator=(const ResumableHash& other) {
  if (this == &other) return *this;
  algorithm_ = other.algorithm_;
  size_ = other.size_;
  *context_ = *other.context_;
  return *this;
}

void ResumableHash::Update(absl::Span<const uint8_t> data) {
  size_ += data.size();
  if (algorithm_ == base::DigestAlgorithm::kSha256) {
    SHA256_Update(&context_->sha256, data.data(), data.size());
  } else {
    SHA512_Update(&context_->sha512, data.data(), data.size());
  }
}

base::Digest ResumableHash::Current() const {
  Context copy = *context_;
  uint8_t out[SHA512_DIGEST_LENGTH];
  const bool sha256 = algorithm_ == base::DigestAlgorithm::kSha256;
  if (sha256) {
    SHA256_Final(out, &copy.sha256);
  } else {
    SHA512_Final(out, &copy.sha512);
  }
  const absl::string_view bytes(reinterpret_cast<const char*>(out), sha256 ? 32 : 64);
  return base::Digest::Parse(absl::StrCat(sha256 ? "sha256:" : "sha512:", absl::BytesToHexString(bytes)))
      .value();
}

std::string ResumableHash::State() const {
  std::string bytes;
  if (algorithm_ == base::DigestAlgorithm::kSha256) {
    for (const SHA_LONG word : context_->sha256.h) AppendBigEndian<uint32_t>(word, &bytes);
    bytes.append(reinterpret_cast<const char*>(context_->sha256.data), context_->sha256.num);
  } else {
    for (const SHA_LONG64 word : context_->sha512.h) AppendBigEndian<uint64_t>(word, &bytes);
    bytes.append(reinterpret_cast<const char*>(context_->sha512.u.p), context_->sha512.num);
  }
  return absl::BytesToHexString(bytes);
}

absl::StatusOr<ResumableHash> ResumableHash::FromState(base::DigestAlgorithm algorithm, uint64_t size,
                                                       absl::string_view state) {
  const bool sha256 = algorithm == base::DigestAlgorithm::kSha256;
  const size_t words = sha256 ? 32 : 64;
  const size_t rest = size % (sha256 ? SHA256_CBLOCK : SHA512_CBLOCK);
  bool hex = state.size() == 2 * (words + rest) && size < (uint64_t{1} << 60);
  for (const char c : state) hex = hex && ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'));
  if (!hex) return absl::InvalidArgumentError("not the state of a hash of that many bytes");
  const std::string bytes = absl::HexStringToBytes(state);
  ResumableHash hash(algorithm);
  hash.size_ = size;
  const uint64_t bits = size * 8;
  if (sha256) {
    SHA256_CTX& context = hash.context_->sha256;
    for (size_t i = 0; i < 8; ++i) {
      context.h[i] = ReadBigEndian<uint32_t>(absl::string_view(bytes).substr(4 * i));
    }
    context.Nl = static_cast<SHA_LONG>(bits);
    context.Nh = static_cast<SHA_LONG>(bits >> 32);
    std::memcpy(context.data, bytes.data() + words, rest);
    context.num = static_cast<unsigned int>(rest);
  } else {
    SHA512_CTX& context = hash.context_->sha512;
    for (size_t i = 0; i < 8; ++i) {
      context.h[i] = ReadBigEndian<uint64_t>(absl::string_view(bytes).substr(8 * i));
    }
    context.Nl = bits;
    context.Nh = 0;
    std::memcpy(context.u.p, bytes.data() + words, rest);
    context.num = static_cast<unsigned int>(rest);
  }
  return hash;
}

}  // namespace lazyblob::exporter::internal

#pragma once

// What the tests of pushing share: a test registry that can be made to behave like others, and pushes to it.

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "registry/pusher.h"
#include "tests/support/test_registry.h"

namespace lazyblob::registry {

// `size` bytes that are different everywhere, and for every size.
inline std::string Noise(size_t size) {
  std::string bytes(size, '\0');
  uint64_t state = 88172645463325252u + size;
  for (char& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

inline absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

inline size_t HalfSecondsSince(absl::Duration start) {
  return static_cast<size_t>((base::SystemClock().Monotonic() - start) / absl::Milliseconds(500));
}

class UserCredentials final : public CredentialsProvider {
  absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view) const override {
    return std::optional<Credentials>(Credentials{"user", "secret", "", ""});
  }
};

class PusherPersonalitiesTest : public testing::Test {
 protected:
  PusherPersonalitiesTest() {
    repository_.host = registry_.host();
    repository_.repository = "app";
    options_.plain_http = true;
    options_.max_attempts = 3;
    options_.first_backoff = absl::Milliseconds(5);
    options_.stall_timeout = absl::Seconds(10);
    options_.credentials = std::make_shared<UserCredentials>();
  }

  void Become(const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      ASSERT_TRUE(ApplyPersonality(name, &uploads_, &auth_).ok()) << name;
    }
    Apply();
  }
  void Apply() {
    registry_.SetUploads(uploads_);
    if (auth_.kind == support::AuthOptions::Kind::kBearer) {
      auth_.username = "user";
      auth_.password = "secret";
    }
    registry_.SetAuth(auth_);
  }

  Pusher& pusher() {
    if (pusher_ == nullptr) {
      client_ = std::make_unique<Client>(options_);
      pusher_ = std::make_unique<Pusher>(client_.get());
    }
    return *pusher_;
  }

  oci::Descriptor Describe(const std::string& bytes) const {
    oci::Descriptor descriptor;
    descriptor.digest = base::Digest::Of(bytes);
    descriptor.size = bytes.size();
    return descriptor;
  }

  // POST and PUT. `taken` counts the bytes that were asked for.
  absl::Status PutWhole(const std::string& bytes, const UploadSession& session, size_t* taken = nullptr) {
    size_t at = 0;
    auto source = [&](absl::Span<uint8_t> out) -> absl::StatusOr<size_t> {
      size_t count = std::min(out.size(), bytes.size() - at);
      memcpy(out.data(), bytes.data() + at, count);
      at += count;
      return count;
    };
    absl::Status status = pusher().PutWhole(repository_, session, Describe(bytes), source, {});
    if (taken != nullptr) *taken = at;
    return status;
  }
  absl::Status PushWhole(const std::string& bytes) {
    absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
    return session.ok() ? PutWhole(bytes, *session) : session.status();
  }
  // The chunks from the session's offset to the end.
  absl::Status PatchRest(const std::string& bytes, UploadSession* session, size_t chunk = 1 << 20) {
    while (session->offset < bytes.size()) {
      absl::string_view piece = absl::string_view(bytes).substr(session->offset, chunk);
      absl::Status status = pusher().Patch(repository_, session, Bytes(piece), {});
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  absl::Status PushChunks(const std::string& bytes) {
    absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
    if (!session.ok()) return session.status();
    absl::Status status = PatchRest(bytes, &*session);
    return status.ok() ? pusher().Commit(repository_, *session, base::Digest::Of(bytes), {}) : status;
  }
  bool Has(const std::string& bytes) { return registry_.Blob("app", base::Digest::Of(bytes)) == bytes; }
  size_t Count(const std::string& method) const { return registry_.Count({.method = method}); }

  support::TestRegistry registry_;
  oci::Reference repository_;
  support::UploadOptions uploads_;
  support::AuthOptions auth_;
  ClientOptions options_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<Pusher> pusher_;
};

}  // namespace lazyblob::registry

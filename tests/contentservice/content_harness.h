#pragma once

// A Content over a directory of its own, which can be closed and opened again.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "contentservice/content.h"
#include "tests/support/fake_clock.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::contentservice {

inline absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// `size` bytes that `seed` gives.
inline std::string Blob(size_t size, uint32_t seed = 1) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) {
    seed = seed * 1664525u + 1013904223u;
    byte = static_cast<char>(seed >> 24);
  }
  return bytes;
}

class ContentTest : public testing::Test {
 protected:
  ContentTest() {
    options_.root = dir_.File("content");
    options_.clock = &clock_;
    options_.log = [this](absl::string_view line) {
      absl::MutexLock lock(&log_mutex_);
      log_.emplace_back(line);
    };
  }
  void SetUp() override { Open(); }
  void Open() {
    content_.reset();
    auto opened = Content::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    content_ = *std::move(opened);
  }
  std::unique_ptr<Writer> Begin(const std::string& ref, uint64_t total = 0,
                                const base::Digest& expected = {}) {
    auto writer = content_->OpenWriter(ref, total, expected);
    EXPECT_TRUE(writer.ok()) << writer.status();
    return writer.ok() ? *std::move(writer) : nullptr;
  }
  // Begun with those bytes, closed.
  void Leave(const std::string& ref, absl::string_view bytes, uint64_t total = 0) {
    auto writer = Begin(ref, total);
    ASSERT_NE(writer, nullptr);
    ASSERT_TRUE(writer->Append(Bytes(bytes)).ok());
  }
  absl::Status Write(const std::string& ref, absl::string_view bytes, const Labels& labels = {}) {
    auto writer = content_->OpenWriter(ref, bytes.size(), {});
    if (!writer.ok()) return writer.status();
    absl::Status status = (*writer)->Append(Bytes(bytes));
    if (status.ok()) status = (*writer)->Commit(bytes.size(), base::Digest::Of(bytes), labels);
    return status;
  }
  absl::StatusOr<std::string> Read(const base::Digest& digest, uint64_t offset = 0, uint64_t size = 0) {
    std::string text;
    absl::Status status = content_->Read(
        digest, offset, size,
        [&](absl::Span<const uint8_t> bytes) {
          text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
          return absl::OkStatus();
        },
        nullptr);
    if (!status.ok()) return status;
    return text;
  }
  std::vector<std::string> Listed(const std::vector<std::string>& filters = {}) {
    std::vector<std::string> digests;
    absl::Status status = content_->List(filters, [&](const Info& info) {
      digests.push_back(info.digest.ToString());
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return digests;
  }
  std::vector<std::string> Refs(const std::vector<std::string>& filters = {}) {
    std::vector<std::string> refs;
    const auto statuses = content_->ListStatuses(filters);
    EXPECT_TRUE(statuses.ok()) << statuses.status();
    for (const IngestStatus& status : *statuses) refs.push_back(status.ref);
    return refs;
  }
  std::vector<std::string> Files(const std::string& below) {
    return base::ListDirectory(absl::StrCat(options_.root, "/", below)).value();
  }
  std::string PathOf(const base::Digest& digest) {
    return absl::StrCat(options_.root, "/blobs/sha256/", digest.hex());
  }

  support::TempDir dir_;
  support::FakeClock clock_;
  ContentOptions options_;
  absl::Mutex log_mutex_;
  std::vector<std::string> log_ ABSL_GUARDED_BY(log_mutex_);
  std::unique_ptr<Content> content_;
};

}  // namespace lazyblob::contentservice

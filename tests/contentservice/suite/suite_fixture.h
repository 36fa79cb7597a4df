#pragma once

// The real Content behind its socket, and a client of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "containerd/grpc_server.h"
#include "contentservice/content_service.h"
#include "tests/contentservice/suite/wire_client.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::contentservice::suite {

class SuiteTest : public ::testing::Test {
 protected:
  SuiteTest() {
    options_.root = dir_.File("content");
    options_.log = [](absl::string_view) {};
  }
  ~SuiteTest() override {
    client_.reset();
    server_.reset();  // before what it serves
  }
  void SetUp() override { Start(); }
  void Start() {
    auto opened = Content::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    content_ = *std::move(opened);
    service_ = ContentService::Create(content_.get());
    auto server = containerd::GrpcServer::Start(dir_.File("run") + "/s.sock", {service_->service()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = std::make_unique<WireClient>(dir_.File("run") + "/s.sock");
  }
  void Restart() {
    client_.reset();
    server_.reset();
    service_.reset();
    content_.reset();
    Start();
  }
  // A writer of `ref`, or a failure of the test.
  std::unique_ptr<WireWriter> Open(const std::string& ref, uint64_t total = 0,
                                   const std::string& expected = "") {
    auto writer = client_->OpenWriter(ref, total, expected);
    EXPECT_TRUE(writer.ok()) << writer.status();
    return writer.ok() ? *std::move(writer) : client_->OpenStream();
  }

  support::TempDir dir_;
  ContentOptions options_;
  std::unique_ptr<Content> content_;
  std::unique_ptr<ContentService> service_;
  std::unique_ptr<containerd::GrpcServer> server_;
  std::unique_ptr<WireClient> client_;
};

// `size` bytes that no other call gave, and their digest.
struct Made {
  std::string bytes;
  std::string digest;
};
inline Made MakeBlob(size_t size) {
  static uint64_t state = 1;
  Made made;
  while (made.bytes.size() < size) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    made.bytes.push_back(static_cast<char>(state >> 56));
  }
  made.digest = base::Digest::Of(made.bytes).ToString();
  return made;
}

}  // namespace lazyblob::contentservice::suite

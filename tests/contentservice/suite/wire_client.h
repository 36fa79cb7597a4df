#pragma once

// A client of containerd.services.content.v1 that sends what containerd's own proxy of a content plugin
// sends: the contract's types on this side of the wire. Thread-safe; a writer belongs to one thread.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "contentservice/content.h"
#include "proto/containerd_content.grpc.pb.h"

namespace lazyblob::contentservice::suite {

namespace api = ::containerd::services::content::v1;

class WireWriter {
 public:
  ~WireWriter() { Close().IgnoreError(); }

  // By STAT; `digest()` is then that of what was written.
  absl::StatusOr<IngestStatus> Status();
  const std::string& digest() const { return digest_; }
  absl::Status Write(absl::string_view bytes);
  void Truncate() { offset_ = 0; }  // the next write says so
  // Closes, too.
  absl::Status Commit(uint64_t size, const std::string& expected, const Labels& labels = {});
  // Half-closes and waits for the end of the stream; what that says.
  absl::Status Close();

  // One request and its answer, as they are.
  absl::StatusOr<api::WriteContentResponse> Send(const api::WriteContentRequest& request);
  void Cancel() { context_.TryCancel(); }
  uint64_t offset() const { return offset_; }

 private:
  friend class WireClient;
  WireWriter() = default;

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<api::WriteContentRequest, api::WriteContentResponse>> stream_;
  std::string ref_;
  uint64_t offset_ = 0;
  std::string digest_;
  bool closed_ = false;
  absl::Status end_;
};

class WireClient {
 public:
  // `address`: path of the socket, at most 107 bytes.
  explicit WireClient(const std::string& address);

  absl::StatusOr<Info> GetInfo(const std::string& digest);
  absl::StatusOr<Info> Update(const std::string& digest, const Labels& labels,
                              const std::vector<std::string>& paths = {});
  // `messages`, if given: how many Infos each message of the stream had.
  absl::StatusOr<std::vector<Info>> List(const std::vector<std::string>& filters = {},
                                         std::vector<int>* messages = nullptr);
  absl::Status Delete(const std::string& digest);
  // `pieces`, if given: the bytes of each message.
  absl::StatusOr<std::string> Read(const std::string& digest, int64_t offset = 0, int64_t size = 0,
                                   std::vector<size_t>* pieces = nullptr);
  absl::StatusOr<IngestStatus> Status(const std::string& ref);
  absl::StatusOr<std::vector<IngestStatus>> ListStatuses(const std::vector<std::string>& filters = {});
  absl::Status Abort(const std::string& ref);
  // A stream that has said nothing yet.
  std::unique_ptr<WireWriter> OpenStream();
  // With its STAT answered.
  absl::StatusOr<std::unique_ptr<WireWriter>> OpenWriter(const std::string& ref, uint64_t total = 0,
                                                         const std::string& expected = "");
  // Opened, written and committed.
  absl::Status WriteBlob(const std::string& ref, absl::string_view bytes, const Labels& labels = {});

  api::Content::Stub& stub() { return *stub_; }

 private:
  std::unique_ptr<api::Content::Stub> stub_;
};

}  // namespace lazyblob::contentservice::suite

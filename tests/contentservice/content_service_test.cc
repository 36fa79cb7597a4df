// The wire: codes, checks, streams, and who waits for whom. containerd's own cases are in suite/.

#include "contentservice/content_service.h"

#include <atomic>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/contentservice/suite/suite_fixture.h"
#include "tests/support/gate.h"

namespace lazyblob::contentservice {
namespace {

using absl::StatusCode;
using suite::Made;
using suite::MakeBlob;
using suite::WireWriter;
using suite::api::WriteContentRequest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// One blob that is elsewhere; its reads wait at a gate, or for being cancelled.
class OneLazyBlob final : public LazyBlobs {
 public:
  absl::StatusOr<Info> Find(const base::Digest& digest) override {
    if (digest.ToString() != made.digest) return absl::NotFoundError("not lazy");
    Info info;
    info.digest = digest;
    info.size = made.bytes.size();
    return info;
  }
  std::vector<Info> Listed() override { return {}; }
  absl::Status SetLabels(const base::Digest&, const Labels&, absl::Time) override { return absl::OkStatus(); }
  absl::Status Forget(const base::Digest&) override { return absl::NotFoundError("not lazy"); }
  absl::StatusOr<size_t> Read(const base::Digest&, uint64_t offset, absl::Span<uint8_t> out,
                              const std::shared_ptr<base::CancelToken>& cancel) override {
    auto registration = cancel->OnCancel([this] {
      ++cancelled;
      gate.Open();
    });
    if (!gate.Pass()) return absl::DeadlineExceededError("the gate stayed shut");
    if (cancel->cancelled()) return absl::CancelledError("cancelled");
    const size_t size = std::min<size_t>(out.size(), made.bytes.size() - offset);
    made.bytes.copy(reinterpret_cast<char*>(out.data()), size, offset);
    return size;
  }
  void Committed(const base::Digest&, uint64_t, const std::string&) override {}
  void Deleted(const base::Digest&) override {}

  const Made made = MakeBlob(1000);
  support::Gate gate;
  std::atomic<int> cancelled = 0;
};

class ContentServiceTest : public suite::SuiteTest {
 protected:
  ContentServiceTest() { options_.lazy = &lazy_; }

  Made Held(size_t size, const Labels& labels = {}) {
    Made made = MakeBlob(size);
    absl::Status status = client_->WriteBlob(absl::StrCat("held-", ++count_), made.bytes, labels);
    EXPECT_TRUE(status.ok()) << status;
    return made;
  }
  // The code that answers the first message of a stream.
  StatusCode First(const WriteContentRequest& request) {
    return client_->OpenStream()->Send(request).status().code();
  }

  OneLazyBlob lazy_;
  int count_ = 0;
};

TEST_F(ContentServiceTest, CodesAreContainerds) {
  const std::string none = base::Digest::Of("none").ToString();
  for (const char* bad : {"", "sha256:", "sha256:AB", "md5:d41d8cd98f00b204e9800998ecf8427e"}) {
    EXPECT_EQ(client_->GetInfo(bad).status().code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(client_->Update(bad, {}).status().code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(client_->Delete(bad).code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(client_->Read(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(client_->GetInfo(none).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(client_->Update(none, {}).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(client_->Delete(none).code(), StatusCode::kNotFound);
  EXPECT_EQ(client_->Read(none).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(client_->Status("none").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(client_->Abort("none").code(), StatusCode::kNotFound);
  EXPECT_EQ(client_->List({"digest=="}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(client_->ListStatuses({"ref=="}).status().code(), StatusCode::kInvalidArgument);
  const Made made = Held(10);
  EXPECT_EQ(client_->Update(made.digest, {}, {"size"}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(client_->Delete(made.digest).ok());
  EXPECT_EQ(client_->Delete(made.digest).code(), StatusCode::kNotFound);
  EXPECT_EQ(client_->GetInfo(made.digest).status().code(), StatusCode::kNotFound);
}

TEST_F(ContentServiceTest, AFirstMessageIsChecked) {
  const Made made = Held(10);
  WriteContentRequest request;
  EXPECT_EQ(First(request), StatusCode::kInvalidArgument) << "no ref";
  request.set_ref("r");
  request.set_expected("sha256:short");
  EXPECT_EQ(First(request), StatusCode::kInvalidArgument);
  request.set_expected(made.digest);
  EXPECT_EQ(First(request), StatusCode::kAlreadyExists);
  request.set_expected(lazy_.made.digest);
  EXPECT_EQ(First(request), StatusCode::kAlreadyExists) << "a lazy blob is there, too";
  request.set_expected("");
  request.set_action(static_cast<suite::api::WriteAction>(7));
  EXPECT_EQ(First(request), StatusCode::kInvalidArgument);
  EXPECT_TRUE(client_->WriteBlob("r", MakeBlob(3).bytes).ok()) << "no error has left it locked";
}

TEST_F(ContentServiceTest, ABlobInOneMessage) {
  const Made made = MakeBlob(100);
  WriteContentRequest request;
  request.set_action(suite::api::COMMIT);
  request.set_ref("r");
  request.set_total(100);
  request.set_expected(made.digest);
  request.set_data(made.bytes);
  (*request.mutable_labels())["a"] = "b";
  auto stream = client_->OpenStream();
  auto response = stream->Send(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->action(), suite::api::COMMIT);
  EXPECT_EQ(response->offset(), 100);
  EXPECT_EQ(response->digest(), made.digest);
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(client_->GetInfo(made.digest)->labels, (Labels{{"a", "b"}}));
  EXPECT_EQ(client_->Read(made.digest).value_or(""), made.bytes);
}

TEST_F(ContentServiceTest, OffsetsOfWrites) {
  const Made made = MakeBlob(100);
  auto write = [](WireWriter& writer, int64_t offset, absl::string_view data) {
    WriteContentRequest request;
    request.set_action(suite::api::WRITE);
    request.set_offset(offset);
    request.set_data(std::string(data));
    auto response = writer.Send(request);
    return response.ok() ? absl::StatusOr<int64_t>(response->offset()) : response.status();
  };
  auto writer = Open("r");
  EXPECT_EQ(*write(*writer, 0, made.bytes.substr(0, 40)), 40);
  EXPECT_EQ(*write(*writer, 40, ""), 40) << "no data: where it is";
  EXPECT_EQ(*write(*writer, 40, made.bytes.substr(40, 10)), 50);
  EXPECT_EQ(write(*writer, 49, "x").status().code(), StatusCode::kOutOfRange);
  writer = Open("r");
  EXPECT_EQ(writer->offset(), 50u) << "an error does not lose what is there";
  EXPECT_EQ(write(*writer, 51, "x").status().code(), StatusCode::kOutOfRange);
  writer = Open("r");
  EXPECT_EQ(*write(*writer, 0, made.bytes), 100) << "0 begins anew";
  EXPECT_EQ(writer->digest(), made.digest);
}

TEST_F(ContentServiceTest, SizesAndDigestsOfACommit) {
  const Made made = MakeBlob(100);
  auto commit = [&](uint64_t total, uint64_t size, const std::string& expected) {
    auto writer = Open("r", total);
    EXPECT_EQ(writer->offset(), count_++ == 0 ? 0u : 100u);
    if (writer->offset() == 0) {
      EXPECT_TRUE(writer->Write(made.bytes).ok());
    }
    return writer->Commit(size, expected).code();
  };
  EXPECT_EQ(commit(0, 99, ""), StatusCode::kFailedPrecondition);
  EXPECT_EQ(commit(0, 0, MakeBlob(1).digest), StatusCode::kFailedPrecondition);
  EXPECT_EQ(commit(0, 100, made.digest), StatusCode::kOk);
}

TEST_F(ContentServiceTest, StatusesOfIngests) {
  const Made made = MakeBlob(100);
  auto writer = Open("default/1/layer", 100, made.digest);
  ASSERT_TRUE(writer->Write(made.bytes.substr(0, 30)).ok());
  auto other = Open("other");
  auto status = client_->Status("default/1/layer");
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->ref, "default/1/layer");
  EXPECT_EQ(status->offset, 30u);
  EXPECT_EQ(status->total, 100u);
  EXPECT_LE(status->started, status->updated);
  EXPECT_THAT(*client_->ListStatuses(), SizeIs(2));
  auto some = client_->ListStatuses({"ref~=^default/"});
  ASSERT_THAT(*some, SizeIs(1));
  EXPECT_EQ(some->front().ref, "default/1/layer");
  EXPECT_TRUE(client_->Abort("other").ok());
  EXPECT_THAT(*client_->ListStatuses(), SizeIs(1));
}

TEST_F(ContentServiceTest, RangesOfReads) {
  const Made made = Held(1000);
  auto read = [&](int64_t offset, int64_t size) { return client_->Read(made.digest, offset, size); };
  EXPECT_EQ(*read(0, 0), made.bytes);
  EXPECT_EQ(*read(10, 20), made.bytes.substr(10, 20));
  EXPECT_EQ(*read(990, 20), made.bytes.substr(990));
  EXPECT_EQ(*read(990, 0), made.bytes.substr(990));
  EXPECT_EQ(*read(1000, 0), "");
  EXPECT_EQ(*read(5, -1), made.bytes.substr(5));
  EXPECT_EQ(*read(1, std::numeric_limits<int64_t>::max()), made.bytes.substr(1));
  EXPECT_EQ(*client_->Read(made.digest, -5, 3), made.bytes.substr(0, 3));
  for (int64_t offset : {int64_t{1001}, std::numeric_limits<int64_t>::max()}) {
    EXPECT_EQ(read(offset, 1).status().code(), StatusCode::kOutOfRange) << offset;
  }
}

TEST_F(ContentServiceTest, PiecesAreBounded) {
  const Made made = Held(3 * kReadPiece + 7);
  std::vector<size_t> pieces;
  EXPECT_EQ(*client_->Read(made.digest, 0, 0, &pieces), made.bytes);
  EXPECT_THAT(pieces, ElementsAre(kReadPiece, kReadPiece, kReadPiece, 7));
  pieces.clear();
  EXPECT_EQ(client_->Read(made.digest, 1, 32 << 10, &pieces)->size(), size_t{32 << 10});
  EXPECT_THAT(pieces, ElementsAre(32 << 10)) << "what containerd asks for is one message";
  auto writer = Open("r");
  EXPECT_EQ(writer->Write(std::string(containerd::kMaxMessageBytes, 'x')).code(),
            StatusCode::kResourceExhausted);
}

TEST_F(ContentServiceTest, ListStreamsWhatFiltersMatch) {
  for (int i = 0; i < 120; ++i) Held(8, i == 7 ? Labels{{"which", "seven"}} : Labels{});
  std::vector<int> messages;
  EXPECT_THAT(*client_->List({}, &messages), SizeIs(120));
  EXPECT_THAT(messages, ElementsAre(100, 20));
  auto seven = client_->List({"labels.which==seven"});
  ASSERT_THAT(*seven, SizeIs(1));
  EXPECT_THAT(*client_->List({"digest==" + seven->front().digest.ToString()}), SizeIs(1));
}

TEST_F(ContentServiceTest, OneOfManyWritersOfARefGetsIt) {
  constexpr int kWriters = 16;
  std::vector<absl::StatusOr<std::unique_ptr<WireWriter>>> writers;
  for (int i = 0; i < kWriters; ++i) writers.emplace_back(absl::UnknownError("not tried"));
  std::vector<std::thread> threads;
  for (int i = 0; i < kWriters; ++i) threads.emplace_back([&, i] { writers[i] = client_->OpenWriter("r"); });
  for (std::thread& thread : threads) thread.join();
  int got = 0;
  for (auto& writer : writers) {
    if (writer.ok()) {
      ++got;
    } else {
      EXPECT_EQ(writer.status().code(), StatusCode::kUnavailable) << writer.status();
      EXPECT_THAT(std::string(writer.status().message()), HasSubstr("locked"));
    }
  }
  EXPECT_EQ(got, 1);
}

TEST_F(ContentServiceTest, TheLaterOfTwoWritersOfABlobLearnsThatItExists) {
  const Made made = MakeBlob(100);
  auto late = Open("late", 100, made.digest);
  ASSERT_TRUE(late->Write(made.bytes.substr(0, 50)).ok());
  ASSERT_TRUE(client_->WriteBlob("early", made.bytes).ok());
  ASSERT_TRUE(late->Write(made.bytes.substr(50)).ok());
  EXPECT_EQ(late->Commit(100, made.digest).code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(*client_->ListStatuses(), IsEmpty());
}

TEST_F(ContentServiceTest, BytesInHandAreTakenThoughTheBlobIsKnownLazily) {
  auto writer = Open("r", lazy_.made.bytes.size());
  ASSERT_TRUE(writer->Write(lazy_.made.bytes).ok());
  EXPECT_TRUE(writer->Commit(lazy_.made.bytes.size(), lazy_.made.digest).ok());
  EXPECT_EQ(client_->Read(lazy_.made.digest).value_or(""), lazy_.made.bytes) << "without asking anybody";
}

TEST_F(ContentServiceTest, AClientThatGoesAwayLeavesAnIngestToGoOnWith) {
  const Made made = MakeBlob(100);
  auto writer = Open("r", 100, made.digest);
  ASSERT_TRUE(writer->Write(made.bytes.substr(0, 60)).ok());
  writer->Cancel();
  EXPECT_FALSE(writer->Close().ok());
  // The server learns of it a moment after the client: as clients of containerd do, try until it has.
  const absl::Time deadline = absl::Now() + support::kPatience;
  auto again = client_->OpenWriter("r", 100, made.digest);
  while (absl::IsUnavailable(again.status()) && absl::Now() < deadline) {
    again = client_->OpenWriter("r", 100, made.digest);
  }
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->offset(), 60u);
  ASSERT_TRUE((*again)->Write(made.bytes.substr(60)).ok());
  EXPECT_TRUE((*again)->Commit(100, made.digest).ok());
}

TEST_F(ContentServiceTest, AReadUnderWayOutlivesADelete) {
  const Made made = Held(8 << 20);  // more than fits what a connection takes unread
  grpc::ClientContext context;
  suite::api::ReadContentRequest request;
  request.set_digest(made.digest);
  auto stream = client_->stub().Read(&context, request);
  suite::api::ReadContentResponse response;
  ASSERT_TRUE(stream->Read(&response));
  std::string bytes = response.data();
  ASSERT_TRUE(client_->Delete(made.digest).ok());
  EXPECT_EQ(client_->Read(made.digest).status().code(), StatusCode::kNotFound);
  while (stream->Read(&response)) bytes += response.data();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(bytes == made.bytes);
}

TEST_F(ContentServiceTest, WritersDoNotWaitForReadsOfHeldBlobs) {
  const Made made = Held(8 << 20);  // more than fits what a connection takes unread
  suite::api::ReadContentRequest request;
  request.set_digest(made.digest);
  suite::api::ReadContentResponse response;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<suite::api::ReadContentResponse>>> streams;
  for (int i = 0; i < kIoThreads; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(client_->stub().Read(contexts.back().get(), request));
    ASSERT_TRUE(streams.back()->Read(&response));
  }
  EXPECT_TRUE(client_->WriteBlob("r", MakeBlob(10).bytes).ok());
  for (auto& context : contexts) context->TryCancel();
  for (auto& stream : streams) EXPECT_FALSE(stream->Finish().ok());
}

TEST_F(ContentServiceTest, AHundredWaitingReadsOfALazyBlobDelayNothingElse) {
  const Made made = Held(1000);
  constexpr int kReaders = 100;
  std::atomic<int> right = 0;
  std::vector<std::thread> readers;
  for (int i = 0; i < kReaders; ++i) {
    readers.emplace_back([&] {
      if (client_->Read(lazy_.made.digest).value_or("") == lazy_.made.bytes) ++right;
    });
  }
  EXPECT_TRUE(lazy_.gate.AwaitWaiting(kLazyThreads));
  EXPECT_TRUE(client_->GetInfo(lazy_.made.digest).ok());
  EXPECT_TRUE(client_->List().ok());
  EXPECT_EQ(client_->Read(made.digest).value_or(""), made.bytes);
  EXPECT_TRUE(client_->WriteBlob("r", MakeBlob(10).bytes).ok());
  EXPECT_TRUE(client_->Delete(made.digest).ok());
  EXPECT_EQ(right, 0);
  lazy_.gate.Open();
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(right, kReaders);
}

TEST_F(ContentServiceTest, ACancelledReadEnds) {
  grpc::ClientContext context;
  std::thread reader([&] {
    suite::api::ReadContentRequest request;
    request.set_digest(lazy_.made.digest);
    auto stream = client_->stub().Read(&context, request);
    suite::api::ReadContentResponse response;
    EXPECT_FALSE(stream->Read(&response));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  });
  EXPECT_TRUE(lazy_.gate.AwaitWaiting(1));
  context.TryCancel();
  reader.join();
  server_.reset();
  EXPECT_EQ(lazy_.cancelled, 1);
}

TEST_F(ContentServiceTest, EndingTheServerEndsWhatIsOpen) {
  auto writer = Open("r");
  ASSERT_TRUE(writer->Write("abc").ok());
  std::thread reader([&] { EXPECT_FALSE(client_->Read(lazy_.made.digest).ok()); });
  EXPECT_TRUE(lazy_.gate.AwaitWaiting(1));
  server_.reset();
  reader.join();
  EXPECT_FALSE(writer->Write("def").ok());
  writer.reset();
  Restart();
  EXPECT_EQ(Open("r")->offset(), 3u);
}

// What containerd would send, byte by byte: the numbers of the fields are the contract.
TEST(ContentWireFormatTest, FieldsHaveContainerdsNumbers) {
  auto bytes = [](const google::protobuf::Message& message) { return message.SerializeAsString(); };
  suite::api::Info info;
  info.set_digest("d");
  info.set_size(2);
  info.mutable_created_at()->set_seconds(1);
  info.mutable_updated_at()->set_nanos(2);
  (*info.mutable_labels())["k"] = "v";
  EXPECT_EQ(bytes(info),
            "\x0a\x01"
            "d\x10\x02\x1a\x02\x08\x01\x22\x02\x10\x02\x2a\x06\x0a\x01k\x12\x01v");
  suite::api::ReadContentRequest read;
  read.set_digest("d");
  read.set_offset(1);
  read.set_size(2);
  EXPECT_EQ(bytes(read),
            "\x0a\x01"
            "d\x10\x01\x18\x02");
  suite::api::ReadContentResponse piece;
  piece.set_offset(1);
  piece.set_data("x");
  EXPECT_EQ(bytes(piece), "\x08\x01\x12\x01x");
  suite::api::Status status;
  status.mutable_started_at()->set_seconds(1);
  status.mutable_updated_at()->set_seconds(2);
  status.set_ref("r");
  status.set_offset(3);
  status.set_total(4);
  status.set_expected("e");
  EXPECT_EQ(bytes(status),
            "\x0a\x02\x08\x01\x12\x02\x08\x02\x1a\x01r\x20\x03\x28\x04\x32\x01"
            "e");
  WriteContentRequest write;
  write.set_action(suite::api::COMMIT);
  write.set_ref("r");
  write.set_total(1);
  write.set_expected("e");
  write.set_offset(2);
  write.set_data("x");
  (*write.mutable_labels())["k"] = "v";
  EXPECT_EQ(bytes(write),
            "\x08\x02\x12\x01r\x18\x01\x22\x01"
            "e\x28\x02\x32\x01x\x3a\x06\x0a\x01k\x12\x01v");
  suite::api::WriteContentResponse answer;
  answer.set_action(suite::api::WRITE);
  answer.mutable_started_at()->set_seconds(1);
  answer.mutable_updated_at()->set_seconds(2);
  answer.set_offset(3);
  answer.set_total(4);
  answer.set_digest("d");
  EXPECT_EQ(bytes(answer),
            "\x08\x01\x12\x02\x08\x01\x1a\x02\x08\x02\x20\x03\x28\x04\x32\x01"
            "d");
  suite::api::ListContentRequest list;
  list.add_filters("f");
  EXPECT_EQ(bytes(list),
            "\x0a\x01"
            "f");
  EXPECT_EQ(std::string(suite::api::Content::service_full_name()), "containerd.services.content.v1.Content");
}

}  // namespace
}  // namespace lazyblob::contentservice

// The proxy between a client and an image service of our own, over real sockets.

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "daemon/cri_proxy_service.h"
#include "proto/cri.grpc.pb.h"
#include "tests/support/eventually.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

namespace api = runtime::v1;

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices)
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

grpc::ByteBuffer Buffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return {&slice, 1};
}

// An image service that knows no message: it answers each call's first request by a script.
class Backend final : public grpc::CallbackGenericService {
 public:
  struct Call {
    std::string method;
    std::string request;
    std::multimap<std::string, std::string> metadata;
    absl::Time deadline;
  };
  struct Answer {
    std::vector<std::string> messages;
    grpc::Status status;
    bool wait_for_cancel = false;
  };
  using Script = std::function<Answer(const Call&)>;

  Backend(const std::string& socket, Script script) : script_(std::move(script)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
    builder.SetMaxReceiveMessageSize(-1);
    builder.RegisterCallbackGenericService(this);
    server_ = builder.BuildAndStart();
  }
  ~Backend() override { server_->Shutdown(std::chrono::system_clock::now()); }

  absl::Notification cancelled;

 private:
  class Reactor final : public grpc::ServerGenericBidiReactor {
   public:
    Reactor(Backend* backend, grpc::GenericCallbackServerContext* context)
        : backend_(*backend), context_(*context) {
      StartRead(&request_);
    }
    void OnReadDone(bool ok) override {
      if (!ok) return;
      Call call{context_.method(), Bytes(request_), {}, absl::FromChrono(context_.deadline())};
      for (const auto& [key, value] : context_.client_metadata()) {
        call.metadata.emplace(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
      }
      answer_ = backend_.script_(call);
      context_.AddTrailingMetadata("x-trailer", "seen");
      if (answer_.wait_for_cancel) return EndIfCancelled();
      Next();
    }
    void OnWriteDone(bool) override { Next(); }
    void OnCancel() override { EndIfCancelled(); }
    void OnDone() override { delete this; }

   private:
    // Of the two that must have come, the script's word and the cancellation, the later one ends the call.
    void EndIfCancelled() {
      if (events_.fetch_add(1) == 0) return;
      backend_.cancelled.Notify();
      Finish(grpc::Status::CANCELLED);
    }
    void Next() {
      if (next_ == answer_.messages.size()) return Finish(answer_.status);
      message_ = Buffer(answer_.messages[next_++]);
      StartWrite(&message_);
    }
    Backend& backend_;
    std::atomic<int> events_{0};
    grpc::GenericCallbackServerContext& context_;
    grpc::ByteBuffer request_;
    grpc::ByteBuffer message_;
    Answer answer_;
    size_t next_ = 0;
  };

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    return new Reactor(this, context);
  }

  const Script script_;
  std::unique_ptr<grpc::Server> server_;
};

class CriProxyTest : public testing::Test {
 protected:
  CriProxyTest() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + dir_.File("front"), grpc::InsecureServerCredentials());
    builder.SetMaxReceiveMessageSize(16 << 20);
    builder.RegisterCallbackGenericService(proxy_->service());
    server_ = builder.BuildAndStart();
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    channel_ = grpc::CreateCustomChannel("unix:" + dir_.File("front"), grpc::InsecureChannelCredentials(),
                                         arguments);
  }
  ~CriProxyTest() override { server_->Shutdown(std::chrono::system_clock::now()); }

  void Serve(Backend::Script script) {
    backend_ = std::make_unique<Backend>(dir_.File("back"), std::move(script));
  }
  grpc::Status Pull(const std::string& image, const std::string& user, std::string* answer = nullptr) {
    grpc::ClientContext context;
    api::PullImageRequest request;
    request.mutable_image()->set_image(image);
    if (!user.empty()) request.mutable_auth()->set_username(user);
    api::PullImageResponse response;
    grpc::Status status = api::ImageService::NewStub(channel_)->PullImage(&context, request, &response);
    if (answer != nullptr) *answer = response.image_ref();
    return status;
  }
  // One message there, one back, nothing understood on the way.
  grpc::Status Raw(const std::string& method, const std::string& request, std::string* answer,
                   grpc::ClientContext* context) {
    grpc::GenericStub stub(channel_);
    grpc::ByteBuffer in = Buffer(request);
    grpc::ByteBuffer out;
    grpc::Status status;
    absl::Notification done;
    stub.UnaryCall(context, method, {}, &in, &out, [&](grpc::Status end) {
      status = std::move(end);
      done.Notify();
    });
    done.WaitForNotification();
    if (status.ok()) *answer = Bytes(out);
    return status;
  }
  std::string Known(const std::string& repository) {
    auto found = credentials_.LookupFor("reg.example", repository);
    return found.ok() && found->has_value() ? (*found)->username : "none";
  }

  support::TempDir dir_;
  CriCredentials credentials_;
  std::unique_ptr<CriProxy> proxy_ = CriProxy::Create(dir_.File("back"), &credentials_);
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

std::string Pulled(const std::string& ref) {
  api::PullImageResponse response;
  response.set_image_ref(ref);
  return response.SerializeAsString();
}

TEST_F(CriProxyTest, CredentialsAreKnownWhileThePullGoesOnAndAfterIt) {
  std::string during;
  Serve([&](const Backend::Call& call) {
    EXPECT_EQ(call.method, "/runtime.v1.ImageService/PullImage");
    during = Known("team/app");
    return Backend::Answer{{Pulled("sha256:1")}, grpc::Status::OK};
  });
  std::string ref;
  grpc::Status status = Pull("reg.example/team/app:1", "kubelet", &ref);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(ref, "sha256:1");
  EXPECT_EQ(during, "kubelet");
  EXPECT_EQ(Known("team/app"), "kubelet");
}

TEST_F(CriProxyTest, AFailedPullTeachesNothingAndItsStatusArrivesWhole) {
  Serve([](const Backend::Call&) {
    return Backend::Answer{{}, grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "no", "details\0x")};
  });
  grpc::Status status = Pull("reg.example/app", "kubelet");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(status.error_message(), "no");
  EXPECT_EQ(status.error_details(), "details\0x");
  EXPECT_EQ(Known("app"), "none");
}

TEST_F(CriProxyTest, EveryMethodOfBothVersionsPassesByteForByte) {
  Serve([](const Backend::Call& call) {
    EXPECT_EQ(call.metadata.count("x-mine"), 1u);
    EXPECT_LT(call.deadline, absl::Now() + absl::Minutes(2));
    return Backend::Answer{{absl::StrCat(call.method, " ", call.request)}, grpc::Status::OK};
  });
  std::string large(9 << 20, 'x');
  for (const std::string& method : {std::string("/runtime.v1.ImageService/ListImages"),
                                    std::string("/runtime.v1.ImageService/NotYetInvented"),
                                    std::string("/runtime.v1alpha2.ImageService/PullImage")}) {
    for (const std::string& request : {std::string("\xff\0no protobuf", 13), std::string(), large}) {
      grpc::ClientContext context;
      context.AddMetadata("x-mine", "1");
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
      std::string answer;
      grpc::Status status = Raw(method, request, &answer, &context);
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_TRUE(answer == absl::StrCat(method, " ", request));
      EXPECT_EQ(context.GetServerTrailingMetadata().count("x-trailer"), 1u);
    }
  }
}

TEST_F(CriProxyTest, OldKubeletsPullsAreLearntFromToo) {
  Serve([](const Backend::Call&) { return Backend::Answer{{Pulled("r")}, grpc::Status::OK}; });
  api::PullImageRequest request;
  request.mutable_image()->set_image("reg.example/old");
  request.mutable_auth()->set_username("old");
  grpc::ClientContext context;
  std::string answer;
  ASSERT_TRUE(
      Raw("/runtime.v1alpha2.ImageService/PullImage", request.SerializeAsString(), &answer, &context).ok());
  EXPECT_EQ(Known("old"), "old");
}

TEST_F(CriProxyTest, OtherServicesAreNotPassedOn) {
  std::atomic<int> calls{0};
  Serve([&](const Backend::Call&) {
    ++calls;
    return Backend::Answer{{}, grpc::Status::OK};
  });
  for (const char* method :
       {"/runtime.v1.RuntimeService/Exec", "/containerd.services.content.v1.Content/Read",
        "/runtime.v1.ImageServiceX/PullImage"}) {
    grpc::ClientContext context;
    std::string answer;
    EXPECT_EQ(Raw(method, "", &answer, &context).error_code(), grpc::StatusCode::UNIMPLEMENTED) << method;
  }
  EXPECT_EQ(calls, 0);
}

TEST_F(CriProxyTest, CancellingReachesTheImageService) {
  absl::Notification asked;
  Serve([&](const Backend::Call&) {
    asked.Notify();
    Backend::Answer answer;
    answer.wait_for_cancel = true;
    return answer;
  });
  grpc::ClientContext context;
  grpc::Status status;
  std::thread caller([&] {
    std::string answer;
    status = Raw("/runtime.v1.ImageService/PullImage", "", &answer, &context);
  });
  asked.WaitForNotification();
  context.TryCancel();
  caller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(backend_->cancelled.WaitForNotificationWithTimeout(support::kPatience));
}

// A streaming call: requests and answers in any number.
class Stream final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Stream(grpc::GenericStub* stub, grpc::ClientContext* context, const std::string& method) {
    stub->PrepareBidiStreamingCall(context, method, {}, this);
    request_ = Buffer("go");
    StartWrite(&request_);
    StartRead(&message_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    messages.push_back(Bytes(message_));
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& end) override {
    status = end;
    done.Notify();
  }
  std::vector<std::string> messages;
  grpc::Status status;
  absl::Notification done;

 private:
  grpc::ByteBuffer request_;
  grpc::ByteBuffer message_;
};

TEST_F(CriProxyTest, AStreamEndsWhenTheServerEndsItAlthoughTheClientCouldGoOn) {
  Serve([](const Backend::Call&) {
    return Backend::Answer{{"1", "2", "3"}, grpc::Status(grpc::StatusCode::OUT_OF_RANGE, "end")};
  });
  grpc::GenericStub stub(channel_);
  grpc::ClientContext context;
  Stream stream(&stub, &context, "/runtime.v1.ImageService/StreamImages");
  ASSERT_TRUE(stream.done.WaitForNotificationWithTimeout(support::kPatience));
  EXPECT_EQ(stream.messages, (std::vector<std::string>{"1", "2", "3"}));
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
}

TEST_F(CriProxyTest, NobodyThereIsUnavailableAndLaterItWorks) {
  EXPECT_EQ(Pull("reg.example/app", "u").error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Known("app"), "none");
  Serve([](const Backend::Call&) { return Backend::Answer{{Pulled("r")}, grpc::Status::OK}; });
  EXPECT_TRUE(support::Eventually([&] { return Pull("reg.example/app", "u").ok(); }));
}

TEST_F(CriProxyTest, ManyAtOnce) {
  Serve([](const Backend::Call& call) {
    api::PullImageRequest request;
    EXPECT_TRUE(request.ParseFromString(call.request));
    return Backend::Answer{{Pulled(request.image().image())}, grpc::Status::OK};
  });
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        std::string image = absl::StrCat("reg.example/app", t, "x", i);
        std::string ref;
        if (Pull(image, absl::StrCat("u", t), &ref).ok() && ref == image) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 16 * 50);
  EXPECT_EQ(Known("app7x49"), "u7");
}

}  // namespace
}  // namespace lazyblob::daemon

#include "contentservice/content_service.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "containerd/calls_service.h"
#include "proto/containerd_content.grpc.pb.h"

namespace lazyblob::contentservice {
namespace {

namespace api = ::containerd::services::content::v1;
using containerd::Call;
using containerd::ClampToWire;
using containerd::ClientGone;
using containerd::Guard;
using containerd::ToGrpc;
using google::protobuf::Empty;
using ListStream = containerd::ListStream<api::ListContentResponse>;

absl::StatusOr<base::Digest> ParseDigest(const std::string& text) {
  absl::StatusOr<base::Digest> digest = base::Digest::Parse(text);
  if (digest.ok()) return digest;
  return absl::InvalidArgumentError(
      absl::StrCat("\"", base::Printable(text), "\" is not the digest of a blob: sha256:<64 hex digits>"));
}

// Empty: not told.
absl::StatusOr<base::Digest> ParseExpected(const std::string& text) {
  if (text.empty()) return base::Digest();
  return ParseDigest(text);
}

uint64_t NotNegative(int64_t value) { return value > 0 ? static_cast<uint64_t>(value) : 0; }

std::string DigestText(const base::Digest& digest) { return digest.empty() ? "" : digest.ToString(); }

api::Info ToProto(const Info& info) {
  api::Info out;
  out.set_digest(info.digest.ToString());
  out.set_size(ClampToWire(info.size));
  *out.mutable_created_at() = containerd::ToProto(info.created);
  *out.mutable_updated_at() = containerd::ToProto(info.updated);
  for (const auto& [key, value] : info.labels) (*out.mutable_labels())[key] = value;
  return out;
}

api::Status ToProto(const IngestStatus& status) {
  api::Status out;
  *out.mutable_started_at() = containerd::ToProto(status.started);
  *out.mutable_updated_at() = containerd::ToProto(status.updated);
  out.set_ref(status.ref);
  out.set_offset(ClampToWire(status.offset));
  out.set_total(ClampToWire(status.total));
  out.set_expected(DigestText(status.expected));
  return out;
}

// The messages of one Read.
class ReadStream final : public grpc::ServerWriteReactor<api::ReadContentResponse> {
 public:
  explicit ReadStream(Content* content) : content_(*content) {}

  // What one message takes, where nothing has to be waited for.
  bool RunAtOnce(const base::Digest& digest, uint64_t offset, uint64_t size) {
    const auto room = [this](uint64_t bytes) -> absl::Span<uint8_t> {
      if (bytes > kReadPiece) return {};
      message_.mutable_data()->resize(bytes);
      return {reinterpret_cast<uint8_t*>(message_.mutable_data()->data()), bytes};
    };
    if (!content_.TryRead(digest, offset, size, room)) {
      message_.Clear();
      return false;
    }
    message_.set_offset(ClampToWire(offset));
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
    return true;
  }

  // On a thread of the service's. The stream may be gone on return.
  void Run(const base::Digest& digest, uint64_t offset, uint64_t size) {
    absl::Status status = Guard([&] { return Send(digest, offset, size); });
    if (!status.ok()) return Finish(ToGrpc(status));
    if (message_.data().empty()) return Finish(grpc::Status::OK);
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  }

 private:
  // All but the last message, which is left in message_.
  absl::Status Send(const base::Digest& digest, uint64_t offset, uint64_t size) {
    if (token_->cancelled()) return ClientGone();
    ASSIGN_OR_RETURN(Info info, content_.GetInfo(digest));
    if (offset > info.size) {
      return absl::OutOfRangeError(absl::StrCat(digest.ToString(), " has ", info.size,
                                                " bytes; a read at offset ", offset, " is past its end"));
    }
    uint64_t left = info.size - offset;
    if (size != 0) left = std::min(left, size);
    if (left == 0) return absl::OkStatus();
    message_.set_offset(ClampToWire(offset));
    auto sink = [&](absl::Span<const uint8_t> bytes) -> absl::Status {
      while (!bytes.empty()) {
        if (message_.data().size() == kReadPiece) RETURN_IF_ERROR(SendPiece());
        const size_t some = std::min(bytes.size(), kReadPiece - message_.data().size());
        if (some > left) return absl::InternalError("a read gave more than it was asked for");
        message_.mutable_data()->append(reinterpret_cast<const char*>(bytes.data()), some);
        bytes.remove_prefix(some);
        left -= some;
      }
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(content_.Read(digest, offset, left, sink, token_));
    if (left == 0) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(digest.ToString(), " ended ", left, " bytes too early"));
  }

  absl::Status SendPiece() {
    StartWrite(&message_);
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&written_));
    written_ = false;
    if (!write_ok_) return ClientGone();
    message_.set_offset(message_.offset() + static_cast<int64_t>(message_.data().size()));
    message_.mutable_data()->clear();
    return absl::OkStatus();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    written_ = true;
    write_ok_ = ok;
  }
  void OnCancel() override { token_->Cancel(); }
  void OnDone() override { delete this; }

  Content& content_;
  const std::shared_ptr<base::CancelToken> token_ = std::make_shared<base::CancelToken>();
  api::ReadContentResponse message_;
  absl::Mutex mutex_;
  bool written_ ABSL_GUARDED_BY(mutex_) = false;
  bool write_ok_ ABSL_GUARDED_BY(mutex_) = false;
};

// One Write: a message is read when the one before is answered. The ingest stays when the client goes away
// or an error ends the stream, and is free for the next writer before the client learns of the end.
class WriteStream final
    : public grpc::ServerBidiReactor<api::WriteContentRequest, api::WriteContentResponse> {
 public:
  WriteStream(Content* content, base::ThreadPool* pool) : content_(*content), pool_(*pool) {
    StartRead(&request_);
  }

 private:
  void OnReadDone(bool ok) override {
    if (ok) {
      pool_.Schedule([this] { Answer(); });
    } else {  // no more messages
      End(absl::OkStatus());
    }
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return End(ClientGone());
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

  void Answer() {
    absl::Status status = Guard([&] { return Handle(); });
    if (!status.ok()) return Release(status);
    if (request_.action() != api::COMMIT) return StartWrite(&response_);
    writer_.reset();
    StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
  }
  void End(const absl::Status& status) {
    pool_.Schedule([this, status] { Release(status); });
  }
  void Release(const absl::Status& status) {
    writer_.reset();
    Finish(ToGrpc(status));
  }

  absl::Status Handle() {
    ASSIGN_OR_RETURN(base::Digest expected, ParseExpected(request_.expected()));
    if (writer_ == nullptr) {
      ref_ = request_.ref();
      if (ref_.empty()) return absl::InvalidArgumentError("the first message of a Write names no ref");
      ASSIGN_OR_RETURN(writer_, content_.OpenWriter(ref_, NotNegative(request_.total()), expected));
    }
    if (!expected.empty()) {
      expected_ = expected;
      // Bytes in hand are better than a promise: only a blob that is here makes them superfluous.
      const bool in_hand = writer_->status().offset > 0 || !request_.data().empty();
      if (in_hand ? content_.HeldFile(expected).ok() : content_.GetInfo(expected).ok()) {
        writer_.reset();
        content_.Abort(ref_).IgnoreError();
        return absl::AlreadyExistsError(
            absl::StrCat("blob with expected digest ", expected.ToString(), " exists"));
      }
    }
    if (request_.total() > 0) total_ = NotNegative(request_.total());
    const IngestStatus status = writer_->status();
    response_.Clear();
    response_.set_action(request_.action());
    switch (request_.action()) {
      case api::STAT:
        *response_.mutable_started_at() = containerd::ToProto(status.started);
        *response_.mutable_updated_at() = containerd::ToProto(status.updated);
        response_.set_total(ClampToWire(total_));
        break;
      case api::WRITE:
      case api::COMMIT:
        return Write(status);
      default:
        return absl::InvalidArgumentError(absl::StrCat("ref ", base::Printable(ref_), ": action ",
                                                       static_cast<int>(request_.action()),
                                                       " is none of STAT, WRITE, COMMIT"));
    }
    response_.set_offset(ClampToWire(status.offset));
    response_.set_digest(writer_->digest().ToString());
    return absl::OkStatus();
  }

  absl::Status Write(const IngestStatus& status) {
    uint64_t offset = status.offset;
    if (request_.offset() > 0 && NotNegative(request_.offset()) != offset) {
      return absl::OutOfRangeError(absl::StrCat("ref ", base::Printable(ref_), ": write @", request_.offset(),
                                                " must occur at current offset ", offset));
    }
    if (request_.offset() <= 0 && offset > 0) {
      RETURN_IF_ERROR(writer_->Truncate(0));
      offset = 0;
    }
    const std::string& data = request_.data();
    if (!data.empty()) {
      RETURN_IF_ERROR(writer_->Append({reinterpret_cast<const uint8_t*>(data.data()), data.size()}));
      offset += data.size();
    }
    response_.set_offset(ClampToWire(offset));
    response_.set_digest(writer_->digest().ToString());
    if (request_.action() != api::COMMIT) return absl::OkStatus();
    return writer_->Commit(total_, expected_, {request_.labels().begin(), request_.labels().end()});
  }

  Content& content_;
  base::ThreadPool& pool_;
  api::WriteContentRequest request_;
  api::WriteContentResponse response_;
  std::unique_ptr<Writer> writer_;
  std::string ref_;
  uint64_t total_ = 0;
  base::Digest expected_;
};

class Service final : public ContentService, public api::Content::CallbackService {
 public:
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  explicit Service(Content* content) : content_(content) {}
  grpc::Service* service() override { return this; }

  Reactor* Info(Context* context, const api::InfoRequest* request, api::InfoResponse* response) override {
    if (const auto digest = ParseDigest(request->digest()); digest.ok()) {
      if (const auto info = content_->TryInfo(*digest)) {
        *response->mutable_info() = ToProto(*info);
        Reactor* const reactor = context->DefaultReactor();
        reactor->Finish(grpc::Status::OK);
        return reactor;
      }
    }
    return Call::Run(&calls_, [=, this](Call*) -> absl::Status {
      ASSIGN_OR_RETURN(base::Digest digest, ParseDigest(request->digest()));
      ASSIGN_OR_RETURN(contentservice::Info info, content_->GetInfo(digest));
      *response->mutable_info() = ToProto(info);
      return absl::OkStatus();
    });
  }

  Reactor* Update(Context*, const api::UpdateRequest* request, api::UpdateResponse* response) override {
    return Call::Run(&calls_, [=, this](Call*) -> absl::Status {
      contentservice::Info wanted;  // all else of an Info cannot be changed
      ASSIGN_OR_RETURN(wanted.digest, ParseDigest(request->info().digest()));
      wanted.labels = {request->info().labels().begin(), request->info().labels().end()};
      const auto& paths = request->update_mask().paths();
      ASSIGN_OR_RETURN(contentservice::Info info, content_->Update(wanted, {paths.begin(), paths.end()}));
      *response->mutable_info() = ToProto(info);
      return absl::OkStatus();
    });
  }

  grpc::ServerWriteReactor<api::ListContentResponse>* List(Context*,
                                                           const api::ListContentRequest* request) override {
    return ListStream::Run(&calls_, [this, request](ListStream* stream) {
      return content_->List({request->filters().begin(), request->filters().end()},
                            [&](const contentservice::Info& info) { return stream->Add(ToProto(info)); });
    });
  }

  Reactor* Delete(Context*, const api::DeleteContentRequest* request, Empty*) override {
    return Call::Run(&calls_, [=, this](Call*) -> absl::Status {
      ASSIGN_OR_RETURN(base::Digest digest, ParseDigest(request->digest()));
      return content_->Delete(digest);
    });
  }

  grpc::ServerWriteReactor<api::ReadContentResponse>* Read(Context*,
                                                           const api::ReadContentRequest* request) override {
    auto* stream = new ReadStream(content_);
    absl::StatusOr<base::Digest> digest = ParseDigest(request->digest());
    if (!digest.ok()) {
      stream->Finish(ToGrpc(digest.status()));
      return stream;
    }
    const uint64_t offset = NotNegative(request->offset()), size = NotNegative(request->size());
    if (stream->RunAtOnce(*digest, offset, size)) return stream;
    base::ThreadPool& pool = content_->HeldFile(*digest).ok() ? io_ : lazy_;
    pool.Schedule([stream, digest = *digest, offset, size] { stream->Run(digest, offset, size); });
    return stream;
  }

  Reactor* Status(Context*, const api::StatusRequest* request, api::StatusResponse* response) override {
    return Call::Run(&calls_, [=, this](Call*) -> absl::Status {
      ASSIGN_OR_RETURN(IngestStatus status, content_->Status(request->ref()));
      *response->mutable_status() = ToProto(status);
      return absl::OkStatus();
    });
  }

  Reactor* ListStatuses(Context*, const api::ListStatusesRequest* request,
                        api::ListStatusesResponse* response) override {
    return Call::Run(&calls_, [=, this](Call*) -> absl::Status {
      const auto& filters = request->filters();
      ASSIGN_OR_RETURN(std::vector<IngestStatus> statuses,
                       content_->ListStatuses({filters.begin(), filters.end()}));
      for (const IngestStatus& status : statuses) *response->add_statuses() = ToProto(status);
      return absl::OkStatus();
    });
  }

  grpc::ServerBidiReactor<api::WriteContentRequest, api::WriteContentResponse>* Write(Context*) override {
    return new WriteStream(content_, &writes_);
  }

  Reactor* Abort(Context*, const api::AbortRequest* request, Empty*) override {
    return Call::Run(&calls_, [=, this](Call*) { return content_->Abort(request->ref()); });
  }

 private:
  Content* const content_;
  base::ThreadPool lazy_{"lb-ct-lazy", kLazyThreads};
  base::ThreadPool io_{"lb-ct-io", kIoThreads};
  base::ThreadPool writes_{"lb-ct-writes", kWriteThreads};
  base::ThreadPool calls_{"lb-ct-calls", kCallThreads};
};

}  // namespace

std::unique_ptr<ContentService> ContentService::Create(Content* content) {
  return std::make_unique<Service>(content);
}

}  // namespace lazyblob::contentservice

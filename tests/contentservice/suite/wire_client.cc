#include "tests/contentservice/suite/wire_client.h"

#include <grpc/grpc.h>

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace lazyblob::contentservice::suite {
namespace {

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::Time FromProto(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

Info FromProto(const api::Info& info) {
  Info out;
  if (auto digest = base::Digest::Parse(info.digest()); digest.ok()) out.digest = *digest;
  out.size = static_cast<uint64_t>(info.size());
  out.labels = {info.labels().begin(), info.labels().end()};
  out.created = FromProto(info.created_at());
  out.updated = FromProto(info.updated_at());
  return out;
}

IngestStatus FromProto(const api::Status& status) {
  IngestStatus out;
  out.ref = status.ref();
  out.offset = static_cast<uint64_t>(status.offset());
  out.total = static_cast<uint64_t>(status.total());
  if (auto digest = base::Digest::Parse(status.expected()); digest.ok()) out.expected = *digest;
  out.started = FromProto(status.started_at());
  out.updated = FromProto(status.updated_at());
  return out;
}

}  // namespace

absl::StatusOr<api::WriteContentResponse> WireWriter::Send(const api::WriteContentRequest& request) {
  api::WriteContentResponse response;
  if (!stream_->Write(request) || !stream_->Read(&response)) {
    absl::Status status = Close();
    return status.ok() ? absl::InternalError("the stream ended without an answer") : status;
  }
  if (!response.digest().empty()) digest_ = response.digest();
  return response;
}

absl::StatusOr<IngestStatus> WireWriter::Status() {
  ASSIGN_OR_RETURN(api::WriteContentResponse response, Send({}));  // STAT is 0
  IngestStatus status;
  status.ref = ref_;
  status.offset = static_cast<uint64_t>(response.offset());
  status.total = static_cast<uint64_t>(response.total());
  status.started = FromProto(response.started_at());
  status.updated = FromProto(response.updated_at());
  return status;
}

absl::Status WireWriter::Write(absl::string_view bytes) {
  api::WriteContentRequest request;
  request.set_action(api::WRITE);
  request.set_offset(static_cast<int64_t>(offset_));
  request.set_data(std::string(bytes));
  ASSIGN_OR_RETURN(api::WriteContentResponse response, Send(request));
  if (response.offset() != static_cast<int64_t>(offset_ + bytes.size())) {
    return absl::InternalError("the answer's offset is wrong");
  }
  offset_ += bytes.size();
  return absl::OkStatus();
}

absl::Status WireWriter::Commit(uint64_t size, const std::string& expected, const Labels& labels) {
  api::WriteContentRequest request;
  request.set_action(api::COMMIT);
  request.set_total(static_cast<int64_t>(size));
  request.set_offset(static_cast<int64_t>(offset_));
  request.set_expected(expected);
  for (const auto& [key, value] : labels) (*request.mutable_labels())[key] = value;
  absl::Status status = Send(request).status();
  if (status.ok()) return Close();
  return status;
}

absl::Status WireWriter::Close() {
  if (closed_) return end_;
  closed_ = true;
  stream_->WritesDone();
  api::WriteContentResponse rest;
  while (stream_->Read(&rest)) {
  }
  end_ = FromGrpc(stream_->Finish());
  return end_;
}

WireClient::WireClient(const std::string& address) {
  // gRPC stays up until the process ends: it takes ten seconds to come down, now and then.
  static const bool kept = (grpc_init(), true);
  static_cast<void>(kept);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  stub_ = api::Content::NewStub(
      grpc::CreateCustomChannel("unix:" + address, grpc::InsecureChannelCredentials(), arguments));
}

absl::StatusOr<Info> WireClient::GetInfo(const std::string& digest) {
  grpc::ClientContext context;
  api::InfoRequest request;
  request.set_digest(digest);
  api::InfoResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Info(&context, request, &response)));
  return FromProto(response.info());
}

absl::StatusOr<Info> WireClient::Update(const std::string& digest, const Labels& labels,
                                        const std::vector<std::string>& paths) {
  grpc::ClientContext context;
  api::UpdateRequest request;
  request.mutable_info()->set_digest(digest);
  for (const auto& [key, value] : labels) (*request.mutable_info()->mutable_labels())[key] = value;
  for (const std::string& path : paths) request.mutable_update_mask()->add_paths(path);
  api::UpdateResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Update(&context, request, &response)));
  return FromProto(response.info());
}

absl::StatusOr<std::vector<Info>> WireClient::List(const std::vector<std::string>& filters,
                                                   std::vector<int>* messages) {
  grpc::ClientContext context;
  api::ListContentRequest request;
  for (const std::string& filter : filters) request.add_filters(filter);
  auto stream = stub_->List(&context, request);
  std::vector<Info> infos;
  api::ListContentResponse response;
  while (stream->Read(&response)) {
    if (messages != nullptr) messages->push_back(response.info_size());
    for (const api::Info& info : response.info()) infos.push_back(FromProto(info));
  }
  RETURN_IF_ERROR(FromGrpc(stream->Finish()));
  return infos;
}

absl::Status WireClient::Delete(const std::string& digest) {
  grpc::ClientContext context;
  api::DeleteContentRequest request;
  request.set_digest(digest);
  google::protobuf::Empty response;
  return FromGrpc(stub_->Delete(&context, request, &response));
}

absl::StatusOr<std::string> WireClient::Read(const std::string& digest, int64_t offset, int64_t size,
                                             std::vector<size_t>* pieces) {
  grpc::ClientContext context;
  api::ReadContentRequest request;
  request.set_digest(digest);
  request.set_offset(offset);
  request.set_size(size);
  auto stream = stub_->Read(&context, request);
  std::string bytes;
  api::ReadContentResponse response;
  while (stream->Read(&response)) {
    if (response.offset() != std::max<int64_t>(offset, 0) + static_cast<int64_t>(bytes.size())) {
      return absl::InternalError("the offset of a piece is wrong");
    }
    if (pieces != nullptr) pieces->push_back(response.data().size());
    bytes += response.data();
  }
  RETURN_IF_ERROR(FromGrpc(stream->Finish()));
  return bytes;
}

absl::StatusOr<IngestStatus> WireClient::Status(const std::string& ref) {
  grpc::ClientContext context;
  api::StatusRequest request;
  request.set_ref(ref);
  api::StatusResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Status(&context, request, &response)));
  return FromProto(response.status());
}

absl::StatusOr<std::vector<IngestStatus>> WireClient::ListStatuses(const std::vector<std::string>& filters) {
  grpc::ClientContext context;
  api::ListStatusesRequest request;
  for (const std::string& filter : filters) request.add_filters(filter);
  api::ListStatusesResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->ListStatuses(&context, request, &response)));
  std::vector<IngestStatus> statuses;
  for (const api::Status& status : response.statuses()) statuses.push_back(FromProto(status));
  return statuses;
}

absl::Status WireClient::Abort(const std::string& ref) {
  grpc::ClientContext context;
  api::AbortRequest request;
  request.set_ref(ref);
  google::protobuf::Empty response;
  return FromGrpc(stub_->Abort(&context, request, &response));
}

std::unique_ptr<WireWriter> WireClient::OpenStream() {
  std::unique_ptr<WireWriter> writer(new WireWriter);
  writer->stream_ = stub_->Write(&writer->context_);
  return writer;
}

absl::StatusOr<std::unique_ptr<WireWriter>> WireClient::OpenWriter(const std::string& ref, uint64_t total,
                                                                   const std::string& expected) {
  std::unique_ptr<WireWriter> writer = OpenStream();
  writer->ref_ = ref;
  api::WriteContentRequest request;
  request.set_ref(ref);
  request.set_total(static_cast<int64_t>(total));
  request.set_expected(expected);
  ASSIGN_OR_RETURN(api::WriteContentResponse response, writer->Send(request));
  writer->offset_ = static_cast<uint64_t>(response.offset());
  return writer;
}

absl::Status WireClient::WriteBlob(const std::string& ref, absl::string_view bytes, const Labels& labels) {
  ASSIGN_OR_RETURN(std::unique_ptr<WireWriter> writer,
                   OpenWriter(ref, bytes.size(), base::Digest::Of(bytes).ToString()));
  RETURN_IF_ERROR(writer->Write(bytes));
  return writer->Commit(bytes.size(), base::Digest::Of(bytes).ToString(), labels);
}

}  // namespace lazyblob::contentservice::suite

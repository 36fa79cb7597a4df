#include "tests/snapshotter/suite/wire_client.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "base/status.h"

namespace lazyblob::snapshotter::suite {
namespace {

namespace api = ::containerd::services::snapshots::v1;

// The name a proxy plugin happens to have.
constexpr char kName[] = "any-name";

template <typename Request>
void SetLabels(const Labels& labels, Request* request) {
  for (const auto& [key, value] : labels) (*request->mutable_labels())[key] = value;
}

template <typename Response>
std::vector<MountSpec> ToMounts(const Response& response) {
  std::vector<MountSpec> mounts;
  for (const auto& mount : response.mounts()) {
    mounts.push_back({mount.type(), mount.source(), {mount.options().begin(), mount.options().end()}});
  }
  return mounts;
}

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

template <typename Request>
Request ForKey(const std::string& key) {
  Request request;
  request.set_snapshotter(kName);
  request.set_key(key);
  return request;
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

Info FromProto(const api::Info& info) {
  Info out;
  out.name = info.name();
  out.parent = info.parent();
  out.kind = static_cast<Kind>(info.kind());
  out.labels = Labels(info.labels().begin(), info.labels().end());
  out.created = ToTime(info.created_at());
  out.updated = ToTime(info.updated_at());
  return out;
}

WireClient::WireClient(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(16 << 20);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  stub_ = Api::NewStub(
      grpc::CreateCustomChannel("unix:" + address, grpc::InsecureChannelCredentials(), arguments));
}

absl::StatusOr<std::vector<MountSpec>> WireClient::Prepare(const std::string& key, const std::string& parent,
                                                           const Labels& labels) {
  auto request = ForKey<api::PrepareSnapshotRequest>(key);
  request.set_parent(parent);
  SetLabels(labels, &request);
  grpc::ClientContext context;
  api::PrepareSnapshotResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Prepare(&context, request, &response)));
  return ToMounts(response);
}

absl::StatusOr<std::vector<MountSpec>> WireClient::View(const std::string& key, const std::string& parent,
                                                        const Labels& labels) {
  auto request = ForKey<api::ViewSnapshotRequest>(key);
  request.set_parent(parent);
  SetLabels(labels, &request);
  grpc::ClientContext context;
  api::ViewSnapshotResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->View(&context, request, &response)));
  return ToMounts(response);
}

absl::StatusOr<std::vector<MountSpec>> WireClient::Mounts(const std::string& key) {
  grpc::ClientContext context;
  api::MountsResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Mounts(&context, ForKey<api::MountsRequest>(key), &response)));
  return ToMounts(response);
}

absl::Status WireClient::Commit(const std::string& name, const std::string& key, const Labels& labels,
                                const std::string& parent) {
  auto request = ForKey<api::CommitSnapshotRequest>(key);
  request.set_name(name);
  request.set_parent(parent);
  SetLabels(labels, &request);
  grpc::ClientContext context;
  google::protobuf::Empty response;
  return FromGrpc(stub_->Commit(&context, request, &response));
}

absl::Status WireClient::Remove(const std::string& key) {
  grpc::ClientContext context;
  google::protobuf::Empty response;
  return FromGrpc(stub_->Remove(&context, ForKey<api::RemoveSnapshotRequest>(key), &response));
}

absl::StatusOr<Info> WireClient::Stat(const std::string& key) {
  grpc::ClientContext context;
  api::StatSnapshotResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Stat(&context, ForKey<api::StatSnapshotRequest>(key), &response)));
  return FromProto(response.info());
}

absl::StatusOr<Info> WireClient::Update(const Info& info, const std::vector<std::string>& paths) {
  api::UpdateSnapshotRequest request;
  request.set_snapshotter(kName);
  request.mutable_info()->set_name(info.name);
  request.mutable_info()->set_parent(info.parent);
  request.mutable_info()->set_kind(static_cast<api::Kind>(info.kind));
  SetLabels(info.labels, request.mutable_info());
  for (const std::string& path : paths) request.mutable_update_mask()->add_paths(path);
  grpc::ClientContext context;
  api::UpdateSnapshotResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Update(&context, request, &response)));
  return FromProto(response.info());
}

absl::StatusOr<std::vector<Info>> WireClient::List(const std::vector<std::string>& filters,
                                                   std::vector<int>* messages) {
  api::ListSnapshotsRequest request;
  request.set_snapshotter(kName);
  for (const std::string& filter : filters) request.add_filters(filter);
  grpc::ClientContext context;
  auto reader = stub_->List(&context, request);
  std::vector<Info> infos;
  api::ListSnapshotsResponse response;
  while (reader->Read(&response)) {
    if (messages != nullptr) messages->push_back(response.info_size());
    for (const api::Info& info : response.info()) infos.push_back(FromProto(info));
  }
  RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  return infos;
}

absl::StatusOr<Usage> WireClient::GetUsage(const std::string& key) {
  grpc::ClientContext context;
  api::UsageResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->Usage(&context, ForKey<api::UsageRequest>(key), &response)));
  return Usage{static_cast<uint64_t>(response.size()), static_cast<uint64_t>(response.inodes())};
}

absl::Status WireClient::Cleanup() {
  grpc::ClientContext context;
  api::CleanupRequest request;
  request.set_snapshotter(kName);
  google::protobuf::Empty response;
  return FromGrpc(stub_->Cleanup(&context, request, &response));
}

}  // namespace lazyblob::snapshotter::suite

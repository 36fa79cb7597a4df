#include "daemon/containerd_client.h"

#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/cond_var.h"
#include "base/file.h"
#include "base/status.h"
#include "proto/containerd_content.grpc.pb.h"
#include "proto/containerd_diff.grpc.pb.h"
#include "proto/containerd_images.grpc.pb.h"
#include "proto/containerd_introspection.grpc.pb.h"
#include "proto/containerd_leases.grpc.pb.h"
#include "proto/containerd_namespaces.grpc.pb.h"
#include "proto/containerd_version.grpc.pb.h"
#include "proto/snapshots.grpc.pb.h"

namespace lazyblob::daemon {
namespace {

namespace content = ::containerd::services::content::v1;
namespace diff = ::containerd::services::diff::v1;
namespace images = ::containerd::services::images::v1;
namespace introspection = ::containerd::services::introspection::v1;
namespace leases = ::containerd::services::leases::v1;
namespace namespaces = ::containerd::services::namespaces::v1;
namespace snapshots = ::containerd::services::snapshots::v1;
namespace types = ::containerd::types;
namespace version = ::containerd::services::version::v1;

// Of calls that ask nobody else; the others end when they are done or cancelled.
constexpr absl::Duration kShortCall = absl::Seconds(60);
constexpr size_t kPieceBytes = 1 << 20;  // of a blob per message; containerd takes 16 MiB
constexpr absl::Duration kFirstRetry = absl::Milliseconds(20);
constexpr absl::Duration kLastRetry = absl::Seconds(1);
constexpr int kMaxMessageBytes = 16 << 20;
constexpr size_t kMaxNamespaceBytes = 76;

absl::Status TryConnect(const std::string& path) {
  sockaddr_un address{};
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat("containerd's socket ", path, ": a socket's path has 107 bytes at most"));
  }
  base::UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    return absl::OkStatus();
  }
  absl::Status why = base::ErrnoStatus(errno, absl::StrCat("containerd's socket ", path));
  return absl::UnavailableError(
      absl::StrCat(why.message(), "; is containerd running? Name its socket with --containerd"));
}

// containerd's identifiers: letters and digits, with single '.', '_' or '-' between them.
absl::Status CheckNamespace(const std::string& name) {
  bool good = !name.empty() && name.size() <= kMaxNamespaceBytes;
  char before = '.';
  for (char c : name) {
    const bool separator = c == '.' || c == '_' || c == '-';
    good = good && (separator ? absl::ascii_isalnum(static_cast<unsigned char>(before))
                              : absl::ascii_isalnum(static_cast<unsigned char>(c)));
    before = c;
  }
  if (good && absl::ascii_isalnum(static_cast<unsigned char>(before))) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("namespace \"", base::Printable(name.substr(0, 100)),
                                                 "\" is not a name: letters and digits with single . _ - "
                                                 "between them, 76 bytes at most"));
}

types::Descriptor ToProto(const oci::Descriptor& descriptor) {
  types::Descriptor out;
  out.set_media_type(descriptor.media_type);
  out.set_digest(descriptor.digest.ToString());
  out.set_size(static_cast<int64_t>(descriptor.size));
  return out;
}

void CopyLabels(const ContainerdClient::Labels& labels,
                google::protobuf::Map<std::string, std::string>* out) {
  for (const auto& [key, value] : labels) (*out)[key] = value;
}

class Client final : public ContainerdClient {
 public:
  Client(std::string socket, std::string name_space, std::shared_ptr<base::CancelToken> cancel)
      : socket_(std::move(socket)), namespace_(std::move(name_space)), cancel_(std::move(cancel)) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
    // A channel of its own: gRPC shares connections between channels with equal arguments.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    auto channel =
        grpc::CreateCustomChannel("unix:" + socket_, grpc::InsecureChannelCredentials(), arguments);
    content_ = content::Content::NewStub(channel);
    diff_ = diff::Diff::NewStub(channel);
    images_ = images::Images::NewStub(channel);
    introspection_ = introspection::Introspection::NewStub(channel);
    leases_ = leases::Leases::NewStub(channel);
    namespaces_ = namespaces::Namespaces::NewStub(channel);
    snapshots_ = snapshots::Snapshots::NewStub(channel);
    version_ = version::Version::NewStub(channel);
  }

  absl::StatusOr<std::string> Version() override {
    google::protobuf::Empty request;
    version::VersionResponse response;
    RETURN_IF_ERROR(Call("Version", kShortCall, [&](grpc::ClientContext* context) {
      return version_->Version(context, request, &response);
    }));
    return response.version();
  }

  absl::StatusOr<std::vector<ContainerdPlugin>> Plugins() override {
    introspection::PluginsRequest request;
    introspection::PluginsResponse response;
    RETURN_IF_ERROR(Call("Plugins", kShortCall, [&](grpc::ClientContext* context) {
      return introspection_->Plugins(context, request, &response);
    }));
    std::vector<ContainerdPlugin> plugins;
    for (const auto& plugin : response.plugins()) {
      plugins.push_back({plugin.type(),
                         plugin.id(),
                         {plugin.exports().begin(), plugin.exports().end()},
                         {plugin.capabilities().begin(), plugin.capabilities().end()},
                         plugin.init_err().message()});
    }
    return plugins;
  }

  absl::StatusOr<std::vector<std::string>> Namespaces() override {
    namespaces::ListNamespacesRequest request;
    namespaces::ListNamespacesResponse response;
    RETURN_IF_ERROR(Call("list namespaces", kShortCall, [&](grpc::ClientContext* context) {
      return namespaces_->List(context, request, &response);
    }));
    std::vector<std::string> names;
    for (const auto& known : response.namespaces()) names.push_back(known.name());
    return names;
  }

  absl::StatusOr<std::string> CreateLease(absl::Duration lifetime) override {
    leases::CreateRequest request;
    leases::CreateResponse response;
    (*request.mutable_labels())["containerd.io/gc.expire"] =
        absl::FormatTime(absl::RFC3339_sec, absl::Now() + lifetime, absl::UTCTimeZone());
    request.set_id(absl::StrCat("lazyblob-", absl::ToUnixNanos(absl::Now()), "-", getpid()));
    RETURN_IF_ERROR(Call("create lease", kShortCall, [&](grpc::ClientContext* context) {
      return leases_->Create(context, request, &response);
    }));
    return response.lease().id();
  }

  void UseLease(const std::string& id) override { lease_ = id; }

  absl::Status DeleteLease(const std::string& id) override {
    leases::DeleteRequest request;
    request.set_id(id);
    google::protobuf::Empty response;
    absl::Status status = CallAnyway("delete lease", [&](grpc::ClientContext* context) {
      return leases_->Delete(context, request, &response);
    });
    return absl::IsNotFound(status) ? absl::OkStatus() : status;
  }

  absl::Status WriteContent(const std::string& ref, const oci::Descriptor& blob, const Labels& labels,
                            ContentSource source) override {
    for (absl::Duration wait = kFirstRetry;; wait = std::min(2 * wait, kLastRetry)) {
      bool opened = false;
      absl::Status status = WriteOnce(ref, blob, labels, source, &opened);
      if (absl::IsAlreadyExists(status)) return SetContentLabels(blob.digest, labels);
      // Somebody else writes it just now; unless it is containerd itself that is gone.
      if (!absl::IsUnavailable(status) || opened || !TryConnect(socket_).ok()) return status;
      RETURN_IF_ERROR(Pause(wait));
    }
  }

  absl::StatusOr<Labels> ContentLabels(const base::Digest& blob) override {
    content::InfoRequest request;
    request.set_digest(blob.ToString());
    content::InfoResponse response;
    RETURN_IF_ERROR(
        Call(absl::StrCat("content Info of ", request.digest()), kShortCall,
             [&](grpc::ClientContext* context) { return content_->Info(context, request, &response); }));
    return Labels(response.info().labels().begin(), response.info().labels().end());
  }

  absl::Status SetContentLabels(const base::Digest& blob, const Labels& labels) override {
    if (labels.empty()) return absl::OkStatus();
    content::UpdateRequest request;
    request.mutable_info()->set_digest(blob.ToString());
    CopyLabels(labels, request.mutable_info()->mutable_labels());
    for (const auto& [key, value] : labels) request.mutable_update_mask()->add_paths("labels." + key);
    content::UpdateResponse response;
    return Call(absl::StrCat("content Update of ", request.info().digest()), kShortCall,
                [&](grpc::ClientContext* context) { return content_->Update(context, request, &response); });
  }

  absl::Status DeleteContent(const base::Digest& blob) override {
    content::DeleteContentRequest request;
    request.set_digest(blob.ToString());
    google::protobuf::Empty response;
    const absl::Status status =
        Call(absl::StrCat("content Delete of ", request.digest()), kShortCall,
             [&](grpc::ClientContext* context) { return content_->Delete(context, request, &response); });
    return absl::IsNotFound(status) ? absl::OkStatus() : status;
  }

  absl::StatusOr<std::vector<std::string>> ImageNames() override {
    images::ListImagesRequest request;
    images::ListImagesResponse response;
    RETURN_IF_ERROR(Call("list images", kShortCall, [&](grpc::ClientContext* context) {
      return images_->List(context, request, &response);
    }));
    std::vector<std::string> names;
    for (const auto& image : response.images()) names.push_back(image.name());
    return names;
  }

  absl::Status PutImage(const std::string& name, const oci::Descriptor& target) override {
    images::Image image;
    image.set_name(name);
    *image.mutable_target() = ToProto(target);
    // Somebody may create or delete it between the two calls.
    absl::Status status;
    for (int attempt = 0; attempt < 5; ++attempt) {
      status = Call(absl::StrCat("create image ", name), kShortCall, [&](grpc::ClientContext* context) {
        images::CreateImageRequest request;
        *request.mutable_image() = image;
        images::CreateImageResponse response;
        return images_->Create(context, request, &response);
      });
      if (!absl::IsAlreadyExists(status)) return status;
      status = Call(absl::StrCat("update image ", name), kShortCall, [&](grpc::ClientContext* context) {
        images::UpdateImageRequest request;
        *request.mutable_image() = image;
        request.mutable_update_mask()->add_paths("target");
        images::UpdateImageResponse response;
        return images_->Update(context, request, &response);
      });
      if (!absl::IsNotFound(status)) return status;
    }
    return status;
  }

  absl::StatusOr<std::vector<ContainerdMount>> PrepareSnapshot(const std::string& snapshotter,
                                                               const std::string& key,
                                                               const std::string& parent,
                                                               const Labels& labels) override {
    snapshots::PrepareSnapshotRequest request;
    request.set_snapshotter(snapshotter);
    request.set_key(key);
    request.set_parent(parent);
    CopyLabels(labels, request.mutable_labels());
    snapshots::PrepareSnapshotResponse response;
    RETURN_IF_ERROR(
        Call(absl::StrCat("prepare snapshot in ", snapshotter), absl::InfiniteDuration(),
             [&](grpc::ClientContext* context) { return snapshots_->Prepare(context, request, &response); }));
    std::vector<ContainerdMount> mounts;
    for (const auto& mount : response.mounts()) {
      mounts.push_back(
          {mount.type(), mount.source(), mount.target(), {mount.options().begin(), mount.options().end()}});
    }
    return mounts;
  }

  absl::StatusOr<Labels> StatSnapshot(const std::string& snapshotter, const std::string& key) override {
    snapshots::StatSnapshotRequest request;
    request.set_snapshotter(snapshotter);
    request.set_key(key);
    snapshots::StatSnapshotResponse response;
    RETURN_IF_ERROR(
        Call(absl::StrCat("stat snapshot ", key, " in ", snapshotter), kShortCall,
             [&](grpc::ClientContext* context) { return snapshots_->Stat(context, request, &response); }));
    return Labels(response.info().labels().begin(), response.info().labels().end());
  }

  absl::Status CommitSnapshot(const std::string& snapshotter, const std::string& name, const std::string& key,
                              const Labels& labels) override {
    snapshots::CommitSnapshotRequest request;
    request.set_snapshotter(snapshotter);
    request.set_name(name);
    request.set_key(key);
    CopyLabels(labels, request.mutable_labels());
    google::protobuf::Empty response;
    return Call(
        absl::StrCat("commit snapshot ", name, " in ", snapshotter), absl::InfiniteDuration(),
        [&](grpc::ClientContext* context) { return snapshots_->Commit(context, request, &response); });
  }

  absl::Status RemoveSnapshot(const std::string& snapshotter, const std::string& key) override {
    snapshots::RemoveSnapshotRequest request;
    request.set_snapshotter(snapshotter);
    request.set_key(key);
    google::protobuf::Empty response;
    return CallAnyway(
        absl::StrCat("remove snapshot ", key, " in ", snapshotter),
        [&](grpc::ClientContext* context) { return snapshots_->Remove(context, request, &response); });
  }

  absl::StatusOr<base::Digest> ApplyDiff(const oci::Descriptor& layer,
                                         const std::vector<ContainerdMount>& mounts) override {
    diff::ApplyRequest request;
    *request.mutable_diff() = ToProto(layer);
    for (const ContainerdMount& mount : mounts) {
      types::Mount* out = request.add_mounts();
      out->set_type(mount.type);
      out->set_source(mount.source);
      out->set_target(mount.target);
      for (const std::string& option : mount.options) out->add_options(option);
    }
    diff::ApplyResponse response;
    RETURN_IF_ERROR(
        Call(absl::StrCat("unpack layer ", request.diff().digest()), absl::InfiniteDuration(),
             [&](grpc::ClientContext* context) { return diff_->Apply(context, request, &response); }));
    return base::Digest::Parse(response.applied().digest());
  }

 private:
  using Stream = grpc::ClientReaderWriter<content::WriteContentRequest, content::WriteContentResponse>;

  absl::Status Translate(absl::string_view what, const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        absl::StrCat("containerd at ", socket_, ": ", base::Printable(what), ": ",
                                     base::Printable(status.error_message())));
  }

  // From now, whatever the wall clock does.
  static gpr_timespec Within(absl::Duration limit) {
    return gpr_time_from_millis(absl::ToInt64Milliseconds(limit), GPR_TIMESPAN);
  }

  void Fill(grpc::ClientContext* context) const {
    context->AddMetadata("containerd-namespace", namespace_);
    if (!lease_.empty()) context->AddMetadata("containerd-lease", lease_);
  }

  absl::Status Call(absl::string_view what, absl::Duration limit,
                    absl::FunctionRef<grpc::Status(grpc::ClientContext*)> call) const {
    grpc::ClientContext context;
    Fill(&context);
    if (limit != absl::InfiniteDuration()) context.set_deadline(Within(limit));
    auto on_cancel = cancel_->OnCancel([&context] { context.TryCancel(); });
    return Translate(what, call(&context));
  }

  // What tidies up, and is done although the rest was cancelled.
  absl::Status CallAnyway(absl::string_view what,
                          absl::FunctionRef<grpc::Status(grpc::ClientContext*)> call) const {
    grpc::ClientContext context;
    Fill(&context);
    context.set_deadline(Within(kShortCall));
    return Translate(what, call(&context));
  }

  absl::Status Pause(absl::Duration wait) const {
    if (!base::SleepUnlessCancelled(wait, cancel_.get())) return absl::OkStatus();
    return absl::CancelledError("cancelled while another client of containerd writes the same blob");
  }

  struct Writing {
    std::unique_ptr<Stream> stream;
    bool opened = false;  // containerd has answered: nobody else writes this reference
    bool broken = false;  // the stream's own error tells why
  };

  // One message and its answer.
  static absl::StatusOr<content::WriteContentResponse> Exchange(Writing* writing,
                                                                const content::WriteContentRequest& request) {
    content::WriteContentResponse response;
    if (writing->stream->Write(request) && writing->stream->Read(&response)) return response;
    writing->broken = true;
    return absl::UnknownError("the stream ended");
  }

  // Everything between the opening of the stream and its end.
  absl::Status WriteStream(Writing* stream, const std::string& ref, const oci::Descriptor& blob,
                           const Labels& labels, ContentSource source) {
    content::WriteContentRequest open;
    open.set_action(content::STAT);
    open.set_ref(ref);
    open.set_total(static_cast<int64_t>(blob.size));
    open.set_expected(blob.digest.ToString());
    ASSIGN_OR_RETURN(content::WriteContentResponse state, Exchange(stream, open));
    stream->opened = true;
    if (state.offset() < 0 || static_cast<uint64_t>(state.offset()) > blob.size) {
      return absl::FailedPreconditionError(
          absl::StrCat("containerd holds ", state.offset(), " bytes of ", ref, ", which has ", blob.size));
    }
    uint64_t offset = static_cast<uint64_t>(state.offset());
    auto sink = [&](absl::string_view bytes) -> absl::Status {
      while (!bytes.empty()) {
        content::WriteContentRequest piece;
        piece.set_action(content::WRITE);
        piece.set_offset(static_cast<int64_t>(offset));
        piece.set_data(std::string(bytes.substr(0, kPieceBytes)));
        RETURN_IF_ERROR(Exchange(stream, piece).status());
        offset += piece.data().size();
        bytes.remove_prefix(piece.data().size());
      }
      return absl::OkStatus();
    };
    if (offset < blob.size) RETURN_IF_ERROR(source(offset, sink));
    content::WriteContentRequest commit;
    commit.set_action(content::COMMIT);
    commit.set_offset(static_cast<int64_t>(offset));
    commit.set_total(open.total());
    commit.set_expected(open.expected());
    CopyLabels(labels, commit.mutable_labels());
    return Exchange(stream, commit).status();
  }

  absl::Status WriteOnce(const std::string& ref, const oci::Descriptor& blob, const Labels& labels,
                         ContentSource source, bool* opened) {
    absl::Status inside;
    Writing writing;
    grpc::ClientContext context;
    grpc::Status end;
    {
      Fill(&context);
      auto on_cancel = cancel_->OnCancel([&context] { context.TryCancel(); });
      writing.stream = content_->Write(&context);
      inside = WriteStream(&writing, ref, blob, labels, source);
      if (inside.ok()) {
        writing.stream->WritesDone();
      } else if (!writing.broken) {
        context.TryCancel();
      }
      content::WriteContentResponse rest;
      while (writing.stream->Read(&rest)) {
      }
      end = writing.stream->Finish();
    }
    *opened = writing.opened;
    absl::Status status = inside;
    if (inside.ok() || writing.broken) {
      status = Translate(absl::StrCat("content Write of ", blob.digest.ToString()), end);
      if (status.ok() && writing.broken) {
        status = absl::InternalError(absl::StrCat("containerd at ", socket_, ": content Write of ",
                                                  blob.digest.ToString(), " ended without an answer"));
      }
    }
    // What was written does not become this blob: the next attempt begins anew.
    if (absl::IsFailedPrecondition(status) || absl::IsOutOfRange(status)) Abort(ref);
    return status;
  }

  void Abort(const std::string& ref) {
    CallAnyway("content Abort", [&](grpc::ClientContext* context) {
      content::AbortRequest request;
      request.set_ref(ref);
      google::protobuf::Empty response;
      return content_->Abort(context, request, &response);
    }).IgnoreError();
  }

  const std::string socket_;
  const std::string namespace_;
  const std::shared_ptr<base::CancelToken> cancel_;
  std::string lease_;
  std::unique_ptr<content::Content::Stub> content_;
  std::unique_ptr<diff::Diff::Stub> diff_;
  std::unique_ptr<images::Images::Stub> images_;
  std::unique_ptr<introspection::Introspection::Stub> introspection_;
  std::unique_ptr<leases::Leases::Stub> leases_;
  std::unique_ptr<namespaces::Namespaces::Stub> namespaces_;
  std::unique_ptr<snapshots::Snapshots::Stub> snapshots_;
  std::unique_ptr<version::Version::Stub> version_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ContainerdClient>> ContainerdClient::Connect(
    const std::string& socket, const std::string& name_space, std::shared_ptr<base::CancelToken> cancel) {
  RETURN_IF_ERROR(CheckNamespace(name_space));
  RETURN_IF_ERROR(TryConnect(socket));
  if (cancel == nullptr) cancel = std::make_shared<base::CancelToken>();
  return std::make_unique<Client>(socket, name_space, std::move(cancel));
}

}  // namespace lazyblob::daemon

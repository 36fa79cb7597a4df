#include "daemon/containerd_namespaces.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::daemon {
namespace {

constexpr char kAnyNamespace[] = "default";  // for what is not of one
constexpr absl::Duration kLease = absl::Hours(24);
constexpr absl::Duration kLeaseInUse = absl::Hours(1);

}  // namespace

absl::StatusOr<ContainerdNamespaces::ClientPtr> ContainerdNamespaces::Connect(
    const std::string& name_space) const {
  if (cancel_->cancelled()) return absl::CancelledError("the daemon is ending");
  ASSIGN_OR_RETURN(std::unique_ptr<ContainerdClient> client,
                   ContainerdClient::Connect(socket_, name_space, cancel_));
  return ClientPtr(std::move(client));
}

absl::StatusOr<ContainerdNamespaces::ClientPtr> ContainerdNamespaces::Client(const std::string& name_space) {
  {
    absl::MutexLock lock(&mutex_);
    if (auto found = clients_.find(name_space); found != clients_.end()) return found->second;
  }
  ASSIGN_OR_RETURN(ClientPtr client, Connect(name_space));
  absl::MutexLock lock(&mutex_);
  return clients_.emplace(name_space, std::move(client)).first->second;
}

absl::Status ContainerdNamespaces::Checked(const std::string& name_space, const absl::Status& status) {
  if (absl::IsUnavailable(status)) {
    absl::MutexLock lock(&mutex_);
    clients_.erase(name_space);
  }
  return status;
}

absl::StatusOr<std::vector<std::string>> ContainerdNamespaces::List() {
  ASSIGN_OR_RETURN(const ClientPtr client, Client(kAnyNamespace));
  absl::StatusOr<std::vector<std::string>> names = client->Namespaces();
  RETURN_IF_ERROR(Checked(kAnyNamespace, names.status()));
  return names;
}

absl::StatusOr<contentservice::Labels> ContainerdNamespaces::BlobLabels(const std::string& name_space,
                                                                        const base::Digest& digest) {
  ASSIGN_OR_RETURN(const ClientPtr client, Client(name_space));
  absl::StatusOr<ContainerdClient::Labels> labels = client->ContentLabels(digest);
  RETURN_IF_ERROR(Checked(name_space, labels.status()));
  return labels;
}

absl::Status ContainerdNamespaces::Drop(const std::string& name_space, const base::Digest& digest) {
  ASSIGN_OR_RETURN(const ClientPtr client, Client(name_space));
  return Checked(name_space, client->DeleteContent(digest));
}

absl::StatusOr<ContainerdNamespaces::ClientPtr> ContainerdNamespaces::HoldingClient(
    const std::string& name_space) {
  if (auto found = holders_.find(name_space); found != holders_.end()) {
    if (clock_->Monotonic() - found->second.since < kLeaseInUse) return found->second.client;
    holders_.erase(found);
  }
  Holder holder;
  ASSIGN_OR_RETURN(holder.client, Connect(name_space));
  ASSIGN_OR_RETURN(const std::string lease, holder.client->CreateLease(kLease));
  holder.client->UseLease(lease);
  holder.since = clock_->Monotonic();
  return holders_.emplace(name_space, std::move(holder)).first->second.client;
}

absl::Status ContainerdNamespaces::Hold(const std::string& name_space, const oci::Descriptor& blob,
                                        const contentservice::Labels& labels) {
  // containerd asks for bytes only when the store behind it does not know the blob.
  const auto none = [&](uint64_t, ContainerdClient::ContentSink) -> absl::Status {
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", blob.digest.ToString(), " is not lazy any more"));
  };
  const std::string ref = absl::StrCat("lazyblob-", blob.digest.ToString());
  absl::MutexLock lock(&hold_mutex_);
  for (bool again : {false, true}) {
    ASSIGN_OR_RETURN(const ClientPtr client, HoldingClient(name_space));
    const absl::Status status = client->WriteContent(ref, blob, labels, none);
    if (status.ok() || absl::IsFailedPrecondition(status)) return status;
    holders_.erase(name_space);
    // NotFound: somebody has deleted the lease.
    if (again || !absl::IsNotFound(status)) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ContainerdNamespaces::ImageNames() {
  ASSIGN_OR_RETURN(const std::vector<std::string> namespaces, List());
  std::vector<std::string> names;
  for (const std::string& name_space : namespaces) {
    ASSIGN_OR_RETURN(const ClientPtr client, Client(name_space));
    const absl::StatusOr<std::vector<std::string>> images = client->ImageNames();
    RETURN_IF_ERROR(Checked(name_space, images.status()));
    names.insert(names.end(), images->begin(), images->end());
  }
  return names;
}

}  // namespace lazyblob::daemon

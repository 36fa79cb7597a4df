#pragma once

// containerd's namespaces as one of its clients sees them. Connects when it is asked, and again when
// containerd has gone and come back.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "contentservice/namespaces.h"
#include "daemon/containerd_client.h"

namespace lazyblob::daemon {

// Thread-safe.
class ContainerdNamespaces final : public contentservice::Namespaces {
 public:
  explicit ContainerdNamespaces(std::string socket, const base::Clock* clock = &base::SystemClock())
      : socket_(std::move(socket)), clock_(clock) {}

  absl::StatusOr<std::vector<std::string>> List() override;
  absl::StatusOr<contentservice::Labels> BlobLabels(const std::string& name_space,
                                                    const base::Digest& digest) override;
  absl::Status Hold(const std::string& name_space, const oci::Descriptor& blob,
                    const contentservice::Labels& labels) override;
  absl::Status Drop(const std::string& name_space, const base::Digest& digest) override;
  // The names of the images of all namespaces.
  absl::StatusOr<std::vector<std::string>> ImageNames();

  // Ends what waits, and everything that is asked after it.
  void Cancel() { cancel_->Cancel(); }

 private:
  using ClientPtr = std::shared_ptr<ContainerdClient>;
  // What blobs are held with: its calls are made under a lease.
  struct Holder {
    ClientPtr client;
    absl::Duration since;  // monotonic; of the lease
  };

  absl::StatusOr<ClientPtr> Client(const std::string& name_space) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<ClientPtr> Connect(const std::string& name_space) const;
  absl::StatusOr<ClientPtr> HoldingClient(const std::string& name_space)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(hold_mutex_);
  // `status`; a connection that has broken is not used again.
  absl::Status Checked(const std::string& name_space, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::string socket_;
  const base::Clock* const clock_;
  const std::shared_ptr<base::CancelToken> cancel_ = std::make_shared<base::CancelToken>();
  absl::Mutex hold_mutex_;  // one blob is held at a time, under it: a lease is the client's
  std::map<std::string, Holder> holders_ ABSL_GUARDED_BY(hold_mutex_);
  absl::Mutex mutex_;
  std::map<std::string, ClientPtr> clients_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::daemon

#pragma once

// Upload sessions of the test registry, and manifests that are pushed. Thread-safe.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/digest.h"
#include "base/file.h"
#include "tests/support/internal/answer.h"
#include "tests/support/internal/http.h"
#include "tests/support/internal/registry_contents.h"
#include "tests/support/test_registry.h"
#include "tests/support/test_registry_uploads.h"

namespace lazyblob::support::internal {

class Uploads {
 public:
  // Told of body bytes as they come, and how long they were waited for.
  using OnBody = std::function<void(uint64_t bytes, absl::Duration gap)>;
  // One request to …/blobs/uploads/.
  struct Call {
    HttpConnection& connection;
    HttpRequest& request;
    const FaultAction& fault;
    std::string repository;
    std::string session;  // empty: a new one
    std::string host;     // of this listener
    std::string elsewhere;
    OnBody on_body;
  };

  explicit Uploads(RegistryContents* contents) : contents_(*contents) {}

  void Configure(UploadOptions options) ABSL_LOCKS_EXCLUDED(mutex_);
  UploadOptions options() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Requests whose bodies Handle reads itself.
  static bool ReadsBodyOf(const HttpRequest& request);

  // nullopt: the body broke off; the connection is of no use any more.
  std::optional<Answer> Handle(const Call& call) ABSL_LOCKS_EXCLUDED(mutex_);
  Answer PutManifest(const HttpRequest& request, const std::string& repository, const std::string& reference,
                     bool tell_subject) ABSL_LOCKS_EXCLUDED(mutex_);

  // A blob that is said to be there, and yet no manifest may name it until it is uploaded again.
  void MakeOrphan(absl::string_view repository, const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  void DropSessions() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t open_sessions() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Session {
    std::string id;
    std::string repository;
    std::string memory;
    std::string file;  // instead of memory
    base::UniqueFd fd;
    uint64_t size = 0;
    base::Hasher hasher;
    int chunks = 0;
    uint64_t state = 0;  // what the next Location has to carry
    bool short_chunk = false;
    absl::Mutex busy;  // held by the request that works on it
  };
  using SessionPtr = std::shared_ptr<Session>;

  Answer Open(const Call& call, const UploadOptions& options) ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Answer> Patch(const Call& call, const UploadOptions& options, const SessionPtr& session);
  std::optional<Answer> Commit(const Call& call, const UploadOptions& options, const SessionPtr& session);
  // Takes the body into the session; false: it broke off.
  bool TakeBody(const Call& call, const UploadOptions& options, Session* session, bool keep);
  SessionPtr Find(const Call& call) ABSL_LOCKS_EXCLUDED(mutex_);
  void Remove(const std::string& id) ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasChild(const std::string& repository, const std::string& digest, bool manifest) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Location and Range of the session as it is now.
  static void Describe(const Call& call, const UploadOptions& options, const Session& session,
                       Answer* answer);

  RegistryContents& contents_;
  mutable absl::Mutex mutex_;
  UploadOptions options_ ABSL_GUARDED_BY(mutex_);
  uint64_t started_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, SessionPtr> sessions_ ABSL_GUARDED_BY(mutex_);
  std::set<std::pair<std::string, std::string>> orphans_ ABSL_GUARDED_BY(mutex_);  // repository, digest
};

}  // namespace lazyblob::support::internal

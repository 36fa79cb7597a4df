#pragma once

// Just enough of an HTTP/1.1 server for a test registry: a listener, a thread per connection, and connections
// that can be broken by anybody at any time. Waiting is by poll(2) only, so that a break is noticed
// everywhere.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "tests/support/test_registry.h"

namespace lazyblob::support::internal {

struct HttpRequest {
  std::string method;
  std::string path;
  std::string query;
  HeaderList headers;  // names in lower case
  std::string body;
  uint64_t body_left = 0;  // bytes of the body that are still to be read
  bool keep_alive = true;

  // Value of the header (name in lower case), empty if absent.
  std::string Header(absl::string_view name) const;
  // Percent-decoded value of the first query field of that name; empty if absent.
  std::string QueryField(absl::string_view name) const;
};

// "a=b&c=d", percent- and plus-decoded.
std::vector<std::pair<std::string, std::string>> ParseForm(absl::string_view form);

// One accepted connection. Break() may be called by any thread, all else by the one that serves it.
class HttpConnection {
 public:
  HttpConnection(uint64_t id, bool cdn, base::UniqueFd fd);
  // Closes; with a reset when broken.
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  uint64_t id() const { return id_; }
  bool cdn() const { return cdn_; }

  // False: the peer closed, sent nonsense, or the connection was broken. Bodies of requests that `leaves`
  // picks are left for ReadBody.
  bool ReadRequest(HttpRequest* request, const std::function<bool(const HttpRequest&)>& leaves = {});
  // Hands over the body piece by piece, with the time that was waited for each. False: the peer closed,
  // paused for `idle_limit`, or `on_piece` said so; what is left of the body stays on the connection.
  bool ReadBody(HttpRequest* request, absl::Duration idle_limit,
                const std::function<bool(absl::string_view, absl::Duration)>& on_piece);
  // False: broken.
  bool Send(absl::string_view bytes);
  // Waits; false when the connection ended meanwhile.
  bool Wait(absl::Duration time);
  // What was sent so far arrives, then the peer gets a reset.
  void ResetAfterSent();
  // Closes our side, then waits for what the peer still says, so that the close is a clean one.
  void CloseCleanly();
  // No more bytes go either way; the thread that serves gives up and the peer gets a reset.
  void Break();

 private:
  bool Fill();
  bool SayContinue(const HttpRequest& request);
  bool Poll(short events, absl::Time until);

  const uint64_t id_;
  const bool cdn_;
  const base::UniqueFd fd_;
  const base::UniqueFd wake_;  // readable once broken
  std::atomic<bool> broken_{false};
  std::string buffer_;
};

// Accepts on one address and serves each connection on a thread of its own.
class HttpListener {
 public:
  using Serve = std::function<void(HttpConnection&)>;

  // `next_id` numbers the connections and is shared by listeners.
  HttpListener(const std::string& address, uint16_t port, bool cdn, std::atomic<uint64_t>* next_id,
               Serve serve);
  ~HttpListener();  // as Stop()

  // Breaks all connections and waits for all threads.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);
  void BreakConnections() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t open_connections() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint16_t port() const { return port_; }

 private:
  struct Worker {
    std::shared_ptr<HttpConnection> connection;
    std::thread thread;
    bool done = false;
  };

  void Accept() ABSL_LOCKS_EXCLUDED(mutex_);
  void JoinDone() ABSL_LOCKS_EXCLUDED(mutex_);

  const bool cdn_;
  std::atomic<uint64_t>* const next_id_;
  const Serve serve_;
  base::UniqueFd socket_;
  base::UniqueFd wake_;
  uint16_t port_ = 0;
  std::thread accept_thread_;
  mutable absl::Mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::support::internal

#include "registry/internal/http_transport.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/cond_var.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::registry::internal {
namespace {

constexpr size_t kMaxHeaderBytes = 64 << 10;
constexpr uint64_t kMaxCaFile = 16 << 20;
constexpr size_t kMaxIdleSlots = 128;  // over all hosts
// A server that knows nothing of "100 Continue" costs this.
constexpr absl::Duration kContinuePatience = absl::Milliseconds(500);

// The memory must outlive the transfer.
void SetBlob(CURL* easy, CURLoption option, const std::string& text) {
  curl_blob blob{const_cast<char*>(text.data()), text.size(), CURL_BLOB_NOCOPY};
  curl_easy_setopt(easy, option, &blob);
}

// Connections are shared by requests to one origin with the same TLS settings.
std::string PoolKey(const HttpRequest& request) {
  return request.tls == nullptr ? request.url.Origin()
                                : absl::StrCat(request.url.Origin(), " ", request.tls->id);
}

// One easy handle in its own multi handle, which holds the connection.
struct Slot {
  CURLM* multi = curl_multi_init();
  CURL* easy = curl_easy_init();

  Slot() = default;
  ~Slot() {
    curl_easy_cleanup(easy);
    curl_multi_cleanup(multi);
  }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  bool valid() const { return multi != nullptr && easy != nullptr; }
};

// One transfer: what libcurl's callbacks work on, all on the thread of Perform.
class Transfer {
 public:
  Transfer(const HttpRequest& request, ResponseHandler* handler, const HttpTransportOptions& options,
           const std::string& ca_pem)
      : request_(request), handler_(handler), clock_(*options.clock), options_(options), ca_pem_(ca_pem) {}

  absl::Status Run(Slot* slot, TransferTiming* timing);

 private:
  void Configure(CURL* easy, curl_slist* headers);
  void ConfigureTls(CURL* easy);
  absl::Status Drive(Slot* slot, CURLcode* result);
  absl::Status Explain(CURLcode result) const;
  size_t OnHeaderLine(absl::string_view line);
  size_t OnData(absl::Span<const uint8_t> data);
  size_t OnRead(absl::Span<uint8_t> out);
  void ConfigureBody(CURL* easy);
  absl::Duration Patience() const;
  bool Accept(absl::StatusOr<BodyAction> action);
  bool HeadersDone();

  static size_t HeaderCallback(char* data, size_t size, size_t count, void* self) {
    return static_cast<Transfer*>(self)->OnHeaderLine({data, size * count});
  }
  static size_t WriteCallback(char* data, size_t size, size_t count, void* self) {
    return static_cast<Transfer*>(self)->OnData({reinterpret_cast<const uint8_t*>(data), size * count});
  }
  static size_t ReadCallback(char* data, size_t size, size_t count, void* self) {
    return static_cast<Transfer*>(self)->OnRead({reinterpret_cast<uint8_t*>(data), size * count});
  }
  static int SeekCallback(void* self, curl_off_t offset, int origin);
  static curl_socket_t OpenSocket(void* self, curlsocktype purpose, curl_sockaddr* address);

  const HttpRequest& request_;
  ResponseHandler* const handler_;
  const base::Clock& clock_;
  const HttpTransportOptions& options_;
  const std::string& ca_pem_;  // what options_.ca_file holds
  std::string authorities_;
  HttpResponse response_;
  size_t header_bytes_ = 0;
  bool headers_done_ = false;
  bool stopped_ = false;
  bool refused_address_ = false;
  absl::Status failure_;
  absl::Duration last_activity_;
  absl::Duration in_handler_ = absl::ZeroDuration();
  uint64_t body_bytes_ = 0;
  uint64_t taken_ = 0;  // bytes of the request's body
  char error_text_[CURL_ERROR_SIZE] = {};
};

bool Transfer::Accept(absl::StatusOr<BodyAction> action) {
  if (!action.ok()) failure_ = action.status();
  if (action.ok() && *action == BodyAction::kStop) stopped_ = true;
  return failure_.ok() && !stopped_;
}

bool Transfer::HeadersDone() {
  headers_done_ = true;
  absl::string_view encoding = response_.Get("content-encoding");
  if (!encoding.empty() && !absl::EqualsIgnoreCase(encoding, "identity")) {
    failure_ =
        absl::DataLossError(absl::StrCat("Content-Encoding \"", base::Printable(encoding.substr(0, 40)),
                                         "\" although only identity was accepted"));
    return false;
  }
  return Accept(handler_->OnResponse(response_));
}

size_t Transfer::OnHeaderLine(absl::string_view line) {
  last_activity_ = clock_.Monotonic();
  size_t size = line.size();
  header_bytes_ += size;
  if (header_bytes_ > kMaxHeaderBytes) {
    failure_ = absl::DataLossError("response headers over 64 KiB");
    return 0;
  }
  if (headers_done_) return size;  // trailers
  line = absl::StripAsciiWhitespace(line);
  if (absl::StartsWith(line, "HTTP/")) {
    response_ = HttpResponse();
    size_t space = line.find(' ');
    int status = 0;
    if (space != absl::string_view::npos && absl::SimpleAtoi(line.substr(space + 1, 3), &status)) {
      response_.status = status;
    }
  } else if (line.empty()) {
    if (response_.status >= 200 && !HeadersDone()) return 0;
  } else if (size_t colon = line.find(':'); colon != absl::string_view::npos) {
    response_.headers.emplace_back(absl::AsciiStrToLower(absl::StripAsciiWhitespace(line.substr(0, colon))),
                                   std::string(absl::StripAsciiWhitespace(line.substr(colon + 1))));
  }
  return size;
}

size_t Transfer::OnData(absl::Span<const uint8_t> data) {
  if (data.empty()) return 0;
  body_bytes_ += data.size();
  absl::Duration before = clock_.Monotonic();
  bool more = Accept(handler_->OnBody(data));
  last_activity_ = clock_.Monotonic();
  in_handler_ += last_activity_ - before;
  return more ? data.size() : 0;
}

size_t Transfer::OnRead(absl::Span<uint8_t> out) {
  uint64_t left = request_.upload->length() - taken_;
  if (left == 0) return 0;
  out = out.subspan(0, std::min<uint64_t>(left, out.size()));
  absl::StatusOr<size_t> got = request_.upload->Read(out);
  last_activity_ = clock_.Monotonic();
  if (got.ok() && (*got == 0 || *got > out.size())) {
    got = absl::DataLossError(
        absl::StrCat("the bytes to send ended after ", taken_, " of ", request_.upload->length()));
  }
  if (!got.ok()) {
    failure_ = got.status();
    return CURL_READFUNC_ABORT;
  }
  taken_ += *got;
  return *got;
}

// libcurl goes back to send all once more when a connection that was used before breaks. Whether what was
// sent arrived is for the caller to find out.
int Transfer::SeekCallback(void* self, curl_off_t offset, int origin) {
  bool untouched = static_cast<Transfer*>(self)->taken_ == 0;
  return untouched && offset == 0 && origin == SEEK_SET ? CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

// Sockets are made here so that no child inherits them and so that a public name cannot lead to this machine.
curl_socket_t Transfer::OpenSocket(void* self, curlsocktype, curl_sockaddr* address) {
  auto* transfer = static_cast<Transfer*>(self);
  if (!transfer->request_.allow_local_address) {
    char text[INET6_ADDRSTRLEN] = {};
    if (address->family == AF_INET) {
      inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(&address->addr)->sin_addr, text, sizeof text);
    } else if (address->family == AF_INET6) {
      inet_ntop(AF_INET6, &reinterpret_cast<sockaddr_in6*>(&address->addr)->sin6_addr, text, sizeof text);
    }
    HostClass host_class = ClassifyHost(text);
    if (host_class == HostClass::kLoopback || host_class == HostClass::kLinkLocal) {
      transfer->refused_address_ = true;
      return CURL_SOCKET_BAD;
    }
  }
  curl_socket_t fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  // A host that is gone is noticed by what it does not acknowledge, also while an answer is awaited
  // patiently.
  auto limit = static_cast<unsigned>(absl::ToInt64Milliseconds(transfer->options_.stall_timeout));
  if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof limit);
  return fd;
}

void Transfer::ConfigureTls(CURL* easy) {
  const TlsSettings* tls = request_.tls.get();
  bool own_authorities = tls != nullptr && !tls->ca_pem.empty();
  if (own_authorities || !options_.ca_file.empty()) {
    const curl_version_info_data* build = curl_version_info(CURLVERSION_NOW);
    curl_easy_setopt(easy, CURLOPT_CAPATH, build->capath != nullptr ? build->capath : "/etc/ssl/certs");
  }
  if (own_authorities) {
    // libcurl takes one file or one blob.
    authorities_ = absl::StrCat(tls->ca_pem, "\n", ca_pem_);
    SetBlob(easy, CURLOPT_CAINFO_BLOB, authorities_);
  } else if (!options_.ca_file.empty()) {
    curl_easy_setopt(easy, CURLOPT_CAINFO, options_.ca_file.c_str());
  }
  if (tls == nullptr) return;
  if (tls->skip_verify) {
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 0L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 0L);
  }
  if (tls->client_cert_pem.empty()) return;
  SetBlob(easy, CURLOPT_SSLCERT_BLOB, tls->client_cert_pem);
  SetBlob(easy, CURLOPT_SSLKEY_BLOB, tls->client_key_pem);
}

void Transfer::Configure(CURL* easy, curl_slist* headers) {
  curl_easy_reset(easy);
  curl_easy_setopt(easy, CURLOPT_URL, request_.url.ToString().c_str());
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);  // a hung resolver must not hold up a cancelled call
  curl_easy_setopt(easy, CURLOPT_USERAGENT, options_.user_agent.c_str());
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_2TLS));
  curl_easy_setopt(easy, CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
  curl_easy_setopt(
      easy, CURLOPT_CONNECTTIMEOUT_MS,
      static_cast<long>(std::max<int64_t>(1, absl::ToInt64Milliseconds(options_.connect_timeout))));
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 128L << 10);
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPIDLE, 15L);
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPINTVL, 5L);
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error_text_);
  ConfigureTls(easy);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, &Transfer::OpenSocket);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, this);
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, &Transfer::HeaderCallback);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, this);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Transfer::WriteCallback);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, this);
  if (request_.method == "HEAD") curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
  ConfigureBody(easy);
}

void Transfer::ConfigureBody(CURL* easy) {
  if (request_.upload != nullptr) {
    curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(request_.upload->length()));
    curl_easy_setopt(easy, CURLOPT_READFUNCTION, &Transfer::ReadCallback);
    curl_easy_setopt(easy, CURLOPT_READDATA, this);
    curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, &Transfer::SeekCallback);
    curl_easy_setopt(easy, CURLOPT_SEEKDATA, this);
    curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, 512L << 10);
    curl_easy_setopt(easy, CURLOPT_EXPECT_100_TIMEOUT_MS,
                     static_cast<long>(absl::ToInt64Milliseconds(kContinuePatience)));
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request_.method.c_str());
  } else if (request_.method == "POST") {
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request_.body.size()));
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request_.body.c_str());
  } else if (request_.method != "GET" && request_.method != "HEAD") {
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request_.method.c_str());
  }
}

// How long nothing may happen.
absl::Duration Transfer::Patience() const {
  bool sent = request_.upload != nullptr && taken_ == request_.upload->length();
  return sent ? std::max(options_.stall_timeout, request_.answer_patience) : options_.stall_timeout;
}

// Runs the transfer to its end. An error is ours (cancelled, out of time, stalled); otherwise *result is
// libcurl's.
absl::Status Transfer::Drive(Slot* slot, CURLcode* result) {
  last_activity_ = clock_.Monotonic();
  absl::Duration give_up = absl::InfiniteDuration();  // after it was cancelled
  while (true) {
    int running = 0;
    if (CURLMcode code = curl_multi_perform(slot->multi, &running); code != CURLM_OK) {
      return absl::UnavailableError(curl_multi_strerror(code));
    }
    int left = 0;
    while (CURLMsg* message = curl_multi_info_read(slot->multi, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      *result = message->data.result;
      return absl::OkStatus();
    }
    if (running == 0) return absl::UnavailableError("the transfer ended without a result");
    absl::Duration now = clock_.Monotonic();
    if (request_.cancel != nullptr && request_.cancel->cancelled()) {
      give_up = std::min(give_up, now + request_.cancel_patience);
    }
    if (now >= give_up) return absl::CancelledError("cancelled");
    if (now >= request_.deadline) return absl::DeadlineExceededError("deadline reached");
    absl::Duration stalled_at = last_activity_ + Patience();
    if (now >= stalled_at) {
      return absl::UnavailableError(absl::StrCat("no byte for ", absl::FormatDuration(Patience())));
    }
    absl::Duration wait =
        std::min({request_.deadline - now, stalled_at - now, give_up - now, absl::Seconds(1)});
    int milliseconds = static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(wait, absl::Milliseconds(1))));
    if (CURLMcode code = curl_multi_poll(slot->multi, nullptr, 0, milliseconds, nullptr); code != CURLM_OK) {
      return absl::UnavailableError(curl_multi_strerror(code));
    }
  }
}

absl::Status Transfer::Explain(CURLcode result) const {
  if (result == CURLE_OK) {
    if (!headers_done_) return absl::DataLossError("no complete HTTP response");
    return absl::OkStatus();
  }
  std::string text = base::Printable(error_text_[0] != '\0' ? error_text_ : curl_easy_strerror(result));
  if (refused_address_) {
    return absl::PermissionDeniedError(
        absl::StrCat(request_.url.HostForMessages(),
                     " is an address of this machine or its link; refused (see allow_private_redirects)"));
  }
  switch (result) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_ISSUER_ERROR:
      return absl::FailedPreconditionError(absl::StrCat("TLS: ", text));
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
      return absl::InvalidArgumentError(text);
    case CURLE_SEND_FAIL_REWIND:
      return absl::UnavailableError("the connection broke while the body was sent");
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
      return absl::DataLossError(text);
    case CURLE_OUT_OF_MEMORY:  // what libcurl calls a header line beyond its own limit, too
      if (!headers_done_) return absl::DataLossError("response headers over 64 KiB");
      return absl::UnavailableError(text);
    case CURLE_SSL_CONNECT_ERROR:
      if (!absl::StrContains(text, "wrong version number")) return absl::UnavailableError(text);
      return absl::FailedPreconditionError(
          absl::StrCat("TLS: ", text, " (does it speak plain http? see --plain-http)"));
    default:
      return absl::UnavailableError(text);
  }
}

absl::Status Transfer::Run(Slot* slot, TransferTiming* timing) {
  curl_slist* headers = nullptr;
  absl::Cleanup free_headers = [&headers] { curl_slist_free_all(headers); };
  for (const auto& [name, value] : request_.headers) {
    std::string line = absl::StrCat(name, ": ", value);
    if (line.find_first_of(std::string("\r\n\0", 3)) != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("header ", base::Printable(name), " holds a line break"));
    }
    headers = curl_slist_append(headers, line.c_str());
  }
  // libcurl would call nothing a form.
  if (request_.method == "POST" && request_.body.empty())
    headers = curl_slist_append(headers, "Content-Type:");
  headers = curl_slist_append(headers, "Accept-Encoding: identity");
  headers = curl_slist_append(headers, request_.expect_continue ? "Expect: 100-continue" : "Expect:");
  Configure(slot->easy, headers);

  base::CancelToken::Registration wake =
      request_.cancel == nullptr ? base::CancelToken::Registration()
                                 : request_.cancel->OnCancel([slot] { curl_multi_wakeup(slot->multi); });
  if (CURLMcode code = curl_multi_add_handle(slot->multi, slot->easy); code != CURLM_OK) {
    return absl::UnavailableError(curl_multi_strerror(code));
  }
  CURLcode result = CURLE_OK;
  absl::Status driven = Drive(slot, &result);
  curl_off_t sent = 0;
  curl_off_t first = 0;
  curl_off_t total = 0;
  curl_easy_getinfo(slot->easy, CURLINFO_PRETRANSFER_TIME_T, &sent);
  curl_easy_getinfo(slot->easy, CURLINFO_STARTTRANSFER_TIME_T, &first);
  curl_easy_getinfo(slot->easy, CURLINFO_TOTAL_TIME_T, &total);
  curl_multi_remove_handle(slot->multi, slot->easy);
  if (timing != nullptr && headers_done_) {
    timing->first_byte = absl::Microseconds(std::max<curl_off_t>(0, first - sent));
    timing->body = std::max(absl::Microseconds(std::max<curl_off_t>(0, total - first)) - in_handler_,
                            absl::ZeroDuration());
    timing->body_bytes = body_bytes_;
  }
  if (!failure_.ok()) return failure_;
  if (stopped_) return absl::OkStatus();
  if (!driven.ok()) return driven;
  return Explain(result);
}

bool ProxyConfigured() {
  for (const char* name : {"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return true;
  }
  return false;
}

class HttpTransport final : public Transport {
 public:
  explicit HttpTransport(HttpTransportOptions options)
      : options_(std::move(options)),
        // A file that cannot be read is an error of the requests that need it alone.
        ca_pem_(base::ReadFile(options_.ca_file, kMaxCaFile).value_or("")),
        behind_proxy_(ProxyConfigured()) {}

  absl::Status Perform(const HttpRequest& request, ResponseHandler* handler, TransferTiming* timing) override
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Pool {
    std::vector<std::unique_ptr<Slot>> idle;  // most recently used last
    int open = 0;                             // idle and busy
    absl::Duration last_used;
  };

  absl::StatusOr<std::unique_ptr<Slot>> Acquire(const HttpRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  void Release(const std::string& origin, std::unique_ptr<Slot> slot) ABSL_LOCKS_EXCLUDED(mutex_);

  const HttpTransportOptions options_;
  const std::string ca_pem_;
  // Behind a proxy the addresses we connect to are the proxy's: names are then for the proxy to judge.
  const bool behind_proxy_;
  absl::Mutex mutex_;
  base::CondVar changed_;  // a connection is free, here or to be made; or somebody gives up
  std::map<std::string, Pool> pools_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
};

absl::StatusOr<std::unique_ptr<Slot>> HttpTransport::Acquire(const HttpRequest& request) {
  base::CancelToken::Registration wake =
      request.cancel == nullptr ? base::CancelToken::Registration() : request.cancel->OnCancel([this] {
        absl::MutexLock lock(&mutex_);  // so that one who is about to wait sees it
        changed_.SignalAll();
      });
  absl::MutexLock lock(&mutex_);
  std::string origin = PoolKey(request);
  auto cancelled = [&] { return request.cancel != nullptr && request.cancel->cancelled(); };
  auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Pool& pool = pools_[origin];
    return !pool.idle.empty() || pool.open < options_.max_connections_per_host || cancelled();
  };
  changed_.AwaitFor(&mutex_, ready, request.deadline - options_.clock->Monotonic());
  if (cancelled()) return absl::CancelledError("cancelled");
  if (!ready()) return absl::DeadlineExceededError("deadline reached while waiting for a free connection");
  Pool& pool = pools_[origin];
  if (!pool.idle.empty()) {
    std::unique_ptr<Slot> slot = std::move(pool.idle.back());
    pool.idle.pop_back();
    --idle_;
    return slot;
  }
  auto slot = std::make_unique<Slot>();
  if (!slot->valid()) return absl::ResourceExhaustedError("out of memory or file descriptors");
  curl_multi_setopt(slot->multi, CURLMOPT_MAXCONNECTS, 1L);
  ++pool.open;
  return slot;
}

void HttpTransport::Release(const std::string& origin, std::unique_ptr<Slot> slot) {
  std::unique_ptr<Slot> dropped;  // closed without the lock
  absl::MutexLock lock(&mutex_);
  Pool& pool = pools_[origin];
  pool.idle.push_back(std::move(slot));
  changed_.SignalAll();
  pool.last_used = options_.clock->Monotonic();
  if (++idle_ <= kMaxIdleSlots) return;
  auto oldest = pools_.end();
  for (auto it = pools_.begin(); it != pools_.end(); ++it) {
    bool candidate = !it->second.idle.empty();
    if (candidate && (oldest == pools_.end() || it->second.last_used < oldest->second.last_used)) oldest = it;
  }
  dropped = std::move(oldest->second.idle.front());
  oldest->second.idle.erase(oldest->second.idle.begin());
  --idle_;
  if (--oldest->second.open == 0) pools_.erase(oldest);
}

absl::Status HttpTransport::Perform(const HttpRequest& request, ResponseHandler* handler,
                                    TransferTiming* timing) {
  if (request.cancel != nullptr && request.cancel->cancelled()) return absl::CancelledError("cancelled");
  ASSIGN_OR_RETURN(std::unique_ptr<Slot> slot, Acquire(request));
  HttpRequest judged = request;
  judged.allow_local_address = request.allow_local_address || behind_proxy_;
  absl::Status status = Transfer(judged, handler, options_, ca_pem_).Run(slot.get(), timing);
  Release(PoolKey(request), std::move(slot));
  return status;
}

}  // namespace

std::unique_ptr<Transport> MakeHttpTransport(HttpTransportOptions options) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  return std::make_unique<HttpTransport>(std::move(options));
}

}  // namespace lazyblob::registry::internal

#include "tests/support/internal/http.h"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace lazyblob::support::internal {
namespace {

constexpr size_t kMaxHead = 1 << 20;
constexpr uint64_t kMaxBody = 64 << 20;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "test registry: %s: %s\n", what, std::strerror(errno));
  std::abort();
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string PercentDecode(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+') {
      out.push_back(' ');
    } else if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
               HexDigit(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2])));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

bool ParseHead(absl::string_view head, HttpRequest* request) {
  const std::vector<absl::string_view> lines = absl::StrSplit(head, "\r\n");
  const std::vector<absl::string_view> words = absl::StrSplit(lines[0], ' ');
  if (words.size() != 3 || !absl::StartsWith(words[2], "HTTP/1.")) return false;
  request->method = std::string(words[0]);
  const std::pair<absl::string_view, absl::string_view> target =
      absl::StrSplit(words[1], absl::MaxSplits('?', 1));
  request->path = std::string(target.first);
  request->query = std::string(target.second);
  request->keep_alive = words[2] == "HTTP/1.1";
  for (size_t i = 1; i < lines.size(); ++i) {
    const size_t colon = lines[i].find(':');
    if (colon == absl::string_view::npos) return false;
    request->headers.emplace_back(absl::AsciiStrToLower(lines[i].substr(0, colon)),
                                  std::string(absl::StripAsciiWhitespace(lines[i].substr(colon + 1))));
  }
  if (absl::EqualsIgnoreCase(request->Header("connection"), "close")) request->keep_alive = false;
  return true;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> ParseForm(absl::string_view form) {
  std::vector<std::pair<std::string, std::string>> fields;
  for (const absl::string_view field : absl::StrSplit(form, '&', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(field, absl::MaxSplits('=', 1));
    fields.emplace_back(PercentDecode(parts.first), PercentDecode(parts.second));
  }
  return fields;
}

std::string HttpRequest::Header(absl::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

std::string HttpRequest::QueryField(absl::string_view name) const {
  for (const auto& [key, value] : ParseForm(query)) {
    if (key == name) return value;
  }
  return {};
}

HttpConnection::HttpConnection(uint64_t id, bool cdn, base::UniqueFd fd)
    : id_(id), cdn_(cdn), fd_(std::move(fd)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!wake_.valid()) Die("eventfd");
}

HttpConnection::~HttpConnection() {
  if (!broken_.load()) return;
  // Connecting to "nowhere" disconnects at once: the peer gets a reset.
  sockaddr nowhere{};
  nowhere.sa_family = AF_UNSPEC;
  connect(fd_.get(), &nowhere, sizeof nowhere);
}

bool HttpConnection::Poll(short events, absl::Time until) {
  while (!broken_.load()) {
    const absl::Duration left = until - absl::Now();
    if (left <= absl::ZeroDuration()) return true;
    pollfd poll_fds[2] = {{fd_.get(), events, 0}, {wake_.get(), POLLIN, 0}};
    const auto timeout = static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Seconds(1)))) + 1;
    const int ready = poll(poll_fds, 2, timeout);
    if (ready < 0 && errno != EINTR) return false;
    if (ready > 0) return !broken_.load() && (poll_fds[0].revents & (POLLERR | POLLNVAL)) == 0;
  }
  return false;
}

bool HttpConnection::Fill() {
  char piece[16 << 10];
  while (true) {
    const ssize_t got = recv(fd_.get(), piece, sizeof piece, MSG_DONTWAIT);
    if (got > 0) {
      buffer_.append(piece, static_cast<size_t>(got));
      return true;
    }
    if (got == 0) return false;
    if (errno == EINTR) continue;
    if (errno != EAGAIN || !Poll(POLLIN, absl::InfiniteFuture())) return false;
  }
}

bool HttpConnection::ReadRequest(HttpRequest* request,
                                 const std::function<bool(const HttpRequest&)>& leaves) {
  *request = HttpRequest();
  size_t end = 0;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    // A TLS hello is no request: clients that try TLS first are told at once.
    if (!buffer_.empty() && !absl::ascii_isupper(static_cast<unsigned char>(buffer_[0]))) return false;
    if (buffer_.size() > kMaxHead || !Fill()) return false;
  }
  if (!ParseHead(absl::string_view(buffer_).substr(0, end), request)) return false;
  buffer_.erase(0, end + 4);
  uint64_t length = 0;
  if (const std::string text = request->Header("content-length"); !text.empty()) {
    if (!absl::SimpleAtoi(text, &length)) return false;
  }
  request->body_left = length;
  if (leaves && leaves(*request)) return !broken_.load();
  if (length > kMaxBody || !SayContinue(*request)) return false;
  while (buffer_.size() < length) {
    if (!Fill()) return false;
  }
  request->body_left = 0;
  request->body = buffer_.substr(0, length);
  buffer_.erase(0, length);
  return !broken_.load();
}

bool HttpConnection::SayContinue(const HttpRequest& request) {
  const bool awaited = absl::EqualsIgnoreCase(request.Header("expect"), "100-continue");
  return !awaited || Send("HTTP/1.1 100 Continue\r\n\r\n");
}

bool HttpConnection::ReadBody(HttpRequest* request, absl::Duration idle_limit,
                              const std::function<bool(absl::string_view, absl::Duration)>& on_piece) {
  if (request->body_left > 0 && !SayContinue(*request)) return false;
  std::string piece(256 << 10, '\0');
  absl::Time last = absl::Now();
  while (request->body_left > 0) {
    size_t got = std::min<uint64_t>(buffer_.size(), request->body_left);
    if (got > 0) {
      got = std::min(got, piece.size());
      piece.replace(0, got, buffer_, 0, got);
      buffer_.erase(0, got);
    } else {
      const absl::Time limit = last + idle_limit;
      const ssize_t received =
          recv(fd_.get(), piece.data(), std::min<uint64_t>(piece.size(), request->body_left), MSG_DONTWAIT);
      if (received == 0) return false;
      if (received < 0) {
        if (errno != EAGAIN && errno != EINTR) return false;
        if (absl::Now() >= limit || !Poll(POLLIN, limit)) return false;
        continue;
      }
      got = static_cast<size_t>(received);
    }
    const absl::Time now = absl::Now();
    request->body_left -= got;
    if (!on_piece(absl::string_view(piece).substr(0, got), now - last)) return false;
    last = absl::Now();
  }
  return !broken_.load();
}

bool HttpConnection::Send(absl::string_view bytes) {
  while (!bytes.empty()) {
    if (broken_.load()) return false;
    const ssize_t sent = send(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
    } else if (errno == EAGAIN) {
      if (!Poll(POLLOUT, absl::InfiniteFuture())) return false;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

bool HttpConnection::Wait(absl::Duration time) {
  const absl::Time until = absl::Now() + time;
  while (absl::Now() < until) {
    if (!Poll(POLLRDHUP, until)) return false;
    char byte;
    if (recv(fd_.get(), &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0) return false;
  }
  return !broken_.load();
}

void HttpConnection::ResetAfterSent() {
  const absl::Time patience = absl::Now() + absl::Seconds(5);
  int unsent = 0;
  while (!broken_.load() && ioctl(fd_.get(), SIOCOUTQ, &unsent) == 0 && unsent > 0 &&
         absl::Now() < patience) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  Break();
}

void HttpConnection::CloseCleanly() {
  shutdown(fd_.get(), SHUT_WR);
  const absl::Time patience = absl::Now() + absl::Seconds(2);
  char piece[4096];
  while (absl::Now() < patience) {
    const ssize_t got = recv(fd_.get(), piece, sizeof piece, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return;
    if (got < 0 && !Poll(POLLIN, patience)) return;
  }
}

void HttpConnection::Break() {
  broken_.store(true);
  const uint64_t one = 1;
  if (write(wake_.get(), &one, sizeof one) != sizeof one) Die("eventfd");
}

HttpListener::HttpListener(const std::string& address, uint16_t port, bool cdn,
                           std::atomic<uint64_t>* next_id, Serve serve)
    : cdn_(cdn), next_id_(next_id), serve_(std::move(serve)) {
  socket_ = base::UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  wake_ = base::UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!socket_.valid() || !wake_.valid()) Die("socket");
  const int on = 1;
  setsockopt(socket_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(port);
  if (inet_pton(AF_INET, address.c_str(), &name.sin_addr) != 1) Die(address.c_str());
  if (bind(socket_.get(), reinterpret_cast<sockaddr*>(&name), sizeof name) != 0) Die("bind");
  if (listen(socket_.get(), 4096) != 0) Die("listen");
  socklen_t length = sizeof name;
  if (getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&name), &length) != 0) Die("getsockname");
  port_ = ntohs(name.sin_port);
  accept_thread_ = std::thread([this] { Accept(); });
}

HttpListener::~HttpListener() { Stop(); }

void HttpListener::Accept() {
  while (true) {
    pollfd poll_fds[2] = {{socket_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (poll(poll_fds, 2, -1) < 0 && errno != EINTR) Die("poll");
    JoinDone();
    base::UniqueFd fd(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    if (!fd.valid()) continue;
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    auto worker = std::make_unique<Worker>();
    worker->connection = std::make_shared<HttpConnection>(++*next_id_, cdn_, std::move(fd));
    Worker* const raw = worker.get();
    worker->thread = std::thread([this, raw] {
      serve_(*raw->connection);
      absl::MutexLock done_lock(&mutex_);
      raw->connection.reset();  // closes
      raw->done = true;
    });
    workers_.push_back(std::move(worker));
  }
}

void HttpListener::JoinDone() {
  std::vector<std::unique_ptr<Worker>> done;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& worker : workers_) {
      if (worker->done) done.push_back(std::move(worker));
    }
    workers_.erase(std::remove(workers_.begin(), workers_.end(), nullptr), workers_.end());
  }
  for (const auto& worker : done) worker->thread.join();
}

void HttpListener::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    stopping_ = true;
  }
  const uint64_t one = 1;
  if (write(wake_.get(), &one, sizeof one) != sizeof one) Die("eventfd");
  accept_thread_.join();
  BreakConnections();
  std::vector<std::unique_ptr<Worker>> workers;
  {
    absl::MutexLock lock(&mutex_);
    workers.swap(workers_);
  }
  for (const auto& worker : workers) worker->thread.join();
}

void HttpListener::BreakConnections() {
  absl::MutexLock lock(&mutex_);
  for (const auto& worker : workers_) {
    if (worker->connection != nullptr) worker->connection->Break();
  }
}

size_t HttpListener::open_connections() const {
  absl::MutexLock lock(&mutex_);
  size_t open = 0;
  for (const auto& worker : workers_) open += worker->connection != nullptr ? 1 : 0;
  return open;
}

}  // namespace lazyblob::support::internal

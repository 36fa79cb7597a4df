#include "tests/support/tls_front.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"

namespace lazyblob::support {
namespace {

void Need(bool ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "TlsFront: %s failed\n", what);
  abort();
}

sockaddr_in Loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

bool WriteAll(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n <= 0) return false;
    data += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

class TlsFront::Impl {
 public:
  Impl(uint16_t backend, const std::string& directory)
      : backend_(backend),
        ca_file_(directory + "/tls-front-ca.pem"),
        context_(SSL_CTX_new(TLS_server_method())) {
    const std::string key = directory + "/tls-front-key.pem";
    const std::string make =
        absl::StrCat("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 ",
                     "-subj /CN=tls-front -addext subjectAltName=IP:127.0.0.1 -keyout '", key, "' -out '",
                     ca_file_, "' 2>/dev/null");
    Need(system(make.c_str()) == 0, "openssl req");
    Need(SSL_CTX_use_certificate_chain_file(context_, ca_file_.c_str()) == 1 &&
             SSL_CTX_use_PrivateKey_file(context_, key.c_str(), SSL_FILETYPE_PEM) == 1,
         "reading the certificate");
    listener_ = base::UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof(address);
    Need(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size) == 0 &&
             listen(listener_.get(), 64) == 0 &&
             getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0,
         "listening");
    port_ = ntohs(address.sin_port);
    accepting_ = std::thread([this] { Accept(); });
  }

  ~Impl() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
      for (int fd : open_) shutdown(fd, SHUT_RDWR);
    }
    shutdown(listener_.get(), SHUT_RDWR);
    accepting_.join();
    for (std::thread& thread : serving_) thread.join();
    SSL_CTX_free(context_);
  }

  uint16_t port() const { return port_; }
  const std::string& ca_file() const { return ca_file_; }

 private:
  void Accept() {
    while (true) {
      base::UniqueFd client(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client.valid()) return;
      serving_.emplace_back([this, client = std::move(client)] { Serve(client.get()); });
    }
  }

  // False: it is too late.
  bool Open(int fd) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (!stopping_) open_.insert(fd);
    return !stopping_;
  }
  void Close(int fd) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    open_.erase(fd);
  }

  void Serve(int client) {
    const base::UniqueFd server(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = Loopback(backend_);
    if (Open(client)) {
      SSL* const ssl = SSL_new(context_);
      SSL_set_fd(ssl, client);
      if (SSL_accept(ssl) == 1 &&
          connect(server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
        if (Open(server.get())) Pump(ssl, client, server.get());
        Close(server.get());
      }
      SSL_free(ssl);
    }
    Close(client);
    shutdown(client, SHUT_RDWR);
  }

  // Until either side ends. Requests are small: neither direction waits for the other.
  static void Pump(SSL* ssl, int client, int server) {
    std::vector<char> buffer(64 << 10);
    while (true) {
      pollfd fds[2] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
      if (SSL_pending(ssl) == 0 && poll(fds, 2, -1) < 0) return;
      if (SSL_pending(ssl) > 0 || fds[0].revents != 0) {
        const int n = SSL_read(ssl, buffer.data(), static_cast<int>(buffer.size()));
        if (n <= 0 || !WriteAll(server, buffer.data(), static_cast<size_t>(n))) return;
      }
      if (fds[1].revents != 0) {
        const ssize_t n = recv(server, buffer.data(), buffer.size(), 0);
        if (n <= 0 || SSL_write(ssl, buffer.data(), static_cast<int>(n)) <= 0) {
          SSL_shutdown(ssl);
          return;
        }
      }
    }
  }

  const uint16_t backend_;
  const std::string ca_file_;
  SSL_CTX* const context_;
  base::UniqueFd listener_;
  uint16_t port_ = 0;
  std::thread accepting_;
  std::vector<std::thread> serving_;  // of the accepting thread until it has ended
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<int> open_ ABSL_GUARDED_BY(mutex_);
};

TlsFront::TlsFront(uint16_t backend_port, const std::string& directory)
    : impl_(std::make_unique<Impl>(backend_port, directory)) {}
TlsFront::~TlsFront() = default;

std::string TlsFront::host() const { return absl::StrCat("127.0.0.1:", impl_->port()); }
const std::string& TlsFront::ca_file() const { return impl_->ca_file(); }

}  // namespace lazyblob::support

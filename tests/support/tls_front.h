#pragma once

// Speaks TLS in front of a plain TCP server on loopback (a TestRegistry), with a certificate for 127.0.0.1
// and an authority of its own. Thread-safe. Destruction breaks all connections and waits for its threads.

#include <cstdint>
#include <memory>
#include <string>

namespace lazyblob::support {

class TlsFront {
 public:
  // Listens on return, in front of 127.0.0.1:`backend_port`; files go into `directory`. Ends the test program
  // when it cannot.
  TlsFront(uint16_t backend_port, const std::string& directory);
  ~TlsFront();
  TlsFront(const TlsFront&) = delete;
  TlsFront& operator=(const TlsFront&) = delete;

  std::string host() const;            // "127.0.0.1:PORT"
  const std::string& ca_file() const;  // PEM of whoever vouches for it

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::support

// A slow, long link on loopback, without privileges: a TCP relay whose connections share one token bucket for
// each direction, and whose bytes arrive late. Any number of servers may lie behind it; they share the link.
//
//   shaped_link --rate BYTES_PER_SECOND --delay MILLISECONDS --ports FILE UPSTREAM_PORT…
//
// FILE gets a line: the port of the counters, then one port for each upstream. Whoever connects to the port
// of the counters gets a line: bytes that went up and down so far, then bytes up for each upstream. A
// connection's first byte leaves one round trip after it was accepted, as the handshake would have it.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <list>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using std::chrono::nanoseconds;

constexpr size_t kPacket = 16 << 10;
constexpr size_t kWindow = 1 << 20;  // of one connection, each way; above rate × round trip
constexpr int kSocketBuffer =
    256 << 10;  // what a sender believes to be on its way is not much more than that
constexpr nanoseconds kBurst{4'000'000};  // a late timer loses no bandwidth

struct Options {
  double rate = 25e6;
  nanoseconds delay{10'000'000};
  std::string ports;
  std::vector<uint16_t> upstreams;
};

struct Packet {
  Time arrives;
  std::vector<char> bytes;  // none: the end of the stream
  size_t sent = 0;
};

// One direction of one connection.
struct Pipe {
  int from = -1;
  int to = -1;
  Time begins;
  std::deque<Packet> on_the_way;
  size_t queued = 0;
  bool ended = false;    // nothing more to read
  bool blocked = false;  // `to` takes nothing now
  bool done = false;     // the end has been passed on
};

struct Connection {
  size_t upstream;
  std::array<Pipe, 2> pipes;  // up, down
  bool broken = false;
};

// All that flows one way.
struct Direction {
  Time free_at;
  uint64_t bytes = 0;
  size_t turn = 0;
};

[[noreturn]] void Die(const char* what) {
  perror(what);
  exit(1);
}

int Listen(uint16_t* port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int buffer = kSocketBuffer;
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));  // inherited
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd, 128) != 0) Die("listen");
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  *port = ntohs(address.sin_port);
  return fd;
}

int Connect(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int buffer = kSocketBuffer;
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) return fd;
  close(fd);
  return -1;
}

void SetUp(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

class Link {
 public:
  explicit Link(Options options) : options_(std::move(options)), upstream_bytes_(options_.upstreams.size()) {
    std::vector<uint16_t> ports(options_.upstreams.size() + 1);
    for (uint16_t& port : ports) listeners_.push_back(Listen(&port));
    const std::string unfinished = options_.ports + ".new";
    {
      std::ofstream file(unfinished);
      for (const uint16_t port : ports) file << port << ' ';
      file << '\n';
    }
    if (rename(unfinished.c_str(), options_.ports.c_str()) != 0) Die(options_.ports.c_str());
  }

  void Run() {
    while (true) {
      const Time now = Clock::now();
      for (size_t way = 0; way < 2; ++way) Take(way, now);
      Time next = now + std::chrono::seconds(1);
      for (Connection& connection : connections_) {
        for (Pipe& pipe : connection.pipes) {
          Deliver(&connection, &pipe, now);
          if (!pipe.blocked && !pipe.on_the_way.empty())
            next = std::min(next, pipe.on_the_way.front().arrives);
        }
      }
      connections_.remove_if([](const Connection& one) {
        const bool over = one.broken || (one.pipes[0].done && one.pipes[1].done);
        if (over) {
          close(one.pipes[0].from);
          close(one.pipes[0].to);
        }
        return over;
      });
      Wait(now, next);
    }
  }

 private:
  // Reads what the bucket of one direction has room for, a packet of each connection in turn.
  void Take(size_t way, Time now) {
    Direction& direction = directions_[way];
    size_t idle = 0;
    while (direction.free_at <= now && idle < connections_.size()) {
      auto at = connections_.begin();
      std::advance(at, static_cast<std::ptrdiff_t>(direction.turn++ % connections_.size()));
      idle = TakeOne(&*at, way, now) ? 0 : idle + 1;
    }
  }

  bool TakeOne(Connection* connection, size_t way, Time now) {
    Pipe& pipe = connection->pipes[way];
    if (connection->broken || pipe.ended || pipe.queued >= kWindow || now < pipe.begins) return false;
    std::vector<char> bytes(kPacket);
    const ssize_t got = recv(pipe.from, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got < 0) {
      if (errno != EAGAIN && errno != EINTR) connection->broken = true;
      return false;
    }
    pipe.ended = got == 0;
    bytes.resize(static_cast<size_t>(got));
    pipe.queued += bytes.size();
    Direction& direction = directions_[way];
    direction.bytes += bytes.size();
    if (way == 0) upstream_bytes_[connection->upstream] += bytes.size();
    const nanoseconds takes(static_cast<int64_t>(static_cast<double>(got) * 1e9 / options_.rate));
    direction.free_at = std::max(direction.free_at, now - kBurst) + takes;
    pipe.on_the_way.push_back({std::max(now, direction.free_at) + options_.delay, std::move(bytes)});
    return true;
  }

  static void Deliver(Connection* connection, Pipe* pipe, Time now) {
    pipe->blocked = false;
    while (!connection->broken && !pipe->on_the_way.empty() && pipe->on_the_way.front().arrives <= now) {
      Packet& packet = pipe->on_the_way.front();
      if (packet.bytes.empty()) {
        shutdown(pipe->to, SHUT_WR);
        pipe->done = true;
      } else {
        const ssize_t sent = send(pipe->to, packet.bytes.data() + packet.sent,
                                  packet.bytes.size() - packet.sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
          pipe->blocked = true;
          return;
        }
        if (sent < 0) {
          connection->broken = true;
          return;
        }
        packet.sent += static_cast<size_t>(sent);
        if (packet.sent < packet.bytes.size()) continue;
        pipe->queued -= packet.bytes.size();
      }
      pipe->on_the_way.pop_front();
    }
  }

  void Wait(Time now, Time next) {
    std::vector<pollfd> wanted;
    for (const int fd : listeners_) wanted.push_back({fd, POLLIN, 0});
    for (Connection& connection : connections_) {
      for (size_t way = 0; way < 2; ++way) {
        const Pipe& pipe = connection.pipes[way];
        if (pipe.blocked) wanted.push_back({pipe.to, POLLOUT, 0});
        if (pipe.ended || pipe.queued >= kWindow) continue;
        const Time may_read = std::max(directions_[way].free_at, pipe.begins);
        if (may_read <= now) {
          wanted.push_back({pipe.from, POLLIN, 0});
        } else {
          next = std::min(next, may_read);
        }
      }
    }
    const nanoseconds left = std::max(nanoseconds(0), nanoseconds(next - Clock::now()));
    timespec timeout{};
    timeout.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000);
    timeout.tv_nsec = static_cast<long>(left.count() % 1'000'000'000);
    if (ppoll(wanted.data(), wanted.size(), &timeout, nullptr) <= 0) return;
    for (size_t i = 0; i < listeners_.size(); ++i) {
      if (wanted[i].revents != 0) Accept(i);
    }
  }

  void Accept(size_t which) {
    const int client = accept4(listeners_[which], nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) return;
    if (which == 0) {
      std::string line = std::to_string(directions_[0].bytes) + ' ' + std::to_string(directions_[1].bytes);
      for (const uint64_t bytes : upstream_bytes_) line += ' ' + std::to_string(bytes);
      line += '\n';
      send(client, line.data(), line.size(), MSG_NOSIGNAL);
      close(client);
      return;
    }
    const int server = Connect(options_.upstreams[which - 1]);
    if (server < 0) {
      close(client);
      return;
    }
    SetUp(client);
    SetUp(server);
    Connection connection{which - 1, {}};
    connection.pipes[0] = {client, server, Clock::now() + 2 * options_.delay, {}};
    connection.pipes[1] = {server, client, Clock::now(), {}};
    connections_.push_back(std::move(connection));
  }

  const Options options_;
  std::vector<int> listeners_;  // of the counters, then of each upstream
  std::vector<uint64_t> upstream_bytes_;
  std::list<Connection> connections_;
  std::array<Direction, 2> directions_;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool named = word == "--rate" || word == "--delay" || word == "--ports";
    if (named && ++i == argc) {
      fprintf(stderr, "shaped_link: %s wants a value\n", word.c_str());
      return 2;
    }
    if (word == "--rate") {
      options.rate = strtod(argv[i], nullptr);
    } else if (word == "--delay") {
      options.delay = nanoseconds(static_cast<int64_t>(strtod(argv[i], nullptr) * 1e6));
    } else if (word == "--ports") {
      options.ports = argv[i];
    } else {
      options.upstreams.push_back(static_cast<uint16_t>(strtoul(word.c_str(), nullptr, 10)));
    }
  }
  if (options.rate <= 0 || options.ports.empty() || options.upstreams.empty()) {
    fprintf(
        stderr,
        "usage: shaped_link --rate BYTES_PER_SECOND --delay MILLISECONDS --ports FILE UPSTREAM_PORT...\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  Link(std::move(options)).Run();
}

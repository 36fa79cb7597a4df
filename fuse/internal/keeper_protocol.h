#pragma once

// Messages between lazyblobd and its keeper, byte by byte in docs/KEEPER_PROTOCOL.md. Encoders are total;
// decoders take any bytes and answer InvalidArgument for everything that is not exactly a message. Pure but
// for the two socket functions; thread-safe.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/file.h"
#include "fuse/mounter.h"
#include "fuse/server.h"

namespace lazyblob::fuse::internal {

inline constexpr size_t kMaxMessageBytes = 64 * 1024;
inline constexpr size_t kMaxInitBytes = 4096;
inline constexpr size_t kMaxPathBytes = 4095;
inline constexpr size_t kMaxSocketNameBytes = 255;

enum class MessageType : uint16_t {
  kTakeConnection = 1,
  kSaveInit = 2,
  kMountLayer = 3,
  kMountOverlay = 4,
  kUnmount = 5,
  kProbe = 6,
  kMounted = 7,
  kShutdown = 8,
  kPredecessorReaped = 9,  // event: keeper to daemon, id 0, no answer
  kMountIdMapped = 10,
  kKeepSocket = 11,
  kTakeSocket = 12,
  kReady = 13,
  kReplace = 14,
};

struct Message {
  MessageType type = MessageType::kTakeConnection;
  bool answer = false;
  uint64_t id = 0;  // chosen by the daemon, repeated in the answer
  std::string body;
};

// InvalidArgument when the message would be longer than kMaxMessageBytes.
absl::StatusOr<std::string> Frame(const Message& message);
absl::StatusOr<Message> Unframe(absl::string_view bytes);

// Little-endian fields appended to a body.
class BodyWriter {
 public:
  BodyWriter& U8(uint8_t value);
  BodyWriter& U32(uint32_t value);
  BodyWriter& U64(uint64_t value);
  BodyWriter& String(absl::string_view value);
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Fields taken from a body in order. After the first failure everything yields zero or empty; Done() says
// whether all fields were there and nothing was left over.
class BodyReader {
 public:
  explicit BodyReader(absl::string_view bytes) : rest_(bytes) {}
  uint8_t U8();
  uint32_t U32();
  uint64_t U64();
  std::string String(size_t max_bytes);
  // An absolute path without NUL.
  std::string Path();
  void Fail(absl::string_view why);
  bool ok() const { return status_.ok(); }
  absl::Status Done();

 private:
  absl::string_view Take(size_t length);
  absl::string_view rest_;
  absl::Status status_;
};

struct UnmountRequest {
  std::string target;
  bool lazy = false;
};

struct SocketRequest {
  std::string name;
  std::string place;
};

struct ConnectionAnswer {
  uint64_t generation = 0;
  bool taken_over = false;
  InitExchange init;
};

struct MountedPage {
  std::vector<std::string> targets;
  uint64_t next = 0;  // argument of the next request; 0: this was the last page
};

std::string EncodeInit(const InitExchange& init);
absl::StatusOr<InitExchange> DecodeInit(absl::string_view body);
std::string EncodeLayerMount(const LayerMountRequest& request);
absl::StatusOr<LayerMountRequest> DecodeLayerMount(absl::string_view body);
std::string EncodeOverlay(const OverlayRequest& request);
absl::StatusOr<OverlayRequest> DecodeOverlay(absl::string_view body);
std::string EncodeIdMapped(const IdMappedRequest& request);
absl::StatusOr<IdMappedRequest> DecodeIdMapped(absl::string_view body);
std::string EncodeUnmount(const UnmountRequest& request);
absl::StatusOr<UnmountRequest> DecodeUnmount(absl::string_view body);
std::string EncodeProbe(const std::string& state_root);
absl::StatusOr<std::string> DecodeProbe(absl::string_view body);
std::string EncodeMounted(uint64_t from);
absl::StatusOr<uint64_t> DecodeMounted(absl::string_view body);
std::string EncodeSocket(const SocketRequest& request);
absl::StatusOr<SocketRequest> DecodeSocket(absl::string_view body);
std::string EncodeReplace(const std::string& program);
// Empty: the program of before.
absl::StatusOr<std::string> DecodeReplace(absl::string_view body);
absl::Status DecodeEmpty(absl::string_view body);

// Answers start with the status; what follows is there only when it is OK.
std::string EncodeStatus(const absl::Status& status);
// The status the answer carries; `result` is set to the bytes after it. InvalidArgument also for malformed
// answers.
absl::Status DecodeStatus(absl::string_view body, absl::string_view* result);
std::string EncodeConnectionResult(const ConnectionAnswer& answer);
absl::StatusOr<ConnectionAnswer> DecodeConnectionResult(absl::string_view result);
std::string EncodeProbeResult(const ProbeResult& probe);
absl::StatusOr<ProbeResult> DecodeProbeResult(absl::string_view result);
std::string EncodeMountedResult(const MountedPage& page);
absl::StatusOr<MountedPage> DecodeMountedResult(absl::string_view result);

// One packet with at most one descriptor. Unavailable when the other side is gone; ResourceExhausted when it
// would block and `flags` has MSG_DONTWAIT.
absl::Status SendPacket(int socket, absl::string_view bytes, int descriptor, int flags);

struct Packet {
  std::string bytes;  // empty: the other side is gone (an empty packet counts as that)
  base::UniqueFd descriptor;
  bool truncated = false;  // longer than a message may be, or more descriptors than expected
};
// ResourceExhausted when nothing is there and `flags` has MSG_DONTWAIT. Descriptors are refused by the kernel
// unless `accept_descriptor`.
absl::StatusOr<Packet> ReceivePacket(int socket, bool accept_descriptor, int flags);

}  // namespace lazyblob::fuse::internal

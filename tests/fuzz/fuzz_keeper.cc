// Messages between daemon and keeper. First byte even: the rest is one packet, which each decoder of either
// side refuses or reads as what its encoder writes. Odd: the rest are packets (16 bits of length, then bytes)
// that a keeper gives as answers to the daemon's calls.

#include <sys/socket.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/string_view.h"
#include "fuse/internal/keeper_protocol.h"
#include "fuse/internal/keeper_state.h"
#include "fuse/internal/operations.h"
#include "fuse/keeper_client.h"

namespace {

using namespace lazyblob::fuse::internal;  // NOLINT: the protocol's vocabulary
using lazyblob::base::UniqueFd;

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

template <typename Value, typename Encode>
void SameAgain(const absl::StatusOr<Value>& decoded, absl::string_view bytes, Encode encode) {
  if (decoded.ok()) Require(encode(*decoded) == bytes);
}

void DecodeRequests(absl::string_view body) {
  SameAgain(DecodeInit(body), body, EncodeInit);
  const auto layer = DecodeLayerMount(body);
  if (layer.ok() && layer->mode != lazyblob::fuse::Mode::kFuse) Require(EncodeLayerMount(*layer) == body);
  SameAgain(DecodeOverlay(body), body, EncodeOverlay);
  SameAgain(DecodeIdMapped(body), body, EncodeIdMapped);
  SameAgain(DecodeUnmount(body), body, EncodeUnmount);
  SameAgain(DecodeProbe(body), body, EncodeProbe);
  SameAgain(DecodeMounted(body), body, EncodeMounted);
  SameAgain(DecodeSocket(body), body, EncodeSocket);
  SameAgain(DecodeReplace(body), body, EncodeReplace);
  Require(DecodeEmpty(body).ok() == body.empty());
}

void DecodeAnswers(absl::string_view body) {
  absl::string_view result = "unset";
  if (!DecodeStatus(body, &result).ok()) return Require(result.empty());
  Require(result.size() <= body.size());
  SameAgain(DecodeConnectionResult(result), result, EncodeConnectionResult);
  SameAgain(DecodeProbeResult(result), result, EncodeProbeResult);
  SameAgain(DecodeMountedResult(result), result, EncodeMountedResult);
}

void Decode(absl::string_view packet) {
  absl::string_view body = packet;
  const absl::StatusOr<Message> message = Unframe(packet);
  if (message.ok()) {
    Require(Frame(*message).value() == packet);
    body = message->body;
  }
  DecodeRequests(body);
  DecodeAnswers(body);
  (void)DecodeOutcome(body);
  const absl::StatusOr<KeeperState> state = DecodeState(packet);
  if (!state.ok()) return;
  const std::string written = EncodeState(*state);
  const absl::StatusOr<KeeperState> again = DecodeState(written);
  Require(again.ok() && EncodeState(*again) == written);
}

// Gives the packets, under the number that the request has; one that is its answer ends its turn. At their
// end it goes away, as a keeper does: one that lives answers.
void Answer(int socket, absl::string_view packets) {
  constexpr size_t kNumberAt = 8;
  for (std::string expected; packets.size() > 2;) {
    const size_t length = static_cast<uint8_t>(packets[0]) | size_t{static_cast<uint8_t>(packets[1])} << 8;
    std::string packet(packets.substr(2, length));
    packets.remove_prefix(2 + packet.size());
    if (packet.size() < kNumberAt + 8) continue;
    if (expected.empty()) {
      const absl::StatusOr<Packet> request = ReceivePacket(socket, /*accept_descriptor=*/true, 0);
      if (!request.ok() || request->bytes.empty()) return;
      expected = request->bytes.substr(0, kNumberAt + 8);
      expected[6] = 1;  // an answer
    }
    packet.replace(kNumberAt, 8, expected, kNumberAt, 8);
    if (!SendPacket(socket, packet, -1, 0).ok()) return;
    if (packet.compare(0, expected.size(), expected) == 0) expected.clear();
  }
}

void Call(absl::string_view packets) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return;
  UniqueFd keeper(ends[0]);
  auto client = lazyblob::fuse::KeeperClient::Connect(UniqueFd(ends[1]));
  Require(client.ok());
  std::thread answering([&keeper, packets] {
    Answer(keeper.get(), packets);
    keeper.Reset();
  });
  (void)(*client)->Mounted();
  (void)(*client)->Probe("/");
  Require(!(*client)->TakeConnection().ok());  // no descriptor came
  (void)(*client)->Ready();
  client->reset();
  answering.join();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    Decode(rest);
  } else {
    Call(rest);
  }
  return 0;
}

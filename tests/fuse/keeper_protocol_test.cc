#include "fuse/internal/keeper_protocol.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <random>

#include "base/status.h"
#include "fuse/internal/operations.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lazyblob::fuse::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

LayerMountRequest SampleLayer() {
  return {base::Digest::Of(absl::string_view("x")), "/state/meta.erofs", "/state/data", "/state/m/1",
          Mode::kLoop};
}

IdMappedRequest SampleIdMapped() { return {"/m/1", "/i/1", {{{0, 100000, 65536}}, {{0, 1, 2}, {9, 7, 1}}}}; }

// Every body with the decoder it is meant for; the decoder tells only whether it accepts.
struct Codec {
  const char* name;
  std::string body;
  std::function<bool(absl::string_view)> accepts;
};

std::vector<Codec> Codecs() {
  ConnectionAnswer connection{3, true, {"request", "answer"}};
  return {
      {"init", EncodeInit({"ask", "told"}), [](absl::string_view b) { return DecodeInit(b).ok(); }},
      {"layer", EncodeLayerMount(SampleLayer()),
       [](absl::string_view b) { return DecodeLayerMount(b).ok(); }},
      {"overlay", EncodeOverlay({{"/a", "/b"}, "/t"}),
       [](absl::string_view b) { return DecodeOverlay(b).ok(); }},
      {"id-mapped", EncodeIdMapped(SampleIdMapped()),
       [](absl::string_view b) { return DecodeIdMapped(b).ok(); }},
      {"unmount", EncodeUnmount({"/t", true}), [](absl::string_view b) { return DecodeUnmount(b).ok(); }},
      {"probe", EncodeProbe("/state"), [](absl::string_view b) { return DecodeProbe(b).ok(); }},
      {"mounted", EncodeMounted(7), [](absl::string_view b) { return DecodeMounted(b).ok(); }},
      {"socket", EncodeSocket({"control", "1:2"}), [](absl::string_view b) { return DecodeSocket(b).ok(); }},
      {"replace", EncodeReplace("/d"), [](absl::string_view b) { return DecodeReplace(b).ok(); }},
      {"connection", EncodeConnectionResult(connection),
       [](absl::string_view b) { return DecodeConnectionResult(b).ok(); }},
      {"probe result", EncodeProbeResult({Mode::kErofs, true, "why"}),
       [](absl::string_view b) { return DecodeProbeResult(b).ok(); }},
      {"mounted result", EncodeMountedResult({{"/a", "/b"}, 0}),
       [](absl::string_view b) { return DecodeMountedResult(b).ok(); }},
  };
}

TEST(KeeperProtocol, BodiesSurviveTheTrip) {
  LayerMountRequest layer = *DecodeLayerMount(EncodeLayerMount(SampleLayer()));
  EXPECT_EQ(layer.layer, SampleLayer().layer);
  EXPECT_EQ(layer.meta_path, "/state/meta.erofs");
  EXPECT_EQ(layer.data_path, "/state/data");
  EXPECT_EQ(layer.target, "/state/m/1");
  EXPECT_EQ(layer.mode, Mode::kLoop);
  OverlayRequest overlay = *DecodeOverlay(EncodeOverlay({{"/a", "/b"}, "/t"}));
  EXPECT_THAT(overlay.lowers, ElementsAre("/a", "/b"));
  EXPECT_EQ(overlay.target, "/t");
  IdMappedRequest mapped = *DecodeIdMapped(EncodeIdMapped(SampleIdMapped()));
  EXPECT_EQ(mapped.source, "/m/1");
  EXPECT_EQ(mapped.target, "/i/1");
  EXPECT_EQ(mapped.mapping, SampleIdMapped().mapping);
  EXPECT_TRUE(DecodeUnmount(EncodeUnmount({"/t", true}))->lazy);
  EXPECT_FALSE(DecodeUnmount(EncodeUnmount({"/t", false}))->lazy);
  EXPECT_EQ(*DecodeProbe(EncodeProbe("/state")), "/state");
  EXPECT_EQ(*DecodeMounted(EncodeMounted(1ULL << 40)), 1ULL << 40);
  InitExchange init = *DecodeInit(EncodeInit({std::string("a\0b", 3), "told"}));
  EXPECT_EQ(init.request, std::string("a\0b", 3));
  EXPECT_EQ(init.answer, "told");
  ConnectionAnswer connection = *DecodeConnectionResult(EncodeConnectionResult({3, true, {"r", "a"}}));
  EXPECT_EQ(connection.generation, 3u);
  EXPECT_TRUE(connection.taken_over);
  EXPECT_EQ(connection.init.answer, "a");
  ProbeResult probe = *DecodeProbeResult(EncodeProbeResult({Mode::kLoop, true, "because"}));
  EXPECT_EQ(probe.mode, Mode::kLoop);
  EXPECT_TRUE(probe.direct);
  EXPECT_EQ(probe.why, "because");
  MountedPage page = *DecodeMountedResult(EncodeMountedResult({{"/a", "/b"}, 9}));
  EXPECT_THAT(page.targets, ElementsAre("/a", "/b"));
  EXPECT_EQ(page.next, 9u);
}

TEST(KeeperProtocol, FuseModeNeedsNoPaths) {
  LayerMountRequest request = SampleLayer();
  request.mode = Mode::kFuse;
  request.meta_path.clear();
  request.data_path.clear();
  EXPECT_TRUE(DecodeLayerMount(EncodeLayerMount(request)).ok());
}

TEST(KeeperProtocol, FuseModeSaysWhichImageOfTheLayer) {
  LayerMountRequest request = SampleLayer();
  request.mode = Mode::kFuse;
  request.meta_path = "/state/layer/meta-3-00ff.erofs";
  EXPECT_EQ(DecodeLayerMount(EncodeLayerMount(request))->meta_path, request.meta_path);
}

TEST(KeeperProtocol, TheBytesAreTheDocumentedOnes) {
  Message message;
  message.type = MessageType::kUnmount;
  message.id = 0x0102;
  message.body = EncodeUnmount({"/t", true});
  const char expected[] =
      "LBK1"  // magic
      "\x05\x00"
      "\x00\x00"                          // type, flags
      "\x02\x01\x00\x00\x00\x00\x00\x00"  // id
      "\x07\x00\x00\x00"
      "\x00\x00\x00\x00"  // body length, reserved
      "\x02\x00\x00\x00"
      "/t"
      "\x01";
  EXPECT_EQ(*Frame(message), std::string(expected, sizeof expected - 1));
}

TEST(KeeperProtocol, EveryTruncationIsRefused) {
  for (const Codec& codec : Codecs()) {
    EXPECT_TRUE(codec.accepts(codec.body)) << codec.name;
    for (size_t length = 0; length < codec.body.size(); ++length) {
      EXPECT_FALSE(codec.accepts(absl::string_view(codec.body).substr(0, length)))
          << codec.name << " " << length;
    }
    EXPECT_FALSE(codec.accepts(codec.body + '\0')) << codec.name << ": a byte too many";
  }
}

TEST(KeeperProtocol, RandomDamageNeverCrashesAndDecodersAreStrict) {
  std::mt19937 random(20240607);
  for (const Codec& codec : Codecs()) {
    for (int i = 0; i < 4000; ++i) {
      std::string body = codec.body;
      int changes = 1 + static_cast<int>(random() % 4);
      for (int c = 0; c < changes; ++c) body[random() % body.size()] = static_cast<char>(random());
      if (random() % 4 == 0) body.resize(random() % (body.size() + 1));
      codec.accepts(body);
    }
    for (int i = 0; i < 2000; ++i) {
      std::string noise(random() % 64, '\0');
      for (char& c : noise) c = static_cast<char>(random());
      codec.accepts(noise);
      absl::string_view result;
      DecodeStatus(noise, &result).IgnoreError();
      Unframe(noise).status().IgnoreError();
      DecodeOutcome(noise);
    }
  }
}

TEST(KeeperProtocol, HostileIdMapsAreRefused) {
  auto accepts = [](const std::vector<IdRange>& ranges) {
    bool uids = DecodeIdMapped(EncodeIdMapped({"/s", "/t", {ranges, {{0, 0, 1}}}})).ok();
    bool gids = DecodeIdMapped(EncodeIdMapped({"/s", "/t", {{{0, 0, 1}}, ranges}})).ok();
    EXPECT_EQ(uids, gids);
    return uids;
  };
  EXPECT_TRUE(accepts({{0, 0, 0xffffffff}}));
  EXPECT_TRUE(accepts({{5, 10, 5}, {0, 15, 5}}));
  EXPECT_FALSE(accepts({}));
  EXPECT_FALSE(accepts({{0, 0, 0}}));
  EXPECT_FALSE(accepts({{1, 0, 0xffffffff}}));
  EXPECT_FALSE(accepts({{0, 1, 0xffffffff}}));
  EXPECT_FALSE(accepts({{0xffffffff, 0, 1}}));
  EXPECT_FALSE(accepts({{0, 100, 10}, {9, 200, 10}}));
  EXPECT_FALSE(accepts({{0, 100, 10}, {10, 109, 10}}));
  std::vector<IdRange> many;
  for (uint32_t i = 0; i < kMaxIdRanges; ++i) many.push_back({i, i, 1});
  EXPECT_TRUE(accepts(many));
  many.push_back({1000, 1000, 1});
  EXPECT_FALSE(accepts(many));
  EXPECT_FALSE(DecodeIdMapped(BodyWriter().String("/s").String("/t").U32(0xffffffff).Take()).ok());
  EXPECT_FALSE(DecodeIdMapped(EncodeIdMapped({"s", "/t", {{{0, 0, 1}}, {{0, 0, 1}}}})).ok());
  EXPECT_FALSE(DecodeIdMapped(EncodeIdMapped({"/s", "t", {{{0, 0, 1}}, {{0, 0, 1}}}})).ok());
  EXPECT_THAT(std::string(CheckIdMapping({{{0, 0, 1}}, {{3, 4, 0}}}).message()),
              HasSubstr("gid range 3:4:0 is empty"));
}

TEST(KeeperProtocol, HostileFieldsAreRefused) {
  EXPECT_FALSE(DecodeUnmount(EncodeUnmount({"relative", false})).ok());
  EXPECT_FALSE(DecodeUnmount(EncodeUnmount({"", false})).ok());
  EXPECT_FALSE(DecodeUnmount(EncodeUnmount({std::string("/a\0b", 4), false})).ok());
  EXPECT_FALSE(DecodeUnmount(EncodeUnmount({"/" + std::string(5000, 'a'), false})).ok());
  EXPECT_FALSE(DecodeUnmount(BodyWriter().String("/t").U8(2).Take()).ok());
  EXPECT_FALSE(DecodeOverlay(EncodeOverlay({{}, "/t"})).ok());
  EXPECT_FALSE(DecodeOverlay(BodyWriter().String("/t").U32(0xffffffff).Take()).ok());
  EXPECT_FALSE(DecodeMountedResult(BodyWriter().U64(0).U32(0xffffffff).Take()).ok());
  EXPECT_FALSE(DecodeInit(EncodeInit({"", "a"})).ok());
  EXPECT_FALSE(DecodeInit(EncodeInit({std::string(kMaxInitBytes + 1, 'x'), "a"})).ok());
  LayerMountRequest layer = SampleLayer();
  layer.data_path = "data";
  EXPECT_FALSE(DecodeLayerMount(EncodeLayerMount(layer)).ok());
  std::string body = EncodeLayerMount(SampleLayer());
  body[0] = 3;  // no such mode
  EXPECT_FALSE(DecodeLayerMount(body).ok());
  body = EncodeLayerMount(SampleLayer());
  body[5] = 'X';  // "Xha256:…"
  EXPECT_FALSE(DecodeLayerMount(body).ok());
  // Taken over without the exchange, or the other way round.
  EXPECT_FALSE(DecodeConnectionResult(EncodeConnectionResult({1, true, {}})).ok());
  EXPECT_FALSE(DecodeConnectionResult(EncodeConnectionResult({1, false, {"r", "a"}})).ok());
}

TEST(KeeperProtocol, FramesAreChecked) {
  Message message;
  message.type = MessageType::kProbe;
  message.id = 5;
  message.body = "body";
  std::string bytes = *Frame(message);
  EXPECT_EQ(Unframe(bytes)->body, "body");
  EXPECT_EQ(Unframe(bytes)->id, 5u);
  EXPECT_FALSE(Unframe(bytes)->answer);
  for (size_t i : {0u, 3u, 7u, 16u, 20u}) {  // magic, flags, length, reserved
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x40);
    EXPECT_FALSE(Unframe(damaged).ok()) << i;
  }
  EXPECT_FALSE(Unframe(bytes + "x").ok());
  EXPECT_FALSE(Unframe("").ok());
  message.body.assign(kMaxMessageBytes - 24, 'x');
  EXPECT_EQ(Unframe(*Frame(message))->body.size(), message.body.size());
  message.body += 'x';
  EXPECT_THAT(Frame(message).status().message(), HasSubstr("longer than 65536"));
}

TEST(KeeperProtocol, StatusAndResult) {
  absl::string_view result;
  std::string good = EncodeStatus(absl::OkStatus()) + "rest";
  EXPECT_TRUE(DecodeStatus(good, &result).ok());
  EXPECT_EQ(result, "rest");
  absl::Status busy = DecodeStatus(EncodeStatus(base::ErrnoStatus(EBUSY, "unmount /x")) + "rest", &result);
  EXPECT_EQ(busy.code(), base::ErrnoStatus(EBUSY, "").code());
  EXPECT_THAT(std::string(busy.message()), HasSubstr("unmount /x"));
  EXPECT_EQ(result, "");
  std::string strange = EncodeStatus(absl::OkStatus());
  strange[0] = 99;
  EXPECT_EQ(DecodeStatus(strange, &result).code(), absl::StatusCode::kInvalidArgument);
  // A message of any length fits.
  absl::Status lengthy = DecodeStatus(EncodeStatus(absl::InternalError(std::string(100'000, 'x'))), &result);
  EXPECT_EQ(lengthy.message().size(), 4096u);
}

TEST(KeeperProtocol, SocketsAndPrograms) {
  auto socket = DecodeSocket(EncodeSocket({"control", "1:2"}));
  ASSERT_TRUE(socket.ok()) << socket.status();
  EXPECT_EQ(socket->name, "control");
  EXPECT_EQ(socket->place, "1:2");
  for (const SocketRequest& bad :
       {SocketRequest{"", "x"}, SocketRequest{"x", ""}, SocketRequest{std::string(256, 'x'), "x"}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(DecodeSocket(EncodeSocket(bad)).status()));
  }
  EXPECT_EQ(*DecodeReplace(EncodeReplace("")), "");
  EXPECT_EQ(*DecodeReplace(EncodeReplace("/bin/d")), "/bin/d");
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeReplace(EncodeReplace("d")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeReplace(EncodeReplace("/d") + "x").status()));
}

TEST(KeeperProtocol, OutcomesOfChildren) {
  Outcome outcome = DecodeOutcome(EncodeOutcome({absl::OkStatus(), 42, "result"}));
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.mount_id, 42u);
  EXPECT_EQ(outcome.result, "result");
  EXPECT_EQ(DecodeOutcome(EncodeOutcome({absl::NotFoundError("gone"), 0, ""})).status,
            absl::NotFoundError("gone"));
  EXPECT_EQ(DecodeOutcome("").status.code(), absl::StatusCode::kInternal);
}

class SocketPair : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    a_ = base::UniqueFd(ends[0]);
    b_ = base::UniqueFd(ends[1]);
  }
  base::UniqueFd a_;
  base::UniqueFd b_;
};

TEST_F(SocketPair, DescriptorsTravelOnlyWhereTheyAreExpected) {
  base::UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(SendPacket(a_.get(), "with", null.get(), 0).ok());
  absl::StatusOr<Packet> taken = ReceivePacket(b_.get(), true, 0);
  ASSERT_TRUE(taken.ok());
  EXPECT_EQ(taken->bytes, "with");
  EXPECT_FALSE(taken->truncated);
  ASSERT_TRUE(taken->descriptor.valid());
  EXPECT_NE(fcntl(taken->descriptor.get(), F_GETFD) & FD_CLOEXEC, 0);

  // Two in one message: the second is nobody's.
  const int both[2] = {null.get(), null.get()};
  char byte = 'x';
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof both)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_len = CMSG_LEN(sizeof both);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  memcpy(CMSG_DATA(rights), both, sizeof both);
  const int next = dup(null.get());
  close(next);
  ASSERT_EQ(sendmsg(a_.get(), &header, 0), 1);
  {
    absl::StatusOr<Packet> two = ReceivePacket(b_.get(), true, 0);
    ASSERT_TRUE(two.ok());
    EXPECT_TRUE(two->truncated);
  }
  EXPECT_EQ(fcntl(next, F_GETFD), -1) << "a descriptor is left";
  EXPECT_EQ(fcntl(next + 1, F_GETFD), -1) << "a descriptor is left";

  ASSERT_TRUE(SendPacket(a_.get(), "with", null.get(), 0).ok());
  absl::StatusOr<Packet> refused = ReceivePacket(b_.get(), false, 0);
  ASSERT_TRUE(refused.ok());
  EXPECT_FALSE(refused->descriptor.valid());
  EXPECT_TRUE(refused->truncated);
}

TEST_F(SocketPair, EmptyFullAndEnded) {
  EXPECT_TRUE(absl::IsResourceExhausted(ReceivePacket(b_.get(), false, MSG_DONTWAIT).status()));
  std::string big(kMaxMessageBytes, 'x');
  absl::Status status;
  int sent = 0;
  while ((status = SendPacket(a_.get(), big, -1, MSG_DONTWAIT)).ok()) ASSERT_LT(++sent, 10'000);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(ReceivePacket(b_.get(), false, 0)->bytes.size(), kMaxMessageBytes);
  a_.Reset();
  while (sent-- > 1) EXPECT_EQ(ReceivePacket(b_.get(), false, 0)->bytes.size(), kMaxMessageBytes);
  EXPECT_EQ(ReceivePacket(b_.get(), false, 0)->bytes, "");
  EXPECT_TRUE(absl::IsUnavailable(SendPacket(b_.get(), "x", -1, 0)));
}

TEST_F(SocketPair, OverlongPacketsAreMarked) {
  std::string big(kMaxMessageBytes + 1, 'x');
  ASSERT_EQ(send(a_.get(), big.data(), big.size(), 0), static_cast<ssize_t>(big.size()));
  absl::StatusOr<Packet> packet = ReceivePacket(b_.get(), false, 0);
  ASSERT_TRUE(packet.ok());
  EXPECT_TRUE(packet->truncated);
}

}  // namespace
}  // namespace lazyblob::fuse::internal

#include "fuse/internal/keeper_protocol.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr uint32_t kMagic = 0x314b424c;  // "LBK1"
constexpr size_t kHeaderBytes = 24;
constexpr uint16_t kAnswerFlag = 1;
constexpr size_t kMaxTextBytes = 4096;
constexpr size_t kMaxDigestText = 160;
constexpr size_t kMaxLowers = 1024;

template <typename T>
void PutLittleEndian(T value, std::string* out) {
  for (size_t i = 0; i < sizeof(T); ++i) out->push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

template <typename T>
T GetLittleEndian(absl::string_view bytes) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value |
                           static_cast<T>(static_cast<T>(static_cast<unsigned char>(bytes[i])) << (8 * i)));
  }
  return value;
}

void PutRanges(const std::vector<IdRange>& ranges, BodyWriter* writer) {
  writer->U32(static_cast<uint32_t>(ranges.size()));
  for (const IdRange& range : ranges) writer->U32(range.container).U32(range.host).U32(range.length);
}

std::vector<IdRange> GetRanges(BodyReader* reader) {
  uint32_t count = reader->U32();
  if (count > kMaxIdRanges) reader->Fail("number of id ranges");
  std::vector<IdRange> ranges;
  for (uint32_t i = 0; i < count && reader->ok(); ++i) {
    IdRange range;
    range.container = reader->U32();
    range.host = reader->U32();
    range.length = reader->U32();
    ranges.push_back(range);
  }
  return ranges;
}

bool IsMode(uint8_t value) { return value <= static_cast<uint8_t>(Mode::kFuse); }

}  // namespace

absl::StatusOr<std::string> Frame(const Message& message) {
  if (message.body.size() > kMaxMessageBytes - kHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("keeper message of ", message.body.size() + kHeaderBytes,
                                                   " bytes is longer than ", kMaxMessageBytes));
  }
  std::string bytes;
  bytes.reserve(kHeaderBytes + message.body.size());
  PutLittleEndian<uint32_t>(kMagic, &bytes);
  PutLittleEndian<uint16_t>(static_cast<uint16_t>(message.type), &bytes);
  PutLittleEndian<uint16_t>(message.answer ? kAnswerFlag : 0, &bytes);
  PutLittleEndian<uint64_t>(message.id, &bytes);
  PutLittleEndian<uint32_t>(static_cast<uint32_t>(message.body.size()), &bytes);
  PutLittleEndian<uint32_t>(0, &bytes);
  bytes += message.body;
  return bytes;
}

absl::StatusOr<Message> Unframe(absl::string_view bytes) {
  if (bytes.size() < kHeaderBytes || bytes.size() > kMaxMessageBytes) {
    return absl::InvalidArgumentError(absl::StrCat("keeper message of ", bytes.size(), " bytes"));
  }
  if (GetLittleEndian<uint32_t>(bytes) != kMagic)
    return absl::InvalidArgumentError("keeper message: wrong magic");
  auto type = GetLittleEndian<uint16_t>(bytes.substr(4));
  auto flags = GetLittleEndian<uint16_t>(bytes.substr(6));
  auto length = GetLittleEndian<uint32_t>(bytes.substr(16));
  if (flags > kAnswerFlag || GetLittleEndian<uint32_t>(bytes.substr(20)) != 0) {
    return absl::InvalidArgumentError("keeper message: unknown flags");
  }
  if (length != bytes.size() - kHeaderBytes)
    return absl::InvalidArgumentError("keeper message: wrong length");
  Message message;
  message.type = static_cast<MessageType>(type);  // unknown types are for the receiver to refuse
  message.answer = flags == kAnswerFlag;
  message.id = GetLittleEndian<uint64_t>(bytes.substr(8));
  message.body = std::string(bytes.substr(kHeaderBytes));
  return message;
}

BodyWriter& BodyWriter::U8(uint8_t value) {
  bytes_.push_back(static_cast<char>(value));
  return *this;
}

BodyWriter& BodyWriter::U32(uint32_t value) {
  PutLittleEndian(value, &bytes_);
  return *this;
}

BodyWriter& BodyWriter::U64(uint64_t value) {
  PutLittleEndian(value, &bytes_);
  return *this;
}

BodyWriter& BodyWriter::String(absl::string_view value) {
  U32(static_cast<uint32_t>(value.size()));
  bytes_.append(value.data(), value.size());
  return *this;
}

absl::string_view BodyReader::Take(size_t length) {
  if (!status_.ok()) return {};
  if (length > rest_.size()) {
    Fail("ends too early");
    return {};
  }
  absl::string_view taken = rest_.substr(0, length);
  rest_.remove_prefix(length);
  return taken;
}

uint8_t BodyReader::U8() {
  absl::string_view bytes = Take(1);
  return bytes.empty() ? uint8_t{0} : static_cast<uint8_t>(bytes[0]);
}

uint32_t BodyReader::U32() {
  absl::string_view bytes = Take(4);
  return bytes.empty() ? 0 : GetLittleEndian<uint32_t>(bytes);
}

uint64_t BodyReader::U64() {
  absl::string_view bytes = Take(8);
  return bytes.empty() ? 0 : GetLittleEndian<uint64_t>(bytes);
}

std::string BodyReader::String(size_t max_bytes) {
  uint32_t length = U32();
  if (length > max_bytes) {
    Fail("string too long");
    return {};
  }
  return std::string(Take(length));
}

std::string BodyReader::Path() {
  std::string path = String(kMaxPathBytes);
  if (ok() && (path.empty() || path[0] != '/' || path.find('\0') != std::string::npos)) {
    Fail("not an absolute path");
    return {};
  }
  return path;
}

void BodyReader::Fail(absl::string_view why) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat("keeper message: ", why));
}

absl::Status BodyReader::Done() {
  if (status_.ok() && !rest_.empty()) Fail("bytes left over");
  return status_;
}

std::string EncodeInit(const InitExchange& init) {
  return BodyWriter().String(init.request).String(init.answer).Take();
}

absl::StatusOr<InitExchange> DecodeInit(absl::string_view body) {
  BodyReader reader(body);
  InitExchange init;
  init.request = reader.String(kMaxInitBytes);
  init.answer = reader.String(kMaxInitBytes);
  if (reader.ok() && (init.request.empty() || init.answer.empty())) reader.Fail("empty INIT exchange");
  RETURN_IF_ERROR(reader.Done());
  return init;
}

std::string EncodeLayerMount(const LayerMountRequest& request) {
  return BodyWriter()
      .U8(static_cast<uint8_t>(request.mode))
      .String(request.layer.ToString())
      .String(request.meta_path)
      .String(request.data_path)
      .String(request.target)
      .Take();
}

absl::StatusOr<LayerMountRequest> DecodeLayerMount(absl::string_view body) {
  BodyReader reader(body);
  LayerMountRequest request;
  uint8_t mode = reader.U8();
  if (!IsMode(mode)) reader.Fail("unknown mode");
  request.mode = static_cast<Mode>(mode);
  std::string digest = reader.String(kMaxDigestText);
  if (request.mode == Mode::kFuse) {
    request.meta_path = reader.String(kMaxPathBytes);  // only its last name counts, which image it is
    reader.String(kMaxPathBytes);
  } else {
    request.meta_path = reader.Path();
    request.data_path = reader.String(kMaxPathBytes);
    if (!request.data_path.empty() &&
        (request.data_path[0] != '/' || request.data_path.find('\0') != std::string::npos)) {
      reader.Fail("not an absolute path");
    }
  }
  request.target = reader.Path();
  RETURN_IF_ERROR(reader.Done());
  ASSIGN_OR_RETURN(request.layer, base::Digest::Parse(digest));
  return request;
}

std::string EncodeOverlay(const OverlayRequest& request) {
  BodyWriter writer;
  writer.String(request.target).U32(static_cast<uint32_t>(request.lowers.size()));
  for (const std::string& lower : request.lowers) writer.String(lower);
  return writer.Take();
}

absl::StatusOr<OverlayRequest> DecodeOverlay(absl::string_view body) {
  BodyReader reader(body);
  OverlayRequest request;
  request.target = reader.Path();
  uint32_t count = reader.U32();
  if (count == 0 || count > kMaxLowers) reader.Fail("number of lower layers");
  for (uint32_t i = 0; i < count && reader.ok(); ++i) request.lowers.push_back(reader.Path());
  RETURN_IF_ERROR(reader.Done());
  return request;
}

std::string EncodeIdMapped(const IdMappedRequest& request) {
  BodyWriter writer;
  writer.String(request.source).String(request.target);
  PutRanges(request.mapping.uids, &writer);
  PutRanges(request.mapping.gids, &writer);
  return writer.Take();
}

absl::StatusOr<IdMappedRequest> DecodeIdMapped(absl::string_view body) {
  BodyReader reader(body);
  IdMappedRequest request;
  request.source = reader.Path();
  request.target = reader.Path();
  request.mapping.uids = GetRanges(&reader);
  request.mapping.gids = GetRanges(&reader);
  RETURN_IF_ERROR(reader.Done());
  RETURN_IF_ERROR(CheckIdMapping(request.mapping));
  return request;
}

std::string EncodeUnmount(const UnmountRequest& request) {
  return BodyWriter().String(request.target).U8(request.lazy ? 1 : 0).Take();
}

absl::StatusOr<UnmountRequest> DecodeUnmount(absl::string_view body) {
  BodyReader reader(body);
  UnmountRequest request;
  request.target = reader.Path();
  uint8_t lazy = reader.U8();
  if (lazy > 1) reader.Fail("unknown flags");
  request.lazy = lazy == 1;
  RETURN_IF_ERROR(reader.Done());
  return request;
}

std::string EncodeProbe(const std::string& state_root) { return BodyWriter().String(state_root).Take(); }

absl::StatusOr<std::string> DecodeProbe(absl::string_view body) {
  BodyReader reader(body);
  std::string state_root = reader.Path();
  RETURN_IF_ERROR(reader.Done());
  return state_root;
}

std::string EncodeSocket(const SocketRequest& request) {
  return BodyWriter().String(request.name).String(request.place).Take();
}

absl::StatusOr<SocketRequest> DecodeSocket(absl::string_view body) {
  BodyReader reader(body);
  SocketRequest request;
  request.name = reader.String(kMaxSocketNameBytes);
  request.place = reader.String(kMaxSocketNameBytes);
  if (reader.ok() && (request.name.empty() || request.place.empty())) reader.Fail("empty socket name");
  RETURN_IF_ERROR(reader.Done());
  return request;
}

std::string EncodeReplace(const std::string& program) { return BodyWriter().String(program).Take(); }

absl::StatusOr<std::string> DecodeReplace(absl::string_view body) {
  if (body == EncodeReplace("")) return std::string();
  BodyReader reader(body);
  std::string program = reader.Path();
  RETURN_IF_ERROR(reader.Done());
  return program;
}

std::string EncodeMounted(uint64_t from) { return BodyWriter().U64(from).Take(); }

absl::StatusOr<uint64_t> DecodeMounted(absl::string_view body) {
  BodyReader reader(body);
  uint64_t from = reader.U64();
  RETURN_IF_ERROR(reader.Done());
  return from;
}

absl::Status DecodeEmpty(absl::string_view body) { return BodyReader(body).Done(); }

std::string EncodeStatus(const absl::Status& status) {
  absl::string_view message = status.message();
  return BodyWriter()
      .U32(static_cast<uint32_t>(status.code()))
      .U32(static_cast<uint32_t>(base::ErrnoOf(status)))
      .String(message.substr(0, std::min(message.size(), kMaxTextBytes)))
      .Take();
}

absl::Status DecodeStatus(absl::string_view body, absl::string_view* result) {
  *result = {};
  constexpr size_t kFixed = 12;
  if (body.size() < kFixed) return absl::InvalidArgumentError("keeper answer: no status");
  BodyReader reader(body);
  uint32_t code = reader.U32();
  reader.U32();  // the errno, for readers that are not C++
  std::string message = reader.String(kMaxTextBytes);
  if (!reader.ok()) return absl::InvalidArgumentError("keeper answer: damaged status");
  if (code > static_cast<uint32_t>(absl::StatusCode::kUnauthenticated)) {
    return absl::InvalidArgumentError("keeper answer: unknown status code");
  }
  if (code != 0) return absl::Status(static_cast<absl::StatusCode>(code), message);
  *result = body.substr(kFixed + message.size());
  return absl::OkStatus();
}

std::string EncodeConnectionResult(const ConnectionAnswer& answer) {
  return BodyWriter()
      .U64(answer.generation)
      .U8(answer.taken_over ? 1 : 0)
      .String(answer.init.request)
      .String(answer.init.answer)
      .Take();
}

absl::StatusOr<ConnectionAnswer> DecodeConnectionResult(absl::string_view result) {
  BodyReader reader(result);
  ConnectionAnswer answer;
  answer.generation = reader.U64();
  uint8_t taken_over = reader.U8();
  answer.init.request = reader.String(kMaxInitBytes);
  answer.init.answer = reader.String(kMaxInitBytes);
  if (taken_over > 1) reader.Fail("unknown flags");
  answer.taken_over = taken_over == 1;
  if (answer.taken_over == answer.init.request.empty()) reader.Fail("INIT exchange does not match");
  RETURN_IF_ERROR(reader.Done());
  return answer;
}

std::string EncodeProbeResult(const ProbeResult& probe) {
  absl::string_view why = probe.why;
  return BodyWriter()
      .U8(static_cast<uint8_t>(probe.mode))
      .U8(probe.direct ? 1 : 0)
      .String(why.substr(0, std::min(why.size(), kMaxTextBytes)))
      .Take();
}

absl::StatusOr<ProbeResult> DecodeProbeResult(absl::string_view result) {
  BodyReader reader(result);
  ProbeResult probe;
  uint8_t mode = reader.U8();
  uint8_t direct = reader.U8();
  probe.why = reader.String(kMaxTextBytes);
  if (!IsMode(mode) || direct > 1) reader.Fail("unknown mode");
  RETURN_IF_ERROR(reader.Done());
  probe.mode = static_cast<Mode>(mode);
  probe.direct = direct == 1;
  return probe;
}

std::string EncodeMountedResult(const MountedPage& page) {
  BodyWriter writer;
  writer.U64(page.next).U32(static_cast<uint32_t>(page.targets.size()));
  for (const std::string& target : page.targets) writer.String(target);
  return writer.Take();
}

absl::StatusOr<MountedPage> DecodeMountedResult(absl::string_view result) {
  BodyReader reader(result);
  MountedPage page;
  page.next = reader.U64();
  uint32_t count = reader.U32();
  for (uint32_t i = 0; i < count && reader.ok(); ++i) page.targets.push_back(reader.Path());
  RETURN_IF_ERROR(reader.Done());
  return page;
}

absl::Status SendPacket(int socket, absl::string_view bytes, int descriptor, int flags) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (descriptor >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &descriptor, sizeof(int));
  }
  while (sendmsg(socket, &header, flags | MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return absl::ResourceExhaustedError("keeper socket is full");
    if (errno == EPIPE || errno == ECONNRESET)
      return absl::UnavailableError("the other side of the keeper is gone");
    return base::ErrnoStatus(errno, "send to keeper socket");
  }
  return absl::OkStatus();
}

absl::StatusOr<Packet> ReceivePacket(int socket, bool accept_descriptor, int flags) {
  Packet packet;
  packet.bytes.resize(kMaxMessageBytes);
  iovec part{packet.bytes.data(), packet.bytes.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  ssize_t received;
  do {
    header.msg_control = accept_descriptor ? control.data() : nullptr;
    // Without the padding, in which the kernel would put a second descriptor.
    header.msg_controllen = accept_descriptor ? CMSG_LEN(sizeof(int)) : 0;
    received = recvmsg(socket, &header, flags | MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  if (received < 0) {
    if (errno == EAGAIN) return absl::ResourceExhaustedError("nothing to receive");
    if (errno != ECONNRESET) return base::ErrnoStatus(errno, "receive from keeper socket");
    received = 0;
  }
  packet.bytes.resize(static_cast<size_t>(received));
  packet.truncated = (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
  if (accept_descriptor) {
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    if (rights != nullptr && rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS &&
        rights->cmsg_len == CMSG_LEN(sizeof(int))) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(rights), sizeof(int));
      packet.descriptor = base::UniqueFd(descriptor);
    }
  }
  return packet;
}

}  // namespace lazyblob::fuse::internal

#include "fuse/internal/keeper_state.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "base/status.h"
#include "fuse/internal/keeper_protocol.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr absl::string_view kMagic = "LBKSTATE";
constexpr uint64_t kSlotBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxStateBytes = uint64_t{256} << 20;
constexpr size_t kDigestBytes = 32;
constexpr size_t kSlotHeaderBytes = 24 + kDigestBytes;
constexpr size_t kMaxString = 64 * 1024;

// Records. A keeper that does not know one goes on without it only if the highest bit is set.
constexpr uint32_t kMayBeIgnored = uint32_t{1} << 31;
enum class Record : uint32_t {
  kConnection = 1,
  kInit = 2,
  kDaemon = 3,
  kMount = 4,
  kSocket = 5,
  kPending = 6,
  kPredecessor = 7,
  kArgument = kMayBeIgnored | 1,
};

void Put(Record type, BodyWriter body, BodyWriter* out) {
  out->U32(static_cast<uint32_t>(type)).String(body.Take());
}

void DecodeConnection(BodyReader* body, KeeperState* state) {
  state->device = body->String(kMaxString);
  state->mount = body->String(kMaxString);
  state->connection = body->U32();
  state->connection_used = body->U8() != 0;
  state->init_ever_saved = body->U8() != 0;
  state->next_name = body->U64();
  state->next_sequence = body->U64();
}

void DecodeDaemon(BodyReader* body, KeeperState* state) {
  state->session = body->U64();
  state->daemon.pid = static_cast<pid_t>(body->U32());
  state->daemon.start = body->U64();
  state->program = body->String(kMaxString);
  state->good_program = body->String(kMaxString);
  state->oom_score_adj = body->String(kMaxString);
  state->ready = body->U8() != 0;
  state->taken = body->U8() != 0;
  state->fall_back = body->U8() != 0;
  state->hand_over = body->U8() != 0;
}

absl::Status DecodeRecord(uint32_t type, absl::string_view bytes, KeeperState* state) {
  BodyReader body(bytes);
  switch (static_cast<Record>(type)) {
    case Record::kConnection:
      DecodeConnection(&body, state);
      break;
    case Record::kInit:
      state->init.request = body.String(kMaxInitBytes);
      state->init.answer = body.String(kMaxInitBytes);
      break;
    case Record::kDaemon:
      DecodeDaemon(&body, state);
      break;
    case Record::kMount: {
      KeeperState::Mount mount;
      mount.sequence = body.U64();
      mount.target = body.Path();
      mount.mount_id = body.U64();
      mount.tree = body.U8() != 0;
      state->mounts.push_back(std::move(mount));
      break;
    }
    case Record::kSocket: {
      KeeperState::Socket socket;
      socket.name = body.String(kMaxString);
      socket.place = body.String(kMaxString);
      socket.held = body.String(kMaxString);
      state->sockets.push_back(std::move(socket));
      break;
    }
    case Record::kPending:
      state->pending.push_back(body.Path());
      break;
    case Record::kPredecessor: {
      KeeperState::Process process;
      process.pid = static_cast<pid_t>(body.U32());
      process.start = body.U64();
      state->predecessors.push_back(process);
      break;
    }
    case Record::kArgument:
      state->arguments.push_back(body.String(kMaxString));
      break;
    default:
      if ((type & kMayBeIgnored) != 0) return absl::OkStatus();
      return absl::FailedPreconditionError(
          absl::StrCat("the keeper's state has a record of type ", type, ", made by a newer keeper"));
  }
  // Later fields of a newer keeper are none of our business.
  return body.ok() ? absl::OkStatus()
                   : absl::InvalidArgumentError("the keeper's state: a record ends too early");
}

std::string Checksum(absl::string_view sequence_and_length, absl::string_view state) {
  const base::Digest digest =
      base::Digest::Of(absl::StrCat(sequence_and_length, base::Digest::Of(state).hex()));
  return {digest.bytes().begin(), digest.bytes().begin() + kDigestBytes};
}

absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

struct Slot {
  uint64_t sequence = 0;  // 0: nothing that is whole
  std::string state;
};

Slot ReadSlot(int file, uint64_t offset) {
  std::string header(kSlotHeaderBytes, '\0');
  auto read = [file](std::string* out, uint64_t at) {
    return base::PreadFull(file, at, {reinterpret_cast<uint8_t*>(out->data()), out->size()}).ok();
  };
  if (!read(&header, offset) || header.compare(0, kMagic.size(), kMagic.data(), kMagic.size()) != 0)
    return {};
  const absl::string_view numbers = absl::string_view(header).substr(kMagic.size(), 16);
  BodyReader reader(numbers);
  Slot slot;
  slot.sequence = reader.U64();
  const uint64_t length = reader.U64();
  if (length > kMaxStateBytes) return {};
  slot.state.resize(length);
  if (!read(&slot.state, offset + kSlotHeaderBytes)) return {};
  if (Checksum(numbers, slot.state) != header.substr(kMagic.size() + numbers.size())) return {};
  return slot;
}

}  // namespace

std::string EncodeState(const KeeperState& state) {
  BodyWriter out;
  Put(Record::kConnection,
      BodyWriter()
          .String(state.device)
          .String(state.mount)
          .U32(state.connection)
          .U8(state.connection_used ? 1 : 0)
          .U8(state.init_ever_saved ? 1 : 0)
          .U64(state.next_name)
          .U64(state.next_sequence),
      &out);
  Put(Record::kInit, BodyWriter().String(state.init.request).String(state.init.answer), &out);
  Put(Record::kDaemon,
      BodyWriter()
          .U64(state.session)
          .U32(static_cast<uint32_t>(state.daemon.pid))
          .U64(state.daemon.start)
          .String(state.program)
          .String(state.good_program)
          .String(state.oom_score_adj)
          .U8(state.ready ? 1 : 0)
          .U8(state.taken ? 1 : 0)
          .U8(state.fall_back ? 1 : 0)
          .U8(state.hand_over ? 1 : 0),
      &out);
  for (const auto& mount : state.mounts) {
    Put(Record::kMount,
        BodyWriter().U64(mount.sequence).String(mount.target).U64(mount.mount_id).U8(mount.tree ? 1 : 0),
        &out);
  }
  for (const auto& socket : state.sockets) {
    Put(Record::kSocket, BodyWriter().String(socket.name).String(socket.place).String(socket.held), &out);
  }
  for (const std::string& word : state.arguments) Put(Record::kArgument, BodyWriter().String(word), &out);
  for (const std::string& target : state.pending) Put(Record::kPending, BodyWriter().String(target), &out);
  for (const auto& process : state.predecessors) {
    Put(Record::kPredecessor, BodyWriter().U32(static_cast<uint32_t>(process.pid)).U64(process.start), &out);
  }
  return out.Take();
}

absl::StatusOr<KeeperState> DecodeState(absl::string_view bytes) {
  KeeperState state;
  bool connection = false;
  BodyReader reader(bytes);
  for (size_t taken = 0; taken < bytes.size() && reader.ok();) {
    const uint32_t type = reader.U32();
    const std::string body = reader.String(kMaxStateBytes);
    if (!reader.ok()) break;
    taken += 2 * sizeof(uint32_t) + body.size();
    connection = connection || type == static_cast<uint32_t>(Record::kConnection);
    RETURN_IF_ERROR(DecodeRecord(type, body, &state));
  }
  if (!reader.Done().ok() || !connection) {
    return absl::InvalidArgumentError("the keeper's state: damaged");
  }
  return state;
}

absl::StatusOr<StateFile> StateFile::Create() {
  base::UniqueFd file(memfd_create("lazyblob-keeper", MFD_CLOEXEC));
  if (!file.valid()) return base::ErrnoStatus(errno, "memfd for the keeper's state");
  return StateFile(std::move(file));
}

absl::Status StateFile::Write(absl::string_view state) {
  if (state.size() > kMaxStateBytes) return absl::ResourceExhaustedError("the keeper's state is too large");
  const uint64_t sequence = sequence_ + 1;
  const uint64_t offset = (sequence % 2) * kSlotBytes;
  const std::string numbers = BodyWriter().U64(sequence).U64(state.size()).Take();
  const std::string slot = absl::StrCat(kMagic, numbers, Checksum(numbers, state), state);
  RETURN_IF_ERROR(base::PwriteFull(file_.get(), offset, Bytes(slot)));
  sequence_ = sequence;
  return absl::OkStatus();
}

absl::StatusOr<std::string> StateFile::Read() {
  Slot best = ReadSlot(file_.get(), 0);
  Slot other = ReadSlot(file_.get(), kSlotBytes);
  if (other.sequence > best.sequence) best = std::move(other);
  if (best.sequence == 0) return absl::DataLossError("the keeper's state was never written");
  sequence_ = best.sequence;
  return std::move(best.state);
}

}  // namespace lazyblob::fuse::internal

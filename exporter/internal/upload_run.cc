#include "exporter/internal/upload_run.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/fault.h"
#include "base/status.h"

namespace lazyblob::exporter {

using internal::Piece;

absl::StatusOr<Uploader::Outcome> UploadRun::Go() {
  session_ = std::move(task_.session);
  fresh_ = session_.has_value();
  known_ = task_.blob->descriptor();
  const std::vector<std::string> sources = task_.blob->sources();
  std::vector<std::string> tried;
  for (source_ = 0; source_ < std::max<size_t>(sources.size(), 1); ++source_) {
    absl::StatusOr<Uploader::Outcome> outcome = FromSource();
    if (outcome.ok() || fault_ != Fault::kMismatch) return outcome;
    tried.push_back(absl::StrCat(sources.empty() ? "its only source" : sources[source_], ": ",
                                 outcome.status().message()));
  }
  return absl::DataLossError(absl::StrCat("no source has the right bytes: ", absl::StrJoin(tried, "; ")));
}

absl::StatusOr<Uploader::Outcome> UploadRun::FromSource() {
  RestartRead();
  chunks_ = ChooseChunks();
  best_ = 0;
  failures_ = 0;
  if (chunks_ && known_.has_value()) TakeUpJournal();
  while (true) {
    fault_ = Fault::kDestination;
    committing_ = false;
    absl::StatusOr<Next> next = chunks_ ? InChunks() : Whole();
    if (!next.ok()) {
      task_.transfer->Starve();
      const bool refused = absl::IsUnauthenticated(next.status()) || absl::IsPermissionDenied(next.status());
      if (refused && task_.on_refused != nullptr && task_.on_refused()) {
        RestartRead();
        DropSession(true);
        continue;
      }
      if (fault_ == Fault::kDestination) next = Recover(next.status());
    }
    if (!next.ok()) {
      cursor_.reset();
      if (!KeepsSession(next.status())) DropSession(true);
      return next.status();
    }
    if (*next == Next::kAgain) continue;
    cursor_.reset();
    DropSession(*next == Next::kNotNeeded);
    return *next == Next::kDone ? Uploader::Outcome::kUploaded : Uploader::Outcome::kNotNeeded;
  }
}

// A registry that is away keeps what it has; it may be back, as may this process.
bool UploadRun::KeepsSession(const absl::Status& status) const {
  if (fault_ == Fault::kMismatch || uploader_.journal_ == nullptr) return false;
  if (absl::IsUnavailable(status)) return true;
  return absl::IsCancelled(status) && uploader_.keep_sessions_ && known_.has_value() &&
         uploader_.journal_->Find(task_.repository, known_->digest).has_value();
}

bool UploadRun::ChooseChunks() const {
  if (!uploader_.TakesChunks(host())) return false;
  if (!known_.has_value()) return true;
  const UploaderOptions& options = uploader_.options_;
  if (known_->size > options.monolithic_bytes) return true;
  if (known_->size <= options.chunk_bytes || known_->size < 2) return false;
  // A source that may stall, or somebody more urgent who may come, is better met between two chunks.
  return !task_.blob->local() ||
         (task_.transfer->priority() == Priority::kCache && uploader_.gate_.HasImageTransfers(host()));
}

absl::StatusOr<UploadRun::Next> UploadRun::Known() {
  // Others may have to be waited for now: nothing they might need is kept.
  piece_.reset();
  cursor_.reset();
  task_.transfer->Starve();
  fault_ = Fault::kSource;
  ASSIGN_OR_RETURN(known_, task_.blob->WaitDescriptor(cancel()));
  fault_ = Fault::kDestination;
  if (task_.on_known == nullptr) return Next::kAgain;
  ASSIGN_OR_RETURN(const bool there, task_.on_known(*known_));
  return there ? Next::kNotNeeded : Next::kAgain;
}

absl::StatusOr<UploadRun::Next> UploadRun::InChunks() {
  if (!session_.has_value() && known_.has_value()) RETURN_IF_ERROR(OpenSession());
  while (true) {
    const uint64_t offset = session_.has_value() ? session_->offset : 0;
    ASSIGN_OR_RETURN(std::shared_ptr<const Piece> piece, PieceAt(offset));
    if (!known_.has_value() && (piece == nullptr || task_.blob->descriptor().has_value())) {
      const bool all_sent = piece == nullptr && session_.has_value() && offset > 0;
      if (all_sent) {
        fault_ = Fault::kSource;
        ASSIGN_OR_RETURN(known_, task_.blob->WaitDescriptor(cancel()));
        fault_ = Fault::kDestination;
      } else {
        piece.reset();
        ASSIGN_OR_RETURN(const Next next, Known());
        if (next == Next::kNotNeeded) return next;
        chunks_ = session_.has_value() || ChooseChunks();
        if (!chunks_) return Next::kAgain;
        continue;
      }
    }
    if (!session_.has_value()) {
      chunks_ = ChooseChunks();
      if (!chunks_) return Next::kAgain;
      RETURN_IF_ERROR(OpenSession());
      if (session_->offset != offset) continue;
    }
    if (session_->min_chunk > uploader_.options_.max_piece_bytes) {
      chunks_ = false;
      return Next::kAgain;
    }
    if (piece == nullptr || (known_.has_value() && offset >= known_->size)) break;
    ASSIGN_OR_RETURN(const Next next, SendChunk(*piece));
    if (next == Next::kDone) return next;
  }
  RETURN_IF_ERROR(CheckEnd());
  committing_ = true;
  RETURN_IF_ERROR(uploader_.destination_.Commit(task_.repository, *session_, known_->digest, task_.call));
  return Next::kDone;
}

absl::StatusOr<UploadRun::Next> UploadRun::SendChunk(const Piece& piece) {
  const uint64_t offset = session_->offset;
  if (known_.has_value() && piece.end() > known_->size) {
    return Mismatch(absl::StrCat("more than ", known_->size, " bytes"));
  }
  const uint64_t left = piece.end() - offset;
  const bool ends_blob = known_.has_value() && piece.end() == known_->size;
  // One byte and none are answered alike, and a chunk may be too small: cut it differently.
  if (left < 2 || (left < session_->min_chunk && piece.offset < offset && !ends_blob)) {
    piece_.reset();
    cursor_.reset();
    if (ends_blob) {
      DropSession(true);
      chunks_ = false;
      if (known_->size > 1) RETURN_IF_ERROR(CountFailure(absl::UnavailableError("one byte is left over")));
    }
    return Next::kAgain;
  }
  uint64_t slice =
      std::min(left, std::max(uploader_.ChunkFor(host(), task_.transfer->priority()), session_->min_chunk));
  if (left - slice == 1 || left - slice < session_->min_chunk) slice = left;
  const bool last = known_.has_value() && offset + slice == known_->size;
  if (last) {
    HashTo(piece, offset + slice);
    RETURN_IF_ERROR(CheckEnd());
  }
  RETURN_IF_ERROR(task_.transfer->Acquire(slice, cancel(), known_.has_value() ? known_->size - offset : 0));
  const absl::Duration start = uploader_.options_.clock->Monotonic();
  fresh_ = false;
  if (task_.on_sent != nullptr) task_.on_sent(slice);
  std::thread hashing([&] { HashTo(piece, offset + slice); });  // while the bytes are on their way
  const absl::Status status = uploader_.destination_.Patch(
      task_.repository, &*session_, absl::MakeConstSpan(piece.bytes).subspan(offset - piece.offset, slice),
      task_.call);
  hashing.join();
  task_.transfer->Release(status.ok() && !last && (slice < left || (cursor_ != nullptr && cursor_->Ready())));
  RETURN_IF_ERROR(status);
  uploader_.NoteRate(host(), slice, uploader_.options_.clock->Monotonic() - start);
  if (session_->offset > best_) {
    best_ = session_->offset;
    failures_ = 0;
  }
  SaveJournal();
  RETURN_IF_ERROR(base::FaultPoint("exporter.chunk"));
  return Next::kAgain;
}

absl::StatusOr<UploadRun::Next> UploadRun::Whole() {
  if (!known_.has_value()) {
    ASSIGN_OR_RETURN(const Next next, Known());
    if (next == Next::kNotNeeded) return next;
  }
  if (session_.has_value() && (!fresh_ || session_->offset != 0)) DropSession(true);
  if (!session_.has_value()) RETURN_IF_ERROR(OpenSession());
  RestartRead();
  if (known_->size > 0) {
    ASSIGN_OR_RETURN(const auto first, PieceAt(0));
    if (first == nullptr) return Mismatch("no bytes");
    if (first->end() > known_->size) return Mismatch(absl::StrCat("more than ", known_->size, " bytes"));
    HashTo(*first, first->end());
  }
  if (hash_.size() == known_->size) RETURN_IF_ERROR(CheckEnd());
  RETURN_IF_ERROR(task_.transfer->Acquire(known_->size, cancel(), known_->size));
  fresh_ = false;
  committing_ = true;
  uint64_t position = 0;
  const absl::Status status = uploader_.destination_.PutWhole(
      task_.repository, *session_, *known_, [&](absl::Span<uint8_t> out) { return GiveBody(&position, out); },
      task_.call);
  task_.transfer->Release(false);
  RETURN_IF_ERROR(status);
  return Next::kDone;
}

absl::StatusOr<size_t> UploadRun::GiveBody(uint64_t* position, absl::Span<uint8_t> out) {
  if (*position == known_->size || out.empty()) return 0;
  if (*position >= piece_->end()) {
    // The body is open: whoever waits for the slot may have it, but this one goes on when it can.
    const bool ready = cursor_->Ready();
    if (!ready) task_.transfer->Starve();
    absl::StatusOr<std::shared_ptr<const Piece>> piece = PieceAt(*position);
    if (!ready) task_.transfer->Resume();
    RETURN_IF_ERROR(piece.status());
    if (*piece == nullptr) return Mismatch(absl::StrCat("ended after ", *position, " bytes"));
    if ((*piece)->end() > known_->size) return Mismatch(absl::StrCat("more than ", known_->size, " bytes"));
    HashTo(**piece, (*piece)->end());
    if (hash_.size() == known_->size) RETURN_IF_ERROR(CheckEnd());
  }
  const size_t count = std::min<uint64_t>(out.size(), piece_->end() - *position);
  memcpy(out.data(), piece_->bytes.data() + (*position - piece_->offset), count);
  *position += count;
  if (task_.on_sent != nullptr) task_.on_sent(count);
  return count;
}

absl::StatusOr<UploadRun::Next> UploadRun::Recover(const absl::Status& status) {
  if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) return status;
  const int http = uploader_.destination_.HttpStatus(status);
  if (committing_) {
    // Somebody else was first, or the answer got lost.
    const bool doubtful = http == 400 || http == 409 || http == 404 || absl::IsUnavailable(status);
    if (doubtful && IsThere()) {
      DropSession(true);
      return Next::kDone;
    }
  }
  RETURN_IF_ERROR(chunks_ ? RecoverChunks(status, http) : RecoverWhole(status, http));
  return Next::kAgain;
}

absl::Status UploadRun::RecoverChunks(const absl::Status& status, int http) {
  if (!session_.has_value()) return absl::IsUnavailable(status) ? CountFailure(status) : status;
  const bool first = session_->offset == 0 && !committing_;
  const bool not_spoken = first && (http == 400 || http == 404 || http == 405 || http == 415 || http == 501);
  if (absl::IsDataLoss(status) || not_spoken) {
    uploader_.NoteNoChunks(host());
    DropSession(true);
    chunks_ = false;
    return committing_ ? CountFailure(status) : absl::OkStatus();
  }
  if (absl::IsNotFound(status)) {
    DropSession(false);
    return CountFailure(status);
  }
  if (absl::IsOutOfRange(status) || absl::IsUnavailable(status) || http == 400) return QueryOrRestart(status);
  return status;
}

absl::Status UploadRun::RecoverWhole(const absl::Status& status, int http) {
  if (!session_.has_value()) return absl::IsUnavailable(status) ? CountFailure(status) : status;
  if (absl::IsUnavailable(status) && http == 0 && uploader_.TakesChunks(host()) && known_->size > 2) {
    // What arrived of the body may have been kept.
    const absl::Status queried = uploader_.destination_.Query(task_.repository, &*session_, task_.call);
    if (queried.ok() && session_->offset > 1 && session_->offset <= hash_.size()) {
      chunks_ = true;
      return CountFailure(status);
    }
  }
  const bool again = absl::IsUnavailable(status) || absl::IsNotFound(status) || absl::IsDataLoss(status) ||
                     absl::IsOutOfRange(status);
  if (!again) return status;
  DropSession(!absl::IsNotFound(status));
  return CountFailure(status);
}

absl::Status UploadRun::QueryOrRestart(const absl::Status& status) {
  RETURN_IF_ERROR(CountFailure(status));
  const absl::Status queried = uploader_.destination_.Query(task_.repository, &*session_, task_.call);
  if (absl::IsCancelled(queried)) return queried;
  const bool sane = queried.ok() && (!known_.has_value() || session_->offset <= known_->size);
  if (sane || absl::IsUnavailable(queried)) return absl::OkStatus();
  DropSession(queried.ok());
  return absl::OkStatus();
}

absl::Status UploadRun::CountFailure(const absl::Status& status) {
  const UploaderOptions& options = uploader_.options_;
  if (++failures_ > options.max_failures) return status;
  if (failures_ > 1 && options.sleep != nullptr) {
    options.sleep(std::min(options.first_backoff * (1 << std::min(failures_ - 2, 10)), absl::Seconds(5)),
                  cancel());
  }
  return absl::OkStatus();
}

bool UploadRun::IsThere() {
  const absl::StatusOr<uint64_t> size =
      uploader_.destination_.Head(task_.repository, known_->digest, task_.call);
  return size.ok() && *size == known_->size;
}

uint64_t UploadRun::PieceBytes() const {
  uint64_t bytes = uploader_.options_.chunk_bytes;
  if (session_.has_value() && session_->min_chunk <= uploader_.options_.max_piece_bytes) {
    bytes = std::max(bytes, session_->min_chunk);
  }
  if (!known_.has_value()) return bytes;
  if (known_->size % bytes == 1) ++bytes;
  return std::max<uint64_t>(1, std::min(bytes, known_->size));
}

void UploadRun::OpenCursor(uint64_t offset) {
  cursor_.reset();
  internal::ReadRequest request;
  request.blob = task_.blob;
  request.offset = offset;
  request.piece_bytes = PieceBytes();
  request.priority = task_.transfer->priority();
  request.context = task_.fetch;
  request.context.cause = contentstore::FetchCause::kStream;
  request.context.first_source = source_;
  request.read = task_.read;
  cursor_ = uploader_.reads_.Open(request);
  cursor_at_ = offset;
  piece_.reset();
}

void UploadRun::RestartRead() {
  cursor_.reset();
  piece_.reset();
  hash_ = internal::ResumableHash(known_.has_value() ? known_->digest.algorithm()
                                                     : base::DigestAlgorithm::kSha256);
}

absl::StatusOr<std::shared_ptr<const Piece>> UploadRun::PieceAt(uint64_t offset) {
  if (piece_ != nullptr && offset >= piece_->offset && offset < piece_->end()) return piece_;
  if (known_.has_value() && offset == known_->size && hash_.size() == offset) return nullptr;
  if (cursor_ == nullptr || cursor_at_ > offset || hash_.size() < (piece_ ? piece_->offset : cursor_at_)) {
    OpenCursor(std::min(offset, hash_.size()));
  }
  while (true) {
    if (piece_ != nullptr) {
      if (offset < piece_->end()) return piece_;
      HashTo(*piece_, piece_->end());
    }
    piece_.reset();
    absl::StatusOr<std::shared_ptr<const Piece>> piece = cursor_->Next(cancel());
    if (!piece.ok()) {
      fault_ = Fault::kSource;
      // Bytes that are wrong, or too few: another source may be right.
      if (absl::IsDataLoss(piece.status()) && known_.has_value()) fault_ = Fault::kMismatch;
      return piece.status();
    }
    if (*piece == nullptr) return nullptr;
    piece_ = *std::move(piece);
    cursor_at_ = piece_->end();
  }
}

void UploadRun::HashTo(const Piece& piece, uint64_t end) {
  if (hash_.size() >= end || hash_.size() < piece.offset) return;
  hash_.Update(absl::MakeConstSpan(piece.bytes).subspan(hash_.size() - piece.offset, end - hash_.size()));
}

absl::Status UploadRun::Mismatch(const std::string& what) {
  fault_ = Fault::kMismatch;
  return absl::DataLossError(what);
}

absl::Status UploadRun::CheckEnd() {
  if (hash_.size() != known_->size) {
    return Mismatch(absl::StrCat("ended after ", hash_.size(), " of ", known_->size, " bytes"));
  }
  const base::Digest found = hash_.Current();
  if (found == known_->digest) return absl::OkStatus();
  return Mismatch(absl::StrCat("its bytes have digest ", found.ToString()));
}

absl::Status UploadRun::OpenSession() {
  ASSIGN_OR_RETURN(session_, uploader_.destination_.Start(task_.repository, task_.call));
  fresh_ = true;
  return absl::OkStatus();
}

void UploadRun::TakeUpJournal() {
  if (uploader_.journal_ == nullptr) return;
  std::optional<JournalEntry> entry = uploader_.journal_->Find(task_.repository, known_->digest);
  if (!entry.has_value() || entry->size != known_->size) return;
  const uint64_t confirmed = entry->session.offset;
  absl::StatusOr<internal::ResumableHash> hash =
      internal::ResumableHash::FromState(known_->digest.algorithm(), confirmed, entry->hash_state);
  const absl::Status queried = uploader_.destination_.Query(task_.repository, &entry->session, task_.call);
  if (!hash.ok() || !queried.ok() || entry->session.offset > known_->size || entry->session.offset < 2) {
    uploader_.journal_->Remove(task_.repository, known_->digest);
    return;
  }
  if (session_.has_value()) uploader_.destination_.Cancel(task_.repository, *session_, task_.call);
  session_ = std::move(entry->session);
  fresh_ = false;
  cursor_.reset();
  piece_.reset();
  hash_ = *std::move(hash);
  best_ = session_->offset;
}

void UploadRun::DropSession(bool cancel) {
  if (uploader_.journal_ != nullptr && known_.has_value()) {
    uploader_.journal_->Remove(task_.repository, known_->digest);
  }
  if (!session_.has_value()) return;
  if (cancel) uploader_.destination_.Cancel(task_.repository, *session_, task_.call);
  session_.reset();
  fresh_ = false;
}

void UploadRun::SaveJournal() {
  if (uploader_.journal_ == nullptr || !known_.has_value() || hash_.size() != session_->offset) return;
  JournalEntry entry;
  entry.repository = task_.repository;
  entry.digest = known_->digest;
  entry.size = known_->size;
  entry.session = *session_;
  entry.hash_state = hash_.State();
  // Without it, more is sent after a crash; nothing is wrong now.
  uploader_.journal_->Save(std::move(entry)).IgnoreError();
}

}  // namespace lazyblob::exporter

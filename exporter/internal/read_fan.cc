#include "exporter/internal/read_fan.h"

#include <algorithm>
#include <deque>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::exporter::internal {
namespace {

// Pieces kept for followers that are not equally fast.
constexpr size_t kSharedWindow = 3;

// The same for blobs that can share a read.
std::string KeyOf(const Blob& blob) {
  const std::string origin = blob.origin();
  const std::optional<oci::Descriptor> descriptor = blob.descriptor();
  if (origin.empty() || !descriptor.has_value()) {
    return absl::StrCat("@", absl::Hex(reinterpret_cast<uintptr_t>(&blob)));
  }
  return absl::StrCat(descriptor->digest.ToString(), "@", origin);
}

}  // namespace

// One pass over a blob, on a thread of its own.
class SharedRead {
 public:
  SharedRead(ReadRequest request, MemoryBudget* memory)
      : request_(std::move(request)), memory_(*memory), cancel_(std::make_shared<base::CancelToken>()) {
    request_.context.cancel = cancel_;
    base_ = request_.offset;
  }
  ~SharedRead() {
    cancel_->Cancel();
    if (thread_.joinable()) thread_.join();
  }
  void Start() {
    thread_ = std::thread([this] { Run(); });
  }

  // False: it cannot give the bytes at `offset` in such pieces.
  bool Join(uint64_t id, const ReadRequest& request) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    if (request.piece_bytes != request_.piece_bytes || ended_early_) return false;
    if (request.context.first_source != request_.context.first_source) return false;
    if (request.offset < base_ || (finished_ && !status_.ok())) return false;
    const uint64_t end = window_.empty() ? base_ : window_.back()->end();
    if (request.offset > end || (request.offset - request_.offset) % request_.piece_bytes != 0) return false;
    followers_[id] = {request.offset, false};
    return true;
  }
  // True: nobody follows any more.
  bool Leave(uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    followers_.erase(id);
    if (followers_.empty()) ended_early_ = true;
    return followers_.empty();
  }
  void Stop() { cancel_->Cancel(); }
  const Blob* blob() const { return request_.blob.get(); }

  // Unset: the follower has been left behind.
  absl::StatusOr<std::optional<std::shared_ptr<const Piece>>> Next(uint64_t id, base::CancelToken* cancel)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    base::CancelToken none;
    const base::CancelToken::Registration wake =
        (cancel == nullptr ? &none : cancel)->OnCancel([this] { const absl::MutexLock lock(&mutex_); });
    const absl::MutexLock lock(&mutex_);
    const auto self = followers_.find(id);
    if (self == followers_.end()) return std::optional<std::shared_ptr<const Piece>>();
    Follower& follower = self->second;  // stays while it waits
    follower.waiting = true;
    auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return ReadyLocked(follower.position) || (cancel != nullptr && cancel->cancelled());
    };
    mutex_.Await(absl::Condition(&ready));
    follower.waiting = false;
    if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("cancelled");
    for (const auto& piece : window_) {
      if (piece->offset != follower.position) continue;
      std::shared_ptr<const Piece> found = piece;
      follower.position = piece->end();
      return std::optional<std::shared_ptr<const Piece>>(std::move(found));
    }
    if (!status_.ok()) return status_;
    return std::optional<std::shared_ptr<const Piece>>(nullptr);
  }
  bool Ready(uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    const auto self = followers_.find(id);
    return self != followers_.end() && ReadyLocked(self->second.position);
  }

 private:
  struct Follower {
    uint64_t position = 0;
    bool waiting = false;
  };

  bool ReadyLocked(uint64_t position) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return finished_ || (!window_.empty() && window_.back()->offset >= position);
  }
  // The newest piece may stay although all have it: whoever sends it keeps it in memory anyway, and others
  // may still join.
  void DropPassed(size_t keep) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (window_.size() > keep) {
      const uint64_t end = window_.front()->end();
      for (const auto& [id, follower] : followers_) {
        if (follower.position < end) return;
      }
      base_ = end;
      window_.pop_front();
    }
  }
  // Pieces that somebody has not had yet.
  size_t Wanted() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::count_if(
        window_.begin(), window_.end(), [&](const auto& piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return std::any_of(followers_.begin(), followers_.end(),
                             [&](const auto& one) { return one.second.position < piece->end(); });
        });
  }
  // Somebody has nothing to send because this one is a whole window behind.
  bool HoldsUp(const Follower& slow) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (slow.waiting || slow.position >= window_.front()->end()) return false;
    const uint64_t end = window_.back()->end();
    return std::any_of(followers_.begin(), followers_.end(),
                       [&](const auto& one) { return one.second.waiting && one.second.position >= end; });
  }
  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (followers_.empty() || cancel_->cancelled()) return true;  // to find out that it is over
    const size_t wanted = Wanted();
    if (wanted < (followers_.size() == 1 ? 1 : kSharedWindow)) return true;
    for (const auto& [id, follower] : followers_) {
      if (followers_.size() > 1 && HoldsUp(follower)) return true;
    }
    return false;
  }
  void MakeRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    DropPassed(followers_.size() == 1 ? 1 : 0);
    if (window_.size() < kSharedWindow) return;
    // They go on alone.
    for (auto at = followers_.begin(); at != followers_.end();) {
      at = HoldsUp(at->second) ? followers_.erase(at) : std::next(at);
    }
    DropPassed(0);
  }
  // Waits for room and memory for one more piece.
  absl::StatusOr<std::shared_ptr<Piece>> NewPiece(uint64_t offset) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      const absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &SharedRead::HasRoom));
      MakeRoom();
    }
    auto piece = std::make_shared<Piece>();
    piece->offset = offset;
    piece->memory = memory_.TryAcquire(request_.piece_bytes, request_.priority);
    if (!piece->memory.empty()) return piece;
    {
      const absl::MutexLock lock(&mutex_);
      DropPassed(0);  // nothing is kept while more is waited for
    }
    ASSIGN_OR_RETURN(piece->memory, memory_.Acquire(request_.piece_bytes, request_.priority, cancel_.get()));
    return piece;
  }
  void Publish(std::shared_ptr<Piece> piece) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    window_.push_back(std::move(piece));
  }
  void Run() ABSL_LOCKS_EXCLUDED(mutex_) {
    const base::CancelToken::Registration wake =
        cancel_->OnCancel([this] { const absl::MutexLock lock(&mutex_); });
    std::shared_ptr<Piece> piece;
    uint64_t offset = request_.offset;
    absl::Status status = request_.blob->Read(
        offset,
        [&](absl::Span<const uint8_t> bytes) -> absl::Status {
          if (request_.read != nullptr) *request_.read += bytes.size();
          while (!bytes.empty()) {
            if (piece == nullptr) {
              ASSIGN_OR_RETURN(piece, NewPiece(offset));
              piece->bytes.reserve(PieceBytes(offset));
            }
            const size_t taken = std::min<uint64_t>(bytes.size(), request_.piece_bytes - piece->bytes.size());
            piece->bytes.insert(piece->bytes.end(), bytes.begin(), bytes.begin() + taken);
            bytes.remove_prefix(taken);
            offset += taken;
            if (piece->bytes.size() == request_.piece_bytes) Publish(std::exchange(piece, nullptr));
          }
          return cancel_->cancelled() ? absl::CancelledError("cancelled") : absl::OkStatus();
        },
        request_.context);
    // Also what came before a failure: some of it may end a blob that is right.
    if (piece != nullptr && !cancel_->cancelled()) Publish(std::move(piece));
    const absl::MutexLock lock(&mutex_);
    finished_ = true;
    status_ = std::move(status);
  }
  uint64_t PieceBytes(uint64_t offset) const {
    const std::optional<oci::Descriptor> descriptor = request_.blob->descriptor();
    if (!descriptor.has_value() || descriptor->size <= offset) return request_.piece_bytes;
    return std::min(request_.piece_bytes, descriptor->size - offset);
  }

  ReadRequest request_;
  MemoryBudget& memory_;
  const std::shared_ptr<base::CancelToken> cancel_;  // shared with the calls of the read
  std::thread thread_;
  absl::Mutex mutex_;
  std::deque<std::shared_ptr<const Piece>> window_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Follower> followers_ ABSL_GUARDED_BY(mutex_);
  uint64_t base_ ABSL_GUARDED_BY(mutex_) = 0;  // where the window begins
  bool ended_early_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

std::unique_ptr<ReadFan::Cursor> ReadFan::Open(const ReadRequest& request) {
  std::unique_ptr<Cursor> cursor(new Cursor(this, request));
  Attach(cursor.get());
  return cursor;
}

uint64_t ReadFan::reads() const {
  const absl::MutexLock lock(&mutex_);
  return begun_;
}

void ReadFan::Attach(Cursor* cursor) {
  const absl::MutexLock lock(&mutex_);
  cursor->id_ = next_id_++;
  const std::string key = KeyOf(*cursor->request_.blob);
  auto [first, last] = reads_.equal_range(key);
  for (auto at = first; at != last && !cursor->alone_; ++at) {
    std::shared_ptr<SharedRead> read = at->second.lock();
    if (read != nullptr && read->Join(cursor->id_, cursor->request_)) {
      cursor->read_ = std::move(read);
      return;
    }
  }
  ++begun_;
  cursor->read_ = std::make_shared<SharedRead>(cursor->request_, &memory_);
  cursor->read_->Join(cursor->id_, cursor->request_);
  cursor->read_->Start();
  reads_.emplace(key, cursor->read_);
}

void ReadFan::Detach(Cursor* cursor) {
  std::shared_ptr<SharedRead> read = std::move(cursor->read_);
  if (read->Leave(cursor->id_)) read->Stop();
  const std::string key = KeyOf(*cursor->request_.blob);
  read.reset();  // may join its thread
  const absl::MutexLock lock(&mutex_);
  auto [first, last] = reads_.equal_range(key);
  for (auto at = first; at != last;) at = at->second.expired() ? reads_.erase(at) : std::next(at);
}

ReadFan::Cursor::~Cursor() { fan_.Detach(this); }

bool ReadFan::Cursor::Ready() const { return read_->Ready(id_); }

absl::StatusOr<std::shared_ptr<const Piece>> ReadFan::Cursor::Next(base::CancelToken* cancel) {
  while (true) {
    absl::StatusOr<std::optional<std::shared_ptr<const Piece>>> piece = read_->Next(id_, cancel);
    if (!piece.ok()) {
      // Another's read, with another's credentials.
      if (read_->blob() == request_.blob.get() || (cancel != nullptr && cancel->cancelled())) {
        return piece.status();
      }
      alone_ = true;
    } else if (piece->has_value()) {
      if (**piece != nullptr) request_.offset = (**piece)->end();
      return **std::move(piece);
    }
    fan_.Detach(this);
    fan_.Attach(this);
  }
}

}  // namespace lazyblob::exporter::internal

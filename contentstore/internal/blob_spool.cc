#include "contentstore/internal/blob_spool.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

// A pass whose window is full for so long lets go of its connection.
constexpr absl::Duration kHoldConnection = absl::Seconds(5);
// Read ahead of one who has only begun; later as much as was wanted so far, since many only look at the
// start.
constexpr uint64_t kFirstWindow = 1 << 20;
// How often those who wait look at the clock, which may be a test's.
constexpr absl::Duration kLookInterval = absl::Milliseconds(50);
// What is written, and told to readers, at once: they come in small steps and need not be woken for less …
constexpr uint64_t kBlockBytes = 256 << 10;
// … unless the bytes come slowly.
constexpr absl::Duration kMaxLag = absl::Milliseconds(5);

}  // namespace

BlobSpool::Reader::Reader(std::shared_ptr<BlobSpool> spool, std::shared_ptr<Layer> layer,
                          const FetchContext& context)
    : spool_(std::move(spool)), layer_(std::move(layer)), context_(context) {
  {
    const absl::MutexLock lock(&spool_->mutex_);
    spool_->readers_[this] = Place{context.credentials, UINT64_MAX, 0, false};
    if (spool_->options_.keep || context.keep_blob) spool_->keep_ = true;
  }
  if (context.cancel == nullptr) return;
  registration_.emplace(context.cancel->OnCancel([this] {
    const absl::MutexLock lock(&spool_->mutex_);
    spool_->readers_[this].cancelled = true;
    spool_->changed_.SignalAll();
  }));
}

BlobSpool::Reader::~Reader() {
  registration_.reset();
  std::shared_ptr<base::CancelToken> cancel;
  {
    const absl::MutexLock lock(&spool_->mutex_);
    spool_->readers_.erase(this);
    spool_->last_use_ = spool_->options_.clock->Monotonic();
    // Who comes in small steps is not inside all the time; one who gave up does not come again.
    if (gave_up_ && spool_->readers_.empty() && spool_->running_) {
      spool_->rest_ = true;
      cancel = spool_->cancel_;
    }
  }
  if (cancel != nullptr) cancel->Cancel();
}

BlobSpool::~BlobSpool() {
  Stop();
  std::thread thread;
  {
    const absl::MutexLock lock(&mutex_);
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

void BlobSpool::Stop() {
  std::shared_ptr<base::CancelToken> cancel;
  {
    const absl::MutexLock lock(&mutex_);
    stopped_ = true;
    cancel = cancel_;
    changed_.SignalAll();
    moved_.SignalAll();
  }
  if (cancel != nullptr) cancel->Cancel();
}

std::optional<absl::Duration> BlobSpool::IdleSince() const {
  const absl::MutexLock lock(&mutex_);
  if (!readers_.empty()) return std::nullopt;
  return last_use_;
}

std::string BlobSpool::Name() const { return absl::StrCat("blob ", blob_.digest.ToString()); }

uint64_t BlobSpool::Available() const {
  if (whole_) return blob_.size;
  if (again_) return 0;
  return std::min(frontier_, blob_.size - std::min(blob_.size, kHeldBackBytes));
}

uint64_t BlobSpool::Wanted() const {
  uint64_t wanted = given_;
  for (const auto& [reader, place] : readers_) wanted = std::max(wanted, place.end);
  return wanted;
}

absl::Status BlobSpool::WaitUntil(Reader& reader, absl::FunctionRef<bool()> done, const Progress& progress) {
  const absl::Duration deadline = reader.context_.deadline;
  const uint64_t failures = failures_;
  uint64_t told = 0;
  while (!done()) {
    if (failures_ != failures) return failure_;
    if (stopped_) return absl::CancelledError("the content store is being closed");
    const bool cancelled = readers_[&reader].cancelled;
    if (cancelled || options_.clock->Monotonic() >= deadline) {
      reader.gave_up_ = true;
      if (cancelled) return absl::CancelledError("cancelled");
      return absl::DeadlineExceededError(absl::StrCat(Name(), " did not arrive in time"));
    }
    if (!running_) StartPass(reader.layer_);
    if (failures_ != failures) continue;
    if (progress && frontier_ != told) {
      told = frontier_;
      mutex_.Unlock();
      progress(told);
      mutex_.Lock();
    } else if (progress || deadline != absl::InfiniteDuration()) {
      changed_.WaitFor(&mutex_, kLookInterval);
    } else {
      changed_.Wait(&mutex_);
    }
  }
  return absl::OkStatus();
}

absl::Status BlobSpool::CheckReadAgain(uint64_t offset) const {
  if (!read_again_.has_value() || offset <= *read_again_) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(Name(), ": what a source gave before byte ", offset,
                                          " was wrong; read again from the beginning"));
}

absl::StatusOr<size_t> BlobSpool::Read(Reader& reader, uint64_t offset, absl::Span<uint8_t> out) {
  std::shared_ptr<const base::UniqueFd> file;
  uint64_t length = 0;
  {
    const absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(CheckReadAgain(offset));
    Place& place = readers_[&reader];
    place.credentials = reader.context_.credentials;
    place.begin = offset;
    place.end = offset + std::min<uint64_t>(out.size(), blob_.size - offset);
    moved_.Signal();
    const absl::Status status =
        WaitUntil(reader, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return Available() > offset; }, {});
    place.begin = UINT64_MAX;
    RETURN_IF_ERROR(status);
    RETURN_IF_ERROR(CheckReadAgain(offset));
    length = std::min(Available() - offset, place.end - offset);
    given_ = std::max(given_, offset + length);
    if (read_again_.has_value()) read_again_ = std::max(*read_again_, offset + length);
    if (read_again_ == blob_.size) read_again_.reset();
    file = file_;
    if (whole_ && keep_ && kept_path_.empty() && !keep_failed_ && !running_) StartPass(reader.layer_);
  }
  RETURN_IF_ERROR(base::Annotate(base::PreadFull(file->get(), offset, out.first(length)), Name()));
  return length;
}

std::shared_ptr<const base::UniqueFd> BlobSpool::TryGive(uint64_t offset, uint64_t length) {
  const absl::MutexLock lock(&mutex_);
  const uint64_t available = Available();
  if (stopped_ || read_again_.has_value() || offset >= available || length > available - offset)
    return nullptr;
  if (whole_ && keep_ && kept_path_.empty() && !keep_failed_ && !running_)
    return nullptr;  // to be kept first
  given_ = std::max(given_, offset + length);
  last_use_ = options_.clock->Monotonic();
  moved_.Signal();
  return file_;
}

absl::StatusOr<std::string> BlobSpool::Keep(Reader& reader, const Progress& progress) {
  const absl::MutexLock lock(&mutex_);
  keep_ = true;
  keep_failed_ = false;
  readers_[&reader].begin = blob_.size;
  readers_[&reader].end = blob_.size;
  moved_.Signal();
  RETURN_IF_ERROR(WaitUntil(
      reader, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !kept_path_.empty(); }, progress));
  return kept_path_;
}

CredentialsList BlobSpool::Requesters() {
  CredentialsList all;
  const absl::MutexLock lock(&mutex_);
  for (const auto& [reader, place] : readers_) all.push_back(place.credentials);
  return InTurn(all, rotation_++);
}

void BlobSpool::StartPass(std::shared_ptr<Layer> layer) {
  if (thread_.joinable()) thread_.join();  // it has let go of the lock for the last time
  running_ = true;
  rest_ = false;
  cancel_ = std::make_shared<base::CancelToken>();
  try {
    thread_ = std::thread([this, layer = std::move(layer)]() mutable { Run(std::move(layer)); });
  } catch (const std::system_error&) {
    running_ = false;
    cancel_.reset();
    ++failures_;
    failure_ = absl::ResourceExhaustedError(absl::StrCat(Name(), ": no thread can be made to read it"));
    changed_.SignalAll();
  }
}

void BlobSpool::Run(std::shared_ptr<Layer> layer) {
  const absl::Status status = Pass(*layer);
  if (!status.ok() && !absl::IsCancelled(status)) layer->NoteError(status);
  layer.reset();  // who is told that this is over may remove the layer
  const absl::MutexLock lock(&mutex_);
  running_ = false;
  if (!status.ok() && !(rest_ && absl::IsCancelled(status))) {
    ++failures_;
    failure_ = status;
  }
  rest_ = false;
  cancel_.reset();
  changed_.SignalAll();
}

absl::Status BlobSpool::Pass(Layer& layer) {
  while (true) {
    {
      const absl::MutexLock lock(&mutex_);
      if (whole_ && (!keep_ || !kept_path_.empty())) return absl::OkStatus();
      if (whole_) break;
    }
    ASSIGN_OR_RETURN(const bool verified, OpenFile(layer));
    if (verified) continue;
    if (named_) {
      const absl::Status read = ReadKept(layer);
      if (absl::IsCancelled(read)) return read;
      if (read.ok() && hasher_.Finish() == blob_.digest) {
        Complete(layer);
        continue;
      }
      options_.log(absl::StrCat("the kept bytes of ", Name(), " are damaged and will be fetched again"));
      layer.SetKept(Layer::Kept::kNo);
      unlink(layer.kept_path().c_str());
      BeginAgain();
      continue;
    }
    RETURN_IF_ERROR(Fetch(layer));
    const base::Digest found = hasher_.Finish();
    if (found == blob_.digest) {
      Complete(layer);
      continue;
    }
    const absl::Status wrong = absl::DataLossError(absl::StrCat(
        Name(), ": the bytes of ", layer.stats().last_source, " have digest ", found.ToString()));
    // Wrong bytes are asked for once more, from the next source or over the only one.
    if (++attempts_ < std::max<size_t>(2, layer.Sources().size())) {
      BeginAgain();
    } else {
      Forget();
      return wrong;
    }
  }
  const absl::Status kept = LinkKept(layer);
  if (kept.ok()) return kept;
  options_.log(absl::StrCat(Name(), " is not kept: ", base::Printable(kept.message())));
  const absl::MutexLock lock(&mutex_);
  keep_failed_ = true;
  return kept;
}

absl::StatusOr<bool> BlobSpool::OpenFile(Layer& layer) {
  {
    const absl::MutexLock lock(&mutex_);
    if (file_ != nullptr) return false;
  }
  named_ = false;
  const Layer::Kept kept = layer.kept();
  absl::StatusOr<base::UniqueFd> file = absl::NotFoundError("");
  if (kept != Layer::Kept::kNo) {
    file = base::OpenFile(layer.kept_path(), O_RDONLY);
    struct stat st{};
    named_ = file.ok() && fstat(file->get(), &st) == 0 && static_cast<uint64_t>(st.st_size) == blob_.size;
    if (!named_) layer.SetKept(Layer::Kept::kNo);
  }
  if (!named_) {
    file = base::OpenNamelessFile(layer.directory());
    if (!file.ok()) return base::Annotate(file.status(), absl::StrCat(Name(), " cannot be read whole"));
  }
  unpacked_ = layer.StartUnpacking(options_.limits);
  const absl::MutexLock lock(&mutex_);
  file_ = std::make_shared<const base::UniqueFd>(*std::move(file));
  if (named_ && kept == Layer::Kept::kVerified) {
    whole_ = true;
    kept_path_ = layer.kept_path();
    changed_.SignalAll();
  }
  return whole_;
}

absl::Status BlobSpool::ReadKept(Layer& layer) {
  std::vector<uint8_t> block(std::min(kBlockBytes, blob_.size));
  while (true) {
    uint64_t at = 0;
    std::shared_ptr<const base::UniqueFd> file;
    {
      const absl::MutexLock lock(&mutex_);
      if (stopped_ || rest_) return absl::CancelledError("nobody reads the blob any more");
      if (frontier_ == blob_.size) return absl::OkStatus();
      at = frontier_;
      file = file_;
    }
    const auto part = absl::MakeSpan(block).first(std::min<uint64_t>(block.size(), blob_.size - at));
    RETURN_IF_ERROR(base::Annotate(base::PreadFull(file->get(), at, part), layer.kept_path()));
    hasher_.Update(part);
    if (unpacked_ != nullptr) unpacked_->Feed(part);
    Advance(part.size());
  }
}

absl::Status BlobSpool::Fetch(Layer& layer) {
  uint64_t at = 0;
  StreamCaller caller;
  {
    const absl::MutexLock lock(&mutex_);
    at = frontier_;
    caller.cancel = cancel_;
  }
  if (at == blob_.size) return absl::OkStatus();
  RETURN_IF_ERROR(AwaitRoom());
  caller.requesters = [this] { return Requesters(); };
  caller.first_source = attempts_;
  block_.clear();
  const absl::Status status = StreamFromSources(
      layer, {at, blob_.size - at}, [this](absl::Span<const uint8_t> bytes) { return Take(bytes); }, caller);
  if (absl::IsCancelled(status)) return status;
  const absl::Status flushed = Flush();  // also what came before a failure
  return status.ok() ? flushed : status;
}

absl::Status BlobSpool::AwaitRoom() {
  const absl::Duration hold_until = options_.clock->Monotonic() + kHoldConnection;
  const absl::MutexLock lock(&mutex_);
  while (true) {
    if (stopped_ || rest_) return absl::CancelledError("nobody reads the blob any more");
    const uint64_t wanted = Wanted();
    const uint64_t ahead = std::min(options_.window_bytes, std::max(kFirstWindow, wanted));
    const bool room = again_ ? !readers_.empty() : frontier_ < wanted || frontier_ - wanted < ahead;
    if (room) return absl::OkStatus();
    if (options_.clock->Monotonic() >= hold_until) rest_ = true;
    if (!rest_) moved_.WaitFor(&mutex_, kLookInterval);
  }
}

absl::Status BlobSpool::Take(absl::Span<const uint8_t> bytes) {
  const uint64_t most = std::clamp<uint64_t>(options_.window_bytes / 4, 1, kBlockBytes);
  while (!bytes.empty()) {
    const uint64_t taken = std::min<uint64_t>(bytes.size(), most - block_.size());
    block_.insert(block_.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(taken));
    bytes.remove_prefix(taken);
    if (block_.size() == most || options_.clock->Monotonic() - flushed_ >= kMaxLag) RETURN_IF_ERROR(Flush());
  }
  return absl::OkStatus();
}

absl::Status BlobSpool::Flush() {
  if (block_.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(AwaitRoom());
  uint64_t at = 0;
  std::shared_ptr<const base::UniqueFd> file;
  {
    const absl::MutexLock lock(&mutex_);
    at = frontier_;
    file = file_;
  }
  absl::Status written = base::FaultPoint("contentstore.blob.write");
  if (written.ok()) {
    // What cannot have room is in flight: there is no reading whole blobs without the disk.
    const absl::Status room = charge_.Grow(block_.size());
    if (!room.ok()) {
      charge_.Set(charge_.bytes() + block_.size());
      no_room_ = room;
    }
    written = base::PwriteFull(file->get(), at, block_);
  }
  if (!written.ok()) {
    return base::Annotate(
        written, absl::StrCat(Name(), " cannot be read whole, its disk does not take it (free space)"));
  }
  RETURN_IF_ERROR(CompareWithGiven(at, block_));
  Advance(block_.size());
  hasher_.Update(block_);
  if (unpacked_ != nullptr) unpacked_->Feed(block_);
  block_.clear();
  flushed_ = options_.clock->Monotonic();
  return absl::OkStatus();
}

absl::Status BlobSpool::CompareWithGiven(uint64_t at, absl::Span<const uint8_t> bytes) {
  if (before_ == nullptr) return absl::OkStatus();
  uint64_t length = 0;
  {
    const absl::MutexLock lock(&mutex_);
    if (differs_.has_value() || at >= given_) return absl::OkStatus();
    length = std::min<uint64_t>(bytes.size(), given_ - at);
  }
  std::vector<uint8_t> given(length);
  RETURN_IF_ERROR(base::PreadFull(before_->get(), at, absl::MakeSpan(given)));
  const auto same = std::mismatch(given.begin(), given.end(), bytes.begin()).first;
  if (same == given.end()) return absl::OkStatus();
  const absl::MutexLock lock(&mutex_);
  differs_ = at + static_cast<uint64_t>(same - given.begin());
  return absl::OkStatus();
}

void BlobSpool::Advance(uint64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  frontier_ += bytes;
  const uint64_t available = Available();
  const bool awaited = std::any_of(readers_.begin(), readers_.end(),
                                   [&](const auto& one) { return one.second.begin < available; });
  if (awaited) changed_.SignalAll();
}

void BlobSpool::BeginAgain() {
  charge_.Set(0);
  no_room_ = absl::OkStatus();
  hasher_ = base::Hasher(blob_.digest.algorithm());
  const absl::MutexLock lock(&mutex_);
  if (!again_ && given_ > 0) before_ = file_;
  file_.reset();
  frontier_ = 0;
  again_ = true;
  differs_.reset();
}

void BlobSpool::Forget() {
  charge_.Set(0);
  no_room_ = absl::OkStatus();
  hasher_ = base::Hasher(blob_.digest.algorithm());
  before_.reset();
  attempts_ = 0;
  const absl::MutexLock lock(&mutex_);
  if (given_ > 0) read_again_ = 0;
  file_.reset();
  frontier_ = 0;
  given_ = 0;
  again_ = false;
  differs_.reset();
}

void BlobSpool::Complete(Layer& layer) {
  before_.reset();
  if (unpacked_ != nullptr) {
    layer.NoteUnpacked(*unpacked_, options_.log);
    unpacked_.reset();
  }
  if (named_) layer.SetKept(Layer::Kept::kVerified);
  const absl::MutexLock lock(&mutex_);
  if (whole_) return;
  whole_ = true;
  again_ = false;
  if (differs_.has_value()) read_again_ = std::min(*differs_, read_again_.value_or(*differs_));
  if (named_) kept_path_ = layer.kept_path();
  changed_.SignalAll();
}

absl::Status BlobSpool::LinkKept(Layer& layer) {
  const std::string path = layer.kept_path();
  std::shared_ptr<const base::UniqueFd> file;
  {
    const absl::MutexLock lock(&mutex_);
    file = file_;
  }
  RETURN_IF_ERROR(no_room_);
  RETURN_IF_ERROR(base::FaultPoint("contentstore.blob.sync"));
  if (fdatasync(file->get()) != 0) return base::ErrnoStatus(errno, absl::StrCat("sync ", Name()));
  RETURN_IF_ERROR(base::FaultPoint("contentstore.blob.link"));
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return base::ErrnoStatus(errno, absl::StrCat("remove ", path));
  }
  const std::string nameless = absl::StrCat("/proc/self/fd/", file->get());
  if (linkat(AT_FDCWD, nameless.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("link ", path));
  }
  RETURN_IF_ERROR(base::FaultPoint("contentstore.blob.linked"));
  RETURN_IF_ERROR(base::SyncDirectory(layer.directory()));
  layer.SetKeptCharge(std::exchange(charge_, CacheBudget::Charge(options_.budget)));
  layer.SetKept(Layer::Kept::kVerified);
  const absl::MutexLock lock(&mutex_);
  kept_path_ = path;
  changed_.SignalAll();
  return absl::OkStatus();
}

}  // namespace lazyblob::contentstore

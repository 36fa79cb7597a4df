#include "contentservice/ingests.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/checked.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::contentservice {
namespace {

constexpr size_t kMaxRefBytes = 16 << 10;
constexpr uint64_t kMaxRecordBytes = 256 << 10;
constexpr uint64_t kMaxBytes = 1ull << 62;
constexpr size_t kPiece = 1 << 20;
constexpr uint64_t kWritebackStep = 8 << 20;

std::string Quoted(const std::string& ref) {
  return absl::StrCat("ref \"", base::Printable(ref.substr(0, 256)), "\"");
}

absl::Status NoSuchIngest(const std::string& ref) {
  return absl::NotFoundError(absl::StrCat(Quoted(ref), ": no such ingest"));
}

// What `ingest.json` says.
struct Record {
  IngestStatus status;
  std::string boot_id;
  uint64_t synced = 0;
};

absl::StatusOr<Record> ReadRecord(const std::string& path) {
  ASSIGN_OR_RETURN(std::string text, base::ReadFile(path, kMaxRecordBytes));
  ASSIGN_OR_RETURN(nlohmann::json json, base::ParseJson(text, kMaxRecordBytes));
  ASSIGN_OR_RETURN(auto ref, base::JsonString(json, "ref"));
  ASSIGN_OR_RETURN(auto total, base::JsonUint(json, "total"));
  ASSIGN_OR_RETURN(auto expected, base::JsonString(json, "expected"));
  ASSIGN_OR_RETURN(auto started, base::JsonUint(json, "started"));
  ASSIGN_OR_RETURN(auto boot_id, base::JsonString(json, "boot_id"));
  ASSIGN_OR_RETURN(auto synced, base::JsonUint(json, "synced"));
  if (!ref || !started || *started > kMaxBytes) return absl::InvalidArgumentError("no record of an ingest");
  Record record;
  record.status.ref = *ref;
  record.status.total = total.value_or(0);
  if (expected) {
    ASSIGN_OR_RETURN(record.status.expected, base::Digest::Parse(*expected));
  }
  record.status.started = absl::FromUnixNanos(static_cast<int64_t>(*started));
  record.boot_id = boot_id.value_or("");
  record.synced = synced.value_or(0);
  return record;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ingests>> Ingests::Open(Options options) {
  std::unique_ptr<Ingests> ingests(new Ingests(std::move(options)));
  const std::string& directory = ingests->options_.directory;
  RETURN_IF_ERROR(base::MakeDirectories(directory));
  ASSIGN_OR_RETURN(std::string boot_id, base::ReadFile("/proc/sys/kernel/random/boot_id", 4096));
  ingests->boot_id_ = std::string(absl::StripSuffix(boot_id, "\n"));
  ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(directory));
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(directory, "/", name);
    if (ingests->Load(path).ok()) continue;
    RETURN_IF_ERROR(base::RemoveTree(path));
  }
  return ingests;
}

std::string Ingests::DirectoryOf(const std::string& ref) const {
  return absl::StrCat(options_.directory, "/", base::Digest::Of(ref).hex());
}

absl::Status Ingests::Load(const std::string& directory) {
  ASSIGN_OR_RETURN(Record record, ReadRecord(directory + "/ingest.json"));
  if (DirectoryOf(record.status.ref) != directory) return absl::InvalidArgumentError("not where it belongs");
  auto state = std::make_shared<State>();
  state->directory = directory;
  state->status = record.status;
  const std::string data = directory + "/data";
  ASSIGN_OR_RETURN(base::UniqueFd file, base::OpenFile(data, O_WRONLY | O_NOFOLLOW));
  struct stat st;
  if (fstat(file.get(), &st) != 0) return base::ErrnoStatus(errno, data);
  if (!S_ISREG(st.st_mode)) return absl::InvalidArgumentError("no file");
  uint64_t size = static_cast<uint64_t>(st.st_size);
  if (record.boot_id != boot_id_) {
    size = std::min(size, record.synced);
    if (ftruncate(file.get(), static_cast<off_t>(size)) != 0) return base::ErrnoStatus(errno, data);
    RETURN_IF_ERROR(WriteRecord(*state, size, /*first=*/false));
  }
  state->status.offset = size;
  state->status.updated = std::max(state->status.started, absl::TimeFromTimespec(st.st_mtim));
  absl::MutexLock lock(&mutex_);
  states_[state->status.ref] = std::move(state);
  return absl::OkStatus();
}

absl::Status Ingests::WriteRecord(const State& state, uint64_t synced, bool first) const {
  nlohmann::json json = {{"ref", state.status.ref},
                         {"total", state.status.total},
                         {"started", absl::ToUnixNanos(state.status.started)},
                         {"boot_id", boot_id_},
                         {"synced", synced}};
  if (!state.status.expected.empty()) json["expected"] = state.status.expected.ToString();
  const std::string path = state.directory + "/ingest.json";
  const std::string text = json.dump();
  if (!first) return base::WriteFileAtomically(path, text);
  // Written by half it is no ingest, which is as good as none.
  ASSIGN_OR_RETURN(base::UniqueFd file, base::OpenFile(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW));
  return base::WriteFull(file.get(),
                         absl::MakeSpan(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
}

absl::StatusOr<std::unique_ptr<Ingest>> Ingests::Take(const std::string& ref, uint64_t total,
                                                      const base::Digest& expected) {
  if (ref.empty() || ref.size() > kMaxRefBytes || !base::IsUtf8(ref)) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(ref), ": want 1 to ", kMaxRefBytes, " bytes of UTF-8"));
  }
  std::shared_ptr<State> state;
  {
    absl::MutexLock lock(&mutex_);
    if (!locked_.insert(ref).second) {
      return absl::UnavailableError(
          absl::StrCat(Quoted(ref), ": locked, somebody else writes it; try again later"));
    }
    if (auto found = states_.find(ref); found != states_.end()) state = found->second;
  }
  std::unique_ptr<Ingest> ingest(new Ingest(this, ref));  // unlocks when it goes
  if (state != nullptr) {
    const absl::Status resumed = ingest->Resume(state, total, expected);
    if (resumed.ok()) return ingest;
    if (!absl::IsNotFound(resumed)) return resumed;  // else aborted a moment ago
  }
  RETURN_IF_ERROR(ingest->Begin(total, expected));
  return ingest;
}

absl::StatusOr<IngestStatus> Ingests::Status(const std::string& ref) {
  absl::MutexLock lock(&mutex_);
  auto found = states_.find(ref);
  if (found == states_.end()) return NoSuchIngest(ref);
  return found->second->status;
}

std::vector<IngestStatus> Ingests::List() {
  std::vector<IngestStatus> statuses;
  absl::MutexLock lock(&mutex_);
  for (const auto& [ref, state] : states_) statuses.push_back(state->status);
  return statuses;
}

absl::Status Ingests::Abort(const std::string& ref) {
  absl::MutexLock lock(&mutex_);
  auto found = states_.find(ref);
  if (found == states_.end()) return NoSuchIngest(ref);
  const std::string& directory = found->second->directory;
  const std::string aborted = absl::StrCat(options_.directory, "/aborted-", ++aborted_);
  RETURN_IF_ERROR(base::FaultPoint("content/abort/begin"));
  if (rename(directory.c_str(), aborted.c_str()) != 0 && errno != ENOENT) {
    return base::ErrnoStatus(errno, absl::StrCat("rename ", directory));
  }
  states_.erase(found);
  RETURN_IF_ERROR(base::FaultPoint("content/abort/renamed"));
  options_.pool->Schedule([this, aborted] {
    const absl::Status removed = base::RemoveTree(aborted);
    if (!removed.ok()) options_.log(absl::StrCat("content: ", removed.message()));
  });
  return absl::OkStatus();
}

void Ingests::SetStatus(const std::shared_ptr<State>& state, const IngestStatus& status) {
  absl::MutexLock lock(&mutex_);
  state->status = status;
}

absl::Status Ingest::Begin(uint64_t total, const base::Digest& expected) {
  status_.offset = 0;
  status_.total = total;
  status_.expected = expected;
  status_.started = status_.updated = all_->options_.clock->WallTime();
  hasher_ = base::Hasher(expected.algorithm());
  auto state = std::make_shared<Ingests::State>();
  state->directory = all_->DirectoryOf(status_.ref);
  state->status = status_;
  auto make = [&]() -> absl::Status {
    RETURN_IF_ERROR(base::FaultPoint("content/begin/begin"));
    RETURN_IF_ERROR(base::RemoveTree(state->directory));
    RETURN_IF_ERROR(base::MakeDirectories(state->directory));
    RETURN_IF_ERROR(base::FaultPoint("content/begin/directory-made"));
    RETURN_IF_ERROR(all_->WriteRecord(*state, 0, /*first=*/true));
    RETURN_IF_ERROR(base::FaultPoint("content/begin/record-written"));
    ASSIGN_OR_RETURN(
        data_, base::OpenFile(state->directory + "/data", O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
    return base::FaultPoint("content/begin/done");
  };
  if (absl::Status status = make(); !status.ok()) {
    base::RemoveTree(state->directory).IgnoreError();
    return status;
  }
  state_ = state;
  absl::MutexLock lock(&all_->mutex_);
  all_->states_[status_.ref] = std::move(state);
  return absl::OkStatus();
}

absl::Status Ingest::Resume(std::shared_ptr<Ingests::State> state, uint64_t total,
                            const base::Digest& expected) {
  {
    absl::MutexLock lock(&all_->mutex_);
    status_ = state->status;
  }
  ASSIGN_OR_RETURN(data_, base::OpenFile(state->directory + "/data", O_RDWR | O_NOFOLLOW));
  state_ = std::move(state);
  const bool anew = total != 0 && status_.total != 0 && total != status_.total;
  if (total != 0 && total != status_.total) {
    status_.total = total;
    unsynced_ = true;
  }
  if (!expected.empty() && expected != status_.expected) {
    status_.expected = expected;
    unsynced_ = true;
  }
  hasher_ = base::Hasher(status_.expected.algorithm());
  if (anew) {
    status_.started = all_->options_.clock->WallTime();
    return Truncate(0);
  }
  RETURN_IF_ERROR(HashWhatIsThere());
  all_->SetStatus(state_, status_);
  return absl::OkStatus();
}

absl::Status Ingest::HashWhatIsThere() {
  std::vector<uint8_t> buffer(std::min<uint64_t>(kPiece, status_.offset));
  for (uint64_t at = 0; at < status_.offset;) {
    absl::Span<uint8_t> piece(buffer.data(), std::min<uint64_t>(buffer.size(), status_.offset - at));
    RETURN_IF_ERROR(base::Annotate(base::PreadFull(data_.get(), at, piece), DataPath()));
    hasher_.Update(absl::MakeConstSpan(piece));
    at += piece.size();
  }
  return absl::OkStatus();
}

Ingest::~Ingest() {
  if (state_ != nullptr && unsynced_) {
    const absl::Status kept = [&]() -> absl::Status {
      RETURN_IF_ERROR(base::FaultPoint("content/close/begin"));
      RETURN_IF_ERROR(Sync());
      RETURN_IF_ERROR(base::FaultPoint("content/close/synced"));
      RETURN_IF_ERROR(all_->WriteRecord(*state_, status_.offset, /*first=*/false));
      RETURN_IF_ERROR(base::SyncDirectory(all_->options_.directory));
      return base::FaultPoint("content/close/done");
    }();
    // Aborted ingests have no directory.
    if (!kept.ok() && !absl::IsNotFound(kept)) {
      all_->options_.log(
          absl::StrCat("content: ", Quoted(status_.ref), " is kept, but not synced: ", kept.message()));
    }
  }
  absl::MutexLock lock(&all_->mutex_);
  all_->locked_.erase(status_.ref);
}

absl::Status Ingest::Append(absl::Span<const uint8_t> bytes) {
  uint64_t end = 0;
  if (!base::CheckedAdd(status_.offset, bytes.size(), &end) || end > kMaxBytes) {
    return absl::OutOfRangeError(absl::StrCat(Quoted(status_.ref), ": longer than any file"));
  }
  if (bytes.empty()) return absl::OkStatus();
  unsynced_ = true;
  RETURN_IF_ERROR(base::FaultPoint("content/append/begin"));
  if (absl::Status written = base::PwriteFull(data_.get(), status_.offset, bytes); !written.ok()) {
    // Else it would be resumed from a part of the piece: right as well, but not what status() told.
    if (ftruncate(data_.get(), static_cast<off_t>(status_.offset)) != 0) {
      all_->options_.log(absl::StrCat("content: ", Quoted(status_.ref), ": cannot be cut back"));
    }
    return base::Annotate(written, Quoted(status_.ref));
  }
  // Begun early, so that little is left for the sync of the commit: containerd holds its database lock then.
  if (end / kWritebackStep != status_.offset / kWritebackStep) {
    sync_file_range(data_.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
  }
  hasher_.Update(bytes);
  status_.offset = end;
  status_.updated = all_->options_.clock->WallTime();
  all_->SetStatus(state_, status_);
  return base::FaultPoint("content/append/done");
}

absl::Status Ingest::Truncate(uint64_t size) {
  if (size == status_.offset && size != 0) return absl::OkStatus();
  if (size != 0) {
    return absl::OutOfRangeError(absl::StrCat(Quoted(status_.ref), ": cannot be cut to ", size, " of ",
                                              status_.offset, " bytes; begin anew with 0"));
  }
  RETURN_IF_ERROR(base::FaultPoint("content/truncate/begin"));
  // Else bytes of the new beginning would be taken for synced ones after the machine goes down. An aborted
  // ingest has no directory.
  const absl::Status recorded = all_->WriteRecord(*state_, 0, /*first=*/false);
  if (!absl::IsNotFound(recorded)) RETURN_IF_ERROR(recorded);
  if (ftruncate(data_.get(), 0) != 0) return base::ErrnoStatus(errno, DataPath());
  hasher_ = base::Hasher(status_.expected.algorithm());
  status_.offset = 0;
  status_.updated = all_->options_.clock->WallTime();
  unsynced_ = true;
  all_->SetStatus(state_, status_);
  return base::FaultPoint("content/truncate/done");
}

absl::Status Ingest::Sync() {
  if (fdatasync(data_.get()) != 0) return base::ErrnoStatus(errno, absl::StrCat("fdatasync ", DataPath()));
  return absl::OkStatus();
}

absl::Status Ingest::MoveTo(const std::string& path) {
  if (rename(DataPath().c_str(), path.c_str()) != 0) {
    if (errno == ENOENT) return absl::NotFoundError(absl::StrCat(Quoted(status_.ref), ": was aborted"));
    return base::ErrnoStatus(errno, absl::StrCat("rename ", DataPath(), " to ", path));
  }
  fchmod(data_.get(), 0444);  // against slips only
  return absl::OkStatus();
}

absl::Status Ingest::MoveBack(const std::string& path) {
  if (rename(path.c_str(), DataPath().c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("rename ", path, " to ", DataPath()));
  }
  fchmod(data_.get(), 0600);
  return absl::OkStatus();
}

void Ingest::Discard() {
  {
    absl::MutexLock lock(&all_->mutex_);
    auto found = all_->states_.find(status_.ref);
    if (found != all_->states_.end() && found->second == state_) all_->states_.erase(found);
  }
  const absl::Status removed = base::RemoveTree(state_->directory);
  if (!removed.ok()) all_->options_.log(absl::StrCat("content: ", removed.message()));
  state_ = nullptr;
}

}  // namespace lazyblob::contentservice

#include "exporter/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "exporter/internal/resumable_hash.h"

namespace lazyblob::exporter {
namespace {

constexpr uint64_t kVersion = 1;
constexpr uint64_t kMaxEntryBytes = 64 << 10;
constexpr char kSuffix[] = ".session";

absl::StatusOr<std::string> NeedString(const nlohmann::json& object, const char* key) {
  ASSIGN_OR_RETURN(std::optional<std::string> value, base::JsonString(object, key));
  if (!value.has_value()) return absl::InvalidArgumentError(absl::StrCat("no ", key));
  return *std::move(value);
}

absl::StatusOr<uint64_t> NeedUint(const nlohmann::json& object, const char* key) {
  ASSIGN_OR_RETURN(const std::optional<uint64_t> value, base::JsonUint(object, key));
  if (!value.has_value()) return absl::InvalidArgumentError(absl::StrCat("no ", key));
  return *value;
}

std::string EncodeEntry(const JournalEntry& entry) {
  nlohmann::ordered_json json;
  json["version"] = kVersion;
  json["host"] = entry.repository.host;
  json["repository"] = entry.repository.repository;
  json["digest"] = entry.digest.ToString();
  json["size"] = entry.size;
  json["location"] = entry.session.location;
  json["offset"] = entry.session.offset;
  json["minChunk"] = entry.session.min_chunk;
  json["hashState"] = entry.hash_state;
  json["saved"] = entry.saved;
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

absl::StatusOr<JournalEntry> DecodeEntry(absl::string_view text) {
  ASSIGN_OR_RETURN(const nlohmann::json json, base::ParseJson(text, kMaxEntryBytes));
  ASSIGN_OR_RETURN(const uint64_t version, NeedUint(json, "version"));
  if (version != kVersion) return absl::InvalidArgumentError(absl::StrCat("version ", version));
  JournalEntry entry;
  ASSIGN_OR_RETURN(entry.repository.host, NeedString(json, "host"));
  ASSIGN_OR_RETURN(entry.repository.repository, NeedString(json, "repository"));
  ASSIGN_OR_RETURN(const std::string digest, NeedString(json, "digest"));
  ASSIGN_OR_RETURN(entry.digest, base::Digest::Parse(digest));
  ASSIGN_OR_RETURN(entry.size, NeedUint(json, "size"));
  ASSIGN_OR_RETURN(entry.session.location, NeedString(json, "location"));
  ASSIGN_OR_RETURN(entry.session.offset, NeedUint(json, "offset"));
  ASSIGN_OR_RETURN(entry.session.min_chunk, NeedUint(json, "minChunk"));
  ASSIGN_OR_RETURN(entry.hash_state, NeedString(json, "hashState"));
  ASSIGN_OR_RETURN(const uint64_t saved, NeedUint(json, "saved"));
  entry.saved = static_cast<int64_t>(saved);
  if (entry.session.offset > entry.size) return absl::InvalidArgumentError("offset beyond size");
  RETURN_IF_ERROR(
      internal::ResumableHash::FromState(entry.digest.algorithm(), entry.session.offset, entry.hash_state)
          .status());
  return entry;
}

absl::StatusOr<base::UniqueFd> Lock(const std::string& directory, absl::Duration patience) {
  ASSIGN_OR_RETURN(base::UniqueFd lock, base::OpenFile(directory, O_RDONLY | O_DIRECTORY));
  const absl::Duration give_up = base::SystemClock().Monotonic() + patience;
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return base::ErrnoStatus(errno, absl::StrCat("lock ", directory));
    if (base::SystemClock().Monotonic() >= give_up) {
      return absl::FailedPreconditionError(absl::StrCat(directory, ": another process uploads with it"));
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  return lock;
}

// Whole or not at all, but not synced: an upload does not wait for the disk after each chunk.
absl::Status Replace(const std::string& path, absl::string_view text) {
  const std::string unfinished = absl::StrCat(path, ".new");
  {
    ASSIGN_OR_RETURN(base::UniqueFd file, base::OpenFile(unfinished, O_WRONLY | O_CREAT | O_TRUNC, 0600));
    RETURN_IF_ERROR(
        base::WriteFull(file.get(), {reinterpret_cast<const uint8_t*>(text.data()), text.size()}));
  }
  if (::rename(unfinished.c_str(), path.c_str()) != 0) return base::ErrnoStatus(errno, path);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Journal>> Journal::Open(const std::string& directory, absl::Duration max_age,
                                                       const base::Clock* clock, absl::Duration patience) {
  RETURN_IF_ERROR(base::MakeDirectories(directory));
  struct stat info{};
  if (::stat(directory.c_str(), &info) != 0) return base::ErrnoStatus(errno, directory);
  if (!S_ISDIR(info.st_mode) || (info.st_mode & 0077) != 0 || info.st_uid != ::geteuid()) {
    return absl::FailedPreconditionError(absl::StrCat(
        directory, ": upload sessions are as good as credentials; make it a directory of mode 0700"));
  }
  ASSIGN_OR_RETURN(base::UniqueFd lock, Lock(directory, patience));
  std::unique_ptr<Journal> journal(new Journal(directory, std::move(lock), clock));
  const int64_t oldest = absl::ToUnixSeconds(clock->WallTime() - max_age);
  for (const JournalEntry& entry : journal->All()) {
    if (entry.saved < oldest) journal->Remove(entry.repository, entry.digest);
  }
  return journal;
}

std::string Journal::PathOf(const oci::Reference& repository, const base::Digest& digest) const {
  const std::string key = absl::StrCat(repository.host, "\n", repository.repository, "\n", digest.ToString());
  return absl::StrCat(directory_, "/", base::Digest::Of(key).hex(), kSuffix);
}

absl::Status Journal::Save(JournalEntry entry) {
  RETURN_IF_ERROR(base::FaultPoint("exporter.journal"));
  entry.saved = absl::ToUnixSeconds(clock_.WallTime());
  const absl::MutexLock lock(&mutex_);
  return Replace(PathOf(entry.repository, entry.digest), EncodeEntry(entry));
}

std::optional<JournalEntry> Journal::Find(const oci::Reference& repository, const base::Digest& digest) {
  const std::string path = PathOf(repository, digest);
  const absl::MutexLock lock(&mutex_);
  const absl::StatusOr<std::string> text = base::ReadFile(path, kMaxEntryBytes);
  if (!text.ok()) return std::nullopt;
  absl::StatusOr<JournalEntry> entry = DecodeEntry(*text);
  if (!entry.ok() || entry->digest != digest || entry->repository.Name() != repository.Name()) {
    ::unlink(path.c_str());
    return std::nullopt;
  }
  return *std::move(entry);
}

void Journal::Remove(const oci::Reference& repository, const base::Digest& digest) {
  const absl::MutexLock lock(&mutex_);
  ::unlink(PathOf(repository, digest).c_str());
}

std::vector<JournalEntry> Journal::All() {
  const absl::MutexLock lock(&mutex_);
  std::vector<JournalEntry> entries;
  const absl::StatusOr<std::vector<std::string>> names = base::ListDirectory(directory_);
  if (!names.ok()) return entries;
  for (const std::string& name : *names) {
    if (!absl::EndsWith(name, kSuffix)) continue;
    const absl::StatusOr<std::string> text =
        base::ReadFile(absl::StrCat(directory_, "/", name), kMaxEntryBytes);
    if (!text.ok()) continue;
    absl::StatusOr<JournalEntry> entry = DecodeEntry(*text);
    if (entry.ok()) entries.push_back(*std::move(entry));
  }
  return entries;
}

}  // namespace lazyblob::exporter

#include "contentservice/content.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <optional>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/checked.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/sqlite.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "containerd/filter.h"
#include "contentservice/content_database.h"
#include "contentservice/ingests.h"
#include "contentservice/internal/blob_info.h"
#include "contentservice/internal/link_or_copy.h"

namespace lazyblob::contentservice {
namespace {

constexpr uint64_t kPiece = 1 << 20;
constexpr size_t kAdoptedPerTransaction = 512;
constexpr size_t kDeletedPerTransaction = 64;  // whoever writes one of them again waits for all
constexpr size_t kOpenFiles = 64;              // of held blobs, between reads
constexpr base::DigestAlgorithm kAlgorithms[] = {base::DigestAlgorithm::kSha256,
                                                 base::DigestAlgorithm::kSha512};

absl::string_view NameOf(base::DigestAlgorithm algorithm) {
  return algorithm == base::DigestAlgorithm::kSha256 ? "sha256" : "sha512";
}

class LocalContent final : public Content {
 public:
  LocalContent(ContentOptions options, std::unique_ptr<base::Sqlite> database)
      : options_(std::move(options)), database_(std::move(database)) {}
  absl::Status Start();

  absl::StatusOr<Info> GetInfo(const base::Digest& digest) override;
  std::optional<Info> TryInfo(const base::Digest& digest) override;
  absl::StatusOr<Info> Update(const Info& info, const std::vector<std::string>& paths) override;
  absl::Status List(const std::vector<std::string>& filters,
                    absl::FunctionRef<absl::Status(const Info&)> visit) override;
  std::vector<Info> MayBeHeldLazily() override {
    return options_.lazy != nullptr ? options_.lazy->MayBeHeld() : std::vector<Info>();
  }
  absl::Status Delete(const base::Digest& digest) override;
  absl::Status Read(const base::Digest& digest, uint64_t offset, uint64_t size, ReadSink sink,
                    const std::shared_ptr<base::CancelToken>& cancel) override;
  bool TryRead(const base::Digest& digest, uint64_t offset, uint64_t size, ReadRoom room) override;
  absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(const std::string& ref, uint64_t total,
                                                     const base::Digest& expected) override;
  absl::StatusOr<IngestStatus> Status(const std::string& ref) override { return ingests_->Status(ref); }
  absl::StatusOr<std::vector<IngestStatus>> ListStatuses(const std::vector<std::string>& filters) override;
  absl::Status Abort(const std::string& ref) override { return ingests_->Abort(ref); }
  absl::StatusOr<std::string> HeldFile(const base::Digest& digest) override;
  absl::StatusOr<size_t> Adopt(const std::string& directory,
                               const std::vector<base::Digest>& digests) override;

  // `ingest` becomes the blob of its digest.
  absl::Status Commit(Ingest& ingest, const Labels& labels);

 private:
  struct Held {
    std::shared_ptr<const Info> info;  // shared with the walks under way
    bool verified = true;
    std::shared_ptr<const base::UniqueFd> file = nullptr;  // if open; shared with reads under way
  };
  // The right to change what is held of one digest. Deletions under way are waited for.
  class Reservation {
   public:
    Reservation(LocalContent* content, const base::Digest& digest);
    ~Reservation();
    Reservation(Reservation&& other) noexcept
        : content_(std::exchange(other.content_, nullptr)), digest_(other.digest_) {}
    Reservation& operator=(Reservation&&) = delete;

   private:
    LocalContent* content_;
    const base::Digest digest_;
  };

  std::string DirectoryOf(base::DigestAlgorithm algorithm) const {
    return absl::StrCat(options_.root, "/blobs/", NameOf(algorithm));
  }
  std::string PathOf(const base::Digest& digest) const {
    return absl::StrCat(DirectoryOf(digest.algorithm()), "/", digest.hex());
  }
  void Log(const std::string& line) const;
  absl::Status Reconcile(std::vector<BlobRecord> records);
  std::optional<Held> Find(const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  void Put(const Info& info, bool verified) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of a held blob; false: it is none.
  bool Drop(const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  void RemoveDropped() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Verify(const base::Digest& digest, const std::shared_ptr<base::CancelToken>& cancel);
  absl::StatusOr<std::shared_ptr<const base::UniqueFd>> OpenHeld(const base::Digest& digest)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status ReadHeld(const Info& info, uint64_t offset, uint64_t size, ReadSink sink,
                        const std::shared_ptr<base::CancelToken>& cancel);
  absl::Status ReadLazy(const Info& info, uint64_t offset, uint64_t size, ReadSink sink,
                        const std::shared_ptr<base::CancelToken>& cancel);
  absl::StatusOr<size_t> AdoptSome(const std::string& directory, absl::Span<const base::Digest> digests);

  const ContentOptions options_;
  const std::unique_ptr<base::Sqlite> database_;
  std::unique_ptr<Ingests> ingests_;
  absl::Mutex mutex_;  // nothing is waited for or written under it
  std::map<base::Digest, Held> held_ ABSL_GUARDED_BY(mutex_);
  std::deque<base::Digest> opened_ ABSL_GUARDED_BY(mutex_);  // whose files are open, oldest first
  absl::flat_hash_set<base::Digest> reserved_ ABSL_GUARDED_BY(mutex_);
  std::set<base::Digest> dropped_ ABSL_GUARDED_BY(mutex_);  // not held any more; record and file remain
  bool removing_ ABSL_GUARDED_BY(mutex_) = false;
  base::ThreadPool pool_{"lb-content", 1};  // deletes files and records; goes first
};

class LocalWriter final : public Writer {
 public:
  LocalWriter(LocalContent* content, std::unique_ptr<Ingest> ingest)
      : content_(content), ingest_(std::move(ingest)) {}
  IngestStatus status() const override { return ingest_ != nullptr ? ingest_->status() : last_status_; }
  base::Digest digest() const override { return ingest_ != nullptr ? ingest_->digest() : last_digest_; }
  absl::Status Append(absl::Span<const uint8_t> bytes) override {
    return ingest_ != nullptr ? ingest_->Append(bytes) : Closed();
  }
  absl::Status Truncate(uint64_t size) override {
    return ingest_ != nullptr ? ingest_->Truncate(size) : Closed();
  }
  absl::Status Commit(uint64_t size, const base::Digest& expected, const Labels& labels) override;

 private:
  static absl::Status Closed() {
    return absl::FailedPreconditionError("the writer is closed: it was committed");
  }
  LocalContent* const content_;
  std::unique_ptr<Ingest> ingest_;  // null after Commit: the ref is free
  IngestStatus last_status_;
  base::Digest last_digest_;
};

absl::Status LocalWriter::Commit(uint64_t size, const base::Digest& expected, const Labels& labels) {
  if (ingest_ == nullptr) return Closed();
  last_status_ = ingest_->status();
  last_digest_ = ingest_->digest();
  const std::unique_ptr<Ingest> ingest = std::move(ingest_);
  if (size != 0 && size != last_status_.offset) {
    return absl::FailedPreconditionError(
        absl::StrCat("unexpected commit size ", last_status_.offset, ", expected ", size));
  }
  if (!expected.empty() && expected != last_digest_) {
    return absl::FailedPreconditionError(absl::StrCat("unexpected commit digest ", last_digest_.ToString(),
                                                      ", expected ", expected.ToString()));
  }
  return content_->Commit(*ingest, labels);
}

LocalContent::Reservation::Reservation(LocalContent* content, const base::Digest& digest)
    : content_(content), digest_(digest) {
  auto is_free = [this] {
    content_->mutex_.AssertReaderHeld();
    return !content_->reserved_.contains(digest_) && !content_->dropped_.contains(digest_);
  };
  absl::MutexLock lock(&content->mutex_);
  content->mutex_.Await(absl::Condition(&is_free));
  content->reserved_.insert(digest);
}

LocalContent::Reservation::~Reservation() {
  if (content_ == nullptr) return;
  absl::MutexLock lock(&content_->mutex_);
  content_->reserved_.erase(digest_);
}

void LocalContent::Log(const std::string& line) const {
  if (options_.log) return options_.log(line);
  std::fprintf(stderr, "%s\n", line.c_str());
}

absl::Status LocalContent::Start() {
  for (base::DigestAlgorithm algorithm : kAlgorithms) {
    RETURN_IF_ERROR(base::MakeDirectories(DirectoryOf(algorithm)));
  }
  // Commits sync no directory but the blob's.
  for (const char* directory : {"/blobs", "", "/.."}) {
    RETURN_IF_ERROR(base::SyncDirectory(options_.root + directory));
  }
  Ingests::Options ingests;
  ingests.directory = options_.root + "/ingest";
  ingests.clock = options_.clock;
  ingests.pool = &pool_;
  ingests.log = [this](absl::string_view line) { Log(std::string(line)); };
  ASSIGN_OR_RETURN(ingests_, Ingests::Open(std::move(ingests)));
  ASSIGN_OR_RETURN(std::vector<BlobRecord> records, LoadBlobs(*database_));
  return Reconcile(std::move(records));
}

// Records and files make a blob together; what has only one of them was being committed, adopted or deleted.
absl::Status LocalContent::Reconcile(std::vector<BlobRecord> records) {
  std::map<base::Digest, uint64_t> files;
  for (base::DigestAlgorithm algorithm : kAlgorithms) {
    ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(DirectoryOf(algorithm)));
    for (const std::string& name : names) {
      const auto digest = base::Digest::Parse(absl::StrCat(NameOf(algorithm), ":", name));
      struct stat st;
      const std::string path = absl::StrCat(DirectoryOf(algorithm), "/", name);
      if (digest.ok() && lstat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode)) {
        files[*digest] = static_cast<uint64_t>(st.st_size);
      } else {
        RETURN_IF_ERROR(base::RemoveTree(path));
      }
    }
  }
  std::vector<base::Digest> lost;
  absl::MutexLock lock(&mutex_);
  for (BlobRecord& record : records) {
    auto file = files.find(record.info.digest);
    if (file == files.end() || file->second != record.info.size) {
      Log(absl::StrCat("content: ", record.info.digest.ToString(), ": its file is ",
                       file == files.end() ? "missing" : "of another size", "; forgotten, pull it again"));
      lost.push_back(record.info.digest);
      continue;
    }
    files.erase(file);
    const base::Digest digest = record.info.digest;
    held_[digest] = {std::make_shared<const Info>(std::move(record.info)), record.verified};
  }
  if (!lost.empty()) RETURN_IF_ERROR(DeleteBlobs(*database_, lost));
  for (const base::Digest& digest : lost) {
    if (options_.lazy != nullptr) options_.lazy->Lost(digest);
  }
  for (const auto& [digest, size] : files) RETURN_IF_ERROR(base::RemoveTree(PathOf(digest)));
  return absl::OkStatus();
}

std::optional<LocalContent::Held> LocalContent::Find(const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  auto found = held_.find(digest);
  if (found == held_.end()) return std::nullopt;
  return found->second;
}

void LocalContent::Put(const Info& info, bool verified) {
  Held held{std::make_shared<const Info>(info), verified};
  absl::MutexLock lock(&mutex_);
  held_[info.digest] = std::move(held);
}

absl::StatusOr<Info> LocalContent::GetInfo(const base::Digest& digest) {
  if (std::optional<Held> held = Find(digest)) return *held->info;
  return options_.lazy != nullptr ? options_.lazy->Find(digest) : NoSuchBlob(digest);
}

std::optional<Info> LocalContent::TryInfo(const base::Digest& digest) {
  if (std::optional<Held> held = Find(digest)) return *held->info;
  return options_.lazy != nullptr ? options_.lazy->TryFind(digest) : std::nullopt;
}

absl::StatusOr<Info> LocalContent::Update(const Info& info, const std::vector<std::string>& paths) {
  Reservation reservation(this, info.digest);
  const std::optional<Held> held = Find(info.digest);
  ASSIGN_OR_RETURN(Info now, held ? *held->info : GetInfo(info.digest));
  ASSIGN_OR_RETURN(now.labels, Changed(now.labels, info.labels, paths));
  now.updated = options_.clock->WallTime();
  if (!held) {
    RETURN_IF_ERROR(options_.lazy->SetLabels(now.digest, now.labels, now.updated));
    return now;
  }
  RETURN_IF_ERROR(base::FaultPoint("content/update/begin"));
  RETURN_IF_ERROR(PutBlobs(*database_, {{now, held->verified}}));
  RETURN_IF_ERROR(base::FaultPoint("content/update/recorded"));
  absl::MutexLock lock(&mutex_);
  auto found = held_.find(now.digest);
  if (found == held_.end()) return NoSuchBlob(now.digest);  // deleted meanwhile
  found->second.info = std::make_shared<const Info>(now);
  return now;
}

absl::Status LocalContent::List(const std::vector<std::string>& filters,
                                absl::FunctionRef<absl::Status(const Info&)> visit) {
  ASSIGN_OR_RETURN(const containerd::Filter filter, containerd::ParseFilters(filters));
  std::map<base::Digest, std::shared_ptr<const Info>> all;
  if (options_.lazy != nullptr) {
    for (Info& info : options_.lazy->Listed()) {
      const base::Digest digest = info.digest;
      all[digest] = std::make_shared<const Info>(std::move(info));
    }
  }
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [digest, held] : held_) all[digest] = held.info;
  }
  for (const auto& [digest, info] : all) {
    if (Matches(filter, *info)) RETURN_IF_ERROR(visit(*info));
  }
  return absl::OkStatus();
}

bool LocalContent::Drop(const base::Digest& digest) {
  bool start = false;
  {
    absl::MutexLock lock(&mutex_);
    if (held_.erase(digest) == 0) return false;
    dropped_.insert(digest);
    start = !std::exchange(removing_, true);
  }
  if (start) pool_.Schedule([this] { RemoveDropped(); });
  return true;
}

// Records first: a file without one is removed when the store is opened.
void LocalContent::RemoveDropped() {
  for (;;) {
    std::vector<base::Digest> digests;
    {
      // Nobody reserves what is dropped; who had it before keeps only that one from being removed.
      auto choose = [&] {
        mutex_.AssertReaderHeld();
        digests.clear();
        for (const base::Digest& digest : dropped_) {
          if (digests.size() < kDeletedPerTransaction && !reserved_.contains(digest))
            digests.push_back(digest);
        }
        return dropped_.empty() || !digests.empty();
      };
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&choose));
      removing_ = !digests.empty();
      if (digests.empty()) return;
    }
    absl::Status status = base::FaultPoint("content/delete/begin");
    if (status.ok()) status = DeleteBlobs(*database_, digests);
    if (status.ok()) status = base::FaultPoint("content/delete/record-deleted");
    if (!status.ok()) {
      Log(absl::StrCat("content: ", digests.size(),
                       " deleted blobs come back with the next start: ", status.message()));
    }
    for (const base::Digest& digest : digests) {
      if (status.ok()) unlink(PathOf(digest).c_str());
      absl::MutexLock lock(&mutex_);
      dropped_.erase(digest);
    }
  }
}

absl::Status LocalContent::Delete(const base::Digest& digest) {
  const bool held = Drop(digest);
  const absl::Status forgotten =
      options_.lazy != nullptr ? options_.lazy->Forget(digest) : NoSuchBlob(digest);
  if (!held) return forgotten;
  if (options_.lazy != nullptr) options_.lazy->Deleted(digest);
  return absl::IsNotFound(forgotten) ? absl::OkStatus() : forgotten;
}

absl::Status LocalContent::Read(const base::Digest& digest, uint64_t offset, uint64_t size, ReadSink sink,
                                const std::shared_ptr<base::CancelToken>& cancel) {
  std::optional<Held> held = Find(digest);
  if (held && !held->verified) {
    RETURN_IF_ERROR(Verify(digest, cancel));
  }
  ASSIGN_OR_RETURN(const Info info, held ? *held->info : GetInfo(digest));
  if (offset > info.size || size > info.size - offset) {
    return absl::OutOfRangeError(absl::StrCat("content ", digest.ToString(), ": ", size, " bytes at ", offset,
                                              " lie beyond its ", info.size, " bytes"));
  }
  if (size == 0) size = info.size - offset;
  return held ? ReadHeld(info, offset, size, sink, cancel) : ReadLazy(info, offset, size, sink, cancel);
}

bool LocalContent::TryRead(const base::Digest& digest, uint64_t offset, uint64_t size, ReadRoom room) {
  const std::optional<Held> held = Find(digest);
  if (!held) return options_.lazy != nullptr && options_.lazy->TryRead(digest, offset, size, room);
  if (!held->verified || held->file == nullptr || offset >= held->info->size) return false;
  uint64_t left = held->info->size - offset;
  if (size != 0) left = std::min(left, size);
  const absl::Span<uint8_t> out = room(left);
  return !out.empty() && base::TryPreadFull(held->file->get(), offset, out);
}

absl::StatusOr<std::shared_ptr<const base::UniqueFd>> LocalContent::OpenHeld(const base::Digest& digest) {
  if (std::optional<Held> held = Find(digest); held && held->file != nullptr) return held->file;
  absl::StatusOr<base::UniqueFd> opened = base::OpenFile(PathOf(digest), O_RDONLY | O_NOFOLLOW);
  if (absl::IsNotFound(opened.status())) return NoSuchBlob(digest);  // deleted a moment ago
  RETURN_IF_ERROR(opened.status());
  auto file = std::make_shared<const base::UniqueFd>(*std::move(opened));
  absl::MutexLock lock(&mutex_);
  const auto found = held_.find(digest);
  if (found == held_.end() || found->second.file != nullptr) return file;
  found->second.file = file;
  opened_.push_back(digest);
  if (opened_.size() > kOpenFiles) {
    if (const auto oldest = held_.find(opened_.front()); oldest != held_.end()) oldest->second.file.reset();
    opened_.pop_front();
  }
  return file;
}

absl::Status LocalContent::ReadHeld(const Info& info, uint64_t offset, uint64_t size, ReadSink sink,
                                    const std::shared_ptr<base::CancelToken>& cancel) {
  ASSIGN_OR_RETURN(const auto file, OpenHeld(info.digest));
  std::vector<uint8_t> buffer(std::min(kPiece, size));
  for (const uint64_t end = offset + size; offset < end;) {
    if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("the read was cancelled");
    absl::Span<uint8_t> piece(buffer.data(), std::min<uint64_t>(buffer.size(), end - offset));
    absl::Status read = base::PreadFull(file->get(), offset, piece);
    if (absl::IsOutOfRange(read)) read = absl::DataLossError(read.message());
    RETURN_IF_ERROR(base::Annotate(read, PathOf(info.digest)));
    RETURN_IF_ERROR(sink(piece));
    offset += piece.size();
  }
  return absl::OkStatus();
}

absl::Status LocalContent::ReadLazy(const Info& info, uint64_t offset, uint64_t size, ReadSink sink,
                                    const std::shared_ptr<base::CancelToken>& cancel) {
  std::vector<uint8_t> buffer(std::min(kPiece, size));
  for (const uint64_t end = offset + size; offset < end;) {
    const absl::Span<uint8_t> out(buffer.data(), std::min<uint64_t>(buffer.size(), end - offset));
    const absl::StatusOr<size_t> read = options_.lazy->Read(info.digest, offset, out, cancel);
    if (absl::IsNotFound(read.status()) && Find(info.digest)) {  // committed meanwhile
      return Read(info.digest, offset, end - offset, sink, cancel);
    }
    ASSIGN_OR_RETURN(const size_t n, read);
    if (n == 0 || n > out.size()) {
      return absl::DataLossError(absl::StrCat("content ", info.digest.ToString(), ": its source ends at ",
                                              offset, " of ", info.size, " bytes"));
    }
    RETURN_IF_ERROR(sink(out.first(n)));
    offset += n;
  }
  return absl::OkStatus();
}

absl::Status LocalContent::Verify(const base::Digest& digest,
                                  const std::shared_ptr<base::CancelToken>& cancel) {
  Reservation reservation(this, digest);
  std::optional<Held> held = Find(digest);
  if (!held) return NoSuchBlob(digest);
  if (held->verified) return absl::OkStatus();  // by somebody else meanwhile
  base::Hasher hasher(digest.algorithm());
  const absl::Status read = ReadHeld(
      *held->info, 0, held->info->size,
      [&](absl::Span<const uint8_t> piece) {
        hasher.Update(piece);
        return absl::OkStatus();
      },
      cancel);
  RETURN_IF_ERROR(read);
  if (hasher.Finish() != digest) {
    Drop(digest);
    if (options_.lazy != nullptr) options_.lazy->Lost(digest);
    const std::string why = absl::StrCat("content ", digest.ToString(),
                                         ": was damaged when it was imported; dropped, pull it again");
    Log(why);
    return absl::DataLossError(why);
  }
  // What is not recorded is verified again after the next start.
  const absl::Status recorded = PutBlobs(*database_, {{*held->info, true}});
  if (!recorded.ok()) Log(absl::StrCat("content: ", recorded.message()));
  absl::MutexLock lock(&mutex_);
  if (auto found = held_.find(digest); found != held_.end()) found->second.verified = true;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Writer>> LocalContent::OpenWriter(const std::string& ref, uint64_t total,
                                                                 const base::Digest& expected) {
  if (!expected.empty() && GetInfo(expected).ok()) return IsThere(expected);
  ASSIGN_OR_RETURN(std::unique_ptr<Ingest> ingest, ingests_->Take(ref, total, expected));
  return std::make_unique<LocalWriter>(this, std::move(ingest));
}

absl::StatusOr<std::vector<IngestStatus>> LocalContent::ListStatuses(
    const std::vector<std::string>& filters) {
  ASSIGN_OR_RETURN(const containerd::Filter filter, containerd::ParseFilters(filters));
  std::vector<IngestStatus> statuses = ingests_->List();
  std::erase_if(statuses, [&](const IngestStatus& status) {
    return !filter.Matches(
        [&](absl::string_view name, const std::string&) -> std::optional<absl::string_view> {
          if (name == "ref") return status.ref;
          return std::nullopt;
        });
  });
  return statuses;
}

absl::Status LocalContent::Commit(Ingest& ingest, const Labels& labels) {
  RETURN_IF_ERROR(base::FaultPoint("content/commit/begin"));
  Info info;
  info.digest = ingest.digest();
  info.size = ingest.status().offset;
  info.labels = labels;
  {
    Reservation reservation(this, info.digest);
    if (Find(info.digest)) {
      ingest.Discard();
      return IsThere(info.digest);
    }
    const std::string path = PathOf(info.digest);
    RETURN_IF_ERROR(ingest.Sync());
    RETURN_IF_ERROR(base::FaultPoint("content/commit/synced"));
    RETURN_IF_ERROR(ingest.MoveTo(path));
    info.created = info.updated = options_.clock->WallTime();
    const absl::Status recorded = [&]() -> absl::Status {
      RETURN_IF_ERROR(base::FaultPoint("content/commit/renamed"));
      RETURN_IF_ERROR(base::SyncDirectory(DirectoryOf(info.digest.algorithm())));
      RETURN_IF_ERROR(base::FaultPoint("content/commit/named"));
      return PutBlobs(*database_, {{info, true}});
    }();
    if (!recorded.ok()) {
      const absl::Status back = ingest.MoveBack(path);
      if (!back.ok()) Log(absl::StrCat("content: ", back.message()));
      return recorded;
    }
    Put(info, /*verified=*/true);
    base::FaultPoint("content/commit/recorded").IgnoreError();
    ingest.Discard();
    base::FaultPoint("content/commit/done").IgnoreError();
  }
  if (options_.lazy != nullptr) options_.lazy->Committed(info.digest, info.size, ingest.status().ref);
  return absl::OkStatus();
}

absl::StatusOr<std::string> LocalContent::HeldFile(const base::Digest& digest) {
  if (!Find(digest)) return NoSuchBlob(digest);
  return PathOf(digest);
}

absl::StatusOr<size_t> LocalContent::Adopt(const std::string& directory,
                                           const std::vector<base::Digest>& digests) {
  // Ordered, so that two callers do not wait for each other's reservations.
  std::vector<base::Digest> ordered = digests;
  std::sort(ordered.begin(), ordered.end());
  ordered.erase(std::unique(ordered.begin(), ordered.end()), ordered.end());
  size_t adopted = 0;
  for (size_t at = 0; at < ordered.size(); at += kAdoptedPerTransaction) {
    ASSIGN_OR_RETURN(size_t some,
                     AdoptSome(directory, absl::MakeConstSpan(ordered).subspan(at, kAdoptedPerTransaction)));
    adopted += some;
  }
  return adopted;
}

absl::StatusOr<size_t> LocalContent::AdoptSome(const std::string& directory,
                                               absl::Span<const base::Digest> digests) {
  std::vector<Reservation> reservations;
  std::vector<BlobRecord> records;
  const absl::Status status = [&]() -> absl::Status {
    RETURN_IF_ERROR(base::FaultPoint("content/adopt/begin"));
    for (const base::Digest& digest : digests) {
      Reservation reservation(this, digest);
      if (Find(digest)) continue;
      const std::string path = PathOf(digest);
      RETURN_IF_ERROR(internal::LinkOrCopy(
          absl::StrCat(directory, "/", NameOf(digest.algorithm()), "/", digest.hex()), path));
      BlobRecord record;
      record.info.digest = digest;
      record.verified = false;
      reservations.push_back(std::move(reservation));
      records.push_back(record);
      struct stat st;
      if (lstat(path.c_str(), &st) != 0) return base::ErrnoStatus(errno, path);
      records.back().info.size = static_cast<uint64_t>(st.st_size);
      records.back().info.created = records.back().info.updated = absl::TimeFromTimespec(st.st_mtim);
    }
    RETURN_IF_ERROR(base::FaultPoint("content/adopt/named"));
    for (base::DigestAlgorithm algorithm : kAlgorithms) {
      RETURN_IF_ERROR(base::SyncDirectory(DirectoryOf(algorithm)));
    }
    return PutBlobs(*database_, records);
  }();
  if (!status.ok()) {
    for (const BlobRecord& record : records) unlink(PathOf(record.info.digest).c_str());
    return status;
  }
  base::FaultPoint("content/adopt/recorded").IgnoreError();
  for (const BlobRecord& record : records) Put(record.info, /*verified=*/false);
  return records.size();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Content>> Content::Open(ContentOptions options) {
  ASSIGN_OR_RETURN(std::unique_ptr<base::Sqlite> database, OpenDatabase(options.root));
  auto content = std::make_unique<LocalContent>(std::move(options), std::move(database));
  RETURN_IF_ERROR(content->Start());
  return content;
}

}  // namespace lazyblob::contentservice

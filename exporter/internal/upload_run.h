#pragma once

// One call of Uploader::Upload. Belongs to one thread.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "exporter/internal/resumable_hash.h"
#include "exporter/uploader.h"

namespace lazyblob::exporter {

class UploadRun {
 public:
  UploadRun(Uploader* uploader, UploadTask task) : uploader_(*uploader), task_(std::move(task)) {}
  absl::StatusOr<Uploader::Outcome> Go();

 private:
  // Whose fault an error is decides what follows.
  enum class Fault : uint8_t { kDestination, kSource, kMismatch };
  enum class Next : uint8_t { kDone, kNotNeeded, kAgain };

  absl::StatusOr<Uploader::Outcome> FromSource();
  bool KeepsSession(const absl::Status& status) const;
  bool ChooseChunks() const;
  absl::StatusOr<Next> InChunks();
  absl::StatusOr<Next> Whole();
  absl::StatusOr<Next> SendChunk(const internal::Piece& piece);
  absl::StatusOr<Next> Known();
  absl::StatusOr<size_t> GiveBody(uint64_t* position, absl::Span<uint8_t> out);

  // What to do after `status` of the destination: OK, go on; else it is final.
  absl::StatusOr<Next> Recover(const absl::Status& status);
  absl::Status RecoverChunks(const absl::Status& status, int http);
  absl::Status RecoverWhole(const absl::Status& status, int http);
  absl::Status QueryOrRestart(const absl::Status& status);
  absl::Status CountFailure(const absl::Status& status);
  bool IsThere();

  // The piece with the byte at `offset`; null at the end of the blob.
  absl::StatusOr<std::shared_ptr<const internal::Piece>> PieceAt(uint64_t offset);
  void OpenCursor(uint64_t offset);
  uint64_t PieceBytes() const;
  void HashTo(const internal::Piece& piece, uint64_t end);
  absl::Status CheckEnd();
  absl::Status Mismatch(const std::string& what);
  void RestartRead();

  absl::Status OpenSession();
  void TakeUpJournal();
  void DropSession(bool cancel);
  void SaveJournal();

  const std::string& host() const { return task_.repository.host; }
  base::CancelToken* cancel() const { return task_.call.cancel.get(); }

  Uploader& uploader_;
  UploadTask task_;
  std::optional<oci::Descriptor> known_;
  bool chunks_ = false;
  bool committing_ = false;
  Fault fault_ = Fault::kDestination;
  size_t source_ = 0;

  std::optional<registry::UploadSession> session_;
  bool fresh_ = false;  // nothing has been sent into it
  uint64_t best_ = 0;   // the farthest the registry has been
  int failures_ = 0;

  std::unique_ptr<internal::ReadFan::Cursor> cursor_;
  uint64_t cursor_at_ = 0;  // where its next piece begins
  std::shared_ptr<const internal::Piece> piece_;
  internal::ResumableHash hash_;
};

}  // namespace lazyblob::exporter

#pragma once

// Brings the chunks of one job: reads its blob range from one source after the other and decodes, verifies
// and hands on each chunk as soon as its last byte is there.

#include <vector>

#include "absl/status/status.h"
#include "contentstore/internal/flight_table.h"
#include "contentstore/internal/source_read.h"

namespace lazyblob::contentstore {

// What the engine does for a running job. Thread-safe.
class JobHost {
 public:
  virtual ~JobHost() = default;
  virtual CredentialsList Requesters(const Job& job) = 0;
  virtual absl::Duration Deadline(const Job& job) = 0;
  // The chunk is verified and in the cache file, or else in `memory`. Answers who waited for it.
  virtual void Deliver(const Job& job, uint64_t chunk, const Bytes& memory) = 0;
  virtual void NoteDiskError(const Layer& layer, const absl::Status& status) = 0;
  virtual absl::Duration Now() = 0;
};

// Used by one thread, once.
class JobRunner {
 public:
  JobRunner(JobHost& host, Job& job) : host_(host), job_(job) {}
  // OK when every chunk was delivered; else why the rest was not.
  absl::Status Run();

 private:
  class Window;

  std::vector<Job::Item*> Remaining();
  absl::Status ReadFrom(BlobSource& source);
  // Decodes and delivers; false when the bytes were wrong.
  bool Decode(Job::Item* item, absl::Span<const uint8_t> blob_bytes);

  JobHost& host_;
  Job& job_;
  BlobSource* source_ = nullptr;  // being read now
  BlobSource* noted_ = nullptr;   // the last that served
  absl::Status wrong_;            // the last chunk whose bytes were wrong
  std::vector<uint8_t> scratch_;
};

}  // namespace lazyblob::contentstore

#include "tests/support/internal/uploads.h"

#include <fcntl.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace lazyblob::support::internal {
namespace {

using nlohmann::json;

Answer Plain(int status) { return TextAnswer(status, ""); }

// The first byte of "first-last"; false: not of that form.
bool ParseChunk(const std::string& range, uint64_t* first, uint64_t* last) {
  const std::vector<std::string> ends = absl::StrSplit(range, '-');
  return ends.size() == 2 && absl::SimpleAtoi(ends[0], first) && absl::SimpleAtoi(ends[1], last) &&
         *last >= *first;
}

Answer MissingChild(const std::string& digest) {
  const json body = {{"errors",
                      {{{"code", "MANIFEST_BLOB_UNKNOWN"},
                        {"message", "blob unknown to registry"},
                        {"detail", {{"digest", digest}}}}}}};
  return TextAnswer(400, body.dump());
}

}  // namespace

void Uploads::Configure(UploadOptions options) {
  absl::MutexLock lock(&mutex_);
  options_ = std::move(options);
}

UploadOptions Uploads::options() const {
  absl::MutexLock lock(&mutex_);
  return options_;
}

bool Uploads::ReadsBodyOf(const HttpRequest& request) {
  return (request.method == "PATCH" || request.method == "PUT") &&
         absl::StrContains(request.path, "/blobs/uploads/");
}

void Uploads::MakeOrphan(absl::string_view repository, const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  orphans_.emplace(std::string(repository), digest.ToString());
}

void Uploads::DropSessions() {
  absl::MutexLock lock(&mutex_);
  sessions_.clear();
}

size_t Uploads::open_sessions() const {
  absl::MutexLock lock(&mutex_);
  return sessions_.size();
}

void Uploads::Remove(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  sessions_.erase(id);
}

Uploads::SessionPtr Uploads::Find(const Call& call) {
  absl::MutexLock lock(&mutex_);
  const auto found = sessions_.find(call.session);
  // Whoever leaves out a part of the query is lost.
  const bool named = call.request.QueryField("opaque") == absl::StrCat("a/b+c=", call.session);
  const bool fits = found != sessions_.end() && found->second->repository == call.repository && named;
  return fits ? found->second : nullptr;
}

void Uploads::Describe(const Call& call, const UploadOptions& options, const Session& session,
                       Answer* answer) {
  std::string origin;
  if (options.locations == UploadOptions::Locations::kAbsolute) origin = absl::StrCat("http://", call.host);
  if (options.locations == UploadOptions::Locations::kElsewhere)
    origin = absl::StrCat("http://", call.elsewhere);
  SetHeader(&answer->headers, "Location",
            absl::StrCat(origin, "/v2/", session.repository, "/blobs/uploads/", session.id,
                         "?opaque=a%2Fb%2Bc%3D", session.id, "&_state=", session.state));
  // One byte and none look alike.
  SetHeader(&answer->headers, "Range", absl::StrCat("0-", session.size == 0 ? 0 : session.size - 1));
  SetHeader(&answer->headers, "Docker-Upload-UUID", session.id);
}

Answer Uploads::Open(const Call& call, const UploadOptions& options) {
  const std::string digest = call.request.QueryField("mount");
  const std::string from = call.request.QueryField("from");
  std::optional<Bytes> blob;
  if (!digest.empty() && options.mounts != UploadOptions::Mounts::kNever) {
    if (!from.empty()) blob = contents_.FindBlob(from, digest);
    if (from.empty() && options.mounts == UploadOptions::Mounts::kAnonymous)
      blob = contents_.FindAnywhere(digest);
  }
  if (blob.has_value()) {
    contents_.PutBlob(call.repository, *base::Digest::Parse(digest), *blob);
    absl::MutexLock lock(&mutex_);
    orphans_.erase({call.repository, digest});
    Answer answer = Plain(201);
    SetHeader(&answer.headers, "Location", absl::StrCat("/v2/", call.repository, "/blobs/", digest));
    SetHeader(&answer.headers, "Docker-Content-Digest", digest);
    return answer;
  }
  auto session = std::make_shared<Session>();
  session->repository = call.repository;
  {
    absl::MutexLock lock(&mutex_);
    session->id = absl::StrCat("upload-", ++started_);
    if (!options.directory.empty()) {
      session->file = absl::StrCat(options.directory, "/", session->id);
      session->fd =
          base::UniqueFd(open(session->file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
      if (!session->fd.valid()) return ErrorAnswer(500, "UNKNOWN", "cannot create a file");
    }
    sessions_[session->id] = session;
  }
  Answer answer = Plain(202);
  Describe(call, options, *session, &answer);
  if (options.min_chunk > 0)
    SetHeader(&answer.headers, "OCI-Chunk-Min-Length", absl::StrCat(options.min_chunk));
  return answer;
}

bool Uploads::TakeBody(const Call& call, const UploadOptions& options, Session* session, bool keep) {
  const absl::Time start = absl::Now();
  uint64_t taken = 0;
  bool gate_passed = call.fault.request_gate == nullptr;
  bool cut = false;
  const auto take = [&](absl::string_view piece, absl::Duration gap) {
    if (call.fault.cut_request_at.has_value() && taken + piece.size() >= *call.fault.cut_request_at) {
      piece = piece.substr(0, *call.fault.cut_request_at - taken);
      cut = true;
    }
    if (keep) {
      session->hasher.Update(piece);
      session->size += piece.size();
      if (session->fd.valid()) {
        cut =
            cut || write(session->fd.get(), piece.data(), piece.size()) != static_cast<ssize_t>(piece.size());
      } else {
        session->memory.append(piece.data(), piece.size());
      }
    }
    taken += piece.size();
    call.on_body(piece.size(), gap);
    if (!gate_passed && taken >= call.fault.request_gate_at) {
      call.fault.request_gate->Pass();
      gate_passed = true;
    }
    if (call.fault.request_bytes_per_second > 0) {
      const double seconds =
          static_cast<double>(taken) / static_cast<double>(call.fault.request_bytes_per_second);
      cut = !call.connection.Wait(start + absl::Seconds(seconds) - absl::Now()) || cut;
    }
    return !cut;
  };
  if (call.fault.cut_request_at == uint64_t{0}) return false;
  return call.connection.ReadBody(&call.request, options.idle_limit, take);
}

std::optional<Answer> Uploads::Patch(const Call& call, const UploadOptions& options,
                                     const SessionPtr& session) {
  if (options.refuse_chunks != 0) return ErrorAnswer(options.refuse_chunks, "UNSUPPORTED", "no chunks here");
  const std::string range = call.request.Header("content-range");
  uint64_t first = session->size;
  uint64_t last = 0;
  if (!range.empty() && !ParseChunk(range, &first, &last))
    return ErrorAnswer(400, "UNSUPPORTED", "bad range");
  const bool dropped = options.drops_later_chunks && session->chunks > 0;
  if (first != session->size && !dropped) return ErrorAnswer(416, "RANGE_INVALID", "out of order");
  if (session->short_chunk) return ErrorAnswer(400, "SIZE_INVALID", "the chunk before was too short");
  session->short_chunk = call.request.body_left < options.min_chunk;
  ++session->chunks;
  ++session->state;
  if (!TakeBody(call, options, session.get(), !dropped)) {
    if (options.loses_cut_sessions) Remove(session->id);
    return std::nullopt;
  }
  Answer answer = Plain(options.drops_later_chunks ? 201 : 202);
  Describe(call, options, *session, &answer);
  return answer;
}

std::optional<Answer> Uploads::Commit(const Call& call, const UploadOptions& options,
                                      const SessionPtr& session) {
  const absl::StatusOr<base::Digest> digest = base::Digest::Parse(call.request.QueryField("digest"));
  if (!digest.ok()) return ErrorAnswer(400, "DIGEST_INVALID", "no digest");
  ++session->state;
  if (!TakeBody(call, options, session.get(), true)) {
    if (options.loses_cut_sessions) Remove(session->id);
    return std::nullopt;
  }
  if (options.commit_gate != nullptr) options.commit_gate->Pass();
  if (!call.connection.Wait(options.commit_delay)) return std::nullopt;
  Remove(session->id);
  const base::Digest got = session->hasher.Finish();
  if (got != *digest) return ErrorAnswer(400, "DIGEST_INVALID", "provided digest did not match");
  bool orphan = false;
  {
    absl::MutexLock lock(&mutex_);
    orphan = orphans_.erase({call.repository, digest->ToString()}) > 0;
  }
  if (options.loser_gets_400 && !orphan &&
      contents_.FindBlob(call.repository, digest->ToString()).has_value())
    return ErrorAnswer(400, "BLOB_UPLOAD_INVALID", "cannot be updated");
  Bytes bytes;
  bytes.size = session->size;
  if (session->fd.valid()) {
    bytes.file = session->file;
  } else {
    bytes = Bytes::Of(std::move(session->memory));
  }
  contents_.PutBlob(call.repository, *digest, std::move(bytes));
  Answer answer = Plain(201);
  SetHeader(&answer.headers, "Location",
            absl::StrCat("/v2/", call.repository, "/blobs/", digest->ToString()));
  SetHeader(&answer.headers, "Docker-Content-Digest", digest->ToString());
  return answer;
}

std::optional<Answer> Uploads::Handle(const Call& call) {
  const UploadOptions options = this->options();
  const std::string& method = call.request.method;
  if (call.session.empty()) {
    return method == "POST" ? Open(call, options) : ErrorAnswer(405, "UNSUPPORTED", "POST only");
  }
  const SessionPtr session = Find(call);
  if (session == nullptr) return ErrorAnswer(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
  absl::MutexLock busy(&session->busy);
  if (Find(call) != session) return ErrorAnswer(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
  const bool stale = call.request.QueryField("_state") != absl::StrCat(session->state);
  if (options.stale_is_gone && stale)
    return ErrorAnswer(404, "BLOB_UPLOAD_INVALID", "resumed at wrong offset");
  if (method == "GET" || method == "HEAD") {
    Answer answer = Plain(204);
    Describe(call, options, *session, &answer);
    return answer;
  }
  if (method == "DELETE") {
    if (!options.allows_cancel) return ErrorAnswer(405, "UNSUPPORTED", "no");
    Remove(session->id);
    return Plain(204);
  }
  if (options.checks_state && stale) return ErrorAnswer(416, "RANGE_INVALID", "stale state");
  if (method == "PATCH") return Patch(call, options, session);
  if (method == "PUT") return Commit(call, options, session);
  return ErrorAnswer(405, "UNSUPPORTED", "no");
}

bool Uploads::HasChild(const std::string& repository, const std::string& digest, bool manifest) const {
  if (manifest && contents_.FindManifest(repository, digest).has_value()) return true;
  {
    absl::MutexLock lock(&mutex_);
    if (orphans_.count({repository, digest}) > 0) return false;
    if (options_.shared_store && contents_.FindAnywhere(digest).has_value()) return true;
  }
  return contents_.FindBlob(repository, digest).has_value();
}

Answer Uploads::PutManifest(const HttpRequest& request, const std::string& repository,
                            const std::string& reference, bool tell_subject) {
  const json manifest = json::parse(request.body, nullptr, false);
  if (!manifest.is_object()) return ErrorAnswer(400, "MANIFEST_INVALID", "not a JSON object");
  base::Digest digest = base::Digest::Of(request.body);
  std::string tag = reference;
  if (const absl::StatusOr<base::Digest> wanted = base::Digest::Parse(reference); wanted.ok()) {
    tag.clear();
    base::Hasher hasher(wanted->algorithm());
    hasher.Update(request.body);
    digest = hasher.Finish();
    if (digest != *wanted) return ErrorAnswer(400, "DIGEST_INVALID", "provided digest did not match");
  }
  json blobs = manifest.value("layers", json::array());
  if (manifest.contains("config")) blobs.push_back(manifest["config"]);
  if (options().checks_children) {
    for (const json& blob : blobs) {
      if (const std::string child = blob.value("digest", ""); !HasChild(repository, child, false))
        return MissingChild(child);
    }
    for (const json& entry : manifest.value("manifests", json::array())) {
      if (const std::string child = entry.value("digest", ""); !HasChild(repository, child, true))
        return MissingChild(child);
    }
  }
  contents_.PutManifest(repository, tag, {Bytes::Of(request.body), request.Header("content-type"), digest});
  Answer answer = Plain(201);
  SetHeader(&answer.headers, "Location", absl::StrCat("/v2/", repository, "/manifests/", digest.ToString()));
  SetHeader(&answer.headers, "Docker-Content-Digest", digest.ToString());
  if (tell_subject && manifest.contains("subject")) {
    SetHeader(&answer.headers, "OCI-Subject", manifest["subject"].value("digest", ""));
  }
  return answer;
}

}  // namespace lazyblob::support::internal

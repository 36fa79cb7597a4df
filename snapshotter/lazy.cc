// Prepare of a layer that may be lazy: docs/SNAPSHOTTER.md, "A lazy Prepare".

#include <sys/random.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/fault.h"
#include "base/status.h"
#include "snapshotter/internal/snapshotter_impl.h"
#include "snapshotter/labels.h"

namespace lazyblob::snapshotter {
namespace {

constexpr size_t kMaxNotLazy = 4096;

// Of an InsertLazy that is not to take place, though nothing went wrong.
constexpr absl::string_view kChainConflict = "chain-conflict";
absl::Status ChainConflict(const LayerClaim& claim, const LayerMount& other) {
  return NotLazyError(kChainConflict, absl::FailedPreconditionError(
                                          absl::StrCat(Quoted(claim.chain), " is already another layer, ",
                                                       other.layer.ToString(), ", on the same parent")));
}

std::string Unique() {
  uint64_t random = 0;
  while (getrandom(&random, sizeof(random), 0) < 0 && errno == EINTR) {
  }
  return absl::StrFormat("%016x", random);
}

}  // namespace

void SnapshotterImpl::NoteNotLazy(const std::string& layer, const std::string& reference,
                                  absl::string_view reason, absl::string_view detail) {
  const std::string line = base::Printable(detail);
  bool news = false;
  {
    absl::MutexLock lock(&mutex_);
    if (not_lazy_.size() >= kMaxNotLazy && !not_lazy_.contains(layer)) {
      not_lazy_.erase(not_lazy_.begin());  // any: digests come in no order
    }
    NotLazyLayer& noted = not_lazy_[layer];
    news = noted.reason != reason;
    noted = {layer, reference, std::string(reason), line, noted.times + 1};
  }
  if (!news) return;
  Log(absl::StrCat("layer ", base::Printable(layer),
                   reference.empty() ? "" : absl::StrCat(" of ", base::Printable(reference)),
                   " is not lazy (", reason, "): ", line));
}

absl::StatusOr<std::optional<LayerClaim>> SnapshotterImpl::FindClaim(const Request& request,
                                                                     const std::string& chain) {
  absl::StatusOr<std::optional<LayerClaim>> parsed = ParseClaim(request.labels);
  if (absl::IsInvalidArgument(parsed.status())) return parsed;
  if (!parsed.ok()) {
    NoteNotLazy(chain, "", "bad-labels", parsed.status().message());
    return std::nullopt;
  }
  if (parsed->has_value()) return parsed;
  std::vector<LayerClaim> claims;
  if (options_.chains != nullptr) {
    base::Digest diff_id;
    if (auto told = request.labels.find(kLabelDiffId);
        told != request.labels.end() && !told->second.empty()) {
      ASSIGN_OR_RETURN(diff_id, base::Digest::Parse(told->second));
    }
    claims = options_.chains->ClaimsOf(chain, diff_id, request.cancel);
  }
  if (claims.size() == 1) return std::move(claims.front());
  if (claims.empty()) {
    NoteNotLazy(chain, "", "no-reference", WhyNoClaim(request.labels));
    return std::nullopt;
  }
  NoteNotLazy(chain, claims.front().reference, "chain-ambiguous",
              absl::StrCat("layers ", claims[0].layer.ToString(), " and ", claims[1].layer.ToString(),
                           " of different images make the same chain, and the labels do not say which is "
                           "meant"));
  return std::nullopt;
}

absl::Status SnapshotterImpl::TargetExists(const Request& request, const LayerClaim& claim) {
  if (options_.chains != nullptr) options_.chains->Prepared(request.key, claim);
  return absl::AlreadyExistsError(absl::StrCat("target snapshot ", Quoted(claim.chain), ": already exists"));
}

std::optional<absl::Status> SnapshotterImpl::TryLazy(const Request& request, const Base& base) {
  auto ref = request.labels.find(kLabelSnapshotRef);
  if (ref == request.labels.end() || ref->second.empty()) return std::nullopt;
  std::vector<Record> known;
  int64_t dead = 0;
  absl::Status status = store_->Read([&](MetaStore::Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(known, transaction.LazyByRef(ref->second, base.parent_id));
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  absl::StatusOr<std::optional<LayerClaim>> found = FindClaim(request, ref->second);
  if (!found.ok()) return found.status();
  if (!found->has_value()) return std::nullopt;
  const LayerClaim& claim = **found;
  const std::string layer = claim.layer.ToString();
  for (const Record& record : known) {
    if (record.layer->layer != claim.layer) {
      NoteNotLazy(layer, claim.reference, kChainConflict, ChainConflict(claim, *record.layer).message());
      return std::nullopt;
    }
    Link link{record.id, record.info.name, record.layer};
    if (EnsureAlive(link).ok()) return TargetExists(request, claim);
    dead = record.id;
  }

  status = base::FaultPoint("snapshotter/lazy/begin");
  if (!status.ok()) return status;
  std::vector<LowerLayer> lowers;
  for (const Link& link : base.chain) {
    if (link.layer.has_value()) {
      lowers.push_back(*link.layer);
      if (link.layer->opaque_root) break;
    } else {
      lowers.push_back(directories_->Fs(link.id));
    }
  }
  absl::StatusOr<LayerMount> mounted = options_.layers->Mount(claim, lowers, request.cancel);
  if (!mounted.ok()) {
    if (request.cancel != nullptr && request.cancel->cancelled()) {
      return absl::CancelledError(absl::StrCat("snapshot ", Quoted(request.key), ": the call was cancelled"));
    }
    std::string reason = NotLazyReason(mounted.status());
    if (reason.empty()) reason = "mount-failed";
    NoteNotLazy(layer, claim.reference, reason, mounted.status().message());
    return std::nullopt;
  }
  return CommitLazily(request, base, claim, *mounted, dead);
}

std::optional<absl::Status> SnapshotterImpl::CommitLazily(const Request& request, const Base& base,
                                                          const LayerClaim& claim, const LayerMount& mounted,
                                                          int64_t dead) {
  absl::Status status = base::FaultPoint("snapshotter/lazy/mounted");
  int64_t id = 0;
  bool was_held = false;
  bool quicker = false;
  std::optional<LayerMount> replaced;
  auto body = [&](MetaStore::Transaction& transaction) -> absl::Status {
    Record record;
    ASSIGN_OR_RETURN(bool exists, transaction.Exists(request.key));
    if (exists) {
      return absl::AlreadyExistsError(absl::StrCat("snapshot ", Quoted(request.key), ": already exists"));
    }
    ASSIGN_OR_RETURN(record.parent_id, ParentId(transaction, request.parent));
    if (record.parent_id != base.parent_id) return absl::AbortedError("the parent was made anew meanwhile");
    ASSIGN_OR_RETURN(std::vector<Record> known, transaction.LazyByRef(claim.chain, base.parent_id));
    for (Record& other : known) {
      if (other.layer->layer != claim.layer) return ChainConflict(claim, *other.layer);
    }
    if (!known.empty()) {
      record = std::move(known.front());
      if (record.id != dead) {
        quicker = true;
        return absl::AlreadyExistsError("somebody else was quicker");
      }
      was_held = Held(record.id);
      if (was_held) replaced = record.layer;
      RETURN_IF_ERROR(transaction.SetLayer(record.id, mounted));
    } else {
      ASSIGN_OR_RETURN(bool taken, transaction.Exists(claim.chain));
      record.info.name = taken ? absl::StrCat(claim.chain, " ", Unique()) : claim.chain;
      record.info.kind = Kind::kCommitted;
      record.info.labels = request.labels;
      record.info.created = record.info.updated = Now();
      record.layer = mounted;
      RETURN_IF_ERROR(transaction.Insert(record));
    }
    id = record.id;
    RETURN_IF_ERROR(base::FaultPoint("snapshotter/lazy/row-written"));
    absl::MutexLock lock(&mutex_);
    held_.insert(id);
    return absl::OkStatus();
  };
  if (status.ok()) {
    status = store_->Write(body, [&] {
      absl::MutexLock lock(&mutex_);
      if (id != 0 && !was_held) held_.erase(id);
    });
  }
  if (!status.ok()) {
    options_.layers->Unmount(mounted);
    if (quicker) return TargetExists(request, claim);
    const std::string reason = NotLazyReason(status);
    if (reason.empty()) return status;
    NoteNotLazy(claim.layer.ToString(), claim.reference, reason, status.message());
    return std::nullopt;
  }
  base::FaultPoint("snapshotter/lazy/done").IgnoreError();
  if (replaced.has_value()) options_.layers->Unmount(*replaced);
  return TargetExists(request, claim);
}

}  // namespace lazyblob::snapshotter

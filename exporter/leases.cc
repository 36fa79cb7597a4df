#include "exporter/leases.h"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "exporter/spec.h"

namespace lazyblob::exporter {
namespace {

constexpr uint64_t kMaxLeaseBytes = 16 << 20;
constexpr absl::string_view kSourceLabel = "containerd.io/distribution.source.";
constexpr absl::string_view kLayoutSource = "layout:";

v1::Blob ToProto(const oci::Descriptor& descriptor) {
  v1::Blob blob;
  blob.set_digest(descriptor.digest.ToString());
  blob.set_size(descriptor.size);
  blob.set_media_type(descriptor.media_type);
  blob.mutable_annotations()->insert(descriptor.annotations.begin(), descriptor.annotations.end());
  return blob;
}

absl::StatusOr<v1::Lease> ReadLease(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string json, base::ReadFile(path, kMaxLeaseBytes));
  RETURN_IF_ERROR(base::ParseJson(json, kMaxLeaseBytes).status());
  v1::Lease lease;
  const auto parsed = google::protobuf::util::JsonStringToMessage(json, &lease);
  if (parsed.ok()) return lease;
  return absl::DataLossError(
      base::Printable(absl::string_view(parsed.message().data(), parsed.message().size())));
}

absl::Status WriteLease(const std::string& directory, const v1::Lease& lease) {
  RETURN_IF_ERROR(base::FaultPoint("exporter.lease"));
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(lease, &json).ok()) {
    return absl::InvalidArgumentError(absl::StrCat("lease ", lease.name(), ": not UTF-8"));
  }
  return base::WriteFileAtomically(directory + "/lease.json", json + "\n");
}

}  // namespace

v1::Blob DescribeLayer(contentstore::ContentStore& store, contentstore::LazyLayer& layer) {
  v1::Blob blob = ToProto(layer.descriptor());
  if (!layer.diff_id().empty()) blob.set_diff_id(layer.diff_id().ToString());
  for (const std::string& source : store.SourceNames(layer)) blob.add_sources(source);
  return blob;
}

absl::StatusOr<contentstore::DescriptorHandler> HandlerOf(const v1::Blob& blob,
                                                          const contentstore::SourceFactory& sources) {
  contentstore::DescriptorHandler handler;
  ASSIGN_OR_RETURN(handler.descriptor.digest, base::Digest::Parse(blob.digest()));
  const std::string digest = handler.descriptor.digest.ToString();
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("blob ", digest, ": ", why));
  };
  if (!blob.diff_id().empty()) {
    auto diff_id = base::Digest::Parse(blob.diff_id());
    if (!diff_id.ok()) return bad(diff_id.status().message());
    handler.diff_id = *diff_id;
  }
  if (blob.size() == 0 || blob.size() > static_cast<uint64_t>(INT64_MAX)) return bad("its size is needed");
  handler.descriptor.size = blob.size();
  if (!oci::LayerCompression(blob.media_type()).has_value()) {
    return bad(
        absl::StrCat("media type \"", base::Printable(blob.media_type()), "\" is not that of a layer"));
  }
  handler.descriptor.media_type = blob.media_type();
  handler.descriptor.annotations = {blob.annotations().begin(), blob.annotations().end()};
  std::vector<std::string> names(blob.sources().begin(), blob.sources().end());
  for (const auto& [label, repositories] :
       std::map<std::string, std::string>(blob.labels().begin(), blob.labels().end())) {
    absl::string_view host = label;
    if (!absl::ConsumePrefix(&host, kSourceLabel)) continue;
    for (absl::string_view repository : absl::StrSplit(repositories, ',', absl::SkipWhitespace())) {
      names.push_back(absl::StrCat("registry:", host, "/", absl::StripAsciiWhitespace(repository)));
    }
  }
  std::set<std::string> seen;
  for (const std::string& name : names) {
    absl::string_view path = name;
    if (absl::ConsumePrefix(&path, kLayoutSource) && !absl::StartsWith(path, "/")) {
      return bad(absl::StrCat("source ", base::Printable(name), ": the path must be absolute"));
    }
    auto source = sources(name);
    if (!source.ok()) return bad(source.status().message());
    if (seen.insert((*source)->name()).second) handler.sources.push_back(*std::move(source));
  }
  return handler;
}

absl::StatusOr<std::unique_ptr<Leases>> Leases::Open(LeasesOptions options) {
  RETURN_IF_ERROR(base::MakeDirectories(options.directory));
  std::unique_ptr<Leases> leases(new Leases(std::move(options)));
  const LeasesOptions& opened = leases->options_;
  ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(opened.directory));
  for (const std::string& name : names) {
    const absl::Status status = CheckLeaseName(name).ok() ? leases->Restore(name) : absl::NotFoundError("");
    if (status.ok()) continue;
    if (absl::IsNotFound(status)) {  // never promised to anybody
      RETURN_IF_ERROR(base::RemoveTree(leases->PathOf(name)));
    } else {
      opened.log(absl::StrCat("lease ", name, " is not kept; remove ", base::Printable(leases->PathOf(name)),
                              ": ", base::Printable(status.message())));
    }
  }
  return leases;
}

absl::Status Leases::Restore(const std::string& name) {
  ASSIGN_OR_RETURN(v1::Lease lease, ReadLease(PathOf(name) + "/lease.json"));
  lease.set_name(name);
  Entry entry;
  for (const v1::Blob& blob : lease.layers()) {
    auto digest = base::Digest::Parse(blob.digest());
    if (!digest.ok()) return absl::DataLossError(digest.status().message());
    std::shared_ptr<contentstore::LazyLayer> layer = options_.store->Find(*digest);
    if (layer == nullptr) {
      // A source that is of no use any more does not spoil the others.
      v1::Blob usable = blob;
      auto* sources = usable.mutable_sources();
      sources->erase(std::remove_if(sources->begin(), sources->end(),
                                    [&](const std::string& one) { return !options_.sources(one).ok(); }),
                     sources->end());
      auto handler = HandlerOf(usable, options_.sources);
      if (!handler.ok()) return absl::DataLossError(handler.status().message());
      auto added = options_.store->AddHandler(*handler);
      if (!added.ok()) return absl::DataLossError(added.status().message());
      layer = *std::move(added);
    }
    entry.layers.push_back(std::move(layer));
  }
  entry.lease = std::move(lease);
  entry.tree = NewTree();
  absl::MutexLock lock(&mutex_);
  leases_[name] = std::move(entry);
  return absl::OkStatus();
}

Leases::Tree::~Tree() {
  if (discarded.empty()) return;
  const absl::Status status = base::RemoveTree(discarded);
  if (!status.ok()) log(absl::StrCat("lease: ", base::Printable(status.message())));
}

std::shared_ptr<Leases::Tree> Leases::NewTree() const {
  auto tree = std::make_shared<Tree>();
  tree->log = options_.log;
  return tree;
}

// Its bytes can be had again: they need not be kept. What a lease or the store itself has may go.
bool Leases::StaysLazy(const ContentBlob& blob, contentstore::LazyLayer& layer) const {
  if (!blob.layer || blob.blob->local()) return false;
  const std::string of_lease = absl::StrCat(kLayoutSource, options_.directory, "/");
  const std::string of_store = absl::StrCat("file:", layer.directory(), "/");
  const std::vector<std::string> sources = blob.blob->sources();
  return std::any_of(sources.begin(), sources.end(), [&](const std::string& source) {
    return !absl::StartsWith(source, of_lease) && !absl::StartsWith(source, of_store);
  });
}

std::string Leases::PathOf(absl::string_view name) const {
  return absl::StrCat(options_.directory, "/", name);
}

std::string Leases::Temporary() { return absl::StrCat(".", ++temporaries_); }

Leases::Entry Leases::NewEntry(const std::string& name, const Layers& layers) const {
  Entry entry;
  entry.lease.set_name(name);
  entry.lease.set_created(absl::ToUnixSeconds(absl::Now()));
  for (const auto& layer : layers) *entry.lease.add_layers() = DescribeLayer(*options_.store, *layer);
  entry.layers = layers;
  entry.tree = NewTree();
  return entry;
}

absl::Status Leases::Hold(const std::string& name, const Layers& layers) {
  RETURN_IF_ERROR(CheckLeaseName(name));
  absl::MutexLock lock(&mutex_);
  auto found = leases_.find(name);
  Entry entry = NewEntry(name, layers);
  if (found != leases_.end()) {
    std::set<std::string> added;
    for (const v1::Blob& blob : entry.lease.layers()) added.insert(blob.digest());
    const Entry& before = found->second;
    for (int i = 0; i < before.lease.layers_size(); ++i) {
      if (!added.insert(before.lease.layers(i).digest()).second) continue;
      *entry.lease.add_layers() = before.lease.layers(i);
      entry.layers.push_back(before.layers[static_cast<size_t>(i)]);
    }
    entry.lease.set_created(before.lease.created());
    entry.tree = before.tree;
    if (before.lease.has_image()) *entry.lease.mutable_image() = before.lease.image();
  }
  RETURN_IF_ERROR(base::MakeDirectories(PathOf(name)));
  RETURN_IF_ERROR(WriteLease(PathOf(name), entry.lease));
  RETURN_IF_ERROR(base::SyncDirectory(options_.directory));
  leases_[name] = std::move(entry);
  return absl::OkStatus();
}

absl::StatusOr<v1::Ready> Leases::HoldImage(const std::string& name, const Content& content, bool whole,
                                            const LocalOptions& options) {
  RETURN_IF_ERROR(CheckLeaseName(name));
  const std::string destination = ToString(Destination(StoreDestination{name}));
  Content written{content.name, content.documents, {}};
  Layers held;
  for (const ContentBlob& blob : content.blobs) {
    auto layer = whole ? nullptr : options_.store->Find(blob.descriptor.digest);
    if (layer == nullptr || !StaysLazy(blob, *layer)) {
      written.blobs.push_back(blob);
    } else {
      held.push_back(std::move(layer));
    }
  }
  std::string temporary;
  {
    absl::MutexLock lock(&mutex_);
    temporary = PathOf(Temporary());
  }
  LocalOptions inner = options;
  inner.prepared = nullptr;
  inner.progress = [&](const v1::Progress& progress) {
    v1::Progress told = progress;
    told.set_destination(destination);
    if (options.progress) options.progress(told);
  };
  RETURN_IF_ERROR(base::MakeDirectories(temporary));
  absl::Cleanup remove = [&] { base::RemoveTree(temporary).IgnoreError(); };
  ASSIGN_OR_RETURN(v1::Ready ready, WriteToLayout(written, {temporary + "/image", std::nullopt}, inner));
  Entry entry = NewEntry(name, held);
  *entry.lease.mutable_image() = ToProto(content.top().descriptor);
  RETURN_IF_ERROR(WriteLease(temporary, entry.lease));
  ready.set_reference(destination);
  if (options.prepared) RETURN_IF_ERROR(options.prepared());
  std::shared_ptr<Tree> before;  // goes when nothing is locked
  absl::MutexLock lock(&mutex_);
  const std::string path = PathOf(name);
  int failed = renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE);
  if (failed != 0 && errno == ENOENT) failed = rename(temporary.c_str(), path.c_str());
  if (failed != 0) return base::ErrnoStatus(errno, absl::StrCat("rename to ", base::Printable(path)));
  std::move(remove).Cancel();
  before = std::exchange(leases_[name], std::move(entry)).tree;
  if (before == nullptr) before = NewTree();  // what cannot be a lease lies there, or nothing
  before->discarded = temporary;
  RETURN_IF_ERROR(base::SyncDirectory(options_.directory));
  return ready;
}

absl::StatusOr<std::shared_ptr<const oci::Layout>> Leases::Image(const std::string& name) {
  RETURN_IF_ERROR(CheckLeaseName(name));
  absl::MutexLock lock(&mutex_);
  auto found = leases_.find(name);
  if (found == leases_.end() || !found->second.lease.has_image()) {
    return absl::NotFoundError(
        absl::StrCat("store:", name, ": there is no such image; `lazyblob leases` lists what there is"));
  }
  struct Pinned {
    oci::Layout layout;
    std::shared_ptr<Tree> tree;
    Layers layers;
  };
  ASSIGN_OR_RETURN(oci::Layout layout, oci::Layout::Open(PathOf(name) + "/image"));
  const auto pinned =
      std::make_shared<const Pinned>(Pinned{std::move(layout), found->second.tree, found->second.layers});
  return std::shared_ptr<const oci::Layout>(pinned, &pinned->layout);
}

absl::Status Leases::Release(const std::string& name) {
  RETURN_IF_ERROR(CheckLeaseName(name));
  Entry gone;  // goes when nothing is locked
  absl::MutexLock lock(&mutex_);
  auto found = leases_.find(name);
  if (found == leases_.end()) return absl::NotFoundError(absl::StrCat("lease ", name, ": there is none"));
  const std::string temporary = PathOf(Temporary());
  if (rename(PathOf(name).c_str(), temporary.c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("remove ", base::Printable(PathOf(name))));
  }
  gone = std::move(found->second);
  gone.tree->discarded = temporary;
  leases_.erase(found);
  return base::SyncDirectory(options_.directory);
}

std::vector<v1::Lease> Leases::List() {
  std::vector<v1::Lease> list;
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, entry] : leases_) list.push_back(entry.lease);
  return list;
}

std::set<base::Digest> Leases::Held() {
  std::set<base::Digest> held;
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, entry] : leases_) {
    for (const auto& layer : entry.layers) held.insert(layer->descriptor().digest);
  }
  return held;
}

}  // namespace lazyblob::exporter

#include "exporter/local_destinations.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <set>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "exporter/archive_writer.h"
#include "exporter/artifact.h"
#include "exporter/assemble.h"
#include "exporter/extract.h"
#include "exporter/internal/at_once.h"
#include "exporter/unlazy.h"
#include "oci/layout_writer.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {
namespace {

constexpr size_t kBlobsAtOnce = 4;
constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);

class Writing {
 public:
  Writing(const Content& content, std::string destination, const LocalOptions& options)
      : content_(content), destination_(std::move(destination)), options_(options) {}

  // Gives every blob to `put(descriptor, producer)`, `limit` at a time.
  template <typename Put>
  absl::Status Blobs(size_t limit, Put put) {
    auto registration = options_.cancel->OnCancel([stop = stop_] { stop->Cancel(); });
    return Finished(AtOnce(content_.blobs.size(), limit, stop_.get(), [&](size_t i) {
      const ContentBlob& blob = content_.blobs[i];
      uint64_t received = 0;
      absl::Duration told = absl::ZeroDuration();
      Tell(blob, "queued", 0);
      auto produce = [&](registry::BodySink sink) {
        contentstore::FetchContext fetch;
        fetch.cause = contentstore::FetchCause::kStream;
        fetch.cancel = stop_;
        fetch.credentials = options_.credentials;
        return blob.blob->Read(
            0,
            [&](absl::Span<const uint8_t> bytes) {
              received += bytes.size();
              if (const auto now = base::SystemClock().Monotonic(); now - told > kProgressInterval) {
                told = now;
                Tell(blob, "fetching", received);
              }
              return sink(bytes);
            },
            fetch);
      };
      absl::Status status = put(blob.descriptor, oci::BlobProducer(produce));
      Tell(blob,
           !status.ok()                                ? "failed"
           : received == 0 && blob.descriptor.size > 0 ? "exists"
                                                       : "written",
           received);
      return Collect(status);
    }));
  }

  v1::Ready Ready(const oci::Descriptor& top) const {
    v1::Ready ready;
    ready.set_reference(destination_);
    ready.set_digest(top.digest.ToString());
    ready.set_size(top.size);
    return ready;
  }

 private:
  void Tell(const ContentBlob& blob, const char* state, uint64_t bytes) {
    if (!options_.progress) return;
    v1::Progress told;
    told.set_digest(blob.descriptor.digest.ToString());
    told.set_name(told.digest());
    told.set_destination(destination_);
    told.set_state(state);
    told.set_bytes(bytes);
    told.set_size(blob.descriptor.size);
    told.set_cache(options_.cache);
    options_.progress(told);
  }

  // Blobs that nobody can provide do not end the others: all of them are to be listed.
  absl::Status Collect(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_) {
    auto lacking = contentstore::GetMissingProviders(status);
    if (lacking.empty()) return base::Annotate(status, base::Printable(destination_));
    absl::MutexLock lock(&mutex_);
    for (auto& one : lacking) {
      if (named_.insert(one.digest).second) missing_.push_back(std::move(one));
    }
    return absl::OkStatus();
  }
  absl::Status Finished(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (!status.ok() || missing_.empty()) return status;
    return contentstore::ProviderMissingError(missing_);
  }

  const Content& content_;
  const std::string destination_;
  const LocalOptions& options_;
  const std::shared_ptr<base::CancelToken> stop_ = std::make_shared<base::CancelToken>();
  absl::Mutex mutex_;
  std::vector<contentstore::MissingProvider> missing_ ABSL_GUARDED_BY(mutex_);
  std::set<base::Digest> named_ ABSL_GUARDED_BY(mutex_);
};

// A layer, and the digest of its tar.
struct Unpacked {
  oci::Descriptor descriptor;
  base::Digest diff_id;
};

absl::StatusOr<std::vector<Unpacked>> ImageToUnpack(const Content& content, const oci::Manifest& manifest,
                                                    const contentstore::FetchContext& context) {
  ASSIGN_OR_RETURN(std::string raw, ReadSmall(content, manifest.config, oci::kMaxConfigBytes, context));
  ASSIGN_OR_RETURN(oci::ImageConfig config, oci::ParseImageConfig(raw, manifest.config.digest));
  if (config.diff_ids.size() != manifest.layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the config lists ", config.diff_ids.size(),
                                                   " diff_ids for ", manifest.layers.size(), " layers"));
  }
  std::vector<Unpacked> layers;
  for (size_t i = 0; i < manifest.layers.size(); ++i)
    layers.push_back({manifest.layers[i], config.diff_ids[i]});
  return layers;
}

absl::StatusOr<std::vector<Unpacked>> ArtifactToUnpack(const oci::Manifest& manifest,
                                                       const std::optional<oci::Platform>& platform) {
  ASSIGN_OR_RETURN(std::vector<ArtifactLayer> all, ReadArtifact(manifest));
  ASSIGN_OR_RETURN(std::vector<ArtifactLayer> selected, SelectArtifactLayers(all, platform));
  std::vector<Unpacked> layers;
  for (ArtifactLayer& layer : selected) layers.push_back({std::move(layer.descriptor), layer.diff_id});
  return layers;
}

std::string TidyPath(absl::string_view path) {
  while (path.size() > 1 && absl::ConsumeSuffix(&path, "/")) {
  }
  return std::string(path);
}

// A new directory beside `path`; who makes it holds a lock on it. Others that nobody holds are leftovers of
// such as were killed, and go.
class StagingDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<StagingDirectory>> Create(const std::string& path) {
    const size_t slash = path.rfind('/');
    const std::string parent = path.substr(0, std::max<size_t>(slash, 1));
    const std::string prefix = absl::StrCat(".", path.substr(slash + 1), ".lazyblob-");
    ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(parent));
    for (const std::string& name : names) {
      if (!absl::StartsWith(name, prefix)) continue;
      const std::string left = absl::StrCat(parent, "/", name);
      const auto held = base::OpenFile(left, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (held.ok() && ::flock(held->get(), LOCK_EX | LOCK_NB) == 0) RETURN_IF_ERROR(base::RemoveTree(left));
    }
    std::unique_ptr<StagingDirectory> made(new StagingDirectory);
    made->path_ = absl::StrCat(parent, "/", prefix, "XXXXXX");
    if (::mkdtemp(made->path_.data()) == nullptr) {
      const int error = errno;
      made->path_.clear();
      return base::ErrnoStatus(error, absl::StrCat("make a directory in ", parent));
    }
    ASSIGN_OR_RETURN(made->lock_, base::OpenFile(made->path_, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    if (::flock(made->lock_.get(), LOCK_EX | LOCK_NB) != 0 || ::fchmod(made->lock_.get(), 0755) != 0) {
      return base::ErrnoStatus(errno, absl::StrCat("lock ", made->path_));
    }
    return made;
  }
  ~StagingDirectory() {
    if (!path_.empty()) base::RemoveTree(path_).IgnoreError();
  }
  StagingDirectory(const StagingDirectory&) = delete;
  StagingDirectory& operator=(const StagingDirectory&) = delete;

  const std::string& path() const { return path_; }
  // Becomes `path`, absent or an empty directory.
  absl::Status Commit(const std::string& path) {
    if (::rename(path_.c_str(), path.c_str()) != 0) {
      if (errno == ENOTEMPTY || errno == EEXIST) {
        return absl::FailedPreconditionError("not empty any more; name a directory that is empty or absent");
      }
      return base::ErrnoStatus(errno, absl::StrCat("rename ", path_));
    }
    path_.clear();
    return base::SyncDirectory(path.substr(0, std::max<size_t>(path.rfind('/'), 1)));
  }

 private:
  StagingDirectory() = default;
  std::string path_;  // empty: it is no more
  base::UniqueFd lock_;
};

bool IsMountPoint(const std::string& path) {
  struct statx st{};
  return ::statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, 0, &st) == 0 &&
         (st.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

// ExtractLayers into a directory that is renamed when it is whole.
absl::Status ExtractBeside(const std::vector<ExtractLayer>& layers, const std::string& destination,
                           const ExtractOptions& options) {
  const std::string path = TidyPath(destination);
  struct stat before{};
  const bool exists = ::lstat(path.c_str(), &before) == 0;
  bool in_place = exists && (!S_ISDIR(before.st_mode) || IsMountPoint(path));
  if (exists && !in_place) {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(path));
    in_place = !names.empty();  // is refused
  }
  if (in_place) return ExtractLayers(layers, path, options).status();
  ASSIGN_OR_RETURN(const auto staging, StagingDirectory::Create(path));
  if (exists && (::chown(staging->path().c_str(), before.st_uid, before.st_gid) != 0 ||
                 ::chmod(staging->path().c_str(), before.st_mode & 07777) != 0)) {
    return base::ErrnoStatus(errno, absl::StrCat("directory ", staging->path()));
  }
  RETURN_IF_ERROR(ExtractLayers(layers, staging->path(), options).status());
  return staging->Commit(path);
}

}  // namespace

absl::StatusOr<v1::Ready> WriteToLayout(const Content& content, const oci::LayoutReference& destination,
                                        const LocalOptions& options) {
  Writing writing(content, destination.ToString(), options);
  ASSIGN_OR_RETURN(auto layout, oci::LayoutWriter::Open(destination.directory));
  RETURN_IF_ERROR(writing.Blobs(kBlobsAtOnce, [&](const oci::Descriptor& blob, oci::BlobProducer produce) {
    return layout->PutBlob(blob, produce);
  }));
  for (const Document& document : content.documents) {
    if (options.append && &document == &content.top()) continue;
    RETURN_IF_ERROR(layout->PutBlob(document.descriptor, document.raw));
  }
  if (options.prepared) RETURN_IF_ERROR(options.prepared());
  if (!options.append) {
    RETURN_IF_ERROR(layout->Publish(content.top().descriptor, destination.tag));
    return writing.Ready(content.top().descriptor);
  }
  ASSIGN_OR_RETURN(const std::vector<oci::Descriptor> listed, ListedIn(content.top()));
  ASSIGN_OR_RETURN(const oci::Descriptor merged,
                   layout->PublishPlatforms(listed, destination.tag.value_or("latest")));
  return writing.Ready(merged);
}

absl::StatusOr<v1::Ready> WriteToArchive(const Content& content, const ArchiveDestination& destination,
                                         const LocalOptions& options) {
  Writing writing(content, ToString(destination), options);
  ASSIGN_OR_RETURN(auto archive, ArchiveWriter::Create(destination.file, options.cancel.get()));
  RETURN_IF_ERROR(writing.Blobs(1, [&](const oci::Descriptor& blob, oci::BlobProducer produce) {
    return archive->AddBlob(blob, produce);
  }));
  for (const Document& document : content.documents) {
    RETURN_IF_ERROR(archive->AddBlob(document.descriptor, document.raw));
  }
  RETURN_IF_ERROR(archive->AddImage(content.top().descriptor, destination.tag));
  if (options.prepared) RETURN_IF_ERROR(options.prepared());
  RETURN_IF_ERROR(archive->Finish());
  return writing.Ready(content.top().descriptor);
}

absl::StatusOr<v1::Ready> WriteToDirectory(const Content& content, const DirectoryDestination& destination,
                                           const LocalOptions& options) {
  const Document& top = content.top();
  if (top.index) {
    return absl::InvalidArgumentError(
        absl::StrCat(content.name, ": an index; name the platform that is to be unpacked"));
  }
  ASSIGN_OR_RETURN(auto parsed,
                   oci::ParseManifestOrIndex(top.raw, top.descriptor.digest, top.descriptor.media_type));
  const auto& manifest = std::get<oci::Manifest>(parsed);
  ExtractOptions extract;
  extract.context.cause = contentstore::FetchCause::kStream;
  extract.context.cancel = options.cancel;
  extract.context.credentials = options.credentials;
  extract.prepared = options.prepared;
  if (!options.artifact) RETURN_IF_ERROR(CheckProvided(content, top.blobs));
  auto selected = options.artifact ? ArtifactToUnpack(manifest, options.platform)
                                   : ImageToUnpack(content, manifest, extract.context);
  if (!selected.ok()) return base::Annotate(selected.status(), base::Printable(content.name));
  std::vector<ExtractLayer> layers;
  std::vector<base::Digest> digests;
  for (const Unpacked& layer : *selected) {
    const ContentBlob* const blob = content.Find(layer.descriptor.digest);
    if (blob == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(base::Printable(content.name), ": layer ",
                                                     layer.descriptor.digest.ToString(), " is a manifest"));
    }
    layers.push_back({blob->blob, layer.diff_id});
    digests.push_back(layer.descriptor.digest);
  }
  RETURN_IF_ERROR(CheckProvided(content, digests));
  const std::string name = ToString(Destination(destination));
  auto tell = [&](const ExtractProgress& progress, const char* state) {
    if (!options.progress) return;
    const oci::Descriptor& layer = (*selected)[progress.layer].descriptor;
    v1::Progress told;
    told.set_digest(layer.digest.ToString());
    told.set_name(told.digest());
    told.set_destination(name);
    told.set_state(state);
    told.set_bytes(progress.fetched);
    told.set_unpacked(progress.unpacked);
    told.set_size(layer.size);
    options.progress(told);
  };
  std::vector<ExtractProgress> latest(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    latest[i].layer = i;
    tell(latest[i], "queued");
  }
  extract.progress = [&](const ExtractProgress& progress) {
    latest[progress.layer] = progress;
    tell(progress, progress.done ? "written" : progress.fetched < progress.size ? "fetching" : "unpacking");
  };
  const absl::Status extracted = ExtractBeside(layers, destination.path, extract);
  for (const ExtractProgress& progress : latest) {
    if (!extracted.ok() && !progress.done) tell(progress, "failed");
  }
  RETURN_IF_ERROR(base::Annotate(extracted, name));
  v1::Ready ready;
  ready.set_reference(name);
  ready.set_digest(top.descriptor.digest.ToString());
  ready.set_size(top.descriptor.size);
  return ready;
}

}  // namespace lazyblob::exporter

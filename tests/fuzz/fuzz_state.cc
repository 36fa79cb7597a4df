// Files below the state root, as a bad disk may give them back. First byte: layer.json, mounts.json, the list
// of plain http hosts, an upload's journal, a lease, the presence map of a layer.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/file.h"
#include "contentstore/internal/chunk_cache.h"
#include "contentstore/internal/layer_record.h"
#include "contentstore/internal/presence.h"
#include "daemon/mount_table.h"
#include "daemon/plain_http_hosts.h"
#include "exporter/journal.h"
#include "exporter/leases.h"
#include "layer/index_builder.h"
#include "tests/fuse/fake_store.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"

namespace {

using namespace lazyblob;  // NOLINT: the program is short

constexpr absl::string_view kLease = "lease";

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

// Not atomically: tens of thousands of times a second, and nobody reads it meanwhile.
void Write(const std::string& path, absl::string_view text) {
  const auto file = base::OpenFile(path, O_WRONLY | O_CREAT | O_TRUNC);
  Require(file.ok());
  Require(base::WriteFull(file->get(), {reinterpret_cast<const uint8_t*>(text.data()), text.size()}).ok());
}

const std::string& Root() {
  static const support::TempDir directory;
  return directory.path();
}

void ReadLayerRecord(absl::string_view text) {
  const auto record = contentstore::DecodeLayerRecord(text);
  if (!record.ok()) return Require(absl::IsDataLoss(record.status()));
  Require(record->id != 0 && record->id <= contentstore::kMaxLayerId && !record->descriptor.digest.empty());
  const std::string written = contentstore::EncodeLayerRecord(*record);
  const auto again = contentstore::DecodeLayerRecord(written);
  Require(again.ok() && contentstore::EncodeLayerRecord(*again) == written);
}

void ReadMounts(absl::string_view text) {
  const std::string path = absl::StrCat(Root(), "/mounts.json");
  Write(path, text);
  const auto mounts = daemon::LoadMountTable(path);
  if (!mounts.ok()) return;
  for (const auto& mount : *mounts) Require(!mount.manifest_digest.empty());
}

void ReadHosts(absl::string_view text) {
  const std::string path = absl::StrCat(Root(), "/hosts.json");
  Write(path, text);
  daemon::PlainHttpHosts hosts;
  (void)hosts.Load(path);
  (void)hosts.Contains("registry.example");
}

void ReadJournal(absl::string_view text) {
  const std::string directory = absl::StrCat(Root(), "/journal");
  static exporter::Journal& journal = *exporter::Journal::Open(directory).value().release();
  const oci::Reference repository = *oci::ParseReference("registry.example/team/app:1");
  const base::Digest digest = base::Digest::Of(absl::string_view("blob"));
  const std::string key = absl::StrCat(repository.host, "\n", repository.repository, "\n", digest.ToString());
  Write(absl::StrCat(directory, "/", base::Digest::Of(key).hex(), ".session"), text);
  const auto entry = journal.Find(repository, digest);
  if (!entry.has_value()) return Require(journal.All().empty());
  Require(entry->digest == digest && entry->session.offset <= entry->size);
}

void ReadLease(absl::string_view text) {
  exporter::LeasesOptions options;
  options.directory = absl::StrCat(Root(), "/leases");
  const std::string lease = absl::StrCat(options.directory, "/", kLease);
  Require(base::MakeDirectories(lease).ok());
  Write(lease + "/lease.json", text);
  fuse::FakeStore store;
  options.store = &store;
  options.sources = [](absl::string_view) {
    return absl::StatusOr<std::shared_ptr<contentstore::BlobSource>>(absl::NotFoundError("no source"));
  };
  const auto leases = exporter::Leases::Open(options);
  Require(leases.ok() && (*leases)->List().size() <= 1);
}

// The presence map belongs to an index of a few chunks; its cache file is right but for its last chunk.
class Presence {
 public:
  Presence() : directory_(absl::StrCat(Root(), "/layer")) {
    Require(base::MakeDirectories(directory_).ok());
    const support::Layer made = support::MakeLayer(
        support::MakeTar({support::File("a", support::RandomBytes(60'000, 1))}), oci::Compression::kNone);
    layer::BuildLimits limits;
    limits.checkpoint_spacing = 16 << 10;
    const auto keep = [this](uint64_t offset, absl::Span<const uint8_t> bytes) {
      data_.resize(std::max<size_t>(data_.size(), offset + bytes.size()));
      std::copy(bytes.begin(), bytes.end(), data_.begin() + static_cast<ptrdiff_t>(offset));
      return absl::OkStatus();
    };
    auto indexer =
        layer::StreamIndexer::Create(layer::Format::kTar, made.descriptor, made.diff_id, limits).value();
    Require(indexer->Feed({reinterpret_cast<const uint8_t*>(made.blob.data()), made.blob.size()}, keep).ok());
    Require(indexer->Finish(directory_, keep).ok());
    index_ = layer::LayerIndex::Open(directory_).value();
    data_.resize(index_->info().data_size);
    data_[index_->chunk(index_->chunk_count() - 1).data_offset] ^= 1;
  }

  void Read(absl::string_view text) {
    Write(directory_ + "/data", data_);  // a map that is of no use has it emptied
    const auto flags = text.empty() ? 0 : static_cast<uint8_t>(text[0]);
    if (!text.empty()) text.remove_prefix(1);
    const auto header = contentstore::MakePresenceHeader(*index_, (flags & 2) != 0);
    std::string map(text);
    if ((flags & 1) != 0) {
      map.insert(map.begin(), header.begin(), header.end());
      map.resize(contentstore::PresenceBytes(index_->chunk_count()));
    }
    Write(directory_ + "/presence", map);
    const auto cache = contentstore::ChunkCache::Open(
        index_, directory_, /*verified=*/false,
        std::make_shared<contentstore::CacheBudget>(contentstore::CacheLimits{}));
    Require(cache.ok());
    const uint64_t last = index_->chunk_count() - 1;
    for (uint64_t i = 0; i <= last; ++i) {
      Require(!(*cache)->Present(i));  // claims are no more than that
      if (!(*cache)->Claimed(i)) continue;
      const absl::Status right = (*cache)->Verify(i);
      Require(right.ok() == (*cache)->Present(i) && !(*cache)->Claimed(i));
      if (i == last) Require(!right.ok());
    }
  }

 private:
  const std::string directory_;
  std::string data_;
  std::shared_ptr<const layer::LayerIndex> index_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 6) {
    case 0:
      ReadLayerRecord(text);
      break;
    case 1:
      ReadMounts(text);
      break;
    case 2:
      ReadHosts(text);
      break;
    case 3:
      ReadJournal(text);
      break;
    case 4:
      ReadLease(text);
      break;
    default: {
      static Presence presence;
      presence.Read(text);
    }
  }
  return 0;
}

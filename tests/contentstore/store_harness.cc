#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {

void PendingRead::End(absl::StatusOr<PinnedRange> result) {
  status_ = result.status();
  if (result.ok()) {
    in_memory_ = result->in_memory();
    bytes_.resize(result->length());
    status_ = result->CopyTo({reinterpret_cast<uint8_t*>(bytes_.data()), bytes_.size()});
  }
  done_.Notify();
}

std::shared_ptr<PendingRead> StartRead(LazyLayer& layer, uint64_t offset, uint64_t length,
                                       FetchContext context) {
  auto read = std::make_shared<PendingRead>();
  layer.Acquire(offset, length, std::move(context),
                [read](absl::StatusOr<PinnedRange> result) { read->End(std::move(result)); });
  return read;
}

absl::StatusOr<std::string> Read(LazyLayer& layer, uint64_t offset, uint64_t length, FetchContext context) {
  const std::shared_ptr<PendingRead> read = StartRead(layer, offset, length, std::move(context));
  if (!read->Await()) return absl::InternalError("the read does not end");
  if (!read->status().ok()) return read->status();
  return read->bytes();
}

testing::AssertionResult Same(absl::string_view found, absl::string_view expected) {
  if (found == expected) return testing::AssertionSuccess();
  size_t at = 0;
  while (at < found.size() && at < expected.size() && found[at] == expected[at]) ++at;
  return testing::AssertionFailure() << found.size() << " bytes instead of " << expected.size()
                                     << ", different from byte " << at << " on";
}

StoreTest::StoreTest() {
  options_.root = directory_.File("root");
  options_.fetch_threads = 4;
  options_.min_range_bytes = kChunk;
  options_.max_range_bytes = 64 * kChunk;
  options_.limits.checkpoint_spacing = kChunk;
  options_.sync_interval = absl::Hours(1);
  options_.clock = &clock_;
  options_.log = [this](absl::string_view line) {
    absl::MutexLock lock(&mutex_);
    log_.emplace_back(line);
  };
  options_.source_factory = [this](absl::string_view name) -> absl::StatusOr<std::shared_ptr<BlobSource>> {
    if (name != source_->name()) return absl::NotFoundError("unknown source");
    return std::shared_ptr<BlobSource>(source_);
  };
}

StoreTest::~StoreTest() {
  source_->Release();
  store_.reset();
}

void StoreTest::Open() {
  absl::StatusOr<std::unique_ptr<ContentStore>> store = ContentStore::Open(options_);
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
}

support::Layer StoreTest::MakeTarLayer(uint64_t chunks, uint64_t seed) {
  return support::MakeLayer(
      support::MakeTar({support::File("file", support::RandomBytes(chunks * kChunk - 2048, seed))}),
      oci::Compression::kNone);
}

std::string StoreTest::DataArea(const support::Layer& layer) {
  std::string data = layer.tar;
  data.resize((data.size() + 4095) / 4096 * 4096, '\0');
  return data;
}

std::shared_ptr<LazyLayer> StoreTest::AddFrom(const std::shared_ptr<support::GatedBlobSource>& source,
                                              const support::Layer& layer) {
  source->PutBlob(layer.blob);
  DescriptorHandler handler;
  handler.descriptor = layer.descriptor;
  handler.diff_id = layer.diff_id;
  handler.sources = {source};
  absl::StatusOr<std::shared_ptr<LazyLayer>> added = store_->AddHandler(handler);
  EXPECT_TRUE(added.ok()) << added.status();
  return added.ok() ? *added : nullptr;
}

std::shared_ptr<LazyLayer> StoreTest::AddIndexedFrom(const std::shared_ptr<support::GatedBlobSource>& source,
                                                     const support::Layer& layer) {
  std::shared_ptr<LazyLayer> added = AddFrom(source, layer);
  const absl::Status status = store_->EnsureIndexed(*added, false, {}, {});
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(added->state(), LayerState::kLazy);
  ForgetRequests();
  return added;
}

std::shared_ptr<LazyLayer> StoreTest::AddComplete(const support::Layer& layer) {
  std::shared_ptr<LazyLayer> added = AddIndexed(layer);
  const absl::Status status = store_->Unlazy(*added, {}, {});
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(added->state(), LayerState::kComplete);
  ForgetRequests();
  return added;
}

std::vector<support::GatedBlobSource::Request> StoreTest::Requests() const {
  std::vector<support::GatedBlobSource::Request> all = source_->requests();
  all.erase(all.begin(), all.begin() + static_cast<ptrdiff_t>(forgotten_));
  return all;
}

size_t StoreTest::TimesRequested(uint64_t blob_offset) const {
  size_t times = 0;
  for (const auto& request : Requests()) {
    times += request.range.offset <= blob_offset && blob_offset - request.range.offset < request.range.length;
  }
  return times;
}

std::vector<std::string> StoreTest::Log() const {
  absl::MutexLock lock(&mutex_);
  return log_;
}

std::string StoreTest::LayerFile(const LazyLayer& layer, absl::string_view name) const {
  return layer.directory() + "/" + std::string(name);
}

}  // namespace lazyblob::contentstore

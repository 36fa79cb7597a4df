#include "exporter/blob.h"

#include <gtest/gtest.h>

#include "tests/exporter/layer_reading.h"
#include "tests/support/gated_blob_source.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

absl::StatusOr<std::string> ReadFrom(Blob& blob, uint64_t offset, contentstore::FetchContext context = {}) {
  std::string all;
  const absl::Status status = blob.Read(
      offset,
      [&](absl::Span<const uint8_t> bytes) {
        all.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        return absl::OkStatus();
      },
      context);
  if (!status.ok()) return status;
  return all;
}

TEST(MemoryBlob, IsReadFromAnyOffset) {
  const auto blob = MakeMemoryBlob("some bytes", "text/plain");
  EXPECT_EQ(blob->descriptor()->digest, base::Digest::Of("some bytes"));
  EXPECT_EQ(blob->descriptor()->size, 10U);
  EXPECT_EQ(ReadFrom(*blob, 0).value(), "some bytes");
  EXPECT_EQ(ReadFrom(*blob, 5).value(), "bytes");
  EXPECT_EQ(ReadFrom(*blob, 10).value(), "");
  EXPECT_TRUE(absl::IsOutOfRange(ReadFrom(*blob, 11).status()));
  EXPECT_TRUE(blob->local());
}

TEST(StagedBlobAsBlob, HasNoDescriptorUntilItIsMade) {
  const support::TempDir directory;
  auto writer = StagedBlobWriter::Create(directory.path()).value();
  int described = 0;
  const auto blob = MakeStagedBlob(writer->blob(), [&](const StagedBlob::Whole& whole) {
    ++described;
    oci::Descriptor descriptor;
    descriptor.digest = whole.digest;
    descriptor.size = whole.size;
    return descriptor;
  });
  ASSERT_TRUE(writer->Append(AsBytes("abc")).ok());
  EXPECT_FALSE(blob->descriptor().has_value());
  ASSERT_TRUE(writer->Finish(base::Digest::Of("abc"), 3).ok());
  EXPECT_EQ(blob->descriptor()->size, 3U);
  EXPECT_EQ(blob->WaitDescriptor(nullptr)->digest, base::Digest::Of("abc"));
  EXPECT_EQ(described, 1);
  EXPECT_EQ(ReadFrom(*blob, 1).value(), "bc");
}

TEST(LayoutBlob, IsReadFromItsFileAndNamesWhatIsMissing) {
  const support::TempDir directory;
  const std::string bytes = support::RandomBytes(3'000'000, 4);
  const base::Digest digest = base::Digest::Of(bytes);
  ASSERT_TRUE(base::MakeDirectories(directory.File("blobs/sha256")).ok());
  ASSERT_TRUE(
      base::WriteFileAtomically(directory.File("oci-layout"), R"({"imageLayoutVersion":"1.0.0"})").ok());
  ASSERT_TRUE(
      base::WriteFileAtomically(directory.File("index.json"), R"({"schemaVersion":2,"manifests":[]})").ok());
  ASSERT_TRUE(base::WriteFileAtomically(directory.File("blobs/sha256/" + digest.hex()), bytes).ok());
  const auto layout = std::make_shared<const oci::Layout>(oci::Layout::Open(directory.path()).value());
  oci::Descriptor descriptor;
  descriptor.digest = digest;
  descriptor.size = bytes.size();
  const auto blob = MakeLayoutBlob(layout, descriptor);
  EXPECT_TRUE(ReadFrom(*blob, 0).value() == bytes);
  EXPECT_TRUE(ReadFrom(*blob, 2'999'990).value() == bytes.substr(2'999'990));
  descriptor.size += 10;
  EXPECT_FALSE(ReadFrom(*MakeLayoutBlob(layout, descriptor), 0).ok());
  descriptor.digest = base::Digest::Of("not there");
  EXPECT_TRUE(absl::IsNotFound(ReadFrom(*MakeLayoutBlob(layout, descriptor), 0).status()));
}

TEST(LazyBlob, IsReadFromTheSourceThatIsAskedForFirst) {
  const support::TempDir directory;
  contentstore::ContentStoreOptions options;
  options.root = directory.File("store");
  const auto store = contentstore::ContentStore::Open(options).value();
  const std::string bytes = support::RandomBytes(100'000, 5);
  const auto one = std::make_shared<support::GatedBlobSource>("test:one");
  const auto two = std::make_shared<support::GatedBlobSource>("test:two");
  contentstore::DescriptorHandler handler;
  handler.descriptor.media_type = "application/vnd.oci.image.layer.v1.tar";
  handler.descriptor.digest = one->PutBlob(bytes);
  handler.descriptor.size = bytes.size();
  two->PutBlob(bytes);
  handler.sources = {one, two};
  const auto layer = store->AddHandler(handler).value();
  oci::Reference repository;
  repository.host = "h";
  repository.repository = "r";
  const auto blob = MakeLazyBlob(store.get(), layer, handler.descriptor, {repository});
  EXPECT_EQ(blob->sources(), (std::vector<std::string>{"test:one", "test:two"}));
  EXPECT_EQ(blob->repositories().size(), 1U);
  EXPECT_FALSE(blob->local());
  EXPECT_EQ(one->request_count() + two->request_count(), 0U);
  contentstore::FetchContext context;
  context.first_source = 1;
  EXPECT_TRUE(ReadFrom(*blob, 99'000, context).value() == bytes.substr(99'000));
  EXPECT_EQ(one->request_count(), 0U);
  EXPECT_EQ(two->request_count(), 1U);
  EXPECT_EQ(ReadFrom(*blob, 100'000).value(), "");
  EXPECT_TRUE(absl::IsOutOfRange(ReadFrom(*blob, 100'001).status()));
  // One whose bytes are to stay leaves them for all others.
  const auto kept = MakeLazyBlob(store.get(), layer, handler.descriptor, {repository}, /*keep=*/true);
  EXPECT_EQ(kept->origin(), blob->origin());
  EXPECT_TRUE(ReadFrom(*kept, 0).value() == bytes);
  EXPECT_TRUE(base::ReadFile(store->KeepBlob(*layer, {}, {}).value(), 1 << 20).value() == bytes);
  const size_t requests = one->request_count() + two->request_count();
  EXPECT_TRUE(ReadFrom(*blob, 0).value() == bytes);
  EXPECT_EQ(one->request_count() + two->request_count(), requests);
}

}  // namespace
}  // namespace lazyblob::exporter

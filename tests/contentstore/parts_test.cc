// The parts of the store that have no threads: bitmap, record, reader of tables of contents.

#include <gtest/gtest.h>

#include "contentstore/internal/bitmap.h"
#include "contentstore/internal/layer_record.h"
#include "contentstore/internal/toc_reader.h"
#include "contentstore/internal/unpacked_digest.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::contentstore {
namespace {

TEST(AtomicBitmapTest, SetsClearsAndFinds) {
  for (const uint64_t size : {1, 63, 64, 65, 200}) {
    AtomicBitmap bits(size);
    EXPECT_EQ(bits.FindUnset(0, size), 0);
    for (uint64_t i = 0; i < size; ++i) {
      EXPECT_TRUE(bits.Set(i));
      EXPECT_FALSE(bits.Set(i));
      EXPECT_TRUE(bits.Test(i));
      EXPECT_EQ(bits.FindUnset(0, size), i + 1);
    }
    EXPECT_TRUE(bits.AllSet(0, size));
    EXPECT_TRUE(bits.Clear(size - 1));
    EXPECT_FALSE(bits.Clear(size - 1));
    EXPECT_FALSE(bits.AllSet(0, size));
    EXPECT_TRUE(bits.AllSet(0, size - 1));
    EXPECT_EQ(bits.FindUnset(0, size), size - 1);
  }
  EXPECT_TRUE(AtomicBitmap(0).AllSet(0, 0));
}

LayerRecord MakeRecord() {
  LayerRecord record;
  record.id = 77;
  record.descriptor.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
  record.descriptor.digest = base::Digest::Of("blob");
  record.descriptor.size = 1234;
  record.descriptor.annotations = {{"k", "v\"\n"}};
  record.diff_id = base::Digest::Of("diff");
  record.sources = {"registry:localhost:5000/debian", "layout:/a b"};
  record.not_lazy_reason = "toc-missing";
  record.quarantine = "because";
  return record;
}

TEST(LayerRecordTest, ComesBackAsItWas) {
  const LayerRecord record = MakeRecord();
  const LayerRecord back = DecodeLayerRecord(EncodeLayerRecord(record)).value();
  EXPECT_EQ(back.id, record.id);
  EXPECT_EQ(back.descriptor.media_type, record.descriptor.media_type);
  EXPECT_EQ(back.descriptor.digest, record.descriptor.digest);
  EXPECT_EQ(back.descriptor.size, record.descriptor.size);
  EXPECT_EQ(back.descriptor.annotations, record.descriptor.annotations);
  EXPECT_EQ(back.diff_id, record.diff_id);
  EXPECT_EQ(back.sources, record.sources);
  EXPECT_EQ(back.not_lazy_reason, record.not_lazy_reason);
  EXPECT_EQ(back.quarantine, record.quarantine);
}

TEST(LayerRecordTest, DamageIsDataLoss) {
  const std::string text = EncodeLayerRecord(MakeRecord());
  for (size_t length = 0; length + 2 < text.size(); ++length) {
    EXPECT_TRUE(absl::IsDataLoss(DecodeLayerRecord(text.substr(0, length)).status())) << length;
  }
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    return DecodeLayerRecord(changed).status();
  };
  EXPECT_TRUE(absl::IsDataLoss(with("\"version\": 1", "\"version\": 2")));
  EXPECT_TRUE(absl::IsDataLoss(with("\"id\": 77", "\"id\": 0")));
  EXPECT_TRUE(absl::IsDataLoss(with("\"id\": 77", "\"id\": 1048576")));
  EXPECT_TRUE(absl::IsDataLoss(with("\"id\": 77", "\"id\": \"77\"")));
  EXPECT_TRUE(absl::IsDataLoss(with("sha256:", "md5:")));
  EXPECT_TRUE(absl::IsDataLoss(with("\"size\": 1234", "\"size\": -1")));
}

TEST(LayerRecordTest, IsReadFromWhereItWasWritten) {
  support::TempDir directory;
  EXPECT_TRUE(absl::IsNotFound(ReadLayerRecord(directory.path()).status()));
  ASSERT_TRUE(WriteLayerRecord(directory.path(), MakeRecord()).ok());
  EXPECT_EQ(ReadLayerRecord(directory.path()).value().id, 77);
}

absl::StatusOr<std::vector<base::Digest>> Unpack(const std::string& blob, oci::Compression compression,
                                                 const layer::BuildLimits& limits) {
  oci::Descriptor descriptor;
  descriptor.digest = base::Digest::Of(blob);
  descriptor.size = blob.size();
  UnpackedDigest unpacked(descriptor, compression, {base::DigestAlgorithm::kSha256}, limits);
  const absl::Span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(blob.data()), blob.size());
  for (size_t at = 0; at < bytes.size(); at += 16 << 10) unpacked.Feed(bytes.subspan(at, 16 << 10));
  return unpacked.Finish();
}

TEST(UnpackedDigestTest, ALayerMayBeginWithZeros) {
  const std::string tar = std::string(65 << 20, '\0') + support::RandomBytes(1 << 20, 1);
  const std::string blob = support::Zstd(tar);
  layer::BuildLimits limits;
  limits.max_ratio = 3;
  const auto found = Unpack(blob, oci::Compression::kZstd, limits);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->at(0), base::Digest::Of(tar));
  limits.max_ratio = 1;
  EXPECT_TRUE(absl::IsResourceExhausted(Unpack(blob, oci::Compression::kZstd, limits).status()));
}

TEST(UnpackedDigestTest, LimitsAreNoVerdict) {
  const std::string tar(12 << 20, 'a');
  const std::string blob = support::Zstd(tar, 22);  // a single segment of 12 MiB
  layer::BuildLimits limits;
  const auto found = Unpack(blob, oci::Compression::kZstd, limits);
  EXPECT_TRUE(absl::IsResourceExhausted(found.status())) << found.status();
  limits.max_zstd_window = 32 << 20;
  EXPECT_TRUE(Unpack(blob, oci::Compression::kZstd, limits).ok());
  limits.max_data_bytes = 1 << 20;
  EXPECT_TRUE(absl::IsResourceExhausted(Unpack(blob, oci::Compression::kZstd, limits).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Unpack("no zstd", oci::Compression::kZstd, {}).status()));
}

class TocReaderTest : public ::testing::Test {
 protected:
  absl::Status Fetch(uint64_t offset, absl::Span<uint8_t> out) {
    if (!failure_.ok()) return failure_;
    fetched_.emplace_back(offset, out.size());
    std::copy_n(blob_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return absl::OkStatus();
  }
  std::string Read(TocReader& reader, uint64_t offset, uint64_t length) {
    std::string bytes(length, '\0');
    const absl::Status status = reader.Read(offset, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()});
    return status.ok() ? bytes : "error";
  }

  const std::string blob_ = support::RandomBytes(20 << 20, 1);
  std::vector<std::pair<uint64_t, uint64_t>> fetched_;
  absl::Status failure_;
};

TEST_F(TocReaderTest, AFooterAndATableCostOneRequest) {
  const auto fetch = [this](uint64_t offset, absl::Span<uint8_t> out) { return Fetch(offset, out); };
  TocReader reader(blob_.size(), fetch);
  EXPECT_EQ(Read(reader, blob_.size() - 51, 51), blob_.substr(blob_.size() - 51));
  EXPECT_EQ(Read(reader, blob_.size() - 100'000, 99'949), blob_.substr(blob_.size() - 100'000, 99'949));
  EXPECT_EQ(fetched_.size(), 1);
}

TEST_F(TocReaderTest, ALargeTableCostsOneMore) {
  const auto fetch = [this](uint64_t offset, absl::Span<uint8_t> out) { return Fetch(offset, out); };
  TocReader reader(blob_.size(), fetch);
  EXPECT_EQ(Read(reader, blob_.size() - 51, 51), blob_.substr(blob_.size() - 51));
  const uint64_t table = blob_.size() - (5 << 20);
  EXPECT_EQ(Read(reader, table, (5 << 20) - 51), blob_.substr(table, (5 << 20) - 51));
  ASSERT_EQ(fetched_.size(), 2);
  uint64_t bytes = 0;
  for (const auto& [offset, length] : fetched_) bytes += length;
  EXPECT_EQ(bytes, 5 << 20);  // no byte twice
}

TEST_F(TocReaderTest, SmallReadsInARowAreFewRequests) {
  const auto fetch = [this](uint64_t offset, absl::Span<uint8_t> out) { return Fetch(offset, out); };
  TocReader reader(blob_.size(), fetch);
  for (uint64_t at = 1 << 20; at < (3 << 20); at += 1000)
    EXPECT_EQ(Read(reader, at, 1000), blob_.substr(at, 1000));
  EXPECT_LT(fetched_.size(), 12);
}

TEST_F(TocReaderTest, ErrorsOfTheSourceAndOfTheTableAreToldApart) {
  const auto fetch = [this](uint64_t offset, absl::Span<uint8_t> out) { return Fetch(offset, out); };
  TocReader reader(blob_.size(), fetch);
  EXPECT_EQ(Read(reader, blob_.size() - 10, 11), "error");
  EXPECT_TRUE(reader.source_status().ok());
  failure_ = absl::UnavailableError("down");
  EXPECT_EQ(Read(reader, 0, 10), "error");
  EXPECT_TRUE(absl::IsUnavailable(reader.source_status()));
}

}  // namespace
}  // namespace lazyblob::contentstore

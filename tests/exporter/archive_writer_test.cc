#include "exporter/archive_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using support::TempDir;

int Shell(const std::string& command) { return std::system((command + " > /dev/null 2>&1").c_str()); }

support::Image ImageOf(const std::string& content) {
  return support::MakeImage(
      {support::MakeLayer(support::MakeTar({support::File("a", content)}), oci::Compression::kGzip)});
}

absl::Status Add(ArchiveWriter& archive, const support::Image& image,
                 const std::optional<std::string>& name) {
  for (const support::Layer& layer : image.layers) {
    if (absl::Status added = archive.AddBlob(layer.descriptor, layer.blob); !added.ok()) return added;
  }
  if (absl::Status added = archive.AddBlob(image.config_descriptor, image.config); !added.ok()) return added;
  if (absl::Status added = archive.AddBlob(image.manifest_descriptor, image.manifest); !added.ok())
    return added;
  return archive.AddImage(image.manifest_descriptor, name);
}

TEST(ArchiveWriter, SkopeoAndTarReadIt) {
  TempDir dir;
  const std::string file = dir.File("image.tar");
  auto archive = ArchiveWriter::Create(file).value();
  ASSERT_EQ(Add(*archive, ImageOf("1"), "one"), absl::OkStatus());
  ASSERT_EQ(Add(*archive, ImageOf("2"), "two"), absl::OkStatus());
  ASSERT_EQ(archive->Finish(), absl::OkStatus());
  EXPECT_EQ(Shell("skopeo inspect oci-archive:" + file + ":one"), 0);
  EXPECT_EQ(Shell("skopeo copy oci-archive:" + file + ":two dir:" + dir.File("copy")), 0);
  EXPECT_NE(Shell("skopeo inspect oci-archive:" + file + ":three"), 0);
  ASSERT_EQ(Shell("mkdir " + dir.File("x") + " && tar -C " + dir.File("x") + " -xf " + file), 0);
  EXPECT_EQ(Shell("umoci stat --image " + dir.File("x") + ":one"), 0);
}

TEST(ArchiveWriter, AnUnnamedImageIsReadWithoutAName) {
  TempDir dir;
  const std::string file = dir.File("image.tar");
  auto archive = ArchiveWriter::Create(file).value();
  ASSERT_EQ(Add(*archive, ImageOf("1"), std::nullopt), absl::OkStatus());
  ASSERT_EQ(archive->Finish(), absl::OkStatus());
  EXPECT_EQ(Shell("skopeo inspect oci-archive:" + file), 0);
}

TEST(ArchiveWriter, TheSameCallsGiveTheSameBytes) {
  TempDir dir;
  for (const char* name : {"1", "2"}) {
    auto archive = ArchiveWriter::Create(dir.File(name)).value();
    ASSERT_EQ(Add(*archive, ImageOf("1"), "one"), absl::OkStatus());
    ASSERT_EQ(Add(*archive, ImageOf("1"), "one"), absl::OkStatus()) << "again does nothing";
    ASSERT_EQ(archive->Finish(), absl::OkStatus());
  }
  EXPECT_EQ(*base::ReadFile(dir.File("1"), 1 << 20), *base::ReadFile(dir.File("2"), 1 << 20));
}

TEST(ArchiveWriter, WithoutFinishTheOldFileStaysAndNothingElse) {
  TempDir dir;
  const std::string file = dir.File("image.tar");
  ASSERT_EQ(base::WriteFileAtomically(file, "old"), absl::OkStatus());
  {
    auto archive = ArchiveWriter::Create(file).value();
    ASSERT_EQ(Add(*archive, ImageOf("1"), "one"), absl::OkStatus());
  }
  EXPECT_EQ(*base::ReadFile(file, 100), "old");
  EXPECT_EQ(base::ListDirectory(dir.path())->size(), 1U);
}

TEST(ArchiveWriter, WrongBytesAreAnErrorThatStays) {
  TempDir dir;
  const std::string file = dir.File("image.tar");
  auto archive = ArchiveWriter::Create(file).value();
  const support::Image image = ImageOf("1");
  EXPECT_EQ(archive->AddBlob(image.config_descriptor, "other").code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(Add(*archive, image, "one").ok());
  EXPECT_FALSE(archive->Finish().ok());
  EXPECT_NE(Shell("test -e " + file), 0);
}

TEST(ArchiveWriter, TwoUnnamedImagesAreRefused) {
  TempDir dir;
  auto archive = ArchiveWriter::Create(dir.File("image.tar")).value();
  ASSERT_EQ(Add(*archive, ImageOf("1"), std::nullopt), absl::OkStatus());
  const absl::Status refused = Add(*archive, ImageOf("2"), std::nullopt);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
}

TEST(ArchiveWriter, AnImageWhoseManifestIsMissingIsRefused) {
  TempDir dir;
  auto archive = ArchiveWriter::Create(dir.File("image.tar")).value();
  EXPECT_EQ(archive->AddImage(ImageOf("1").manifest_descriptor, "one").code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(ArchiveWriter, WritesToAPipeAsItIs) {
  TempDir dir;
  const std::string pipe = dir.File("pipe");
  ASSERT_EQ(Shell("mkfifo " + pipe), 0);
  FILE* reader = popen(("tar -tf - < " + pipe).c_str(), "r");
  auto archive = ArchiveWriter::Create(pipe).value();
  ASSERT_EQ(Add(*archive, ImageOf("1"), "one"), absl::OkStatus());
  ASSERT_EQ(archive->Finish(), absl::OkStatus());
  archive.reset();
  std::string listed(64 << 10, '\0');
  listed.resize(fread(listed.data(), 1, listed.size(), reader));
  EXPECT_EQ(pclose(reader), 0);
  EXPECT_TRUE(absl::StrContains(listed, "index.json"));
}

TEST(ArchiveWriter, APipeThatNobodyReadsIsWaitedForUntilItIsCancelled) {
  TempDir dir;
  const std::string pipe = dir.File("pipe");
  ASSERT_EQ(Shell("mkfifo " + pipe), 0);
  base::CancelToken cancel;
  std::thread later([&] { cancel.Cancel(); });
  EXPECT_EQ(ArchiveWriter::Create(pipe, &cancel).status().code(), absl::StatusCode::kCancelled);
  later.join();
  const int reader = open(pipe.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  base::CancelToken again;
  auto archive = ArchiveWriter::Create(pipe, &again).value();
  again.Cancel();
  const std::string bytes = support::RandomBytes(1 << 20, 1);
  oci::Descriptor blob;
  blob.digest = base::Digest::Of(bytes);
  blob.size = bytes.size();
  EXPECT_EQ(archive->AddBlob(blob, bytes).code(), absl::StatusCode::kCancelled);
  close(reader);
}

TEST(ArchiveWriter, WhatAKillLeftIsTakenAwayWhatLivesIsNot) {
  TempDir dir;
  const std::string file = dir.File("image.tar");
  for (const char* name : {".image.tar.lazytar-1-0-1", "image.tar.tmp1.0", ".other.lazytar-1-0-1"}) {
    ASSERT_EQ(base::WriteFileAtomically(dir.File(name), "left"), absl::OkStatus());
  }
  auto first = ArchiveWriter::Create(file).value();
  auto second = ArchiveWriter::Create(file).value();
  EXPECT_EQ(Shell("test -e " + dir.File(".image.tar.lazytar-1-0-1")), 1 << 8);
  EXPECT_EQ(base::ListDirectory(dir.path())->size(), 4U);
  ASSERT_EQ(Add(*first, ImageOf("1"), "one"), absl::OkStatus());
  ASSERT_EQ(first->Finish(), absl::OkStatus());
  second.reset();
  EXPECT_EQ(base::ListDirectory(dir.path())->size(), 3U);
}

}  // namespace
}  // namespace lazyblob::exporter

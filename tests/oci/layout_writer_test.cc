#include "oci/layout_writer.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "oci/layout.h"
#include "oci/manifest_writer.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::oci {
namespace {

using support::TempDir;

support::Image ImageOf(const std::string& content, const std::string& architecture = "amd64") {
  support::ImageOptions options;
  options.platform.architecture = architecture;
  return support::MakeImage(
      {support::MakeLayer(support::MakeTar({support::File("a", content)}), Compression::kGzip)}, options);
}

absl::Status PutBlobs(const LayoutWriter& writer, const support::Image& image) {
  for (const support::Layer& layer : image.layers) {
    if (absl::Status put = writer.PutBlob(layer.descriptor, layer.blob); !put.ok()) return put;
  }
  if (absl::Status put = writer.PutBlob(image.config_descriptor, image.config); !put.ok()) return put;
  return writer.PutBlob(image.manifest_descriptor, image.manifest);
}

absl::Status Put(const std::string& directory, const support::Image& image,
                 const std::optional<std::string>& name) {
  absl::StatusOr<std::unique_ptr<LayoutWriter>> writer = LayoutWriter::Open(directory);
  if (!writer.ok()) return writer.status();
  if (absl::Status put = PutBlobs(**writer, image); !put.ok()) return put;
  return (*writer)->Publish(image.manifest_descriptor, name);
}

int Shell(const std::string& command) { return std::system((command + " > /dev/null").c_str()); }

TEST(LayoutWriter, SkopeoAndUmociReadWhatIsWritten) {
  TempDir dir;
  const std::string layout = dir.File("layout");
  ASSERT_EQ(Put(layout, ImageOf("one"), "one"), absl::OkStatus());
  ASSERT_EQ(Put(layout, ImageOf("two"), "two"), absl::OkStatus());
  EXPECT_EQ(Shell("skopeo inspect oci:" + layout + ":one"), 0);
  EXPECT_EQ(Shell("skopeo copy -q oci:" + layout + ":two dir:" + dir.File("copy")), 0);
  EXPECT_EQ(Shell("umoci stat --image " + layout + ":two"), 0);
  EXPECT_EQ(Shell("umoci gc --layout " + layout), 0);
  EXPECT_EQ(Shell("skopeo inspect oci:" + layout + ":two"), 0);
}

TEST(LayoutWriter, WritesIntoALayoutThatUmociMade) {
  TempDir dir;
  const std::string layout = dir.File("layout");
  ASSERT_EQ(Shell("umoci init --layout " + layout), 0);
  ASSERT_EQ(Shell("umoci new --image " + layout + ":theirs"), 0);
  ASSERT_EQ(Put(layout, ImageOf("ours"), "ours"), absl::OkStatus());
  EXPECT_EQ(Shell("umoci stat --image " + layout + ":theirs"), 0);
  EXPECT_EQ(Shell("umoci stat --image " + layout + ":ours"), 0);
}

TEST(LayoutWriter, ANameMovesToTheLaterImage) {
  TempDir dir;
  const std::string layout = dir.File("layout");
  const support::Image later = ImageOf("later");
  ASSERT_EQ(Put(layout, ImageOf("first"), "x"), absl::OkStatus());
  ASSERT_EQ(Put(layout, later, "x"), absl::OkStatus());
  const absl::StatusOr<Layout> read = Layout::Open(layout);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->index().manifests.size(), 1U);
  EXPECT_EQ(read->Resolve("x")->digest, later.manifest_descriptor.digest);
}

TEST(LayoutWriter, AnUnnamedImageThatGetsANameIsThereOnce) {
  TempDir dir;
  const std::string layout = dir.File("layout");
  const support::Image image = ImageOf("x");
  ASSERT_EQ(Put(layout, image, std::nullopt), absl::OkStatus());
  ASSERT_EQ(Put(layout, image, std::nullopt), absl::OkStatus());
  ASSERT_EQ(Put(layout, image, "name"), absl::OkStatus());
  EXPECT_EQ(Layout::Open(layout)->index().manifests.size(), 1U);
}

TEST(LayoutWriter, ASecondUnnamedImageIsRefusedWithTheNamesInUse) {
  TempDir dir;
  const std::string layout = dir.File("layout");
  ASSERT_EQ(Put(layout, ImageOf("1"), "one"), absl::OkStatus());
  ASSERT_EQ(Put(layout, ImageOf("2"), "two"), absl::OkStatus());
  ASSERT_EQ(Put(layout, ImageOf("3"), std::nullopt), absl::OkStatus());
  const absl::Status refused = Put(layout, ImageOf("4"), std::nullopt);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(refused.message(), "one, two")) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), layout)) << refused;
  EXPECT_EQ(Layout::Open(layout)->index().manifests.size(), 3U);
}

TEST(LayoutWriter, ADirectoryThatIsNoLayoutIsRefusedAndLeftAlone) {
  TempDir dir;
  ASSERT_EQ(base::WriteFileAtomically(dir.File("mine"), "x"), absl::OkStatus());
  const absl::Status refused = LayoutWriter::Open(dir.path()).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(refused.message(), "not a layout")) << refused;
  EXPECT_EQ(base::ListDirectory(dir.path())->size(), 1U);
}

TEST(LayoutWriter, AnotherVersionIsRefused) {
  TempDir dir;
  ASSERT_EQ(base::WriteFileAtomically(dir.File("oci-layout"), "{\"imageLayoutVersion\":\"2.0.0\"}"),
            absl::OkStatus());
  EXPECT_EQ(LayoutWriter::Open(dir.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(LayoutWriter, TheNextWriterTakesAwayWhatAKilledOneLeft) {
  TempDir dir;
  const std::string layout = dir.File("layout");
  ASSERT_EQ(Put(layout, ImageOf("1"), "one"), absl::OkStatus());
  const std::string left = layout + "/.lazyblob-1-0-ab.tmp";
  const std::string living = layout + "/.lazyblob-1-1-ab.tmp";
  ASSERT_EQ(base::WriteFileAtomically(left, "x"), absl::OkStatus());
  ASSERT_EQ(base::WriteFileAtomically(living, "x"), absl::OkStatus());
  const base::UniqueFd held = base::OpenFile(living, O_WRONLY).value();
  ASSERT_EQ(flock(held.get(), LOCK_EX), 0);
  ASSERT_EQ(Put(layout, ImageOf("2"), "two"), absl::OkStatus());
  EXPECT_NE(access(left.c_str(), F_OK), 0);
  EXPECT_EQ(access(living.c_str(), F_OK), 0);
}

TEST(LayoutWriter, ABlobWithOtherBytesIsNotThere) {
  TempDir dir;
  const auto writer = LayoutWriter::Open(dir.File("layout")).value();
  const Descriptor wanted = DescriptorOf("wanted", "text/plain");
  EXPECT_EQ(writer->PutBlob(wanted, "others").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(writer->PutBlob(wanted, "wanted, and more").code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(*writer->HasBlob(wanted));
  EXPECT_EQ(writer->Publish(wanted, "x").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(base::ListDirectory(dir.File("layout/blobs/sha256"))->size(), 0U);
  EXPECT_EQ(writer->PutBlob(wanted, "wanted"), absl::OkStatus());
  EXPECT_TRUE(*writer->HasBlob(wanted));
}

TEST(LayoutWriter, ATruncatedBlobOfSomebodyElseIsReplaced) {
  TempDir dir;
  const auto writer = LayoutWriter::Open(dir.File("layout")).value();
  const Descriptor wanted = DescriptorOf("wanted", "text/plain");
  ASSERT_EQ(base::MakeDirectories(dir.File("layout/blobs/sha256")), absl::OkStatus());
  const std::string path = dir.File(absl::StrCat("layout/blobs/sha256/", wanted.digest.hex()));
  ASSERT_EQ(base::WriteFileAtomically(path, "wan"), absl::OkStatus());
  ASSERT_EQ(writer->PutBlob(wanted, "wanted"), absl::OkStatus());
  EXPECT_EQ(*base::ReadFile(path, 100), "wanted");
}

TEST(LayoutWriter, UnknownMembersOfIndexJsonAreKept) {
  TempDir dir;
  const std::string layout = dir.File("layout");
  ASSERT_EQ(Put(layout, ImageOf("1"), "one"), absl::OkStatus());
  nlohmann::json index = *base::ParseJson(*base::ReadFile(layout + "/index.json", 1 << 20), 1 << 20);
  index["theirs"] = 1;
  index["manifests"][0]["data"] = "x";
  ASSERT_EQ(base::WriteFileAtomically(layout + "/index.json", index.dump()), absl::OkStatus());
  ASSERT_EQ(Put(layout, ImageOf("2"), "two"), absl::OkStatus());
  index = *base::ParseJson(*base::ReadFile(layout + "/index.json", 1 << 20), 1 << 20);
  EXPECT_EQ(index["theirs"], 1);
  EXPECT_EQ(index["manifests"][0]["data"], "x");
}

TEST(LayoutWriter, PlatformsMeetInOneIndexWhateverTheirOrder) {
  TempDir dir;
  std::set<std::string> digests;
  const std::vector<std::vector<std::string>> orders = {{"amd64", "arm64", "s390x"},
                                                        {"s390x", "amd64", "arm64"}};
  for (size_t i = 0; i < orders.size(); ++i) {
    const auto writer = LayoutWriter::Open(dir.File(absl::StrCat("layout", i))).value();
    std::string last;
    for (const std::string& architecture : orders[i]) {
      for (const char* build : {"old", "new"}) {
        const support::Image image = ImageOf(architecture + build, architecture);
        ASSERT_EQ(PutBlobs(*writer, image), absl::OkStatus());
        const absl::StatusOr<Descriptor> merged =
            writer->PublishPlatforms({image.manifest_descriptor}, "all");
        ASSERT_TRUE(merged.ok()) << merged.status();
        last = merged->digest.ToString();
      }
    }
    digests.insert(last);
    for (const std::string& architecture : orders[i]) {
      EXPECT_EQ(Shell(absl::StrCat("skopeo --override-arch ", architecture,
                                   " inspect oci:", writer->directory(), ":all")),
                0);
    }
  }
  EXPECT_EQ(digests.size(), 1U);
}

TEST(LayoutWriter, AnImageThatStandsAloneGetsAnotherPlatformBesideIt) {
  TempDir dir;
  support::Image first = ImageOf("first", "amd64");
  first.manifest_descriptor.platform.reset();  // as other programs write layouts: the config says it
  ASSERT_EQ(Put(dir.File("layout"), first, "x"), absl::OkStatus());
  const support::Image second = ImageOf("second", "arm64");
  const auto writer = LayoutWriter::Open(dir.File("layout")).value();
  ASSERT_EQ(PutBlobs(*writer, second), absl::OkStatus());
  const absl::StatusOr<Descriptor> merged = writer->PublishPlatforms({second.manifest_descriptor}, "x");
  ASSERT_TRUE(merged.ok()) << merged.status();
  for (const char* architecture : {"amd64", "arm64"}) {
    EXPECT_EQ(Shell(absl::StrCat("skopeo --override-arch ", architecture,
                                 " inspect oci:", writer->directory(), ":x")),
              0);
  }
}

// A writer that puts image `i` under its name again and again until it is killed.
[[noreturn]] void WriteForEver(const std::string& layout, int i) {
  for (int round = 0;; ++round) {
    const absl::Status status = Put(layout, ImageOf(absl::StrCat(i, " ", round)), absl::StrCat("image", i));
    if (!status.ok()) {
      fprintf(stderr, "%s\n", status.ToString().c_str());
      _exit(1);
    }
  }
}

// Every blob of every image that index.json names is there and right.
void ExpectWhole(const std::string& directory, std::set<std::string>* names) {
  const absl::StatusOr<Layout> layout = Layout::Open(directory);
  ASSERT_TRUE(layout.ok()) << layout.status();
  for (const Descriptor& entry : layout->index().manifests) {
    names->insert(entry.annotations.at(kRefNameAnnotation));
    const absl::StatusOr<std::string> raw = layout->ReadBlob(entry.digest, kMaxManifestBytes);
    ASSERT_TRUE(raw.ok()) << raw.status();
    const Manifest manifest = std::get<Manifest>(*ParseManifestOrIndex(*raw, entry.digest, ""));
    EXPECT_TRUE(layout->ReadBlob(manifest.config.digest, kMaxConfigBytes).ok());
    for (const Descriptor& layer : manifest.layers) EXPECT_TRUE(layout->ReadBlob(layer.digest, 1 << 20).ok());
  }
}

TEST(LayoutWriter, ManyProcessesThatAreKilledLeaveALayoutOfWholeImages) {
  TempDir dir;
  const std::string layout = dir.File("layout");
  constexpr int kWriters = 8;
  std::vector<pid_t> writers(kWriters, -1);
  std::set<std::string> seen;
  unsigned random = 1;
  for (int round = 0; round < 120; ++round) {
    const size_t victim = static_cast<size_t>(rand_r(&random)) % kWriters;
    if (writers[victim] > 0) {
      ASSERT_EQ(kill(writers[victim], SIGKILL), 0);
      int status = 0;
      ASSERT_EQ(waitpid(writers[victim], &status, 0), writers[victim]);
      ASSERT_TRUE(WIFSIGNALED(status)) << "a writer failed";
    }
    std::set<std::string> names;
    if (access((layout + "/index.json").c_str(), F_OK) == 0) ExpectWhole(layout, &names);
    for (const std::string& name : seen) EXPECT_TRUE(names.contains(name)) << name << " was lost";
    seen = std::move(names);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) WriteForEver(layout, static_cast<int>(victim));
    writers[victim] = child;
  }
  for (const pid_t writer : writers) {
    if (writer <= 0) continue;
    kill(writer, SIGKILL);
    waitpid(writer, nullptr, 0);
  }
  // And all of them once more to the end.
  std::vector<pid_t> last;
  for (int i = 0; i < kWriters; ++i) {
    last.push_back(fork());
    if (last.back() == 0)
      _exit(Put(layout, ImageOf(absl::StrCat("last ", i)), absl::StrCat("image", i)).ok() ? 0 : 1);
  }
  for (const pid_t child : last) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  std::set<std::string> names;
  ExpectWhole(layout, &names);
  EXPECT_EQ(names.size(), static_cast<size_t>(kWriters));
  for (const std::string& name : names) {
    EXPECT_EQ(Shell("skopeo inspect oci:" + layout + ":" + name), 0);
    EXPECT_EQ(Shell("umoci stat --image " + layout + ":" + name), 0);
  }
}

}  // namespace
}  // namespace lazyblob::oci

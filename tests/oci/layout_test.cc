#include "oci/layout.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::oci {
namespace {

class LayoutTest : public testing::Test {
 protected:
  void SetUp() override {
    Write("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}");
    ASSERT_TRUE(base::MakeDirectories(directory_.File("blobs/sha256")).ok());
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(base::WriteFileAtomically(directory_.File(name), text).ok());
  }
  base::Digest Blob(const std::string& contents) {
    base::Digest digest = base::Digest::Of(contents);
    Write("blobs/sha256/" + digest.hex(), contents);
    return digest;
  }
  void WriteIndex(const std::vector<std::pair<std::string, std::string>>& tagged) {
    std::string list;
    for (const auto& [contents, annotations] : tagged) {
      absl::StrAppend(&list, list.empty() ? "" : ",", "{\"mediaType\":\"", kMediaTypeOciManifest,
                      "\",\"size\":", contents.size(), ",\"digest\":\"",
                      base::Digest::Of(contents).ToString(), "\",\"annotations\":{", annotations, "}}");
    }
    Write("index.json", absl::StrCat("{\"schemaVersion\":2,\"manifests\":[", list, "]}"));
  }
  static std::string Tag(const std::string& tag) {
    return absl::StrCat("\"org.opencontainers.image.ref.name\":\"", tag, "\"");
  }

  support::TempDir directory_;
};

TEST_F(LayoutTest, ResolvesTags) {
  WriteIndex({{"a", Tag("one")},
              {"b", Tag("two")},
              {"c", "\"io.containerd.image.name\":\"docker.io/library/c:1\""}});
  absl::StatusOr<Layout> layout = Layout::Open(directory_.path());
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->Resolve("two")->digest, base::Digest::Of("b"));
  EXPECT_EQ(layout->Resolve("docker.io/library/c:1")->digest, base::Digest::Of("c"));
  absl::Status status = layout->Resolve("three").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find("one, two"), absl::string_view::npos) << status;
  status = layout->Resolve(std::nullopt).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find("one, two"), absl::string_view::npos) << status;
}

TEST_F(LayoutTest, TheOnlyImageNeedsNoTag) {
  WriteIndex({{"a", ""}});
  absl::StatusOr<Layout> layout = Layout::Open(directory_.path());
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->Resolve(std::nullopt)->digest, base::Digest::Of("a"));
  WriteIndex({});
  EXPECT_EQ(Layout::Open(directory_.path())->Resolve(std::nullopt).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(LayoutTest, OneTagForTwoImagesIsRefused) {
  WriteIndex({{"a", Tag("x")}, {"b", Tag("x")}});
  EXPECT_EQ(Layout::Open(directory_.path())->Resolve("x").status().code(), absl::StatusCode::kNotFound);
  WriteIndex({{"a", Tag("x")}, {"a", Tag("x")}});
  EXPECT_EQ(Layout::Open(directory_.path())->Resolve("x")->digest, base::Digest::Of("a"));
}

TEST_F(LayoutTest, BlobsAreReadAndVerified) {
  WriteIndex({});
  base::Digest good = Blob("contents");
  base::Digest bad = base::Digest::Of("promised");
  Write("blobs/sha256/" + bad.hex(), "delivered");
  absl::StatusOr<Layout> layout = Layout::Open(directory_.path());
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(*layout->ReadBlob(good, 100), "contents");
  EXPECT_EQ(layout->ReadBlob(good, 7).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(layout->ReadBlob(bad, 100).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(layout->OpenBlob(base::Digest::Of("absent")).status().code(), absl::StatusCode::kNotFound);
  absl::StatusOr<base::UniqueFd> fd = layout->OpenBlob(good);
  ASSERT_TRUE(fd.ok());
  EXPECT_NE(fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(LayoutTest, LinksAndSpecialFilesLeadNowhere) {
  WriteIndex({});
  base::Digest outside = base::Digest::Of("outside");
  base::Digest inside = base::Digest::Of("inside");
  base::Digest pipe = base::Digest::Of("pipe");
  ASSERT_EQ(symlink("/etc/passwd", directory_.File("blobs/sha256/" + outside.hex()).c_str()), 0);
  Write("stored", "inside");
  ASSERT_EQ(symlink("../../stored", directory_.File("blobs/sha256/" + inside.hex()).c_str()), 0);
  ASSERT_EQ(mkfifo(directory_.File("blobs/sha256/" + pipe.hex()).c_str(), 0600), 0);
  absl::StatusOr<Layout> layout = Layout::Open(directory_.path());
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_FALSE(layout->OpenBlob(outside).ok());
  EXPECT_EQ(*layout->ReadBlob(inside, 100), "inside");
  EXPECT_FALSE(layout->OpenBlob(pipe).ok());
}

TEST_F(LayoutTest, BrokenLayoutsSayWhere) {
  EXPECT_EQ(Layout::Open("/nowhere").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Layout::Open(directory_.path()).status().code(), absl::StatusCode::kNotFound);  // no index.json
  Write("index.json", "{");
  EXPECT_FALSE(Layout::Open(directory_.path()).ok());
  Write("index.json", absl::StrCat("{\"config\":{\"mediaType\":\"c\",\"size\":1,\"digest\":\"",
                                   base::Digest::Of("c").ToString(), "\"}}"));
  EXPECT_FALSE(Layout::Open(directory_.path()).ok());
  WriteIndex({});
  for (const char* marker : {"{\"imageLayoutVersion\":\"2.0.0\"}", "{}", "[]", ""}) {
    Write("oci-layout", marker);
    absl::Status status = Layout::Open(directory_.path()).status();
    EXPECT_FALSE(status.ok()) << marker;
    EXPECT_NE(status.message().find(directory_.path()), absl::string_view::npos) << status;
  }
}

}  // namespace
}  // namespace lazyblob::oci

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "layer/erofs.h"
#include "layer/index_builder.h"
#include "layer/internal/toc.h"
#include "tests/layer/toc_maker.h"
#include "tests/layer/tree_text.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::layer {
namespace {

using support::TarMember;
using ::testing::HasSubstr;

constexpr char kStargz[] = "containerd.io/snapshot/stargz/toc.digest";
constexpr char kChecksum[] = "io.github.containers.zstd-chunked.manifest-checksum";
constexpr char kPosition[] = "io.github.containers.zstd-chunked.manifest-position";
constexpr char kGzipType[] = "application/vnd.oci.image.layer.v1.tar+gzip";
constexpr char kZstdType[] = "application/vnd.oci.image.layer.v1.tar+zstd";
const std::string kDigestA = base::Digest::Of("a").ToString();
const std::string kDigestB = base::Digest::Of("b").ToString();

std::vector<TarMember> Members() {
  TarMember owned = support::File("usr/owned", support::TextBytes(5000), 04755);
  owned.uid = 3'000'000'000;
  owned.gid = 7;
  owned.xattrs = {{"security.capability", std::string("\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20)},
                  {"user.x", "y"},
                  {"trusted.overlay.redirect", "/"}};
  TarMember fraction = support::File("fraction", "1");
  fraction.mtime_nanoseconds = 123'456'789;
  TarMember old = support::File("before-1970", "1");
  old.mtime = -5;
  return {support::Directory("./", 0755),
          support::Directory("usr/", 01777),
          owned,
          fraction,
          old,
          support::File("empty", ""),
          support::File(".no.prefetch.landmark", "\x0f"),
          support::File("big", support::RandomBytes(300'000, 1)),
          support::File("aligned", support::RandomBytes(65536, 2)),
          support::File("implied/parent/file", support::TextBytes(70'000)),
          support::Symlink("link", "usr/owned"),
          support::HardLink("hard", "big"),
          support::CharDevice("dev/c", 1, 3),
          support::BlockDevice("dev/b", 300, 70000),
          support::Fifo("dev/p"),
          support::Whiteout("gone"),
          support::OpaqueMarker("usr"),
          support::File("name with \"quotes\" and \xc3\xa4\nnewline", "x"),
          support::File("usr/owned2", "again")};
}

class TocTest : public ::testing::Test {
 protected:
  BlobReader Reader(const std::string& blob) {
    blob_ = &blob;
    return read_;
  }

  absl::Status Index(const TocBlob& made, const BuildLimits& limits = {}) {
    directory_ = std::make_unique<support::TempDir>();
    auto format = FormatOf(made.layer);
    if (!format.ok()) return format.status();
    return IndexFromToc(*format, made.layer, Reader(made.blob), limits, directory_->path(), external_);
  }

  // The same blob as a plain layer.
  absl::StatusOr<TreeText> Streamed(const TocBlob& made) {
    support::TempDir directory;
    auto none = [](uint64_t, absl::Span<const uint8_t>) { return absl::OkStatus(); };
    auto indexer = StreamIndexer::Create(PlainFormatOf(made.layer).value(), made.layer, {}, {});
    if (!indexer.ok()) return indexer.status();
    const absl::Span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(made.blob.data()),
                                          made.blob.size());
    if (absl::Status fed = (*indexer)->Feed(bytes, none); !fed.ok()) return fed;
    if (absl::Status done = (*indexer)->Finish(directory.path(), none); !done.ok()) return done;
    return TextOf(directory.path());
  }

  TreeText TextOf(const std::string& directory) {
    auto image = ErofsImage::Open(directory + "/meta.erofs");
    EXPECT_TRUE(image.ok()) << image.status();
    TreeTextOptions options;
    options.extents = false;
    return DescribeTree(image.value()->ToTree().value(), options);
  }

  std::string Contents(const TocBlob& made, const std::string& path) {
    auto index = LayerIndex::Open(directory_->path());
    auto image = ErofsImage::Open(directory_->path() + "/meta.erofs");
    if (!index.ok() || !image.ok()) return absl::StrCat("index: ", index.status().ToString());
    uint64_t nid = (*image)->root();
    for (size_t at = 0; at < path.size();) {
      const size_t slash = std::min(path.find('/', at), path.size());
      auto next = (*image)->Lookup(nid, path.substr(at, slash - at));
      if (!next.ok()) return next.status().ToString();
      nid = *next;
      at = slash + 1;
    }
    std::string contents((*image)->GetInode(nid)->size, '\0');
    const auto extents = (*image)->MapFile(nid, 0, ~uint64_t{0});
    for (size_t e = 0; e < extents->size(); ++e) {
      const Extent extent = (*extents)[e];
      for (uint64_t i = (*index)->FindChunk(extent.data_offset); i < (*index)->chunk_count(); ++i) {
        const Chunk chunk = (*index)->chunk(i);
        if (chunk.data_offset >= extent.data_offset + extent.length) break;
        std::vector<uint8_t> out(chunk.data_size);
        const absl::Status decoded = (*index)->Decode(
            i, {reinterpret_cast<const uint8_t*>(made.blob.data()) + chunk.blob_offset, chunk.blob_size},
            absl::MakeSpan(out));
        if (!decoded.ok()) return decoded.ToString();
        contents.replace(chunk.data_offset - extent.data_offset, out.size(),
                         std::string(out.begin(), out.end()));
      }
    }
    return contents;
  }

  // An honest blob with one thing changed in its TOC.
  absl::Status Edited(std::function<void(nlohmann::json&)> edit, Format format = Format::kEstargz) {
    TocOptions options;
    options.format = format;
    options.chunk_size = 65536;
    options.edit = std::move(edit);
    return Index(MakeTocBlob(Members(), options));
  }

  std::unique_ptr<support::TempDir> directory_;
  const std::string* blob_ = nullptr;
  ExternalToc external_;
  uint64_t reads_ = 0;
  std::function<absl::Status(uint64_t, absl::Span<uint8_t>)> read_ = [this](uint64_t offset,
                                                                            absl::Span<uint8_t> out) {
    ++reads_;
    if (offset > blob_->size() || out.size() > blob_->size() - offset)
      return absl::OutOfRangeError("outside the blob");
    std::copy_n(blob_->begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return absl::OkStatus();
  };
};

// The entry of a TOC by name.
nlohmann::json& EntryOf(nlohmann::json& toc, const std::string& name, const std::string& type = "reg") {
  for (auto& entry : toc["entries"]) {
    if (entry["name"] == name && entry["type"] == type) return entry;
  }
  ADD_FAILURE() << name;
  return toc;
}

TEST(FormatOf, FollowsMediaTypeAndAnnotations) {
  auto format = [](const char* type, std::map<std::string, std::string> annotations) {
    oci::Descriptor layer;
    layer.media_type = type;
    layer.annotations = std::move(annotations);
    auto result = FormatOf(layer);
    return result.ok() ? std::string(FormatName(*result)) : absl::StatusCodeToString(result.status().code());
  };
  const std::string lazy_no = "FAILED_PRECONDITION";
  EXPECT_EQ(format(kGzipType, {}), "tar+gzip");
  EXPECT_EQ(format("application/vnd.docker.image.rootfs.diff.tar.gzip", {}), "tar+gzip");
  EXPECT_EQ(format(kZstdType, {}), "tar+zstd");
  EXPECT_EQ(format("application/vnd.oci.image.layer.v1.tar", {}), "tar");
  EXPECT_EQ(format("application/vnd.oci.image.config.v1+json", {}), "INVALID_ARGUMENT");
  EXPECT_EQ(format(kGzipType, {{kStargz, kDigestA}}), "estargz");
  EXPECT_EQ(format(kGzipType, {{kStargz, ""}}), "tar+gzip");
  EXPECT_EQ(format(kGzipType, {{kStargz, "sha256:xyz"}}), lazy_no);
  EXPECT_EQ(format("application/vnd.oci.image.layer.v1.tar", {{kStargz, kDigestA}}), lazy_no);
  EXPECT_EQ(format(kZstdType, {{kChecksum, kDigestA}, {kPosition, "8:10:20:1"}}), "zstd:chunked");
  EXPECT_EQ(format(kZstdType, {{kChecksum, kDigestA}, {kPosition, "8:10:20:1"}, {kStargz, kDigestB}}),
            "zstd:chunked");
  EXPECT_EQ(format(kZstdType, {{kStargz, kDigestB}}), "zstd:chunked");
  EXPECT_EQ(format(kZstdType, {{kPosition, "8:10:20:1"}}), "tar+zstd");
  EXPECT_EQ(format(kGzipType, {{kChecksum, kDigestA}, {kPosition, "8:10:20:1"}}), lazy_no);
  EXPECT_EQ(format(kGzipType, {{kChecksum, kDigestA}, {kStargz, kDigestA}}), lazy_no);
  for (const char* position : {"8:10:20", "8:10:20:1:1", "8:10:20:2", "-8:10:20:1", "8: 10:20:1", "",
                               ":::", "a:1:2:1", "99999999999999999999:1:2:1"}) {
    EXPECT_EQ(format(kZstdType, {{kChecksum, kDigestA}, {kPosition, position}}),
              *position ? lazy_no : "zstd:chunked")
        << position;
  }
  EXPECT_EQ(
      format(kZstdType, {{kChecksum, kDigestA}, {"io.containers.zstd-chunked.manifest-checksum", kDigestB}}),
      lazy_no);
  EXPECT_EQ(
      format(kZstdType, {{kChecksum, kDigestA}, {"io.containers.zstd-chunked.manifest-checksum", kDigestA}}),
      "zstd:chunked");
}

TEST_F(TocTest, SameTreeAndContentsAsUnpacking) {
  std::vector<TocOptions> all(11);
  all[1].legacy_footer = true;
  all[2].chunk_size = 1000;
  all[3].small_files = 10'000;
  for (size_t i = 4; i < 9; ++i) all[i].format = Format::kZstdChunked;
  all[5].chunk_size = 4096;
  all[6].github_prefix = false;
  all[7].footer_only = true;
  all[8].stargz_annotation = false;
  all[9].external_toc = all[10].external_toc = true;
  all[10].small_files = 10'000;
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    const TocBlob made = MakeTocBlob(Members(), all[i]);
    const bool toc_inside = all[i].format == Format::kEstargz && !all[i].external_toc;
    external_ = [&] { return made.external_toc; };
    const absl::Status status = Index(made);
    ASSERT_TRUE(status.ok()) << status;
    auto streamed = Streamed(made);
    ASSERT_TRUE(streamed.ok()) << streamed.status();
    EXPECT_EQ(Difference(*streamed, TextOf(directory_->path())), "");
    EXPECT_EQ(streamed->count("stargz.index.json"), toc_inside ? 1u : 0u);
    for (const TarMember& member : Members()) {
      if (member.type == '0' && member.name.find(".wh.") == std::string::npos) {
        EXPECT_EQ(Contents(made, member.name), member.contents) << member.name;
      }
    }
    EXPECT_EQ(Contents(made, "hard"), support::RandomBytes(300'000, 1));
    if (toc_inside) {
      EXPECT_EQ(nlohmann::json::parse(Contents(made, "stargz.index.json")), made.toc);
    }
  }
}

TEST_F(TocTest, InfoAndAlignment) {
  const TocBlob made = MakeTocBlob(Members());
  ASSERT_TRUE(Index(made).ok());
  auto index = LayerIndex::Open(directory_->path());
  ASSERT_TRUE(index.ok()) << index.status();
  const LayerInfo& info = (*index)->info();
  EXPECT_EQ(info.format, Format::kEstargz);
  EXPECT_EQ(info.blob_digest, made.layer.digest);
  EXPECT_EQ(info.blob_size, made.blob.size());
  EXPECT_TRUE(info.diff_id.empty());
  EXPECT_EQ(info.data_size % kDataAlignment, 0u);
  EXPECT_TRUE(info.has_whiteouts);
  EXPECT_TRUE(info.random_access);
  EXPECT_THAT(info.implied_directories, ::testing::ElementsAre("dev", "implied", "implied/parent"));
  for (uint64_t i = 0; i < (*index)->chunk_count(); ++i)
    EXPECT_EQ((*index)->chunk(i).data_offset % kDataAlignment, 0u);
}

TEST_F(TocTest, SmallTocsCostOneRead) {
  ASSERT_TRUE(Index(MakeTocBlob(Members())).ok());
  EXPECT_EQ(reads_, 1u);
  reads_ = 0;
  TocOptions options;
  options.format = Format::kZstdChunked;
  ASSERT_TRUE(Index(MakeTocBlob(Members(), options)).ok());
  EXPECT_EQ(reads_, 1u);
}

TEST_F(TocTest, ZerosAreNeverFetched) {
  TocOptions options;
  options.format = Format::kZstdChunked;
  options.chunk_size = 4096;
  std::string sparse = support::RandomBytes(4096, 3) + std::string(8192, '\0') + support::RandomBytes(100, 4);
  options.edit = [](nlohmann::json& toc) {
    for (auto& entry : toc["entries"]) {
      if (entry.value("chunkOffset", 0) == 4096 || entry.value("chunkOffset", 0) == 8192)
        entry["chunkType"] = "zeros";
    }
  };
  // A run of zeros too large for a chunk, of which nothing says that it is one.
  const std::string zeros(20 << 20, '\0');
  TocBlob made = MakeTocBlob({support::File("sparse", sparse)}, options);
  ASSERT_TRUE(Index(made).ok());
  EXPECT_EQ(Contents(made, "sparse"), sparse);
  EXPECT_EQ(LayerIndex::Open(directory_->path()).value()->chunk_count(), 2u);
  options = {};
  options.format = Format::kZstdChunked;
  options.chunk_size = 64 << 20;
  made = MakeTocBlob({support::File("zeros", zeros)}, options);
  const absl::Status status = Index(made);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(LayerIndex::Open(directory_->path()).value()->chunk_count(), 0u);
  EXPECT_EQ(Contents(made, "zeros"), zeros);
  made = MakeTocBlob({support::File("large", zeros + "x")}, options);
  EXPECT_EQ(Index(made).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TocTest, TwoNamesOfOneTocAreOneIndexAndOthersAreNone) {
  TocOptions options;
  options.format = Format::kZstdChunked;
  TocBlob made = MakeTocBlob(Members(), options);
  made.layer.annotations[kStargz] = kDigestA;
  EXPECT_EQ(Index(made).code(), absl::StatusCode::kFailedPrecondition);
  made = MakeTocBlob(Members(), options);
  made.layer.annotations[kChecksum] = kDigestA;
  EXPECT_EQ(Index(made).code(), absl::StatusCode::kFailedPrecondition);
  made.layer.annotations[kStargz] = kDigestB;
  EXPECT_EQ(Index(made).code(), absl::StatusCode::kDataLoss);
  made.layer.annotations.erase(kChecksum);
  EXPECT_EQ(Index(made).code(), absl::StatusCode::kDataLoss);
  made = MakeTocBlob(Members());
  made.layer.annotations[kStargz] = kDigestA;
  const absl::Status status = Index(made);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(made.layer.digest.ToString()));
  EXPECT_THAT(std::string(status.message()), HasSubstr(kDigestA));
}

TEST_F(TocTest, ATocInAnotherImageThatCannotBeUsed) {
  TocOptions options;
  options.external_toc = true;
  const TocBlob made = MakeTocBlob(Members(), options);
  auto fails = [&](absl::StatusCode code, absl::string_view why) {
    const absl::Status status = Index(made);
    EXPECT_EQ(status.code(), code);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(why)));
  };
  fails(absl::StatusCode::kFailedPrecondition, "nobody knows which");
  external_ = [] { return absl::NotFoundError("no such tag"); };
  fails(absl::StatusCode::kFailedPrecondition, "no such tag");
  external_ = [] { return absl::UnavailableError("host is down"); };
  fails(absl::StatusCode::kFailedPrecondition, "host is down");
  external_ = [] { return absl::CancelledError("by the user"); };
  fails(absl::StatusCode::kCancelled, "by the user");
  external_ = [] { return absl::DeadlineExceededError("too slow"); };
  fails(absl::StatusCode::kDeadlineExceeded, "too slow");
  external_ = [] { return std::string(); };
  fails(absl::StatusCode::kFailedPrecondition, "not its own");
  external_ = [] { return std::string("not gzip"); };
  fails(absl::StatusCode::kFailedPrecondition, "not its own");
  external_ = [&] { return made.external_toc.substr(0, made.external_toc.size() - 20); };
  fails(absl::StatusCode::kFailedPrecondition, "not its own");
  // The TOC of another layer, or one that somebody has changed.
  std::vector<support::TarMember> fewer = Members();
  fewer.pop_back();
  external_ = [&] { return MakeTocBlob(fewer, options).external_toc; };
  fails(absl::StatusCode::kFailedPrecondition, "but the manifest names");
  // Its own one may lie no more than others.
  options.edit = [](nlohmann::json& toc) { toc["entries"][7]["offset"] = 1 << 30; };
  const TocBlob lie = MakeTocBlob(Members(), options);
  external_ = [&] { return lie.external_toc; };
  EXPECT_EQ(Index(lie).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TocTest, FootersThatNameNoToc) {
  TocBlob made = MakeTocBlob(Members());
  for (size_t cut : {size_t{0}, size_t{10}, size_t{46}, size_t{50}, made.blob.size() - 1}) {
    TocBlob shorter = made;
    shorter.blob.resize(cut);
    shorter.layer.size = cut;
    EXPECT_EQ(Index(shorter).code(), absl::StatusCode::kFailedPrecondition) << cut;
  }
  auto with_offset = [&](uint64_t offset) {
    TocBlob lie = made;
    const std::string digits = absl::StrFormat("%016x", offset);
    lie.blob.replace(lie.blob.size() - 35, 16, digits);
    return Index(lie);
  };
  EXPECT_TRUE(with_offset(made.toc_offset).ok());
  EXPECT_EQ(with_offset(made.blob.size() - 51).code(), absl::StatusCode::kInvalidArgument);  // itself
  EXPECT_EQ(with_offset(~uint64_t{0}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(with_offset(made.toc_offset - 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(with_offset(0).code(), absl::StatusCode::kInvalidArgument);  // a tar, but not of the TOC
  TocOptions options;
  options.format = Format::kZstdChunked;
  made = MakeTocBlob(Members(), options);
  const uint64_t size = made.blob.size();
  for (const std::string& position :
       {absl::StrCat(size, ":1:1:1"), absl::StrCat("7:10:10:1"), absl::StrCat("8:", size, ":10:1"),
        std::string("8:0:0:1"), std::string("18446744073709551615:18446744073709551615:5:1")}) {
    made.layer.annotations[kPosition] = position;
    EXPECT_FALSE(Index(made).ok()) << position;
  }
}

using J = nlohmann::json;
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kNoUse = absl::StatusCode::kFailedPrecondition;

struct Case {
  const char* what;
  absl::StatusCode code;
  std::function<void(J&)> edit;
};
std::vector<Case> LiesAboutData() {
  return {{"offset at the TOC", kInvalid, [](J& t) { EntryOf(t, "fraction")["offset"] = 1 << 30; }},
          {"no offset", kInvalid, [](J& t) { EntryOf(t, "fraction").erase("offset"); }},
          {"negative offset", kInvalid, [](J& t) { EntryOf(t, "fraction")["offset"] = -1; }},
          {"float offset", kInvalid, [](J& t) { EntryOf(t, "fraction")["offset"] = 1e10; }},
          {"offset 2^63", kInvalid, [](J& t) { EntryOf(t, "fraction")["offset"] = uint64_t{1} << 63; }},
          {"two files in one chunk", kInvalid,
           [](J& t) { EntryOf(t, "fraction")["offset"] = EntryOf(t, "big")["offset"]; }},
          {"chunk gap", kInvalid, [](J& t) { EntryOf(t, "big", "chunk")["chunkOffset"] = 65537; }},
          {"chunk overlap", kInvalid, [](J& t) { EntryOf(t, "big", "chunk")["chunkOffset"] = 65535; }},
          {"chunk too large", kInvalid, [](J& t) { EntryOf(t, "big", "chunk")["chunkSize"] = 300'000; }},
          {"chunk sum short", kInvalid,
           [](J& t) {
             for (size_t i = t["entries"].size(); i-- > 0;) {
               if (t["entries"][i]["type"] == "chunk" && t["entries"][i]["name"] == "big")
                 return t["entries"].erase(i);
             }
           }},
          {"chunk sum overflow", kInvalid, [](J& t) { EntryOf(t, "big")["chunkSize"] = ~uint64_t{0}; }},
          {"chunks left over", kInvalid, [](J& t) { EntryOf(t, "big").erase("chunkSize"); }},
          {"chunk of another", kInvalid, [](J& t) { EntryOf(t, "big", "chunk")["name"] = "other"; }},
          {"chunk first", kInvalid,
           [](J& t) { t["entries"].insert(t["entries"].begin(), J{{"type", "chunk"}, {"name", "x"}}); }},
          {"digest malformed", kInvalid, [](J& t) { EntryOf(t, "fraction")["chunkDigest"] = "sha256:1"; }},
          {"digest of another kind", kNoUse,
           [](J& t) { EntryOf(t, "fraction")["chunkDigest"] = "sha512:" + std::string(128, '0'); }},
          {"digest missing", kNoUse, [](J& t) { EntryOf(t, "big", "chunk").erase("chunkDigest"); }},
          {"no digest at all", kNoUse,
           [](J& t) {
             EntryOf(t, "fraction").erase("chunkDigest");
             EntryOf(t, "fraction").erase("digest");
           }},
          {"unknown chunk type", kNoUse, [](J& t) { EntryOf(t, "fraction")["chunkType"] = "xor"; }},
          {"inner offset", kNoUse, [](J& t) { EntryOf(t, "fraction")["innerOffset"] = 1 << 30; }},
          {"huge file", kNoUse, [](J& t) { EntryOf(t, "fraction")["size"] = uint64_t{1} << 42; }},
          {"size 2^64-1", kNoUse, [](J& t) { EntryOf(t, "fraction")["size"] = ~uint64_t{0}; }}};
}

std::vector<Case> LiesAboutEntries() {
  return {
      {"name with ..", kInvalid, [](J& t) { EntryOf(t, "fraction")["name"] = "../fraction"; }},
      {"long name", kInvalid, [](J& t) { EntryOf(t, "fraction")["name"] = std::string(256, 'n'); }},
      {"name with NUL", kInvalid, [](J& t) { EntryOf(t, "fraction")["name"] = std::string("a\0b", 3); }},
      {"lost bytes", kNoUse, [](J& t) { EntryOf(t, "fraction")["name"] = "a\xef\xbf\xbd"; }},
      {"type", kInvalid, [](J& t) { EntryOf(t, "fraction")["type"] = "socket"; }},
      {"no type", kInvalid, [](J& t) { EntryOf(t, "fraction").erase("type"); }},
      {"uid", kInvalid, [](J& t) { EntryOf(t, "fraction")["uid"] = uint64_t{1} << 32; }},
      {"negative uid", kInvalid, [](J& t) { EntryOf(t, "fraction")["uid"] = -1; }},
      {"mode", kInvalid, [](J& t) { EntryOf(t, "dev/c", "char")["mode"] = uint64_t{1} << 40; }},
      {"device", kInvalid, [](J& t) { EntryOf(t, "dev/c", "char")["devMajor"] = 5000; }},
      {"time", kInvalid, [](J& t) { EntryOf(t, "fraction")["modtime"] = "yesterday"; }},
      {"xattr not base64", kInvalid, [](J& t) { EntryOf(t, "usr/owned")["xattrs"]["user.x"] = "%%%"; }},
      {"xattr not text", kInvalid, [](J& t) { EntryOf(t, "usr/owned")["xattrs"]["user.x"] = 1; }},
      {"hard link nowhere", kInvalid, [](J& t) { EntryOf(t, "hard", "hardlink")["linkName"] = "nowhere"; }},
      {"hard link to itself", kInvalid, [](J& t) { EntryOf(t, "hard", "hardlink")["linkName"] = "hard"; }},
      {"version", kNoUse, [](J& t) { t["version"] = 2; }},
      {"no version", kInvalid, [](J& t) { t.erase("version"); }},
      {"no entries", kInvalid, [](J& t) { t.erase("entries"); }},
      {"entries of another kind", kInvalid, [](J& t) { t["entries"] = "none"; }},
      {"entry of another kind", kInvalid, [](J& t) { t["entries"].push_back("x"); }},
      {"name of another kind", kInvalid, [](J& t) { EntryOf(t, "fraction")["name"] = J::array({"x"}); }},
      {"a list", kInvalid, [](J& t) { t = J::array(); }},
  };
}

TEST_F(TocTest, LiesAboutChunksAreRefused) {
  std::vector<Case> cases = LiesAboutData();
  for (const Case& test : LiesAboutEntries()) cases.push_back(test);
  for (const Case& test : cases) {
    const absl::Status status = Edited(test.edit);
    EXPECT_EQ(status.code(), test.code) << test.what << ": " << status;
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << test.what;
    EXPECT_FALSE(LayerIndex::Open(directory_->path()).ok()) << test.what;
  }
  EXPECT_EQ(Edited([](J& t) { EntryOf(t, "fraction")["endOffset"] = 1; }, Format::kZstdChunked).code(),
            kInvalid);
  EXPECT_EQ(Edited([](J& t) { EntryOf(t, "fraction")["endOffset"] = 1 << 30; }, Format::kZstdChunked).code(),
            kInvalid);
  // What is harmless is taken: unknown fields, null for absent, fields of other readers.
  EXPECT_TRUE(Edited([](J& t) {
                t["tarSplitDigest"] = J{{"a", J::array({1, J{{"b", nullptr}}})}};
                EntryOf(t, "fraction")["accesstime"] = "2020-01-01T00:00:00Z";
                EntryOf(t, "fraction")["xattrs"] = nullptr;
                EntryOf(t, "empty")["modtime"] = "2020-01-01T01:00:00.5+01:00";
              }).ok());
  EXPECT_THAT(TextOf(directory_->path())["empty"], HasSubstr("mtime=1577836800.500000000"));
}

TEST_F(TocTest, TextThatIsNotOneTocIsRefused) {
  auto edited = [&](auto edit) {
    TocOptions options;
    options.edit_text = edit;
    return Index(MakeTocBlob({support::File("f", "x")}, options)).code();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(edited([](std::string& t) { t.pop_back(); }), invalid);
  EXPECT_EQ(edited([](std::string& t) { t += "{}"; }), invalid);
  EXPECT_EQ(edited([](std::string& t) { t = ""; }), invalid);
  EXPECT_EQ(edited([](std::string& t) { t = std::string(100'000, '['); }), invalid);
  EXPECT_EQ(edited([](std::string& t) {
              t = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
            }),
            invalid);
  EXPECT_EQ(edited([](std::string& t) { t = absl::StrReplaceAll(t, {{"\"mode\"", "\"name\""}}); }), invalid);
  EXPECT_EQ(edited([](std::string& t) { t = absl::StrReplaceAll(t, {{"\"f\"", "\"\xff\""}}); }), invalid);
  EXPECT_EQ(edited([](std::string& t) { t.insert(1, "\"entries\":[],"); }), invalid);
  EXPECT_EQ(edited([](std::string& t) { t.insert(1, "\"version\":1,"); }), invalid);
}

TEST_F(TocTest, LimitsHold) {
  const TocBlob made = MakeTocBlob(Members());
  BuildLimits limits;
  limits.max_toc_bytes = 100;
  limits.max_entries = 1000;
  limits.max_entries = 5;
  EXPECT_FALSE(Index(made, limits).ok());
  limits = {};
  limits.max_entries = 5;
  EXPECT_EQ(Index(made, limits).code(), absl::StatusCode::kResourceExhausted);
  limits = {};
  limits.max_data_bytes = 100'000;
  EXPECT_EQ(Index(made, limits).code(), absl::StatusCode::kFailedPrecondition);
  // More data than the blob can plausibly hold.
  TocOptions options;
  options.edit = [](nlohmann::json& toc) {
    for (uint64_t i = 1; i < 20; ++i) {
      toc["entries"].push_back({{"name", absl::StrCat("bomb", i)},
                                {"type", "reg"},
                                {"size", 16 << 20},
                                {"offset", 50 + i},
                                {"chunkDigest", kDigestA}});
    }
  };
  limits = {};
  limits.max_ratio = 1;
  EXPECT_EQ(Index(MakeTocBlob({support::File("f", "x")}, options), limits).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(TocTest, FailedReadsAreReported) {
  const TocBlob made = MakeTocBlob(Members());
  auto failing = [](uint64_t, absl::Span<uint8_t>) { return absl::UnavailableError("no network"); };
  support::TempDir directory;
  EXPECT_EQ(IndexFromToc(Format::kEstargz, made.layer, failing, {}, directory.path()).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(IndexFromToc(Format::kTarGzip, made.layer, failing, {}, directory.path()).code(),
            absl::StatusCode::kInvalidArgument);
}

// Any single byte of the blob may be another: an error at once, an error when the chunk is read, or no
// difference.
TEST_F(TocTest, FlippedBytesNeverGiveWrongContents) {
  const std::vector<TarMember> members = {support::File("a", support::TextBytes(3000)),
                                          support::Directory("d"),
                                          support::File("d/b", support::RandomBytes(2000, 9))};
  for (Format format : {Format::kEstargz, Format::kZstdChunked}) {
    TocOptions options;
    options.format = format;
    const TocBlob good = MakeTocBlob(members, options);
    ASSERT_TRUE(Index(good).ok());
    const TreeText expected = TextOf(directory_->path());
    int served = 0;
    for (size_t at = 0; at < good.blob.size(); at += 29) {
      TocBlob bad = good;
      bad.blob[at] = static_cast<char>(bad.blob[at] ^ 0x20);
      if (!Index(bad).ok()) continue;
      EXPECT_EQ(Difference(expected, TextOf(directory_->path())), "") << at;
      for (const TarMember& member : members) {
        if (member.contents.empty()) continue;
        const std::string got = Contents(bad, member.name);
        if (got == member.contents) {
          ++served;
        } else {
          EXPECT_THAT(got, HasSubstr("DATA_LOSS")) << at;
        }
      }
    }
    EXPECT_GT(served, 0);
  }
}

TEST(ParseTocTime, Rfc3339Only) {
  auto parse = [](absl::string_view text) {
    auto time = internal::ParseTocTime(text);
    return time.has_value() ? absl::StrCat(time->seconds, ".", time->nanoseconds) : "none";
  };
  EXPECT_EQ(parse("2019-08-20T10:30:43Z"), "1566297043.0");
  EXPECT_EQ(parse("2019-08-20T10:30:43.123456789Z"), "1566297043.123456789");
  EXPECT_EQ(parse("2019-08-20T12:30:43.5+02:00"), "1566297043.500000000");
  EXPECT_EQ(parse("1969-12-31T23:59:59.25Z"), "-1.250000000");
  EXPECT_EQ(parse("0001-01-01T00:00:00Z"), "-62135596800.0");
  for (const char* text :
       {"", "infinite-future", "2019-08-20 10:30:43Z", "2019-08-20T10:30:43", "2019-13-20T10:30:43Z",
        "2019-08-20T10:30:43ZZ", " 2019-08-20T10:30:43Z", "+019-08-20T10:30:43Z"}) {
    EXPECT_EQ(parse(text), "none") << text;
  }
}

}  // namespace
}  // namespace lazyblob::layer

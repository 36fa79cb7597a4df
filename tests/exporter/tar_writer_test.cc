#include "exporter/tar_writer.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "layer/tar_stream.h"
#include "tests/exporter/layer_reading.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::exporter {
namespace {

using layer::Entry;
using layer::EntryType;

struct Tar {
  absl::Status status;
  std::string bytes;
};

// Entries whose data is `size` times "d".
Tar MakeTar(const std::vector<Entry>& entries, bool finish = true) {
  Tar tar;
  TarWriter writer([&tar](absl::Span<const uint8_t> bytes) {
    tar.bytes.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return absl::OkStatus();
  });
  for (const Entry& entry : entries) {
    tar.status = writer.Begin(entry);
    if (tar.status.ok() && entry.type == EntryType::kRegular) {
      tar.status = writer.Data(AsBytes(std::string(entry.size, 'd')));
    }
    if (!tar.status.ok()) return tar;
  }
  if (finish) tar.status = writer.Finish();
  EXPECT_EQ(writer.bytes_written(), tar.bytes.size());
  return tar;
}

// The entries of a tar as layer/ reads them.
std::vector<Entry> Read(const std::string& tar) {
  std::vector<Entry> entries;
  layer::TarFollower follower;
  const absl::Status status = follower.Feed(AsBytes(tar), [&](Entry entry, uint64_t) {
    entries.push_back(std::move(entry));
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(follower.Finish().ok());
  return entries;
}

Entry File(std::string path, uint64_t size = 0) {
  Entry entry;
  entry.path = std::move(path);
  entry.mode = 0644;
  entry.size = size;
  return entry;
}

// The layout of one header, byte by byte: docs/LAYER_WRITING.md shows the same.
TEST(TarWriter, AFileThatFitsUstarIsOneHeaderOfKnownBytes) {
  Entry entry = File("usr/bin/tool", 3);
  entry.mode = 04755;
  entry.uid = 8;
  entry.gid = 9;
  entry.mtime_seconds = 1'700'000'000;
  const Tar tar = MakeTar({entry});
  ASSERT_TRUE(tar.status.ok()) << tar.status;
  ASSERT_EQ(tar.bytes.size(), 512U + 512 + 1024);
  std::string expected(512, '\0');
  const auto put = [&](size_t at, absl::string_view text) {
    expected.replace(at, text.size(), std::string(text));
  };
  put(0, "usr/bin/tool");
  put(100, "0004755");
  put(108, "0000010");
  put(116, "0000011");
  put(124, "00000000003");
  put(136, "14524770400");
  put(148, absl::string_view("011533\0 ", 8));
  put(156, "0");
  put(257, absl::string_view("ustar\0"
                             "00",
                             8));
  put(329, "0000000");
  put(337, "0000000");
  EXPECT_EQ(tar.bytes.substr(0, 512), expected);
  EXPECT_EQ(tar.bytes.substr(512, 512), "ddd" + std::string(509, '\0'));
  EXPECT_EQ(tar.bytes.substr(1024), std::string(1024, '\0'));
}

TEST(TarWriter, AnEmptyTreeIsTwoZeroBlocks) { EXPECT_EQ(MakeTar({}).bytes, std::string(1024, '\0')); }

TEST(TarWriter, RecordsStandExactlyForWhatDoesNotFit) {
  struct Case {
    const char* name;
    std::function<void(Entry*)> change;
    std::string records;  // "" for none
  };
  const std::string a100(100, 'a'), a101(101, 'a'), p155(155, 'p'), p156(156, 'p');
  const std::vector<Case> cases = {
      {"name of 100", [&](Entry* e) { e->path = a100; }, ""},
      {"name of 101", [&](Entry* e) { e->path = a101; }, "111 path=" + a101 + "\n"},
      {"prefix of 155", [&](Entry* e) { e->path = p155 + "/" + a100; }, ""},
      {"prefix of 156", [&](Entry* e) { e->path = p156 + "/a"; }, "168 path=" + p156 + "/a\n"},
      {"a long directory's own slash is no place to split",
       [&](Entry* e) {
         e->type = EntryType::kDirectory;
         e->path = a101 + "/";
       },
       "112 path=" + a101 + "/\n"},
      {"UTF-8", [](Entry* e) { e->path = "\xc3\xa4"; }, "11 path=\xc3\xa4\n"},
      {"not UTF-8, short", [](Entry* e) { e->path = "a\xff"; }, ""},
      {"not UTF-8, long", [&](Entry* e) { e->path = a101 + "\xff"; },
       "21 hdrcharset=BINARY\n112 path=" + a101 + "\xff\n"},
      {"uid of 21 bits", [](Entry* e) { e->uid = 2097151; }, ""},
      {"uid of 22 bits", [](Entry* e) { e->uid = 2097152; }, "15 uid=2097152\n"},
      {"gid of 32 bits", [](Entry* e) { e->gid = 4294967294; }, "18 gid=4294967294\n"},
      {"last time in octal", [](Entry* e) { e->mtime_seconds = 8589934591; }, ""},
      {"first time beyond", [](Entry* e) { e->mtime_seconds = 8589934592; }, "20 mtime=8589934592\n"},
      {"before 1970", [](Entry* e) { e->mtime_seconds = -1; }, "12 mtime=-1\n"},
      {"fraction", [](Entry* e) { e->mtime_nanoseconds = 120'000'000; }, "14 mtime=0.12\n"},
      {"nanosecond", [](Entry* e) { e->mtime_nanoseconds = 1; }, "21 mtime=0.000000001\n"},
      {"before 1970 with fraction",
       [](Entry* e) {
         e->mtime_seconds = -2;
         e->mtime_nanoseconds = 750'000'000;
       },
       "15 mtime=-1.25\n"},
      {"just before 1970",
       [](Entry* e) {
         e->mtime_seconds = -1;
         e->mtime_nanoseconds = 500'000'000;
       },
       "14 mtime=-0.5\n"},
      {"xattr with every byte", [](Entry* e) { e->xattrs = {{"user.a", std::string("\0=\n\xff", 4)}}; },
       absl::StrCat("28 SCHILY.xattr.user.a=", absl::string_view("\0=\n\xff", 4), "\n")},
      {"link of 101",
       [&](Entry* e) {
         e->type = EntryType::kSymlink;
         e->link_target = a101;
       },
       "115 linkpath=" + a101 + "\n"},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.name);
    Entry entry = File("f");
    test.change(&entry);
    const Tar tar = MakeTar({entry}, false);
    ASSERT_TRUE(tar.status.ok()) << tar.status;
    if (test.records.empty()) {
      EXPECT_EQ(tar.bytes.size(), 512U);
    } else {
      ASSERT_GE(tar.bytes.size(), 1536U);
      EXPECT_EQ(tar.bytes[156], 'x');
      EXPECT_EQ(tar.bytes.substr(0, 14), std::string("././@PaxHeader"));
      EXPECT_EQ(tar.bytes.substr(512, test.records.size()), test.records);
      EXPECT_EQ(tar.bytes.size(), 1024 + (test.records.size() + 511) / 512 * 512);
    }
    const std::vector<Entry> read = Read(tar.bytes);
    ASSERT_EQ(read.size(), 1U);
    EXPECT_EQ(read[0].path, entry.path);
    EXPECT_EQ(read[0].type, entry.type);
    EXPECT_EQ(read[0].uid, entry.uid);
    EXPECT_EQ(read[0].gid, entry.gid);
    EXPECT_EQ(read[0].link_target, entry.link_target);
    EXPECT_EQ(read[0].xattrs, entry.xattrs);
    if (entry.mtime_seconds >= 0) {  // readers of layers take no earlier time
      EXPECT_EQ(read[0].mtime_seconds, entry.mtime_seconds);
      EXPECT_EQ(read[0].mtime_nanoseconds, entry.mtime_nanoseconds);
    }
  }
}

TEST(TarWriter, RecordsAreSortedByKey) {
  Entry entry = File(std::string(101, 'a'));
  entry.uid = 3'000'000;
  entry.mtime_nanoseconds = 5;
  entry.xattrs = {{"user.b", "2"}, {"user.a", "1"}};
  const std::string tar = MakeTar({entry}).bytes;
  size_t last = 0;
  for (const char* key : {"SCHILY.xattr.user.a=1", "SCHILY.xattr.user.b=2", "mtime=", "path=", "uid="}) {
    const size_t at = tar.find(key);
    ASSERT_NE(at, std::string::npos) << key;
    EXPECT_GT(at, last) << key;
    last = at;
  }
}

TEST(TarWriter, AFileBeyondEightGibibytesHasItsSizeInARecord) {
  for (const auto& [size, records] :
       {std::pair<uint64_t, const char*>{8589934591, ""}, {8589934592, "19 size=8589934592\n"}}) {
    std::string bytes;
    TarWriter writer([&bytes](absl::Span<const uint8_t> piece) {
      bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
      return absl::OkStatus();
    });
    ASSERT_TRUE(writer.Begin(File("big", size)).ok());
    EXPECT_EQ(bytes.size(), *records == '\0' ? 512U : 1536U);
    if (*records != '\0') {
      EXPECT_TRUE(absl::StartsWith(bytes.substr(512), records));
    }
    layer::TarFollower follower;
    uint64_t read = 0;
    ASSERT_TRUE(follower
                    .Feed(AsBytes(bytes),
                          [&](Entry entry, uint64_t) {
                            read = entry.size;
                            return absl::OkStatus();
                          })
                    .ok());
    EXPECT_EQ(read, size);
  }
}

TEST(TarWriter, WhatNoTarCanHoldIsNamed) {
  const auto expect = [](const Entry& entry, absl::string_view why) {
    const absl::Status status = MakeTar({entry}).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), why)) << status;
  };
  expect(File(""), "path is empty");
  expect(File(std::string("a\0b", 3)), "NUL");
  Entry entry = File("some/file");
  entry.xattrs = {{"user.a=b", ""}};
  expect(entry, "some/file");
  expect(entry, "user.a=b");
  entry.xattrs = {{"user.a", std::string(1 << 20, 'x')}};
  expect(entry, "1 MiB");
  entry = File("link");
  entry.type = EntryType::kSymlink;
  expect(entry, "target is empty");
}

TEST(TarWriter, DataMustBeAsLongAsTheEntrySaid) {
  std::string bytes;
  const auto sink = [&bytes](absl::Span<const uint8_t> piece) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    return absl::OkStatus();
  };
  TarWriter writer(sink);
  ASSERT_TRUE(writer.Begin(File("a", 5)).ok());
  ASSERT_TRUE(writer.Data(AsBytes("1234")).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.Finish()));
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.Begin(File("b"))));
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.Data(AsBytes("56"))));
  EXPECT_TRUE(writer.Data(AsBytes("5")).ok());
  EXPECT_TRUE(writer.Finish().ok());
}

TEST(TarWriter, AnErrorOfTheSinkIsReturned) {
  TarWriter writer([](absl::Span<const uint8_t>) { return absl::ResourceExhaustedError("full"); });
  EXPECT_EQ(writer.Begin(File("a")), absl::ResourceExhaustedError("full"));
}

}  // namespace
}  // namespace lazyblob::exporter

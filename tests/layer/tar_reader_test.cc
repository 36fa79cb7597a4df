#include "layer/internal/tar_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::layer::internal {
namespace {

using support::MakeTar;
using support::SparseStyle;
using support::TarDialect;
using support::TarMaker;
using support::TarMember;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

struct Result {
  absl::Status status;
  std::vector<Entry> entries;
  std::vector<ScrubRange> padding;
};

Result Read(absl::string_view tar, size_t step = 1 << 20) {
  Result result;
  TarReader reader;
  for (size_t at = 0; at < tar.size() && result.status.ok(); at += step) {
    const absl::string_view piece = tar.substr(at, step);
    result.status = reader.Feed(
        {reinterpret_cast<const uint8_t*>(piece.data()), piece.size()},
        [&](Entry entry) {
          result.entries.push_back(std::move(entry));
          return absl::OkStatus();
        },
        [&](const ScrubRange& range) { result.padding.push_back(range); });
  }
  if (result.status.ok()) result.status = reader.Finish();
  return result;
}

Entry ReadOne(const TarMember& member) {
  const Result result = Read(MakeTar({member}));
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.entries.size(), 1u);
  return result.entries.empty() ? Entry() : result.entries[0];
}

std::string Error(absl::string_view tar) {
  const Result result = Read(tar);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kInvalidArgument) << result.status;
  return std::string(result.status.message());
}

// The file an entry describes.
std::string Contents(absl::string_view tar, const Entry& entry) {
  std::string out(entry.size, '\0');
  for (const Extent& extent : entry.extents) {
    out.replace(extent.file_offset, extent.length,
                std::string(tar.substr(extent.data_offset, extent.length)));
  }
  return out;
}

// A header whose fields are overwritten, with its checksum put right.
std::string Patched(std::string block, size_t at, absl::string_view bytes) {
  block.replace(at, bytes.size(), std::string(bytes));
  block.replace(148, 8, "        ");
  unsigned sum = 0;
  for (const char c : block) sum += static_cast<uint8_t>(c);
  snprintf(block.data() + 148, 8, "%06o", sum);
  return block;
}

class Dialects : public ::testing::TestWithParam<TarDialect> {};

TEST_P(Dialects, AllTypesAndFields) {
  std::vector<TarMember> members = {support::Directory("dir/", 01777),
                                    support::File("dir/file", "contents", 04755),
                                    support::Symlink("dir/link", "../to"),
                                    support::HardLink("dir/hard", "dir/file"),
                                    support::CharDevice("dir/null", 1, 3),
                                    support::BlockDevice("dir/disk", 8, 300),
                                    support::Fifo("dir/fifo")};
  for (TarMember& member : members) {
    member.dialect = GetParam();
    member.uid = 1000;
    member.gid = 100;
    member.mtime = 1234567890;
  }
  const std::string tar = MakeTar(members);
  for (const size_t step : {size_t{1} << 20, size_t{1}, size_t{513}}) {
    const Result result = Read(tar, step);
    ASSERT_TRUE(result.status.ok()) << result.status;
    ASSERT_EQ(result.entries.size(), members.size());
    const EntryType types[] = {EntryType::kDirectory, EntryType::kRegular,    EntryType::kSymlink,
                               EntryType::kHardLink,  EntryType::kCharDevice, EntryType::kBlockDevice,
                               EntryType::kFifo};
    for (size_t i = 0; i < members.size(); ++i) {
      const Entry& entry = result.entries[i];
      EXPECT_EQ(entry.path, members[i].name);
      EXPECT_EQ(entry.type, types[i]);
      EXPECT_EQ(entry.mode, members[i].mode);
      EXPECT_EQ(entry.uid, 1000u);
      EXPECT_EQ(entry.gid, 100u);
      EXPECT_EQ(entry.mtime_seconds, 1234567890);
      EXPECT_EQ(entry.link_target, members[i].link);
      EXPECT_EQ(entry.device_major, members[i].device_major);
      EXPECT_EQ(entry.device_minor, members[i].device_minor);
      EXPECT_EQ(Contents(tar, entry), members[i].contents);
    }
    EXPECT_EQ(result.entries[1].extents.size(), 1u);
    EXPECT_EQ(result.entries[1].extents[0].data_offset % kTarBlockBytes, 0u);
    EXPECT_TRUE(result.padding.empty());
  }
}

INSTANTIATE_TEST_SUITE_P(Tar, Dialects,
                         ::testing::Values(TarDialect::kPax, TarDialect::kUstar, TarDialect::kGnu));

TEST(TarReader, LongNames) {
  const std::string name = std::string(90, 'd') + "/" + std::string(200, 'n'), target(300, 't');
  for (const TarDialect dialect : {TarDialect::kPax, TarDialect::kGnu}) {
    TarMember member = support::Symlink(name, target);
    member.dialect = dialect;
    const Entry entry = ReadOne(member);
    EXPECT_EQ(entry.path, name);
    EXPECT_EQ(entry.link_target, target);
  }
  TarMember prefixed = support::File(std::string(90, 'd') + "/" + std::string(60, 'n'), "x");
  prefixed.dialect = TarDialect::kUstar;
  EXPECT_EQ(ReadOne(prefixed).path, prefixed.name);
}

TEST(TarReader, LongNamesHoldForOneEntryOnly) {
  TarMember member = support::File(std::string(150, 'n'), "1");
  for (const TarDialect dialect : {TarDialect::kPax, TarDialect::kGnu}) {
    member.dialect = dialect;
    const Result result = Read(MakeTar({member, support::File("short", "2")}));
    ASSERT_EQ(result.entries.size(), 2u) << result.status;
    EXPECT_EQ(result.entries[1].path, "short");
  }
}

TEST(TarReader, PaxFields) {
  TarMember member = support::File("name", "12345");
  member.mtime_nanoseconds = 123456789;
  member.uid = 3'000'000'000;
  member.gid = 4'294'967'294;
  member.xattrs = {{"user.b", std::string("v\0=\n", 4)}, {"security.capability", "cap"}, {"user.empty", ""}};
  const Entry entry = ReadOne(member);
  EXPECT_EQ(entry.mtime_nanoseconds, 123456789u);
  EXPECT_EQ(entry.uid, 3'000'000'000);
  EXPECT_EQ(entry.gid, 4'294'967'294);
  EXPECT_THAT(entry.xattrs, ElementsAre(Pair("security.capability", "cap"),
                                        Pair("user.b", std::string("v\0=\n", 4)), Pair("user.empty", "")));
}

TEST(TarReader, TheLastPaxRecordWinsAndEmptyOnesDoNotCount) {
  TarMember member = support::File("name", "12345");
  member.pax_records = {{"path", "first"},
                        {"path", "second"},
                        {"uid", ""},
                        {"SCHILY.xattr.user.a", "1"},
                        {"SCHILY.xattr.user.a", "2"}};
  member.uid = 7;
  const Entry entry = ReadOne(member);
  EXPECT_EQ(entry.path, "second");
  EXPECT_EQ(entry.uid, 7u);
  EXPECT_THAT(entry.xattrs, ElementsAre(Pair("user.a", "2")));
}

TEST(TarReader, PaxSizeOverridesTheHeader) {
  TarMember member = support::File("name", "12345");
  member.claimed_size = 0;
  member.pax_records = {{"size", "5"}};
  const std::string tar = MakeTar({member, support::File("next", "n")});
  const Result result = Read(tar);
  ASSERT_EQ(result.entries.size(), 2u) << result.status;
  EXPECT_EQ(Contents(tar, result.entries[0]), "12345");
}

TEST(TarReader, TimesBeforeTheEpochAndFarAway) {
  TarMember member = support::File("name", "");
  member.pax_records = {{"mtime", "-5.25"}};
  EXPECT_EQ(ReadOne(member).mtime_seconds, 0);
  EXPECT_EQ(ReadOne(member).mtime_nanoseconds, 0u);
  member.pax_records = {{"mtime", "9223372036.5"}};
  EXPECT_EQ(ReadOne(member).mtime_seconds, 9223372036);
  member.pax_records = {{"mtime", "9223372037"}};
  EXPECT_EQ(ReadOne(member).mtime_seconds, 0);
  member.pax_records.clear();
  member.dialect = TarDialect::kGnu;
  member.mtime = -86400;
  EXPECT_EQ(ReadOne(member).mtime_seconds, 0);
}

TEST(TarReader, GlobalHeadersHaveNoEffect) {
  const std::string tar = TarMaker()
                              .AddGlobalPax({{"path", "global"}, {"uid", "77"}, {"comment", "c"}})
                              .Add(support::File("name", "1"))
                              .Finish();
  const Result result = Read(tar);
  ASSERT_EQ(result.entries.size(), 1u) << result.status;
  EXPECT_EQ(result.entries[0].path, "name");
  EXPECT_EQ(result.entries[0].uid, 0u);
}

TEST(TarReader, V7) {
  std::string block = support::TarHeader(support::File("old/", ""), 0);
  block = Patched(block, 257, std::string(255, '\0'));  // no magic, nothing after it
  block = Patched(block, 156, std::string(1, '\0'));
  Result result = Read(block + std::string(1024, '\0'));
  ASSERT_EQ(result.entries.size(), 1u) << result.status;
  EXPECT_EQ(result.entries[0].type, EntryType::kDirectory);  // because of the slash
  block = Patched(block, 0, std::string("file\0", 5));
  result = Read(block + std::string(1024, '\0'));
  EXPECT_EQ(result.entries[0].type, EntryType::kRegular);
  EXPECT_EQ(result.entries[0].path, "file");
}

TEST(TarReader, SizesOfWhatHasNoDataDoNotCount) {
  TarMember directory = support::Directory("d");
  directory.claimed_size = 4096;
  const Result result = Read(MakeTar({directory, support::File("d/f", "x")}));
  ASSERT_EQ(result.entries.size(), 2u) << result.status;
  EXPECT_EQ(result.entries[0].size, 0u);
}

TEST(TarReader, SparseFilesOfEveryStyle) {
  std::string contents(300'000, '\0');
  const std::vector<std::pair<uint64_t, uint64_t>> runs = {{4096, 8192}, {65536, 4096}, {262144, 4096}};
  for (const auto& [offset, length] : runs)
    contents.replace(offset, length, support::RandomBytes(length, offset));
  for (const SparseStyle style :
       {SparseStyle::kOldGnu, SparseStyle::kPax00, SparseStyle::kPax01, SparseStyle::kPax10}) {
    SCOPED_TRACE(static_cast<int>(style));
    TarMember member = support::File("sparse", contents);
    member.sparse = style;
    member.runs = runs;
    if (style == SparseStyle::kOldGnu) member.dialect = TarDialect::kGnu;
    const std::string tar = MakeTar({member, support::File("next", "n")});
    EXPECT_LT(tar.size(), 40'000u);
    for (const size_t step : {size_t{1} << 20, size_t{100}}) {
      const Result result = Read(tar, step);
      ASSERT_EQ(result.entries.size(), 2u) << result.status;
      EXPECT_EQ(result.entries[0].path, "sparse");
      EXPECT_EQ(result.entries[0].size, contents.size());
      EXPECT_EQ(result.entries[0].extents.size(), 3u);
      EXPECT_TRUE(Contents(tar, result.entries[0]) == contents);
      EXPECT_EQ(Contents(tar, result.entries[1]), "n");
    }
  }
}

TEST(TarReader, SparseFilesWithManyRuns) {
  std::string contents(100 * 8192, '\0');
  std::vector<std::pair<uint64_t, uint64_t>> runs;
  for (uint64_t i = 0; i < 100; ++i) {
    runs.emplace_back(i * 8192, 512);
    contents.replace(i * 8192, 512, support::RandomBytes(512, i));
  }
  for (const SparseStyle style :
       {SparseStyle::kOldGnu, SparseStyle::kPax00, SparseStyle::kPax01, SparseStyle::kPax10}) {
    TarMember member = support::File("sparse", contents);
    member.sparse = style;
    member.runs = runs;
    if (style == SparseStyle::kOldGnu) member.dialect = TarDialect::kGnu;
    const std::string tar = MakeTar({member});
    const Result result = Read(tar, 700);
    ASSERT_EQ(result.entries.size(), 1u) << result.status;
    EXPECT_EQ(result.entries[0].extents.size(), 100u);
    EXPECT_TRUE(Contents(tar, result.entries[0]) == contents);
  }
}

TEST(TarReader, SparseMapsThatLie) {
  const auto with = [](std::vector<std::pair<std::string, std::string>> records) {
    TarMember member = support::File("sparse", std::string(1024, 'x'));
    member.pax_records = std::move(records);
    return Error(MakeTar({member}));
  };
  using Records = std::vector<std::pair<std::string, std::string>>;
  const auto map = [](std::string numbers, std::string count) {
    return Records{{"GNU.sparse.major", "0"},
                   {"GNU.sparse.minor", "1"},
                   {"GNU.sparse.realsize", "8192"},
                   {"GNU.sparse.numblocks", std::move(count)},
                   {"GNU.sparse.map", std::move(numbers)}};
  };
  EXPECT_THAT(with(map("0,512", "1")), HasSubstr("more bytes are stored"));
  EXPECT_THAT(with(map("0,2048", "1")), HasSubstr("more bytes than are stored"));
  EXPECT_THAT(with(map("512,512,0,512", "2")), HasSubstr("overlaps"));
  EXPECT_THAT(with(map("0,512,256,512", "2")), HasSubstr("overlaps"));
  EXPECT_THAT(with(map("8000,1024", "1")), HasSubstr("overlaps"));
  EXPECT_THAT(with(map("9223372036854775807,1024", "1")), HasSubstr("overlaps"));
  EXPECT_THAT(with(map("-1,1024", "1")), HasSubstr("bad number"));
  EXPECT_THAT(with(map("a,b", "1")), HasSubstr("bad number"));
  EXPECT_THAT(with(map("0,1024", "2")), HasSubstr("stated number"));
  EXPECT_THAT(with(map("0,1024", "")), HasSubstr("stated number"));
  EXPECT_THAT(with(map("0", "1")), HasSubstr("stated number"));
  EXPECT_THAT(with({{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.realsize", "8192"}}),
              HasSubstr("sparse map"));
  EXPECT_THAT(with({{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.realsize", "-1"}}),
              HasSubstr("real size"));
}

TEST(TarReader, SparseMapInDataThatLies) {
  const auto with = [](std::string data) {
    TarMember member = support::File("sparse", std::move(data));
    member.pax_records = {
        {"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.realsize", "8192"}};
    return Error(MakeTar({member}));
  };
  const auto block = [](std::string text) {
    text.resize(512);
    return text;
  };
  EXPECT_THAT(with("1\n"), HasSubstr("missing"));
  EXPECT_THAT(with(block("1\n0\n512\n")), HasSubstr("more bytes than are stored"));
  EXPECT_THAT(with(block("2\n0\n")), HasSubstr("cut short"));
  EXPECT_THAT(with(block("99999999999\n")), HasSubstr("number of runs"));
  EXPECT_THAT(with(block("x\n")), HasSubstr("number of runs"));
  EXPECT_THAT(with(std::string(3 << 20, '1')), HasSubstr("larger than 1 MiB"));
}

TEST(TarReader, PaddingThatIsNotZeroIsReported) {
  std::string tar = MakeTar({support::File("a", "hello"), support::File("b", "b")});
  tar[512 + 5] = 'X';
  tar[1024 + 512 + 511] = 'Y';
  const Result whole = Read(tar);
  ASSERT_EQ(whole.padding.size(), 2u);
  EXPECT_EQ(whole.padding[0].offset, 512u + 5);
  EXPECT_EQ(whole.padding[0].length, 507u);
  EXPECT_EQ(whole.padding[1].offset, 1024u + 513);
  const Result bytes = Read(tar, 1);
  ASSERT_EQ(bytes.padding.size(), 2u);
  EXPECT_EQ(bytes.padding[1].offset, 1024u + 512 + 511);
  EXPECT_EQ(bytes.padding[1].length, 1u);
}

TEST(TarReader, TheEndOfTheArchive) {
  const TarMember member = support::File("a", "hello");
  TarMaker maker;
  maker.Add(member);
  const std::string body = maker.Unfinished(), zeros(512, '\0');
  EXPECT_TRUE(Read(body).status.ok());  // no zero blocks at all
  EXPECT_TRUE(Read(body + zeros).status.ok());
  EXPECT_TRUE(Read(body + zeros + zeros).status.ok());
  EXPECT_TRUE(Read(body + zeros + zeros + "anything").status.ok());
  EXPECT_TRUE(Read("").status.ok());
  EXPECT_EQ(Read(body + zeros + zeros + body).entries.size(), 1u);
  EXPECT_THAT(Error(body + zeros + body), HasSubstr("single zero block"));
  EXPECT_THAT(Error(body + std::string(100, '\0')), HasSubstr("ends inside"));
}

TEST(TarReader, TruncationAtEveryByte) {
  TarMember member = support::File(std::string(120, 'n'), std::string(600, 'x'));
  member.xattrs = {{"user.a", "b"}};
  TarMember sparse = support::File("sparse", std::string(8192, '\0') + "data");
  sparse.sparse = SparseStyle::kPax10;
  sparse.runs = {{8192, 4}};
  for (const std::vector<TarMember>& members :
       {std::vector<TarMember>{member}, std::vector<TarMember>{sparse}}) {
    TarMaker maker;
    for (const TarMember& one : members) maker.Add(one);
    const std::string tar = maker.Unfinished();
    for (size_t size = 1; size < tar.size(); ++size) {
      const Result result = Read(tar.substr(0, size));
      ASSERT_FALSE(result.status.ok()) << size;
      ASSERT_THAT(std::string(result.status.message()), HasSubstr("ends inside"));
    }
  }
}

TEST(TarReader, ErrorsNameTheEntry) {
  TarMember member = support::File("bad\nname", "");
  member.pax_records = {{"uid", "4294967295"}};
  const std::string error = Error(MakeTar({support::File("good", "x"), member}));
  EXPECT_THAT(error, HasSubstr("bad\\x0aname"));
  EXPECT_THAT(error, HasSubstr("owner"));
}

TEST(TarReader, NumbersOutOfRange) {
  const auto with = [](std::string key, std::string value) {
    TarMember member = support::File("name", "");
    member.pax_records = {{std::move(key), std::move(value)}};
    return Error(MakeTar({member}));
  };
  EXPECT_THAT(with("uid", "4294967295"), HasSubstr("owner"));
  EXPECT_THAT(with("gid", "-1"), HasSubstr("owner"));
  EXPECT_THAT(with("uid", "99999999999999999999"), HasSubstr("bad uid"));
  EXPECT_THAT(with("size", "-1"), HasSubstr("negative size"));
  EXPECT_THAT(with("size", "9223372036854775807"), HasSubstr("2 TiB"));
  EXPECT_THAT(with("size", "12x"), HasSubstr("bad uid, gid or size"));
  EXPECT_THAT(with("mtime", "soon"), HasSubstr("bad mtime"));
  EXPECT_THAT(with("SCHILY.xattr.", "x"), HasSubstr("extended attribute"));
  EXPECT_THAT(with("SCHILY.xattr.user." + std::string(300, 'x'), "x"), HasSubstr("extended attribute"));
  TarMember device = support::CharDevice("dev", 1, 3);
  device.dialect = TarDialect::kGnu;
  device.device_major = 4096;
  EXPECT_THAT(Error(MakeTar({device})), HasSubstr("device 4096:3"));
}

TEST(TarReader, UnsupportedTypes) {
  for (const char type : {'7', 'D', 'M', 'V', 'N', 'A', 'X', '\x80'}) {
    TarMember member = support::File("odd", "");
    member.type = type;
    EXPECT_THAT(Error(MakeTar({member})), HasSubstr("unsupported type")) << type;
  }
}

TEST(TarReader, SpecialHeadersAreBounded) {
  for (const char type : {'x', 'g', 'L', 'K'}) {
    TarMember member = support::File("special", std::string((1 << 20) + 1, 'n'));
    member.type = type;
    member.dialect = TarDialect::kUstar;
    EXPECT_THAT(Error(MakeTar({member})), HasSubstr("larger than 1 MiB")) << type;
  }
}

TEST(TarReader, BadChecksum) {
  TarMember member = support::File("a", "");
  member.bad_checksum = true;
  EXPECT_THAT(Error(MakeTar({support::File("first", "x"), member})), HasSubstr("offset 1024: bad checksum"));
  EXPECT_THAT(Error(std::string(512, 'x')), HasSubstr("not a tar header"));
}

TEST(TarReader, AnErrorOfTheSinkComesBack) {
  const std::string tar = MakeTar({support::File("a", "x")});
  TarReader reader;
  const absl::Status status = reader.Feed(
      {reinterpret_cast<const uint8_t*>(tar.data()), tar.size()},
      [](Entry) { return absl::ResourceExhaustedError("too many"); }, [](const ScrubRange&) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace lazyblob::layer::internal

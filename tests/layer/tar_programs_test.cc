// Layers made by the programs people make them with: a real directory, packed by GNU tar, bsdtar or Python,
// compressed by gzip, pigz or zstd, must come out of the index as the same tree with the same bytes.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "layer/erofs.h"
#include "tests/layer/index_harness.h"
#include "tests/layer/tree_text.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::layer {
namespace {

using oci::Compression;

struct Program {
  std::string name;              // of the test
  std::string needs;             // a program
  std::string command;           // DIR is packed to the file TAR
  long nanoseconds = 123456789;  // of the files' times, as the format can say them
  bool xattrs = true;
  bool ids_beyond_21_bits = true;
  bool long_names = true;

  friend void PrintTo(const Program& value, std::ostream* out) { *out << value.name; }
};

bool Have(const std::string& program) {
  return system(absl::StrCat("command -v ", program, " >/dev/null").c_str()) == 0;
}

void WriteFile(const std::string& path, absl::string_view contents) {
  ASSERT_TRUE(base::WriteFileAtomically(path, contents, 0644).ok()) << path;
}

void SetTime(const std::string& path, int64_t seconds, long nanoseconds) {
  const timespec times[2] = {{seconds, nanoseconds}, {seconds, nanoseconds}};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW), 0) << path;
}

// All that the program's format can say.
void MakeDirectory(const std::string& root, const Program& program) {
  const long ns = program.nanoseconds;
  ASSERT_TRUE(base::MakeDirectories(root + "/dir/deep/er").ok());
  WriteFile(root + "/dir/empty", "");
  WriteFile(root + "/dir/text", support::TextBytes(2'000'000));
  WriteFile(root + "/dir/noise", support::RandomBytes(1'500'000, 5));
  WriteFile(root + "/dir/deep/name with\nnewline", "1");
  WriteFile(root + "/dir/deep/\xc3\xa4\xe2\x82\xac \\x", "2");
  if (program.long_names) {
    WriteFile(absl::StrCat(root, "/dir/", std::string(180, 'n')), "long");
    ASSERT_EQ(symlink(std::string(300, 't').c_str(), (root + "/dir/longlink").c_str()), 0);
    SetTime(root + "/dir/longlink", 1'000'000'000, ns);
  }
  ASSERT_EQ(symlink("../dir/text", (root + "/link").c_str()), 0);
  ASSERT_EQ(link((root + "/dir/noise").c_str(), (root + "/dir/deep/hard").c_str()), 0);
  ASSERT_EQ(mkfifo((root + "/fifo").c_str(), 0640), 0);
  ASSERT_EQ(chmod((root + "/dir/text").c_str(), 04755), 0);
  ASSERT_EQ(chmod((root + "/dir/deep").c_str(), 01777), 0);
  if (geteuid() == 0) {
    ASSERT_EQ(mknod((root + "/null").c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
    ASSERT_EQ(mknod((root + "/disk").c_str(), S_IFBLK | 0600, makedev(259, 70'000)), 0);
    ASSERT_EQ(lchown((root + "/dir/text").c_str(), program.ids_beyond_21_bits ? 3'000'000'000 : 1000, 1001),
              0);
    ASSERT_EQ(chmod((root + "/dir/text").c_str(), 04755), 0);
    SetTime(root + "/null", 1'000'000'000, ns);
    SetTime(root + "/disk", 1'000'000'000, ns);
  }
  if (program.xattrs) {
    ASSERT_EQ(setxattr((root + "/dir/text").c_str(), "user.note", "a\0=\nb", 5, 0), 0);
  }
  // A hole before, between and after: 64 KiB of data in 10 MiB.
  const int fd = open((root + "/sparse").c_str(), O_CREAT | O_WRONLY, 0644);
  const std::string data = support::RandomBytes(65'536, 9);
  ASSERT_EQ(pwrite(fd, data.data(), data.size(), 1 << 20), static_cast<ssize_t>(data.size()));
  ASSERT_EQ(pwrite(fd, data.data(), 100, 5'000'000), 100);
  ASSERT_EQ(ftruncate(fd, 10 << 20), 0);
  ASSERT_EQ(close(fd), 0);
  for (const char* path :
       {"/dir/empty", "/dir/text", "/dir/noise", "/link", "/fifo", "/sparse", "/dir/deep/er"}) {
    SetTime(root + path, 1'234'567'890, ns);
  }
  for (const char* path :
       {"/dir/deep/name with\nnewline", "/dir/deep/\xc3\xa4\xe2\x82\xac \\x", "/dir/deep", "/dir", ""}) {
    SetTime(root + path, 1'111'111'111, ns);
  }
  if (program.long_names) {
    SetTime(absl::StrCat(root, "/dir/", std::string(180, 'n')), 5, ns);
    SetTime(root + "/dir", 1'111'111'111, ns);
  }
}

class TarPrograms : public ::testing::TestWithParam<Program> {};

TEST_P(TarPrograms, TheSameTreeAndBytes) {
  const Program& program = GetParam();
  if (!Have(program.needs)) GTEST_SKIP() << program.needs << " is not installed";
  const support::TempDir work;
  const std::string root = work.File("root");
  ASSERT_NO_FATAL_FAILURE(MakeDirectory(root, program));
  const std::string command =
      absl::StrReplaceAll(program.command, {{"DIR", root}, {"TAR", work.File("tar")}});
  ASSERT_EQ(system(command.c_str()), 0) << command;
  const std::string tar = *base::ReadFile(work.File("tar"), 1 << 30);
  const support::Layer layer = support::MakeLayer(tar, Compression::kGzip);
  const IndexRun run = RunIndexer(layer);
  ASSERT_TRUE(run.status.ok()) << run.status;
  ExpectRandomAccess(run, layer.blob);

  const auto image = ErofsImage::Open(run.directory->File("meta.erofs"));
  ASSERT_TRUE(image.ok()) << image.status();
  const auto tree = (*image)->ToTree();
  ASSERT_TRUE(tree.ok()) << tree.status();
  TreeTextOptions options;
  options.extents = false;
  EXPECT_EQ(Difference(DescribeDirectory(root), DescribeTree(*tree, options)), "");
  for (const char* path : {"dir/text", "dir/noise", "dir/deep/hard", "sparse", "dir/empty"}) {
    EXPECT_TRUE(FileContents(run, path) == *base::ReadFile(absl::StrCat(root, "/", path), 1 << 30)) << path;
  }
}

constexpr char kPython[] =
    "python3 -c 'import tarfile; t = tarfile.open(\"TAR\", \"w\", format=tarfile.FORMAT); t.add(\"DIR\", "
    "\".\"); t.close()'";

std::string Python(absl::string_view format) { return absl::StrReplaceAll(kPython, {{"FORMAT", format}}); }

INSTANTIATE_TEST_SUITE_P(
    Programs, TarPrograms,
    ::testing::Values(
        Program{"GnuTarPosix", "tar", "tar --format=posix --xattrs -C DIR -cf TAR ."},
        Program{"GnuTarPosixSparse", "tar", "tar --format=posix --xattrs -S -C DIR -cf TAR ."},
        Program{"GnuTarSparse01", "tar",
                "tar --format=posix --sparse-version=0.1 --xattrs -S -C DIR -cf TAR ."},
        Program{"GnuTarSparse00", "tar",
                "tar --format=posix --sparse-version=0.0 --xattrs -S -C DIR -cf TAR ."},
        Program{"GnuTarGnu", "tar", "tar --format=gnu -C DIR -cf TAR .", 0, false},
        Program{"GnuTarGnuSparse", "tar", "tar --format=gnu -S -C DIR -cf TAR .", 0, false},
        Program{"GnuTarUstar", "tar", "tar --format=ustar -C DIR -cf TAR .", 0, false, false, false},
        Program{"GnuTarV7", "tar",
                "tar --format=v7 --exclude=./null --exclude=./disk --exclude=./fifo -C DIR -cf TAR . && "
                "rm -f DIR/null DIR/disk DIR/fifo && touch -d @1111111111 DIR",
                0, false, false, false},
        Program{"BsdtarPax", "bsdtar", "bsdtar --format=pax -C DIR -cf TAR ."},
        Program{"BsdtarGnu", "bsdtar", "bsdtar --format=gnutar -C DIR -cf TAR .", 0, false},
        Program{"PythonPax", "python3", Python("PAX_FORMAT"), 500000000, false},
        Program{"PythonGnu", "python3", Python("GNU_FORMAT"), 0, false}),
    [](const auto& info) { return info.param.name; });

struct Compressor {
  std::string name;
  std::string needs;
  std::string command;  // from the file TAR to the file BLOB
  Compression compression;
  bool random_access = true;

  friend void PrintTo(const Compressor& value, std::ostream* out) { *out << value.name; }
};

class Compressors : public ::testing::TestWithParam<Compressor> {};

TEST_P(Compressors, EveryChunkComesBack) {
  const Compressor& compressor = GetParam();
  if (!Have(compressor.needs)) GTEST_SKIP() << compressor.needs << " is not installed";
  const support::TempDir work;
  const std::string tar = support::MakeTar({support::File("text", support::TextBytes(9 << 20)),
                                            support::File("noise", support::RandomBytes(9 << 20, 4)),
                                            support::File("zeros", std::string(3 << 20, '\0'))});
  ASSERT_TRUE(base::WriteFileAtomically(work.File("tar"), tar).ok());
  const std::string command =
      absl::StrReplaceAll(compressor.command, {{"TAR", work.File("tar")}, {"BLOB", work.File("blob")}});
  ASSERT_EQ(system(command.c_str()), 0) << command;
  const support::Layer layer =
      support::MakeLayerOf(tar, *base::ReadFile(work.File("blob"), 1 << 30), compressor.compression);
  for (const uint64_t step : {uint64_t{1} << 20, uint64_t{31'337}}) {
    const IndexRun run = RunIndexer(layer, step);
    ASSERT_TRUE(run.status.ok()) << run.status;
    EXPECT_EQ(run.index->info().random_access, compressor.random_access);
    ExpectRandomAccess(run, layer.blob);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Programs, Compressors,
    ::testing::Values(Compressor{"Gzip1", "gzip", "gzip -1 < TAR > BLOB", Compression::kGzip},
                      Compressor{"GzipNamed", "gzip", "gzip -9 -N -c TAR > BLOB", Compression::kGzip},
                      Compressor{"Pigz", "pigz", "pigz -p 4 < TAR > BLOB", Compression::kGzip},
                      Compressor{"PigzIndependent", "pigz", "pigz -p 4 -i < TAR > BLOB", Compression::kGzip},
                      Compressor{"PigzHuffman", "pigz", "pigz -H < TAR > BLOB", Compression::kGzip},
                      Compressor{"Zstd", "zstd", "zstd -q -c TAR > BLOB", Compression::kZstd, false},
                      Compressor{"ZstdStream", "zstd", "zstd -q -9 < TAR > BLOB", Compression::kZstd, false},
                      Compressor{"Pzstd", "pzstd", "pzstd -q -p 2 -c TAR > BLOB", Compression::kZstd}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace lazyblob::layer

#include "tests/exporter/tree_making.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::exporter {

void WriteFile(const std::string& path, absl::string_view contents) {
  auto fd = base::OpenFile(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  ASSERT_TRUE(fd.ok()) << fd.status();
  ASSERT_TRUE(
      base::PwriteFull(fd->get(), 0, {reinterpret_cast<const uint8_t*>(contents.data()), contents.size()})
          .ok());
}

void SetTime(const std::string& path, int64_t seconds, long nanoseconds) {
  const timespec times[2] = {{seconds, nanoseconds}, {seconds, nanoseconds}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW), 0) << path;
}

void SetXattr(const std::string& path, const char* name, absl::string_view value) {
  ASSERT_EQ(::lsetxattr(path.c_str(), name, value.data(), value.size(), 0), 0) << path << " " << name;
}

void MakeFullTree(const std::string& root, bool utf8_only) {
  ASSERT_TRUE(base::MakeDirectories(root + "/dir/deep/er").ok());
  WriteFile(root + "/dir/empty", "");
  WriteFile(root + "/dir/text", support::TextBytes(2'000'000));
  WriteFile(root + "/dir/noise", support::RandomBytes(9'000'001, 5));
  WriteFile(root + "/dir/deep/name with\nnewline", "1");
  WriteFile(root + "/dir/deep/\xc3\xa4\xe2\x82\xac \\x", "22");
  WriteFile(absl::StrCat(root, "/dir/", std::string(255, 'n')), "a long name");
  if (!utf8_only) {
    WriteFile(root + "/dir/raw\xff\xfe", "not UTF-8");
    WriteFile(absl::StrCat(root, "/dir/", std::string(200, '\xff')), "long, and not UTF-8");
  }
  std::string deep = root + "/dir/path";
  for (int i = 0; i < 12; ++i) absl::StrAppend(&deep, "/", std::string(30, static_cast<char>('a' + i)));
  ASSERT_TRUE(base::MakeDirectories(deep).ok());
  WriteFile(deep + "/end", "at the end");
  ASSERT_EQ(::symlink("../nowhere", (root + "/dir/dangling").c_str()), 0);
  ASSERT_EQ(::symlink(std::string(300, 's').c_str(), (root + "/dir/longlink").c_str()), 0);
  ASSERT_EQ(::link((root + "/dir/text").c_str(), (root + "/dir/deep/hard").c_str()), 0);
  ASSERT_EQ(::link((root + "/dir/text").c_str(), (root + "/another").c_str()), 0);
  ASSERT_EQ(::link((root + "/dir/dangling").c_str(), (root + "/dir/hard symlink").c_str()), 0);
  ASSERT_EQ(::mknod((root + "/dir/null").c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
  ASSERT_EQ(::mknod((root + "/dir/block").c_str(), S_IFBLK | 0600, makedev(300, 70000)), 0);
  ASSERT_EQ(::mkfifo((root + "/dir/fifo").c_str(), 0620), 0);
  SetXattr(root + "/dir/text", "user.text", "hello");
  SetXattr(root + "/dir/deep", "user.binary", absl::string_view("a\0b\n=\xff", 6));
  ASSERT_EQ(::truncate((root + "/dir/text").c_str(), 2'500'000), 0);  // ends in a hole
  {
    WriteFile(root + "/sparse", "");
    auto fd = base::OpenFile(root + "/sparse", O_WRONLY);
    ASSERT_TRUE(fd.ok());
    const std::string piece = support::RandomBytes(10'000, 9);
    for (const uint64_t at : {uint64_t{5 << 20}, uint64_t{20 << 20}}) {
      ASSERT_TRUE(
          base::PwriteFull(fd->get(), at, {reinterpret_cast<const uint8_t*>(piece.data()), piece.size()})
              .ok());
    }
  }
  ASSERT_EQ(::lchown((root + "/dir/empty").c_str(), 3'000'000'000, 4'000'000'000), 0);
  ASSERT_EQ(::lchown((root + "/dir/dangling").c_str(), 7, 8), 0);
  ASSERT_EQ(::chmod((root + "/dir/noise").c_str(), 04755), 0);
  ASSERT_EQ(::chmod((root + "/dir/deep/er").c_str(), 01777), 0);
  SetXattr(root + "/dir/noise", "security.capability",
           absl::string_view("\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20));
  // Times last, leaves before their directories.
  SetTime(root + "/dir/empty", 0, 0);
  SetTime(root + "/dir/noise", 1'700'000'000, 120'000'000);
  SetTime(root + "/dir/dangling", 1'600'000'001, 1);
  SetTime(root + "/dir/null", 9'000'000'000, 0);  // beyond eleven octal digits
  SetTime(root + "/dir/deep/er", 1'500'000'000, 999'999'999);
  SetTime(root + "/dir/deep", 1'500'000'001, 0);
  SetTime(root + "/dir", 1'500'000'002, 123'456'789);
  SetTime(root, 1'500'000'003, 5);
  ASSERT_EQ(::chmod(root.c_str(), 0751), 0);
}

namespace {

// std::mt19937_64 itself is the same everywhere; the distributions are not.
class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}
  uint64_t Below(uint64_t limit) { return engine_() % limit; }
  bool One(uint64_t in) { return Below(in) == 0; }

 private:
  std::mt19937_64 engine_;
};

std::string RandomName(Dice* dice, int number) {
  static constexpr const char* kOdd[] = {"\xc3\xa9", " ", "\n", "=", "\\", "%", "\"", "-", "\t", "'"};
  std::string name = absl::StrCat(number, "-");
  const uint64_t length = dice->One(8) ? dice->Below(240) : dice->Below(20);
  while (name.size() < length) {
    if (dice->One(6)) {
      name += kOdd[dice->Below(std::size(kOdd))];
    } else {
      name += static_cast<char>('a' + dice->Below(26));
    }
  }
  return name;
}

dev_t Device(Dice* dice) {
  const auto major = static_cast<unsigned>(dice->Below(4096));
  return makedev(major, static_cast<unsigned>(dice->Below(1 << 20)));
}

void Dress(const std::string& path, Dice* dice) {
  struct stat st{};
  ASSERT_EQ(::lstat(path.c_str(), &st), 0);
  if (dice->One(3)) {
    const auto owner = static_cast<uid_t>(dice->One(2) ? dice->Below(0xfffffffe) : dice->Below(2000));
    ASSERT_EQ(::lchown(path.c_str(), owner, static_cast<gid_t>(dice->Below(0xfffffffe))), 0);
  }
  if (!S_ISLNK(st.st_mode)) {
    ASSERT_EQ(::chmod(path.c_str(), static_cast<mode_t>(dice->Below(010000))), 0);
  }
  if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) {
    if (dice->One(5)) SetXattr(path, "user.one", support::RandomBytes(dice->Below(300), dice->Below(99)));
    if (dice->One(9)) SetXattr(path, "user.zz two", "");
  }
}

}  // namespace

void MakeRandomTree(const std::string& root, uint64_t seed) {
  Dice dice(seed);
  std::vector<std::string> directories = {root};
  std::vector<std::string> files;
  std::vector<std::string> all;
  ASSERT_TRUE(base::MakeDirectories(root).ok());
  const int count = 20 + static_cast<int>(dice.Below(120));
  for (int i = 0; i < count; ++i) {
    const std::string& parent = directories[dice.Below(directories.size())];
    const std::string path = absl::StrCat(parent, "/", RandomName(&dice, i));
    if (path.size() > 3000) continue;
    switch (dice.Below(9)) {
      case 0:
      case 1:
        ASSERT_EQ(::mkdir(path.c_str(), 0755), 0);
        directories.push_back(path);
        break;
      case 2:
        ASSERT_EQ(::symlink(std::string(1 + dice.Below(200), 'l').c_str(), path.c_str()), 0);
        break;
      case 3:
        if (!files.empty()) {
          ASSERT_EQ(::link(files[dice.Below(files.size())].c_str(), path.c_str()), 0);
          continue;  // what it is was said already
        }
        [[fallthrough]];
      case 4:
        if (dice.One(3)) {
          ASSERT_EQ(::mknod(path.c_str(), S_IFBLK | 0600, Device(&dice)), 0);
          break;
        }
        [[fallthrough]];
      default: {
        uint64_t size = dice.Below(3000);
        if (dice.One(6)) size = 0;
        if (dice.One(6)) size = 512 * dice.Below(6);
        if (dice.One(12)) size = dice.Below(600'000);
        WriteFile(path, dice.One(2) ? support::RandomBytes(size, seed + static_cast<uint64_t>(i))
                                    : support::TextBytes(size, seed));
        if (dice.One(5)) {
          ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size + dice.Below(300'000))), 0);
        }
        files.push_back(path);
      }
    }
    Dress(path, &dice);
    all.push_back(path);
  }
  all.insert(all.begin(), root);
  for (size_t i = all.size(); i-- > 0;) {
    SetTime(all[i], static_cast<int64_t>(dice.Below(9'000'000'000)),
            dice.One(2) ? 0 : static_cast<long>(dice.Below(1'000'000'000)));
  }
}

}  // namespace lazyblob::exporter

#include "daemon/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/toml.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

std::string Source(const std::string& name) {
  return *base::ReadFile(absl::StrCat(LAZYBLOB_SOURCE_DIR, "/", name), 1 << 20);
}

std::vector<std::string> KeysOfSample() {
  std::vector<std::string> keys;
  base::TomlValue sample = *base::ParseToml(Source("deploy/config.toml"), "config.toml", 1 << 20);
  for (const base::TomlValue& member : sample.items) {
    if (member.kind != base::TomlValue::Kind::kTable) keys.push_back(member.key);
    if (member.kind != base::TomlValue::Kind::kTable) continue;
    for (const base::TomlValue& key : member.items) keys.push_back(absl::StrCat(member.key, ".", key.key));
  }
  return keys;
}

TEST(Config, TheSampleIsExactlyTheDefaultsAndHasEveryKey) {
  auto config = ParseConfig(Source("deploy/config.toml"), "config.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(*config, Config());
  EXPECT_EQ(KeysOfSample(), ConfigKeys());
}

TEST(Config, TheDocumentHasEveryKeyWithItsDefault) {
  std::map<std::string, std::string> documented;
  std::regex row("^\\| `([a-z_.]+)` \\| `([^`]*)` \\|.*");
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(Source("docs/CONFIG.md"), '\n'))) {
    std::smatch match;
    if (std::regex_match(line, match, row)) documented[match[1]] = match[2];
  }
  std::vector<std::string> keys = ConfigKeys();
  EXPECT_EQ(documented.size(), keys.size());
  for (const std::string& key : keys) {
    ASSERT_EQ(documented.count(key), 1u) << key;
    std::vector<std::string> parts = absl::StrSplit(key, '.');
    std::string text = parts.size() == 2
                           ? absl::StrCat("[", parts[0], "]\n", parts[1], " = ", documented[key])
                           : absl::StrCat(key, " = ", documented[key]);
    auto config = ParseConfig(text, "CONFIG.md");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(*config, Config()) << key << " is documented with another default";
  }
}

TEST(Config, EveryKeyIsReadIntoAFieldOfItsOwn) {
  std::set<std::string> seen;
  for (const char* text : {"root = '/a'",
                           "address = '/b.sock'",
                           "log_level = 'debug'",
                           "[cache]\nmax_bytes = '10GiB'",
                           "[cache]\npinned_max = '1GiB'",
                           "[cache]\nmin_free = '5GiB'",
                           "[cache]\nscrub = 'off'",
                           "[cache]\nkeep_blobs = true",
                           "[cache]\nfill = 'on'",
                           "[fuse]\nmode = 'loop'",
                           "[fuse]\nread_deadline = '30s'",
                           "[snapshotter]\nplain_layers = 'client'",
                           "[snapshotter]\ncompare_diff_ids = 'mount'",
                           "[snapshotter]\nresolve_timeout = '1m30s'",
                           "[snapshotter]\nurl_hosts = ['a.example:443']",
                           "[registry]\nconfig_path = '/etc/a:/etc/b'",
                           "[registry]\nca_file = '/etc/ca.pem'",
                           "[credentials]\ndocker_config = ''",
                           "[credentials]\nkubernetes_secrets = '/etc/secrets'",
                           "[credentials]\ncri = true",
                           "[credentials]\ncri_image_service = '/run/k3s/containerd/containerd.sock'",
                           "[content]\nenabled = true",
                           "[content]\ncontainerd_address = '/run/k3s/containerd/containerd.sock'"}) {
    auto config = ParseConfig(text, "f");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_NE(*config, Config()) << text;
    seen.insert(text);
  }
  EXPECT_EQ(seen.size(), ConfigKeys().size());
  EXPECT_EQ(ParseConfig("[cache]\nmax_bytes = '10GiB'", "f")->cache.max_bytes, uint64_t{10} << 30);
  EXPECT_EQ(ParseConfig("[cache]\nmax_bytes = '7 KiB'", "f")->cache.max_bytes, 7168u);
  EXPECT_EQ(ParseConfig("[cache]\nmax_bytes = 12", "f")->cache.max_bytes, 12u);
  EXPECT_EQ(ParseConfig("[snapshotter]\nresolve_timeout = '1m30s'", "f")->snapshotter.resolve_timeout,
            absl::Seconds(90));
  EXPECT_EQ(ParseConfig("[cache]\nscrub = 'off'", "f")->cache.scrub, absl::InfiniteDuration());
  EXPECT_EQ(ParseConfig("[cache]\nscrub = '24h'", "f")->cache.scrub, absl::Hours(24));
  EXPECT_EQ(ParseConfig("root = '/a/b///'", "f")->root, "/a/b");
}

TEST(Config, WhatIsWrongIsNamedWithItsLine) {
  struct Case {
    std::string text;
    std::string start;
    std::string part;
  };
  std::string long_path = absl::StrCat("/", std::string(120, 'x'));
  for (const Case& c : std::vector<Case>{
           {"root = '/a'\n\nrooot = '/b'", "f:3: ", "unknown key rooot; known here: root, address"},
           {"[fuse]\nmode = 'auto'\nmodes = 1", "f:3: ", "unknown key fuse.modes; known here: mode,"},
           {"[fus]\nmode = 'auto'", "f:1: ", "unknown key fus;"},
           {"[cache]\nscrub = 'never'", "f:2: ", "must be \"off\" or a duration"},
           {"fuse = 1", "f:1: ", "fuse is an integer; it is a table, [fuse]"},
           {"[fuse.mode]\na=1", "f:1: ", "fuse.mode is a table; it must be a string"},
           {"root = 3", "f:1: ", "root is an integer; it must be a string"},
           {"root = 'var/lib'", "f:1: ", "root is \"var/lib\"; it must be an absolute path"},
           {"root = ''", "f:1: ", "it must be an absolute path"},
           {absl::StrCat("address = '", long_path, "'"), "f:1: ", "a socket's path has at most 107"},
           {"log_level = 'loud'", "f:1: ", "it must be one of: error, warning, info, debug"},
           {"[cache]\nmax_bytes = -1", "f:2: ", "negative"},
           {"[cache]\nmax_bytes = '10 GB'", "f:2: ", "\"10GiB\""},
           {"[cache]\nmax_bytes = '99999999TiB'", "f:2: ", "\"10GiB\""},
           {"[cache]\nmax_bytes = ''", "f:2: ", "\"10GiB\""},
           {"[cache]\nmax_bytes = 1.5", "f:2: ", "a number with a fraction"},
           {"[fuse]\nread_deadline = 60", "f:2: ", "a string like \"60s\""},
           {"[fuse]\nread_deadline = '60'", "f:2: ", "a duration like"},
           {"[fuse]\nread_deadline = '0s'", "f:2: ", "between 1s and 10m"},
           {"[fuse]\nread_deadline = 'inf'", "f:2: ", "between 1s and 10m"},
           {"[snapshotter]\nurl_hosts = ['https://a']", "f:2: ", "without https://"},
           {"[snapshotter]\nurl_hosts = [1]", "f:2: ", "an entry of snapshotter.url_hosts is an integer"},
           {"[registry]\nconfig_path = '/a:b'", "f:2: ", "\"b\"; it must be an absolute path"},
           {"[credentials]\ncri = 'yes'", "f:2: ", "it must be true or false"},
           {"a = 1\na = 2", "f:2: ", ""},
           {"root = \"/a\nb\"", "f:1: ", ""},
           {"[fuse", "f:1: ", ""},
           {"root = '/a'\n\n[.fuse]\nmode = 'auto'", "f:3: not TOML", ""},
           {"\xff = 1", "f:1: ", ""}}) {
    auto config = ParseConfig(c.text, "f");
    ASSERT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_TRUE(absl::StartsWith(config.status().message(), c.start)) << config.status();
    EXPECT_TRUE(absl::StrContains(config.status().message(), c.part)) << config.status();
    EXPECT_FALSE(absl::StrContains(config.status().message(), "\n")) << config.status();
  }
}

TEST(Config, AMissingFileIsTheDefaultsUnlessItWasAskedFor) {
  support::TempDir dir;
  EXPECT_EQ(*LoadConfig(dir.File("none.toml"), false), Config());
  EXPECT_EQ(LoadConfig(dir.File("none.toml"), true).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(base::WriteFileAtomically(dir.File("c.toml"), "\nx = 1").ok());
  absl::Status status = LoadConfig(dir.File("c.toml"), false).status();
  EXPECT_TRUE(absl::StartsWith(status.message(), dir.File("c.toml:2: unknown key x"))) << status;
}

TEST(Config, NestingAndSizeAreBounded) {
  EXPECT_EQ(ParseConfig(std::string((1 << 20) + 1, '\n'), "f").status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(ParseConfig(absl::StrCat("a = ", std::string(100000, '[')), "f").ok());
  std::string dotted = "a";
  for (int i = 0; i < 20000; ++i) dotted += ".a";
  EXPECT_FALSE(ParseConfig(absl::StrCat(dotted, " = 1"), "f").ok());
}

}  // namespace
}  // namespace lazyblob::daemon

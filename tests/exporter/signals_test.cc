#include "exporter/signals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/json.h"
#include "base/toml.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using ::testing::HasSubstr;

v1::ExportEvent ImageReady(std::vector<std::string> references) {
  v1::ExportEvent event;
  for (const std::string& reference : references) {
    v1::Ready* ready = event.mutable_image_ready()->add_ready();
    ready->set_reference(reference);
    ready->set_digest("sha256:abc");
    ready->set_size(7);
  }
  return event;
}

class SignalsTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) { return directory_.File(name); }
  std::string Read(const std::string& name) { return base::ReadFile(Path(name), 1 << 20).value_or("(none)"); }
  void Hook(const std::string& name, const std::string& script) {
    ASSERT_TRUE(base::WriteFileAtomically(Path(name), "#!/bin/sh\n" + script + "\n", 0755).ok());
  }
  SignalOptions All() { return {Path("image"), Path("cache"), Path("report.toml"), directory_.path()}; }

  support::TempDir directory_;
};

TEST_F(SignalsTest, FilesAppearWhenReadyAndNotBefore) {
  ASSERT_TRUE(base::WriteFileAtomically(Path("image"), "of an export before").ok());
  Signals signals(All());
  ASSERT_TRUE(signals.Start().ok());
  EXPECT_EQ(Read("image"), "(none)");
  signals.OnEvent(ImageReady({"r/a@sha256:abc", "r/b@sha256:abc"}));
  EXPECT_EQ(Read("image"), "r/a@sha256:abc\nr/b@sha256:abc\n");
  EXPECT_EQ(Read("cache"), "(none)");
  EXPECT_THAT(Read("report.toml"), HasSubstr("complete = false"));
  v1::ExportEvent cache;
  cache.mutable_cache_ready()->add_ready()->set_reference("r/c@sha256:def");
  signals.OnEvent(cache);
  EXPECT_EQ(Read("cache"), "r/c@sha256:def\n");
  EXPECT_TRUE(signals.Finish().ok());
}

TEST_F(SignalsTest, TheReportIsCompletedAtTheEnd) {
  for (const char* name : {"report.toml", "report.json"}) {
    SignalOptions options;
    options.report = Path(name);
    Signals signals(options);
    v1::ExportEvent warning;
    warning.set_warning("a \"quoted\"\nwarning");
    signals.OnEvent(warning);
    signals.OnEvent(ImageReady({"r/a@sha256:abc"}));
    EXPECT_THAT(Read(name), HasSubstr("r/a@sha256:abc"));
    EXPECT_THAT(Read(name), HasSubstr("quoted"));
    v1::ExportEvent done;
    done.mutable_done()->set_cache_error("denied");
    *done.mutable_done()->mutable_images() = ImageReady({"r/a@sha256:abc"}).image_ready().ready();
    done.mutable_done()->add_warnings("a \"quoted\"\nwarning");
    signals.OnEvent(done);
    ASSERT_TRUE(signals.Finish().ok());
  }
  auto toml = base::ParseToml(Read("report.toml"), "report", 1 << 20);
  ASSERT_TRUE(toml.ok()) << toml.status() << Read("report.toml");
  EXPECT_TRUE(toml->Find("complete")->boolean);
  EXPECT_EQ(toml->Find("cache_error")->text, "denied");
  EXPECT_EQ(toml->Find("warnings")->items.at(0).text, "a \"quoted\"\nwarning");
  EXPECT_EQ(toml->Find("images")->items.at(0).Find("reference")->text, "r/a@sha256:abc");
  EXPECT_EQ(toml->Find("images")->items.at(0).Find("size")->integer, 7);
  auto json = base::ParseJson(Read("report.json"), 1 << 20);
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_TRUE((*json)["complete"].get<bool>());
  EXPECT_EQ((*json)["images"][0]["reference"], "r/a@sha256:abc");
}

TEST_F(SignalsTest, HooksGetTheReference) {
  Hook("exporter-image-exported", "echo \"$#:$1\" >> \"$(dirname \"$0\")/said\"");
  Signals signals(All());
  signals.OnEvent(ImageReady({"r/a@sha256:abc", "r/b;rm -rf x@sha256:abc"}));
  EXPECT_TRUE(signals.Finish().ok());
  EXPECT_EQ(Read("said"), "1:r/a@sha256:abc\n1:r/b;rm -rf x@sha256:abc\n");
}

TEST_F(SignalsTest, AHookThatFailsIsTold) {
  Hook("exporter-image-exported", "exit 3");
  Signals signals(All());
  signals.OnEvent(ImageReady({"r/a@sha256:abc"}));
  absl::Status status = signals.Finish();
  EXPECT_THAT(std::string(status.message()), HasSubstr("exporter-image-exported: exit status 3"));
  ASSERT_EQ(chmod(Path("exporter-image-exported").c_str(), 0600), 0);
  EXPECT_THAT(std::string(RunHook(directory_.path(), "exporter-image-exported", "x").message()),
              HasSubstr("ermission denied"));
  EXPECT_TRUE(RunHook(directory_.path(), "none", "x").ok());
}

TEST_F(SignalsTest, AFileThatCannotBeWrittenIsTold) {
  Signals signals({Path("no/such/directory/file"), "", "", ""});
  signals.OnEvent(ImageReady({"r/a@sha256:abc"}));
  EXPECT_THAT(std::string(signals.Finish().message()), HasSubstr("no/such/directory"));
}

}  // namespace
}  // namespace lazyblob::exporter

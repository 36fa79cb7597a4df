#include "daemon/cli.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <vector>

#include <nlohmann/json.hpp>

#include "daemon/export_progress.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

struct Result {
  int code;
  std::string out;
  std::string err;
};

Result RunLazyblob(std::vector<const char*> arguments) {
  std::ostringstream out;
  std::ostringstream err;
  arguments.insert(arguments.begin(), "lazyblob");
  int code = RunCli(static_cast<int>(arguments.size()), arguments.data(), {out, err, false});
  return {code, out.str(), err.str()};
}

TEST(CliTest, HelpNamesEveryCommand) {
  Result result = RunLazyblob({"--help"});
  EXPECT_EQ(result.code, 0);
  for (const char* command : {"mount", "umount", "status", "index", "pull", "doctor", "copy", "unlazy",
                              "export", "artifact", "assemble"}) {
    EXPECT_NE(result.out.find(command), std::string::npos) << command;
  }
}

TEST(CliTest, WrongUseIsAnError) {
  EXPECT_NE(RunLazyblob({}).code, 0);
  EXPECT_NE(RunLazyblob({"mount"}).code, 0);
  EXPECT_NE(RunLazyblob({"mount", "ref", "/mnt", "--mode", "magic"}).code, 0);
  EXPECT_NE(RunLazyblob({"unknown"}).code, 0);
}

TEST(CliTest, StatusWithoutADaemonIsNothingMounted) {
  support::TempDir directory;
  Result result = RunLazyblob({"status", "--json", "--root", directory.path().c_str()});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.out.find("\"mounts\": []"), std::string::npos) << result.out;
}

TEST(CliTest, ErrorsAreOneLine) {
  support::TempDir directory;
  for (std::vector<const char*> arguments :
       {std::vector<const char*>{"umount", "/", "--root", directory.path().c_str()},
        std::vector<const char*>{"status", "/", "--root", directory.path().c_str()},
        std::vector<const char*>{"pull", "localhost:1/a", "--containerd", "/no/such/socket", "--root",
                                 directory.path().c_str()},
        std::vector<const char*>{"pull", "oci:/layout:tag", "--root", directory.path().c_str()},
        std::vector<const char*>{"pull", "localhost:1/a", "--config", "/proc/version", "--root",
                                 directory.path().c_str()},
        std::vector<const char*>{"mount", "localhost:1/a", "/no/such/dir", "--root",
                                 directory.path().c_str()}}) {
    Result result = RunLazyblob(arguments);
    EXPECT_NE(result.code, 0);
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.err.rfind("lazyblob: ", 0), 0u) << result.err;
  }
}

TEST(CliTest, OptionsComeBeforeTheEnvironment) {
  support::TempDir directory;
  setenv("CONTAINERD_ADDRESS", "/from/environment", 1);
  Result from_option = RunLazyblob({"pull", "localhost:1/a", "--containerd", "/from/option"});
  Result from_environment = RunLazyblob({"pull", "localhost:1/a"});
  unsetenv("CONTAINERD_ADDRESS");
  EXPECT_NE(from_option.err.find("/from/option"), std::string::npos) << from_option.err;
  EXPECT_NE(from_environment.err.find("/from/environment"), std::string::npos) << from_environment.err;
}

TEST(CliTest, AnExportWithoutItsHooksDirectoryDoesNotBegin) {
  if (geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root";
  support::TempDir directory;
  const std::string root = directory.File("root");
  const std::string destination = "oci:" + directory.File("layout") + ":t";
  Result result = RunLazyblob({"export", "--base", "scratch", "--layer", "dir:/etc", "--image",
                               destination.c_str(), "--hooks", "/no/such", "--root", root.c_str()});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("--hooks /no/such"), std::string::npos) << result.err;
  EXPECT_NE(access(root.c_str(), F_OK), 0);
}

TEST(ExportProgressTest, JsonTellsAllThatIsKnownAndWarnings) {
  std::ostringstream out;
  ExportProgress progress(ExportProgress::Style::kJson, out);
  v1::Progress layer;
  layer.set_name("a");
  layer.set_state("unpacking");
  layer.set_bytes(10);
  layer.set_unpacked(4);
  progress.Update(layer);
  progress.Warn("careful");
  std::istringstream lines(out.str());
  std::string line;
  ASSERT_TRUE(std::getline(lines, line));
  const auto told = nlohmann::json::parse(line);
  EXPECT_EQ(told["unpacked"], 4);
  EXPECT_EQ(told["bytes"], 10);
  EXPECT_EQ(told["bytes_per_second"], 0) << "nothing has come since the first line";
  ASSERT_TRUE(std::getline(lines, line));
  EXPECT_EQ(nlohmann::json::parse(line), nlohmann::json({{"warning", "careful"}}));
}

TEST(CliTest, DoctorFailsWhereNothingRunsAndSaysWhy) {
  support::TempDir directory;
  Result result = RunLazyblob({"doctor", "--json", "--root", directory.path().c_str(), "--config",
                               "/no/such/file", "--containerd", "/no/such/socket"});
  EXPECT_NE(result.code, 0);
  EXPECT_NE(result.out.find("\"healthy\": false"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("/no/such/socket"), std::string::npos) << result.out;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

}  // namespace
}  // namespace lazyblob::daemon

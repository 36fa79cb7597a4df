#include "daemon/doctor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

Severity Worst(const Findings& findings) {
  Severity worst = Severity::kOk;
  for (const Finding& finding : findings) worst = std::max(worst, finding.severity);
  return worst;
}

std::string Text(const Findings& findings) {
  std::ostringstream out;
  PrintFindings(findings, out);
  return out.str();
}

constexpr char kFileSystems[] = "nodev\tsysfs\n\terofs\nnodev\tfuse\nnodev\toverlay\n\tfuseblk\n";

TEST(DoctorUserTest, OnlyRootWillDo) {
  EXPECT_EQ(Worst(CheckUser(0)), Severity::kOk);
  EXPECT_EQ(Worst(CheckUser(1000)), Severity::kFail);
}

TEST(DoctorConfigTest, ErrorOfTheFileIsTold) {
  EXPECT_EQ(Worst(CheckConfig(Config{})), Severity::kOk);
  Findings findings = CheckConfig(absl::InvalidArgumentError("config.toml:3: unknown key"));
  EXPECT_EQ(Worst(findings), Severity::kFail);
  EXPECT_TRUE(absl::StrContains(Text(findings), "config.toml:3"));
}

TEST(DoctorRequestLimitTest, ADeadlineThatTheKernelCutsIsTold) {
  EXPECT_TRUE(CheckRequestLimit(0, absl::Minutes(10)).empty());
  EXPECT_EQ(Worst(CheckRequestLimit(120, absl::Seconds(60))), Severity::kOk);
  const Findings findings = CheckRequestLimit(20, absl::Seconds(60));
  EXPECT_EQ(Worst(findings), Severity::kWarning);
  EXPECT_TRUE(absl::StrContains(Text(findings), "reads wait for 10s, not for the 1m"));
}

TEST(DoctorKernelTest, EachThresholdHasItsVerdict) {
  struct Row {
    const char* release;
    Severity severity;
  };
  for (const Row& row :
       {Row{"6.18.44-fc-v657", Severity::kOk}, Row{"6.12.2", Severity::kOk}, Row{"7.0", Severity::kOk},
        Row{"6.12.1-amd64", Severity::kWarning}, Row{"6.12-rc1", Severity::kWarning},
        Row{"6.9.0", Severity::kWarning}, Row{"6.8.12", Severity::kWarning}, Row{"6.4.0", Severity::kWarning},
        Row{"6.3.13", Severity::kFail}, Row{"5.10.0", Severity::kFail}, Row{"nonsense", Severity::kWarning},
        Row{"", Severity::kWarning}, Row{"6", Severity::kWarning}}) {
    EXPECT_EQ(Worst(CheckKernel(row.release, kFileSystems, "")), row.severity) << row.release;
  }
  EXPECT_NE(Text(CheckKernel("6.8.0", kFileSystems, "")), Text(CheckKernel("6.9.0", kFileSystems, "")));
}

TEST(DoctorKernelTest, FileSystemIsThereOrAModuleOrMissing) {
  EXPECT_EQ(Worst(CheckKernel("6.18.0", "\text4\n",
                              "kernel/fs/erofs/erofs.ko:\nfuse/fuse.ko.xz:\n"
                              "kernel/fs/overlayfs/overlay.ko.zst: \n")),
            Severity::kOk);
  EXPECT_EQ(Worst(CheckKernel("6.18.0", "nodev\tfuse\nnodev\toverlay\n", "kernel/fs/ext4/ext4.ko:\n")),
            Severity::kFail);
  EXPECT_EQ(Worst(CheckKernel("6.18.0", "nodev\tfuse\nnodev\toverlay\n", "")), Severity::kWarning);
  // fuseblk is not fuse.
  EXPECT_EQ(Worst(CheckKernel("6.18.0", "\tfuseblk\n\terofs\nnodev\toverlay\n", "x")), Severity::kFail);
}

TEST(DoctorStateRootTest, OwnerModeAndKindAreChecked) {
  support::TempDir directory;
  std::string root = directory.File("root");
  EXPECT_EQ(Worst(CheckStateRoot(root, geteuid())), Severity::kFail) << "not there";
  ASSERT_EQ(mkdir(root.c_str(), 0700), 0);
  if (directory.on_disk()) {
    EXPECT_NE(Worst(CheckStateRoot(root, geteuid())), Severity::kFail);
  }
  EXPECT_EQ(Worst(CheckStateRoot(root, geteuid() + 1)), Severity::kFail);
  ASSERT_EQ(chmod(root.c_str(), 0755), 0);
  Findings findings = CheckStateRoot(root, geteuid());
  EXPECT_EQ(Worst(findings), Severity::kFail);
  EXPECT_TRUE(absl::StrContains(Text(findings), absl::StrCat("chmod 0700 ", root)));
  ASSERT_EQ(chmod(root.c_str(), 0700), 0);
  std::string file = root + "/file";
  std::ofstream(file) << "x";
  EXPECT_EQ(Worst(CheckStateRoot(file, geteuid())), Severity::kFail);
  EXPECT_EQ(Worst(CheckStateRoot("/proc", 0)), Severity::kFail) << "others have access";
}

TEST(DoctorDaemonTest, ModeAndLayersThatAreNotLazyAreTold) {
  EXPECT_EQ(Worst(CheckDaemon(absl::UnavailableError("no daemon"), "/r")), Severity::kFail);
  control::v1::StatusResponse status;
  EXPECT_EQ(Worst(CheckDaemon(status, "/r")), Severity::kOk);
  status.set_mode_reason("nothing works");
  EXPECT_EQ(Worst(CheckDaemon(status, "/r")), Severity::kFail);
  status.set_mode("erofs");
  EXPECT_EQ(Worst(CheckDaemon(status, "/r")), Severity::kOk);
  status.set_mode("fuse");
  status.set_mode_reason("erofs: not supported");
  Findings findings = CheckDaemon(status, "/r");
  EXPECT_EQ(Worst(findings), Severity::kWarning);
  EXPECT_TRUE(absl::StrContains(Text(findings), "not supported"));
  status.set_mode("erofs");
  auto* layer = status.add_not_lazy();
  layer->set_layer("sha256:abc");
  layer->set_reason("resolve-failed");
  findings = CheckDaemon(status, "/r");
  EXPECT_EQ(Worst(findings), Severity::kWarning);
  EXPECT_TRUE(absl::StrContains(Text(findings), "resolve-failed"));
}

class Listener {
 public:
  explicit Listener(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    fd_ = base::UniqueFd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(fd_.get(), 4), 0);
  }

 private:
  base::UniqueFd fd_;
};

TEST(DoctorSocketTest, SocketAndItsDirectoryAreClosedToOthers) {
  support::TempDir directory;
  std::string run = directory.File("run");
  ASSERT_EQ(mkdir(run.c_str(), 0700), 0);
  std::string path = run + "/s";
  EXPECT_EQ(Worst(CheckSocket(path, geteuid())), Severity::kFail) << "not there";
  Listener listener(path);
  ASSERT_EQ(chmod(path.c_str(), 0600), 0);
  EXPECT_EQ(Worst(CheckSocket(path, geteuid())), Severity::kOk);
  EXPECT_EQ(Worst(CheckSocket(path, geteuid() + 1)), Severity::kFail);
  ASSERT_EQ(chmod(path.c_str(), 0666), 0);
  EXPECT_EQ(Worst(CheckSocket(path, geteuid())), Severity::kFail);
  ASSERT_EQ(chmod(path.c_str(), 0600), 0);
  ASSERT_EQ(chmod(run.c_str(), 0755), 0);
  EXPECT_EQ(Worst(CheckSocket(path, geteuid())), Severity::kFail);
}

TEST(DoctorPropagationTest, NamespaceOfAListenerIsFoundByItsSocket) {
  support::TempDir directory;
  std::string path = directory.File("s");
  Listener listener(path);
  auto found = NamespaceBehind(path);
  ASSERT_TRUE(found.ok()) << found.status();
  struct stat own;
  ASSERT_EQ(stat("/proc/self/ns/mnt", &own), 0);
  EXPECT_EQ(found->id, own.st_ino);
  EXPECT_TRUE(absl::StrContains(found->mountinfo, " / "));
  EXPECT_FALSE(NamespaceBehind(directory.File("none")).ok());
}

TEST(DoctorPropagationTest, AnotherNamespaceMustReceiveTheMounts) {
  auto side = [](uint64_t id, const char* root_tags, const char* state_tags) {
    MountNamespace out;
    out.id = id;
    out.mountinfo = absl::StrCat("25 1 254:0 / / rw ", root_tags, " - ext4 /dev/vda rw\n");
    if (*state_tags != '\0') {
      absl::StrAppend(&out.mountinfo, "40 25 254:1 / /var/lib rw ", state_tags, " - ext4 /dev/vdb rw\n");
    }
    return absl::StatusOr<MountNamespace>(out);
  };
  const std::string root = "/var/lib/lazyblob";
  auto check = [&](const absl::StatusOr<MountNamespace>& daemon,
                   const absl::StatusOr<MountNamespace>& containerd) {
    return Worst(CheckPropagation(daemon, containerd, root));
  };
  EXPECT_EQ(check(side(1, "", ""), side(1, "", "")), Severity::kOk) << "the same one";
  EXPECT_EQ(check(side(1, "shared:1", ""), side(2, "master:1", "")), Severity::kOk);
  EXPECT_EQ(check(side(1, "shared:1", ""), side(2, "shared:1", "")), Severity::kOk);
  EXPECT_EQ(check(side(1, "", ""), side(2, "", "")), Severity::kFail) << "private";
  EXPECT_EQ(check(side(1, "shared:1", ""), side(2, "", "")), Severity::kFail);
  EXPECT_EQ(check(side(1, "master:1", ""), side(2, "shared:1", "")), Severity::kFail) << "the wrong way";
  EXPECT_EQ(check(side(1, "shared:1", ""), side(2, "shared:7 master:1", "")), Severity::kOk);
  EXPECT_EQ(check(side(1, "shared:1", "shared:2"), side(2, "master:1", "")), Severity::kFail)
      << "not its mount";
  EXPECT_EQ(check(side(1, "shared:1", "shared:2"), side(2, "", "master:2")), Severity::kOk);
  EXPECT_EQ(check(absl::NotFoundError("x"), side(2, "", "")), Severity::kWarning) << "unknown";
}

class DoctorContainerdTest : public ::testing::Test {
 protected:
  Findings Check() { return CheckContainerd(facts_, "lazyblob", "/run/lazyblob/lazyblob.sock"); }

  ContainerdFacts facts_{"v1.7.24",
                         {{"io.containerd.snapshotter.v1",
                           "lazyblob",
                           {{"address", "/run/lazyblob/lazyblob.sock"}},
                           {"remap-ids"},
                           ""}},
                         ""};
};

TEST_F(DoctorContainerdTest, RegisteredIsWell) { EXPECT_EQ(Worst(Check()), Severity::kOk) << Text(Check()); }

TEST_F(DoctorContainerdTest, NotReachableFails) {
  EXPECT_EQ(Worst(CheckContainerd(absl::UnavailableError("no"), "lazyblob", "/s")), Severity::kFail);
}

TEST_F(DoctorContainerdTest, VersionsAreCompared) {
  facts_.version = "1.5.9";
  EXPECT_EQ(Worst(Check()), Severity::kFail);
  facts_.version = "1.6.20~ds1";
  facts_.plugins[0].capabilities.clear();
  EXPECT_EQ(Worst(Check()), Severity::kOk) << "1.6 knows no capabilities";
  facts_.version = "unknown";
  EXPECT_EQ(Worst(Check()), Severity::kWarning);
}

TEST_F(DoctorContainerdTest, MissingRegistrationNamesTheStanza) {
  facts_.plugins.clear();
  EXPECT_EQ(Worst(Check()), Severity::kFail);
  EXPECT_TRUE(absl::StrContains(Text(Check()), "[proxy_plugins.lazyblob]"));
}

TEST_F(DoctorContainerdTest, OtherAddressOrBrokenProxyFails) {
  facts_.plugins[0].exports["address"] = "/run/other.sock";
  EXPECT_EQ(Worst(Check()), Severity::kFail);
  facts_.plugins[0].exports.clear();
  EXPECT_EQ(Worst(Check()), Severity::kOk);
  facts_.plugins[0].init_error = "no such file";
  EXPECT_EQ(Worst(Check()), Severity::kFail);
}

TEST_F(DoctorContainerdTest, CapabilitiesThatHurtOrHelp) {
  facts_.plugins[0].capabilities.clear();
  EXPECT_EQ(Worst(Check()), Severity::kWarning);
  facts_.plugins[0].capabilities = {"remap-ids", "rebase"};
  EXPECT_EQ(Worst(Check()), Severity::kFail);
}

TEST_F(DoctorContainerdTest, TransferNeedsAnnotationsAndAnUnpackEntry) {
  facts_.version = "v2.1.0";
  facts_.plugins.push_back({"io.containerd.transfer.v1", "local", {}, {}, ""});
  EXPECT_EQ(Worst(Check()), Severity::kWarning);
  facts_.plugins[0].exports["enable_remote_snapshot_annotations"] = "true";
  EXPECT_EQ(Worst(Check()), Severity::kWarning) << "still no unpack_config";
  facts_.config = "[plugins.\"io.containerd.cri.v1.images\"]\n snapshotter = \"lazyblob\"\n";
  EXPECT_EQ(Worst(Check()), Severity::kWarning) << "CRI's";
  const std::string table =
      "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux\"\n";
  facts_.config = table + "  # snapshotter = \"lazyblob\"\n  snapshotter = \"overlayfs\"\n";
  EXPECT_EQ(Worst(Check()), Severity::kWarning) << "another's";
  facts_.config += table + "  snapshotter = 'lazyblob'\n";
  EXPECT_EQ(Worst(Check()), Severity::kOk) << Text(Check());
  facts_.plugins.push_back({"io.containerd.grpc.v1", "cri", {}, {}, ""});
  EXPECT_EQ(Worst(Check()), Severity::kOk) << "CRI of 2.1 pulls by transfer";
  facts_.version = "v2.0.3";
  EXPECT_EQ(Worst(Check()), Severity::kWarning) << "that of 2.0 does not";
}

TEST_F(DoctorContainerdTest, CriThatPullsItselfSendsNoLabels) {
  facts_.version = "v2.1.9";
  facts_.plugins.push_back({"io.containerd.transfer.v1", "local", {}, {}, ""});
  facts_.plugins.push_back({"io.containerd.grpc.v1", "cri", {}, {}, ""});
  facts_.plugins[0].exports["enable_remote_snapshot_annotations"] = "true";
  const std::string transfer =
      "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  snapshotter = \"lazyblob\"\n"
      "[plugins.\"io.containerd.transfer.v1.local\"]\n  max_concurrent_downloads = 5\n";
  const std::string cri = "[plugins.\"io.containerd.cri.v1.images\"]\n  ";
  for (const char* harmless : {"max_concurrent_downloads = 3", "use_local_image_pull = false",
                               "# use_local_image_pull = true", "snapshotter = \"lazyblob\"",
                               "[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/x\""}) {
    facts_.config = absl::StrCat(transfer, cri, harmless, "\n");
    EXPECT_EQ(Worst(Check()), Severity::kOk) << harmless << "\n" << Text(Check());
  }
  for (const char* setting :
       {"use_local_image_pull = true", "max_concurrent_downloads=5", "discard_unpacked_layers = true # disk",
        "image_pull_with_sync_fs = true",
        "[plugins.'io.containerd.cri.v1.images'.registry.mirrors.\"docker.io\"]\nendpoint = []",
        "[plugins.'io.containerd.cri.v1.images'.registry.configs.\"docker.io\".auth]\nusername = \"x\""}) {
    facts_.config = absl::StrCat(transfer, cri, setting, "\n");
    EXPECT_EQ(Worst(Check()), Severity::kWarning) << setting;
    facts_.config = absl::StrCat(transfer, cri, "disable_snapshot_annotations = false\n", setting, "\n");
    EXPECT_EQ(Worst(Check()), Severity::kOk) << setting << "\n" << Text(Check());
  }
}

TEST_F(DoctorContainerdTest, SampleConfigurationsSatisfyIt) {
  facts_.plugins.push_back({"io.containerd.grpc.v1", "cri", {}, {}, ""});
  facts_.plugins.push_back({"io.containerd.transfer.v1", "local", {}, {}, ""});
  for (const char* version : {"1.6", "1.7", "2"}) {
    auto text =
        base::ReadFile(absl::StrCat(LAZYBLOB_SOURCE_DIR "/deploy/containerd-", version, ".toml"), 1 << 16);
    ASSERT_TRUE(text.ok()) << text.status();
    facts_.config = *text;
    facts_.version = absl::StrCat(version, absl::StrContains(version, ".") ? ".9" : ".0.0");
    if (facts_.version == "2.0.0") facts_.plugins[0].exports["enable_remote_snapshot_annotations"] = "true";
    EXPECT_EQ(Worst(Check()), Severity::kOk) << version << "\n" << Text(Check());
    EXPECT_TRUE(absl::StrContains(*text, "address = \"" + Config().address + "\""));
  }
}

TEST_F(DoctorContainerdTest, KubeletNeedsAnnotations) {
  facts_.plugins.push_back({"io.containerd.grpc.v1", "cri", {}, {}, ""});
  EXPECT_EQ(Worst(Check()), Severity::kWarning);
  facts_.config = "disable_snapshot_annotations = false\n";
  EXPECT_EQ(Worst(Check()), Severity::kOk);
  facts_.config.clear();
  facts_.plugins.back().init_error = "skip";
  EXPECT_EQ(Worst(Check()), Severity::kOk) << "CRI does not run";
}

class DoctorContentStoreTest : public ::testing::Test {
 protected:
  DoctorContentStoreTest() { facts_.version = "v1.7.24"; }
  Findings Check(bool enabled) { return CheckContentStore(facts_, enabled, "/run/lazyblob/lazyblob.sock"); }
  void Add(const std::string& id, const std::string& address, const std::string& init_error = "") {
    ContainerdPlugin plugin{"io.containerd.content.v1", id, {}, {}, init_error};
    if (!address.empty()) plugin.exports["address"] = address;
    facts_.plugins.push_back(plugin);
  }
  ContainerdFacts facts_;
};

TEST_F(DoctorContentStoreTest, NeitherKnowingOfTheOtherIsNoFinding) {
  Add("content", "");
  EXPECT_TRUE(Check(false).empty());
  EXPECT_TRUE(CheckContentStore(absl::UnavailableError("no"), true, "/s").empty());
}

TEST_F(DoctorContentStoreTest, BothSidesMustAgree) {
  Add("content", "");
  EXPECT_EQ(Worst(Check(true)), Severity::kWarning) << "served and not used";
  facts_.plugins.clear();
  Add("lazyblob-content", "/run/lazyblob/lazyblob.sock");
  EXPECT_EQ(Worst(Check(true)), Severity::kOk) << Text(Check(true));
  EXPECT_EQ(Worst(Check(false)), Severity::kFail) << "used and not served";
  facts_.plugins[0].exports["address"] = "/run/other.sock";
  EXPECT_EQ(Worst(Check(true)), Severity::kWarning) << "another's";
}

TEST_F(DoctorContentStoreTest, TheBuiltInOneMustBeDisabled) {
  Add("lazyblob-content", "/run/lazyblob/lazyblob.sock");
  Add("content", "");
  EXPECT_EQ(Worst(Check(true)), Severity::kFail);
  EXPECT_TRUE(
      absl::StrContains(Text(Check(true)), "disabled_plugins = [\"io.containerd.content.v1.content\"]"));
  facts_.plugins[1].init_error = "disabled";
  EXPECT_EQ(Worst(Check(true)), Severity::kOk);
  facts_.plugins[0].init_error = "no such file";
  EXPECT_EQ(Worst(Check(true)), Severity::kFail);
}

TEST_F(DoctorContentStoreTest, IsolatedNamespacesAreRefusedWithTheReason) {
  Add("lazyblob-content", "/run/lazyblob/lazyblob.sock");
  for (const char* line :
       {"content_sharing_policy = \"isolated\"", "  content_sharing_policy='isolated' # why"}) {
    facts_.config = absl::StrCat("[plugins.\"io.containerd.metadata.v1.bolt\"]\n", line, "\n");
    EXPECT_EQ(Worst(Check(true)), Severity::kFail) << line;
    EXPECT_TRUE(absl::StrContains(Text(Check(true)), "no pull is lazy"));
  }
  facts_.config = "content_sharing_policy = \"shared\"\n";
  EXPECT_EQ(Worst(Check(true)), Severity::kOk);
}

TEST_F(DoctorContentStoreTest, TheSampleNamesWhatIsServedAndDisabled) {
  auto text = base::ReadFile(LAZYBLOB_SOURCE_DIR "/deploy/containerd-content.toml", 1 << 16);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_TRUE(absl::StrContains(*text, "address = \"" + Config().address + "\""));
  EXPECT_TRUE(absl::StrContains(*text, "\ndisabled_plugins = [\"io.containerd.content.v1.content\"]"));
}

TEST(DoctorReportTest, OneLineEachAndJsonAgree) {
  Findings findings = {{Severity::kOk, "a", "fine", ""}, {Severity::kFail, "b", "bad\nnews", "mend it"}};
  std::string text = Text(findings);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2) << text;
  EXPECT_TRUE(absl::StrContains(text, "FAIL"));
  EXPECT_TRUE(daemon::HasFailure(findings));
  nlohmann::json json = ToJson(findings);
  EXPECT_EQ(json["healthy"], false);
  EXPECT_EQ(json["checks"][1]["result"], "FAIL");
  EXPECT_EQ(json["checks"][1]["fix"], "mend it");
}

}  // namespace
}  // namespace lazyblob::daemon

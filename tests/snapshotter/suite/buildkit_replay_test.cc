// A replay, not BuildKit: the calls that its cache manager makes of a snapshotter named stargz
// (cache/refs.go, cache/manager.go of moby/buildkit), in their order and with their labels.

#include <algorithm>

#include "absl/strings/match.h"
#include "tests/snapshotter/suite/suite_fixture.h"

namespace lazyblob::snapshotter::suite {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::Not;

constexpr char kUniq[] = "q8w1z5m0";

// One layer of an image, as BuildKit's records know it.
struct Layer {
  std::string snapshot_id;  // opaque
  std::string parent_id;
  base::Digest digest;
};

class BuildKitReplay : public SuiteTest {
 protected:
  // What the puller remembers of a layer.
  static Labels HandlerLabels(const Layer& layer) {
    return {{"containerd.io/snapshot/remote/stargz.reference", "docker.io/library/app:1"},
            {"containerd.io/snapshot/remote/stargz.digest", layer.digest.ToString()},
            {"containerd.io/snapshot/remote/stargz.layers", layer.digest.ToString()},
            {"containerd.io/snapshot/stargz/toc.digest", ""},
            {"containerd.io/snapshot/cri.image-ref", "docker.io/library/app:1"}};
  }
  // Those that are added for the time of an operation.
  static Labels Temporary(const Layer& layer) {
    Labels labels;
    for (const auto& [key, value] : HandlerLabels(layer)) labels[absl::StrCat(key, ".", kUniq)] = value;
    labels[absl::StrCat("containerd.io/snapshot/remote/stargz.session.0.", kUniq)] = "session-1";
    return labels;
  }
  static std::vector<std::string> Paths(const Labels& labels) {
    std::vector<std::string> paths;
    for (const auto& [key, value] : labels) paths.push_back("labels." + key);
    return paths;
  }

  // prepareRemoteSnapshotsStargzMode for one layer.
  void Extract(const Layer& layer) {
    SCOPED_TRACE(layer.snapshot_id);
    if (client_->Stat(layer.snapshot_id).ok()) return;
    Labels labels = HandlerLabels(layer);
    labels.merge(Temporary(layer));
    labels["containerd.io/snapshot.ref"] = layer.snapshot_id;
    absl::Status status =
        client_->Prepare(absl::StrCat("tmp-", ++count_, " ", layer.snapshot_id), layer.parent_id, labels)
            .status();
    ASSERT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
    auto info = client_->Stat(layer.snapshot_id);
    ASSERT_TRUE(info.ok()) << info.status();
    for (const auto& [key, value] : Temporary(layer)) info->labels[key] = "";
    auto updated = client_->Update(*info, Paths(Temporary(layer)));
    ASSERT_TRUE(updated.ok()) << updated.status();
    EXPECT_THAT(updated->labels, Not(Contains(Key(HasSubstr(kUniq)))));
    EXPECT_THAT(updated->labels, Contains(Key("containerd.io/snapshot/remote")));
    EXPECT_THAT(updated->labels, Contains(Key("containerd.io/snapshot.ref")));
  }

  // withRemoteSnapshotLabelsStargzMode around `work`.
  void WithLabels(const std::vector<Layer>& layers, const std::function<void()>& work) {
    for (const Layer& layer : layers) {
      auto info = client_->Stat(layer.snapshot_id);
      ASSERT_TRUE(info.ok());
      if (!info->labels.contains("containerd.io/snapshot/remote")) continue;
      for (const auto& [key, value] : Temporary(layer)) info->labels[key] = value;
      auto updated = client_->Update(*info, Paths(Temporary(layer)));
      ASSERT_TRUE(updated.ok()) << updated.status();
      // An empty value deletes: the copy of an empty label is never there.
      info->labels.erase(absl::StrCat("containerd.io/snapshot/stargz/toc.digest.", kUniq));
      EXPECT_EQ(updated->labels, info->labels);
    }
    work();
    for (const Layer& layer : layers) {
      auto info = client_->Stat(layer.snapshot_id);
      ASSERT_TRUE(info.ok());
      for (const auto& [key, value] : Temporary(layer)) info->labels[key] = "";
      ASSERT_TRUE(client_->Update(*info, Paths(Temporary(layer))).ok());
    }
  }

  static std::vector<Layer> Image(int layers) {
    std::vector<Layer> image;
    for (int i = 0; i < layers; ++i) {
      image.push_back({absl::StrCat("k", i, "opaque-id"), i == 0 ? "" : image.back().snapshot_id,
                       base::Digest::Of(absl::StrCat("layer", i))});
    }
    return image;
  }
  static std::string Option(const MountSpec& mount, absl::string_view name) {
    for (const std::string& option : mount.options) {
      if (absl::StartsWith(option, name)) return option.substr(name.size());
    }
    return "";
  }
};

TEST_F(BuildKitReplay, ExtractsAllLayersLazilyAndOnlyOnce) {
  const std::vector<Layer> image = Image(3);
  for (const Layer& layer : image) ASSERT_NO_FATAL_FAILURE(Extract(layer));
  for (const Layer& layer : image) {
    auto info = client_->Stat(layer.snapshot_id);
    ASSERT_TRUE(info.ok());
    EXPECT_EQ(info->kind, Kind::kCommitted);
    EXPECT_EQ(info->parent, layer.parent_id);
  }
  EXPECT_THAT(Names({"kind==active"}), IsEmpty()) << "no tmp- key is left behind";
  for (const Layer& layer : image) ASSERT_NO_FATAL_FAILURE(Extract(layer));
  EXPECT_EQ(layers_.mount_calls(), 3);
  EXPECT_EQ(layers_.last_claim().chain, "k2opaque-id");
  EXPECT_EQ(layers_.last_claim().reference, "docker.io/library/app:1");
}

TEST_F(BuildKitReplay, ALayerThatCannotBeLazyIsPreparedForUnpacking) {
  const std::vector<Layer> image = Image(2);
  ASSERT_NO_FATAL_FAILURE(Extract(image[0]));
  layers_.Fail(image[1].digest, NotLazyError("unsupported-format", absl::UnimplementedError("foreign")));
  Labels labels = HandlerLabels(image[1]);
  labels["containerd.io/snapshot.ref"] = image[1].snapshot_id;
  const std::string key = absl::StrCat("tmp-x ", image[1].snapshot_id);
  auto mounts = client_->Prepare(key, image[0].snapshot_id, labels);
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_THAT(mounts->back().options, Not(Contains("ro")));
  // It breaks off here, unpacks, and commits under the same name.
  {
    auto mounted = Mounted::At(Work("unpack"), *mounts);
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    File("unpacked", "x", 0644)(mounted->path());
  }
  ASSERT_TRUE(client_->Commit(image[1].snapshot_id, key).ok());
  EXPECT_THAT(client_->Stat(image[1].snapshot_id)->labels,
              Not(Contains(Key("containerd.io/snapshot/remote"))));
  EXPECT_THAT(TreeOfView(image[1].snapshot_id), HasSubstr("/unpacked"));
}

TEST_F(BuildKitReplay, ClientsCannotMarkASnapshotRemote) {
  ASSERT_TRUE(client_->Prepare("k", "", {{"containerd.io/snapshot/remote", "x"}}).ok());
  EXPECT_THAT(client_->Stat("k")->labels, Not(Contains(Key("containerd.io/snapshot/remote"))));
  Info info;
  info.name = "k";
  info.labels = {{"containerd.io/snapshot/remote", "x"}};
  ASSERT_TRUE(client_->Update(info, {"labels.containerd.io/snapshot/remote"}).ok());
  EXPECT_THAT(client_->Stat("k")->labels, Not(Contains(Key("containerd.io/snapshot/remote"))));
  ASSERT_TRUE(client_->Commit("n", "k", {{"containerd.io/snapshot/remote", "x"}}).ok());
  EXPECT_THAT(client_->Stat("n")->labels, Not(Contains(Key("containerd.io/snapshot/remote"))));
}

TEST_F(BuildKitReplay, NorUnmarkALazyOne) {
  const std::vector<Layer> image = Image(1);
  ASSERT_NO_FATAL_FAILURE(Extract(image[0]));
  Info info;
  info.name = image[0].snapshot_id;
  ASSERT_TRUE(client_->Update(info, {"labels.containerd.io/snapshot/remote"}).ok());
  EXPECT_THAT(client_->Stat(info.name)->labels, Contains(Key("containerd.io/snapshot/remote")));
  ASSERT_TRUE(client_->Update(info).ok());
  EXPECT_THAT(client_->Stat(info.name)->labels, Contains(Key("containerd.io/snapshot/remote")));
}

TEST_F(BuildKitReplay, ManyChildrenMountWhileLabelsComeAndGo) {
  const std::vector<Layer> image = Image(3);
  for (const Layer& layer : image) ASSERT_NO_FATAL_FAILURE(Extract(layer));
  WithLabels(image, [&] {
    for (int i = 0; i < 50; ++i) {
      auto mounts = client_->Prepare(absl::StrCat("child", i), image.back().snapshot_id);
      ASSERT_TRUE(mounts.ok()) << mounts.status();
      ASSERT_EQ(mounts->size(), 1u);
      EXPECT_EQ((*mounts)[0].type, "overlay");
      const std::string lowers = Option((*mounts)[0], "lowerdir=");
      EXPECT_EQ(std::count(lowers.begin(), lowers.end(), ':'), 2) << lowers;
      EXPECT_THAT(Option((*mounts)[0], "upperdir="), Not(IsEmpty()));
      auto again = client_->Mounts(absl::StrCat("child", i));
      ASSERT_TRUE(again.ok());
      EXPECT_EQ((*again)[0].options, (*mounts)[0].options);
    }
  });
  auto mounts = client_->Mounts("child0");
  ASSERT_TRUE(mounts.ok());
  // Its differ adds an option of its own.
  (*mounts)[0].options.push_back("redirect_dir=off");
  auto mounted = Mounted::At(Work("child"), *mounts);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  File("made", "x", 0644)(mounted->path());
  ASSERT_TRUE(mounted->Unmount().ok());
  ASSERT_TRUE(client_->Commit("built", "child0").ok());
  EXPECT_THAT(TreeOfView("built"), HasSubstr("/made"));
}

TEST_F(BuildKitReplay, AViewOfOneLayerIsABindOfIt) {
  const std::vector<Layer> image = Image(2);
  for (const Layer& layer : image) ASSERT_NO_FATAL_FAILURE(Extract(layer));
  auto view = client_->View("view-1", image[0].snapshot_id);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ((*view)[0].type, "bind");
  EXPECT_THAT((*view)[0].options, AllOf(Contains("ro"), Contains("rbind")));
  auto two = client_->View("view-2", image[1].snapshot_id);
  ASSERT_TRUE(two.ok());
  EXPECT_EQ((*two)[0].type, "overlay");
  EXPECT_EQ(Option((*two)[0], "upperdir="), "");
}

TEST_F(BuildKitReplay, GarbageCollectionRemovesChildrenFirstAndCleansUp) {
  const std::vector<Layer> image = Image(3);
  for (const Layer& layer : image) ASSERT_NO_FATAL_FAILURE(Extract(layer));
  ASSERT_TRUE(client_->Prepare("container", image.back().snapshot_id).ok());
  // containerd's walk knows no order: parents are refused with the one code it passes over.
  for (const Layer& layer : image)
    EXPECT_TRUE(absl::IsFailedPrecondition(client_->Remove(layer.snapshot_id)));
  ASSERT_TRUE(client_->Remove("container").ok());
  for (auto layer = image.rbegin(); layer != image.rend(); ++layer) {
    EXPECT_TRUE(client_->Remove(layer->snapshot_id).ok());
  }
  EXPECT_TRUE(client_->Cleanup().ok());
  EXPECT_TRUE(client_->Cleanup().ok());
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(layers_.mounted(), 0u);
  EXPECT_EQ(layers_.unbalanced(), 0);
}

// containerd in between: names of three namespaces over one backend, found by filter.
TEST_F(BuildKitReplay, NamespacesOfContainerdFindTheirSnapshotByFilter) {
  const Layer layer = Image(1)[0];
  for (const char* name_space : {"default/1/", "k8s.io/7/", "buildkit/9/"}) {
    Labels labels = HandlerLabels(layer);
    labels["containerd.io/snapshot.ref"] = "sha256:chain";
    absl::Status status =
        client_->Prepare(absl::StrCat(name_space, "extract-1-abcd sha256:chain"), "", labels).status();
    EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
    auto found = client_->List({"labels.\"containerd.io/snapshot.ref\"==sha256:chain,parent==\"\""});
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->size(), 1u);
    EXPECT_EQ((*found)[0].kind, Kind::kCommitted);
    EXPECT_EQ((*found)[0].labels.at("containerd.io/snapshot.ref"), "sha256:chain");
    EXPECT_EQ((*found)[0].parent, "");
  }
  EXPECT_EQ(layers_.mount_calls(), 1);
}

TEST_F(BuildKitReplay, AllOfItSurvivesARestart) {
  const std::vector<Layer> image = Image(3);
  for (const Layer& layer : image) ASSERT_NO_FATAL_FAILURE(Extract(layer));
  auto mounts = client_->Prepare("container", image.back().snapshot_id);
  ASSERT_TRUE(mounts.ok());
  ASSERT_NO_FATAL_FAILURE(Restart());
  EXPECT_EQ(layers_.mount_calls(), 3) << "nothing is asked of a registry";
  EXPECT_EQ(layers_.restore_calls(), 3);
  auto again = client_->Mounts("container");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)[0].options, (*mounts)[0].options);
  for (const Layer& layer : image) ASSERT_NO_FATAL_FAILURE(Extract(layer));
  EXPECT_EQ(layers_.mount_calls(), 3);
}

}  // namespace
}  // namespace lazyblob::snapshotter::suite

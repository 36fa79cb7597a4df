// What the calls of the Snapshots service cost, over its socket: 1000 snapshots on a chain of 100 committed
// ones, and a List of 10,000. Nothing is lazy and nothing is mounted: metadata, directories and the wire.
//
//   snapshots_bench [--smoke]      prints one line per figure; the root lies where tests/support/temp_dir.h
//   says

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "containerd/grpc_server.h"
#include "snapshotter/snapshots_service.h"
#include "tests/snapshotter/suite/wire_client.h"
#include "tests/support/fake_lazy_layers.h"
#include "tests/support/temp_dir.h"

namespace {

namespace sn = lazyblob::snapshotter;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "snapshots_bench: %s\n", status.ToString().c_str());
  exit(1);
}

double Milliseconds(const std::function<absl::Status()>& work) {
  const absl::Time start = absl::Now();
  Must(work());
  return absl::ToDoubleMilliseconds(absl::Now() - start);
}

void Print(const char* what, std::vector<double> times) {
  std::sort(times.begin(), times.end());
  printf("%-42s median %8.2f ms   p99 %8.2f ms   n %zu\n", what, times[times.size() / 2],
         times[times.size() * 99 / 100], times.size());
}

void Run(bool smoke) {
  const int chain = smoke ? 10 : 100;
  const int snapshots = smoke ? 20 : 1000;
  const int listed = smoke ? 200 : 10'000;
  lazyblob::support::TempDir dir;
  lazyblob::support::FakeLazyLayers layers(dir.File("m"));
  sn::SnapshotterOptions options;
  options.root = dir.File("root");
  options.layers = &layers;
  auto snapshotter = sn::Snapshotter::Open(options);
  Must(snapshotter.status());
  auto service = sn::SnapshotsService::Create(snapshotter->get());
  auto server = lazyblob::containerd::GrpcServer::Start(dir.File("run") + "/s.sock", {service->service()});
  Must(server.status());
  sn::suite::WireClient client(dir.File("run") + "/s.sock");
  const sn::Labels labels = {{"containerd.io/gc.root", "2023-01-02T03:04:05Z"}};

  std::string parent;
  std::vector<double> commits;
  for (int i = 0; i < chain; ++i) {
    const std::string key = absl::StrCat("default/", i, "/extract-", i);
    const std::string name = absl::StrCat("default/", i, "/sha256:", i);
    Must(client.Prepare(key, parent, labels).status());
    commits.push_back(Milliseconds([&] { return client.Commit(name, key, labels); }));
    parent = name;
  }
  std::vector<double> prepares, mounts, stats, updates, removes;
  auto key = [](int i) { return absl::StrCat("default/x/container-", i); };
  for (int i = 0; i < snapshots; ++i) {
    prepares.push_back(Milliseconds([&] { return client.Prepare(key(i), parent, labels).status(); }));
  }
  for (int i = 0; i < snapshots; ++i) {
    mounts.push_back(Milliseconds([&] { return client.Mounts(key(i)).status(); }));
    stats.push_back(Milliseconds([&] { return client.Stat(key(i)).status(); }));
  }
  for (int i = 0; i < snapshots; i += 10) {
    sn::Info info;
    info.name = key(i);
    info.labels = {{"a", "b"}};
    updates.push_back(Milliseconds([&] { return client.Update(info, {"labels.a"}).status(); }));
  }
  Print(absl::StrCat("Commit, chain of ", chain).c_str(), commits);
  Print(absl::StrCat("Prepare on a chain of ", chain).c_str(), prepares);
  Print("Mounts", mounts);
  Print("Stat", stats);
  Print("Update of one label", updates);

  for (int i = chain + snapshots; i < listed; ++i) Must(client.View(absl::StrCat("v", i), "").status());
  std::vector<double> lists, filtered;
  for (int i = 0; i < 11; ++i) {
    lists.push_back(Milliseconds([&] { return client.List().status(); }));
    filtered.push_back(Milliseconds([&] {
      return client.List({absl::StrCat("labels.\"containerd.io/snapshot.ref\"==x,parent==\"", parent, "\"")})
          .status();
    }));
  }
  Print(absl::StrCat("List of ", listed).c_str(), lists);
  Print("List with the filter of a remote snapshot", filtered);
  for (int i = 0; i < snapshots; ++i) {
    removes.push_back(Milliseconds([&] { return client.Remove(key(i)); }));
  }
  Print("Remove", removes);
}

}  // namespace

int main(int argc, char** argv) {
  Run(argc > 1 && strcmp(argv[1], "--smoke") == 0);
  return 0;
}

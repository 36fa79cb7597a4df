// For containerd_judges_test.sh:
//
//   snapshotter_judged serve DIR         the real Snapshotter, without lazy layers, on DIR/run/s.sock until
//   stdin ends snapshotter_judged match             for each line of stdin, a filter: the names that match of
//   a fixed list, or
//                                        "error: …"

#include <cstdio>
#include <cstring>
#include <iostream>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "containerd/filter.h"
#include "containerd/grpc_server.h"
#include "snapshotter/snapshots_service.h"
#include "tests/support/fake_lazy_layers.h"

namespace {

namespace sn = lazyblob::snapshotter;

int Fail(const absl::Status& status) {
  fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

int Serve(const std::string& dir) {
  lazyblob::support::FakeLazyLayers layers(dir + "/m");
  sn::SnapshotterOptions options;
  options.root = dir + "/root";
  options.layers = &layers;
  auto snapshotter = sn::Snapshotter::Open(options);
  if (!snapshotter.ok()) return Fail(snapshotter.status());
  auto service = sn::SnapshotsService::Create(snapshotter->get());
  auto server = lazyblob::containerd::GrpcServer::Start(dir + "/run/s.sock", {service->service()});
  if (!server.ok()) return Fail(server.status());
  while (std::cin.get() != EOF) {
  }
  return 0;
}

int Match() {
  const std::pair<const char*, sn::Labels> corpus[] = {
      {"bare", {}},
      {"foo", {{"foo", "true"}, {"n", "12"}}},
      {"dotted", {{"a.b.c", "omg_asdf.asdf-qwer"}}},
      {"slash", {{"containerd.io/x", "sha256:ab"}, {"foo", "x=y"}}},
      {"spaced", {{"a b", "x y"}}},
  };
  std::string text;
  while (std::getline(std::cin, text)) {
    auto filter = lazyblob::containerd::ParseFilters({text});
    std::string line;
    if (!filter.ok()) line = absl::StrCat(" error: ", filter.status().message());
    for (const auto& [name, labels] : corpus) {
      auto field = [&name = name, &labels = labels](absl::string_view first, const std::string& rest) {
        if (first == "labels") return lazyblob::containerd::LabelOf(labels, rest);
        return first == "name" ? std::optional<absl::string_view>(name) : std::nullopt;
      };
      if (filter.ok() && filter->Matches(field)) absl::StrAppend(&line, " ", name);
    }
    std::cout << (line.empty() ? "" : line.substr(1)) << "\n";
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "serve") == 0) return Serve(argv[2]);
  if (argc == 2 && strcmp(argv[1], "match") == 0) return Match();
  fprintf(stderr, "usage: snapshotter_judged serve DIR | match\n");
  return 2;
}

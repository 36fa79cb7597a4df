#include "daemon/report.h"

#include <gtest/gtest.h>

#include <sstream>

namespace lazyblob::daemon {
namespace {

control::v1::MountStatus Example() {
  control::v1::MountStatus mount;
  mount.set_reference("localhost:5000/a:b");
  mount.set_directory("/mnt");
  mount.set_mode("erofs");
  auto* layer = mount.add_layers();
  layer->set_digest("sha256:" + std::string(64, 'a'));
  layer->set_format("estargz");
  layer->set_mode("erofs");
  layer->set_size(1000);
  layer->set_fetched_bytes(300);
  layer->set_served_bytes(200);
  layer->set_lazy(true);
  (*layer->mutable_fetched_by_cause())["demand"] = 300;
  return mount;
}

TEST(ReportTest, TheKeysOfALayerAreStable) {
  nlohmann::json layer = ToJson(Example())["layers"][0];
  EXPECT_EQ(layer["digest"], "sha256:" + std::string(64, 'a'));
  EXPECT_EQ(layer["format"], "estargz");
  EXPECT_EQ(layer["mode"], "erofs");
  EXPECT_EQ(layer["size"], 1000);
  EXPECT_EQ(layer["fetched_bytes"], 300);
  EXPECT_EQ(layer["fetched_by_cause"]["demand"], 300);
  EXPECT_EQ(layer["served_bytes"], 200);
  EXPECT_EQ(layer["lazy"], true);
  EXPECT_EQ(layer["reason"], "");
}

TEST(ReportTest, StatusListsALayerOfTwoMountsOnce) {
  control::v1::StatusResponse status;
  *status.add_mounts() = Example();
  *status.add_mounts() = Example();
  nlohmann::json json = ToJson(status);
  EXPECT_EQ(json["mounts"].size(), 2u);
  EXPECT_EQ(json["layers"].size(), 1u);
}

TEST(ReportTest, SnapshotsAndWhatIsNotLazyAreTold) {
  control::v1::StatusResponse status;
  *status.add_mounts() = Example();
  *status.add_snapshot_layers() = Example().layers(0);
  for (int times : {2, 3}) {
    auto* layer = status.add_not_lazy();
    layer->set_layer("sha256:" + std::string(64, 'b'));
    layer->set_reference("localhost:5000/c:d");
    layer->set_reason("no-index");
    layer->set_detail("left to the client");
    layer->set_times(static_cast<uint64_t>(times));
  }
  nlohmann::json json = ToJson(status);
  EXPECT_EQ(json["layers"].size(), 1u);
  EXPECT_EQ(json["snapshot_layers"].size(), 1u);
  EXPECT_EQ(json["not_lazy"][0]["reason"], "no-index");
  EXPECT_EQ(json["not_lazy_reasons"]["no-index"], 5);
  std::ostringstream out;
  PrintSnapshots(status, out);
  EXPECT_NE(out.str().find("lazy layers of snapshots\n  sha256:aaaaaaaaaaaa"), std::string::npos);
  EXPECT_NE(out.str().find("no-index, 2 times: localhost:5000/c:d\n    left to the client"),
            std::string::npos);
  std::ostringstream nothing;
  PrintSnapshots(control::v1::StatusResponse(), nothing);
  EXPECT_EQ(nothing.str(), "");
}

TEST(ReportTest, WhatAScrubHasFoundIsTold) {
  control::v1::StatusResponse status;
  std::ostringstream out;
  PrintScrub(status, out);
  EXPECT_EQ(out.str(), "");
  status.mutable_scrub()->set_ended(1700000000);
  status.mutable_scrub()->set_chunks(7);
  status.mutable_scrub()->set_bytes(28672);
  PrintScrub(status, out);
  EXPECT_EQ(out.str(), "") << "nothing to worry about";
  status.mutable_scrub()->set_running(true);
  status.mutable_scrub()->set_rotten(2);
  PrintScrub(status, out);
  EXPECT_NE(out.str().find("compared with its digests: 7 chunks"), std::string::npos) << out.str();
  EXPECT_NE(out.str().find("2 cached chunks were found rotten"), std::string::npos) << out.str();
  const nlohmann::json json = ToJson(status)["scrub"];
  EXPECT_EQ(json["ended"], 1700000000);
  EXPECT_EQ(json["bytes"], 28672);
  EXPECT_EQ(json["rotten"], 2);
}

TEST(ReportTest, ProgressStyles) {
  using Style = ProgressPrinter::Style;
  EXPECT_EQ(ProgressPrinter::ParseStyle("auto", true), Style::kTerminal);
  EXPECT_EQ(ProgressPrinter::ParseStyle("auto", false), Style::kNone);
  EXPECT_EQ(ProgressPrinter::ParseStyle("plain", true), Style::kPlain);
  EXPECT_EQ(ProgressPrinter::ParseStyle("json", true), Style::kJson);
  EXPECT_EQ(ProgressPrinter::ParseStyle("none", true), Style::kNone);

  control::v1::MountEvent::LayerProgress half;
  half.set_digest("sha256:aa");
  half.set_received(500'000);
  half.set_size(1'000'000);
  auto whole = half;
  whole.set_received(1'000'000);

  std::ostringstream plain;
  ProgressPrinter plain_printer(Style::kPlain, plain);
  plain_printer.Update(half);
  EXPECT_EQ(plain.str(), "");
  plain_printer.Update(whole);
  plain_printer.Update(whole);
  EXPECT_EQ(plain.str(), "sha256:aa 1.0 MB received\n");

  std::ostringstream json;
  ProgressPrinter(Style::kJson, json).Update(half);
  EXPECT_EQ(nlohmann::json::parse(json.str())["received"], 500'000);

  std::ostringstream terminal;
  ProgressPrinter terminal_printer(Style::kTerminal, terminal);
  terminal_printer.Update(half);
  terminal_printer.Finish();
  EXPECT_NE(terminal.str().find("0.5 MB of 1.0 MB, 0 of 1 layers"), std::string::npos) << terminal.str();
}

TEST(ReportTest, TerminalHasABarPerLayerThatIsFetched) {
  std::ostringstream terminal;
  ProgressPrinter printer(ProgressPrinter::Style::kTerminal, terminal);
  control::v1::MountEvent::LayerProgress layer;
  layer.set_size(1'000'000);
  for (const char* digest : {"sha256:bb", "sha256:aa"}) {
    layer.set_digest(digest);
    layer.set_received(1'000'000);
    printer.Update(layer);  // complete: drawn whatever the time
  }
  EXPECT_NE(terminal.str().find("2.0 MB of 2.0 MB, 2 of 2 layers\n"), std::string::npos) << terminal.str();
  EXPECT_EQ(terminal.str().find(" ["), std::string::npos) << "no bar for what is complete";

  std::ostringstream half;
  ProgressPrinter first(ProgressPrinter::Style::kTerminal, half);
  layer.set_received(250'000);
  first.Update(layer);
  EXPECT_EQ(half.str(),
            "sha256:aa [#####...............] 0.2 MB of 1.0 MB\n0.2 MB of 1.0 MB, 0 of 1 layers\n");
  first.Finish();
  EXPECT_TRUE(half.str().ends_with("\033[2A\033[J")) << "both lines are taken away";
  first.Finish();
  EXPECT_EQ(half.str().find("\033["), half.str().rfind("\033[2A")) << "once";
}

}  // namespace
}  // namespace lazyblob::daemon

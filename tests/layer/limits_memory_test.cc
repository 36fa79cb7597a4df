// What documents at their limits cost in memory: each is read in a process of its own, whose peak is looked
// at. The bounds are those of docs/SECURITY.md.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fcntl.h>

#include <cstdio>
#include <functional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "layer/internal/toc.h"
#include "oci/manifest.h"
#include "tests/support/layer_maker.h"
#include "tests/support/sanitizers.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::layer {
namespace {

// Red zones, and what is freed is kept for a while.
constexpr uint64_t kOverhead = support::kSanitized ? 8 : 1;

uint64_t StatusBytes(absl::string_view field) {
  const std::string status = base::ReadFile("/proc/self/status", 1 << 16).value_or("");
  for (absl::string_view line : absl::StrSplit(status, '\n')) {
    uint64_t kib = 0;
    if (absl::ConsumePrefix(&line, field) && absl::SimpleAtoi(absl::StripSuffix(line, " kB"), &kib)) {
      return kib << 10;
    }
  }
  return 0;
}

// By how much `work` made the process grow at most; 0 when it could not be seen.
uint64_t PeakOf(const std::function<void()>& work) {
  int ends[2];
  if (pipe(ends) != 0) return 0;
  const pid_t pid = fork();
  if (pid == 0) {
    const auto reset = base::OpenFile("/proc/self/clear_refs", O_WRONLY);
    bool seen = reset.ok() && write(reset->get(), "5", 1) == 1;  // VmHWM becomes VmRSS
    const uint64_t before = StatusBytes("VmRSS:");
    work();
    const uint64_t grown = StatusBytes("VmHWM:") - before;
    seen = seen && before != 0 && write(ends[1], &grown, sizeof grown) == sizeof grown;
    _exit(seen ? 0 : 1);
  }
  close(ends[1]);
  uint64_t grown = 0;
  const bool read_all = read(ends[0], &grown, sizeof grown) == sizeof grown;
  close(ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  return read_all && status == 0 ? grown : 0;
}

void Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  _exit(2);
}

void ExpectPeak(const char* what, uint64_t at_least, uint64_t at_most, const std::function<void()>& work) {
  const uint64_t peak = PeakOf(work);
  std::printf("%s: %.1f MiB\n", what, static_cast<double>(peak) / (1 << 20));
  EXPECT_GE(peak, at_least) << what << ": the measure sees nothing";
  EXPECT_LE(peak, at_most * kOverhead) << what;
}

// A document of `bytes` with as many values as one may have (base/json.h).
std::string Full(absl::string_view start, absl::string_view item, uint64_t bytes) {
  const bool brackets = item[0] == '[' || item[0] == '{';
  std::string text = absl::StrCat(start, "\"values\":[", item);
  for (uint64_t parts = 8; parts < bytes / 8 && text.size() < bytes - 64; parts += brackets ? 2 : 1) {
    absl::StrAppend(&text, ",", item);
  }
  absl::StrAppend(&text, "],\"rest\":\"");
  if (text.size() + 2 < bytes) text.append(bytes - text.size() - 2, 'x');
  return text + "\"}";
}

TEST(LimitsMemoryTest, ManifestsAndConfigs) {
  const std::string start = R"({"schemaVersion":2,)";
  for (const char* item : {"[]", "{}", "\"\"", "0"}) {
    const std::string manifest = Full(start, item, oci::kMaxManifestBytes);
    EXPECT_EQ(manifest.size(), oci::kMaxManifestBytes);
    ExpectPeak(absl::StrCat("a manifest of 4 MiB of ", item).c_str(), 8 << 20, 96 << 20, [&] {
      const auto parsed = oci::ParseManifestOrIndex(manifest, std::nullopt, "");
      if (absl::StrContains(parsed.status().message(), "JSON")) Fail(parsed.status());  // not even looked at
    });
  }
  const std::string config = Full("{", "{}", oci::kMaxConfigBytes);
  ExpectPeak("a config of 8 MiB of {}", 16 << 20, 192 << 20, [&] {
    const auto parsed = oci::ParseImageConfig(config, base::Digest::Of(config));
    if (absl::StrContains(parsed.status().message(), "JSON")) Fail(parsed.status());
  });
}

// A table is read as a stream: what it costs are its entries.
TEST(LimitsMemoryTest, TablesOfContents) {
  constexpr uint64_t kEntries = 200'000;
  const std::string digest = base::Digest::Of(absl::string_view("x")).ToString();
  internal::Toc toc;
  toc.payload_end = uint64_t{1} << 30;
  toc.json = "{\"version\":1,\"entries\":[";
  for (uint64_t i = 0; i < kEntries; ++i) {
    absl::StrAppend(&toc.json, i == 0 ? "" : ",", R"({"name":"d)", i % 1000, "/f", i,
                    R"(","type":"reg","size":4096,"mode":420,"modtime":"2020-01-01T00:00:00Z","offset":)",
                    i * 64 + 512, R"(,"digest":")", digest, R"(","chunkDigest":")", digest, R"("})");
  }
  toc.json += "]}";
  oci::Descriptor descriptor;
  descriptor.size = (uint64_t{1} << 30) + 1000;
  ExpectPeak("a table of 200000 files", kEntries * 100, kEntries * 1024, [&] {
    const auto built = internal::BuildTocLayer(Format::kEstargz, descriptor, toc, BuildLimits());
    if (!built.ok()) Fail(built.status());
  });
}

// However much comes out of a layer, it passes through.
TEST(LimitsMemoryTest, BombsAreStreamed) {
  const std::string tar = support::MakeTar({support::File("zeros", std::string(96 << 20, '\0'))});
  support::TempDir directory;
  for (const auto compression : {oci::Compression::kGzip, oci::Compression::kZstd}) {
    const support::Layer layer = support::MakeLayer(tar, compression);
    ExpectPeak("a layer of 96 MiB of zeros", 1, 48 << 20, [&] {
      const auto none = [](uint64_t, absl::Span<const uint8_t>) { return absl::OkStatus(); };
      const auto format = compression == oci::Compression::kGzip ? Format::kTarGzip : Format::kTarZstd;
      BuildLimits limits;
      limits.max_ratio = 1 << 20;
      auto indexer = StreamIndexer::Create(format, layer.descriptor, layer.diff_id, limits);
      const absl::Span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(layer.blob.data()),
                                            layer.blob.size());
      if (!indexer.ok()) Fail(indexer.status());
      if (absl::Status fed = (*indexer)->Feed(bytes, none); !fed.ok()) Fail(fed);
      if (absl::Status done = (*indexer)->Finish(directory.path(), none); !done.ok()) Fail(done);
    });
  }
}

}  // namespace
}  // namespace lazyblob::layer

#include <sys/utsname.h>

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "oci/manifest.h"

namespace lazyblob::oci {
namespace {

// One spelling for what different tools write differently. An empty variant is the baseline of its
// architecture.
Platform Normalize(Platform platform) {
  platform.os = absl::AsciiStrToLower(platform.os);
  platform.architecture = absl::AsciiStrToLower(platform.architecture);
  platform.variant = absl::AsciiStrToLower(platform.variant);
  std::string& architecture = platform.architecture;
  std::string& variant = platform.variant;
  if (architecture == "x86_64" || architecture == "x86-64") architecture = "amd64";
  if (architecture == "aarch64") architecture = "arm64";
  if (architecture == "i386" || architecture == "i686") architecture = "386";
  if (architecture == "armhf") {
    architecture = "arm";
    variant = "v7";
  }
  if (architecture == "armel") {
    architecture = "arm";
    variant = "v6";
  }
  if (!variant.empty() && absl::ascii_isdigit(static_cast<unsigned char>(variant[0])))
    variant = absl::StrCat("v", variant);
  if (architecture == "arm64" && variant == "v8") variant.clear();
  if (architecture == "amd64" && variant == "v1") variant.clear();
  if (architecture == "arm" && variant.empty()) variant = "v7";
  return platform;
}

// "v7" -> 7; the baseline of an architecture for an empty variant; -1 for variants that are not numbers.
int VariantLevel(const Platform& platform) {
  if (platform.variant.empty()) {
    if (platform.architecture == "arm64") return 8;
    return platform.architecture == "amd64" ? 1 : 0;
  }
  absl::string_view number = platform.variant;
  int level = 0;
  if (!absl::ConsumePrefix(&number, "v") || !absl::SimpleAtoi(number.substr(0, number.find('.')), &level))
    return -1;
  return level;
}

// How well a machine that is `wanted` runs `offered`: higher is better, negative is not at all.
int Fitness(const Platform& offered, const Platform& wanted) {
  if (offered.os != wanted.os || offered.architecture != wanted.architecture) return -1;
  if (offered.variant == wanted.variant) return 1 << 20;
  bool ordered =
      wanted.architecture == "arm" || wanted.architecture == "arm64" || wanted.architecture == "amd64";
  int offered_level = VariantLevel(offered);
  int wanted_level = VariantLevel(wanted);
  if (!ordered || offered_level < 0 || wanted_level < 0 || offered_level > wanted_level) return -1;
  return offered_level;
}

}  // namespace

Platform HostPlatform() {
  Platform platform;
  platform.os = "linux";
  utsname name{};
  uname(&name);
  absl::string_view machine = name.machine;
  if (machine == "armv7l" || machine == "armv8l") {
    platform.architecture = "arm";
    platform.variant = "v7";
  } else if (machine == "armv6l") {
    platform.architecture = "arm";
    platform.variant = "v6";
  } else {
    platform.architecture = std::string(machine);
  }
  return Normalize(platform);
}

absl::StatusOr<Platform> ParsePlatform(absl::string_view text) {
  std::vector<std::string> parts = absl::StrSplit(text, '/');
  bool fine = parts.size() == 2 || parts.size() == 3;
  for (const std::string& part : parts) {
    fine = fine && !part.empty() && part.size() <= 64;
    for (char c : part) {
      fine = fine && (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.');
    }
  }
  if (!fine) {
    return absl::InvalidArgumentError(absl::StrCat("platform \"", base::Printable(text.substr(0, 120)),
                                                   "\": want os/architecture[/variant]"));
  }
  Platform platform;
  platform.os = parts[0];
  platform.architecture = parts[1];
  if (parts.size() == 3) platform.variant = parts[2];
  return Normalize(platform);
}

absl::StatusOr<Descriptor> SelectPlatform(const Index& index, const Platform& wanted) {
  Platform target = Normalize(wanted);
  const Descriptor* best = nullptr;
  int best_fitness = -1;
  std::vector<std::string> offered;
  for (const Descriptor& descriptor : index.manifests) {
    if (!descriptor.platform) continue;
    int fitness = Fitness(Normalize(*descriptor.platform), target);
    if (fitness > best_fitness) {
      best = &descriptor;
      best_fitness = fitness;
    }
    if (offered.size() < 20)
      offered.push_back(base::Printable(descriptor.platform->ToString().substr(0, 60)));
  }
  if (best != nullptr) return *best;
  // An index of one image that does not say what it is for: its config will tell.
  if (index.manifests.size() == 1 && !index.manifests[0].platform) return index.manifests[0];
  return absl::NotFoundError(
      absl::StrCat("no image for platform ", target.ToString(), "; the index has ",
                   offered.empty() ? "none with a platform" : absl::StrJoin(offered, ", ")));
}

}  // namespace lazyblob::oci

#pragma once

// Names of chain images in a layer's directory: `meta-<number>-<chain>.erofs`. The number is what the FUSE
// tree puts into node ids (a file called so is never renamed or replaced), the chain is what finds the image
// again.

#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace lazyblob::layer {

inline constexpr int kMaxChainImages = 255;

struct ChainImageName {
  int number = 0;     // 1 … kMaxChainImages
  std::string chain;  // names the layers below
};

inline std::string ChainImageFile(const ChainImageName& name) {
  return absl::StrCat("meta-", name.number, "-", name.chain, ".erofs");
}

// nullopt: another file.
inline std::optional<ChainImageName> ParseChainImageName(absl::string_view file) {
  if (!absl::ConsumePrefix(&file, "meta-") || !absl::ConsumeSuffix(&file, ".erofs")) return std::nullopt;
  const size_t dash = file.find('-');
  ChainImageName name;
  if (dash == absl::string_view::npos || !absl::SimpleAtoi(file.substr(0, dash), &name.number))
    return std::nullopt;
  if (name.number < 1 || name.number > kMaxChainImages || dash + 1 == file.size()) return std::nullopt;
  name.chain = std::string(file.substr(dash + 1));
  return name;
}

}  // namespace lazyblob::layer

#include "fuse/mounter.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::fuse {

absl::string_view ModeName(Mode mode) {
  switch (mode) {
    case Mode::kErofs:
      return "erofs";
    case Mode::kLoop:
      return "loop";
    case Mode::kFuse:
      return "fuse";
  }
  return "unknown";
}

absl::StatusOr<std::optional<Mode>> ParseMode(absl::string_view text) {
  if (text == "auto") return std::optional<Mode>();
  for (Mode mode : {Mode::kErofs, Mode::kLoop, Mode::kFuse}) {
    if (text == ModeName(mode)) return std::optional<Mode>(mode);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown mode \"", base::Printable(text), "\"; use auto, erofs, loop or fuse"));
}

std::string LayerName(const base::Digest& layer) {
  std::string name = layer.ToString();
  name[name.find(':')] = '-';
  return name;
}

}  // namespace lazyblob::fuse

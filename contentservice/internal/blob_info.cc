#include "contentservice/internal/blob_info.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status.h"

namespace lazyblob::contentservice {

absl::Status NoSuchBlob(const base::Digest& digest) {
  return absl::NotFoundError(absl::StrCat("content ", digest.ToString(), ": not found"));
}

absl::Status IsThere(const base::Digest& digest) {
  return absl::AlreadyExistsError(absl::StrCat("content ", digest.ToString(), ": already exists"));
}

absl::StatusOr<Labels> Changed(const Labels& now, const Labels& given,
                               const std::vector<std::string>& paths) {
  bool all = paths.empty();
  Labels labels = now;
  for (const std::string& path : paths) {
    absl::string_view key = path;
    if (path == "labels") {
      all = true;
    } else if (absl::ConsumePrefix(&key, "labels.")) {
      auto value = given.find(std::string(key));
      labels[std::string(key)] = value == given.end() ? "" : value->second;
    } else {
      return absl::InvalidArgumentError(absl::StrCat("field \"", base::Printable(path.substr(0, 256)),
                                                     "\" of content cannot be updated; labels can"));
    }
  }
  if (all) labels = given;
  std::erase_if(labels, [](const auto& label) { return label.second.empty(); });
  return labels;
}

bool Matches(const containerd::Filter& filter, const Info& info) {
  const std::string digest = info.digest.ToString(), size = absl::StrCat(info.size);
  return filter.Matches(
      [&](absl::string_view name, const std::string& rest) -> std::optional<absl::string_view> {
        if (name == "digest") return digest;
        if (name == "size") return size;
        if (name == "labels") return containerd::LabelOf(info.labels, rest);
        return std::nullopt;
      });
}

}  // namespace lazyblob::contentservice

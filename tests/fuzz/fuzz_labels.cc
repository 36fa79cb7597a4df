// Labels of a Prepare, as lines "key=value": a claim names a layer, a reference that parses and a name; an id
// map that parses prints what parses to the same map.

#include <cstdint>
#include <cstdlib>

#include "absl/strings/str_split.h"
#include "oci/reference.h"
#include "snapshotter/idmap.h"
#include "snapshotter/labels.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace sn = lazyblob::snapshotter;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  sn::Labels labels;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<std::string, std::string> label = absl::StrSplit(line, absl::MaxSplits('=', 1));
    labels.insert(label);
  }
  sn::CheckLabels(labels).IgnoreError();
  sn::WhyNoClaim(labels);
  for (const std::string& url : sn::ClaimedUrls(labels)) {
    if (!sn::IsAllowedUrl(url, {"cdn.example"})) continue;
    if (url.find("https://") != 0 || url.find('@') < url.find('/', 8)) abort();
  }
  auto claim = sn::ParseClaim(labels);
  if (claim.ok() && claim->has_value()) {
    const sn::LayerClaim& layer = **claim;
    if (layer.chain.empty() || layer.layer.empty() || !lazyblob::oci::ParseReference(layer.reference).ok())
      abort();
  }
  auto mapping = sn::ParseIdMapping(labels);
  if (mapping.ok() && mapping->has_value()) {
    auto again = sn::ParseIdMapping({{sn::kLabelUidMapping, sn::FormatIdRanges((*mapping)->uids)},
                                     {sn::kLabelGidMapping, sn::FormatIdRanges((*mapping)->gids)}});
    if (!again.ok() || *again != *mapping) abort();
  }
  return 0;
}

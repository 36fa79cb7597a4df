#pragma once

// eStargz and zstd:chunked blobs for tests, made byte by byte as stargz-snapshotter and containers/storage
// make them, and every lie they can tell.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "layer/layer_index.h"
#include "oci/descriptor.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::layer {

struct TocBlob {
  std::string blob;
  oci::Descriptor layer;
  nlohmann::json toc;
  std::string external_toc;
  uint64_t toc_offset = 0;  // of the gzip member, or of the compressed TOC in its skippable frame
};

struct TocOptions {
  Format format = Format::kEstargz;
  uint64_t chunk_size = 4 << 20;
  bool legacy_footer = false;
  bool external_toc = false;      // a footer that names none; the TOC blob is apart
  bool github_prefix = true;      // of zstd:chunked annotations
  bool footer_only = false;       // zstd:chunked without a position annotation
  bool stargz_annotation = true;  // in zstd:chunked: the digest of the JSON beside the other
  uint64_t small_files = 0;  // files up to this size share a member with what is before them (innerOffset)
  // Changes what the TOC says before it is written (and its digest made).
  std::function<void(nlohmann::json&)> edit;
  std::function<void(std::string&)> edit_text;
};

TocBlob MakeTocBlob(const std::vector<support::TarMember>& members, const TocOptions& options = {});

}  // namespace lazyblob::layer

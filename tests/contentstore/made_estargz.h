#pragma once

// A small writer of eStargz layers.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/digest.h"
#include "tests/support/layer_maker.h"

namespace lazyblob::contentstore {

// A gzip member that holds nothing but the eStargz footer's extra field (estargz.md, "Footer").
inline std::string Footer(uint64_t toc_offset) {
  std::string footer("\x1f\x8b\x08\x04\0\0\0\0\0\xff", 10);
  footer += std::string("\x1a\0SG\x16\0", 6);
  footer += absl::StrFormat("%016xSTARGZ", toc_offset);
  footer += std::string("\x01\0\0\xff\xff", 5);
  footer += std::string(8, '\0');
  return footer;
}

struct Estargz {
  support::Layer layer;
  std::string data;                   // the data area
  std::vector<uint64_t> blob_offset;  // of each file's first chunk
  std::vector<uint64_t> data_offset;
  std::string external_toc;
};

// The footer of a blob whose table lies in another image.
inline std::string ExternalFooter() {
  std::string footer("\x1f\x8b\x08\x04\0\0\0\0\0\xff", 10);
  footer += std::string("\x15\0SG\x11\0", 6);
  footer += "STARGZEXTERNALTOC";
  footer += std::string("\x01\0\0\xff\xff", 5);
  footer += std::string(8, '\0');
  return footer;
}

// `files` of contents, cut into chunks of `chunk` bytes.
inline Estargz MakeEstargz(const std::vector<std::string>& files, size_t chunk, bool external = false) {
  Estargz made;
  std::string blob;
  std::string tar;
  nlohmann::json entries = nlohmann::json::array();
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string name = absl::StrCat("file", i);
    const std::string& contents = files[i];
    const support::TarMember member = support::File(name, contents);
    const std::string header = support::TarHeader(member, contents.size());
    tar += header;
    blob += support::Gzip(header);
    made.blob_offset.push_back(blob.size());
    made.data_offset.push_back(made.data.size());
    for (size_t at = 0; at < contents.size(); at += chunk) {
      std::string part = contents.substr(at, chunk);
      nlohmann::json entry = {{"name", name},
                              {"type", at == 0 ? "reg" : "chunk"},
                              {"offset", blob.size()},
                              {"chunkDigest", base::Digest::Of(part).ToString()}};
      if (at == 0) {
        entry["size"] = contents.size();
        entry["mode"] = 0644;
        entry["modtime"] = "2020-01-02T03:04:05Z";
        entry["digest"] = base::Digest::Of(contents).ToString();
      } else {
        entry["chunkOffset"] = at;
      }
      if (contents.size() > chunk) entry["chunkSize"] = part.size();
      tar += part;
      if (at + chunk >= contents.size()) {
        const std::string padding((512 - contents.size() % 512) % 512, '\0');
        tar += padding;
        part += padding;
      }
      entries.push_back(entry);
      blob += support::Gzip(part);
    }
    made.data += contents;
    made.data.resize((made.data.size() + 4095) / 4096 * 4096, '\0');
  }
  const std::string toc = nlohmann::json{{"version", 1}, {"entries", entries}}.dump();
  const uint64_t toc_offset = blob.size();
  const std::string toc_tar = support::MakeTar({support::File("stargz.index.json", toc)});
  if (external) {
    made.external_toc = support::Gzip(toc_tar);
    blob += ExternalFooter();
  } else {
    blob += support::Gzip(toc_tar);
    tar += toc_tar;
    blob += Footer(toc_offset);
  }
  made.layer =
      support::MakeLayerOf(tar, blob, oci::Compression::kGzip,
                           {{"containerd.io/snapshot/stargz/toc.digest", base::Digest::Of(toc).ToString()}});
  return made;
}

}  // namespace lazyblob::contentstore

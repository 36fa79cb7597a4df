// make_layer SOURCE COMPRESSION BLOB [OPTION=VALUE...]
//
// Makes a layer of SOURCE (dir:…, tar:…, or upper:PATH, an overlay's upper directory) in the file BLOB and
// prints its descriptor and diffID as JSON. Options: level, chunk, epoch, root=1, docker=1, first=PATH (may
// be repeated), landmark=1.

#include <fcntl.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "exporter/layer_writer.h"

namespace lazyblob::exporter {
namespace {

struct Arguments {
  Source source;
  LayerOptions layer;
  TreeOptions tree;
  bool docker = false;
};

absl::Status ParseOption(absl::string_view text, Arguments* arguments) {
  const size_t equals = text.find('=');
  const absl::string_view key = text.substr(0, equals);
  const absl::string_view value = equals == absl::string_view::npos ? "" : text.substr(equals + 1);
  int64_t number = 0;
  const bool is_number = absl::SimpleAtoi(value, &number);
  if (key == "first") {
    arguments->tree.first.emplace_back(value);
  } else if (!is_number) {
    return absl::InvalidArgumentError(absl::StrCat("option ", text));
  } else if (key == "level") {
    arguments->layer.level = static_cast<int>(number);
  } else if (key == "chunk") {
    arguments->layer.chunk_size = static_cast<uint64_t>(number);
  } else if (key == "epoch") {
    arguments->tree.latest_mtime = number;
  } else if (key == "root") {
    arguments->tree.root_entry = number != 0;
  } else if (key == "docker") {
    arguments->docker = number != 0;
  } else if (key == "landmark") {
    arguments->tree.landmark = arguments->tree.first.empty() ? Landmark::kNoPrefetch : Landmark::kPrefetch;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("option ", text));
  }
  return absl::OkStatus();
}

absl::Status Run(int argc, char** argv) {
  Arguments arguments;
  const absl::string_view source = argv[1];
  if (source.substr(0, 6) == "upper:") {
    arguments.source.kind = SourceKind::kOverlayUpper;
    arguments.source.path = std::string(source.substr(6));
  } else {
    ASSIGN_OR_RETURN(arguments.source, ParseSource(source));
  }
  ASSIGN_OR_RETURN(arguments.layer.compression, ParseLayerCompression(argv[2]));
  for (int i = 4; i < argc; ++i) RETURN_IF_ERROR(ParseOption(argv[i], &arguments));
  ASSIGN_OR_RETURN(const base::UniqueFd blob, base::OpenFile(argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0644));
  ASSIGN_OR_RETURN(const LayerResult result, WriteLayer(arguments.source, arguments.tree, arguments.layer,
                                                        [&](absl::Span<const uint8_t> bytes) {
                                                          return base::WriteFull(blob.get(), bytes);
                                                        }));
  nlohmann::json json = {{"mediaType", result.MediaType(arguments.docker)},
                         {"digest", result.digest.ToString()},
                         {"size", result.size},
                         {"annotations", result.annotations},
                         {"diffID", result.diff_id.ToString()},
                         {"tarSize", result.tar_size}};
  std::cout << json.dump() << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace lazyblob::exporter

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: make_layer SOURCE COMPRESSION BLOB [OPTION=VALUE...]\n";
    return 2;
  }
  const absl::Status status = lazyblob::exporter::Run(argc, argv);
  if (!status.ok()) std::cerr << "make_layer: " << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

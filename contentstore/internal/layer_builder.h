#pragma once

// Makes the index of a layer, and its data where asked for, in the directory `build` below the layer's; what
// is whole and durable is then moved into place, `index` last. A crash leaves a `build` directory, which the
// next run removes.

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "contentstore/internal/blob_spools.h"
#include "contentstore/internal/layer.h"
#include "contentstore/internal/shared_task.h"

namespace lazyblob::contentstore {

struct LayerBuilderOptions {
  layer::BuildLimits limits;
  std::function<void(absl::string_view)> log;  // one line; never empty
  BlobSpools* spools = nullptr;                // what is streamed whole goes by it
  std::shared_ptr<CacheBudget> budget;
};

// Opens index and cache in the layer's directory. NotFound: there is no index. DataLoss: it is damaged.
absl::StatusOr<std::unique_ptr<LayerBody>> OpenLayerBody(const std::string& directory, bool verified,
                                                         std::shared_ptr<CacheBudget> budget);

// One build; used by one thread. At most one at a time per layer.
class LayerBuilder {
 public:
  LayerBuilder(const LayerBuilderOptions& options, Layer& layer, SharedTask& task)
      : options_(options), layer_(layer), task_(task), directory_(layer.directory() + "/build") {}

  // Indexes a layer that has no index and installs what was made. The layer's not-lazy reason is set; a layer
  // whose bytes are wrong, whoever gives them, is quarantined. The caller writes the record.
  absl::Status BuildIndex(bool keep_data);
  // The part of it that streams nothing. False: there is no usable table of contents, the layer is plain.
  absl::StatusOr<bool> IndexFromToc();
  // Streams an indexed layer again, with data: for layers without random access.
  absl::Status BuildData();

 private:
  // False: there is no usable table of contents, the layer is plain.
  absl::StatusOr<bool> TryTableOfContents(layer::Format format);
  absl::StatusOr<std::string> FetchExternalToc(const ExternalTocSource& source);
  absl::Status StreamPlain(bool keep_data);
  // One pass. DataLoss and InvalidArgument: the bytes, or who gave them. `wrong`: all bytes were
  // there, and size, digest or diffID are others.
  absl::Status StreamOnce(layer::Format format, bool keep_data, size_t first_source, bool* wrong);
  absl::Status StartDirectory();
  absl::Status Install(bool with_data);
  void GiveUpData(const absl::Status& status);

  const LayerBuilderOptions& options_;
  Layer& layer_;
  SharedTask& task_;
  const std::string directory_;
  base::UniqueFd data_;  // while the data is kept
  CacheBudget::Charge charge_{options_.budget};
  std::string gone_wrong_;  // why the data is not kept although it was to be
};

}  // namespace lazyblob::contentstore

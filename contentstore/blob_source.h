#pragma once

// Where the bytes of a blob come from: a registry repository, an image layout, a local file. A source knows
// how to read, not what is right: whoever reads verifies.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "oci/descriptor.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::contentstore {

// Thread-safe. Read blocks.
class BlobSource {
 public:
  virtual ~BlobSource() = default;
  // One line that creates the same source again (see SourceFactory) and names it in status and errors:
  // "registry:localhost:5000/debian", "layout:/path", "file:/path", "url:https://cdn.example/layer". Holds no
  // secrets.
  virtual std::string name() const = 0;
  // Streams exactly `range` of `blob` into `sink`, in order, or fails; bytes before a failure may have been
  // given.
  virtual absl::Status Read(const oci::Descriptor& blob, registry::ByteRange range, registry::BodySink sink,
                            const registry::CallContext& context) = 0;
  // For sizing requests; zeros: unknown.
  virtual registry::Client::LinkEstimate link() const { return {}; }
  // What its answers hang on, a registry's host: sources of the same one are slow, or dead, together.
  virtual std::string host() const { return name(); }
  // Local sources cost nothing: their bytes do not count as fetched.
  virtual bool local() const { return false; }
};

// `client` must outlive the source.
std::shared_ptr<BlobSource> MakeRegistrySource(registry::Client* client, const oci::Reference& repository);
// The blob alone, as a file.
std::shared_ptr<BlobSource> MakeFileSource(const std::string& path);
std::shared_ptr<BlobSource> MakeLayoutSource(const std::string& directory);
// The blob alone, at an https URL (registry::Client::ReadUrl): never with credentials. The URL becomes the
// name, so it must hold no secret. `client` must outlive the source.
std::shared_ptr<BlobSource> MakeUrlSource(registry::Client* client, const std::string& url);

// Makes a source from its name; how a restarted daemon gets its sources back. NotFound: unknown kind or gone.
using SourceFactory = std::function<absl::StatusOr<std::shared_ptr<BlobSource>>(absl::string_view name)>;

}  // namespace lazyblob::contentstore

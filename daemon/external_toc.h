#pragma once

// Tables of contents that lie in an image of their own ("TOC image"), as stargz-snapshotter's converter puts
// them: beside HOST/NAME:TAG there is HOST/NAME:TAG-esgztoc, whose manifest has for each layer of the first a
// layer that is its TOC and says so by the annotation containerd.io/snapshot/stargz/layer.digest.

#include "contentstore/content_store.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::daemon {

// Where the TOCs of the layers of `image` are fetched from; its manifest is read once for all of them. Null
// for an image that has no tag: nothing leads to its TOC image. `client` outlives what is returned.
// Thread-safe.
contentstore::ExternalTocSource MakeExternalTocSource(registry::Client* client, const oci::Reference& image);

}  // namespace lazyblob::daemon

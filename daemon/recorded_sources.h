#pragma once

// Blob sources by the names they were recorded under, for layers that come back from disk.

#include <string>
#include <vector>

#include "contentstore/blob_source.h"

namespace lazyblob::daemon {

// URLs are sources only while their host is one of `url_hosts` (snapshotter::IsAllowedUrl): NotFound
// otherwise, as for an unknown kind. `client` must outlive the sources.
contentstore::SourceFactory RecordedSources(registry::Client* client, std::vector<std::string> url_hosts);

}  // namespace lazyblob::daemon

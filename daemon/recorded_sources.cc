#include "daemon/recorded_sources.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "oci/reference.h"
#include "snapshotter/labels.h"

namespace lazyblob::daemon {

contentstore::SourceFactory RecordedSources(registry::Client* client, std::vector<std::string> url_hosts) {
  return [client, url_hosts = std::move(url_hosts)](
             absl::string_view name) -> absl::StatusOr<std::shared_ptr<contentstore::BlobSource>> {
    absl::string_view rest = name;
    if (absl::ConsumePrefix(&rest, "registry:")) {
      ASSIGN_OR_RETURN(const oci::Reference repository, oci::ParseReference(rest));
      return contentstore::MakeRegistrySource(client, repository);
    }
    if (absl::ConsumePrefix(&rest, "layout:")) return contentstore::MakeLayoutSource(std::string(rest));
    if (absl::ConsumePrefix(&rest, "url:")) {
      if (snapshotter::IsAllowedUrl(rest, url_hosts)) {
        return contentstore::MakeUrlSource(client, std::string(rest));
      }
      return absl::NotFoundError(absl::StrCat("source ", base::Printable(name),
                                              " is not used: its host is not in snapshotter.url_hosts"));
    }
    return absl::NotFoundError(absl::StrCat("no such kind of source: ", base::Printable(name)));
  };
}

}  // namespace lazyblob::daemon

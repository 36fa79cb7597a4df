#include "contentstore/internal/source_read.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace lazyblob::contentstore {
namespace {

bool Refused(const absl::Status& status) {
  return absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status);
}

}  // namespace

CredentialsList InTurn(const CredentialsList& all, uint64_t turn) {
  CredentialsList result;
  for (const CredentialsPtr& one : all) {
    if (std::find(result.begin(), result.end(), one) == result.end()) result.push_back(one);
  }
  if (result.size() > 1) {
    std::rotate(result.begin(), result.begin() + static_cast<ptrdiff_t>(turn % result.size()), result.end());
  }
  return result;
}

absl::Status WithLivingCredentials(absl::FunctionRef<CredentialsList()> requesters,
                                   absl::FunctionRef<absl::Status(const CredentialsPtr&)> read) {
  CredentialsList tried;
  absl::Status status;
  while (true) {
    CredentialsList living = requesters();
    if (living.empty()) living.push_back(nullptr);
    const auto untried = std::find_if(living.begin(), living.end(), [&](const CredentialsPtr& one) {
      return std::find(tried.begin(), tried.end(), one) == tried.end();
    });
    if (untried == living.end()) return status;
    tried.push_back(*untried);
    status = read(tried.back());
    if (!Refused(status)) return status;
  }
}

absl::Status StreamFromSources(Layer& layer, registry::ByteRange range, registry::BodySink sink,
                               const StreamCaller& caller) {
  const std::vector<std::shared_ptr<BlobSource>> sources = layer.Sources();
  if (sources.empty()) return layer.NoSourceError(caller.cause);
  uint64_t received = 0;
  absl::Status sink_status;
  absl::Status status;
  const auto counted = [&](absl::Span<const uint8_t> bytes) -> absl::Status {
    if (bytes.size() > range.length - received) {
      return absl::DataLossError(absl::StrCat("more bytes of ", layer.descriptor().digest.ToString(),
                                              " arrived than were asked for"));
    }
    received += bytes.size();
    sink_status = sink(bytes);
    return sink_status;
  };
  for (size_t i = 0; i < sources.size(); ++i) {
    BlobSource& source = *sources[(caller.first_source + i) % sources.size()];
    status = WithLivingCredentials(caller.requesters, [&](const CredentialsPtr& credentials) {
      registry::CallContext context;
      context.deadline = caller.deadline;
      context.cancel = caller.cancel;
      context.credentials = credentials;
      context.distrust_mirrors = caller.first_source > 0;
      context.bytes_received = layer.FetchedCounter(source, caller.cause);
      return source.Read(layer.descriptor(), {range.offset + received, range.length - received}, counted,
                         context);
    });
    if (!sink_status.ok()) return sink_status;
    if (status.ok() && received < range.length) {
      status = absl::DataLossError(absl::StrCat(source.name(), " gave ", received, " of ", range.length,
                                                " bytes of ", layer.descriptor().digest.ToString()));
    }
    if (status.ok()) {
      layer.NoteServedBy(source);
      return status;
    }
    if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) return status;
  }
  return status;
}

}  // namespace lazyblob::contentstore

#pragma once

// Reading from the sources of a layer: whose credentials, which source next. Thread-safe (functions).

#include <functional>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "contentstore/internal/layer.h"

namespace lazyblob::contentstore {

using CredentialsPtr = std::shared_ptr<const registry::CredentialsProvider>;
using CredentialsList = std::vector<CredentialsPtr>;

// Those of `all` that differ, beginning with another one each turn.
CredentialsList InTurn(const CredentialsList& all, uint64_t turn);

// Calls `read` with the credentials of one living requester, and as long as the source refuses them with
// those of the next. `requesters` is asked before each attempt: who has left meanwhile is not impersonated.
// An empty list means nobody in particular (null: the client's own credentials).
absl::Status WithLivingCredentials(absl::FunctionRef<CredentialsList()> requesters,
                                   absl::FunctionRef<absl::Status(const CredentialsPtr&)> read);

// What a stream needs to know of those it is for.
struct StreamCaller {
  FetchCause cause = FetchCause::kStream;
  absl::Duration deadline = absl::InfiniteDuration();
  std::shared_ptr<base::CancelToken> cancel;
  std::function<CredentialsList()> requesters;
  size_t first_source = 0;  // where in the list of sources to begin; not 0: bytes were wrong before
};

// Streams `range` of the layer's blob from its sources; where one fails the next goes on at the same byte, so
// `sink` gets every byte once, in order. An error of `sink` ends the stream with that error. ProviderMissing:
// no source.
absl::Status StreamFromSources(Layer& layer, registry::ByteRange range, registry::BodySink sink,
                               const StreamCaller& caller);

}  // namespace lazyblob::contentstore

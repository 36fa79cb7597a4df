// WWW-Authenticate, and the other headers and answers that decide where credentials go.

#include <cstdint>
#include <cstdlib>

#include "registry/internal/headers.h"
#include "registry/internal/token_request.h"
#include "registry/internal/url.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lazyblob::registry::internal;  // NOLINT: the whole program is this function
  absl::string_view text(reinterpret_cast<const char*>(data), size);
  std::vector<Challenge> challenges = ParseChallenges(text);
  if (challenges.size() > 16) abort();
  for (const Challenge& challenge : challenges) {
    if (challenge.scheme.empty() || challenge.parameters.size() > 32) abort();
    absl::StatusOr<Url> realm = Url::Parse(challenge.Get("realm"));
    // What the parser accepts is read the same way again.
    if (realm.ok() && (!Url::Parse(realm->ToString()).ok() || !(*Url::Parse(realm->ToString()) == *realm)))
      abort();
  }
  (void)NextLink(text);
  (void)ParseTokenAnswer(text);
  return 0;
}

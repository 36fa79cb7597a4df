#include "tests/support/test_registry_uploads.h"

#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/support/test_registry.h"

namespace lazyblob::support {
namespace {

using Change = std::function<void(UploadOptions*, AuthOptions*)>;

const std::map<std::string, Change, std::less<>>& Personalities() {
  using Uploads = UploadOptions;
  static const auto* const all = new std::map<std::string, Change, std::less<>>{
      {"distribution", [](Uploads*, AuthOptions*) {}},  // the default is its
      {"distribution-2.8", [](Uploads* u, AuthOptions*) { u->stale_is_gone = true; }},
      {"zot",
       [](Uploads* u, AuthOptions*) {
         u->loses_cut_sessions = true;
         u->checks_state = false;
         u->mounts = Uploads::Mounts::kAnonymous;
       }},
      {"ecr",
       [](Uploads* u, AuthOptions*) {
         u->drops_later_chunks = true;
         u->mounts = Uploads::Mounts::kNever;
       }},
      {"gar",
       [](Uploads* u, AuthOptions*) {
         u->refuse_chunks = 404;
         u->checks_state = false;
       }},
      {"nexus", [](Uploads* u, AuthOptions*) { u->loser_gets_400 = true; }},
      {"no-mount", [](Uploads* u, AuthOptions*) { u->mounts = Uploads::Mounts::kNever; }},
      {"anonymous-mount", [](Uploads* u, AuthOptions*) { u->mounts = Uploads::Mounts::kAnonymous; }},
      {"shared-store", [](Uploads* u, AuthOptions*) { u->shared_store = true; }},
      {"no-chunks", [](Uploads* u, AuthOptions*) { u->refuse_chunks = 405; }},
      {"drops-chunks", [](Uploads* u, AuthOptions*) { u->drops_later_chunks = true; }},
      {"loser-400", [](Uploads* u, AuthOptions*) { u->loser_gets_400 = true; }},
      {"elsewhere", [](Uploads* u, AuthOptions*) { u->locations = Uploads::Locations::kElsewhere; }},
      {"first-scope",
       [](Uploads*, AuthOptions* a) {
         a->kind = AuthOptions::Kind::kBearer;
         a->first_scope_only = true;
       }},
      {"short-tokens",
       [](Uploads*, AuthOptions* a) {
         a->kind = AuthOptions::Kind::kBearer;
         a->token_ttl = absl::Seconds(60);
       }},
  };
  return *all;
}

}  // namespace

absl::Status ApplyPersonality(absl::string_view name, UploadOptions* uploads, AuthOptions* auth) {
  const auto found = Personalities().find(std::string(name));
  if (found == Personalities().end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no personality \"", name, "\"; there are ",
        absl::StrJoin(Personalities(), ", ",
                      [](std::string* out, const auto& entry) { absl::StrAppend(out, entry.first); })));
  }
  found->second(uploads, auth);
  return absl::OkStatus();
}

}  // namespace lazyblob::support

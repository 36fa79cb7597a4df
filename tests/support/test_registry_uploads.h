#pragma once

// How the test registry takes uploads: what registries in the wild differ in. The default keeps everything
// that the specification allows to be kept: bytes of a broken PATCH, sessions, mounts from a named
// repository. Values; thread-safe as such.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "tests/support/gate.h"

namespace lazyblob::support {

struct AuthOptions;

struct UploadOptions {
  // Mounts that are not granted open a session instead (202).
  enum class Mounts { kNever, kFrom, kAnonymous };
  Mounts mounts = Mounts::kFrom;
  bool shared_store = false;        // a blob of one repository is found in all
  int refuse_chunks = 0;            // status that a PATCH gets instead, 404 or 405
  bool drops_later_chunks = false;  // all but the first: 201, and Range does not move
  bool loses_cut_sessions = false;  // a body that breaks off ends its session; else its bytes are kept
  // The state in a Location is good for one request; after that 416 without a Location, and only GET tells.
  bool checks_state = true;
  bool stale_is_gone = false;   // instead of that, 404 to anything, GET too
  bool loser_gets_400 = false;  // a commit of what is there already, or came there meanwhile
  uint64_t min_chunk = 0;       // OCI-Chunk-Min-Length, and a smaller chunk can only be the last
  absl::Duration idle_limit = absl::InfiniteDuration();  // a body without a byte for so long is broken off
  absl::Duration commit_delay = absl::ZeroDuration();
  std::shared_ptr<Gate> commit_gate = {};  // commits wait here, before they look whether the blob is there
  enum class Locations { kRelative, kAbsolute, kElsewhere };  // elsewhere: the second listener
  Locations locations = Locations::kRelative;
  bool checks_children = true;  // manifests whose blobs or manifests are missing are refused
  bool allows_cancel = true;    // else 405
  std::string directory = {};   // where sessions and blobs are kept; empty: in memory
};

// Changes the options to what one kind of registry does: "distribution", "distribution-2.8", "zot", "ecr",
// "gar", "nexus", "no-mount", "anonymous-mount", "shared-store", "no-chunks", "drops-chunks", "loser-400",
// "elsewhere", "first-scope", "short-tokens" (60 s). Several can be applied one after another.
// InvalidArgument names those that there are.
absl::Status ApplyPersonality(absl::string_view name, UploadOptions* uploads, AuthOptions* auth);

}  // namespace lazyblob::support

#pragma once

#include <string>

namespace lazyblob::daemon {

// Notes below the state root that containerd reaches the daemon at `address`. The socket at the address that
// was noted before, if that is another one (the configuration has changed) and nobody listens there, goes.
// What fails is left as it is.
void NoteAddress(const std::string& root, const std::string& address);

}  // namespace lazyblob::daemon

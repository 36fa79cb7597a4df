#pragma once

// Changes to directory trees, and trees as text. For tests only; errors end the program with a message.

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace lazyblob::snapshotter::suite {

// What is done below a root.
using Change = std::function<void(const std::string& root)>;

Change File(std::string path, std::string contents, unsigned mode);  // writes over one that is there
Change Directory(std::string path, unsigned mode);
Change RemoveAll(std::string path);
Change Chown(std::string path, unsigned uid, unsigned gid);
Change Link(std::string from, std::string to);
Change Rename(std::string from, std::string to);
// Sets the time of modification, so that no two layers differ by it.
Change SameTime(std::string path);
Change All(std::vector<Change> changes);

// One line per inode: path, type and mode, owner, size, SHA-256, target of a link, device, and the first path
// of its hard links. The root's own owner and mode are in it. No times: two trees made one after the other
// differ.
std::string TreeOf(const std::string& root);

}  // namespace lazyblob::snapshotter::suite

#pragma once

// Trees as text, for comparing: a map from path ("" is the root) to a line that says everything about the
// inode there. Hard links show as the first path (in order) of their group.

#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "layer/tree.h"

namespace lazyblob::layer {

using TreeText = std::map<std::string, std::string>;

struct TreeTextOptions {
  bool extents = true;  // where data lies; a mounted tree cannot tell
  // The name under which an opaque directory's mark shows among the attributes.
  std::string opaque_xattr = "trusted.overlay.opaque";
};

TreeText DescribeTree(const Tree& tree, const TreeTextOptions& options = {});

// What lstat, readdir, readlink and listxattr say of a directory in the file system.
TreeText DescribeDirectory(const std::string& directory);

// "" when equal, else the first few lines that differ.
std::string Difference(const TreeText& expected, const TreeText& actual);

}  // namespace lazyblob::layer

#pragma once

// The smallest layer that shows what a kernel does with EROFS: one file that is all there, and one whose last
// block is missing from the data file.

#include <string>

#include "absl/status/statusor.h"

namespace lazyblob::fuse::internal {

struct BuiltinImage {
  std::string meta_path;
  std::string data_path;  // one 512-byte block shorter than the image says
  std::string whole;      // contents of the file "whole"
  std::string cut;        // contents of the file "cut", had they been there
};

// Written into `directory`.
absl::StatusOr<BuiltinImage> WriteBuiltinImage(const std::string& directory);

}  // namespace lazyblob::fuse::internal

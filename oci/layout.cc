#include "oci/layout.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::oci {
namespace {

constexpr char kRefName[] = "org.opencontainers.image.ref.name";
constexpr char kContainerdName[] = "io.containerd.image.name";

// Opens a regular file that lies below `directory` whatever links the layout contains.
absl::StatusOr<base::UniqueFd> OpenBelow(int root, const std::string& directory, const std::string& path) {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  long fd = -1;
  do {
    fd = syscall(SYS_openat2, root, path.c_str(), &how, sizeof how);
  } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
  if (fd < 0) return base::ErrnoStatus(errno, absl::StrCat("open ", directory, "/", path));
  base::UniqueFd file(static_cast<int>(fd));
  struct stat st{};
  if (fstat(file.get(), &st) != 0)
    return base::ErrnoStatus(errno, absl::StrCat("stat ", directory, "/", path));
  if (!S_ISREG(st.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(directory, "/", path, ": not a regular file"));
  }
  return file;
}

absl::StatusOr<std::string> ReadAll(const base::UniqueFd& file, uint64_t max_bytes) {
  struct stat st{};
  if (fstat(file.get(), &st) != 0) return base::ErrnoStatus(errno, "stat");
  if (static_cast<uint64_t>(st.st_size) > max_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(st.st_size, " bytes, limit is ", max_bytes));
  }
  std::string contents(static_cast<size_t>(st.st_size), '\0');
  RETURN_IF_ERROR(base::PreadFull(
      file.get(), 0, absl::MakeSpan(reinterpret_cast<uint8_t*>(contents.data()), contents.size())));
  return contents;
}

absl::StatusOr<std::string> ReadBelow(int root, const std::string& directory, const std::string& path,
                                      uint64_t max_bytes) {
  ASSIGN_OR_RETURN(base::UniqueFd file, OpenBelow(root, directory, path));
  absl::StatusOr<std::string> contents = ReadAll(file, max_bytes);
  if (!contents.ok()) return base::Annotate(contents.status(), absl::StrCat("read ", directory, "/", path));
  return contents;
}

std::string Annotation(const Descriptor& descriptor, const char* key) {
  auto found = descriptor.annotations.find(key);
  return found == descriptor.annotations.end() ? "" : found->second;
}

}  // namespace

absl::StatusOr<Layout> Layout::Open(const std::string& directory) {
  auto context = [&](const absl::Status& status) {
    return base::Annotate(status, absl::StrCat("image layout ", directory));
  };
  auto opened = base::OpenFile(directory, O_RDONLY | O_DIRECTORY);
  if (!opened.ok()) return context(opened.status());
  const auto root = std::make_shared<const base::UniqueFd>(*std::move(opened));  // shared by copies
  absl::StatusOr<std::string> marker = ReadBelow(root->get(), directory, "oci-layout", 4096);
  if (!marker.ok()) return context(marker.status());
  absl::StatusOr<nlohmann::json> parsed = base::ParseJson(*marker, 4096);
  if (!parsed.ok()) return context(parsed.status());
  absl::StatusOr<std::optional<std::string>> version = base::JsonString(*parsed, "imageLayoutVersion");
  if (!version.ok()) return context(version.status());
  if (*version != "1.0.0") return context(absl::InvalidArgumentError("imageLayoutVersion is not 1.0.0"));
  absl::StatusOr<std::string> raw = ReadBelow(root->get(), directory, "index.json", kMaxManifestBytes);
  if (!raw.ok()) return context(raw.status());
  absl::StatusOr<std::variant<Manifest, Index>> document = ParseManifestOrIndex(*raw, std::nullopt, "");
  if (!document.ok()) return context(base::Annotate(document.status(), "index.json"));
  if (!std::holds_alternative<Index>(*document)) {
    return context(absl::InvalidArgumentError("index.json is not an index"));
  }
  Layout layout;
  layout.directory_ = directory;
  layout.root_ = root;
  layout.index_ = std::get<Index>(*std::move(document));
  return layout;
}

absl::StatusOr<Descriptor> Layout::Resolve(const std::optional<std::string>& tag) const {
  std::vector<const Descriptor*> matches;
  std::vector<std::string> names;
  for (const Descriptor& descriptor : index_.manifests) {
    std::string name = Annotation(descriptor, kRefName);
    if (!name.empty() && names.size() < 50) names.push_back(base::Printable(name.substr(0, 128)));
    if (!tag || name == *tag || Annotation(descriptor, kContainerdName) == *tag)
      matches.push_back(&descriptor);
  }
  bool same = true;
  for (const Descriptor* match : matches) same = same && match->digest == matches[0]->digest;
  if (!matches.empty() && same) return *matches[0];
  std::string known =
      names.empty() ? "it has no tags" : absl::StrCat("its tags are ", absl::StrJoin(names, ", "));
  if (!tag) {
    return absl::NotFoundError(absl::StrCat("image layout ", directory_, " holds ", index_.manifests.size(),
                                            " images and no tag was given; ", known));
  }
  return absl::NotFoundError(absl::StrCat("image layout ", directory_,
                                          matches.empty() ? ": no tag " : ": several images have tag ",
                                          base::Printable(*tag), "; ", known));
}

absl::StatusOr<base::UniqueFd> Layout::OpenBlob(const base::Digest& digest) const {
  const char* algorithm = digest.algorithm() == base::DigestAlgorithm::kSha256 ? "sha256" : "sha512";
  return OpenBelow(root_->get(), directory_, absl::StrCat("blobs/", algorithm, "/", digest.hex()));
}

absl::StatusOr<std::string> Layout::ReadBlob(const base::Digest& digest, uint64_t max_bytes) const {
  ASSIGN_OR_RETURN(base::UniqueFd file, OpenBlob(digest));
  std::string what = absl::StrCat("blob ", digest.ToString(), " in image layout ", directory_);
  absl::StatusOr<std::string> contents = ReadAll(file, max_bytes);
  if (!contents.ok()) return base::Annotate(contents.status(), what);
  base::Hasher hasher(digest.algorithm());
  hasher.Update(*contents);
  base::Digest actual = hasher.Finish();
  if (actual != digest) {
    return absl::DataLossError(absl::StrCat(what, ": the file has digest ", actual.ToString()));
  }
  return contents;
}

}  // namespace lazyblob::oci

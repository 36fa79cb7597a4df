#include "oci/reference.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"

namespace lazyblob::oci {
namespace {

constexpr size_t kMaxName = 255;
constexpr size_t kMaxHost = 255 + 6;  // a DNS name and a port
constexpr size_t kMaxTag = 128;
constexpr size_t kMaxReference = 1024;

absl::Status Bad(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("image reference \"", base::Printable(text.substr(0, 200)), "\": ", why));
}

bool IsLowerAlnum(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }
bool IsAlnum(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)); }
bool IsHex(char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); }

// [a-z0-9]+ joined by ".", "_", "__" or any number of "-".
bool IsPathComponent(absl::string_view text) {
  if (text.empty() || !IsLowerAlnum(text.front()) || !IsLowerAlnum(text.back())) return false;
  for (size_t i = 0; i < text.size();) {
    if (IsLowerAlnum(text[i])) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < text.size() && text[end] == text[i]) ++end;
    size_t run = end - i;
    bool fine = text[i] == '-' || (text[i] == '.' && run == 1) || (text[i] == '_' && run <= 2);
    if (!fine || !IsLowerAlnum(text[end])) return false;
    i = end;
  }
  return true;
}

bool IsPort(absl::string_view text) {
  if (text.empty() || text.size() > 5) return false;
  int port = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return false;
    port = port * 10 + (c - '0');
  }
  return port >= 1 && port <= 65535;
}

bool IsHostName(absl::string_view text) {
  for (absl::string_view label : absl::StrSplit(text, '.')) {
    if (label.empty() || !IsAlnum(label.front()) || !IsAlnum(label.back())) return false;
    if (!std::all_of(label.begin(), label.end(), [](char c) { return IsAlnum(c) || c == '-'; })) return false;
  }
  return true;
}

// name[:port] or [IPv6][:port]
bool IsHost(absl::string_view text) {
  if (absl::ConsumePrefix(&text, "[")) {
    size_t close = text.find(']');
    if (close == absl::string_view::npos || close < 2) return false;
    absl::string_view address = text.substr(0, close);
    if (!std::all_of(address.begin(), address.end(), [](char c) { return IsHex(c) || c == ':'; }))
      return false;
    text.remove_prefix(close + 1);
    return text.empty() || (absl::ConsumePrefix(&text, ":") && IsPort(text));
  }
  size_t colon = text.find(':');
  if (colon == absl::string_view::npos) return IsHostName(text);
  return IsHostName(text.substr(0, colon)) && IsPort(text.substr(colon + 1));
}

bool IsTag(absl::string_view text) {
  if (text.empty() || text.size() > kMaxTag || !(IsAlnum(text[0]) || text[0] == '_')) return false;
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return IsAlnum(c) || c == '_' || c == '.' || c == '-'; });
}

// The names image layouts carry are wider than tags: some writers store whole references in them.
bool IsLayoutTag(absl::string_view text) {
  if (text.empty() || text.size() > kMaxName || !(IsAlnum(text[0]) || text[0] == '_')) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return IsAlnum(c) || absl::StrContains("_.-:@/+", absl::string_view(&c, 1));
  });
}

// Docker's rule for what the first component of a name is.
bool LooksLikeHost(absl::string_view component) {
  return component == "localhost" || component.find_first_of(".:[") != absl::string_view::npos ||
         std::any_of(component.begin(), component.end(), [](char c) { return c >= 'A' && c <= 'Z'; });
}

absl::Status SplitName(absl::string_view text, absl::string_view name, Reference* reference) {
  size_t slash = name.find('/');
  if (slash != absl::string_view::npos && LooksLikeHost(name.substr(0, slash))) {
    reference->host = std::string(name.substr(0, slash));
    name.remove_prefix(slash + 1);
    if (reference->host.size() > kMaxHost) return Bad(text, "the host is longer than 261 bytes");
    if (!IsHost(reference->host)) return Bad(text, "the host is not a name or address with an optional port");
  } else {
    reference->host = "docker.io";
  }
  if (reference->host == "index.docker.io") reference->host = "docker.io";
  if (name.empty()) return Bad(text, "no repository; want host[:port]/name[:tag|@digest]");
  for (absl::string_view component : absl::StrSplit(name, '/')) {
    if (!IsPathComponent(component)) {
      return Bad(text, absl::StrCat("repository component \"", base::Printable(component),
                                    "\" is not lower-case letters and digits joined by . _ __ or -"));
    }
  }
  bool official = reference->host == "docker.io" && !absl::StrContains(name, "/");
  reference->repository = official ? absl::StrCat("library/", name) : std::string(name);
  if (reference->repository.size() > kMaxName) return Bad(text, "the repository is longer than 255 bytes");
  return absl::OkStatus();
}

}  // namespace

std::string Reference::Name() const { return absl::StrCat(host, "/", repository); }

std::string Reference::ToString() const {
  std::string text = Name();
  if (tag) absl::StrAppend(&text, ":", *tag);
  if (digest) absl::StrAppend(&text, "@", digest->ToString());
  return text;
}

std::string LayoutReference::ToString() const {
  return tag ? absl::StrCat("oci:", directory, ":", *tag) : absl::StrCat("oci:", directory);
}

absl::StatusOr<Reference> ParseReference(absl::string_view text) {
  if (text.empty()) return Bad(text, "empty; want host[:port]/name[:tag|@digest]");
  if (text.size() > kMaxReference) return Bad(text, "longer than 1024 bytes");
  if (absl::StrContains(text, "://"))
    return Bad(text, "leave out the scheme; want host[:port]/name[:tag|@digest]");
  Reference reference;
  absl::string_view name = text;
  if (size_t at = name.find('@'); at != absl::string_view::npos) {
    absl::StatusOr<base::Digest> digest = base::Digest::Parse(name.substr(at + 1));
    if (!digest.ok()) return Bad(text, digest.status().message());
    reference.digest = *digest;
    name = name.substr(0, at);
  }
  size_t slash = name.rfind('/');
  size_t colon = name.rfind(':');
  if (colon != absl::string_view::npos && (slash == absl::string_view::npos || colon > slash)) {
    if (!IsTag(name.substr(colon + 1))) return Bad(text, "the tag is not 1 to 128 of [A-Za-z0-9_.-]");
    reference.tag = std::string(name.substr(colon + 1));
    name = name.substr(0, colon);
  }
  RETURN_IF_ERROR(SplitName(text, name, &reference));
  if (name.size() == 64 && std::all_of(name.begin(), name.end(), IsHex)) {
    return Bad(text, "looks like an image id; want a name, or name@sha256:<hex>");
  }
  if (!reference.tag && !reference.digest) reference.tag = "latest";
  return reference;
}

absl::StatusOr<ImageReference> ParseImageReference(absl::string_view text) {
  absl::string_view rest = text;
  if (!absl::ConsumePrefix(&rest, "oci:")) {
    ASSIGN_OR_RETURN(Reference reference, ParseReference(text));
    return ImageReference(std::move(reference));
  }
  LayoutReference layout;
  // The first colon ends the directory, as in skopeo and umoci.
  size_t colon = rest.find(':');
  layout.directory = std::string(rest.substr(0, colon));
  if (layout.directory.empty()) return Bad(text, "no directory; want oci:DIR[:tag]");
  if (layout.directory.find('\0') != std::string::npos) return Bad(text, "NUL byte in the directory");
  if (colon != absl::string_view::npos) {
    if (!IsLayoutTag(rest.substr(colon + 1)))
      return Bad(text, "the tag is not 1 to 255 of [A-Za-z0-9_.:@/+-]");
    layout.tag = std::string(rest.substr(colon + 1));
  }
  return ImageReference(std::move(layout));
}

std::string ToString(const ImageReference& reference) {
  return std::visit([](const auto& value) { return value.ToString(); }, reference);
}

}  // namespace lazyblob::oci

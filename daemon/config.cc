#include "daemon/config.h"

#include <sys/un.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"
#include "base/toml.h"

namespace lazyblob::daemon {
namespace {

using base::TomlValue;

constexpr uint64_t kMaxFile = 1 << 20;

// One value in its place, for messages.
struct Place {
  absl::string_view file;
  std::string key;  // "fuse.mode"
  const TomlValue& value;

  absl::Status Error(absl::string_view what) const {
    return base::TomlError(file, value, absl::StrCat(key, what));
  }
};

absl::Status Text(const Place& place, std::string* out) {
  ASSIGN_OR_RETURN(*out, base::TomlString(place.file, place.key, place.value));
  return absl::OkStatus();
}

absl::Status CheckPath(const Place& place, absl::string_view path) {
  if (!absl::StartsWith(path, "/")) {
    return place.Error(absl::StrCat(" is \"", path, "\"; it must be an absolute path"));
  }
  if (path.find('\0') != absl::string_view::npos || path.size() > 4000) {
    return place.Error(" is not a path");
  }
  return absl::OkStatus();
}

absl::Status Path(const Place& place, std::string* out) {
  RETURN_IF_ERROR(Text(place, out));
  RETURN_IF_ERROR(CheckPath(place, *out));
  while (out->size() > 1 && out->back() == '/') out->pop_back();
  return absl::OkStatus();
}

// Empty: none.
absl::Status OptionalPath(const Place& place, std::string* out) {
  RETURN_IF_ERROR(Text(place, out));
  return out->empty() ? absl::OkStatus() : Path(place, out);
}

absl::Status PathList(const Place& place, std::string* out) {
  RETURN_IF_ERROR(Text(place, out));
  for (absl::string_view path : absl::StrSplit(*out, ':', absl::SkipEmpty())) {
    RETURN_IF_ERROR(CheckPath(place, path));
  }
  return absl::OkStatus();
}

absl::Status SocketPath(const Place& place, std::string* out) {
  RETURN_IF_ERROR(Path(place, out));
  constexpr size_t kLimit = sizeof(sockaddr_un::sun_path) - 1;
  if (out->size() <= kLimit) return absl::OkStatus();
  return place.Error(absl::StrCat(" has ", out->size(), " bytes; a socket's path has at most ", kLimit));
}

absl::Status OneOf(const Place& place, const std::vector<absl::string_view>& known, std::string* out) {
  RETURN_IF_ERROR(Text(place, out));
  if (std::find(known.begin(), known.end(), *out) != known.end()) return absl::OkStatus();
  return place.Error(absl::StrCat(" is \"", *out, "\"; it must be one of: ", absl::StrJoin(known, ", ")));
}

absl::Status Duration(const Place& place, absl::Duration least, absl::Duration most, absl::Duration* out) {
  std::string text;
  if (place.value.kind != TomlValue::Kind::kString) {
    return place.Error(absl::StrCat(" is ", place.value.KindName(), "; it must be a string like \"60s\""));
  }
  RETURN_IF_ERROR(Text(place, &text));
  if (!absl::ParseDuration(text, out)) {
    return place.Error(absl::StrCat(" is \"", text, "\"; it must be a duration like \"60s\" or \"1m30s\""));
  }
  if (*out >= least && *out <= most) return absl::OkStatus();
  return place.Error(absl::StrCat(" is \"", text, "\"; it must lie between ", absl::FormatDuration(least),
                                  " and ", absl::FormatDuration(most)));
}

// "off": infinite.
absl::Status DurationOrOff(const Place& place, absl::Duration least, absl::Duration most,
                           absl::Duration* out) {
  const bool off = place.value.kind == TomlValue::Kind::kString && place.value.text == "off";
  if (off) *out = absl::InfiniteDuration();
  if (off || Duration(place, least, most, out).ok()) return absl::OkStatus();
  return place.Error(absl::StrCat(" must be \"off\" or a duration between ", absl::FormatDuration(least),
                                  " and ", absl::FormatDuration(most), ", like \"24h\""));
}

absl::Status Size(const Place& place, uint64_t* out) {
  constexpr std::array<absl::string_view, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  if (place.value.kind == TomlValue::Kind::kInteger) {
    if (place.value.integer < 0) return place.Error(" is negative; it must be a number of bytes");
    *out = static_cast<uint64_t>(place.value.integer);
    return absl::OkStatus();
  }
  std::string text;
  RETURN_IF_ERROR(Text(place, &text));
  absl::string_view rest = absl::StripAsciiWhitespace(text);
  size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
  absl::string_view unit = absl::StripAsciiWhitespace(rest.substr(digits));
  const auto* found = std::find(kUnits.begin(), kUnits.end(), unit.empty() ? "B" : unit);
  uint64_t number = 0;
  bool valid = found != kUnits.end() && absl::SimpleAtoi(rest.substr(0, digits), &number);
  uint64_t factor = valid ? uint64_t{1} << (10 * (found - kUnits.begin())) : 1;
  if (!valid || __builtin_mul_overflow(number, factor, out)) {
    return place.Error(absl::StrCat(" is \"", text, "\"; it must be bytes like 1073741824 or \"10GiB\" (",
                                    absl::StrJoin(kUnits, ", "), ")"));
  }
  return absl::OkStatus();
}

absl::Status Hosts(const Place& place, std::vector<std::string>* out) {
  ASSIGN_OR_RETURN(*out, base::TomlStrings(place.file, place.key, place.value));
  for (const std::string& host : *out) {
    bool plain = !host.empty() && std::all_of(host.begin(), host.end(), [](char c) {
      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains(".-:[]_", c);
    });
    if (!plain) {
      return place.Error(absl::StrCat(" holds \"", host, "\"; entries are host[:port], without https://"));
    }
  }
  return absl::OkStatus();
}

absl::Status Flag(const Place& place, bool* out) {
  ASSIGN_OR_RETURN(*out, base::TomlBool(place.file, place.key, place.value));
  return absl::OkStatus();
}

absl::Status OnOff(const Place& place, bool* out) {
  std::string text;
  RETURN_IF_ERROR(OneOf(place, {"off", "on"}, &text));
  *out = text == "on";
  return absl::OkStatus();
}

struct Key {
  absl::string_view section;  // "": the top
  absl::string_view name;
  absl::Status (*set)(const Place&, Config*);
};

const std::vector<Key>& Keys() {
  static const std::vector<Key> keys = {
      {"", "root", [](const Place& at, Config* c) { return Path(at, &c->root); }},
      {"", "address", [](const Place& at, Config* c) { return SocketPath(at, &c->address); }},
      {"", "log_level",
       [](const Place& at, Config* c) {
         return OneOf(at, {"error", "warning", "info", "debug"}, &c->log_level);
       }},
      {"cache", "max_bytes", [](const Place& at, Config* c) { return Size(at, &c->cache.max_bytes); }},
      {"cache", "pinned_max", [](const Place& at, Config* c) { return Size(at, &c->cache.pinned_max); }},
      {"cache", "min_free", [](const Place& at, Config* c) { return Size(at, &c->cache.min_free); }},
      {"cache", "scrub",
       [](const Place& at, Config* c) {
         return DurationOrOff(at, absl::Seconds(1), absl::Hours(24 * 366), &c->cache.scrub);
       }},
      {"cache", "keep_blobs", [](const Place& at, Config* c) { return Flag(at, &c->cache.keep_blobs); }},
      {"cache", "fill", [](const Place& at, Config* c) { return OnOff(at, &c->cache.fill); }},
      {"fuse", "mode",
       [](const Place& at, Config* c) {
         return OneOf(at, {"auto", "erofs", "loop", "fuse"}, &c->fuse.mode);
       }},
      {"fuse", "read_deadline",
       [](const Place& at, Config* c) {
         return Duration(at, absl::Seconds(1), absl::Minutes(10), &c->fuse.read_deadline);
       }},
      {"snapshotter", "plain_layers",
       [](const Place& at, Config* c) {
         return OneOf(at, {"stream", "client"}, &c->snapshotter.plain_layers);
       }},
      {"snapshotter", "compare_diff_ids",
       [](const Place& at, Config* c) {
         return OneOf(at, {"read", "mount"}, &c->snapshotter.compare_diff_ids);
       }},
      {"snapshotter", "resolve_timeout",
       [](const Place& at, Config* c) {
         return Duration(at, absl::Seconds(1), absl::Hours(1), &c->snapshotter.resolve_timeout);
       }},
      {"snapshotter", "url_hosts",
       [](const Place& at, Config* c) { return Hosts(at, &c->snapshotter.url_hosts); }},
      {"registry", "config_path",
       [](const Place& at, Config* c) { return PathList(at, &c->registry.config_path); }},
      {"registry", "ca_file",
       [](const Place& at, Config* c) { return OptionalPath(at, &c->registry.ca_file); }},
      {"credentials", "docker_config",
       [](const Place& at, Config* c) { return OptionalPath(at, &c->credentials.docker_config); }},
      {"credentials", "kubernetes_secrets",
       [](const Place& at, Config* c) { return OptionalPath(at, &c->credentials.kubernetes_secrets); }},
      {"credentials", "cri", [](const Place& at, Config* c) { return Flag(at, &c->credentials.cri); }},
      {"credentials", "cri_image_service",
       [](const Place& at, Config* c) { return SocketPath(at, &c->credentials.cri_image_service); }},
      {"content", "enabled", [](const Place& at, Config* c) { return Flag(at, &c->content.enabled); }},
      {"content", "containerd_address",
       [](const Place& at, Config* c) { return SocketPath(at, &c->content.containerd_address); }},
  };
  return keys;
}

std::string Dotted(absl::string_view section, absl::string_view name) {
  return absl::StrCat(section, section.empty() ? "" : ".", name);
}

bool IsSection(absl::string_view name) {
  return std::any_of(Keys().begin(), Keys().end(),
                     [&](const Key& key) { return !name.empty() && key.section == name; });
}

// What may stand in `section`, for messages.
std::string KnownIn(absl::string_view section) {
  std::vector<std::string> known;
  for (const Key& key : Keys()) {
    if (key.section == section) known.emplace_back(key.name);
    std::string table = absl::StrCat("[", key.section, "]");
    bool listed = std::find(known.begin(), known.end(), table) != known.end();
    if (section.empty() && !key.section.empty() && !listed) known.push_back(std::move(table));
  }
  return absl::StrJoin(known, ", ");
}

absl::Status Apply(absl::string_view file, absl::string_view section, const TomlValue& table,
                   Config* config) {
  for (const TomlValue& value : table.items) {
    std::string name = Dotted(section, value.key);
    if (section.empty() && IsSection(value.key)) {
      if (value.kind != TomlValue::Kind::kTable) {
        return base::TomlError(file, value,
                               absl::StrCat(name, " is ", value.KindName(), "; it is a table, [", name, "]"));
      }
      RETURN_IF_ERROR(Apply(file, value.key, value, config));
      continue;
    }
    auto key = std::find_if(Keys().begin(), Keys().end(), [&](const Key& known) {
      return known.section == section && known.name == value.key;
    });
    if (key == Keys().end()) {
      return base::TomlError(file, value,
                             absl::StrCat("unknown key ", name, "; known here: ", KnownIn(section)));
    }
    RETURN_IF_ERROR(key->set({file, name, value}, config));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Config> ParseConfig(absl::string_view text, absl::string_view name) {
  ASSIGN_OR_RETURN(TomlValue document, base::ParseToml(text, name, kMaxFile));
  Config config;
  RETURN_IF_ERROR(Apply(name, "", document, &config));
  return config;
}

absl::StatusOr<Config> LoadConfig(const std::string& path, bool required) {
  absl::StatusOr<std::string> text = base::ReadFile(path, kMaxFile);
  if (absl::IsNotFound(text.status()) && !required) return Config();
  if (!text.ok()) return base::Annotate(text.status(), "configuration");
  return ParseConfig(*text, path);
}

std::vector<std::string> ConfigKeys() {
  std::vector<std::string> keys;
  for (const Key& key : Keys()) keys.push_back(Dotted(key.section, key.name));
  return keys;
}

}  // namespace lazyblob::daemon

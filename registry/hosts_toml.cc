#include "registry/hosts_toml.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/toml.h"
#include "registry/internal/url.h"

namespace lazyblob::registry {
namespace {

using base::TomlValue;

constexpr uint64_t kMaxFile = 1 << 20;

// Headers that say how a request is framed or to whom it goes: ours to write.
constexpr std::array<absl::string_view, 10> kOwnHeaders = {
    "host",    "content-length", "transfer-encoding", "connection", "expect", "keep-alive", "te",
    "upgrade", "range",          "accept-encoding"};

bool HasControls(absl::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f;
  });
}

// One file being read.
class Parser {
 public:
  Parser(const std::string& path, HostsFile* file)
      : path_(path), directory_(path.substr(0, path.rfind('/') + 1)), file_(*file) {}

  absl::Status Run(const TomlValue& document) {
    if (const TomlValue* hosts = document.Find("host")) {
      if (hosts->kind != TomlValue::Kind::kTable)
        return Error(*hosts, "host is not a table; write [host.\"URL\"]");
      for (const TomlValue& host : hosts->items) RETURN_IF_ERROR(Host(host));
    }
    HostsFile::Entry server;
    if (const TomlValue* url = document.Find("server")) {
      ASSIGN_OR_RETURN(std::string text, base::TomlString(path_, "server", *url));
      if (!text.empty()) RETURN_IF_ERROR(Address(*url, text, OverridesPath(document), &server.host));
      server.line = url->line;
    }
    bool unset = server.host.url.empty();
    if (const TomlValue* given = unset ? document.Find("capabilities") : nullptr) {
      Warn(*given, "capabilities have no effect without server");
    }
    RETURN_IF_ERROR(Settings(document, true, &server));
    if (unset) server.host.pull = server.host.resolve = server.host.push = true;
    file_.entries.push_back(std::move(server));
    return absl::OkStatus();
  }

 private:
  absl::Status Error(const TomlValue& value, absl::string_view what) const {
    return base::TomlError(path_, value, what);
  }
  void Warn(const TomlValue& value, absl::string_view what) {
    file_.warnings.push_back(absl::StrCat(base::Printable(path_), ":", value.line, ": ", what));
  }

  static bool OverridesPath(const TomlValue& table) {
    const TomlValue* value = table.Find("override_path");
    return value != nullptr && value->boolean;
  }

  absl::Status Host(const TomlValue& table) {
    if (table.kind != TomlValue::Kind::kTable) {
      return Error(table, absl::StrCat("host.\"", table.key, "\" is not a table"));
    }
    HostsFile::Entry entry;
    entry.line = table.line;
    RETURN_IF_ERROR(Address(table, table.key, OverridesPath(table), &entry.host));
    RETURN_IF_ERROR(Settings(table, false, &entry));
    file_.entries.push_back(std::move(entry));
    return absl::OkStatus();
  }

  absl::Status Address(const TomlValue& at, absl::string_view text, bool override_path, RegistryHost* host) {
    std::string full = absl::StrContains(text, "://") ? std::string(text) : absl::StrCat("https://", text);
    if (HasControls(text)) return Error(at, "a URL holds control characters");
    absl::StatusOr<internal::Url> url = internal::Url::Parse(full);
    if (!url.ok()) return Error(at, url.status().message());
    if (absl::StrContains(full, "?") || absl::StrContains(full, "#")) {
      return Error(at, absl::StrCat("URL of ", url->host,
                                    " has a query or fragment; only scheme, host, port "
                                    "and path have a meaning here"));
    }
    host->url = url->Origin();
    host->path = url->path_and_query;
    while (absl::EndsWith(host->path, "/")) host->path.pop_back();
    if (!override_path && !absl::EndsWith(host->path, "/v2")) absl::StrAppend(&host->path, "/v2");
    return absl::OkStatus();
  }

  absl::Status Settings(const TomlValue& table, bool top, HostsFile::Entry* entry) {
    for (const TomlValue& value : table.items) {
      const std::string& key = value.key;
      if (key == "capabilities") {
        RETURN_IF_ERROR(Capabilities(value, &entry->host));
      } else if (key == "ca") {
        ASSIGN_OR_RETURN(entry->ca_files, base::TomlStrings(path_, key, value));
        for (std::string& file : entry->ca_files) RETURN_IF_ERROR(Absolute(value, &file));
      } else if (key == "client") {
        RETURN_IF_ERROR(Client(value, entry));
      } else if (key == "skip_verify") {
        ASSIGN_OR_RETURN(entry->skip_verify, base::TomlBool(path_, key, value));
      } else if (key == "override_path") {
        RETURN_IF_ERROR(base::TomlBool(path_, key, value).status());
      } else if (key == "header") {
        RETURN_IF_ERROR(HeaderTable(value, &entry->host));
      } else if (!(top && (key == "server" || key == "host"))) {
        Warn(value, absl::StrCat("unknown key \"", base::Printable(key), "\" is ignored"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Capabilities(const TomlValue& value, RegistryHost* host) {
    ASSIGN_OR_RETURN(std::vector<std::string> names, base::TomlStrings(path_, "capabilities", value));
    if (names.empty()) return absl::OkStatus();
    host->pull = host->resolve = host->push = false;
    for (const std::string& name : names) {
      std::string lower = absl::AsciiStrToLower(name);
      if (lower == "pull") {
        host->pull = true;
      } else if (lower == "resolve") {
        host->resolve = true;
      } else if (lower == "push") {
        host->push = true;
      } else if (lower == "referrers") {
        Warn(value, "capability \"referrers\" is not told apart from \"pull\"");
      } else {
        return Error(value,
                     absl::StrCat("unknown capability \"", name, "\"; there are pull, resolve and push"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Absolute(const TomlValue& value, std::string* file) const {
    if (file->empty() || HasControls(*file)) return Error(value, absl::StrCat(value.key, " names no file"));
    if (!absl::StartsWith(*file, "/")) *file = absl::StrCat(directory_, *file);
    return absl::OkStatus();
  }

  absl::Status Client(const TomlValue& value, HostsFile::Entry* entry) {
    constexpr char kForms[] = "client is a file, a list of files, or a list of [certificate, key]";
    if (value.kind == TomlValue::Kind::kString) {
      entry->client_files.emplace_back(value.text, "");
    } else if (value.kind == TomlValue::Kind::kArray) {
      for (const TomlValue& item : value.items) {
        if (item.kind == TomlValue::Kind::kString) {
          entry->client_files.emplace_back(item.text, "");
          continue;
        }
        bool pair = item.kind == TomlValue::Kind::kArray && item.items.size() == 2 &&
                    item.items[0].kind == TomlValue::Kind::kString &&
                    item.items[1].kind == TomlValue::Kind::kString;
        if (!pair) return Error(item, kForms);
        entry->client_files.emplace_back(item.items[0].text, item.items[1].text);
      }
    } else {
      return Error(value, kForms);
    }
    for (auto& [certificate, key] : entry->client_files) {
      RETURN_IF_ERROR(Absolute(value, &certificate));
      if (!key.empty()) RETURN_IF_ERROR(Absolute(value, &key));
    }
    if (entry->client_files.size() > 1) Warn(value, "of several client certificates the first is used");
    return absl::OkStatus();
  }

  // Values may be secrets: no message repeats them.
  absl::Status HeaderTable(const TomlValue& table, RegistryHost* host) {
    if (table.kind != TomlValue::Kind::kTable) return Error(table, "header is not a table");
    for (const TomlValue& value : table.items) {
      std::string name = absl::AsciiStrToLower(value.key);
      bool token = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("!#$%&'*+-.^_`|~", c);
      });
      if (!token) return Error(value, absl::StrCat("\"", value.key, "\" is not a header's name"));
      absl::StatusOr<std::vector<std::string>> texts =
          base::TomlStrings(path_, absl::StrCat("header ", value.key), value);
      if (!texts.ok()) return texts.status();
      if (std::find(kOwnHeaders.begin(), kOwnHeaders.end(), name) != kOwnHeaders.end()) {
        Warn(value, absl::StrCat("header ", value.key, " is ignored: it is written by the client"));
        continue;
      }
      for (std::string& text : *texts) {
        if (HasControls(text)) {
          return Error(value, absl::StrCat("header ", value.key, " holds control characters"));
        }
        host->headers.emplace_back(value.key, std::move(text));
      }
    }
    return absl::OkStatus();
  }

  const std::string& path_;
  const std::string directory_;
  HostsFile& file_;
};

}  // namespace

absl::StatusOr<HostsFile> ParseHostsToml(absl::string_view text, const std::string& path) {
  ASSIGN_OR_RETURN(TomlValue document, base::ParseToml(text, path, kMaxFile));
  HostsFile file;
  RETURN_IF_ERROR(Parser(path, &file).Run(document));
  return file;
}

}  // namespace lazyblob::registry

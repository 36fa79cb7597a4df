#include "daemon/doctor.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <ostream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/status.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

namespace lazyblob::daemon {
namespace {

constexpr uint64_t kMaxMountInfo = 16 << 20;

Finding Ok(absl::string_view check, std::string text) {
  return {Severity::kOk, std::string(check), std::move(text), ""};
}
Finding Warning(absl::string_view check, std::string text, std::string fix) {
  return {Severity::kWarning, std::string(check), std::move(text), std::move(fix)};
}
Finding Fail(absl::string_view check, std::string text, std::string fix) {
  return {Severity::kFail, std::string(check), std::move(text), std::move(fix)};
}

using Version = std::array<int, 3>;

// Three numbers at the start, the missing ones 0: "6.12.2-amd64", "6.18-rc1".
std::optional<Version> ParseRelease(absl::string_view text) {
  Version version{};
  for (size_t i = 0; i < version.size(); ++i) {
    size_t digits = 0;
    while (digits < text.size() && digits < 6 && text[digits] >= '0' && text[digits] <= '9') ++digits;
    if (digits == 0) return i < 2 ? std::nullopt : std::optional(version);
    if (!absl::SimpleAtoi(text.substr(0, digits), &version[i])) return std::nullopt;
    text.remove_prefix(digits);
    if (i + 1 < version.size() && (text.empty() || text[0] != '.')) {
      return i == 0 ? std::nullopt : std::optional(version);
    }
    if (!text.empty()) text.remove_prefix(1);
  }
  return version;
}

Finding CheckFileSystem(absl::string_view name, absl::string_view filesystems, absl::string_view modules) {
  std::string check = absl::StrCat("kernel ", name);
  for (absl::string_view line : absl::StrSplit(filesystems, '\n')) {
    std::vector<absl::string_view> words = absl::StrSplit(line, absl::ByAnyChar("\t "), absl::SkipEmpty());
    if (!words.empty() && words.back() == name) return Ok(check, "there");
  }
  std::string file = name == "overlay" ? "/overlay.ko" : absl::StrCat("/", name, ".ko");
  if (absl::StrContains(modules, file)) return Ok(check, "a module, loaded when it is needed");
  std::string fix = absl::StrCat("modprobe ", name, "; if there is no such module, use a kernel that has it");
  if (modules.empty()) return Warning(check, "not loaded, and the list of modules cannot be read", fix);
  return Fail(check, "this kernel does not have it", fix);
}

// The part of /proc/PID/mountinfo that matters for one mount.
struct MountEntry {
  std::string directory;
  uint64_t shared = 0;  // peer group, 0: none
  uint64_t master = 0;  // group whose mounts it receives
};

// The mount that `path` lies in. Octal escapes stay: a state root with spaces is nobody's.
std::optional<MountEntry> FindMount(absl::string_view mountinfo, absl::string_view path) {
  std::optional<MountEntry> best;
  for (absl::string_view line : absl::StrSplit(mountinfo, '\n', absl::SkipEmpty())) {
    std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    if (words.size() < 7) continue;
    absl::string_view directory = words[4];
    const bool holds = directory == "/" || path == directory ||
                       (absl::StartsWith(path, directory) && path[directory.size()] == '/');
    if (!holds || (best.has_value() && directory.size() < best->directory.size())) continue;
    MountEntry entry;
    entry.directory = std::string(directory);
    for (size_t i = 6; i < words.size() && words[i] != "-"; ++i) {
      absl::string_view tag = words[i];
      if (absl::ConsumePrefix(&tag, "shared:")) {
        if (!absl::SimpleAtoi(tag, &entry.shared)) entry.shared = 0;
      } else if (absl::ConsumePrefix(&tag, "master:")) {
        if (!absl::SimpleAtoi(tag, &entry.master)) entry.master = 0;
      }
    }
    best = entry;  // the last one at a directory is on top
  }
  return best;
}

// Whether a line of `config` that is no comment sets `key` to `value`, spaces aside.
bool ConfigSets(absl::string_view config, absl::string_view key, absl::string_view value) {
  for (absl::string_view line : absl::StrSplit(config, '\n')) {
    std::string text(line.substr(0, line.find('#')));
    text.erase(
        std::remove_if(text.begin(), text.end(), [](char c) { return c == ' ' || c == '\t' || c == '\r'; }),
        text.end());
    if (text == absl::StrCat(key, "=", value)) return true;
  }
  return false;
}

const ContainerdPlugin* FindPlugin(const ContainerdFacts& facts, absl::string_view type,
                                   absl::string_view id) {
  for (const ContainerdPlugin& plugin : facts.plugins) {
    if (plugin.type == type && (id.empty() || plugin.id == id)) return &plugin;
  }
  return nullptr;
}

bool Contains(const std::vector<std::string>& list, absl::string_view text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

Findings CheckPlugin(const ContainerdPlugin& plugin, const Version& version, const std::string& address) {
  Findings findings;
  if (!plugin.init_error.empty()) {
    findings.push_back(Fail("registration",
                            absl::StrCat("containerd could not use the proxy: ", plugin.init_error),
                            "see containerd's log, then restart it"));
    return findings;
  }
  auto told = plugin.exports.find("address");
  if (told != plugin.exports.end() && told->second != address) {
    findings.push_back(
        Fail("registration", absl::StrCat("containerd asks ", told->second, ", lazyblobd serves ", address),
             "make address in containerd's [proxy_plugins] and in lazyblob's config.toml the same"));
  } else {
    findings.push_back(Ok("registration", absl::StrCat("snapshotter ", plugin.id)));
  }
  if (Contains(plugin.capabilities, "rebase")) {
    findings.push_back(Fail("capabilities",
                            "\"rebase\" is set: containerd would prepare layers without their parents",
                            "take \"rebase\" out of capabilities in [proxy_plugins]"));
  } else if (Contains(plugin.capabilities, "remap-ids")) {
    findings.push_back(Ok("capabilities", "remap-ids"));
  } else if (version >= Version{1, 7, 0}) {
    findings.push_back(
        Warning("capabilities",
                "without remap-ids a container with user namespaces chowns, and so reads, its whole "
                "image",
                "capabilities = [\"remap-ids\"] in [proxy_plugins]"));
  }
  return findings;
}

// Whether `config` has an unpack_config table of the transfer service for `snapshotter`.
bool HasUnpackEntry(absl::string_view config, const std::string& snapshotter) {
  bool inside = false;
  for (absl::string_view line : absl::StrSplit(config, '\n')) {
    absl::string_view text = absl::StripAsciiWhitespace(line);
    if (absl::StartsWith(text, "[")) {
      inside = absl::StartsWith(text, "[[") && absl::StrContains(text, "unpack_config");
      continue;
    }
    if (inside && (ConfigSets(text, "snapshotter", absl::StrCat("\"", snapshotter, "\"")) ||
                   ConfigSets(text, "snapshotter", absl::StrCat("'", snapshotter, "'")))) {
      return true;
    }
  }
  return false;
}

// The setting of CRI's that makes it pull without the transfer service (containerd 2.1 and later, CRI's
// CheckLocalImagePullConfigs); empty: there is none.
std::string WhyCriPullsItself(absl::string_view config) {
  constexpr std::pair<const char*, const char*> kSettings[] = {{"use_local_image_pull", "true"},
                                                               {"discard_unpacked_layers", "true"},
                                                               {"image_pull_with_sync_fs", "true"}};
  bool inside = false;
  for (absl::string_view line : absl::StrSplit(config, '\n')) {
    absl::string_view text = absl::StripAsciiWhitespace(line);
    if (absl::StartsWith(text, "[")) {
      inside = absl::StrContains(text, "io.containerd.cri.v1.images") ||
               absl::StrContains(text, "io.containerd.grpc.v1.cri");
      for (const char* table : {"registry.mirrors", "registry.configs"}) {
        if (inside && absl::StrContains(text, absl::StrCat(table, "."))) return table;
      }
      continue;
    }
    if (!inside) continue;
    for (const auto& [key, value] : kSettings) {
      if (ConfigSets(text, key, value)) return key;
    }
    constexpr char kDownloads[] = "max_concurrent_downloads";
    if (absl::StartsWith(text, kDownloads) && !ConfigSets(text, kDownloads, "3")) return kDownloads;
  }
  return "";
}

// nullopt: this containerd does not pull so.
std::optional<Finding> CheckTransfer(const ContainerdFacts& facts, const ContainerdPlugin& plugin,
                                     const Version& version) {
  if (version < Version{2, 0, 0} || FindPlugin(facts, "io.containerd.transfer.v1", "") == nullptr) {
    return std::nullopt;
  }
  constexpr char kFix[] =
      "exports.enable_remote_snapshot_annotations = \"true\" in [proxy_plugins], and an entry "
      "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]] (deploy/containerd-2.toml)";
  auto told = plugin.exports.find("enable_remote_snapshot_annotations");
  if (told == plugin.exports.end() || told->second != "true") {
    return Warning("transfer", "pulls by the transfer service (ctr, nerdctl, CRI) are not lazy", kFix);
  }
  if (!HasUnpackEntry(facts.config, plugin.id)) {
    return Warning("transfer",
                   "containerd's configuration has no unpack_config for this snapshotter: pulls by the "
                   "transfer service fail or unpack nothing",
                   kFix);
  }
  return Ok("transfer", "pulls by the transfer service are lazy");
}

}  // namespace

Findings CheckUser(uid_t user) {
  if (user == 0) return {Ok("user", "root")};
  return {Fail("user",
               absl::StrCat("uid ", user, ": only root reaches the daemon, containerd and the state root"),
               "run as root: sudo lazyblob doctor")};
}

Findings CheckConfig(const absl::StatusOr<Config>& config) {
  if (config.ok()) return {Ok("config", absl::StrCat("root ", config->root, ", socket ", config->address))};
  return {Fail("config", std::string(config.status().message()),
               "correct the file; docs/CONFIG.md lists the keys")};
}

Findings CheckKernel(absl::string_view release, absl::string_view filesystems, absl::string_view modules) {
  Findings findings;
  std::optional<Version> version = ParseRelease(release);
  if (!version.has_value()) {
    findings.push_back(Warning("kernel",
                               absl::StrCat("release \"", base::Printable(release), "\" is not understood"),
                               "lazyblob needs Linux 6.4, better 6.12.2 or later"));
  } else if (*version >= Version{6, 12, 2}) {
    findings.push_back(Ok("kernel", absl::StrCat(release, ": EROFS from files")));
  } else if (*version >= Version{6, 9, 0}) {
    findings.push_back(Warning("kernel", absl::StrCat(release, ": layers need loop devices"),
                               "Linux 6.12.2 or later mounts them from files"));
  } else if (*version >= Version{6, 4, 0}) {
    findings.push_back(Warning("kernel",
                               absl::StrCat(release,
                                            ": layers need loop devices, and reads that wait while the "
                                            "daemon is replaced fail"),
                               "Linux 6.9 or later sends them again; 6.12.2 or later needs no loop devices"));
  } else {
    findings.push_back(Fail("kernel", absl::StrCat(release, " is too old to mount layers"),
                            "Linux 6.4, better 6.12.2 or later"));
  }
  for (const char* name : {"erofs", "fuse", "overlay"}) {
    findings.push_back(CheckFileSystem(name, filesystems, modules));
  }
  return findings;
}

Findings CheckRequestLimit(uint64_t limit, absl::Duration read_deadline) {
  constexpr char kCheck[] = "read deadline";
  if (limit == 0) return {};
  const absl::Duration most = absl::Seconds(limit) / 2;
  const std::string kernel = absl::StrCat("the kernel ends FUSE connections after ", limit, " s");
  if (read_deadline <= most) return {Ok(kCheck, absl::StrCat(kernel, "; reads end before"))};
  return {
      Warning(kCheck,
              absl::StrCat(kernel, ": reads wait for ", absl::FormatDuration(most), ", not for the ",
                           absl::FormatDuration(read_deadline), " of fuse.read_deadline"),
              "raise the sysctls fs.fuse.default_request_timeout and fs.fuse.max_request_timeout and start "
              "lazyblobd anew, or lower fuse.read_deadline")};
}

Findings CheckStateRoot(const std::string& root, uid_t owner) {
  constexpr char kCheck[] = "state root";
  struct stat st;
  if (lstat(root.c_str(), &st) != 0) {
    return {Fail(kCheck, std::string(base::ErrnoStatus(errno, root).message()),
                 "lazyblobd makes it when it starts; name another with --root")};
  }
  if (!S_ISDIR(st.st_mode)) return {Fail(kCheck, absl::StrCat(root, " is not a directory"), "remove it")};
  if (st.st_uid != owner) {
    return {Fail(kCheck, absl::StrCat(root, " belongs to uid ", st.st_uid),
                 absl::StrCat("chown ", owner, " ", root))};
  }
  if ((st.st_mode & 077) != 0) {
    return {Fail(kCheck, absl::StrFormat("%s has mode %04o: others have access", root, st.st_mode & 07777),
                 absl::StrCat("chmod 0700 ", root))};
  }
  struct statfs fs;
  if (statfs(root.c_str(), &fs) != 0) {
    return {Fail(kCheck, std::string(base::ErrnoStatus(errno, root).message()), "name another with --root")};
  }
  const char* type = nullptr;
  switch (static_cast<unsigned long>(fs.f_type)) {
    case EXT4_SUPER_MAGIC:
      type = "ext4";
      break;
    case XFS_SUPER_MAGIC:
      type = "xfs";
      break;
    case BTRFS_SUPER_MAGIC:
      type = "btrfs";
      break;
    default:
      return {Fail(kCheck, absl::StrFormat("%s is on a file system of type 0x%x", root, fs.f_type),
                   "put it on ext4, xfs or btrfs")};
  }
  const uint64_t free_bytes = static_cast<uint64_t>(fs.f_bavail) * static_cast<uint64_t>(fs.f_bsize);
  std::string text =
      absl::StrFormat("%s on %s, %.1f GB free", root, type, static_cast<double>(free_bytes) / 1e9);
  if (free_bytes < (uint64_t{1} << 30)) {
    return {Warning(kCheck, text, "free some space, or set cache.max_bytes in config.toml")};
  }
  return {Ok(kCheck, text)};
}

Findings CheckDaemon(const absl::StatusOr<control::v1::StatusResponse>& status, const std::string& root) {
  if (!status.ok()) {
    return {Fail("daemon", absl::StrCat("none answers for ", root, ": ", status.status().message()),
                 "systemctl start lazyblob; systemctl status lazyblob tells why it ended")};
  }
  Findings findings = {
      Ok("daemon", absl::StrCat(status->snapshot_layers_size(), " lazy layers of snapshots, ",
                                status->mounts_size(), " mounts of its own"))};
  const std::string mode = status->mode();
  if (mode == "erofs") {
    findings.push_back(Ok("mode", absl::StrCat(mode, ": ", status->mode_reason())));
  } else if (mode.empty() && !status->mode_reason().empty()) {
    findings.push_back(Fail("mode", absl::StrCat("layers cannot be mounted: ", status->mode_reason()),
                            "see the kernel checks above, and the daemon's log"));
  } else if (!mode.empty()) {
    findings.push_back(Warning("mode", absl::StrCat(mode, ": ", status->mode_reason()),
                               "slower than erofs; Linux 6.12.2 or later mounts EROFS from files"));
  }
  for (const auto& layer : status->not_lazy()) {
    findings.push_back(Warning(
        "not lazy",
        absl::StrCat(layer.layer(), " of ", layer.reference(), ": ", layer.reason(), ", ", layer.detail()),
        "lazyblob status has them all"));
    break;
  }
  return findings;
}

Findings CheckSocket(const std::string& address, uid_t owner) {
  constexpr char kCheck[] = "socket";
  struct stat st;
  if (lstat(address.c_str(), &st) != 0) {
    return {
        Fail(kCheck, std::string(base::ErrnoStatus(errno, address).message()), "systemctl start lazyblob")};
  }
  if (!S_ISSOCK(st.st_mode)) return {Fail(kCheck, absl::StrCat(address, " is not a socket"), "remove it")};
  std::string directory = address.substr(0, address.rfind('/'));
  struct stat above;
  if (lstat(directory.c_str(), &above) != 0) {
    return {Fail(kCheck, std::string(base::ErrnoStatus(errno, directory).message()),
                 "systemctl restart lazyblob")};
  }
  for (const auto& [path, stat] : {std::pair(address, st), std::pair(directory, above)}) {
    if (stat.st_uid != owner) {
      return {Fail(kCheck, absl::StrCat(path, " belongs to uid ", stat.st_uid),
                   absl::StrCat("chown ", owner, " ", path))};
    }
    if ((stat.st_mode & 077) != 0) {
      return {Fail(kCheck,
                   absl::StrFormat("%s has mode %04o: others could command the snapshotter", path,
                                   stat.st_mode & 07777),
                   absl::StrCat("chmod go= ", path))};
    }
  }
  return {Ok(kCheck, address)};
}

Findings CheckPropagation(const absl::StatusOr<MountNamespace>& daemon,
                          const absl::StatusOr<MountNamespace>& containerd, const std::string& root) {
  constexpr char kCheck[] = "mount propagation";
  for (const auto* side : {&daemon, &containerd}) {
    if (side->ok()) continue;
    return {Warning(kCheck, absl::StrCat("not known: ", side->status().message()),
                    "run as root, in the host's pid namespace, while both run")};
  }
  if (daemon->id == containerd->id) return {Ok(kCheck, "lazyblobd and containerd share their mounts")};
  std::optional<MountEntry> ours = FindMount(daemon->mountinfo, root);
  std::optional<MountEntry> theirs = FindMount(containerd->mountinfo, root);
  if (ours.has_value() && theirs.has_value() && ours->shared != 0 && ours->directory == theirs->directory &&
      (theirs->shared == ours->shared || theirs->master == ours->shared)) {
    return {Ok(kCheck, absl::StrCat("two mount namespaces; mounts below ", root,
                                    " pass from lazyblobd to containerd"))};
  }
  return {
      Fail(kCheck,
           absl::StrCat("containerd is in another mount namespace and does not see what is mounted below ",
                        root, ": containers would find empty directories"),
           "run both in the host's: no PrivateMounts=, PrivateTmp=, ProtectSystem= or the like in "
           "lazyblob.service "
           "or containerd.service; in a container, mount the root with Bidirectional propagation")};
}

Findings CheckContainerd(const absl::StatusOr<ContainerdFacts>& facts, const std::string& snapshotter,
                         const std::string& address) {
  if (!facts.ok()) {
    return {Fail("containerd", std::string(facts.status().message()),
                 "systemctl start containerd, or name its socket with --containerd")};
  }
  Findings findings;
  absl::string_view number = facts->version;
  absl::ConsumePrefix(&number, "v");
  std::optional<Version> parsed = ParseRelease(number);
  Version version = parsed.value_or(Version{});
  if (!parsed.has_value()) {
    findings.push_back(Warning("containerd",
                               absl::StrCat("version \"", facts->version, "\" is not understood"),
                               "1.6 or later is needed"));
  } else if (version < Version{1, 6, 0}) {
    findings.push_back(
        Fail("containerd", absl::StrCat("version ", facts->version, " is too old"), "1.6 or later"));
  } else {
    findings.push_back(Ok("containerd", absl::StrCat("version ", facts->version)));
  }
  const ContainerdPlugin* plugin = FindPlugin(*facts, "io.containerd.snapshotter.v1", snapshotter);
  if (plugin == nullptr) {
    findings.push_back(
        Fail("registration", absl::StrCat("containerd knows no snapshotter ", snapshotter),
             absl::StrCat("[proxy_plugins.", snapshotter, "] type = \"snapshot\", address = \"", address,
                          "\" in /etc/containerd/config.toml, then restart containerd")));
    return findings;
  }
  for (Finding& finding : CheckPlugin(*plugin, version, address)) findings.push_back(std::move(finding));

  std::optional<Finding> transfer = CheckTransfer(*facts, *plugin, version);
  if (transfer.has_value()) findings.push_back(*transfer);
  const ContainerdPlugin* cri = FindPlugin(*facts, "io.containerd.grpc.v1", "cri");
  if (cri == nullptr || !cri->init_error.empty()) return findings;
  // From 2.1 on CRI pulls by the transfer service, if it can.
  const bool by_transfer =
      version >= Version{2, 1, 0} && transfer.has_value() && transfer->severity == Severity::kOk;
  const std::string why = by_transfer ? WhyCriPullsItself(facts->config) : "";
  if ((by_transfer && why.empty()) || ConfigSets(facts->config, "disable_snapshot_annotations", "false")) {
    findings.push_back(Ok("kubelet", "CRI tells the snapshotter which image a layer is of"));
  } else {
    findings.push_back(Warning(
        "kubelet",
        absl::StrCat(
            "CRI does not tell the snapshotter which image a layer is of: pulls of kubelet are not lazy",
            why.empty() ? "" : absl::StrCat("; for ", why, " it pulls without the transfer service")),
        "disable_snapshot_annotations = false in the CRI section of containerd's config.toml"));
  }
  return findings;
}

Findings CheckContentStore(const absl::StatusOr<ContainerdFacts>& facts, bool enabled,
                           const std::string& address) {
  constexpr char kCheck[] = "content store";
  if (!facts.ok()) return {};  // CheckContainerd says why
  const ContainerdPlugin* ours = nullptr;
  const ContainerdPlugin* other = nullptr;
  for (const ContainerdPlugin& plugin : facts->plugins) {
    if (plugin.type != "io.containerd.content.v1") continue;
    auto told = plugin.exports.find("address");
    (told != plugin.exports.end() && told->second == address ? ours : other) = &plugin;
  }
  if (ours == nullptr) {
    if (!enabled) return {};
    return {Warning(kCheck,
                    absl::StrCat("lazyblobd serves one on ", address, ", and containerd does not use it"),
                    "add deploy/containerd-content.toml to containerd's configuration "
                    "(docs/CONTENT_SERVICE.md, switching over), or set content.enabled = false")};
  }
  if (!enabled) {
    return {Fail(kCheck, absl::StrCat("containerd's is ", ours->id, ", which lazyblobd does not serve"),
                 "content.enabled = true in lazyblob's config.toml, then systemctl reload lazyblob")};
  }
  if (!ours->init_error.empty()) {
    return {Fail(kCheck, absl::StrCat("containerd could not use ", ours->id, ": ", ours->init_error),
                 "see containerd's log, then restart it")};
  }
  if (other != nullptr && other->init_error.empty()) {
    return {Fail(kCheck,
                 absl::StrCat("containerd has two, ", ours->id, " and ", other->id,
                              ": which one it uses is left to chance"),
                 absl::StrCat("disabled_plugins = [\"io.containerd.content.v1.", other->id,
                              "\"] at the top of containerd's config.toml, then restart containerd"))};
  }
  for (const char* isolated : {"\"isolated\"", "'isolated'"}) {
    if (!ConfigSets(facts->config, "content_sharing_policy", isolated)) continue;
    return {Fail(kCheck,
                 "content_sharing_policy is \"isolated\": containerd then wants the bytes of each blob from "
                 "each client, and no pull is lazy",
                 "content_sharing_policy = \"shared\" (the default) in "
                 "[plugins.\"io.containerd.metadata.v1.bolt\"]")};
  }
  return {Ok(kCheck, absl::StrCat(ours->id, "; containerd's content depends on lazyblobd"))};
}

absl::StatusOr<MountNamespace> NamespaceBehind(const std::string& socket_path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat(socket_path, ": too long for a socket"));
  }
  socket_path.copy(address.sun_path, sizeof address.sun_path - 1);
  base::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("connect to ", socket_path));
  }
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("peer of ", socket_path));
  }
  if (peer.pid <= 0) {
    return absl::NotFoundError(absl::StrCat("who listens on ", socket_path, " is in another pid namespace"));
  }
  return NamespaceOf(absl::StrCat("/proc/", peer.pid));
}

absl::StatusOr<MountNamespace> NamespaceOf(const std::string& process) {
  struct stat st;
  if (stat((process + "/ns/mnt").c_str(), &st) != 0) return base::ErrnoStatus(errno, process + "/ns/mnt");
  MountNamespace result;
  result.id = st.st_ino;
  ASSIGN_OR_RETURN(result.mountinfo, base::ReadFile(process + "/mountinfo", kMaxMountInfo));
  return result;
}

bool HasFailure(const Findings& findings) {
  return std::any_of(findings.begin(), findings.end(),
                     [](const Finding& finding) { return finding.severity == Severity::kFail; });
}

namespace {

const char* Name(Severity severity) {
  return severity == Severity::kOk ? "ok" : severity == Severity::kWarning ? "warning" : "FAIL";
}

}  // namespace

void PrintFindings(const Findings& findings, std::ostream& out) {
  for (const Finding& finding : findings) {
    out << absl::StrFormat("%-8s %-18s %s", Name(finding.severity), finding.check,
                           base::Printable(finding.text));
    if (!finding.fix.empty()) out << ". Fix: " << finding.fix;
    out << "\n";
  }
}

nlohmann::json ToJson(const Findings& findings) {
  nlohmann::json checks = nlohmann::json::array();
  for (const Finding& finding : findings) {
    checks.push_back({{"check", finding.check},
                      {"result", Name(finding.severity)},
                      {"text", base::Printable(finding.text)},
                      {"fix", finding.fix}});
  }
  return {{"healthy", !HasFailure(findings)}, {"checks", std::move(checks)}};
}

}  // namespace lazyblob::daemon

#pragma once

// /etc/lazyblob/config.toml. docs/CONFIG.md lists every key; each has a default, an unknown one is an error
// that names the line. Values only; thread-safe as such.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lazyblob::daemon {

struct Config {
  friend bool operator==(const Config&, const Config&) = default;
  std::string root = "/var/lib/lazyblob";
  std::string address = "/run/lazyblob/lazyblob.sock";  // containerd's services
  std::string log_level = "info";                       // error, warning, info, debug

  struct Cache {
    friend bool operator==(const Cache&, const Cache&) = default;
    uint64_t max_bytes = 0;   // of all that can be fetched again; 0: no limit
    uint64_t pinned_max = 0;  // of layers mounted on their cache file; 0: half of max_bytes
    uint64_t min_free = 0;    // of the root's file system; 0: not looked at
    // How often all is compared with its digests; infinite: never.
    absl::Duration scrub = absl::Hours(168);
    bool keep_blobs = false;  // original bytes that were read whole stay in the store
    bool fill = false;        // what is mounted comes whole, in the background
  } cache;
  struct Fuse {
    friend bool operator==(const Fuse&, const Fuse&) = default;
    std::string mode = "auto";
    absl::Duration read_deadline = absl::Seconds(60);
  } fuse;
  struct Snapshotter {
    friend bool operator==(const Snapshotter&, const Snapshotter&) = default;
    // What becomes of a plain layer that has no index yet: "stream" it once into the cache, or leave it to
    // the "client" to fetch and unpack.
    std::string plain_layers = "stream";
    // When the diffID of a layer that is read through a table of contents is compared: "read", when something
    // reads all of it, or "mount", before it is mounted.
    std::string compare_diff_ids = "read";
    absl::Duration resolve_timeout = absl::Seconds(60);  // of manifest, config and tables of contents
    std::vector<std::string> url_hosts;  // hosts that `remote/urls` labels may name; https, no credentials
  } snapshotter;
  struct Registry {
    friend bool operator==(const Registry&, const Registry&) = default;
    std::string config_path;  // directories of hosts.toml, as containerd's; ':' between them
    std::string ca_file;
  } registry;
  struct Credentials {
    friend bool operator==(const Credentials&, const Credentials&) = default;
    std::string docker_config = "/root/.docker/config.json";  // empty: none
    std::string kubernetes_secrets;  // file, or directory of files, of pull secrets; empty: none
    bool cri = false;                // learn from kubelet's pulls, proxied to the next
    std::string cri_image_service = "/run/containerd/containerd.sock";
  } credentials;
  struct Content {
    friend bool operator==(const Content&, const Content&) = default;
    bool enabled = false;  // serve containerd's content store on `address`
    std::string containerd_address = "/run/containerd/containerd.sock";  // whose content it is
  } content;
};

// InvalidArgument "FILE:LINE: what is wrong, what it must be" for the first thing that is wrong. `path` must
// exist if `required`; else a missing file is the defaults.
absl::StatusOr<Config> LoadConfig(const std::string& path, bool required);
absl::StatusOr<Config> ParseConfig(absl::string_view text, absl::string_view name);
// Every key, "fuse.mode".
std::vector<std::string> ConfigKeys();

}  // namespace lazyblob::daemon

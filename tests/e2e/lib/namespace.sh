# A mount and a PID namespace of a script's own: what it mounts nobody else sees, and whatever ends the script ends
# every process that it started, containers and their shims too. Only control groups are everybody's. E2E_UNSHARE, set
# before: more of unshare's options, e.g. --net.
#
#   enter_namespace "$0" "$@"   starts the script again in the namespaces; returns when it is there. After common.sh
#   forget_cgroups              registers a cleanup: control groups that appeared meanwhile go

enter_namespace() {
  [ "$(id -u)" = 0 ] || die "needs root: it mounts file systems and runs containers"
  [ -z "${E2E_ENTERED:-}" ] || return 0
  E2E_ENTERED=1 exec unshare --mount --propagation private ${E2E_UNSHARE:+"$E2E_UNSHARE"} --pid --fork --mount-proc --kill-child "$@"
}

_cgroups() { find /sys/fs/cgroup -mindepth 2 -type d 2>/dev/null | sort; }

forget_cgroups() {
  _CGROUPS_BEFORE=$(_cgroups)
  on_exit '_remove_new_cgroups'
}

_remove_new_cgroups() {
  comm -13 <(printf '%s\n' "$_CGROUPS_BEFORE") <(_cgroups) | grep -E '/(docker|default|moby|k8s\.io|buildkit|e2e)(/|$)' |
    sort -r | while read -r group; do rmdir "$group" 2>/dev/null; done
}

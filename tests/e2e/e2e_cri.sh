#!/bin/bash
# Pulls as kubelet makes them: CRI's image service of Debian's containerd behind lazyblobd's socket, containerd's
# snapshotter behind it again, and a docker-registry that wants a password. Parts (default: all):
#   kubelet   the credentials of PullImage reach lazyblobd and nobody else; without them nothing is pulled
#   secrets   pull secrets in a file, for containerd's other clients
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo containerd ctr ctr-remote runc
CRI_CLIENT=$BUILD_DIR/tests/cri_client
[ -x "$CRI_CLIENT" ] || die "no $CRI_CLIENT: build first (make build)"
make_scratch
chmod 0711 "$SCRATCH"
private_programs
forget_cgroups
mkdir -p /run/containerd
mount -t tmpfs -o mode=0711 shims /run/containerd   # sockets of shims: of this run alone
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
CTR_PARENT=$SCRATCH
START='import json; print(json.dumps(list(range(3))))'
# The manifests' tools of other scripts know no password.
size=$(registry_start cri-open "$WORK/images/registry" >&2; image_size debian:estargz; registry_stop)
export HOME=$SCRATCH/home DOCKER_CONFIG=$SCRATCH/home
mkdir -p "$HOME"

eval "_$(declare -f containerd_launch)"
containerd_launch() {
  sed -i 's/"io.containerd.grpc.v1.cri", //' "$CTR_DIR/config.toml"
  _containerd_launch
}
cri() { timeout -k 5 300 "$CRI_CLIENT" "$@"; }

# machine NAME [TOML of lazyblobd]
machine() {
  registry_start "cri-$1" "$WORK/images/registry" basic
  serve_configure "$1" "${2:-}"
  serve_plain_http "$REG"
  serve_start
  CTR_EXTRA="$(proxy_plugin lazyblob)
[plugins.\"io.containerd.grpc.v1.cri\"]
  stream_server_port = \"0\"
  [plugins.\"io.containerd.grpc.v1.cri\".containerd]
    snapshotter = \"lazyblob\"
    disable_snapshot_annotations = false
  [plugins.\"io.containerd.grpc.v1.cri\".registry]
    config_path = \"$LB_HOSTS\""
  containerd_start "containerd-$1" lazyblob
}
machine_end() {
  remove_everything || fail "$1: images cannot be removed"
  local left; left=$(left_behind)
  [ -z "$left" ] || fail "$1: left behind: $(head -c 600 <<< "$left")"
  no_secrets "$1"
  containerd_stop
  serve_stop
  registry_stop
}
# Neither the password nor its base64 is anywhere in what lazyblobd says, is called with or writes.
no_secrets() {
  local pid found
  for pid in $(pgrep -f -- "--root $ROOT_DIR"); do
    tr '\0' '\n' < "/proc/$pid/cmdline" 2>/dev/null
  done > "$SCRATCH/said"
  cat "$LB_LOG" >> "$SCRATCH/said"
  lb --root "$ROOT_DIR" status --json >> "$SCRATCH/said"
  found=$(grep -cE 'tester:secret|dGVzdGVyOnNlY3JldA' "$SCRATCH/said") || true
  [ "$found" = 0 ] || fail "$1: the password is in what lazyblobd says"
  found=$(grep -rlE 'tester:secret|dGVzdGVyOnNlY3JldA' "$ROOT_DIR" --include='*.json' --include='*.db*' | head -3) || true
  [ -z "$found" ] || fail "$1: the password is in $found"
}
check_lazy() {  # WHAT MARK
  local got
  got=$(fetched_since "$2")
  [ "$got" -le $((size * 30 / 100)) ] || fail "$1: $got of $size bytes fetched, more than 30 %"
  log "$1: $(megabytes "$got") of $(megabytes "$size") MB ($(percent "$got" "$size") %)"
}
run_python() {  # WHAT
  ctr_ run --rm --snapshotter lazyblob "$REG/debian:estargz" "python-$RANDOM" /usr/bin/python3 -c "$START" \
    > "$SCRATCH/out" 2>&1 || true
  grep -qx '\[0, 1, 2\]' "$SCRATCH/out" || fail "$1: python3 said $(tail -1 "$SCRATCH/out")"
}

part_kubelet() {
  local mark image direct layers
  machine kubelet "[credentials]
docker_config = \"\"
cri = true
cri_image_service = \"$SCRATCH/containerd-kubelet/containerd.sock\""
  export CONTAINERD_NAMESPACE=k8s.io
  image=$REG/debian:estargz
  wait_until 30 "CRI does not answer through lazyblobd" cri "$LB_SOCKET" list
  cri "$LB_SOCKET" pull "$image" > "$SCRATCH/pull.out" 2>&1 && fail "pulled without a password"
  CRI_AUTH=tester:wrong cri "$LB_SOCKET" pull "$image" > "$SCRATCH/pull.out" 2>&1 && fail "pulled with a wrong password"
  mark=$(registry_mark)
  CRI_AUTH=tester:secret cri "$LB_SOCKET" pull "$image" > "$SCRATCH/pull.out" 2>&1 ||
    fail "pull: $(tail -1 "$SCRATCH/pull.out")"
  layers=$(ctr_ content ls | grep -c 'tar+gzip\|layer' || true)
  ctr_ snapshots --snapshotter lazyblob ls > "$SCRATCH/snapshots"
  [ "$(grep -c Committed "$SCRATCH/snapshots")" = 4 ] || fail "snapshots: $(cat "$SCRATCH/snapshots")"
  lb --root "$ROOT_DIR" status > "$SCRATCH/status"
  grep -q 'not lazy' "$SCRATCH/status" && fail "not lazy: $(cat "$SCRATCH/status")"
  run_python kubelet
  check_lazy kubelet "$mark"
  for question in list "status $image"; do
    # shellcheck disable=SC2086
    direct=$(cri "$CTR_ADDRESS" $question)
    # shellcheck disable=SC2086
    [ -n "$direct" ] && [ "$direct" = "$(cri "$LB_SOCKET" $question)" ] || fail "$question: not what containerd says"
  done
  [ "$layers" = 0 ] || fail "containerd's content store has $layers layers"
  containerd_kill
  cri "$LB_SOCKET" list > "$SCRATCH/out" 2>&1 && fail "CRI answers without containerd"
  grep -q '^cri_client: 14: ' "$SCRATCH/out" || fail "without containerd: $(cat "$SCRATCH/out"), not UNAVAILABLE"
  containerd_launch
  wait_until 30 "CRI does not come back with containerd" cri "$LB_SOCKET" list
  machine_end kubelet
  unset CONTAINERD_NAMESPACE
}

part_secrets() {
  local mark secret=$SCRATCH/pull-secret.json
  machine secrets "[credentials]
docker_config = \"\"
kubernetes_secrets = \"$secret\""
  rpull() { ctr_remote images rpull --plain-http --user tester:secret --snapshotter lazyblob "$1" > "$SCRATCH/pull.out" 2>&1; }
  printf '{"auths":{"%s":{"username":"tester","password":"secret"}}}' "$REG" | base64 -w0 > "$SCRATCH/payload"
  (umask 022; printf '{"apiVersion":"v1","kind":"Secret","type":"kubernetes.io/dockerconfigjson","metadata":{"name":"p"},
    "data":{".dockerconfigjson":"%s"}}' "$(cat "$SCRATCH/payload")" > "$secret")
  mark=$(registry_mark)
  rpull "$REG/debian:estargz" || fail "rpull: $(tail -1 "$SCRATCH/pull.out")"
  grep -q 'has mode 0644; refused' "$LB_LOG" || fail "a secret that others can read is not refused: $(tail -2 "$LB_LOG")"
  [ "$(fetched_since "$mark")" -ge $((size * 80 / 100)) ] || fail "containerd unpacked, yet little was fetched"
  remove_everything
  chmod 600 "$secret"
  mark=$(registry_mark)
  rpull "$REG/debian:estargz" || fail "rpull: $(tail -1 "$SCRATCH/pull.out")"
  run_python secrets
  check_lazy secrets "$mark"
  machine_end secrets
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(kubelet secrets)
for part in "${parts[@]}"; do "part_$part"; done
log "$failures failures"
[ "$failures" = 0 ]

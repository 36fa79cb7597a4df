#!/bin/bash
# containerd (Debian's, 1.6) with lazyblobd as its snapshotter and its content store: pulls without any label of
# ours are lazy, and what was pulled lazily is whole to whoever reads it. Parts (default: all):
#   cri     a pull by CRI with snapshot annotations disabled, run; listed, pushed, exported
#   ctr     ctr images pull: fetching moves no layer byte, unpacking reads each layer once; kept over kill -9
#   heal    a registry that has lost a layer: the next pull is as if the store had never known it
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry judge lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo umoci containerd ctr runc
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
export HOME=$SCRATCH/home
mkdir -p "$HOME"

eval "_$(declare -f containerd_launch)"
containerd_launch() {
  [ -n "${STOCK:-}" ] || sed -i 's/"io.containerd.grpc.v1.cri", /"io.containerd.content.v1.content", /' "$CTR_DIR/config.toml"
  _containerd_launch
}
cri() { timeout -k 5 300 "$CRI_CLIENT" "$CTR_ADDRESS" "$@"; }

# machine NAME STORE: a registry on STORE, lazyblobd, containerd on both of its services.
machine() {
  registry_start "content-$1" "$2"
  serve_configure "$1" "[content]
enabled = true
containerd_address = \"$SCRATCH/containerd-$1/containerd.sock\""
  serve_plain_http "$REG"
  serve_start
  CTR_EXTRA="$(proxy_plugin lazyblob)
[proxy_plugins.lazyblob-content]
  type = \"content\"
  address = \"$LB_SOCKET\"
[plugins.\"io.containerd.grpc.v1.cri\"]
  stream_server_port = \"0\"
  [plugins.\"io.containerd.grpc.v1.cri\".containerd]
    snapshotter = \"lazyblob\"
    disable_snapshot_annotations = true
  [plugins.\"io.containerd.grpc.v1.cri\".registry]
    config_path = \"$LB_HOSTS\""
  containerd_start "containerd-$1" lazyblob
}
machine_end() {
  remove_everything || fail "$1: images cannot be removed"
  local left; left=$(left_behind)
  [ -z "$left" ] || fail "$1: left behind: $(head -c 600 <<< "$left")"
  wait_until 30 "$1: lazy blobs are still listed: \$(held_blobs)" no_held_blobs
  containerd_stop
  serve_stop
  registry_stop
}
held_blobs() {
  "$PYTHON" -c 'import sqlite3,sys; print(*[r[0] for r in sqlite3.connect(sys.argv[1]).execute("SELECT digest FROM blobs WHERE held")])' \
    "$ROOT_DIR/content/lazy.db"
}
no_held_blobs() { [ -z "$(held_blobs)" ]; }
has_all_layers() { [ "$(content_has_layers "$1")" = "$(image_layers "$1" | wc -l)" ]; }
# Requests that bring something since MARK.
uploads_since() {
  sleep 0.3
  tail -n "+$(($1 + 1))" "$REG_LOG" | grep '"response completed' | grep -cE '"http.request.method":"(PUT|POST|PATCH)"' || true
}
check_lazy() {  # WHAT MARK SIZE
  local got
  got=$(fetched_since "$2")
  [ "$got" -le $(($3 * 30 / 100)) ] || fail "$1: $got of $3 bytes fetched, more than 30 %"
  log "$1: $(megabytes "$got") of $(megabytes "$3") MB ($(percent "$got" "$3") %)"
}
# tree_in_stock ARCHIVE REF DIR: the root of REF as a containerd unpacks it that knows nothing of lazyblob.
tree_in_stock() {
  local dir=$CTR_DIR address=$CTR_ADDRESS pid=$CTR_PID extra=$CTR_EXTRA
  STOCK=1 CTR_EXTRA=
  containerd_start stock overlayfs
  ctr_ images import "$1" > "$SCRATCH/import.out" 2>&1 || fail "import: $(tail -1 "$SCRATCH/import.out")"
  mkdir -p "$3" "$3.mount"
  ctr_ images mount --snapshotter overlayfs "$2" "$3.mount" > /dev/null || fail "$2 cannot be mounted after the import"
  cp -a "$3.mount/." "$3/"
  ctr_ images unmount --snapshotter overlayfs "$3.mount" > /dev/null
  containerd_stop
  STOCK='' CTR_DIR=$dir CTR_ADDRESS=$address CTR_PID=$pid CTR_EXTRA=$extra CTR_SNAPSHOTTER=lazyblob
}
same_tree() {  # WHAT A B
  "$PYTHON" "$E2E_DIR/tree_diff.py" --max-lines 20 --allow root-mtime --allow-file "$JUDGE_ALLOW" "$2" "$3" > "$SCRATCH/diff" 2>&1 ||
    { fail "$1: trees differ"; cat "$SCRATCH/diff" >&2; }
}

part_cri() {
  local mark image size own own_log own_pid
  machine cri "$WORK/images/registry"
  judge_tree debian gzip
  export CONTAINERD_NAMESPACE=k8s.io
  image=$REG/debian:estargz size=$(image_size debian:estargz)
  mark=$(registry_mark)
  cri pull "$image" > "$SCRATCH/pull.out" 2>&1 || fail "pull: $(tail -1 "$SCRATCH/pull.out")"
  lb --root "$ROOT_DIR" status > "$SCRATCH/status"
  grep -q 'not lazy' "$SCRATCH/status" && fail "not lazy: $(grep 'not lazy' "$SCRATCH/status")"
  ctr_ run --rm --snapshotter lazyblob "$image" "python-$RANDOM" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  grep -qx '\[0, 1, 2\]' "$SCRATCH/out" || fail "python3 said $(tail -1 "$SCRATCH/out")"
  check_lazy "pull by CRI without annotations, run" "$mark" "$size"
  wait_until 30 'content ls lists $(content_has_layers debian:estargz) layers' has_all_layers debian:estargz
  ctr_ images check --snapshotter lazyblob "name==$image" > "$SCRATCH/out"
  grep -q complete "$SCRATCH/out" || fail "ctr images check: $(tail -1 "$SCRATCH/out")"

  mark=$(registry_mark)
  ctr_ images push --plain-http "$image" > "$SCRATCH/push.out" 2>&1 || fail "push to where it is: $(tail -1 "$SCRATCH/push.out")"
  [ "$(uploads_since "$mark")" = 0 ] || fail "push to where it is uploads something"
  log "push to where it is: $(megabytes "$(fetched_since "$mark")") MB read, nothing uploaded"
  own=$REG own_log=$REG_LOG own_pid=$REG_PID mark=$(registry_mark)
  registry_start content-other "$SCRATCH/other"
  ctr_ images tag "$image" "$REG/debian:pushed" > /dev/null
  ctr_ images push --plain-http "$REG/debian:pushed" > "$SCRATCH/push.out" 2>&1 || fail "push elsewhere: $(tail -1 "$SCRATCH/push.out")"
  skopeo copy -q --preserve-digests --src-tls-verify=false "docker://$REG/debian:pushed" "oci:$SCRATCH/pushed:image" ||
    fail "what was pushed is not whole"
  [ "$(skopeo inspect --raw --tls-verify=false "docker://$REG/debian:pushed" | sha256sum)" = \
    "$(skopeo inspect --raw --tls-verify=false "docker://$image" | sha256sum)" ] || fail "another manifest was pushed"
  registry_stop
  REG=$own REG_LOG=$own_log REG_PID=$own_pid
  log "push elsewhere: $(megabytes "$(fetched_since "$mark")") MB read of $(megabytes "$size")"

  mark=$(registry_mark)
  ctr_ images export "$SCRATCH/exported.tar" "$image" > "$SCRATCH/out" 2>&1 || fail "export: $(tail -1 "$SCRATCH/out")"
  log "export: $(megabytes "$(fetched_since "$mark")") MB read"
  skopeo copy -q --src-tls-verify=false "docker://$image" "oci-archive:$SCRATCH/direct.tar:$image"
  tree_in_stock "$SCRATCH/exported.tar" "$image" "$SCRATCH/tree-exported"
  tree_in_stock "$SCRATCH/direct.tar" "$image" "$SCRATCH/tree-direct"
  same_tree "exported image" "$SCRATCH/tree-direct" "$SCRATCH/tree-exported"

  mark=$(registry_mark)
  ctr_ images convert --uncompress "$image" localhost/converted:1 > "$SCRATCH/out" 2>&1 || fail "convert: $(tail -1 "$SCRATCH/out")"
  log "convert: $(megabytes "$(fetched_since "$mark")") MB read"
  ctr_ images export "$SCRATCH/converted.tar" localhost/converted:1 > "$SCRATCH/out" 2>&1 || fail "export of what was converted: $(tail -1 "$SCRATCH/out")"
  skopeo copy -q --preserve-digests "oci-archive:$SCRATCH/converted.tar" "oci:$SCRATCH/converted:image" || fail "what was converted is not whole"
  [ "$(skopeo inspect "oci:$SCRATCH/converted:image" | jq -c .Layers)" = "$(skopeo inspect --config "oci:$SCRATCH/converted:image" | jq -c .rootfs.diff_ids)" ] ||
    fail "what was converted is still compressed"
  machine_end cri
  unset CONTAINERD_NAMESPACE
}

part_ctr() {
  local mark image size got layer bytes daemon
  machine ctr "$WORK/images/registry"
  image=$REG/debian:gzip size=$(image_size debian:gzip)
  mark=$(registry_mark)
  ctr_ content fetch --plain-http "$image" > "$SCRATCH/pull.out" 2>&1 || fail "fetch: $(tail -1 "$SCRATCH/pull.out")"
  got=$(fetched_since "$mark")
  [ "$got" -le 65536 ] || fail "fetching moved $got bytes of blobs, and not the config alone"
  has_all_layers debian:gzip || fail "content ls lists $(content_has_layers debian:gzip) layers"
  log "ctr content fetch: $got bytes of blobs, $(image_layers debian:gzip | wc -l) layers listed"
  mark=$(registry_mark)
  ctr_ images pull --plain-http --snapshotter lazyblob "$image" > "$SCRATCH/pull.out" 2>&1 || fail "pull: $(tail -1 "$SCRATCH/pull.out")"
  got=$(fetched_since "$mark")
  [ "$got" -ge "$size" ] && [ "$got" -le $((size * 105 / 100)) ] || fail "unpacking read $got bytes of layers of $size"
  ctr_ run --rm --snapshotter lazyblob "$image" "python-$RANDOM" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  grep -qx '\[0, 1, 2\]' "$SCRATCH/out" || fail "python3 said $(tail -1 "$SCRATCH/out")"
  log "ctr images pull: unpacking read $(megabytes "$got") of $(megabytes "$size") MB"

  daemon=$(lb_daemon_pid "$ROOT_DIR")
  kill -9 "$daemon"
  read -r layer bytes < <(image_layers debian:gzip | sort -k2n | tail -1)
  wait_until 30 "after kill -9: containerd cannot read layer $layer" read_layer "$layer"
  has_all_layers debian:gzip || fail "after kill -9: content ls lists $(content_has_layers debian:gzip) layers"
  [ "sha256:$(sha256sum < "$SCRATCH/layer" | cut -d' ' -f1)" = "$layer" ] || fail "after kill -9: other bytes"
  log "after kill -9: $bytes bytes of a layer read"
  # Another namespace shares what is known.
  mark=$(registry_mark)
  CONTAINERD_NAMESPACE=other ctr_ content fetch --plain-http "$image" > "$SCRATCH/pull.out" 2>&1 || fail "fetch: $(tail -1 "$SCRATCH/pull.out")"
  [ "$(fetched_since "$mark")" = 0 ] || fail "another namespace fetches again"
  CONTAINERD_NAMESPACE=other remove_everything || fail "the other namespace's images cannot be removed"
  has_all_layers debian:gzip || fail "the other namespace took what was not its own"
  machine_end ctr
}

read_layer() { ctr_ content get "$1" > "$SCRATCH/layer" 2> /dev/null; }

part_heal() {
  local image layer blob mark
  mkdir -p "$SCRATCH/store"
  registry_start heal-source "$WORK/images/registry"
  skopeo copy -q --preserve-digests --src-tls-verify=false "docker://$REG/debian:gzip" "oci:$SCRATCH/heal:image"
  registry_stop
  machine heal "$SCRATCH/store"
  image=$REG/debian:gzip
  skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$SCRATCH/heal:image" "docker://$image"
  read -r layer _ < <(image_layers debian:gzip | sort -k2n | tail -1)
  ctr_ content fetch --plain-http "$image" > "$SCRATCH/pull.out" 2>&1 || fail "fetch: $(tail -1 "$SCRATCH/pull.out")"
  blob=$(find "$SCRATCH/store" -type d -name "${layer#sha256:}" -path '*blobs*')
  mv "$blob/data" "$SCRATCH/data"
  ctr_ images pull --plain-http --snapshotter lazyblob "$image" > "$SCRATCH/pull.out" 2>&1 && fail "pulled a layer that is nowhere"
  mv "$SCRATCH/data" "$blob/data"
  wait_until 30 "the namespace still holds the lost layer" lost_layer "$layer"
  mark=$(registry_mark)
  ctr_ images pull --plain-http --snapshotter lazyblob "$image" > "$SCRATCH/pull.out" 2>&1 ||
    fail "the second pull: $(tail -1 "$SCRATCH/pull.out")"
  ctr_ run --rm --snapshotter lazyblob "$image" "python-$RANDOM" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  grep -qx '\[0, 1, 2\]' "$SCRATCH/out" || fail "python3 said $(tail -1 "$SCRATCH/out")"
  log "healed: $(megabytes "$(fetched_since "$mark")") MB fetched by the second pull"
  machine_end heal
}
lost_layer() { ! ctr_ content ls -q | grep -qx "$1"; }

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(cri ctr heal)
for part in "${parts[@]}"; do "part_$part"; done
log "$failures failures"
[ "$failures" = 0 ]

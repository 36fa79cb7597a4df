#!/bin/bash
# containerd (Debian's, 1.6) on lazyblobd's content store, with overlayfs as its snapshotter. Parts (default: all):
#   store    what ctr does with content, and an image pulled, unpacked and removed, as on containerd's own store
#   switch   an existing containerd is switched over and back, its content with it
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo containerd ctr
make_scratch
chmod 0711 "$SCRATCH"
private_programs
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
CTR_PARENT=$SCRATCH
export HOME=$SCRATCH/home
mkdir -p "$HOME"

# The configuration says which of the two stores the next containerd has.
BUILT_IN='"io.containerd.content.v1.content", '
eval "_$(declare -f containerd_launch)"
containerd_launch() {
  sed -i "s/$BUILT_IN//; /^\[proxy_plugins.lazyblob-content\]/,+2d" "$CTR_DIR/config.toml"
  if [ -n "${OURS:-}" ]; then
    sed -i "s/^disabled_plugins = \[/&$BUILT_IN/" "$CTR_DIR/config.toml"
    printf '[proxy_plugins.lazyblob-content]\n  type = "content"\n  address = "%s"\n' "$LB_SOCKET" >> "$CTR_DIR/config.toml"
  fi
  _containerd_launch
}
containerd_end() { end_process "$CTR_PID"; }
configure() {
  serve_configure "$1" "[content]
enabled = true
containerd_address = \"$SCRATCH/containerd-$1/containerd.sock\""
  serve_plain_http "$REG"
}
# fails WHAT WORDS COMMAND…: the command fails, and says WORDS.
fails() {
  local what=$1 words=$2
  shift 2
  "$@" > "$SCRATCH/out" 2>&1 && fail "$what: succeeded"
  grep -q -- "$words" "$SCRATCH/out" || fail "$what: not \"$words\" but: $(tail -1 "$SCRATCH/out")"
}
digest_of() { echo "sha256:$(sha256sum < "$1" | cut -d' ' -f1)"; }

check_ctr_content() {
  local digest small
  head -c 3000000 /dev/urandom > "$SCRATCH/blob"
  digest=$(digest_of "$SCRATCH/blob")
  ctr_ content ingest --expected-digest "$digest" --expected-size 3000000 r1 < "$SCRATCH/blob" || fail "content ingest"
  ctr_ content get "$digest" > "$SCRATCH/got" || fail "content get"
  cmp -s "$SCRATCH/blob" "$SCRATCH/got" || fail "content get gives other bytes"
  [ "$(ctr_ content ls -q | grep -cx "$digest")" = 1 ] || fail "content ls does not list it"
  ctr_ content ingest --expected-digest "$digest" r2 < "$SCRATCH/blob" || fail "content ingest of what is there"
  ctr_ content label "$digest" color=blue > /dev/null || fail "content label"
  ctr_ content ls "labels.color==blue" | grep -q "$digest" || fail "content ls does not find it by label"
  [ -z "$(ctr_ content ls -q "labels.color==red")" ] || fail "content ls finds it by another label"
  printf hello > "$SCRATCH/small"
  small=$(digest_of "$SCRATCH/small")
  fails "a wrong digest" "unexpected commit digest" \
    ctr_ content ingest --expected-digest "sha256:$(printf %064d 1)" --expected-size 5 r3 < "$SCRATCH/small"
  fails "a wrong size" "unexpected\|failed size" ctr_ content ingest --expected-size 6 r4 < "$SCRATCH/small"
  ctr_ content active > "$SCRATCH/active" || fail "content active"
  ctr_ content ingest --expected-digest "$small" --expected-size 5 r6 < "$SCRATCH/small" || fail "content ingest of few bytes"
  fails "a blob that is none" "not found" ctr_ content get "sha256:$(printf %064d 0)"
  ctr_ content rm "$digest" > /dev/null || fail "content rm"
  fails "a blob that was removed" "not found" ctr_ content get "$digest"
  # An ingest that its writer leaves is listed, and gone on with.
  head -c 3000000 /dev/urandom > "$SCRATCH/blob"
  digest=$(digest_of "$SCRATCH/blob")
  (head -c 1000000 "$SCRATCH/blob"; sleep 5) | timeout 2 ctr --address "$CTR_ADDRESS" content ingest \
    --expected-digest "$digest" --expected-size 3000000 left > /dev/null 2>&1 && fail "an ingest without its end was committed"
  wait_until 10 "the ingest is not listed" in_active left
  ctr_ content ingest --expected-digest "$digest" --expected-size 3000000 left < "$SCRATCH/blob" || fail "going on with an ingest"
  ctr_ content get "$digest" | cmp -s - "$SCRATCH/blob" || fail "gone on with: other bytes"
  log "ctr content: ingest, get, ls, label, active, rm"
}
in_active() { ctr_ content active | grep -q "$1"; }

part_store() {
  local image daemon ours_dir ours_pid ours_address
  registry_start content-store "$WORK/images/registry"
  configure store
  serve_start
  # Nothing refers to what ctr ingests: containerd's first collection, soon after its start, would take it away.
  CTR_EXTRA=$'[plugins."io.containerd.gc.v1.scheduler"]\n  startup_delay = "1h"' OURS=1 containerd_start containerd-store overlayfs
  check_ctr_content
  image=$REG/debian:gzip
  ctr_ content fetch --plain-http "$image" > "$SCRATCH/out" 2>&1 || fail "content fetch: $(tail -1 "$SCRATCH/out")"
  mkdir -p "$SCRATCH/ours" "$SCRATCH/stock"
  containerd_unpack "$image" "$SCRATCH/ours"
  ctr_ images check "name==$image" | grep -q complete || fail "the image is not complete"
  daemon=$(lb_daemon_pid "$ROOT_DIR")
  kill -9 "$daemon"
  wait_until 30 "after kill -9 the content is not listed" ctr_ images check "name==$image"
  ctr_ images export "$SCRATCH/image.tar" "$image" > "$SCRATCH/out" 2>&1 || fail "export: $(tail -1 "$SCRATCH/out")"
  skopeo inspect "oci-archive:$SCRATCH/image.tar" > /dev/null || fail "the export is not an image"
  { printf 'address = "%s"\n' "$LB_SOCKET"; cat "$LB_CONFIG"; } > "$SCRATCH/doctor.toml"
  lb --root "$ROOT_DIR" doctor --config "$SCRATCH/doctor.toml" --containerd "$CTR_ADDRESS" --containerd-config "$CTR_DIR/config.toml" \
    > "$SCRATCH/out" 2>&1 || true
  grep -q '^ok *content store *lazyblob-content' "$SCRATCH/out" || fail "doctor: $(grep 'content store' "$SCRATCH/out")"
  ours_dir=$CTR_DIR ours_pid=$CTR_PID ours_address=$CTR_ADDRESS
  OURS='' containerd_start containerd-stock overlayfs
  containerd_unpack "$image" "$SCRATCH/stock"
  "$PYTHON" "$E2E_DIR/tree_diff.py" --max-lines 20 --allow implied-dir-mtime --allow root-mtime "$SCRATCH/stock" "$SCRATCH/ours" > "$SCRATCH/diff" 2>&1 ||
    { fail "the trees differ"; cat "$SCRATCH/diff" >&2; }
  log "$image: pulled and unpacked as on containerd's own store"
  umount "$SCRATCH/stock"
  containerd_stop
  CTR_DIR=$ours_dir CTR_PID=$ours_pid CTR_ADDRESS=$ours_address
  umount "$SCRATCH/ours"
  ctr_ images rm --sync "$image" > /dev/null
  ctr_ content ls -q | while read -r digest; do ctr_ content rm "$digest" > /dev/null; done
  wait_until 30 "blobs are left" no_blobs
  containerd_stop
  serve_stop
  registry_stop
}
no_blobs() { [ -z "$(find "$ROOT_DIR/content/blobs" -type f)" ]; }

# Digest, size and labels of all blobs.
inventory() {
  ctr_ content ls | "$PYTHON" -c 'import sys
for line in sorted(sys.stdin.readlines()[1:]): words = line.split(); print(words[0], words[1], *sorted(words[-1].split(",")))'
}

layers_held() {
  "$PYTHON" -c 'import sqlite3, sys; sys.exit(sqlite3.connect(sys.argv[1]).execute("SELECT count(*) FROM blobs WHERE held").fetchone()[0] < int(sys.argv[2]))' \
    "$ROOT_DIR/content/lazy.db" "$(image_layers debian:estargz | wc -l)"
}

part_switch() {
  local image store digest
  registry_start content-switch "$WORK/images/registry"
  image=$REG/debian:gzip
  configure switch
  OURS='' containerd_start containerd-switch overlayfs
  store=$CTR_DIR/root/io.containerd.content.v1.content
  ctr_ images pull --plain-http --snapshotter overlayfs "$image" > "$SCRATCH/out" 2>&1 || fail "pull: $(tail -1 "$SCRATCH/out")"
  inventory > "$SCRATCH/before"
  fails "import while containerd runs" "systemctl stop containerd" \
    lb --root "$ROOT_DIR" content import "$store" --config "$LB_CONFIG"
  containerd_end
  serve_start
  fails "import while the daemon runs" "systemctl stop containerd lazyblob" \
    lb --root "$ROOT_DIR" content import "$store" --config "$LB_CONFIG"
  serve_stop
  lb --root "$ROOT_DIR" content import "$store" --config "$LB_CONFIG" > "$SCRATCH/out" 2>&1 || fail "import: $(tail -1 "$SCRATCH/out")"
  grep -q "^imported $(wc -l < "$SCRATCH/before") blobs" "$SCRATCH/out" || fail "import said: $(cat "$SCRATCH/out")"
  [ -z "$(find "$store/blobs" -type f -links 1)" ] || fail "blobs were copied, not linked"
  mv "$store" "$SCRATCH/old-store"
  serve_start
  OURS=1 containerd_launch
  inventory > "$SCRATCH/over"
  diff "$SCRATCH/before" "$SCRATCH/over" > "$SCRATCH/diff" || { fail "switched over, other content"; cat "$SCRATCH/diff" >&2; }
  while read -r digest _; do
    [ "sha256:$(ctr_ content get "$digest" | sha256sum | cut -d' ' -f1)" = "$digest" ] || fail "switched over: $digest has other bytes"
  done < "$SCRATCH/before"
  ctr_ images check "name==$image" | grep -q complete || fail "switched over, the image is not complete"
  log "switched over: $(wc -l < "$SCRATCH/before") blobs"

  # Another image, whose layers are not here.
  ctr_ content fetch --plain-http "$REG/debian:estargz" > "$SCRATCH/out" 2>&1 || fail "fetch: $(tail -1 "$SCRATCH/out")"
  [ "$(content_has_layers debian:estargz)" = "$(image_layers debian:estargz | wc -l)" ] || fail "the lazy layers are not listed"
  inventory > "$SCRATCH/over"
  wait_until 30 "the store does not know that the layers are held" layers_held
  containerd_end
  serve_stop
  fails "export of lazy blobs" "are lazy and not here" lb --root "$ROOT_DIR" content export "$store" --config "$LB_CONFIG"
  [ ! -e "$store/blobs" ] || fail "an export that was refused wrote something"
  lb --root "$ROOT_DIR" content export "$store" --unlazy --config "$LB_CONFIG" > "$SCRATCH/out" 2>&1 || fail "export: $(tail -1 "$SCRATCH/out")"
  grep -q ", $(image_layers debian:estargz | wc -l) of them fetched" "$SCRATCH/out" || fail "export said: $(tail -1 "$SCRATCH/out")"
  OURS='' containerd_launch
  inventory > "$SCRATCH/back"
  diff "$SCRATCH/over" "$SCRATCH/back" > "$SCRATCH/diff" || { fail "switched back, other content"; cat "$SCRATCH/diff" >&2; }
  ctr_ images check "name==$image" | grep -q complete || fail "switched back, the image is not complete"
  while read -r digest _; do
    [ "sha256:$(ctr_ content get "$digest" | sha256sum | cut -d' ' -f1)" = "$digest" ] || fail "switched back: $digest has other bytes"
  done < "$SCRATCH/back"
  log "switched back"
  containerd_stop
  registry_stop
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(store switch)
for part in "${parts[@]}"; do "part_$part"; done
log "$failures failures"
[ "$failures" = 0 ]

#!/bin/bash
# lazyblobd behind Debian 13's containerd, as the proxy plugin "stargz" (BuildKit asks only that name for lazy layers):
# ctr-remote with both families of labels, id-mapped containers, and dockerd: pull, run, build.
#   e2e_trixie.sh [--update] [PART…]      parts: containerd idmap docker; --update writes the table to docs/E2E.md
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob containerd snapshotter trixie; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo nsenter unshare
UPDATE=
[ "${1:-}" != --update ] || { UPDATE=1; shift; }
trixie_machine
. "$E2E_DIR/lib/table.sh"
START='import json, re, sys; print(json.dumps(list(range(3))))'

machine() {
  registry_start "$TRIXIE_SUITE-$1" "$WORK/images/registry"
  serve_configure "$1"
  serve_plain_http "$REG"
  serve_start
  CTR_EXTRA=$(proxy_plugin stargz '  capabilities = ["remap-ids"]')
  containerd_start "containerd-$1" stargz
}
machine_end() {
  wait_until 60 "$1: something is left behind: \$(left_behind | head -c 400)" nothing_left
  containerd_stop
  serve_stop
  registry_stop
}
nothing_left() { [ -z "$(left_behind)" ]; }
says_json() { grep -qx '\[0, 1, 2\]' "$1"; }

part_containerd() {
  local format size mark got options
  machine ctr
  for format in estargz zstdchunked gzip; do
    case $format in
      zstdchunked) options=(--use-containerd-labels) ;;
      *) options=() ;;
    esac
    size=$(image_size "debian:$format")
    mark=$(registry_mark)
    ctr_remote images rpull --plain-http "${options[@]}" "$REG/debian:$format" > "$SCRATCH/out" 2>&1 ||
      { fail "rpull debian:$format: $(tail -1 "$SCRATCH/out")"; continue; }
    ctr_ run --rm --snapshotter stargz "$REG/debian:$format" "json-$format" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
    says_json "$SCRATCH/out" || fail "debian:$format: python3 said $(tail -1 "$SCRATCH/out")"
    got=$(fetched_since "$mark")
    if [ "$format" = gzip ]; then
      row "ctr-remote rpull, ctr run" "gzip, never seen: streamed once" "$got" "$size"
      [ "$got" -le $((size + size / 100)) ] || fail "debian:gzip was fetched more than once"
    else
      lazy_row "ctr-remote rpull${options[*]:+ ${options[*]}}, ctr run" "$format: python3 starts" "$got" "$size"
    fi
    [ "$(content_has_layers "debian:$format")" = 0 ] || fail "debian:$format: containerd has layer blobs"
  done
  remove_everything || fail "images cannot be removed"
  machine_end ctr
}

part_idmap() {
  local ref lower lowers=0 upper plain mapped
  machine idmap
  ref=$REG/debian:estargz
  ctr_remote images rpull --plain-http "$ref" > "$SCRATCH/out" 2>&1 || { fail "rpull: $(tail -1 "$SCRATCH/out")"; return 0; }
  local script=(/usr/bin/python3 -c "$(cat "$E2E_DIR/lib/owners.py")") map=(--uidmap 0:100000:65536 --gidmap 0:200000:65536
    --remap-labels)
  ctr_ run --rm --snapshotter stargz "$ref" plain "${script[@]}" > "$SCRATCH/plain" 2> "$SCRATCH/err" ||
    fail "owners without a mapping: $(tail -1 "$SCRATCH/err")"
  ctr_ run -d --snapshotter stargz "${map[@]}" "$ref" mapped /usr/bin/sleep infinity > "$SCRATCH/out" 2>&1 ||
    { fail "an id-mapped container does not start: $(tail -1 "$SCRATCH/out")"; }
  ctr_ tasks exec --exec-id owners mapped "${script[@]}" > "$SCRATCH/mapped" 2> "$SCRATCH/err" ||
    fail "owners in an id-mapped container: $(tail -1 "$SCRATCH/err")"
  "$PYTHON" - "$SCRATCH/plain" "$SCRATCH/mapped" <<'OWNERS' || fail "owners in the id-mapped container are not those of the image"
import sys
def load(name):
    rows = (line.rstrip("\n").split(" ", 4) for line in open(name))
    return {path: (int(u), int(g), mode, kind) for u, g, mode, kind, path in rows}
plain, mapped = map(load, sys.argv[1:])
known = lambda n: n if n < 65536 else 65534   # ids outside the mapping are shown as nobody's
wrong = [p for p, got in mapped.items() if p in plain and got != (known(plain[p][0]), known(plain[p][1]), *plain[p][2:])]
both, owners = len(plain.keys() & mapped.keys()), len({v[:2] for v in mapped.values()})
print(f"e2e_trixie: id-mapped: {both} of {len(plain)} paths compared, {owners} owners, {len(wrong)} wrong", file=sys.stderr)
for path in wrong[:5]:
    print(f"  {path}: {mapped[path]}, in the image {plain[path]}", file=sys.stderr)
sys.exit(bool(wrong) or both < 10000 or both < len(plain) - 20 or owners < 3)
OWNERS
  upper=$(snapshot_option mapped upperdir)
  [ -d "$upper" ] || fail "the mapped container has no upper directory: $(snapshot_mount mapped)"
  [ -z "$(find "$upper" -mindepth 1)" ] || fail "copied up without a write: $(find "$upper" -mindepth 1 | head -3)"
  [ "$(stat -c '%u:%g' "$upper")" = 100000:200000 ] || fail "the upper directory is $(stat -c '%u:%g' "$upper")'s"
  while read -r lower; do
    lowers=$((lowers + 1))
    case $lower in "$ROOT_DIR"/*) [ -d "$lower" ] || fail "lower $lower is no directory" ;; *) fail "lower '$lower' is no path of ours" ;; esac
  done < <(snapshot_option mapped lowerdir)
  [ "$lowers" -ge 3 ] || fail "the mapped container has $lowers lowers: $(snapshot_mount mapped)"
  ! ctr_ snapshots --snapshotter stargz ls | grep -q -- -remap || fail "containerd remapped by chown"
  ctr_ tasks exec --exec-id write mapped /bin/sh -c 'echo x > /new && echo x >> /etc/hostname && stat -c %u:%g /new /etc/hostname' \
    > "$SCRATCH/out" 2>&1 || fail "writing in an id-mapped container: $(tail -1 "$SCRATCH/out")"
  [ "$(tr '\n' ' ' < "$SCRATCH/out")" = "0:0 0:0 " ] || fail "files written in the container belong to $(cat "$SCRATCH/out")"
  for lower in new etc/hostname; do
    [ "$(stat -c '%u:%g' "$upper/$lower")" = 100000:200000 ] || fail "$lower belongs to $(stat -c '%u:%g' "$upper/$lower") outside"
  done
  remove_everything || fail "images cannot be removed"
  machine_end idmap
}

# build WHO REF: one RUN in REF; what is fetched until it is through, and by the export after it.
build() {
  local who=$1 ref=$2 size=$3 mark line before=
  mkdir -p "$SCRATCH/context"
  printf 'FROM %s\nRUN python3 -c "%s" > /made && echo ran-$((1+1))-here && sleep 2\n' "$ref" \
    'import json; print(json.dumps(list(range(3))))' > "$SCRATCH/context/Dockerfile"
  mark=$(registry_mark)
  "${DOCKER[@]}" build --network=host --progress=plain -t built "$SCRATCH/context" > "$SCRATCH/build.out" 2>&1 &
  local pid=$!
  wait_until 120 '$who: the build did not come to its end: $(tail -3 "$SCRATCH/build.out")' \
    sh -c "grep -q ran-2-here '$SCRATCH/build.out' || ! kill -0 $pid"
  before=$(fetched_since "$mark")
  wait "$pid" || { fail "$who: docker build: $(tail -5 "$SCRATCH/build.out")"; return 0; }
  grep -q 'exporting to image' "$SCRATCH/build.out" || fail "$who: no 'exporting to image'"
  lazy_row "$who" "until \"exporting to image\"" "$before" "$size"
  row "$who" "when the image is exported" "$(fetched_since "$mark")" "$size"
  "${DOCKER[@]}" run --rm --network none built cat /made > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" || fail "$who: the built image: $(tail -1 "$SCRATCH/out")"
  "${DOCKER[@]}" rmi -f built > /dev/null || fail "$who: rmi"
}

part_docker() {
  local ref size mark id
  machine docker
  dockerd_start
  "${DOCKER[@]}" info --format '{{.Driver}}' | grep -qx stargz || fail "dockerd's storage driver is not stargz"
  ref=$REG/debian:zstdchunked size=$(image_size debian:zstdchunked)
  mark=$(registry_mark)
  "${DOCKER[@]}" pull -q "$ref" > "$SCRATCH/out" 2>&1 || fail "docker pull: $(tail -1 "$SCRATCH/out")"
  lazy_row "docker pull" "zstdchunked" "$(fetched_since "$mark")" "$size"
  "${DOCKER[@]}" run --rm --network none "$ref" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" || fail "docker run: $(tail -1 "$SCRATCH/out")"
  lazy_row "docker run" "zstdchunked: python3 starts" "$(fetched_since "$mark")" "$size"
  build "docker build FROM what was pulled" "$ref" "$size"
  build "docker build FROM an image not pulled" "$REG/debian:estargz" "$(image_size debian:estargz)"
  for id in $("${DOCKER[@]}" images -q | sort -u); do "${DOCKER[@]}" rmi -f "$id" > /dev/null || fail "rmi $id"; done
  "${DOCKER[@]}" builder prune -af > /dev/null || fail "builder prune"
  "${DOCKER[@]}" image prune -af > /dev/null || fail "image prune"
  wait_until 60 'dockerd: left behind: $(left_behind | head -c 400)' nothing_left
  end_process "$DOCKERD_PID"
  machine_end docker
}

whole=$#
[ $# -gt 0 ] || set -- containerd idmap docker
run_parts "$@"
end_with_failures
cat "$TABLE"
[ -n "$UPDATE" ] || exit 0
[ "$whole" = 0 ] || die "--update wants all parts"
document() {
  sed '/^<!-- table -->$/,$d' "$SOURCE_DIR/docs/E2E.md"
  printf '<!-- table -->\n'
  printf 'containerd %s, dockerd %s, ctr-remote %s, Linux %s. MB of compressed blobs, counted by docker-registry.\n\n' \
    "$(trixie_version containerd)" "$(trixie_version docker.io)" "$(trixie_version stargz-snapshotter)" "$(uname -r | cut -d- -f1)"
  table_print
}
document > "$SCRATCH/E2E.md"
cat "$SCRATCH/E2E.md" > "$SOURCE_DIR/docs/E2E.md"

#!/bin/bash
# The figures of docs/PERFORMANCE.md, measured in one run; prints a Markdown table. Exit status 1 if a limit is passed.
#   bench/run.sh [--smoke] [PART…]     parts: tree pull index small export; default: all
#   LAZYBLOB_ROUNDS                    rounds per measurement, the median counts (default 5)
# --smoke: one round, a small "million", pushes of a 32nd; limits are shown but not judged.
# Needs root; images and state under $LAZYBLOB_WORK (default build/e2e), on a real disk.
. "$(dirname "$0")/../tests/e2e/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/containerd.sh"
. "$E2E_DIR/lib/judge.sh"
. "$E2E_DIR/lib/lazyblob.sh"
BENCH_DIR=$SOURCE_DIR/bench
ROUNDS=${LAZYBLOB_ROUNDS:-5} ENTRIES=1000000 SHRINK=1 SMOKE=
if [ "${1:-}" = --smoke ]; then SMOKE=1 ROUNDS=1 ENTRIES=20000 SHRINK=32; shift; fi
LB_TIMEOUT=300
need_root
need_programs
BENCH_TREE=$BUILD_DIR/bench_tree
[ -x "$BENCH_TREE" ] || die "no bench_tree in $BUILD_DIR: configure with -DLAZYBLOB_BENCH=ON (make bench)"
"$E2E_DIR/make_images.sh" debian
make_scratch
registry_start bench "$WORK/images/registry"
RESULTS=$SCRATCH/results
: > "$RESULTS"
value() { printf '%s\t%s\n' "$1" "$2" >> "$RESULTS"; }                                   # series, number
row() { printf 'row\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$5" >> "$RESULTS"; }    # text, series, base, limit, unit
note() { printf 'note\t%s\n' "$1" >> "$RESULTS"; }

note "$(date -u +%F), $(nproc) CPUs ($(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)), $(free -g | awk '/Mem:/ {print $2}') GiB, $(uname -r), state on $(findmnt -no FSTYPE -T "$WORK")"
note "containerd $(containerd --version | awk '{print $3}'), $(docker-registry --version | awk '{print "docker-registry " $3}'), median of $ROUNDS; command: bench/run.sh $*"

# ---- tree: the same files on ext4, as containerd's overlayfs snapshotter has them, and mounted by us

make_lists() {
  local tree=$1
  (cd "$tree" && find . -xdev -type f -print0 | sort -z) > "$SCRATCH/files"
  shuf -z -n 2000 --random-source=<(yes) < "$SCRATCH/files" > "$SCRATCH/files-2000"
}

measure() {  # series prefix, root: cold and warm of each
  local what list
  for what in walk readall open4k; do
    case $what in
      walk) list=() ;;
      readall) list=("$SCRATCH/files") ;;
      open4k) list=("$SCRATCH/files-2000") ;;
    esac
    drop_caches
    timed "$1-cold-$what" "$what" "$2" "${list[@]}"
    timed "$1-warm-$what" "$what" "$2" "${list[@]}"
  done
}
timed() {
  local series=$1 out
  shift
  out=$(timeout 300 "$BENCH_TREE" "$@") || die "$series: bench_tree failed"
  value "$series" "$(awk '{printf "%.3f", $1 / 1e6}' <<< "$out")"
}

cached_kib() { awk '/^(Cached|Buffers):/ {s += $2} END {print s}' /proc/meminfo; }
page_growth() {  # series, root: growth of the page cache over the bytes read
  local before after bytes
  drop_caches
  before=$(cached_kib)
  bytes=$("$BENCH_TREE" readall "$2" "$SCRATCH/files" | awk '{print $3}')
  sleep 8   # pages of cache files are let go within seconds (6 s after the read the last ones)
  after=$(cached_kib)
  value "$1" "$(awk -v a="$after" -v b="$before" -v n="$bytes" 'BEGIN {printf "%.3f", (a - b) * 1024 / n}')"
}

bench_tree_of() {  # repository:tag, what it is
  local ref=$1 label=$2 base=$SCRATCH/base dir=$SCRATCH/mnt i key=${1//[:\/]/-}
  make_lists "$JUDGE"
  containerd_start "tree-$key" overlayfs
  ctr_ images pull --plain-http --snapshotter overlayfs "$REG/$ref" > /dev/null 2>&1 || die "ctr images pull $ref"
  mkdir -p "$base"
  ctr_ images mount --snapshotter overlayfs "$REG/$ref" "$base" > /dev/null || die "ctr images mount $ref"
  lb_root "tree-$key"
  lb --root "$ROOT_DIR" index --plain-http --progress none "$REG/$ref" > /dev/null || die "lazyblob index $ref"
  lb_mount erofs "$REG/$ref" "$dir" || die "lazyblob mount $ref"
  "$BENCH_TREE" readall "$dir" "$SCRATCH/files" > /dev/null || die "$ref cannot be read"   # everything is cached on disk now
  for ((i = 0; i < ROUNDS; i++)); do
    measure "base-$key" "$base"
    measure "fuse-$key" "$dir"
    page_growth "pages-fuse-$key" "$dir"
  done
  lb_umount "$dir" || die "umount $ref"
  # Complete layers: streamed once, by the first mount in a root that has no index; the next mount needs no FUSE.
  lb_root "full-$key"
  lb_mount erofs "$REG/$ref" "$dir" || die "streaming mount of $ref"
  lb_umount "$dir" || die "umount $ref"
  lb_mount erofs "$REG/$ref" "$dir" || die "second mount of $ref"
  [ "$(lb_json "$LB_OUT" 'any(l["lazy"] for l in layers)')" = False ] || die "$ref: not complete after it was streamed"
  for ((i = 0; i < ROUNDS; i++)); do
    measure "full-$key" "$dir"
    page_growth "pages-full-$key" "$dir"
  done
  lb_umount "$dir" || die "umount $ref"
  ctr_ images unmount "$base" > /dev/null || die "ctr images unmount $ref"
  containerd_stop
  local what
  for what in walk readall open4k; do
    row "$label: warm $what, over FUSE" "fuse-$key-warm-$what" "base-$key-warm-$what" 1.15 ms
  done
  row "$label: cold walk, over FUSE" "fuse-$key-cold-walk" "base-$key-cold-walk" 1.0 ms
  row "$label: cold readall, over FUSE" "fuse-$key-cold-readall" "base-$key-cold-readall" 1.0 ms
  row "$label: cold open4k, over FUSE" "fuse-$key-cold-open4k" "base-$key-cold-open4k" 1.3 ms
  for what in walk readall open4k; do
    row "$label: warm $what, complete" "full-$key-warm-$what" "base-$key-warm-$what" 1.0 ms
    row "$label: cold $what, complete" "full-$key-cold-$what" "base-$key-cold-$what" 1.0 ms
  done
  row "$label: page cache after reading all, over FUSE" "pages-fuse-$key" - 1.2 "× of its bytes"
  row "$label: page cache after reading all, complete" "pages-full-$key" - 1.2 "× of its bytes"
}

# One layer with the whole tree: flat:gzip.
flat_image() {
  judge_tree debian gzip
  local flat=$WORK/images/flat
  if [ ! -e "$flat/done" ]; then
    rm -rf "$flat"
    timeout 300 tar -C "$JUDGE" --xattrs --xattrs-include='*' --format=pax --sort=name --numeric-owner -cf "$WORK/flat.tar" .
    umoci init --layout "$flat"
    umoci new --image "$flat:gzip"
    umoci raw add-layer --image "$flat:gzip" "$WORK/flat.tar"
    rm "$WORK/flat.tar"
    touch "$flat/done"
  fi
  skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$flat:gzip" "docker://$REG/flat:gzip"
}

tree() {
  flat_image
  bench_tree_of flat:gzip "one layer"   # and the image as it is (an overlay of four)
  bench_tree_of debian:gzip "four layers"
}

# ---- pull: everything, from a local registry

pull() {
  local i started dir=$SCRATCH/mnt
  for ((i = 0; i < ROUNDS; i++)); do
    containerd_start "bench-$i" overlayfs
    drop_caches
    started=$(now_ms)
    ctr_ images pull --plain-http --snapshotter overlayfs "$REG/debian:gzip" > /dev/null 2>&1 || die "ctr images pull"
    value ctr-pull $(( $(now_ms) - started ))
    containerd_stop
    lb_root "pull-$i"
    drop_caches
    started=$(now_ms)
    lb_mount erofs "$REG/debian:gzip" "$dir" || die "lazyblob mount debian:gzip"
    value lb-pull $(( $(now_ms) - started ))
    [ "$(lb_json "$LB_OUT" 'any(l["lazy"] for l in layers)')" = False ] || die "the pull was lazy: nothing was compared"
    lb_umount "$dir" || die "umount after the pull"
    rm -rf --one-file-system "$ROOT_DIR"
  done
  row "full pull of debian:gzip (ctr image pull, overlayfs)" lb-pull ctr-pull 0.5 ms
}

# ---- index: the one pass over a plain layer that was never seen, without its data

index() {
  local i started size
  flat_image
  size=$(skopeo inspect --raw --tls-verify=false "docker://$REG/flat:gzip" |
    "$PYTHON" -c 'import json,sys; print(json.load(sys.stdin)["layers"][0]["size"])')
  for ((i = 0; i < ROUNDS; i++)); do
    lb_root "index-$i"
    drop_caches
    started=$(now_ms)
    lb --root "$ROOT_DIR" index --plain-http --progress none "$REG/flat:gzip" > /dev/null || die "lazyblob index flat:gzip"
    value index-speed "$(awk -v n="$size" -v ms="$(( $(now_ms) - started ))" 'BEGIN {printf "%.1f", n / 1000 / ms}')"
    value index-size "$(find "$ROOT_DIR" -name index -type f -printf '%s\n' | awk -v n="$size" '{s += $1} END {printf "%.2f", s * 100 / n}')"
    rm -rf --one-file-system "$ROOT_DIR"
  done
  row "index of one gzip layer of $((size / 1000000)) MB, start of the daemon included" index-speed - - "MB/s of blob"
  row "its size" index-size - - "% of the blob"
}

# ---- small: time and memory of mounts

small() {
  local i started dir=$SCRATCH/mnt layout=$WORK/images/million entries=$ENTRIES
  [ -e "$layout/done-$entries" ] || { rm -rf "$layout"; "$PYTHON" "$BENCH_DIR/million_layer.py" "$layout" gzip "$entries" > /dev/null; touch "$layout/done-$entries"; }
  "$PYTHON" "$E2E_DIR/lib/ocilayout.py" push "$layout:gzip" "$REG/million:gzip"
  lb_root million
  started=$(now_ms)
  lb --root "$ROOT_DIR" index --plain-http --progress none "$REG/million:gzip" > /dev/null || die "lazyblob index million"
  value million-index $(( $(now_ms) - started ))
  for ((i = 0; i < ROUNDS; i++)); do
    wait_until 20 "lazyblobd did not end after its last mount" lb_no_daemon "$ROOT_DIR"
    drop_caches
    started=$(now_ms)
    lb_mount erofs "$REG/million:gzip" "$dir" || die "lazyblob mount million"
    value million-mount $(( $(now_ms) - started ))
    value million-memory "$(awk -v k="$(lb_peak_kib "$ROOT_DIR")" 'BEGIN {print k / 1024}')"
    [ "$(ls "$dir/data/00" | wc -l)" -gt 0 ] || die "the million entries are not there"
    lb_umount "$dir" || die "umount million"
  done
  row "index of a layer with $entries entries" million-index - - ms
  row "mount of a layer with $entries entries" million-mount - 2000 ms
  row "peak memory for it (keeper and daemon)" million-memory - 100 MiB
  lb_root three
  for ((i = 0; i < ROUNDS; i++)); do
    wait_until 20 "lazyblobd did not end after its last mount" lb_no_daemon "$ROOT_DIR"
    lb_mount erofs "$REG/debian:estargz" "$dir" || die "lazyblob mount debian:estargz"
    value three-memory "$(awk -v k="$(lb_peak_kib "$ROOT_DIR")" 'BEGIN {print k / 1024}')"
    lb_umount "$dir" || die "umount debian:estargz"
  done
  row "peak memory for a mount of four eStargz layers" three-memory - 40 MiB
}

. "$BENCH_DIR/export.sh"
[ $# -gt 0 ] || set -- tree pull index small export
for part in "$@"; do
  log "$part"
  case $part in export) export_part ;; *) "$part" ;; esac   # `export` is the shell's own
done
"$PYTHON" "$BENCH_DIR/table.py" ${SMOKE:+--smoke} "$RESULTS"

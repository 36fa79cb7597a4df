#!/bin/bash
# cache.max_bytes is a hard limit: images of several times its size, one of them mounted on its cache files as far as
# cache.pinned_max allows, are read in a loop, cold, while what lies on the disk is measured all the time; once the
# daemon is killed meanwhile. Every byte is right, no read fails, and never is there more than the limit.
#   e2e_cache_limit.sh [loop | direct]
#   LAZYBLOB_CACHE_SECONDS=60   how long
# direct: what is mounted on its cache files is not touched, not even when only another mount namespace has it still.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/judge.sh"
. "$E2E_DIR/lib/lazyblob.sh"
. "$E2E_DIR/lib/snapshotter.sh"
need_root
make_scratch
private_programs
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
SECONDS_TO_READ=${LAZYBLOB_CACHE_SECONDS:-60}
LIMIT=$((200 << 20))
SLACK=$((2 << 20))   # the file system's own blocks for files with many holes
FORMATS=(gzip tar estargz zstdchunked)

on_disk() {  # bytes of all that can be fetched again
  find "$ROOT_DIR/layers/layers" \( -name data -o -name blob \) -printf '%b\n' 2>/dev/null | awk '{s += $1 * 512} END {printf "%d", s}'
}

measure() {  # until the file $1 is there; the most there was goes to $2
  local now most=0
  while [ ! -e "$1" ]; do
    now=$(on_disk)
    [ "$now" -le "$most" ] || { most=$now; echo "$most" > "$2"; }
  done
}

read_at_random() {  # seed
  local format round=0 bad=0
  while [ ! -e "$SCRATCH/enough" ]; do
    round=$((round + 1))
    format=${FORMATS[$(((round + $1) % ${#FORMATS[@]}))]}
    sync; echo 1 > /proc/sys/vm/drop_caches
    shuf -n 300 "$SCRATCH/sums" > "$SCRATCH/sums-$1"
    (cd "$SCRATCH/mnt-$format" && timeout 300 sha256sum --quiet -c "$SCRATCH/sums-$1") >> "$SCRATCH/bad-$1" 2>&1 || bad=1
  done
  echo "$round" > "$SCRATCH/rounds-$1"
  return "$bad"
}

read_in_a_loop() {
  judge_tree debian gzip
  (cd "$JUDGE" && find . -type f -size +0 -print0 | xargs -0 sha256sum) > "$SCRATCH/sums"
  size=$(du -sB1 "$JUDGE" | cut -f1)
  serve_configure limit "[cache]
max_bytes = $LIMIT
pinned_max = $((LIMIT / 4))"
  serve_plain_http "$REG"
  serve_start
  for format in "${FORMATS[@]}"; do
    lb_mount erofs "$REG/debian:$format" "$SCRATCH/mnt-$format" || die "mount debian:$format"
  done
  log "$((${#FORMATS[@]} * size >> 20)) MiB of files, limit $((LIMIT >> 20)) MiB, after mounting $(($(on_disk) >> 20)) MiB"
  mark=$(registry_mark)
  measure "$SCRATCH/enough" "$SCRATCH/most" & measurer=$!
  readers=()
  for seed in 1 2; do read_at_random "$seed" & readers+=($!); done
  sleep $((SECONDS_TO_READ / 2))
  kill -9 "$(lb_daemon_pid "$ROOT_DIR")"
  sleep $((SECONDS_TO_READ - SECONDS_TO_READ / 2))
  touch "$SCRATCH/enough"
  for pid in "${readers[@]}"; do wait "$pid" || fail "a read failed or gave wrong bytes: $(cat "$SCRATCH"/bad-* | head -3)"; done
  wait "$measurer"
  most=$(cat "$SCRATCH/most")
  fetched=$(fetched_since "$mark")
  log "$(cat "$SCRATCH"/rounds-* | tr '\n' ' ')rounds of 300 files, at most $((most >> 10)) KiB on the disk, $((fetched >> 20)) MiB fetched, log: $(wc -l < "$LB_LOG") lines"
  [ "$most" -le $((LIMIT + SLACK)) ] || fail "$most bytes lay on the disk, the limit is $LIMIT"
  [ "$most" -ge $((LIMIT / 2)) ] || fail "only $most bytes ever lay on the disk: nothing was evicted"
  for format in "${FORMATS[@]}"; do lb_umount "$SCRATCH/mnt-$format" || fail "umount debian:$format"; done
}

read_whole() { (cd "$1" && find . -xdev -type f -print0 | xargs -0 cat) > /dev/null; }

note_files() { find "$ROOT_DIR/layers/layers" -name data -printf '%p %b\n' | sort > "$1"; }

direct_files() {
  local elsewhere
  serve_configure direct "[cache]
max_bytes = $((2 * LIMIT))
pinned_max = $((2 * LIMIT))"
  serve_plain_http "$REG"
  serve_start
  lb_mount erofs "$REG/debian:gzip" "$SCRATCH/a" || die "mount debian:gzip"
  [ "$(awk '{print $5}' /proc/self/mountinfo | grep -c "^$ROOT_DIR/m/.*d$")" = 4 ] || fail "not every layer is mounted on its cache file"
  (cd "$SCRATCH/a" && find . -xdev -type f -print0 | xargs -0 sha256sum) > "$SCRATCH/sums"
  note_files "$SCRATCH/files"
  lb_mount erofs "$REG/debian:tar" "$SCRATCH/b" || die "mount debian:tar"
  read_whole "$SCRATCH/b" || fail "reading debian:tar"
  note_files "$SCRATCH/files-now"
  [ -z "$(comm -23 "$SCRATCH/files" "$SCRATCH/files-now")" ] || fail "a mounted cache file was touched"
  lb_umount "$SCRATCH/b" || fail "umount debian:tar"
  unshare -m --propagation private sleep 300 & elsewhere=$!
  disown "$elsewhere"
  on_exit "end_process $elsewhere"
  wait_until 10 "no other mount namespace" other_namespace "$elsewhere"
  lb_umount "$SCRATCH/a" || fail "umount debian:gzip"
  lb_mount erofs "$REG/debian:zstdchunked" "$SCRATCH/b" || die "mount debian:zstdchunked"
  read_whole "$SCRATCH/b" || fail "reading debian:zstdchunked"
  note_files "$SCRATCH/files-now"
  [ -z "$(comm -23 "$SCRATCH/files" "$SCRATCH/files-now")" ] || fail "a cache file that another mount namespace has mounted was touched"
  drop_caches
  nsenter -t "$elsewhere" -m sh -c "cd '$SCRATCH/a' && sha256sum --quiet -c '$SCRATCH/sums'" ||
    fail "wrong bytes in another mount namespace"
  end_process "$elsewhere"
  lb_umount "$SCRATCH/b" || fail "umount debian:zstdchunked"
  lb_mount erofs "$REG/debian:estargz" "$SCRATCH/b" || die "mount debian:estargz"
  read_whole "$SCRATCH/b" || fail "reading debian:estargz"
  note_files "$SCRATCH/files-now"
  [ -n "$(comm -23 "$SCRATCH/files" "$SCRATCH/files-now")" ] || fail "what nobody has mounted any more did not give way"
  log "$(($(on_disk) >> 20)) MiB on the disk, limit $((2 * LIMIT >> 20)) MiB"
  lb_umount "$SCRATCH/b" || fail "umount debian:estargz"
}
other_namespace() { [ "$(readlink "/proc/$1/ns/mnt")" != "$(readlink /proc/self/ns/mnt)" ] && [ "$(cat "/proc/$1/comm")" = sleep ]; }

registry_start cache-limit "$WORK/images/registry"
before=$(our_mounts)
case ${1:-loop} in
  loop) read_in_a_loop ;;
  direct) direct_files ;;
  *) die "loop or direct?" ;;
esac
serve_stop
[ "$(our_mounts)" = "$before" ] || fail "mounts are left behind"
log "$failures failures"
[ "$failures" = 0 ]

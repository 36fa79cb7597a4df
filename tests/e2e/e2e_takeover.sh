#!/bin/bash
# kill -9 of lazyblobd in the middle of reads: the keeper starts a successor, every reader gets every byte and no error.
#   e2e_takeover.sh [MODE…]      default: erofs loop fuse
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/judge.sh"
. "$E2E_DIR/lib/lazyblob.sh"
need_root
need_programs
make_scratch
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
registry_start takeover "$WORK/images/registry"
judge_tree made/large gzip

daemon_is_new() { local now; now=$(lb_daemon_pid "$ROOT_DIR"); [ -n "$now" ] && [ "$now" != "$1" ] && [ "$now" != "$2" ]; }

kill_daemon() {
  local old; old=$(lb_daemon_pid "$ROOT_DIR")
  [ -n "$old" ] || die "no lazyblobd serves $ROOT_DIR"
  kill -9 "$old"
  wait_until 20 "no successor of lazyblobd $old" daemon_is_new "$old" "$old"
}

takeover() {
  local mode=$1 dir=$SCRATCH/mnt-$1 i pids=() file
  lb_root "$mode"
  proxy_start "takeover-$mode"
  lb_mount "$mode" "$PROXY/made/large:estargz" "$dir" || { fail "mount in mode $mode"; return 0; }
  drop_caches
  # 1. Five kills within one held read.
  touch "$PROXY_HOLD"
  for file in noise text zeros small/77 small/499; do
    (cmp "$JUDGE/$file" "$dir/$file" && echo same) > "$SCRATCH/cmp-${file//\//_}" 2>&1 & pids+=($!)
  done
  wait_until 30 "no read was held" grep -q '"holding"' "$PROXY_LOG"
  for i in 1 2 3 4 5; do kill_daemon; sleep 0.3; done
  [ "$(jobs -pr | grep -cxF -f <(printf '%s\n' "${pids[@]}"))" -gt 0 ] || fail "$mode: the readers did not wait"
  rm -f "$PROXY_HOLD"
  for i in "${pids[@]}"; do wait "$i" || true; done
  for file in noise text zeros small_77 small_499; do
    grep -qx same "$SCRATCH/cmp-$file" || fail "$mode, $file after five kills: $(cat "$SCRATCH/cmp-$file")"
  done
  # 2. Kills while many files are read, cold.
  lb_umount "$dir" || { fail "$mode: umount after takeovers"; unmount_below "$dir"; }
  lb_root "$mode-2"
  lb_mount "$mode" "$REG/made/large:zstdchunked" "$dir" || { fail "second mount in mode $mode"; return 0; }
  drop_caches
  "$PYTHON" "$E2E_DIR/tree_diff.py" --allow toc-files --allow toc-seconds --allow clamped-mtime --allow-file "$JUDGE_ALLOW" \
    "$JUDGE" "$dir" > "$SCRATCH/diff" 2>&1 & i=$!
  while kill -0 "$i" 2>/dev/null; do kill_daemon; sleep 0.2; done
  wait "$i" || fail "$mode, kills while reading: $(head -5 "$SCRATCH/diff")"
  # 3. Without the registry: what was read stays readable.
  registry_stop
  kill_daemon
  drop_caches
  cmp "$JUDGE/noise" "$dir/noise" || fail "$mode: cached bytes need the registry after a takeover"
  lb --root "$ROOT_DIR" status --json "$dir" > /dev/null || fail "$mode: no status after a takeover"
  lb_umount "$dir" || { fail "$mode: last umount"; unmount_below "$dir"; }
  registry_start takeover "$WORK/images/registry"
}
before=$(our_mounts)
[ $# -gt 0 ] || set -- erofs loop fuse
for mode in "$@"; do takeover "$mode"; done
[ "$(our_mounts)" = "$before" ] || fail "mounts are left behind"
log "$failures failures"
[ "$failures" = 0 ]

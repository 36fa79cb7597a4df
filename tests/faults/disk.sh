#!/bin/bash
# Rows 21 to 23 of the fault table: the disk of the state root is full, read-only, failing, or has forgotten.
. "$(dirname "$0")/lib/faults.sh"
need_tools ctr strace mkfs.ext4

# A file system of its own for the state root: sets DISK and ROOT_DIR, starts the daemon on it.
small_disk() {  # SIZE [OPTIONS of mkfs…]
  local size=$1
  shift
  DISK=$SCRATCH/disk
  mkdir "$DISK"
  truncate -s "$size" "$SCRATCH/disk.img"
  mkfs.ext4 -q -m 0 "$@" "$SCRATCH/disk.img"   # root has no more of it than others
  mount -o loop "$SCRATCH/disk.img" "$DISK"
  serve_configure disk
  ROOT_DIR=$DISK/root
  mkdir -m 0700 "$ROOT_DIR"
  on_exit "lb_end_root '$ROOT_DIR'"
  serve_start
}
image_mounted() {  # OPTIONS of make_image…
  make_image image "$@"
  evil_start "image=$IMAGE_LAYOUT"
  DIR=$SCRATCH/mnt
  lb_mount auto "$EVIL/image:latest" "$DIR" || die "cannot be mounted"
}
all_right() { oracle "$IMAGE_TREE" "$DIR" --errno none || wrong "${1:-reading}: $ORACLE"; }
registry_fails() { evil_fault '{"status": 503, "count": 1000000}'; }
all_cached() {
  registry_fails
  oracle "$IMAGE_TREE" "$DIR" --errno none || wrong "not cached: $ORACLE"
  evil_clear
}
snapshots() { timeout -k 5 60 ctr --address "$LB_SOCKET" snapshots --snapshotter lazyblob "$@"; }
# refused_snapshot TEXT: a Prepare fails and says so, and nothing is left of it.
refused_snapshot() {
  if snapshots prepare key > "$SCRATCH/out" 2>&1; then wrong "a snapshot is made: $(cat "$SCRATCH/out")"; fi
  grep -qiE "$1" "$SCRATCH/out" || wrong "the error: $(tail -1 "$SCRATCH/out")"
  ! snapshots ls 2>/dev/null | grep -q '^key ' || wrong "there is half a snapshot"
  snapshots ls > /dev/null || wrong "snapshots cannot be listed"
}
snapshot_works() {
  snapshots prepare key > /dev/null && snapshots commit name key && snapshots rm name || wrong "no snapshot can be made afterwards"
}

row_21() {
  fault 21 "the disk is full" "right bytes from memory, a line says so; calls RESOURCE_EXHAUSTED, undone; cached once there is room"
  small_disk 24M
  image_mounted --files 12 --size 1000000
  cat /dev/zero > "$DISK/filler" 2>/dev/null || true
  all_right
  refused_snapshot 'ResourceExhausted|resource exhausted|No space|disk is full'
  seen "full: $ORACLE, Prepare: $(tail -1 "$SCRATCH/out" | grep -oiE 'No space left on device|resource ?exhausted|disk is full' | head -1)"
  [ "$(grep -ciE 'no space|disk (is )?full' "$LB_LOG")" -gt 0 ] || wrong "no line says that the disk is full"
  [ "$(wc -l < "$LB_LOG")" -lt 40 ] || wrong "$(wc -l < "$LB_LOG") lines in the log"
  rm "$DISK/filler"
  all_right
  all_cached
  snapshot_works
  seen "room again: cached"
}

row_22a() {
  fault 22a "no inode is left" "right bytes; calls RESOURCE_EXHAUSTED, undone"
  small_disk 64M -N 64
  image_mounted --files 12 --size 1000000
  mkdir "$DISK/filler"
  while mktemp "$DISK/filler/XXXXXXXX" > /dev/null 2>&1; do :; done
  all_right
  refused_snapshot 'ResourceExhausted|resource exhausted|No space|disk is full'
  mkdir "$SCRATCH/second"
  make_image second --files 2
  evil_start "second=$IMAGE_LAYOUT"
  lb_refused lb --root "$ROOT_DIR" mount --plain-http --progress none "$EVIL/second:latest" "$SCRATCH/second" || wrong "mount of a second image"
  seen "$ORACLE; a second image: $(sed 's/.*: //' "$LB_ERR")"
  rm -rf "$DISK/filler"
  snapshot_works
  lb_mount auto "$EVIL/second:latest" "$SCRATCH/second" || wrong "the second image cannot be mounted afterwards"
}

row_22b() {
  fault 22b "the file system turns read-only" "right bytes; calls fail, undone; all works after a remount and restart"
  small_disk 64M
  image_mounted --files 12 --size 1000000
  mount -o remount,abort "$DISK" || die "cannot be aborted"
  ! touch "$DISK/x" 2>/dev/null || die "still writable"
  all_right
  seen "read-only: $ORACLE"
  refused_snapshot 'read-only|Read-only|readonly'
  lb_umount "$DIR" || wrong "cannot be unmounted"
  serve_stop
  umount "$DISK" && mount -o loop "$SCRATCH/disk.img" "$DISK" || die "cannot be mounted again"
  serve_start
  lb_mount auto "$EVIL/image:latest" "$DIR" || wrong "cannot be mounted after a restart"
  all_right
  snapshot_works
  seen "after a restart: $ORACLE"
}

row_22c() {
  fault 22c "rm -rf of the cache under the daemon" "right bytes; the next mount makes it anew"
  serve_configure gone
  serve_start
  image_mounted --files 12 --size 1000000
  oracle "$IMAGE_TREE" "$DIR" --errno none f00 f01 f02 || wrong "$ORACLE"
  rm -rf "$ROOT_DIR/layers/layers"
  all_right
  seen "mounted: $ORACLE"
  lb_umount "$DIR" || wrong "cannot be unmounted"
  lb_mount auto "$EVIL/image:latest" "$DIR" || wrong "cannot be mounted again: $(cat "$SCRATCH/mount.err")"
  all_right
  all_cached
  make_image second --files 2
  evil_start "second=$IMAGE_LAYOUT"
  lb_mount auto "$EVIL/second:latest" "$SCRATCH/second" || wrong "another image cannot be mounted: $(cat "$SCRATCH/mount.err")"
  kill -9 "$(lb_daemon_pid "$ROOT_DIR")"
  lb --root "$ROOT_DIR" status > /dev/null || wrong "no successor"
  oracle "$IMAGE_TREE" "$SCRATCH/second" --errno none || wrong "after a kill: $ORACLE"
  seen "mounted anew: $ORACLE"
}

# inject SYSCALLS ERROR: these fail in the daemon when they touch the cache files, until inject_end.
inject() {
  local data paths=()
  while read -r data; do paths+=(-P "$data"); done < <(find "$ROOT_DIR/layers/layers" -name data)
  strace -f -qq -o "$SCRATCH/trace" "${paths[@]}" -e trace="$1" -e "inject=$1:error=$2" -p "$(lb_daemon_pid "$ROOT_DIR")" 2> "$SCRATCH/strace.err" &
  STRACE_PID=$!
  on_exit "kill $STRACE_PID 2>/dev/null"
  wait_until 30 'strace: $(tail -1 "$SCRATCH/strace.err")' traced
}
traced() { local t; for t in /proc/"$(lb_daemon_pid "$ROOT_DIR")"/task/*/status; do grep -q "^TracerPid:[[:space:]]*$STRACE_PID" "$t" || return 1; done; }
inject_end() {
  kill "$STRACE_PID"
  wait "$STRACE_PID" 2>/dev/null || true
  INJECTED=$(grep -c INJECTED "$SCRATCH/trace") || true
  [ "$INJECTED" -gt 0 ] || wrong "nothing was injected: $(tail -2 "$SCRATCH/trace" "$SCRATCH/strace.err")"
}

row_23a() {
  fault 23a "EIO on every write to the cache (strace)" "right bytes from memory; cached afterwards"
  serve_configure eio
  serve_start
  image_mounted --files 12 --size 1000000
  inject pwrite64,pwritev,write,fallocate,fdatasync EIO
  all_right
  inject_end
  seen "$ORACLE, $INJECTED calls failed"
  all_right
  all_cached
}

row_23b() {
  fault 23b "EIO on every read of the cache (strace)" "a miss: right bytes from the registry"
  serve_configure eio
  serve_start
  image_mounted --files 12 --size 1000000
  all_right
  inject pread64,preadv,read,readv,splice,sendfile,copy_file_range EIO
  all_right
  inject_end
  seen "$ORACLE, $INJECTED calls failed"
  all_right
  all_cached
}

row_23c() {
  fault 23c "bytes of the cache rot on the disk, the daemon is killed" "found by their SHA-256, fetched again: right bytes"
  local data before
  serve_configure rot
  serve_start
  image_mounted --files 12 --size 1000000
  all_right
  sync -f "$ROOT_DIR"
  data=$(find "$ROOT_DIR/layers/layers" -name data | head -1)
  kill -9 "$(lb_daemon_pid "$ROOT_DIR")"
  for at in 100000 3500000 7777777; do printf '\x5a\xa5\x5a' | dd of="$data" bs=1 seek="$at" conv=notrunc status=none; done
  lb --root "$ROOT_DIR" status > /dev/null || wrong "no successor"
  before=$(evil_count 'r["status"] == 206')
  all_right
  [ "$(evil_count 'r["status"] == 206')" -gt "$before" ] || wrong "nothing was fetched again"
  seen "$ORACLE, $(($(evil_count 'r["status"] == 206') - before)) ranges fetched again"
  all_cached
}

faults_main "$@"

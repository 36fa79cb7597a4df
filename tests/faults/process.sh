#!/bin/bash
# Rows 24 to 39 of the fault table: processes that are killed, starved, upgraded or confused, and images of odd shapes.
#   LAZYBLOB_SWEEP=N    row 25: kill at each of the first N system calls of a kind (default 2)
. "$(dirname "$0")/lib/faults.sh"
need_tools ctr strace prlimit faketime

# --- what rows share ---

served() {  # [TOML]
  serve_configure served "${1:-}"
  serve_start
}
image_mounted() {  # OPTIONS of make_image…
  make_image image "$@"
  evil_start "image=$IMAGE_LAYOUT"
  DIR=$SCRATCH/mnt
  lb_mount auto "$EVIL/image:latest" "$DIR" || die "cannot be mounted"
}
all_right() { oracle "$IMAGE_TREE" "$DIR" --errno none || wrong "${1:-reading}: $ORACLE"; }
snapshots() { timeout -k 5 60 ctr --address "$LB_SOCKET" snapshots --snapshotter lazyblob "$@"; }
daemon_is_new() { local now; now=$(lb_daemon_pid "$ROOT_DIR"); [ -n "$now" ] && [ "$now" != "$1" ]; }
successor_of() {
  wait_until 60 'no successor: $(tail -2 "$LB_LOG")' daemon_is_new "$1"
  wait_until 60 'the successor does not answer: $(tail -2 "$LB_LOG")' lb --root "$ROOT_DIR" status
}
kill_daemon() {
  local old; old=$(lb_daemon_pid "$ROOT_DIR")
  kill -9 "$old"
  successor_of "$old"
}
# containerd and images that a container can run.
machine() {
  need_tools docker-registry containerd runc skopeo
  mkdir -p /run/containerd
  mountpoint -q /run/containerd || mount -t tmpfs -o mode=0711 shims /run/containerd   # sockets of shims: of this run alone
  forget_cgroups
  registry_start "process-$ROW" "$WORK/images/registry"
  serve_configure served "${1:-}"
  serve_plain_http "$REG"
  serve_start
  CTR_PARENT=$SCRATCH CTR_EXTRA=$(proxy_plugin lazyblob)
  containerd_start containerd lazyblob
}
pull() {
  lb --root "$ROOT_DIR" pull --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --snapshotter lazyblob --plain-http --progress none \
    "$1" > "$SCRATCH/out" 2>&1
}
machine_end() {
  local left
  remove_everything || wrong "images cannot be removed"
  left=$(left_behind)
  [ -z "$left" ] || wrong "left behind: $(head -c 300 <<< "$left")"
}

# --- rows ---

row_24() {
  fault 24 "the daemon is killed under readers, three times (within one read: e2e_takeover; 100 times below a container: e2e_keeper)" \
    "right bytes, no errno"
  local i
  served
  image_mounted --files 8 --size 200000 --layers 2
  oracle_start "$IMAGE_TREE" "$DIR" --errno none --threads 3
  for i in 1 2 3; do
    kill_daemon
  done
  oracle_stop || wrong "$ORACLE"
  seen "$ORACLE"
}

# swept WHAT KIND N CMD…: the daemon dies at the Nth call of that kind while the command runs.
swept() {
  local kind=$1 n=$2 old pid
  shift 2
  old=$(lb_daemon_pid "$ROOT_DIR")
  strace -f -qq -o "$SCRATCH/trace" -e trace="$kind" -e "inject=$kind:signal=KILL:when=$n" -p "$old" 2> "$SCRATCH/strace.err" &
  pid=$!
  wait_until 30 'strace: $(tail -1 "$SCRATCH/strace.err")' traced "$old" "$pid"
  "$@" > "$SCRATCH/swept" 2>&1 || true
  kill -9 "$pid" 2>/dev/null || true   # told to end, it may wait for ever for a thread of who was killed
  wait "$pid" 2>/dev/null || true
  if grep -q 'killed by SIGKILL' "$SCRATCH/trace"; then
    successor_of "$old"
    killed=$((killed + 1))
  fi
}
traced() { local t; for t in /proc/"$1"/task/*/status; do grep -q "^TracerPid:[[:space:]]*$2\$" "$t" || return 1; done; }
snapshot_is() { snapshots ls | awk -v n="$1" '$1 == n {print $NF}'; }
row_25() {
  fault 25 "the daemon is killed at system calls of Prepare, Commit, Remove (fault points: snapshotter_crash_test, content_crash_test)" \
    "wholly done or wholly absent; again works; nothing is left"
  local kind n killed=0 tries=0 key state
  served
  for kind in mkdir rename fsync,fdatasync pwrite64 rmdir,unlinkat; do
    for ((n = 1; n <= ${LAZYBLOB_SWEEP:-2}; n++)); do
      tries=$((tries + 1))
      key=k-$tries
      swept "$kind" "$n" snapshots prepare "$key"
      state=$(snapshot_is "$key")
      case $state in
        Active) ;;
        "") snapshots prepare "$key" > /dev/null || wrong "$kind $n: Prepare again" ;;
        *) wrong "$kind $n: after Prepare it is $state" ;;
      esac
      snapshots mounts "$SCRATCH/none" "$key" > /dev/null || wrong "$kind $n: no mounts"
      swept "$kind" "$n" snapshots commit "c-$tries" "$key"
      case $(snapshot_is "$key"):$(snapshot_is "c-$tries") in
        :Committed) ;;
        Active:) snapshots commit "c-$tries" "$key" || wrong "$kind $n: Commit again" ;;
        *) wrong "$kind $n: after Commit: $(snapshots ls | tr '\n' ' ')" ;;
      esac
      swept "$kind" "$n" snapshots rm "c-$tries"
      case $(snapshot_is "c-$tries") in
        "") ;;
        Committed) snapshots rm "c-$tries" || wrong "$kind $n: Remove again" ;;
        *) wrong "$kind $n: after Remove: $(snapshots ls | tr '\n' ' ')" ;;
      esac
    done
  done
  [ "$killed" -gt "$tries" ] || wrong "only $killed calls were hit"
  lb --root "$ROOT_DIR" gc > /dev/null || wrong "gc"
  [ -z "$(ls "$ROOT_DIR/s")" ] || wrong "left: $(ls "$ROOT_DIR/s" | tr '\n' ' ')"
  seen "$killed kills in $((tries * 3)) calls"
}

row_26() {
  fault 26 "daemon and keeper are killed below a container" "stale mounts are found and made again; new containers work, the old one gets an errno and is started again"
  local keeper root status=0
  machine
  pull "$REG/debian:estargz" || die "pull: $(tail -1 "$SCRATCH/out")"
  ctr_ run -d --snapshotter lazyblob "$REG/debian:estargz" old /usr/bin/sleep infinity || die "run"
  root=/proc/$(ctr_ tasks ls | awk '$1 == "old" {print $2}')/root
  kill -9 $(lb_pids "$ROOT_DIR")
  wait_until 30 "they do not end" lb_no_daemon "$ROOT_DIR"
  [ "$(serve_mounts | wc -l)" -gt 0 ] || wrong "the mounts went by themselves"
  timeout -k 5 60 cat "$root/usr/bin/perl" > "$SCRATCH/read" 2> "$SCRATCH/read.err" || status=$?
  case $status in
    0) wrong "a file that nobody had read could be read" ;;
    124 | 137) wrong "the old container hangs" ;;
    *) seen "old container: $([ -d "$root/usr" ] && sed 's/.*: //' "$SCRATCH/read.err" | head -1 || echo died)" ;;
  esac
  serve_start
  wait_until 30 "containerd does not come back to the snapshotter" ctr_ snapshots --snapshotter lazyblob ls
  ctr_ run --rm --snapshotter lazyblob "$REG/debian:estargz" new /usr/bin/sha256sum /usr/bin/perl > "$SCRATCH/out" 2>&1 ||
    wrong "a new container: $(tail -1 "$SCRATCH/out")"
  judge_tree debian gzip
  [ "$(cut -d' ' -f1 < "$SCRATCH/out")" = "$(sha256sum < "$JUDGE/usr/bin/perl" | cut -d' ' -f1)" ] || wrong "new container: $(cat "$SCRATCH/out")"
  seen "new container: right bytes"
  ctr_ tasks kill -s KILL old > /dev/null 2>&1 || true   # it may have died of what it could not read
  wait_until 30 "the old container does not end" sh -c "! ctr --address '$CTR_ADDRESS' tasks ls | grep -q RUNNING"
  machine_end
}

row_27() {
  fault 27 "the daemon alone is killed by the OOM killer of its memory cgroup (1000 readers: faults_readers)" "as a kill: right bytes, no errno"
  local group=/sys/fs/cgroup/memory/lazyblob-e2e-$$-27 old
  [ -d /sys/fs/cgroup/memory ] || die "no memory cgroup of version 1"
  served
  image_mounted --files 8 --size 200000 --layers 2
  mkdir "$group"
  on_exit "rmdir '$group'"
  old=$(lb_daemon_pid "$ROOT_DIR")
  oracle_start "$IMAGE_TREE" "$DIR" --errno none --threads 3
  echo "$old" > "$group/cgroup.procs"
  echo 64K > "$group/memory.limit_in_bytes"
  wait_until 60 'nobody was killed: $(cat "$group/memory.oom_control")' sh -c "! grep -q 'oom_kill 0' '$group/memory.oom_control' || ! kill -0 $old"
  successor_of "$old"
  oracle_stop || wrong "$ORACLE"
  all_right "afterwards"
  seen "$(grep oom_kill\  "$group/memory.oom_control"); $ORACLE"
}

row_29() {
  fault 29 "the daemon is upgraded and downgraded under readers (20 times below a container: e2e_keeper)" "right bytes, no errno"
  local i which
  served
  mkdir "$SCRATCH/other"
  cp "$LAZYBLOBD" "$SCRATCH/other/lazyblobd"
  image_mounted --files 8 --size 200000 --layers 2
  oracle_start "$IMAGE_TREE" "$DIR" --errno none --threads 3
  for i in 1 2 3 4; do
    which=$SCRATCH/other/lazyblobd
    [ $((i % 2)) = 1 ] || which=$LAZYBLOBD
    lb --root "$ROOT_DIR" upgrade --binary "$which" > "$SCRATCH/out" 2>&1 || wrong "upgrade $i: $(cat "$SCRATCH/out")"
  done
  oracle_stop || wrong "$ORACLE"
  seen "$ORACLE"
}

row_30() {
  fault 30 "containerd is killed while it pulls, commits, removes (e2e_snapshotter kills, 3 rounds)" "again works, nothing is left"
  LAZYBLOB_KILL_ROUNDS=3 "$E2E_DIR/e2e_snapshotter.sh" kills > "$SCRATCH/kills.log" 2>&1 || wrong "$(grep FAILED "$SCRATCH/kills.log" | head -2)"
  seen "$(grep 'rounds,' "$SCRATCH/kills.log" | sed 's/.*kills: //')"
}

# The daemon's wall clock, by libfaketime: seconds ahead of the machine's.
clock() { printf '%+d\n' "$1" > "$SCRATCH/time.new" && mv "$SCRATCH/time.new" "$SCRATCH/time"; }
row_31() {
  fault 31 "the wall clock jumps by a year, back and forth; tokens live 60 s" "reads that wait get their bytes, tokens are asked for anew, deadlines hold"
  local year=31536000 library=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 jump number=0 waiting years=
  [ -e "$library" ] || die "no libfaketime: run deploy/install-deps.sh"
  clock 0
  serve_configure served '[fuse]
read_deadline = "20s"'
  LD_PRELOAD=$library FAKETIME_TIMESTAMP_FILE=$SCRATCH/time FAKETIME_NO_CACHE=1 DONT_FAKE_MONOTONIC=1 serve_start
  image_mounted --layers 5 --files 1 --size 100000
  evil POST auth '{"kind": "bearer", "token_ttl_ms": 60000}' > /dev/null
  for jump in $year -$year 0; do
    # one read waits while the clock jumps
    evil POST gates/held/close > /dev/null
    evil_fault '{"path_contains": "/blobs/", "gate": "held", "count": 1}'
    (oracle "$IMAGE_TREE" "$DIR" --errno none "f0$number-00" || echo "$ORACLE" > "$SCRATCH/waited") & waiting=$!
    wait_until 30 "no request is held" evil_holds
    clock "$jump"
    wait_until 30 "the daemon's clock does not jump" daemons_year_is "$(date -d "@$(($(date +%s) + jump))" +%Y)"
    years+=" $YEAR"
    evil POST gates/held/open > /dev/null
    wait "$waiting"
    [ ! -e "$SCRATCH/waited" ] || wrong "a read that waited at a jump to $jump: $(cat "$SCRATCH/waited")"
    evil_clear
    number=$((number + 1))
  done
  # a deadline
  evil POST gates/held/close > /dev/null
  evil_fault '{"path_contains": "/blobs/", "gate": "held"}'
  (oracle "$IMAGE_TREE" "$DIR" "f03-00" > /dev/null || true; oracle_n EIO > "$SCRATCH/waited") & waiting=$!
  wait_until 30 "no request is held" evil_holds
  clock "-$year"
  wait "$waiting"
  [ "$(cat "$SCRATCH/waited")" = 1 ] || wrong "a read beyond its deadline: $(cat "$SCRATCH/oracle.json")"
  evil_clear
  evil POST gates/held/open > /dev/null
  evil POST revoke_tokens > /dev/null
  oracle "$IMAGE_TREE" "$DIR" --errno none f00-00 f01-00 f02-00 f04-00 || wrong "afterwards: $ORACLE"
  seen "$ORACLE; $(evil_count '"/token" in r["path"]') tokens; snapshots of the years$years"
}
daemons_year_is() {
  snapshots prepare clock || return 1
  YEAR=$(snapshots info clock | sed -n 's/.*"Created": "\([0-9]*\).*/\1/p')
  snapshots rm clock && [ "$YEAR" = "$1" ]
}
evil_holds() { [ "$(evil GET gates/held | "$PYTHON" -c 'import json,sys; print(json.load(sys.stdin)["waiting"])')" -gt 0 ]; }

row_33a() {
  fault 33a "no file descriptor is left" "what is cached is read; new work is refused and works later"
  local pid limit
  served
  image_mounted --files 12 --size 500000
  all_right
  pid=$(lb_daemon_pid "$ROOT_DIR")
  limit=$(prlimit --pid "$pid" --nofile --noheadings --output SOFT)
  prlimit --pid "$pid" --nofile="$(ls "/proc/$pid/fd" | wc -l):"
  all_right "no descriptor"
  seen "$ORACLE"
  local tree=$IMAGE_TREE dir=$DIR
  mkdir "$SCRATCH/second"
  make_image second --files 4
  evil_start "second=$IMAGE_LAYOUT"
  ! timeout -k 5 60 "$LAZYBLOB" --root "$ROOT_DIR" mount --plain-http --progress none "$EVIL/second:latest" "$SCRATCH/second" > "$SCRATCH/out" 2>&1 ||
    wrong "new work with no descriptor"
  [ "$(lb_daemon_pid "$ROOT_DIR")" = "$pid" ] || wrong "the daemon died"
  prlimit --pid "$pid" --nofile="$limit:"
  lb_mount auto "$EVIL/second:latest" "$SCRATCH/second" || wrong "new work afterwards"
  oracle "$IMAGE_TREE" "$SCRATCH/second" --errno none || wrong "$ORACLE"
  oracle "$tree" "$dir" --errno none || wrong "$ORACLE"
  seen "new work: $(tail -1 "$SCRATCH/out" | grep -oiE 'too many open files|timed out|.{0,60}$' | head -1), afterwards right"
}

row_33b() {
  fault 33b "no thread can be made (pids cgroup)" "what is cached is read; new work is refused and works later; nobody dies"
  local group=/sys/fs/cgroup/pids/lazyblob-e2e-$$-33 pid
  [ -d /sys/fs/cgroup/pids ] || die "no pids cgroup of version 1"
  served
  image_mounted --files 12 --size 500000
  all_right
  mkdir "$group"
  on_exit "rmdir '$group'"
  pid=$(lb_daemon_pid "$ROOT_DIR")
  echo "$pid" > "$group/cgroup.procs"
  cat "$group/pids.current" > "$group/pids.max"
  all_right "no thread"
  seen "$ORACLE"
  mkdir "$SCRATCH/second"
  make_image second --files 4
  evil_start "second=$IMAGE_LAYOUT"
  timeout -k 5 60 "$LAZYBLOB" --root "$ROOT_DIR" mount --plain-http --progress none "$EVIL/second:latest" "$SCRATCH/second" > "$SCRATCH/out" 2>&1 || true
  [ "$(lb_daemon_pid "$ROOT_DIR")" = "$pid" ] || wrong "the daemon died: $(tail -3 "$LB_LOG")"
  echo max > "$group/pids.max"
  mountpoint -q "$SCRATCH/second" || lb_mount auto "$EVIL/second:latest" "$SCRATCH/second" || wrong "new work afterwards"
  oracle "$IMAGE_TREE" "$SCRATCH/second" --errno none || wrong "$ORACLE"
  echo "$(lb_daemon_pid "$ROOT_DIR")" > /sys/fs/cgroup/pids/cgroup.procs
  lb_umount "$SCRATCH/second" || wrong "umount"
  seen "new work: $(tail -1 "$SCRATCH/out" | cut -c1-100); afterwards $ORACLE"
}

row_34() {
  fault 34 "images of 127 and 501 layers (LAZYBLOB_LAYERS: others too)" "right bytes; a clear refusal beyond 500"
  local count started
  served
  for count in 127 ${LAZYBLOB_LAYERS:-}; do
    make_image "layers$count" --files 1 --size 2000 --layers "$count" --format gzip
    evil_start "layers=$IMAGE_LAYOUT"
    started=$(now_ms)
    lb_mount auto "$EVIL/layers:latest" "$SCRATCH/mnt$count" || { wrong "$count layers: $(cat "$SCRATCH/mount.err")"; continue; }
    seen "$count layers mounted in $(($(now_ms) - started)) ms"
    oracle "$IMAGE_TREE" "$SCRATCH/mnt$count" --errno none || wrong "$count: $ORACLE"
    lb_umount "$SCRATCH/mnt$count" || wrong "umount of $count layers"
  done
  make_image layers501 --files 1 --size 2000 --layers 501 --format gzip
  evil_start "layers=$IMAGE_LAYOUT"
  mkdir "$SCRATCH/mnt501"
  lb_refused lb --root "$ROOT_DIR" mount --plain-http --progress none "$EVIL/layers:latest" "$SCRATCH/mnt501" || wrong "501 layers"
  seen "501: $(grep -o 'manifest with.*' "$LB_ERR")"
}

row_35() {
  fault 35 "20000 entries, a path of 1000 directories, a sparse file of 100 GiB (a million entries: bench/run.sh; made/deep: e2e_tree_made)" \
    "mounted; every entry is there, holes are zeros"
  local layout=$SCRATCH/images/many started
  served
  mkdir -p "$SCRATCH/images"
  "$PYTHON" -B "$SOURCE_DIR/bench/million_layer.py" "$layout" latest 20000 > /dev/null
  "$PYTHON" -B - "$E2E_DIR/lib" "$SCRATCH/images/odd" <<'ODD'
import sys, subprocess, os, tempfile
sys.path.insert(0, sys.argv[1])
from ocilayout import LAYER, Layout, compress, digest
from tars import Tar
deep = Tar("pax").add("/".join(["d"] * 1000) + "/file", data=b"at the bottom").bytes()
with tempfile.TemporaryDirectory() as d:
    with open(d + "/sparse", "wb") as f:
        f.truncate(100 << 30)
        f.seek(50 << 30)
        f.write(b"in the middle")
    sparse = subprocess.run(["tar", "-C", d, "--sparse", "--format=posix", "-c", "sparse"], stdout=subprocess.PIPE, check=True).stdout
Layout(sys.argv[2]).write_image("latest", [(compress(t, "gzip"), LAYER + "+gzip", digest(t), None) for t in (deep, sparse)])
ODD
  evil_start "many=$layout" "odd=$SCRATCH/images/odd"
  started=$(now_ms)
  lb_mount auto "$EVIL/many:latest" "$SCRATCH/many" || die "20000 entries: $(cat "$SCRATCH/mount.err")"
  seen "20000 entries mounted in $(($(now_ms) - started)) ms"
  [ "$(find "$SCRATCH/many/data" -mindepth 2 | wc -l)" = 20000 ] || wrong "entries: $(find "$SCRATCH/many/data" -mindepth 2 | wc -l)"
  kill_daemon
  [ "$(find "$SCRATCH/many/data" -mindepth 2 | wc -l)" = 20000 ] || wrong "entries after a kill"
  started=$(now_ms)
  lb_mount auto "$EVIL/odd:latest" "$SCRATCH/odd" || die "odd: $(cat "$SCRATCH/mount.err")"
  seen "deep and sparse in $(($(now_ms) - started)) ms"
  (cd "$SCRATCH/odd" && for ((i = 0; i < 100; i++)); do cd d/d/d/d/d/d/d/d/d/d; done && cat file) > "$SCRATCH/out" ||
    wrong "the bottom cannot be reached"
  [ "$(cat "$SCRATCH/out")" = "at the bottom" ] || wrong "the bottom: $(cat "$SCRATCH/out")"
  [ "$(stat -c %s "$SCRATCH/odd/sparse")" = 107374182400 ] || wrong "sparse: $(stat -c %s "$SCRATCH/odd/sparse") bytes"
  [ "$(dd if="$SCRATCH/odd/sparse" bs=13 count=1 iflag=skip_bytes skip=53687091200 status=none)" = "in the middle" ] || wrong "bytes of the sparse file"
  for at in 0 30000000000 107374178304; do
    cmp -n 4096 "$SCRATCH/odd/sparse" /dev/zero -i "$at:0" || wrong "no zeros at $at"
  done
  [ "$(du -xsm "$ROOT_DIR" | cut -f1)" -lt 200 ] || wrong "$(du -xsm "$ROOT_DIR" | cut -f1) MiB on the disk"
}

row_36() {
  fault 36 "snapshots and image are removed while mounted and open" "no EBUSY; the open file's bytes or an errno; nothing is left after the unmount"
  local status=0 at=$SCRATCH/view
  machine
  pull "$REG/debian:estargz" || die "pull: $(tail -1 "$SCRATCH/out")"
  mkdir "$at"
  view_by_hand "$at"
  exec 7< "$at/usr/bin/perl"
  ctr_ snapshots --snapshotter lazyblob rm look || wrong "a snapshot that is mounted cannot be removed"
  remove_everything || wrong "images cannot be removed while mounted"
  [ -z "$(ctr_ snapshots --snapshotter lazyblob ls | tail -n +2)" ] || wrong "snapshots: $(ctr_ snapshots --snapshotter lazyblob ls)"
  timeout -k 5 90 sha256sum <&7 > "$SCRATCH/out" 2>&1 || status=$?
  exec 7<&-
  judge_tree debian gzip
  case $status in
    0) [ "$(cut -d' ' -f1 "$SCRATCH/out")" = "$(sha256sum < "$JUDGE/usr/bin/perl" | cut -d' ' -f1)" ] || wrong "wrong bytes" ;;
    124 | 137) wrong "the read hangs" ;;
    *) grep -qi 'error' "$SCRATCH/out" || wrong "$(cat "$SCRATCH/out")" ;;
  esac
  seen "the open file: $([ "$status" = 0 ] && echo right bytes || sed 's/.*: //' "$SCRATCH/out")"
  umount "$at" || wrong "the view cannot be unmounted"
  pull "$REG/debian:estargz" || wrong "pull again: $(tail -1 "$SCRATCH/out")"
  machine_end
}
view_by_hand() {
  local top
  top=$(skopeo inspect --config --tls-verify=false "docker://$REG/debian:estargz" | "$PYTHON" -c 'import hashlib,json,sys
chain = ""
for diff in json.load(sys.stdin)["rootfs"]["diff_ids"]:
    chain = "sha256:" + hashlib.sha256(f"{chain} {diff}".encode()).hexdigest() if chain else diff
print(chain)')
  ctr_ snapshots --snapshotter lazyblob prepare look "$top" > /dev/null
  ctr_ snapshots --snapshotter lazyblob mounts "$1" look > "$SCRATCH/mount.sh" && . "$SCRATCH/mount.sh"
}

row_37() {
  fault 37 "the cache holds a sixth of what is read at random (hard limit under load: e2e_cache_limit)" "right bytes, no errno, never above the limit"
  local i most=0 now
  served '[cache]
max_bytes = "2MiB"'
  image_mounted --files 24 --size 500000
  oracle_start "$IMAGE_TREE" "$DIR" --errno none --threads 4
  for ((i = 0; i < 40; i++)); do
    now=$(find "$ROOT_DIR/layers/layers" -name data -printf '%b\n' | awk '{s += $1 * 512} END {printf "%d", s}')
    [ "$now" -le "$most" ] || most=$now
    [ "$i" != 20 ] || kill_daemon
    sleep 0.1
  done
  oracle_stop || wrong "$ORACLE"
  [ "$most" -le $(((2 << 20) + 65536)) ] || wrong "$most bytes lay on the disk"
  seen "$ORACLE, at most $((most >> 10)) KiB on the disk"
}

row_38() {
  fault 38 "lazyblobd in a private mount namespace (PrivateMounts=, ProtectSystem=)" "refused at the start, in one clear line"
  serve_configure served
  lb_refused timeout -k 5 30 unshare --mount --propagation slave "$LAZYBLOBD" --config "$LB_CONFIG" --root "$ROOT_DIR" --address "$LB_SOCKET" ||
    wrong "it started"
  seen "$(head -c 300 "$LB_ERR")"
  # a directory that is shared with the machine, as a pod with Bidirectional propagation has it
  mkdir "$SCRATCH/shared"
  mount --bind "$SCRATCH/shared" "$SCRATCH/shared"
  mount --make-shared "$SCRATCH/shared"
  ROOT_DIR=$SCRATCH/shared/root DIR=$SCRATCH/shared/mnt
  mkdir -m 0700 "$ROOT_DIR"
  on_exit "lb_end_root '$ROOT_DIR'"
  unshare --mount --propagation unchanged "$LAZYBLOBD" --config "$LB_CONFIG" --root "$ROOT_DIR" --address "$LB_SOCKET" >> "$LB_LOG" 2>&1 &
  wait_until 30 'a shared root: $(tail -1 "$LB_LOG")' lb --root "$ROOT_DIR" status
  make_image image --files 2
  evil_start "image=$IMAGE_LAYOUT"
  lb_mount auto "$EVIL/image:latest" "$DIR" || wrong "in a shared directory: $(cat "$SCRATCH/mount.err")"
  all_right "in a shared directory"
  seen "in a shared directory: $ORACLE"
}

row_39() {
  fault 39 "24 clients Prepare, Commit, Remove the same name at once (10000 steps: snapshotter_race_test)" "exactly one wins, the others are told"
  local round
  served
  for round in 1 2 3; do
    at_once prepare snapshots prepare "key$round"
    at_once commit snapshots commit "name$round" "key$round"
    at_once rm snapshots rm "name$round"
  done
  [ "$(snapshots ls | tail -n +2 | wc -l)" = 0 ] || wrong "left: $(snapshots ls)"
  lb --root "$ROOT_DIR" gc > /dev/null || wrong "gc"
  [ -z "$(ls "$ROOT_DIR/s")" ] || wrong "left: $(ls "$ROOT_DIR/s")"
  seen "one of 24, nine times"
}
at_once() {  # WHAT CMD…
  local what=$1 i pids=() won=0 pid
  shift
  for ((i = 0; i < 24; i++)); do ("$@" > "$SCRATCH/at-once.$i" 2>&1) & pids+=($!); done
  for pid in "${pids[@]}"; do if wait "$pid"; then won=$((won + 1)); fi; done
  [ "$won" = 1 ] || wrong "$what: $won won: $(cat "$SCRATCH"/at-once.* | sort | uniq -c | head -3)"
  [ "$(cat "$SCRATCH"/at-once.* | grep -ciE 'already exists|not found|does not exist')" -ge 23 ] || wrong "$what: $(cat "$SCRATCH"/at-once.* | sort | uniq -c | head -4)"
}

faults_main "$@"

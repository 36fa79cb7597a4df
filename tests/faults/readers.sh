#!/bin/bash
# Rows 27, 32 and 45: cold readers of many layers at once, all in one moment, twice: while all registries answer, and while
# one of them gives 1 kB/s. The daemon alone is in a memory cgroup. Others are not delayed: they have their bytes before
# the slow one's readers have their errno. And the same beside a bomb that is indexed. See docs/FAULTS.md.
#   readers.sh [ROW…]
#   LAZYBLOB_READERS=1000 LAZYBLOB_LAYERS=100   how many (100, 20); LAZYBLOB_GROUP_MIB=64: the cgroup's limit
ROW_LIMIT=${ROW_LIMIT:-600}
. "$(dirname "$0")/lib/faults.sh"
LAYERS=${LAZYBLOB_LAYERS:-20}
READERS=${LAZYBLOB_READERS:-100}
GROUP_MIB=${LAZYBLOB_GROUP_MIB:-64}
SIZE=300000       # of a file: longer than what is fetched for one read
DEADLINE=15
BOMB_GIB=${LAZYBLOB_BOMB_GIB:-16}
SLOW_READERS=24   # more than a host has threads

# memory_group MIB: sets GROUP, below the group of this script, and how its files are called.
memory_group() {
  local own parent
  if own=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup) && [ -n "$own" ]; then
    parent=/sys/fs/cgroup/memory$own
    [ -d "$parent" ] || parent=/sys/fs/cgroup/memory
    LIMIT_FILE=memory.limit_in_bytes PEAK_FILE=memory.max_usage_in_bytes OOM_FILE=memory.oom_control
  else
    parent=/sys/fs/cgroup
    grep -qw memory "$parent/cgroup.subtree_control" || echo +memory > "$parent/cgroup.subtree_control"
    LIMIT_FILE=memory.max PEAK_FILE=memory.peak OOM_FILE=memory.events
  fi
  GROUP_PARENT=$parent GROUP=$parent/lazyblob-readers-$$
  mkdir "$GROUP" || die "no memory cgroup can be made below $parent"
  on_exit "rmdir '$GROUP'"
  echo $(($1 << 20)) > "$GROUP/$LIMIT_FILE"
}
oom_kills() { awk '$1 == "oom_kill" {print $2}' "$GROUP/$OOM_FILE"; }
peak_mib() { echo $(($(cat "$GROUP/$PEAK_FILE" 2>/dev/null || echo 0) >> 20)); }
# The most memory of its own, not of files, that the process had, until it ends or $2 is there.
watch_anonymous() {
  local now most=0
  while [ ! -e "$2" ] && now=$(awk '/^RssAnon:/ {print $2}' "/proc/$1/status" 2>/dev/null) && [ -n "$now" ]; do
    [ "$now" -le "$most" ] || { most=$now; echo "$most" > "$SCRATCH/anonymous"; }
    sleep 0.05
  done
}

# The daemon in the group, its keeper outside.
serve_in_group() {
  printf '#!/bin/sh\necho $$ > "%s/cgroup.procs"\nexec "%s" "$@"\n' "$GROUP" "$LAZYBLOBD" > "$SCRATCH/in-group"
  chmod 0755 "$SCRATCH/in-group"
  LAZYBLOBD=$SCRATCH/in-group serve_start
  echo "$SERVE_PID" > "$GROUP_PARENT/cgroup.procs"
}

# read_all NAME LIST: its outcomes are in $SCRATCH/NAME.out.
read_all() {
  drop_caches
  "$BUILD_DIR/tests/many_readers" < "$2" > "$SCRATCH/$1.out" || wrong "$1: $(grep -c ^wrong "$SCRATCH/$1.out") files are wrong"
}
# Of the readers whose files match: "N right, M EIO; first bytes after p50, p99, longest ms".
outcome_of() {
  awk -v match_="$2" '$3 ~ match_ {n[$1]++; print $2 > "/dev/fd/3"} END {for (o in n) {printf "%s%d %s", s, n[o], o; s = ", "}}' \
    "$SCRATCH/$1.out" 3> "$SCRATCH/times"
  sort -n "$SCRATCH/times" | awk '{t[NR] = $1} END {printf "; first bytes: p50 %d ms, p99 %d ms, longest %d ms",
    t[int((NR + 1) * 0.5)], t[int((NR - 1) * 0.99) + 1], t[NR]}'
}
count_of() { awk -v o="$2" -v match_="$3" '$1 == o && $3 ~ match_ {n++} END {print n + 0}' "$SCRATCH/$1.out"; }
longest_of() { awk -v match_="$2" '$3 ~ match_ && $2 > m {m = $2} END {print int(m)}' "$SCRATCH/$1.out"; }

# An image of $1 layers at a registry of its own; its mount; its files of one half, every other one, so that each is a
# request of its own.
good_image() {
  PER_LAYER=$((READERS / LAYERS))
  make_image good --layers "$1" --files $((2 * PER_LAYER)) --size $SIZE
  GOOD_TREE=$IMAGE_TREE
  evil_start "good=$IMAGE_LAYOUT"
  GOOD_HOST=$EVIL
}
mount_good() {
  lb_mount auto "$GOOD_HOST/good:latest" "$SCRATCH/at-good" || die "good: no mount"
  on_exit "lb_umount '$SCRATCH/at-good'"
}
good_files() {
  local layer file
  for ((file = $1; file < 2 * PER_LAYER; file += 2)); do
    for ((layer = 0; layer < $2; layer++)); do
      printf '%s/at-good/f%02d-%02d %s/f%02d-%02d\n' "$SCRATCH" $layer $file "$GOOD_TREE" $layer $file
    done
  done
}

# Of a layer that has some: "N reads wait, the oldest for M ms".
waiting_told() {
  lb --root "$ROOT_DIR" status --json > "$SCRATCH/status.json"
  lb_json "$SCRATCH/status.json" '["%d reads wait, the oldest for %d ms" % (l["waiting_reads"], l["oldest_read_ms"])
    for l in layers if l["waiting_reads"] > 20 and l["oldest_read_ms"] > 0][0]' > "$SCRATCH/waiting"
}

row_27() {
  fault 27 "$READERS cold readers of $LAYERS layers at once, one layer's registry at 1 kB/s; daemon in a cgroup of $GROUP_MIB MiB" \
    "the daemon stays inside; right bytes, or EIO in time for the slow layer; the others are not delayed"
  local good=$((LAYERS - 1)) file pid watcher reader
  good_image "$good"
  make_image slow --files $((2 * SLOW_READERS)) --size $SIZE
  local slow_tree=$IMAGE_TREE
  evil_start "slow=$IMAGE_LAYOUT"
  memory_group "$GROUP_MIB"
  serve_configure readers "[fuse]
read_deadline = \"${DEADLINE}s\""
  serve_in_group
  pid=$(lb_daemon_pid "$ROOT_DIR")
  mount_good
  lb_mount auto "$EVIL/slow:latest" "$SCRATCH/at-slow" || die "slow: no mount"
  on_exit "lb_umount '$SCRATCH/at-slow'"
  watch_anonymous "$pid" "$SCRATCH/enough" & watcher=$!
  good_files 0 "$good" > "$SCRATCH/alone.list"
  for ((file = 0; file < 2 * SLOW_READERS; file += 2)); do
    printf '%s/at-slow/f%02d %s/f%02d\n' "$SCRATCH" $file "$slow_tree" $file
  done > "$SCRATCH/beside.list"
  good_files 1 "$good" >> "$SCRATCH/beside.list"
  read_all alone "$SCRATCH/alone.list"
  evil_fault '{"path_contains": "/blobs/", "bytes_per_second": 1000}'
  read_all beside "$SCRATCH/beside.list" & reader=$!
  wait_until 30 "lazyblob status tells no read that waits: $(tail -1 "$LB_LOG")" waiting_told
  seen "status: $(cat "$SCRATCH/waiting")"
  wait "$reader"
  touch "$SCRATCH/enough"
  wait "$watcher" || true
  seen "without it: $(outcome_of alone at-good/)"
  seen "beside it: $(outcome_of beside at-good/)"
  seen "its own: $(outcome_of beside at-slow/)"
  seen "cgroup at most $(peak_mib) MiB with pages of files, the daemon's own memory at most $(($(cat "$SCRATCH/anonymous") >> 10)) MiB, $(awk '/^Threads:/ {print $2}' "/proc/$pid/status") threads"
  [ "$(count_of alone right at-good/)" = $((PER_LAYER * good)) ] || wrong "not all are right: $(tail -1 "$LB_LOG")"
  [ "$(count_of beside right at-good/)" = $((PER_LAYER * good)) ] || wrong "not all are right beside the slow one: $(tail -1 "$LB_LOG")"
  [ "$(count_of beside EIO at-slow/)" -gt 0 ] || wrong "no EIO of the slow layer: it was not slow"
  [ $(($(count_of beside EIO at-slow/) + $(count_of beside right at-slow/))) = "$SLOW_READERS" ] || wrong "another errno of the slow layer"
  [ "$(longest_of beside at-slow/)" -lt $((2 * DEADLINE * 1000)) ] || wrong "a reader of the slow layer had no answer in time"
  [ "$(oom_kills)" = 0 ] || wrong "$(oom_kills) OOM kills"
  [ "$(lb_daemon_pid "$ROOT_DIR")" = "$pid" ] || wrong "the daemon is another one"
}

# A layer of members that each hold 64 MiB of zeros: much to inflate, little to fetch.
bomb_image() {
  "$PYTHON" - "$E2E_DIR/lib" "$SCRATCH/bomb" "$1" <<'BOMB'
import sys
sys.path.insert(0, sys.argv[1])
import gzip
import tarfile
from ocilayout import LAYER, Layout, digest

members = int(sys.argv[3])
header = tarfile.TarInfo("zeros")
header.size = members << 26
blob = gzip.compress(header.tobuf(tarfile.GNU_FORMAT), mtime=0) + gzip.compress(bytes(1 << 26), mtime=0) * members
Layout(sys.argv[2]).write_image("latest", [(blob, LAYER + "+gzip", digest(b"another"), None)])
BOMB
}

row_45v() {
  fault 45 "cold readers of a good image while a layer of $BOMB_GIB GiB of zeros in $((BOMB_GIB)) MB is streamed and indexed" \
    "right bytes, within the deadline; the bomb does not fill the cache"
  local bomb
  good_image "$LAYERS"
  bomb_image $((BOMB_GIB * 16)) || die "no bomb"
  evil_start "bomb=$SCRATCH/bomb"
  serve_configure bomb "[fuse]
read_deadline = \"${DEADLINE}s\"
[cache]
max_bytes = \"1GiB\""
  serve_start
  mount_good
  good_files 0 "$LAYERS" > "$SCRATCH/alone.list"
  good_files 1 "$LAYERS" > "$SCRATCH/beside.list"
  read_all alone "$SCRATCH/alone.list"
  mkdir "$SCRATCH/at-bomb"
  lb --root "$ROOT_DIR" mount --plain-http --progress none "$EVIL/bomb:latest" "$SCRATCH/at-bomb" > "$SCRATCH/bomb.err" 2>&1 & bomb=$!
  wait_until 30 "the bomb is not asked for" bomb_under_way
  read_all beside "$SCRATCH/beside.list"
  if kill "$bomb" 2> /dev/null; then seen "under way all the time"; else seen "over meanwhile: $(tail -1 "$SCRATCH/bomb.err")"; fi
  wait "$bomb" || true
  unmount_below "$SCRATCH/at-bomb"
  seen "without it: $(outcome_of alone at-good/)"
  seen "beside it: $(outcome_of beside at-good/)"
  seen "cache $(($(cache_bytes) >> 20)) MiB"
  [ "$(count_of beside right at-good/)" = $((PER_LAYER * LAYERS)) ] || wrong "not all are right: $(tail -1 "$LB_LOG")"
  [ "$(cache_bytes)" -le $((1200 << 20)) ] || wrong "the cache has $(cache_bytes) bytes, its limit is 1 GiB"
}
bomb_under_way() { [ "$(evil_count '"/blobs/" in r["path"] and r["method"] == "GET"')" -gt 1 ]; }

faults_main "$@"

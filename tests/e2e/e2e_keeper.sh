#!/bin/bash
# A container on a lazy image reads its whole root (find, sha256sum -c, an exec loop, a reader that measures) while
# lazyblobd is killed or replaced below it: no error, no wrong byte, no refused connection; the longest stall is printed.
# Parts (default: all):
#   storm     kill -9 5 times within one read that the registry holds, LAZYBLOB_KILLS times (20) at random; then successors
#             that cannot start
#   upgrade   `lazyblob upgrade` back and forth between two programs, daemon and keeper, 20 times, and programs that
#             cannot take over
#   manager   kill -9 of the keeper, which a service manager starts again, LAZYBLOB_KILLS times (2)
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry judge lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo containerd ctr ctr-remote runc
make_scratch
chmod 0711 "$SCRATCH"
private_programs
forget_cgroups
mkdir -p /run/containerd
mount -t tmpfs -o mode=0711 shims /run/containerd   # sockets of shims: of this run alone
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
CTR_PARENT=$SCRATCH

# Reads one file after the other, each time from lazyblobd and not from memory, until $1 is there.
read -r -d '' PROBE <<'PROBE' || true
import os, random, sys, time
files = [line.split("  ", 1)[1].rstrip("\n") for line in open("/tmp/sums", errors="surrogateescape") if line[0] != "\\"]
random.seed(1)
count, longest = 0, 0.0
while not os.path.exists("/tmp/stop"):
    fd = os.open(random.choice(files), os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.monotonic()
    os.pread(fd, 65536, 0)
    longest = max(longest, time.monotonic() - start)
    os.close(fd)
    count += 1
print(f"{count} reads, longest stall {longest * 1000:.0f} ms")
PROBE
# Connects to both sockets until $3 is there: a refusal is an error.
read -r -d '' KNOCK <<'KNOCK' || true
import os, socket, sys, time
count = 0
while not os.path.exists(sys.argv[3]):
    for path in sys.argv[1:3]:
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(path)
            except OSError as error:
                sys.exit(f"{path}: {error} after {count} connections")
        count += 1
    time.sleep(0.01)
print(f"{count} connections, none refused")
KNOCK

task_exec() { ctr_ tasks exec --exec-id "e$RANDOM$RANDOM" "$@"; }
in_container() { task_exec long /bin/sh -c "$1"; }
# The exit status tells: ctr may close the pipes of an exec that has ended before it has read them.
exec_loop() {
  local count=0 said status
  until [ -e "$SCRATCH/stop" ]; do
    status=0
    said=$(task_exec long /bin/sh -c 'ls /usr > /dev/null && exit 42' 2>&1) || status=$?
    [ "$status" = 42 ] || { echo "exec $count ended with $status: $said"; return 1; }
    count=$((count + 1))
  done
  echo "$count execs"
}

LOADS=()
STARTER=()
load() {  # NAME CMD…
  local name=$1
  shift
  ("$@" > "$SCRATCH/load-$name" 2>&1) & LOADS+=("$!:$name")
}
load_start() {  # PART [COMMAND before the load]
  local root
  LOADS=()
  rm -f "$SCRATCH/stop"
  registry_start "keeper-$1" "$WORK/images/registry"
  judge_tree debian gzip
  (cd "$JUDGE" && find . -xdev -type f ! -path './tmp/*' ! -path './etc/hosts' ! -path './etc/resolv.conf' ! -path './etc/hostname' \
    -size +0 -exec sha256sum {} +) | sed 's,  \./,  /,' > "$SCRATCH/sums"
  serve_configure "$1"
  serve_plain_http "$REG"
  "${STARTER[@]}" "$LAZYBLOBD" --config "$LB_CONFIG" --root "$ROOT_DIR" --address "$LB_SOCKET" >> "$LB_LOG" 2>&1 &
  SERVE_PID=$!
  disown "$SERVE_PID"
  wait_until 30 'lazyblobd did not start, see $LB_LOG: $(tail -2 "$LB_LOG")' test -S "$LB_SOCKET"
  CTR_EXTRA=$(proxy_plugin lazyblob)
  containerd_start "containerd-$1" lazyblob
  ctr_remote images rpull --plain-http --snapshotter lazyblob "$REG/debian:estargz" > "$SCRATCH/pull.out" 2>&1 ||
    die "rpull: $(tail -1 "$SCRATCH/pull.out")"
  ctr_ run -d --snapshotter lazyblob "$REG/debian:estargz" long /usr/bin/sleep infinity || die "run"
  root=/proc/$(ctr_ tasks ls | awk '$1 == "long" {print $2}')/root
  mkdir -p "$root/tmp"
  cp "$SCRATCH/sums" "$root/tmp/sums"
  STOP=$root/tmp/stop
  "${2:-true}"
  load sums in_container 'n=0; until [ -e /tmp/stop ]; do sha256sum -c --quiet /tmp/sums || exit 1; n=$((n + 1)); done; echo $n rounds'
  load find in_container 'n=0; until [ -e /tmp/stop ]; do find / -xdev -type f -newermt 1990-01-01 > /dev/null || exit 1; n=$((n + 1)); done; echo $n rounds'
  load probe task_exec long /usr/bin/python3 -c "$PROBE"
  load exec exec_loop
  load knock "$PYTHON" -c "$KNOCK" "$LB_SOCKET" "$ROOT_DIR/control.sock" "$SCRATCH/stop"
}
load_end() {
  local one name
  touch "$STOP" "$SCRATCH/stop"
  for one in "${LOADS[@]}"; do
    name=${one#*:}
    wait "${one%%:*}" || fail "$1, $name: $(tail -3 "$SCRATCH/load-$name")"
    log "$1, $name: $(tail -1 "$SCRATCH/load-$name")"
  done
  ctr_ tasks kill -s KILL long > /dev/null
  wait_until 10 "the container does not end" sh -c "! ctr --address '$CTR_ADDRESS' tasks ls | grep -q RUNNING"
  remove_everything || fail "$1: images cannot be removed"
  local left; left=$(left_behind)
  [ -z "$left" ] || fail "$1: left behind: $(head -c 600 <<< "$left")"
  containerd_stop
  serve_stop
  registry_stop
}
loads_run() {
  local one
  for one in "${LOADS[@]}"; do kill -0 "${one%%:*}" 2>/dev/null || { fail "$1: ${one#*:} ended: $(tail -3 "$SCRATCH/load-${one#*:}")"; return 1; }; done
}

# One read that nothing answers, for the registry stands still: five daemons die over it, the sixth gives its bytes.
held_read() {
  local file=/usr/bin/perl reader daemon kill
  ctr_remote images rpull --plain-http --snapshotter lazyblob "$REG/debian:zstdchunked" > "$SCRATCH/pull.out" 2>&1 ||
    die "rpull: $(tail -1 "$SCRATCH/pull.out")"
  ctr_ run -d --snapshotter lazyblob "$REG/debian:zstdchunked" held /usr/bin/sleep infinity || die "run"
  kill -STOP "$REG_PID"
  sha256sum "/proc/$(ctr_ tasks ls | awk '$1 == "held" {print $2}')/root$file" > "$SCRATCH/held.sum" 2> "$SCRATCH/held.err" &
  reader=$!
  wait_until 30 'nothing waits for the registry: $(cat "$SCRATCH/held.err")' grep -q '^State:.D' "/proc/$reader/status"
  for kill in 1 2 3 4 5; do
    daemon=$(lb_daemon_pid "$ROOT_DIR")
    kill -9 "$daemon"
    wait_until 20 "no successor" other_daemon "$daemon"
    lb --root "$ROOT_DIR" status > /dev/null || fail "kill $kill within one read: no daemon"
    kill -0 "$reader" || fail "kill $kill within one read ended it: $(cat "$SCRATCH/held.err")"
  done
  kill -CONT "$REG_PID"
  wait "$reader" || fail "the held read: $(cat "$SCRATCH/held.err")"
  [ "$(cut -d' ' -f1 "$SCRATCH/held.sum")" = "$(sha256sum < "$JUDGE$file" | cut -d' ' -f1)" ] || fail "the held read gave other bytes"
  ctr_ tasks kill -s KILL held > /dev/null
  log "storm: one held read outlived $kill daemons"
}
other_daemon() { local now; now=$(lb_daemon_pid "$ROOT_DIR"); [ -n "$now" ] && [ "$now" != "$1" ]; }

part_storm() {
  local i pid seed=${LAZYBLOB_SEED:-$RANDOM} kills=${LAZYBLOB_KILLS:-20}
  RANDOM=$seed
  log "storm: seed $seed (LAZYBLOB_SEED)"
  load_start storm held_read
  for ((i = 0; i < kills; i++)); do
    sleep "$(printf '0.%03d' $((50 + RANDOM % 900)))"
    [ $((i % 4)) != 0 ] || drop_caches
    pid=$(lb_daemon_pid "$ROOT_DIR")
    [ -z "$pid" ] || kill -9 "$pid"
    loads_run "storm, kill $i" || break
  done
  lb --root "$ROOT_DIR" status > /dev/null || fail "no daemon after the kills"
  # successors that cannot start unmount nothing
  mkdir "$ROOT_DIR/plain_http_hosts.json"
  kill -9 "$(lb_daemon_pid "$ROOT_DIR")"
  wait_until 10 "no successor failed" grep -q 'lazyblobd: error: .*plain_http_hosts' "$LB_LOG"
  rmdir "$ROOT_DIR/plain_http_hosts.json"
  lb --root "$ROOT_DIR" status > /dev/null || fail "no daemon after one that could not start"
  log "storm: $i kills, $(grep -c 'was killed by signal 9' "$LB_LOG") successors"
  load_end storm
}

part_upgrade() {
  local i which
  mkdir -p "$SCRATCH/other" "$SCRATCH/broken"
  cp "$LAZYBLOBD" "$LAZYBLOB_KEEPER" "$SCRATCH/other/"
  cp "$LAZYBLOBD" "$SCRATCH/broken/"
  cp /bin/true "$SCRATCH/broken/lazyblob-keeper"
  printf '#!/bin/sh\nLAZYBLOB_FAULTS=fuse.init=error exec %s "$@"\n' "$LAZYBLOBD" > "$SCRATCH/bin/negotiates"
  chmod +x "$SCRATCH/bin/negotiates"
  printf '#!/bin/sh\n[ "$1" = --version ] && echo lazyblobd 9 || exit 1\n' > "$SCRATCH/other/useless"
  chmod +x "$SCRATCH/other/useless"
  load_start upgrade
  for ((i = 0; i < 20; i++)); do
    which=$LAZYBLOBD
    [ $((i % 2)) = 1 ] || which=$SCRATCH/other/lazyblobd
    lb --root "$ROOT_DIR" upgrade --binary "$which" > "$SCRATCH/out" 2>&1 || fail "upgrade $i: $(cat "$SCRATCH/out")"
    grep -q "^$which .* serves" "$SCRATCH/out" || fail "upgrade $i says: $(cat "$SCRATCH/out")"
    [ "$(readlink "/proc/$SERVE_PID/exe")" = "${which%/*}/lazyblob-keeper" ] || fail "upgrade $i: the keeper is $(readlink "/proc/$SERVE_PID/exe")"
    [ $((i % 4)) != 0 ] || drop_caches
    loads_run "upgrade $i" || break
  done
  log "upgrade: $i upgrades; $(cat "$SCRATCH/out")"
  lb_refused lb --root "$ROOT_DIR" upgrade --binary /bin/true || fail "upgrade to /bin/true"
  lb_refused lb --root "$ROOT_DIR" upgrade --binary "$SCRATCH/other/useless" || fail "upgrade to a useless program"
  grep -q "$LAZYBLOBD serves again" "$LB_ERR" || fail "a useless program: $(cat "$LB_ERR")"
  lb_refused lb --root "$ROOT_DIR" upgrade --binary "$SCRATCH/bin/negotiates" || fail "upgrade to one that negotiates otherwise"
  grep -q "$LAZYBLOBD serves again" "$LB_ERR" || fail "one that negotiates otherwise: $(cat "$LB_ERR")"
  grep -q 'negotiated by another version' "$LB_LOG" || fail "one that negotiates otherwise was refused for another reason: $(tail -3 "$LB_LOG")"
  lb_refused lb --root "$ROOT_DIR" upgrade --binary "$SCRATCH/broken/lazyblobd" || fail "upgrade to a keeper that is none"
  grep -q 'nothing was replaced' "$LB_ERR" || fail "a keeper that is none: $(cat "$LB_ERR")"
  # the same path, another file
  cp "$SCRATCH/other/lazyblobd" "$LAZYBLOBD.new"
  mv "$LAZYBLOBD.new" "$LAZYBLOBD"
  lb --root "$ROOT_DIR" upgrade > "$SCRATCH/out" 2>&1 || fail "upgrade in place: $(cat "$SCRATCH/out")"
  load_end upgrade
}

manager_says() { awk -v word="$1" '$1 == word {last = $2; count++} END {print count + 0, last}' "$SCRATCH/manager"; }
ready_times() { [ "$(manager_says ready)" = "$1 " ]; }

part_manager() {
  local i count keeper kills=${LAZYBLOB_KILLS:-2}
  STARTER=("$PYTHON" "$E2E_DIR/lib/service_manager.py" "$SCRATCH/manager")
  load_start manager
  for ((i = 1; i <= kills; i++)); do
    read -r count keeper <<< "$(manager_says main)"
    [ "$count" = "$i" ] || { fail "$count keepers were started, not $i: $(tail -3 "$LB_LOG")"; break; }
    kill -9 "$keeper"
    wait_until 60 'no keeper goes on: $(tail -3 "$LB_LOG")' ready_times $((i + 1))
    lb --root "$ROOT_DIR" status > /dev/null || fail "no daemon after the death of keeper $i"
    drop_caches
    loads_run "manager, kill $i" || break
  done
  log "manager: $((i - 1)) keepers died"
  load_end manager
  wait_until 10 'manager: the last keeper ended otherwise: $(tail -2 "$SCRATCH/manager")' grep -qx 'ended 0' "$SCRATCH/manager"
  awk '$1 == "stored" {n[$2]++} $1 == "removed" {delete n[$2]} END {for (name in n) print name}' "$SCRATCH/manager" > "$SCRATCH/out"
  [ ! -s "$SCRATCH/out" ] || fail "manager: it still has $(tr '\n' ' ' < "$SCRATCH/out")"
  STARTER=()
}

[ $# -gt 0 ] || set -- storm upgrade manager
for part in "$@"; do "part_$part"; done
log "$failures failures"
[ "$failures" = 0 ]

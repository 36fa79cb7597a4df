# Sourced first by every script of tests/faults (docs/FAULTS.md): rows of the fault table, one function each.
#
#   . "$(dirname "$0")/lib/faults.sh"
#   row_07a() { fault 7a "injected" "expected"; …; seen "what was seen"; }
#   faults_daemon shared '[fuse]'$'\n''read_deadline = "2s"'        # optional: one daemon that rows share
#   faults_main "$@"                                                # rows by name ("7a", "row_07a"); none: all
#
# The script runs in mount, PID and network namespaces of its own; only loopback is there. Each row is a subshell with
# a $SCRATCH of its own, so what it sets, starts (on_exit) and mounts ends with it; `die` ends the row alone. A line of
# the table per row: number, injected, expected, seen, ok or FAILED; a status other than 0 if any failed.
#
# In a row:
#   fault NN INJECTED EXPECTED, seen TEXT      once at the start; at the end, may be given again (joined)
#   wrong TEXT, expect WHAT CMD…               the row has failed, but goes on; the second: unless CMD succeeds
#   make_image NAME [OPTIONS]                  fault_image.py: an image that no cache knows, as a layout with the tag
#                                              "latest": sets IMAGE_LAYOUT, IMAGE_TREE (files f00, f01, …; never written to)
#   evil_start [OPTIONS] REPO=LAYOUT…          test_registry_server: sets EVIL (host:port), EVIL_PID
#   evil_fault JSON, evil_clear, evil METHOD WHAT [JSON]     its control (tests/support/internal/control.h)
#   evil_count EXPRESSION                      how many requests r (a dict) of its log meet a Python expression
#   oracle TREE DIR [OPTIONS] [FILE…]          oracle.py, in the foreground: every byte of files below DIR is compared;
#                                              1 when bytes were wrong or missing, or an answer too late. It says what it
#                                              saw in $ORACLE; oracle_n NAME: a count ("right", "EIO", "longest_ms", …)
#   oracle_start TREE DIR [OPTIONS], oracle_stop     the same in a loop in the background; the second has the status
#   lb_root, lb_mount, lb_umount, lb_refused, serve_*   tests/e2e/lib; serve_start gives a row a daemon of its own
#   usage_of ROOT                              of the daemon of a root: descriptors, those of cached layers, sockets and
#                                              pipes, threads, KiB of memory
#
# After each row these must be as before, within LEAK_PATIENCE seconds: mounts, loop devices and processes of the
# script; temporary files in, and descriptors of the shared daemon; its memory may have grown by FAULTS_RSS_KIB.
. "$(dirname "${BASH_SOURCE[0]}")/../../e2e/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
need_root
E2E_UNSHARE=--net enter_namespace "$0" "$@"
for _part in registry judge lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$_part.sh"; done
FAULTS_LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROW_LIMIT=${ROW_LIMIT:-120}             # seconds, for a row that hangs
LEAK_PATIENCE=${LEAK_PATIENCE:-30}
FAULTS_RSS_KIB=${FAULTS_RSS_KIB:-65536}
FAULTS_ROOT=
_OWN_NAME=$(basename "$0" | cut -c1-15)
need_tools curl ip
ip link set lo up
make_scratch
chmod 0711 "$SCRATCH"
private_programs
FAULTS_SCRATCH=$SCRATCH
FAULTS_TABLE=$SCRATCH/table
: > "$FAULTS_TABLE"

# --- the table ---

_say() { printf '%s' "$1" | tr '\n|' ' /' >> "$SCRATCH/row.$2"; }
_append() { [ ! -s "$SCRATCH/row.$1" ] || printf '; ' >> "$SCRATCH/row.$1"; _say "$2" "$1"; }
_told() { cat "$FAULTS_SCRATCH/rows/$1/row.$2" 2>/dev/null || true; }

fault() {
  _say "$1" number
  _say "$2" injected
  _say "$3" expected
}
seen() { _append seen "$*"; }
wrong() {
  log "row $ROW: FAILED: $*"
  _append wrong "$*"
}
expect() {
  local what=$1
  shift
  "$@" || wrong "$what"
}

faults_main() {
  local row rows=() failed=0
  if [ $# = 0 ]; then
    mapfile -t rows < <(declare -F | sed -n 's/^declare -f row_//p')
  else
    for row in "$@"; do
      row=${row#row_}
      [[ $row != [0-9] && $row != [0-9][a-z] ]] || row=0$row
      declare -F "row_$row" > /dev/null || die "there is no row '$row'"
      rows+=("$row")
    done
  fi
  [ ${#rows[@]} -gt 0 ] || die "no rows"
  for row in "${rows[@]}"; do _run_row "$row" || failed=$((failed + 1)); done
  printf '| # | injected | expected | seen | |\n|---|---|---|---|---|\n'
  cat "$FAULTS_TABLE"
  log "${#rows[@]} rows, $failed failed"
  [ "$failed" = 0 ]
}

_run_row() {
  local started pid status=0 result=ok text
  ROW=$1
  SCRATCH=$FAULTS_SCRATCH/rows/$ROW
  mkdir -p "$SCRATCH"
  chmod 0711 "$FAULTS_SCRATCH/rows" "$SCRATCH"
  _leaks_mark
  started=$(now_ms)
  _row_body < /dev/null &   # in the background, so that set -e holds in it
  pid=$!
  _row_end "$pid" || wrong "not over after $ROW_LIMIT s"
  wait "$pid" || status=$?
  if [ "$status" != 0 ] && [ ! -s "$SCRATCH/row.wrong" ]; then
    wrong "ended with status $status: $(tail -1 "$SCRATCH/row.last" 2>/dev/null)"
  fi
  [ -s "$SCRATCH/row.number" ] || wrong "the row does not say what it injects"
  [ -s "$SCRATCH/row.seen" ] || wrong "the row does not say what it saw"
  _leaks_check
  text=$(_told "$ROW" seen)
  if [ -s "$SCRATCH/row.wrong" ]; then
    result=FAILED text="$(_told "$ROW" wrong); $text"
    _logs_of_row
  fi
  printf '| %s | %s | %s | %s | %s |\n' "$(_told "$ROW" number)" "$(_told "$ROW" injected)" "$(_told "$ROW" expected)" \
    "$text" "$result" >> "$FAULTS_TABLE"
  log "row $ROW: $result, $(( ($(now_ms) - started) / 100 )) tenths of a second: $text"
  SCRATCH=$FAULTS_SCRATCH
  [ "$result" != ok ] || rm -rf --one-file-system "$FAULTS_SCRATCH/rows/$ROW"
  [ "$result" = ok ]
}

_row_body() {
  _cleanups=()
  die() { wrong "$*"; exit 1; }
  trap _run_cleanups EXIT
  trap 'exit 143' INT TERM
  trap 'echo "line $LINENO: $BASH_COMMAND" >> "$SCRATCH/row.last"' ERR
  set -E
  on_exit "unmount_below '$SCRATCH'"
  "row_$ROW"
}

# Waits for a row, and ends it when it takes too long.
_row_end() {
  local pid=$1 deadline=$(( $(now_ms) + ROW_LIMIT * 1000 )) child
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$(now_ms)" -ge "$deadline" ]; then
      for child in "$pid" $(cat "/proc/$pid/task/$pid/children" 2>/dev/null); do kill "$child" 2>/dev/null || true; done
      for ((child = 0; child < 200; child++)); do kill -0 "$pid" 2>/dev/null || return 1; sleep 0.1; done
      kill -9 "$pid" 2>/dev/null || true
      return 1
    fi
    sleep 0.05
  done
}

_logs_of_row() {
  local file
  for file in ${LB_LOG:+"$LB_LOG"} "$SCRATCH"/*.log "$SCRATCH"/*.err; do
    [ ! -s "$file" ] || { log "--- $file"; tail -n 8 "$file" >&2; }
  done
}

# --- leaks ---

_processes() {
  local p name
  for p in /proc/[0-9]*; do
    p=${p#/proc/}
    [ "$p" != "$$" ] && [ "$p" != "$BASHPID" ] || continue
    read -r name < "/proc/$p/comm" 2>/dev/null || continue
    case $name in "$_OWN_NAME" | bash | sleep | head | tr | awk | sort | comm | losetup | grep | find | sed | readlink) ;; *) echo "process $name $p" ;; esac
  done
}
_state() {
  { mounts_below "$FAULTS_SCRATCH" | sed 's/^/mount /'
    losetup -n -O BACK-FILE | grep -F "$FAULTS_SCRATCH/" | sed 's/^/loop device on /' || true
    _processes
    [ -z "$FAULTS_ROOT" ] || find "$FAULTS_ROOT" -xdev \( -name '*.tmp[0-9]*' -o -name '.nameless-*' \) | sed 's/^/file /'
  } | sort
}
usage_of() {
  local pid
  pid=$(lb_daemon_pid "$1")
  [ -n "$pid" ] || { echo "0 0 0 0 0"; return 0; }
  echo "$(find "/proc/$pid/fd" -type l -printf '%l\n' 2>/dev/null | awk -v layers="$1/layers/layers/" '
    /^(socket|pipe):/ {pooled++; next} index($0, layers) == 1 {cached++; next} {fds++} END {print fds + 0, cached + 0, pooled + 0}
    ') $(awk '/^Threads:/ {print $2}' "/proc/$pid/status") $(awk '/^VmRSS:/ {print $2}' "/proc/$pid/status")"
}

_leaks_mark() {
  _STATE=$(_state)
  _USAGE=$([ -z "$FAULTS_ROOT" ] || usage_of "$FAULTS_ROOT")
}
_leaked() { comm -13 <(printf '%s\n' "$_STATE") <(_state); }
_descriptors_leaked() {
  local before now
  [ -n "$_USAGE" ] || return 1
  read -r -a before <<< "$_USAGE"
  read -r -a now <<< "$(usage_of "$FAULTS_ROOT")"
  _GROWN="before $_USAGE, now ${now[*]} (descriptors, of cached layers, sockets and pipes, threads, KiB)"
  # Each layer in the cache holds two files open, and one for some seconds while its pages are dropped. Connections,
  # pipes, threads and memory come in pools: bounded.
  ((now[0] > before[0] || now[1] > 3 * $(find "$FAULTS_ROOT/layers/layers" -mindepth 1 -maxdepth 1 | wc -l) ||
    now[2] > before[2] + 100 || now[3] > before[3] + 200 || now[4] > before[4] + FAULTS_RSS_KIB))
}
_leaks_check() {
  local deadline=$(( $(now_ms) + LEAK_PATIENCE * 1000 ))
  while [ -n "$(_leaked)" ] || _descriptors_leaked; do
    if [ "$(now_ms)" -ge "$deadline" ]; then
      wrong "left behind: $(_leaked | head -5 | tr '\n' ',') ${_GROWN:-}"
      [ -z "$FAULTS_ROOT" ] || ls -l "/proc/$(lb_daemon_pid "$FAULTS_ROOT")/fd" >&2
      return 0
    fi
    sleep 0.2
  done
}

# --- what rows use ---

# One daemon for all rows: name, configuration. Rows find it by ROOT_DIR, LB_CONFIG, LB_LOG, LB_HOSTS.
faults_daemon() {
  serve_configure "$@"
  serve_start
  FAULTS_ROOT=$ROOT_DIR
}

make_image() {
  local name=$1
  shift
  IMAGE_LAYOUT=$SCRATCH/images/$name IMAGE_TREE=$SCRATCH/trees/$name
  "$PYTHON" -B "$FAULTS_LIB/fault_image.py" "$IMAGE_LAYOUT" "$IMAGE_TREE" "$@" || die "image $name could not be made"
}

evil_start() {
  local file=$SCRATCH/evil.host$RANDOM
  "$BUILD_DIR/tests/test_registry_server" --host-file "$file" "$@" > /dev/null 2>> "$SCRATCH/evil.log" &
  EVIL_PID=$!
  disown "$EVIL_PID"
  on_exit "kill -9 $EVIL_PID 2>/dev/null || true"
  wait_until 30 "test_registry_server did not start: $(tail -1 "$SCRATCH/evil.log")" test -s "$file"
  EVIL=$(cat "$file")
}
evil() {
  local method=$1 what=$2
  shift 2
  curl -sS --fail-with-body --max-time 30 -X "$method" "http://$EVIL/_test/$what" ${1:+--data-binary "$1"} ||
    die "the test registry does not take '$method $what ${1:-}'"
}
evil_fault() { evil POST faults "$1" > /dev/null; }
evil_clear() { evil DELETE faults > /dev/null; }
evil_count() {
  evil GET log | "$PYTHON" -c 'import json,sys; print(sum(1 for r in json.load(sys.stdin) if eval(sys.argv[1])))' "$1"
}

oracle() {
  local status=0
  rm -f "$SCRATCH/oracle.json"
  "$PYTHON" -B "$FAULTS_LIB/oracle.py" --result "$SCRATCH/oracle.json" "$@" || status=$?
  _oracle_read
  return "$status"
}
_oracle_read() { ORACLE=$("$PYTHON" -c 'import json,sys; print(json.load(open(sys.argv[1]))["text"])' "$SCRATCH/oracle.json" 2>/dev/null || echo "no result of the oracle"); }
oracle_n() { "$PYTHON" -c 'import json,sys; print(json.load(open(sys.argv[1]))["counts"].get(sys.argv[2], 0))' "$SCRATCH/oracle.json" "$1"; }
oracle_start() {
  rm -f "$SCRATCH/oracle.json" "$SCRATCH/oracle.stop"
  "$PYTHON" -B "$FAULTS_LIB/oracle.py" --result "$SCRATCH/oracle.json" --until "$SCRATCH/oracle.stop" "$@" &
  ORACLE_PID=$!
  on_exit "touch '$SCRATCH/oracle.stop'"
}
oracle_stop() {
  local status=0
  touch "$SCRATCH/oracle.stop"
  wait "$ORACLE_PID" || status=$?
  _oracle_read
  return "$status"
}

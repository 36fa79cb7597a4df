# Sourced by every script of tests/e2e and bench: where things lie, how a script fails, and what it cleans up.
#
#   LAZYBLOB_WORK       work directory: images, registries, state. On ext4, xfs or btrfs. Default build/e2e.
#   LAZYBLOB_BUILD      where the programs are. Default build.
#
# A script calls `die` for anything that is not as it should be; it never skips silently. `on_exit CMD` registers
# cleanups, run last first, whatever ends the script.

set -euo pipefail
export LC_ALL=C.UTF-8

E2E_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SOURCE_DIR=$(cd "$E2E_DIR/../.." && pwd)
BUILD_DIR=${LAZYBLOB_BUILD:-$SOURCE_DIR/build}
WORK=${LAZYBLOB_WORK:-$BUILD_DIR/e2e}
LAZYBLOB=$BUILD_DIR/lazyblob
LAZYBLOBD=$BUILD_DIR/lazyblobd
LAZYBLOB_KEEPER=$BUILD_DIR/lazyblob-keeper
PYTHON=/usr/bin/python3   # Debian's, whatever the caller's PATH prefers
SCRIPT_NAME=$(basename "$0" .sh)

log() { printf '%s: %s\n' "$SCRIPT_NAME" "$*" >&2; }
die() { log "FAILED: $*"; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "needs root: it mounts file systems and unpacks owners and devices"; }
need_tools() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die "'$tool' is missing: run deploy/install-deps.sh"
  done
}
need_programs() {
  [ -x "$LAZYBLOB" ] && [ -x "$LAZYBLOBD" ] && [ -x "$LAZYBLOB_KEEPER" ] || die "no lazyblob in $BUILD_DIR: build first (make build)"
}

now_ms() { local t=$EPOCHREALTIME; echo $(( ${t%.*} * 1000 + 10#${t#*.} / 1000 )); }

_cleanups=()
on_exit() { _cleanups+=("$*"); }
_run_cleanups() {
  local status=$? i
  trap - EXIT
  set +e
  [ "$status" = 0 ] || log "ends with status $status"
  for ((i = ${#_cleanups[@]} - 1; i >= 0; i--)); do eval "${_cleanups[$i]}"; done
  exit "$status"
}
trap _run_cleanups EXIT
trap 'exit 130' INT TERM

# wait_until SECONDS WHAT COMMAND…: waits until the command succeeds, else dies with WHAT, which is expanded only then
# (in single quotes it tells what is so at the end).
wait_until() {
  local deadline=$(( $(now_ms) + $1 * 1000 )) what="$2"
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$(now_ms)" -lt "$deadline" ] || die "timed out: $(eval "printf %s \"$what\"")"
    sleep 0.05
  done
}

# Ends processes by id and waits until they are gone.
end_process() {
  local pid=$1 i
  kill "$pid" 2>/dev/null || return 0
  for ((i = 0; i < 100; i++)); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.05; done
  kill -9 "$pid" 2>/dev/null || true
}

# Mount points at or below a directory, deepest first.
mounts_below() { awk -v d="$1" '$5 == d || index($5, d "/") == 1 {print $5}' /proc/self/mountinfo | sort -r; }
unmount_below() {
  local m
  while read -r m; do umount "$(printf '%b' "$m")" 2>/dev/null || umount -l "$(printf '%b' "$m")"; done < <(mounts_below "$1")
}

# What this run has mounted or attached to loop devices, one per line. Other users of the machine do not matter.
our_mounts() { mounts_below "$SCRATCH"; losetup -n -O BACK-FILE | grep -F "$SCRATCH/" || true; }

drop_caches() { sync; echo 3 > /proc/sys/vm/drop_caches; }

# A scratch directory of this run, removed at exit (mounts below it first).
make_scratch() {
  mkdir -p "$WORK/run"
  SCRATCH=$(mktemp -d "$WORK/run/$SCRIPT_NAME.XXXXXX")
  on_exit "unmount_below '$SCRATCH'; rm -rf --one-file-system '$SCRATCH'"
}

# Running lazyblob in tests: roots (each with its daemon), mounts that are undone at exit, what must hold afterwards.
#
#   lb_root NAME            a fresh state root: sets ROOT_DIR; its mounts, its daemon and its files go at exit
#   lb_mount MODE REF DIR   lazyblob mount of REF at DIR with --json; its output is in $LB_OUT
#   lb_umount DIR
#   lb_refused CMD…         must fail with exactly one line on stderr; the line is in $LB_ERR

LB_TIMEOUT=${LAZYBLOB_TIMEOUT:-120}

lb() { timeout -k 5 "$LB_TIMEOUT" "$LAZYBLOB" "$@"; }

lb_root() {
  ROOT_DIR=$SCRATCH/root-$1
  mkdir -p "$ROOT_DIR"
  chmod 0700 "$ROOT_DIR"
  on_exit "lb_end_root '$ROOT_DIR'"
}

# Ids of the keeper and the daemon that were started with this root. Found by argument, ended one by one.
lb_pids() {
  local p exe
  for p in /proc/[0-9]*; do
    exe=$(readlink "$p/exe" 2>/dev/null) || continue
    case ${exe% (deleted)} in "$LAZYBLOBD" | "$LAZYBLOB_KEEPER") ;; *) continue ;; esac
    if tr '\0' '\n' < "$p/cmdline" 2>/dev/null | grep -qxF -e "$1" -e "--root=$1"; then echo "${p#/proc/}"; fi
  done
}

# The serving daemon, not its keeper.
lb_daemon_pid() {
  local pid exe
  for pid in $(lb_pids "$1"); do
    exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || continue
    case $exe in "$LAZYBLOBD"*) echo "$pid"; return ;; esac
  done
}

lb_no_daemon() { [ -z "$(lb_pids "$1")" ]; }

# What both have taken at most, in KiB.
lb_peak_kib() {
  local pid sum=0
  for pid in $(lb_pids "$1"); do sum=$((sum + $(awk '/^VmHWM:/ {print $2}' "/proc/$pid/status"))); done
  echo "$sum"
}

lb_end_root() {
  local pid mount
  while read -r mount; do
    case $1/ in "$mount"/*) ;; *) umount "$mount" 2>/dev/null || umount -l "$mount" ;; esac
  done < <(mounts_below "$SCRATCH")
  sleep 0.2
  for pid in $(lb_pids "$1"); do end_process "$pid"; done
  unmount_below "$1"
}

lb_mount() {
  local mode=$1 ref=$2 dir=$3
  mkdir -p "$dir"
  LB_OUT=$SCRATCH/mount.json
  lb --root "$ROOT_DIR" mount --plain-http --json --progress none --mode "$mode" "$ref" "$dir" \
    > "$LB_OUT" 2> "$SCRATCH/mount.err" || { log "$(cat "$SCRATCH/mount.err")"; return 1; }
  mountpoint -q "$dir" || { log "lazyblob mount said yes, but $dir is no mount point"; return 1; }
}

lb_umount() { lb --root "$ROOT_DIR" umount "$1" && ! mountpoint -q "$1"; }

lb_refused() {
  local status=0
  LB_ERR=$SCRATCH/refused.err
  "$@" > "$SCRATCH/refused.out" 2> "$LB_ERR" || status=$?
  if [ "$status" = 0 ]; then log "succeeded, should have failed: $*"; return 1; fi
  if [ "$status" = 124 ] || [ "$status" = 137 ]; then log "hung: $*"; return 1; fi
  if [ "$status" -ge 128 ]; then log "died of signal $((status - 128)): $*"; return 1; fi
  if [ "$(wc -l < "$LB_ERR")" != 1 ] || [ "$(wc -c < "$LB_ERR")" -gt 1000 ] || LC_ALL=C grep -q '[^ -~]' "$LB_ERR"; then
    log "not one clear line on stderr: $*: $(head -c 600 "$LB_ERR")"
    return 1
  fi
}

# --json of mount or status: lb_json FILE PYTHON-EXPRESSION over `layers` and `image`.
lb_json() { "$PYTHON" -c 'import json,sys; image=json.load(open(sys.argv[1])); layers=image["layers"]; print(eval(sys.argv[2]))' "$@"; }

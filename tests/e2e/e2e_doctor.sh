#!/bin/bash
# `lazyblob doctor` on a machine that is well, and on machines with one thing wrong each: the verdict, the check that
# gives it, and the exit status.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools containerd ctr jq
make_scratch
chmod 0711 "$SCRATCH"
private_programs
CTR_PARENT=$SCRATCH

# What the daemon listens on is in the file, as on a real machine.
serve_configure doctor
printf 'address = "%s"\nroot = "%s"\n' "$LB_SOCKET" "$ROOT_DIR" > "$LB_CONFIG"
CTR_EXTRA=$(proxy_plugin lazyblob)
doctor() { lb doctor --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --containerd-config "$CTR_DIR/config.toml" "$@"; }
# expect CHECK RESULT [OPTIONS…]: this check has this result, and the exit status says whether any failed.
expect() {
  local check=$1 result=$2 status=0 got
  shift 2
  doctor --json "$@" > "$SCRATCH/doctor.json" 2> "$SCRATCH/doctor.err" || status=$?
  got=$(jq -r --arg c "$check" '[.checks[] | select(.check == $c) | .result] | unique | join(",")' "$SCRATCH/doctor.json")
  [ "$got" = "$result" ] || die "$check: '$got', expected '$result': $(cat "$SCRATCH/doctor.json" "$SCRATCH/doctor.err")"
  case $(jq .healthy "$SCRATCH/doctor.json") in
    true) [ "$status" = 0 ] || die "healthy, and exit status $status" ;;
    *) [ "$status" = 1 ] || die "not healthy, and exit status $status" ;;
  esac
  log "$check: $(jq -r --arg c "$check" '[.checks[] | select(.check == $c) | .text][0]' "$SCRATCH/doctor.json" | cut -c1-150)"
}

containerd_start doctor lazyblob
expect daemon FAIL
expect socket FAIL
serve_start
doctor > "$SCRATCH/out" 2>&1 || die "a machine that is well: $(cat "$SCRATCH/out")"
[ "$(grep -vc '^ok ' "$SCRATCH/out")" = 0 ] || die "a machine that is well: $(grep -v '^ok ' "$SCRATCH/out")"
for check in mode registration containerd 'mount propagation'; do expect "$check" ok; done
expect registration FAIL --snapshotter nobody
CTR_ADDRESS=$SCRATCH/none.sock expect containerd FAIL
echo 'no_such_key = 1' > "$SCRATCH/bad.toml"
LB_CONFIG=$SCRATCH/bad.toml expect config FAIL
chmod 0666 "$LB_SOCKET"
expect socket FAIL
chmod 0600 "$LB_SOCKET"
chmod 0755 "$ROOT_DIR"
expect 'state root' FAIL
chmod 0700 "$ROOT_DIR"
expect 'state root' ok
serve_stop

# containerd in a mount namespace of its own sees nothing of what lazyblobd mounts.
serve_start
containerd_stop
CTR_RUN=(unshare --mount --propagation private)
containerd_start doctor lazyblob
CTR_RUN=()
expect 'mount propagation' FAIL
serve_stop

# What PrivateMounts= does to lazyblobd itself.
lb_refused timeout -k 5 30 unshare --mount --propagation private "$LAZYBLOBD" --config "$LB_CONFIG" || die "it starts where nobody sees its mounts"
grep -q 'mount namespace of its own.*PrivateMounts=' "$LB_ERR" || die "says: $(cat "$LB_ERR")"
log passed

#!/bin/bash
# Rows 1 to 20 of the fault table: registries, networks and names that fail. See docs/FAULTS.md.
#   registry.sh [ROW…]
. "$(dirname "$0")/lib/faults.sh"

READ_DEADLINE=2
faults_daemon shared $'[fuse]\nread_deadline = "2s"\n[snapshotter]\nresolve_timeout = "3s"'

# lazy NAME [OPTIONS of the image]: an image on a registry of its own, mounted at $AT, nothing of it read yet.
lazy() {
  make_image "$@"
  evil_start "$1=$IMAGE_LAYOUT"
  AT=$SCRATCH/at-$1
  lb_mount auto "$EVIL/$1:latest" "$AT"
  on_exit "lb_umount '$AT'"
}

row_01() {
  fault 1 "registry stopped during reads (SIGSTOP)" "cached bytes served; a miss is EIO within the deadline; the next read tries afresh"
  lazy down --files 6 --size 1048576
  oracle "$IMAGE_TREE" "$AT" f00 || wrong "before: $ORACLE"
  kill -STOP "$EVIL_PID"
  oracle "$IMAGE_TREE" "$AT" --deadline 2.5 f00 f03 || wrong "$ORACLE"
  [ "$(oracle_n right)" = 1 ] && [ "$(oracle_n EIO)" = 1 ] || wrong "cached f00 right and f03 EIO expected"
  seen "down: $ORACLE"
  kill -CONT "$EVIL_PID"
  wait_until 30 "nothing is read again: $(tail -2 "$LB_LOG")" oracle "$IMAGE_TREE" "$AT" --errno none f03
  oracle "$IMAGE_TREE" "$AT" --errno none || wrong "afterwards: $ORACLE"
  seen "back: $ORACLE"
}

faults_main "$@"

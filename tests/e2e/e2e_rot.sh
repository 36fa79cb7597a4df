#!/bin/bash
# What hurts from inside: bytes that rot below a complete layer, and an image that kills the daemon.
# Parts (default: both):
#   rot       a byte of a complete layer changes while nothing runs, after a kill: nobody reads it, it is counted
#   poison    one layer's bytes abort the daemon whenever they are parsed: three times, then it is the client's to
#             unpack; a container on another image reads on meanwhile
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo containerd ctr runc jq
make_scratch
chmod 0711 "$SCRATCH"
private_programs
forget_cgroups
mkdir -p /run/containerd
mount -t tmpfs -o mode=0711 shims /run/containerd   # sockets of shims: of this run alone
CTR_PARENT=$SCRATCH
registry_start rot "$WORK/images/registry"

# start NAME: lazyblobd, and a containerd that has it as its snapshotter.
start() {
  serve_configure "$1"
  serve_plain_http "$REG"
  serve_start
  CTR_EXTRA=$(proxy_plugin lazyblob)
  containerd_start "containerd-$1" lazyblob
}
pull() {
  lb --root "$ROOT_DIR" pull --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --snapshotter lazyblob --plain-http \
    --progress none "$1" > "$SCRATCH/pull.out" 2>&1
}
status() { lb --root "$ROOT_DIR" status --json | jq -r "$1"; }
# The digest of all that python needs, as a container on $1 reads it.
hash_in() {
  ctr_ run --rm --snapshotter lazyblob "$1" "$2" sh -c 'cat /usr/bin/python3* /etc/debian_version | sha256sum' \
    > "$SCRATCH/$2" 2>&1 || die "the container $2 fails: $(tail -3 "$SCRATCH/$2"); $(tail -3 "$LB_LOG")"
  cat "$SCRATCH/$2"
}
kill_serve() {
  local pid
  for pid in "$SERVE_PID" $(lb_pids "$ROOT_DIR"); do kill -KILL "$pid" 2>/dev/null || true; done
  wait_until 30 "lazyblobd does not die" lb_no_daemon "$ROOT_DIR"
}
direct_mounts() { serve_mounts | awk '{print $1}' | grep -cE '/m/[0-9.]+[a-z]d$' || true; }

rot_found() { [ "$(status .scrub.rotten)" = 1 ]; }

part_rot() {
  local ref=$REG/debian:gzip layer name before wanted
  start rot
  pull "$ref" || die "pull: $(tail -1 "$SCRATCH/pull.out")"
  wanted=$(hash_in "$ref" before)
  before=$(direct_mounts)
  log "$before layers are mounted on their cache files"
  kill_serve
  unmount_below "$ROOT_DIR"
  # the middle of the largest complete layer
  layer=$(ls -S "$ROOT_DIR"/layers/layers/*/data | head -1)
  "$PYTHON" - "$layer" << 'PYTHON'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
at = os.fstat(fd).st_size // 2
while not (byte := os.pread(fd, 1, at)[0]): at += 1
os.pwrite(fd, bytes([byte ^ 0xff]), at)
os.fsync(fd)
PYTHON
  serve_start
  name=$(jq .id "${layer%/data}/layer.json")
  ! serve_mounts | awk '{print $1}' | grep -qE "/m/$name([.][0-9]+)?[a-z]d\$" || die "mounted on the rotten file: $(serve_mounts)"
  wait_until 60 'the rot is not found: $(status .scrub)' rot_found
  [ "$(status '[.layers[].rotten_chunks] | add')" = 1 ] || die "counted otherwise: $(status .layers)"
  wait_until 60 'nothing in the log: $(tail -3 "$LB_LOG")' grep -q 'cached chunks do not have their SHA-256' "$LB_LOG"
  # containerd, which was refused meanwhile, tries again in its own time
  wait_until 60 "containerd does not reach lazyblobd" ctr_ snapshots --snapshotter lazyblob ls
  [ "$(hash_in "$ref" after)" = "$wanted" ] || die "wrong bytes: $(cat "$SCRATCH/after"), expected $wanted"
  fsck_clean
  if [ "$before" -gt 0 ]; then
    remove_everything || die "images cannot be removed"
    pull "$ref" || die "pull: $(tail -1 "$SCRATCH/pull.out")"
    [ "$(direct_mounts)" = $((before - 1)) ] || die "of $before layers all but one are whole: $(serve_mounts)"
  fi
  containerd_stop
  serve_stop
}
fsck_clean() {
  # the chunk may not have been read yet: nothing that is claimed is wrong
  lb --root "$ROOT_DIR" fsck > "$SCRATCH/fsck" 2>&1 || die "fsck: $(cat "$SCRATCH/fsck")"
}

part_poison() {
  local good=$REG/debian:estargz bad=$REG/debian:zstd digest wanted tries=0 read=0
  digest=$(image_layers debian:zstd | tail -1 | cut -d' ' -f1)
  export LAZYBLOB_FAULTS="contentstore.parse/$digest=abort"
  start poison
  pull "$good" || die "pull: $(tail -1 "$SCRATCH/pull.out")"
  ctr_ run -d --snapshotter lazyblob "$good" reader sh -c \
    'while [ ! -e /tmp/stop ]; do cat /usr/bin/python3* /etc/debian_version | sha256sum; done > /tmp/sums; sleep 600' \
    > "$SCRATCH/reader" 2>&1 || die "the reader does not start: $(cat "$SCRATCH/reader")"
  wanted=$(hash_in "$good" good)
  until pull "$bad"; do
    tries=$((tries + 1))
    [ "$tries" -le 10 ] || die "pulled $tries times in vain: $(tail -1 "$SCRATCH/pull.out"); $(tail -3 "$LB_LOG")"
    wait_until 30 "no successor" lb --root "$ROOT_DIR" status
  done
  log "$tries pulls ended with the daemon, which crashed $(grep -c . "$ROOT_DIR/crashes") times"
  [ "$(sort -u "$ROOT_DIR/crashes")" = "$digest" ] || die "recorded: $(cat "$ROOT_DIR/crashes")"
  [ "$(grep -c . "$ROOT_DIR/crashes")" = 3 ] || die "recorded: $(cat "$ROOT_DIR/crashes")"
  [ "$(status '.not_lazy_reasons.crashed')" -gt 0 ] || die "the reason is not told: $(status .not_lazy)"
  status '.not_lazy[].detail' | grep -q "$digest is not read any more: the daemon has crashed 3 times over it" ||
    die "not one clear line: $(status '.not_lazy[].detail')"
  [ "$(hash_in "$bad" bad)" = "$wanted" ] || die "wrong bytes: $(cat "$SCRATCH/bad"), expected $wanted"
  ctr_ tasks exec --exec-id stop reader sh -c \
    'touch /tmp/stop; sleep 1; sort /tmp/sums | uniq -c' > "$SCRATCH/sums" || die "the reader has died"
  [ "$(wc -l < "$SCRATCH/sums")" = 1 ] && grep -qF "$wanted" "$SCRATCH/sums" ||
    die "the reader saw: $(cat "$SCRATCH/sums"), expected only $wanted"
  read=$(awk '{print $1}' "$SCRATCH/sums")
  log "the reader of the other image read its files $read times, and never wrong ones"
  unset LAZYBLOB_FAULTS
  remove_everything || die "images cannot be removed"
  serve_stop
  lb --root "$ROOT_DIR" fsck --repair > "$SCRATCH/fsck" 2>&1 || [ $? = 1 ] || die "fsck: $(cat "$SCRATCH/fsck")"
  grep -q "^repaired: .*crashed 3 times over $digest" "$SCRATCH/fsck" || die "fsck says: $(cat "$SCRATCH/fsck")"
  serve_start
  pull "$bad" || die "pull: $(tail -1 "$SCRATCH/pull.out")"
  [ "$(status '.not_lazy | length')" = 0 ] || die "tried again, and not lazy: $(status .not_lazy)"
  containerd_stop
  serve_stop
}

for part in ${@:-rot poison}; do
  log "part $part"
  "part_$part"
done
registry_stop
log passed

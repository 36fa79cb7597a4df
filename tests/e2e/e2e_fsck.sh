#!/bin/bash
# `lazyblob gc` and `lazyblob fsck` around a real containerd: nothing that a snapshot needs goes, everything else does;
# bytes that rot on the disk are found beside a running daemon, dropped while none runs, and fetched again.
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
registry_start fsck "$WORK/images/registry"
serve_configure fsck
serve_plain_http "$REG"
serve_start
CTR_EXTRA=$(proxy_plugin lazyblob)
containerd_start containerd-fsck lazyblob

REF=$REG/debian:estargz
LAYERS=$ROOT_DIR/layers/layers
# fsck STATUS [OPTIONS…]: ends with this status; what it says is in $SCRATCH/fsck.
fsck() {
  local want=$1 got=0
  shift
  lb --root "$ROOT_DIR" fsck "$@" > "$SCRATCH/fsck" 2> "$SCRATCH/fsck.err" || got=$?
  [ "$got" = "$want" ] || die "fsck $*: status $got, expected $want: $(cat "$SCRATCH/fsck" "$SCRATCH/fsck.err")"
  log "fsck $*: $got: $(tail -1 "$SCRATCH/fsck")"
}
gc() { lb --root "$ROOT_DIR" gc --json "$@" > "$SCRATCH/gc" || die "gc $* fails"; }
hash_python() {
  ctr_ run --rm --snapshotter lazyblob "$REF" "hash$1" sh -c 'sha256sum /usr/bin/python3*' > "$SCRATCH/hash$1" 2>&1 ||
    die "the container fails: $(cat "$SCRATCH/hash$1")"
}

lb --root "$ROOT_DIR" pull --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --snapshotter lazyblob --plain-http \
  --progress none "$REF" > "$SCRATCH/pull.out" 2>&1 || die "pull: $(tail -1 "$SCRATCH/pull.out")"
hash_python 1
fsck 0
[ "$(lb --root "$ROOT_DIR" fsck --json | jq .chunks)" -gt 0 ] || die "no chunk was compared"
fsck 8 --repair
grep -q 'stop it to repair' "$SCRATCH/fsck.err" || die "says: $(cat "$SCRATCH/fsck.err")"

log "gc beside snapshots that need their layers"
gc
[ "$(jq '.garbage | length' "$SCRATCH/gc")" = 0 ] || die "gc removed: $(cat "$SCRATCH/gc")"
lb --root "$ROOT_DIR" index --plain-http --progress none "$REG/debian:gzip" > "$SCRATCH/index.out" 2>&1 || die "index"
indexed=$(image_layers debian:gzip | wc -l)
before=$(find "$LAYERS" -mindepth 1 -maxdepth 1 | wc -l)
gc --dry-run
[ "$(jq '.garbage | length' "$SCRATCH/gc")" = "$indexed" ] || die "of $indexed layers: $(cat "$SCRATCH/gc")"
[ "$(find "$LAYERS" -mindepth 1 -maxdepth 1 | wc -l)" = "$before" ] || die "a dry run removes layers"
gc
[ "$(jq '.garbage | length' "$SCRATCH/gc")" = "$indexed" ] || die "of $indexed layers: $(cat "$SCRATCH/gc")"
[ "$(find "$LAYERS" -mindepth 1 -maxdepth 1 | wc -l)" = $((before - indexed)) ] || die "layers are left"
hash_python 2

log "a chunk that rots"
# The first byte of the first chunk that is cached, by fsck's own formats.
spoil() {
  "$PYTHON" - "$LAYERS" << 'PYTHON'
import os, sys
for name in sorted(os.listdir(sys.argv[1])):
    path = os.path.join(sys.argv[1], name, "data")
    fd = os.open(path, os.O_RDWR)
    try:
        at = os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:
        continue
    piece = os.pread(fd, 4096, at)
    at += next(i for i, byte in enumerate(piece) if byte)
    byte = os.pread(fd, 1, at)[0]
    os.pwrite(fd, bytes([byte ^ 0xff]), at)
    os.fsync(fd)
    print(path, at)
    sys.exit(0)
sys.exit("nothing is cached")
PYTHON
}
spoilt=$(spoil)
log "spoilt: $spoilt"
fsck 2
grep -q '^damaged: .*does not have the SHA-256' "$SCRATCH/fsck" || die "says: $(cat "$SCRATCH/fsck")"
for name in $(ctr_ tasks ls -q); do ctr_ tasks kill -s KILL "$name" || true; done
serve_stop
fsck 2
fsck 1 --repair
fsck 0
serve_start
hash_python 3
for i in 2 3; do cmp "$SCRATCH/hash1" "$SCRATCH/hash$i" || die "the container read other bytes"; done

log "a layer that loses its index is told, and its snapshots with it"
serve_stop
index=$(find "$LAYERS" -name index | sort | head -1)
printf X | dd of="$index" bs=1 seek=1500 conv=notrunc status=none
fsck 2 --repair
grep -q '^repaired: .*indexed again' "$SCRATCH/fsck" || die "says: $(cat "$SCRATCH/fsck")"
grep -q '^damaged: snapshot .*pull its image again' "$SCRATCH/fsck" || die "says: $(cat "$SCRATCH/fsck")"
serve_start

log "without images everything goes"
remove_everything || die "images cannot be removed"
gc
[ "$(find "$LAYERS" -mindepth 1 -maxdepth 1 | wc -l)" = 0 ] || die "left: $(ls "$LAYERS")"
fsck 0
containerd_stop
serve_stop
registry_stop
log passed

#!/bin/bash
# What a container has changed on a lazily pulled image, exported as a layer: the image that containerd then unpacks into
# overlayfs has the tree that the container had, judged by every property of every inode; skopeo verifies the image.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry judge lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo containerd ctr runc umoci jq
make_scratch
chmod 0711 "$SCRATCH"
private_programs
forget_cgroups
mkdir -p /run/containerd
mount -t tmpfs -o mode=0711 shims /run/containerd   # sockets of shims: of this run alone
CTR_PARENT=$SCRATCH

registry_start snapshot-export-src "$WORK/images/registry"
SRC=$REG SRC_LOG=$REG_LOG
judge_tree debian gzip
registry_start snapshot-export-dst "$SCRATCH/store"
DST=$REG
serve_configure export
serve_plain_http "$SRC"
serve_plain_http "$DST"
serve_start
CTR_EXTRA=$(proxy_plugin lazyblob)
containerd_start containerd lazyblob

log "a container changes its root"
lb --root "$ROOT_DIR" index --plain-http --progress none "$SRC/debian:gzip" > "$SCRATCH/out" 2>&1 || die "lazyblob index: $(tail -1 "$SCRATCH/out")"
lb --root "$ROOT_DIR" pull --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --snapshotter lazyblob --plain-http --progress none \
  "$SRC/debian:gzip" > "$SCRATCH/out" 2>&1 || die "lazyblob pull: $(tail -1 "$SCRATCH/out")"
KEY=changes
ctr_ run --snapshotter lazyblob "$SRC/debian:gzip" "$KEY" /usr/bin/python3 -c "$(cat "$E2E_DIR/lib/container_changes.py" -)" > "$SCRATCH/out" 2>&1 <<'PROGRAM' || die "the container: $(tail -1 "$SCRATCH/out")"
os.mkdir("/more", 0o2775)
with open("/more/first", "w") as f:
    f.write("three names")
os.link("/more/first", "/more/second")
os.link("/more/first", "/app/third")
os.mknod("/more/null", 0o620 | 0o020000, os.makedev(1, 3))
os.mknod("/more/disk", 0o640 | 0o060000, os.makedev(259, 70000))
os.mkfifo("/more/pipe")
os.symlink("nowhere/" + "long/" * 60, "/more/link")
with open("/more/sparse", "wb") as f:
    f.truncate(300 << 20)
    f.seek(200 << 20)
    f.write(b"in the middle")
for name, value in (("user.text", b"x" * 200), ("user.bytes", bytes(range(256))), ("user.empty", b"")):
    os.setxattr("/more/first", name, value)
    os.setxattr("/more", name, value)
os.chown("/more/second", 70000, 3000000)
os.makedirs("/more/" + "d" * 200 + "/" + "e" * 200)
open(b"/more/caf\xc3\xa9", "w").close()
open(b"/more/caf\xe9", "w").close()
for path, time in (("/more/first", 1), ("/more/pipe", 1_234_567_890_123_456_789), ("/more/sparse", 5_000_000_000_000_000_000)):
    os.utime(path, ns=(time, time))
os.sync()
PROGRAM
grep -q '^changed' "$SCRATCH/out" || die "the container: $(tail -1 "$SCRATCH/out")"
mkdir "$SCRATCH/changed"
eval "$(snapshot_mount "$KEY" | sed "s|$SCRATCH/at|$SCRATCH/changed|g")" || die "cannot mount the snapshot"

for compression in gzip zstd estargz; do
  log "exported with $compression"
  image=$DST/app:$compression
  mark=$(wc -l < "$SRC_LOG")
  lb --root "$ROOT_DIR" export --plain-http --progress none --base "$SRC/debian:gzip" --layer "snapshot:$KEY" --image "$image" \
    --compression "$compression" --image-ready-file "$SCRATCH/ready" > "$SCRATCH/out" 2>&1 || die "export: $(tail -1 "$SCRATCH/out")"
  skopeo inspect --tls-verify=false "docker://$image" > "$SCRATCH/inspected" || die "skopeo cannot inspect it"
  [ "$(cat "$SCRATCH/ready")" = "$DST/app@$(jq -r .Digest "$SCRATCH/inspected")" ] || die "ready file: $(cat "$SCRATCH/ready")"
  skopeo copy -q --src-tls-verify=false "docker://$image" "oci:$SCRATCH/copied:x" || die "skopeo cannot verify it"
  ctr_ images pull --plain-http --snapshotter overlayfs "$image" > "$SCRATCH/out" 2>&1 || die "containerd cannot pull it: $(tail -1 "$SCRATCH/out")"
  mkdir "$SCRATCH/pulled"
  ctr_ images mount --snapshotter overlayfs "$image" "$SCRATCH/pulled" > /dev/null || die "cannot mount what containerd unpacked"
  options=()
  [ "$compression" != estargz ] || options=(--allow toc-files)
  "$PYTHON" -B "$E2E_DIR/tree_diff.py" --max-lines 20 --allow-file "$JUDGE_ALLOW" --allow root-mtime "${options[@]}" \
    "$SCRATCH/changed" "$SCRATCH/pulled" > "$SCRATCH/diff" 2>&1 || { cat "$SCRATCH/diff" >&2; die "not the tree that the container had"; }
  log "$(tail -1 "$SCRATCH/diff")"
  ctr_ images unmount --snapshotter overlayfs --rm "$SCRATCH/pulled" > /dev/null || die "unmount"
  rmdir "$SCRATCH/pulled"
done

umount "$SCRATCH/changed"
remove_everything || die "images cannot be removed"
left=$(left_behind)
[ -z "$left" ] || die "left behind: $(head -c 600 <<< "$left")"
containerd_stop
serve_stop
log "passed"

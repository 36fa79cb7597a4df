#!/bin/bash
# eStargz whose tables lie in an image of their own (TAG-esgztoc), made by Debian 13's ctr-remote (Debian 12's cannot):
# lazy, the same tree as umoci's, in every form that it makes; and plain, still right, when the TOC image is gone or is
# that of another image.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob containerd judge trixie; do . "$E2E_DIR/lib/$part.sh"; done
need_programs
need_tools docker-registry skopeo umoci containerd ctr
"$E2E_DIR/make_images.sh" debian
make_scratch
trixie_make
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }

cp -al "$WORK/images/registry" "$SCRATCH/registry"   # what we push stays ours
registry_start external-toc "$SCRATCH/registry"
CTR_PARENT=$SCRATCH
containerd_start containerd native
judge_tree debian gzip
size=$(skopeo inspect --raw --tls-verify=false "docker://$REG/debian:gzip" |
  "$PYTHON" -c 'import json,sys; print(sum(d["size"] for d in json.load(sys.stdin)["layers"]))')

# convert TAG OPTIONS…: debian:gzip becomes debian:TAG and debian:TAG-esgztoc
convert() {
  local tag=$1 name
  shift
  timeout -k 5 300 "$TRIXIE/usr/bin/ctr-remote" --address "$CTR_ADDRESS" images convert --oci --estargz \
    --estargz-external-toc "$@" "$REG/debian:gzip" "$REG/debian:$tag" > "$SCRATCH/convert.log" 2>&1 ||
    die "ctr-remote could not convert debian to $tag: $(tail -1 "$SCRATCH/convert.log")"
  for name in "$tag" "$tag-esgztoc"; do ctr_ images push --plain-http "$REG/debian:$name" > /dev/null; done
}

# mount_fresh TAG: in a fresh root at $DIR; what it fetched until python3 had started is in $FETCHED, layer by layer why
# not lazy in $REASONS
mount_fresh() {
  local tag=$1 mark
  lb_root "$tag"
  DIR=$SCRATCH/mnt-$tag
  drop_caches
  lb_mount erofs "$REG/debian:$tag" "$DIR" || { fail "mount debian:$tag"; return 1; }
  timeout 60 chroot "$DIR" /usr/bin/python3 -c 'import json; print(json.dumps([0, 1, 2]))' > "$SCRATCH/json" ||
    fail "python3 does not start from debian:$tag"
  grep -qx '\[0, 1, 2\]' "$SCRATCH/json" || fail "debian:$tag: wrong output $(cat "$SCRATCH/json")"
  lb --root "$ROOT_DIR" status --json "$DIR" > "$SCRATCH/status.json" || fail "status of debian:$tag"
  FETCHED=$(lb_json "$SCRATCH/status.json" 'sum(l["fetched_bytes"] for l in layers)')
  REASONS=$(lb_json "$SCRATCH/status.json" '",".join(l["reason"] or "lazy" for l in layers)')
  log "debian:$tag: $((FETCHED / 1000)) of $((size / 1000)) kB ($((FETCHED * 100 / size)) %), $REASONS"
}
same_tree() {
  "$PYTHON" "$E2E_DIR/tree_diff.py" --max-lines 20 --allow dropped-trusted-xattrs --allow clamped-mtime \
    --allow toc-files --allow toc-seconds --allow-file "$JUDGE_ALLOW" "$JUDGE" "$DIR" > "$SCRATCH/diff" 2>&1 ||
    { cat "$SCRATCH/diff" >&2; fail "debian:$1 is not what umoci unpacks"; }
}

ctr_ content fetch --plain-http "$REG/debian:gzip" > /dev/null
convert shared --estargz-compression-level=1 --estargz-min-chunk-size=50000
convert kept --estargz-compression-level=1 --estargz-keep-diff-id
mount_fresh estargz || die "debian:estargz cannot be mounted"
lb_umount "$DIR"
USUAL=$REASONS   # the application layer is plain in every eStargz: a name in it is not UTF-8, which a table cannot say
for tag in shared kept; do
  mount_fresh "$tag" || continue
  [ "$REASONS" = "$USUAL" ] || fail "debian:$tag is $REASONS, with the tables inside it is $USUAL"
  [ "$FETCHED" -le $((size * 30 / 100)) ] || fail "debian:$tag: more than 30 % fetched"
  same_tree "$tag"
  [ ! -e "$DIR/stargz.index.json" ] || fail "debian:$tag shows a stargz.index.json that its layers do not have"
  lb_umount "$DIR" || fail "umount debian:$tag"
done

# Another image's tables, and none at all.
skopeo copy -q --src-tls-verify=false --dest-tls-verify=false "docker://$REG/debian:shared" "docker://$REG/debian:swapped"
skopeo copy -q --src-tls-verify=false --dest-tls-verify=false "docker://$REG/debian:kept-esgztoc" \
  "docker://$REG/debian:swapped-esgztoc"
skopeo copy -q --src-tls-verify=false --dest-tls-verify=false "docker://$REG/debian:shared" "docker://$REG/debian:alone"
for tag in swapped alone; do
  mount_fresh "$tag" || continue
  [[ $REASONS != *lazy* ]] || fail "debian:$tag has no table, but says $REASONS"
  same_tree "$tag"
  grep -q 'its table of contents cannot be used.*-esgztoc' "$ROOT_DIR/lazyblobd.log" ||
    fail "the log does not say why debian:$tag is plain"
  lb_umount "$DIR" || fail "umount debian:$tag"
done
[ "$failures" = 0 ]

#!/bin/bash
# Exports judged by others: what `lazyblob copy` and `lazyblob unlazy` leave in docker-registry, layouts, archives and
# directories is what skopeo and umoci read there; docker-registry's log tells what was moved for it.
. "$(dirname "$0")/lib/common.sh"
for part in registry lazyblob judge; do . "$E2E_DIR/lib/$part.sh"; done
need_root
need_tools docker-registry skopeo umoci jq htpasswd
need_programs
make_scratch

lb_root export
registry_start export-src "$WORK/images/registry"
SRC=$REG SRC_LOG=$REG_LOG
judge_tree debian gzip
registry_start export-dst "$SCRATCH/dst"
DST=$REG DST_LOG=$REG_LOG
registry_start export-closed "$SCRATCH/closed" basic
CLOSED=$REG

copy() { lb --root "$ROOT_DIR" copy --plain-http --progress none "$@"; }
digest_of() { skopeo inspect --raw --tls-verify=false "$1" | sha256sum | cut -d' ' -f1; }
# Requests of a log after a mark: METHOD STATUS URI.
requests() { tail -n "+$(($2 + 1))" "$1" | jq -rR 'fromjson? | select(.msg | startswith("response completed")) | [.["http.request.method"], .["http.response.status"], .["http.request.uri"]] | @tsv'; }

log "to another registry"
copy --json --report "$SCRATCH/report.json" --image-ready-file "$SCRATCH/ready" "$SRC/debian:gzip" "$DST/a/debian:1" "$DST/a/debian:2" \
  > "$SCRATCH/out" 2> "$SCRATCH/err" || die "copy: $(cat "$SCRATCH/err")"
want=$(digest_of "docker://$SRC/debian:gzip")
for tag in 1 2; do [ "$(digest_of "docker://$DST/a/debian:$tag")" = "$want" ] || die "tag $tag is another image"; done
[ "$(sort -u "$SCRATCH/ready")" = "$DST/a/debian@sha256:$want" ] || die "ready file says: $(cat "$SCRATCH/ready")"
[ "$(jq -r '.complete, .images[0].digest' "$SCRATCH/report.json" | xargs)" = "true sha256:$want" ] || die "report: $(cat "$SCRATCH/report.json")"
skopeo copy -q --src-tls-verify=false "docker://$DST/a/debian:1" "oci:$SCRATCH/back:x" || die "skopeo cannot pull it"
[ ! -e "$ROOT_DIR/layers/layers" ] || [ -z "$(find "$ROOT_DIR/layers" -name data -size +1k)" ] || die "layer bytes were left on the disk"

log "to the same registry: no layer byte moves"
sleep 0.3
mark=$(wc -l < "$DST_LOG")
copy "$DST/a/debian:1" "$DST/b/other/debian:x" > "$SCRATCH/out" || die "copy within a registry"
sleep 0.3
requests "$DST_LOG" "$mark" > "$SCRATCH/requests"
[ "$(digest_of "docker://$DST/b/other/debian:x")" = "$want" ] || die "another image"
if grep -P '^GET\t.*/blobs/' "$SCRATCH/requests"; then die "a blob was read"; fi
if grep -P '^(PATCH|PUT)\t.*/blobs/' "$SCRATCH/requests"; then die "a blob was sent"; fi
grep -qP '^POST\t201\t.*mount=' "$SCRATCH/requests" || die "nothing was mounted: $(cat "$SCRATCH/requests")"

log "a tag in the same repository: only the manifest is sent"
mark=$(wc -l < "$DST_LOG")
copy "$DST/a/debian:1" "$DST/a/debian:again" > "$SCRATCH/out" || die "retag"
sleep 0.3
requests "$DST_LOG" "$mark" > "$SCRATCH/requests"
[ "$(grep -cvP '^(HEAD|GET)\t' "$SCRATCH/requests")" = 1 ] || die "a retag asks: $(cat "$SCRATCH/requests")"
if grep -P '^GET\t.*/blobs/' "$SCRATCH/requests"; then die "a blob was read"; fi

log "layouts and archives"
copy "$SRC/debian:gzip" "oci:$SCRATCH/layout:a" "oci-archive:$SCRATCH/image.tar:a" > "$SCRATCH/out" || die "copy to a layout"
copy "$SRC/debian:zstd" "oci:$SCRATCH/layout:b" > "$SCRATCH/out" || die "copy to a layout beside another"
[ "$(umoci ls --layout "$SCRATCH/layout" | xargs)" = "a b" ] || die "umoci finds: $(umoci ls --layout "$SCRATCH/layout")"
[ "$(digest_of "oci:$SCRATCH/layout:a")" = "$want" ] || die "another image in the layout"
[ "$(digest_of "oci-archive:$SCRATCH/image.tar:a")" = "$want" ] || die "another image in the archive"
skopeo copy -q "oci-archive:$SCRATCH/image.tar:a" "oci:$SCRATCH/from-archive:x" || die "skopeo cannot read the archive"
copy "oci:$SCRATCH/layout:a" "$DST/c/debian:1" > "$SCRATCH/out" || die "copy from a layout"
[ "$(digest_of "docker://$DST/c/debian:1")" = "$want" ] || die "another image from the layout"

log "unpacked: as umoci does it"
lb --root "$ROOT_DIR" unlazy --plain-http --progress none "$SRC/debian:gzip" "dir:$SCRATCH/tree" > "$SCRATCH/out" || die "unlazy to a directory"
"$PYTHON" -B "$E2E_DIR/tree_diff.py" --allow-file "$JUDGE_ALLOW" --allow root-mtime --allow clamped-mtime "$JUDGE" "$SCRATCH/tree" > "$SCRATCH/diff" ||
  { head "$SCRATCH/diff" >&2; die "not the tree that umoci makes"; }

log "made local"
lb --root "$ROOT_DIR" unlazy --plain-http --progress plain "$SRC/debian:gzip" > "$SCRATCH/out" 2> "$SCRATCH/err" || die "unlazy: $(cat "$SCRATCH/err")"
[ "$(grep -c ' written ' "$SCRATCH/err")" -ge 1 ] || die "tells: $(cat "$SCRATCH/err")"
[ -n "$(find "$ROOT_DIR/layers" -name data -size +1M)" ] || die "no bytes are local"

log "new layers on a base: what skopeo pulls and umoci unpacks is the base with the tree on top"
mkdir -p "$SCRATCH/app/bin" "$SCRATCH/deps"
printf '#!/bin/sh\necho made\n' > "$SCRATCH/app/bin/run"
chmod 0755 "$SCRATCH/app/bin/run"
chown 1000:1000 "$SCRATCH/app/bin/run"
head -c 3000000 /dev/urandom > "$SCRATCH/deps/data"
export SOURCE_DATE_EPOCH=1000000000
for compression in gzip zstd estargz; do
  sleep 0.3
  mark=$(wc -l < "$DST_LOG")
  lb --root "$ROOT_DIR" export --plain-http --progress none --base "$DST/a/debian:1" --layer "dir:$SCRATCH/app:/opt/app" \
    --layer "dir:$SCRATCH/deps:/opt/deps" --image "$DST/app:$compression" --cache "$DST/cache:$compression" \
    --cache-layer "dir:$SCRATCH/deps:/opt/deps" --compression "$compression" --report "$SCRATCH/report.toml" \
    --image-ready-file "$SCRATCH/ready" --cache-ready-file "$SCRATCH/cache-ready" > "$SCRATCH/out" 2> "$SCRATCH/err" ||
    die "export with $compression: $(cat "$SCRATCH/err")"
  sleep 0.3
  [ "$(cat "$SCRATCH/ready")" = "$DST/app@sha256:$(digest_of "docker://$DST/app:$compression")" ] || die "ready file: $(cat "$SCRATCH/ready")"
  [ "$(cat "$SCRATCH/cache-ready")" = "$DST/cache@sha256:$(digest_of "docker://$DST/cache:$compression")" ] || die "cache ready file: $(cat "$SCRATCH/cache-ready")"
  rm -rf "$SCRATCH/pulled"
  skopeo copy -q --src-tls-verify=false "docker://$DST/app:$compression" "oci:$SCRATCH/pulled:x" || die "skopeo cannot pull $compression"
  skopeo copy -q --src-tls-verify=false "docker://$DST/cache:$compression" "oci:$SCRATCH/pulled:cache" || die "skopeo cannot pull the cache"
  requests "$DST_LOG" "$mark" > "$SCRATCH/requests"
  big=$(skopeo inspect --raw --tls-verify=false "docker://$DST/cache:$compression" | jq -r '.layers[0].digest')
  [ "$(grep -P '^PUT\t201\t.*/blobs/' "$SCRATCH/requests" | grep -cF "${big#sha256:}")" -le 1 ] || die "the shared layer was sent twice"
  [ "$compression" = zstd ] && continue   # umoci reads no zstd
  rm -rf --one-file-system "$SCRATCH/unpacked"
  umoci raw unpack --image "$SCRATCH/pulled:x" "$SCRATCH/unpacked" > "$SCRATCH/umoci.log" 2>&1 || die "umoci: $(tail -1 "$SCRATCH/umoci.log")"
  cmp "$SCRATCH/deps/data" "$SCRATCH/unpacked/opt/deps/data" || die "another file"
  [ "$(stat -c '%a %u:%g' "$SCRATCH/unpacked/opt/app/bin/run")" = "755 1000:1000" ] || die "another owner or mode"
  [ -x "$SCRATCH/unpacked/usr/bin/python3" ] || [ -L "$SCRATCH/unpacked/usr/bin/python3" ] || die "the base is not below"
done
unset SOURCE_DATE_EPOCH

log "kept in the store: outlives its image and the daemon, and moves no layer"
sleep 0.3
mark=$(wc -l < "$DST_LOG")
copy "$DST/c/debian:1" store:kept > "$SCRATCH/out" || die "copy to store:"
[ "$(cat "$SCRATCH/out")" = store:kept ] || die "says: $(cat "$SCRATCH/out")"
sleep 0.3
requests "$DST_LOG" "$mark" > "$SCRATCH/requests"
[ "$(grep -cP '^GET\t200\t.*/blobs/' "$SCRATCH/requests")" = 1 ] || die "more than the config was read: $(cat "$SCRATCH/requests")"
skopeo delete --tls-verify=false "docker://$DST/c/debian:1" || die "skopeo delete"
wait_until 20 "the daemon does not end" lb_no_daemon "$ROOT_DIR"
lb --root "$ROOT_DIR" --json leases > "$SCRATCH/leases" || die "leases"
[ "$(jq -r '.leases[] | .name + " " + .image.digest' "$SCRATCH/leases")" = "kept sha256:$want" ] || die "leases: $(cat "$SCRATCH/leases")"
copy store:kept "$DST/e/debian:1" "oci:$SCRATCH/from-store:x" > "$SCRATCH/out" || die "copy from store:"
[ "$(digest_of "docker://$DST/e/debian:1")" = "$want" ] || die "another image from the store"
skopeo copy -q "oci:$SCRATCH/from-store:x" "oci:$SCRATCH/back:store" || die "skopeo cannot read what came from the store"
lb --root "$ROOT_DIR" leases rm kept || die "leases rm"
[ -z "$(lb --root "$ROOT_DIR" leases)" ] || die "a lease is left"
[ -z "$(ls -A "$ROOT_DIR/leases")" ] || die "files of a lease are left"

log "errors are one line, and nothing is tagged"
expect_error() {
  local want=$1; shift
  lb_refused lb --root "$ROOT_DIR" "$@" || die "'$*'"
  grep -qi -- "$want" "$LB_ERR" || die "'$*' says: $(cat "$LB_ERR")"
}
export DOCKER_CONFIG=$SCRATCH/nobody
expect_error 'nosuchtag' copy --plain-http --progress none "$SRC/debian:nosuchtag" "$DST/d:1"
expect_error "$CLOSED" copy --plain-http --progress none "$SRC/debian:gzip" "$CLOSED/d:1" "$DST/d:1"
if skopeo inspect --raw --tls-verify=false "docker://$DST/d:1" > "$SCRATCH/out" 2>&1; then die "half of an export is tagged"; fi
echo '{"images": [{"base": "a/b"}], "destinations": ["c/d"], "parallell": "ON"}' > "$SCRATCH/spec.json"
mkdir "$SCRATCH/full" && touch "$SCRATCH/full/file"
expect_error "$SCRATCH/full" copy --plain-http --progress none "$SRC/debian:gzip" "oci:$SCRATCH/full:a"
expect_error "$SCRATCH/full" unlazy --plain-http --progress none "$SRC/debian:gzip" "dir:$SCRATCH/full"
expect_error 'parallell' export --spec "$SCRATCH/spec.json"
expect_error 'store:kept' copy --plain-http --progress none store:kept "$DST/d:1"
expect_error 'lease' copy --plain-http --progress none "$SRC/debian:gzip" store:../up
expect_error 'twice' copy --plain-http "$SRC/debian:gzip" "$DST/d:1" "$DST/d:1"
rm "$SCRATCH"/layout/blobs/sha256/"$(jq -r '.layers[0].digest' "$SCRATCH/layout/blobs/sha256/$want" | cut -d: -f2)"
expect_error 'sha256:' copy --plain-http --progress none "oci:$SCRATCH/layout:a" "$CLOSED/e:1"

log "credentials of whoever asks"
mkdir -p "$SCRATCH/docker"
printf '{"auths":{"%s":{"auth":"%s"}}}' "$CLOSED" "$(printf tester:secret | base64)" > "$SCRATCH/docker/config.json"
DOCKER_CONFIG=$SCRATCH/docker copy "$SRC/debian:gzip" "$CLOSED/d:1" > "$SCRATCH/out" || die "copy with credentials"
[ "$(skopeo inspect --raw --creds tester:secret --tls-verify=false "docker://$CLOSED/d:1" | sha256sum | cut -d' ' -f1)" = "$want" ] || die "another image"
if grep -rqF -e "$(printf tester:secret | base64)" -e tester:secret "$ROOT_DIR"; then die "credentials lie in the state directory"; fi
wait_until 20 "the daemon does not end with the last export" lb_no_daemon "$ROOT_DIR"
log "passed"

#!/bin/bash
# Exports that cannot be: one clear line, exit status not 0, and nothing that was there has changed: no tag, no blob of
# wrong bytes, no half of a layout or file.
. "$(dirname "$0")/lib/common.sh"
for part in registry lazyblob; do . "$E2E_DIR/lib/$part.sh"; done
need_root
need_tools docker-registry skopeo umoci jq htpasswd curl mkfs.ext4
need_programs
make_scratch

lb_root bad
registry_start bad-good "$SCRATCH/good"
GOOD=$REG
registry_start bad-dst "$SCRATCH/dst"
DST=$REG
registry_start bad-closed "$SCRATCH/closed" basic
CLOSED=$REG
# A registry that is made to give other bytes than it should.
"$BUILD_DIR/tests/test_registry_server" --host-file "$SCRATCH/liar.host" > "$SCRATCH/liar.out" 2>&1 &
LIAR_PID=$!
disown "$LIAR_PID"
on_exit "end_process $LIAR_PID"
wait_until 20 "the test registry did not start" test -s "$SCRATCH/liar.host"
LIAR=$(cat "$SCRATCH/liar.host")
fault() { curl -fsS -X POST -d "$1" "http://$LIAR/_test/faults" > /dev/null; }
no_fault() { curl -fsS -X DELETE "http://$LIAR/_test/faults" > /dev/null; }

run() { lb --root "$ROOT_DIR" "$@" > "$SCRATCH/out" 2> "$SCRATCH/err" || die "$*: $(cat "$SCRATCH/err")"; }
copy() { run copy --plain-http --progress none "$@"; }
# What must not change: the destination's tags, what a layout names, files beside it. Blobs may come that nothing names.
state() {
  skopeo list-tags --tls-verify=false "docker://$DST/app" | jq -r '.Tags[]' | sort
  find "$SCRATCH/layout/index.json" "$SCRATCH/layout/oci-layout" "$SCRATCH/no-layout" -type f -exec sha256sum {} + | sort -k2
  find "$SCRATCH/layout" -maxdepth 1 | sort
  find "$SCRATCH/here" | sort
}
# bad WHAT PATTERN ARGUMENTS…: lazyblob with these must fail, and say the pattern.
bad() {
  local what=$1 want=$2
  shift 2
  log "$what"
  state > "$SCRATCH/before"
  lb_refused lb --root "$ROOT_DIR" "$@" || die "$what: $*"
  grep -qiE -- "$want" "$LB_ERR" || die "$what: says: $(cat "$LB_ERR")"
  state > "$SCRATCH/after"
  diff "$SCRATCH/before" "$SCRATCH/after" >&2 || die "$what: something has changed"
}

# An image whose layers have tables of contents, so that a mount leaves them lazy.
mkdir -p "$SCRATCH/tree" "$SCRATCH/here" "$SCRATCH/no-layout"
head -c 3000000 /dev/urandom > "$SCRATCH/tree/data"
head -c 3000000 /dev/urandom > "$SCRATCH/tree/more"
touch "$SCRATCH/no-layout/file"
run export --plain-http --progress none --base scratch --layer "dir:$SCRATCH/tree" --compression estargz --image "$GOOD/app:1" --image "oci:$SCRATCH/image:1" --image "$LIAR/app:1"
run export --plain-http --progress none --base scratch --layer "dir:$SCRATCH/tree:/kept" --image "$DST/app:kept" --image "oci:$SCRATCH/layout:kept"
layer=$(skopeo inspect --raw --tls-verify=false "docker://$GOOD/app:1" | jq -r '.layers[0].digest')
one=(copy --plain-http --progress none)

bad "an unknown tag" "nosuchtag" "${one[@]}" "$GOOD/app:nosuchtag" "$DST/app:2"
bad "an unknown repository" "no/such" "${one[@]}" "$GOOD/no/such:1" "$DST/app:2"
bad "a registry that is not there" "127.0.0.1:1/" "${one[@]}" "127.0.0.1:1/app:1" "$DST/app:2"
bad "an unknown layout" "$SCRATCH/nowhere" "${one[@]}" "oci:$SCRATCH/nowhere:1" "$DST/app:2"
bad "an unknown name in a layout" "nosuchname" "${one[@]}" "oci:$SCRATCH/image:nosuchname" "$DST/app:2"
bad "an unknown directory" "/no/such" export --plain-http --progress none --base scratch --layer dir:/no/such --image "$DST/app:2"
bad "a tar that is none" "$SCRATCH/tree/data" export --plain-http --progress none --base scratch --layer "tar:$SCRATCH/tree/data" --image "$DST/app:2"
bad "an unknown snapshot" "snapshot:none" export --plain-http --progress none --base scratch --layer snapshot:none --image "$DST/app:2"

export DOCKER_CONFIG=$SCRATCH/nobody
bad "a denied push" "$CLOSED" "${one[@]}" "$GOOD/app:1" "$CLOSED/app:2" "$DST/denied:2"
mkdir -p "$SCRATCH/wrong"
printf '{"auths":{"%s":{"auth":"%s"}}}' "$CLOSED" "$(printf tester:wrong | base64)" > "$SCRATCH/wrong/config.json"
DOCKER_CONFIG=$SCRATCH/wrong bad "a push with a wrong password" "$CLOSED" "${one[@]}" "$GOOD/app:1" "$CLOSED/app:2" "$DST/denied:2"

if skopeo inspect --raw --tls-verify=false "docker://$DST/denied:2" > "$SCRATCH/out" 2>&1; then die "half of an export is tagged"; fi

fault "{\"method\":\"GET\",\"path_contains\":\"$layer\",\"flip_bit_of_byte\":1000}"
bad "other bytes than the digest says" "$layer" "${one[@]}" "$LIAR/app:1" "$DST/app:2"
bad "other bytes, to a layout" "$layer" "${one[@]}" "$LIAR/app:1" "oci:$SCRATCH/layout:2"
bad "other bytes, to an archive" "$layer" "${one[@]}" "$LIAR/app:1" "oci-archive:$SCRATCH/here/x.tar:1"
bad "other bytes, to a directory" "$layer" unlazy --plain-http --progress none "$LIAR/app:1" "dir:$SCRATCH/here/tree"
no_fault
fault "{\"method\":\"GET\",\"path_contains\":\"$layer\",\"status\":200,\"body\":\"short\"}"
bad "fewer bytes than the manifest says" "$layer" "${one[@]}" "$LIAR/app:1" "$DST/app:2"
no_fault
cp -a "$SCRATCH/image" "$SCRATCH/rotten"
printf x | dd of="$SCRATCH/rotten/blobs/sha256/${layer#sha256:}" bs=1 seek=5000 conv=notrunc status=none
bad "a rotten blob in a layout" "$layer" "${one[@]}" "oci:$SCRATCH/rotten:1" "$DST/app:2"
truncate -s 1000 "$SCRATCH/rotten/blobs/sha256/${layer#sha256:}"
bad "a truncated blob in a layout" "$layer" "${one[@]}" "oci:$SCRATCH/rotten:1" "$DST/app:2"

# No blob of another digest than its name, anywhere.
no_such_blob() {
  [ "$(curl -s -o /dev/null -w '%{http_code}' -I "http://$DST/v2/app/blobs/$layer")" = 404 ] || die "the wrong bytes are in the registry"
  local blob
  for blob in "$SCRATCH"/layout/blobs/sha256/*; do
    [ "$(sha256sum < "$blob" | cut -d' ' -f1)" = "$(basename "$blob")" ] || die "wrong bytes in the layout: $blob"
  done
}
no_such_blob

log "the next source is tried"
lb_mount auto "$LIAR/app:1" "$SCRATCH/mount" || die "mount"
fault "{\"method\":\"GET\",\"path_contains\":\"$layer\",\"flip_bit_of_byte\":1000}"
bad "with one source it fails" "$layer" "${one[@]}" "$LIAR/app:1" "$DST/app:2"
curl -fsS -X DELETE "http://$LIAR/_test/log" > /dev/null
copy "$GOOD/app:1" "$DST/other:ok"
skopeo copy -q --src-tls-verify=false "docker://$DST/other:ok" "oci:$SCRATCH/checked:x" || die "skopeo finds other bytes"
[ "$(curl -fsS "http://$LIAR/_test/log" | jq "[.[] | select(.method == \"GET\" and (.path | contains(\"$layer\")))] | length")" -ge 1 ] || die "only one source was asked"
no_fault
lb_umount "$SCRATCH/mount" || die "umount"

printf '{"imageLayoutVersion":"2.0.0"}' > "$SCRATCH/image-2"
bad "a directory that is no layout, as destination" "no-layout.*not a layout" "${one[@]}" "$GOOD/app:1" "oci:$SCRATCH/no-layout:1"
bad "a directory that is no layout, as source" "no-layout" "${one[@]}" "oci:$SCRATCH/no-layout:1" "$DST/app:2"
cp "$SCRATCH/image-2" "$SCRATCH/no-layout/oci-layout"
bad "a layout of another version" "no-layout" "${one[@]}" "$GOOD/app:1" "oci:$SCRATCH/no-layout:1"
printf '{"imageLayoutVersion":"1.0.0"}' > "$SCRATCH/no-layout/oci-layout"
echo '{"schemaVersion":2,"manifests":[{' > "$SCRATCH/no-layout/index.json"
bad "a layout with half an index" "no-layout" "${one[@]}" "$GOOD/app:1" "oci:$SCRATCH/no-layout:1"
bad "a file instead of a layout" "tree/data" "${one[@]}" "$GOOD/app:1" "oci:$SCRATCH/tree/data:1"

spec() { printf '%s' "$1" > "$SCRATCH/spec.json"; }
image="\"images\":[{\"base\":\"$GOOD/app:1\"}],\"access\":{\"plainHttpHosts\":[\"$GOOD\",\"$DST\"]}"
spec "{$image,\"destinations\":[\"$DST/app:2\"],\"parallell\":\"ON\"}"
bad "a spec with an unknown key" "parallell" export --progress none --spec "$SCRATCH/spec.json"
spec "{$image,\"destinations\":[\"$DST/app:2\"],\"destinations\":[\"$DST/app:3\"]}"
bad "a spec with a key twice" "destinations" export --progress none --spec "$SCRATCH/spec.json"
spec "{$image,\"destinations\":[\"$DST/app:2\"],\"compression\":\"BEST\"}"
bad "a spec with an unknown value" "BEST" export --progress none --spec "$SCRATCH/spec.json"
spec "{$image,\"destinations\":[\"$DST/app:2\"]"
bad "half a spec" "spec" export --progress none --spec "$SCRATCH/spec.json"
bad "no spec" "nospec.json" export --progress none --spec "$SCRATCH/nospec.json"

log "disks that are full"
mkdir "$SCRATCH/small" "$SCRATCH/full"
mount -t tmpfs -o size=2m tmpfs "$SCRATCH/full"
truncate -s 24M "$SCRATCH/small.img"
mkfs.ext4 -q "$SCRATCH/small.img"
mount -o loop "$SCRATCH/small.img" "$SCRATCH/small"
chmod 0700 "$SCRATCH/small"
bad "a full disk under a layout" "space" "${one[@]}" "$GOOD/app:1" "oci:$SCRATCH/full/layout:1"
bad "a full disk under an archive" "space" "${one[@]}" "$GOOD/app:1" "oci-archive:$SCRATCH/full/x.tar:1"
bad "a full disk under a directory" "space" unlazy --plain-http --progress none "$GOOD/app:1" "dir:$SCRATCH/full/tree"
[ ! -e "$SCRATCH/full/tree" ] && [ ! -e "$SCRATCH/full/x.tar" ] || die "half of something was left"
wait_until 20 "the daemon does not end" lb_no_daemon "$ROOT_DIR"
head -c 30000000 /dev/urandom > "$SCRATCH/tree/large"
ROOT_DIR=$SCRATCH/small
on_exit "lb_end_root '$SCRATCH/small'"
bad "a full disk while a layer is staged" "space" export --plain-http --progress none --base scratch --layer "dir:$SCRATCH/tree" --compression none --image "$DST/app:2"
run export --plain-http --progress none --base scratch --layer "dir:$SCRATCH/no-layout" --image "$DST/app:after"
wait_until 20 "the daemon does not end" lb_no_daemon "$ROOT_DIR"
log "passed"

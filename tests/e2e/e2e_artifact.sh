#!/bin/bash
# Artifacts with a layer per platform in docker-registry, which has no referrers API: what is pushed is what skopeo reads
# there, a builder fetches its own layers alone, a directory is there whole or not at all, and referrers that come at the
# same time, before their subject, are all listed under its tag.
. "$(dirname "$0")/lib/common.sh"
for part in registry lazyblob; do . "$E2E_DIR/lib/$part.sh"; done
need_root
need_tools docker-registry skopeo jq
need_programs
make_scratch

lb_root artifact
registry_start artifact "$SCRATCH/store"
artifact() { local what=$1; shift; lb --root "$ROOT_DIR" artifact "$what" --plain-http --progress none "$@"; }
raw() { skopeo inspect --raw --tls-verify=false "docker://$REG/$1"; }
# GETs of blobs since a mark.
blobs_read() {
  sleep 0.3
  tail -n "+$(($1 + 1))" "$REG_LOG" | jq -rR 'fromjson? | select(.msg | startswith("response completed")) | select(.["http.request.method"] == "GET") | .["http.request.uri"]' |
    sed -n 's#.*/blobs/##p' | sort -u
}
refused() {
  local want=$1; shift
  lb_refused "$@" || die "'$*'"
  grep -qi -- "$want" "$LB_ERR" || die "'$*' says: $(cat "$LB_ERR")"
}
no_leftovers() { [ -z "$(find "$SCRATCH" -maxdepth 1 -name '.*.lazyblob-*')" ] || die "left behind: $(find "$SCRATCH" -maxdepth 1 -name '.*.lazyblob-*')"; }

for name in any amd64 arm64; do
  mkdir -p "$SCRATCH/$name/deps/$name"
  head -c 300000 /dev/urandom > "$SCRATCH/$name/deps/$name/data"
  echo "$name" > "$SCRATCH/$name/deps/list-$name"
done
chown 1000:1000 "$SCRATCH/any/deps/list-any"
for name in amd64 arm64; do cp -a "$SCRATCH/any" "$SCRATCH/want-$name"; cp -a "$SCRATCH/$name/." "$SCRATCH/want-$name"; done
cp -a "$SCRATCH/want-amd64" "$SCRATCH/want-all"; cp -a "$SCRATCH/arm64/." "$SCRATCH/want-all"
same() { diff -r "$1" "$2" > "$SCRATCH/diff" || die "$2 is not $1: $(head -3 "$SCRATCH/diff")"; }

log "push: an OCI artifact with a layer for each"
artifact push "$REG/deps:1" --layer "any=$SCRATCH/any" --layer "linux/amd64=$SCRATCH/amd64" --layer "linux/arm64=$SCRATCH/arm64" \
  --artifact-type application/x.deps --annotation org.example=1 > "$SCRATCH/out" || die "push"
raw deps:1 > "$SCRATCH/manifest.json"
[ "$(cat "$SCRATCH/out")" = "$REG/deps@sha256:$(sha256sum < "$SCRATCH/manifest.json" | cut -d' ' -f1)" ] || die "push says $(cat "$SCRATCH/out")"
[ "$(jq -r '.artifactType, .annotations["org.example"], (.layers | length)' "$SCRATCH/manifest.json" | xargs)" = "application/x.deps 1 3" ] || die "manifest: $(cat "$SCRATCH/manifest.json")"
skopeo copy -q --src-tls-verify=false "docker://$REG/deps:1" "oci:$SCRATCH/copy:x" || die "skopeo cannot copy it"
layer() { jq -r ".layers[$1].digest" "$SCRATCH/manifest.json"; }

log "pull: what is for any and the own platform, no byte of others"
mark=$(registry_mark)
artifact pull "$REG/deps:1" "$SCRATCH/got-arm64" --platform linux/arm64 > "$SCRATCH/out" || die "pull"
same "$SCRATCH/want-arm64" "$SCRATCH/got-arm64"
[ "$(stat -c %u:%g "$SCRATCH/got-arm64/deps/list-any")" = 1000:1000 ] || die "another owner"
[ "$(blobs_read "$mark")" = "$( (layer 0; layer 2) | sort)" ] || die "read: $(blobs_read "$mark")"
mkdir -m 0750 "$SCRATCH/got-amd64"
artifact pull "$REG/deps:1" "$SCRATCH/got-amd64" --platform linux/amd64 > "$SCRATCH/out" || die "pull into an empty directory"
same "$SCRATCH/want-amd64" "$SCRATCH/got-amd64"
artifact pull "oci:$SCRATCH/copy:x" "$SCRATCH/got-all" --all > "$SCRATCH/out" || die "pull of all, from a layout"
same "$SCRATCH/want-all" "$SCRATCH/got-all"
artifact pull "$REG/deps:1" "$SCRATCH/got-any" --platform linux/s390x > "$SCRATCH/out" || die "pull of what is for any"
same "$SCRATCH/any" "$SCRATCH/got-any"

log "a directory is there whole or not at all"
refused 'not empty' artifact pull "$REG/deps:1" "$SCRATCH/any"
find "$SCRATCH/store" -path "*$(layer 1 | cut -d: -f2)/data" -exec mv {} "$SCRATCH/taken" \;
refused "$(layer 1)" artifact pull "$REG/deps:1" "$SCRATCH/half" --platform linux/amd64
mkdir "$SCRATCH/empty"
refused "$(layer 1)" artifact pull "$REG/deps:1" "$SCRATCH/empty" --all
[ ! -e "$SCRATCH/half" ] && rmdir "$SCRATCH/empty" || die "something was left in the directory"
no_leftovers
proxy_start artifact
touch "$PROXY_HOLD"
artifact pull "$PROXY/deps:1" "$SCRATCH/killed" --platform linux/arm64 > "$SCRATCH/out" 2>&1 &
client=$!
wait_until 20 "no blob was asked for" grep -q holding "$PROXY_LOG"
kill -9 "$(lb_daemon_pid "$ROOT_DIR")"
wait "$client" && die "the pull succeeded although its daemon was killed"
rm "$PROXY_HOLD"
[ ! -e "$SCRATCH/killed" ] || die "half a directory after a kill"
artifact pull "$PROXY/deps:1" "$SCRATCH/killed" --platform linux/arm64 > "$SCRATCH/out" || die "pull after a kill"
same "$SCRATCH/want-arm64" "$SCRATCH/killed"
no_leftovers

log "referrers at the same time, before their subject"
lb --root "$ROOT_DIR" export --plain-http --progress none --base scratch --layer "dir:$SCRATCH/any" --image "oci:$SCRATCH/image:x" > "$SCRATCH/out" || die "export"
subject=$(skopeo inspect --raw "oci:$SCRATCH/image:x" | sha256sum | cut -d' ' -f1)
pids=()
for i in 1 2 3 4 5 6; do
  artifact push "$REG/app:about-$i" --layer "any=$SCRATCH/any" --annotation "n=$i" --subject "oci:$SCRATCH/image:x" > "$SCRATCH/out.$i" 2>&1 &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || die "push with a subject: $(cat "$SCRATCH"/out.?)"; done
raw "app:sha256-$subject" > "$SCRATCH/referrers.json"
[ "$(jq -r '.manifests[].digest' "$SCRATCH/referrers.json" | sort)" = "$(for i in 1 2 3 4 5 6; do echo "sha256:$(raw "app:about-$i" | sha256sum | cut -d' ' -f1)"; done | sort)" ] ||
  die "referrers: $(cat "$SCRATCH/referrers.json")"
[ "$(jq -r '.manifests[].artifactType' "$SCRATCH/referrers.json" | sort -u)" = application/vnd.lazyblob.artifact.v1 ] || die "another type"
[ "$(raw app:about-1 | jq -r .subject.digest)" = "sha256:$subject" ] || die "another subject"
lb --root "$ROOT_DIR" copy --plain-http --progress none "oci:$SCRATCH/image:x" "$REG/app:1" > "$SCRATCH/out" || die "copy of the subject"
[ "$(raw app:1 | sha256sum | cut -d' ' -f1)" = "$subject" ] || die "the subject became another"

log "errors"
refused 'oci:DIR' artifact push "$REG/app:2" --layer "any=$SCRATCH/any" --subject "$REG/app:none"
refused 'PLATFORM=DIR' artifact push "$REG/app:2" --layer "$SCRATCH/any"
refused '/no/such' artifact push "$REG/app:2" --layer any=/no/such
refused 'no artifact of platforms' artifact pull "$REG/app:1" "$SCRATCH/image-tree"
[ "$(skopeo list-tags --tls-verify=false "docker://$REG/app" | jq -r '.Tags[]' | grep -cx 2)" = 0 ] || die "a push that failed has left a tag"
wait_until 20 "the daemon does not end" lb_no_daemon "$ROOT_DIR"
log "passed"

#!/bin/bash
# Build caches judged by who reads them: docker buildx 0.13 of Debian 13 with dockerd 26.1.5's BuildKit writes a cache
# over lazily pulled bases, `lazyblob export --cache-import` takes it over into other repositories and registries, and
# BuildKit builds from our copies with every step CACHED. skopeo reads them too; docker-registry's log tells what moved.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob containerd snapshotter trixie; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo jq nsenter unshare
trixie_machine

registry_start cache-images "$WORK/images/registry"
BASE=$REG/debian:estargz
registry_start cache-near "$SCRATCH/near"
NEAR=$REG NEAR_LOG=$REG_LOG
registry_start cache-far "$SCRATCH/far"
FAR=$REG
serve_configure cache
for host in "${BASE%%/*}" "$NEAR" "$FAR"; do serve_plain_http "$host"; done
serve_start
CTR_EXTRA=$(proxy_plugin stargz)
containerd_start containerd-cache stargz
dockerd_start

mkdir -p "$SCRATCH/context"
echo input > "$SCRATCH/context/input"
# dockerfile LAST: three stages; the last step says LAST.
dockerfile() {
  cat > "$SCRATCH/context/Dockerfile" <<DOCKERFILE
FROM $BASE AS tools
RUN echo tools > /tools && echo ran-\$((1+1))
FROM $BASE AS lib
COPY input /input
RUN cat /input > /result && echo ran-\$((1+1))
FROM $BASE
COPY --from=tools /tools /tools
COPY --from=lib /result /result
RUN cat /tools /result > /all && echo $1 >> /all && echo ran-\$((1+1))
DOCKERFILE
}
# build OPTIONS…: its output is in $SCRATCH/build.
build() {
  "${DOCKER[@]}" buildx build --network=host --progress=plain "$@" "$SCRATCH/context" > "$SCRATCH/build" 2>&1 ||
    die "docker buildx build $*: $(tail -5 "$SCRATCH/build")"
}
# Steps of the last build: "CACHED", "ran", or, of a cached one whose layers are wanted by a step above it, "fetched" (it
# is shown as done then); and what they are. A RUN that ran has said so.
steps() {
  "$PYTHON" - "$SCRATCH/build" <<'STEPS'
import re, sys
names, cached, fetched, said = {}, set(), set(), set()
for line in open(sys.argv[1], errors="replace"):
    found = re.match(r"#(\d+) (.*)", line)
    if not found: continue
    number, text = found.groups()
    if re.match(r"\[[^\]]*\d+/\d+\] (RUN|COPY)", text): names[number] = text.strip()
    if text.startswith("CACHED"): cached.add(number)
    if re.match(r"(extracting )?sha256:[0-9a-f]{64}", text): fetched.add(number)
    if text.endswith("ran-2"): said.add(number)
for number, name in sorted(names.items(), key=lambda pair: pair[1]):
    state = "fetched" if number in fetched - said else "ran"
    print("CACHED" if number in cached else state, name)
STEPS
}
# all_cached WHAT: every step of the last build is.
all_cached() {
  steps > "$SCRATCH/steps"
  sed "s/^/  $1: /" "$SCRATCH/steps" >&2
  [ "$(wc -l < "$SCRATCH/steps")" -ge "$2" ] || die "$1: the build has fewer than $2 steps: $(cat "$SCRATCH/build")"
  ! grep '^ran' "$SCRATCH/steps" || die "$1: a step was not cached"
  if grep -q 'ran-2' "$SCRATCH/build"; then die "$1: something ran"; fi
}
forget() {
  "${DOCKER[@]}" rmi -f built > /dev/null 2>&1 || true
  "${DOCKER[@]}" builder prune -af > /dev/null || die "builder prune"
  "${DOCKER[@]}" image prune -af > /dev/null || die "image prune"
}
export_() { lb --root "$ROOT_DIR" export --plain-http --progress none "$@" > "$SCRATCH/out" 2> "$SCRATCH/err" || die "export $*: $(cat "$SCRATCH/err")"; }
raw() { skopeo inspect --raw --tls-verify=false "docker://$1"; }
blob() { curl -sSf "http://${1%%/*}/v2/$(sed 's,^[^/]*/,,; s,:[^:]*$,,' <<< "$1")/blobs/$2"; }
# The cache's config: of an image manifest, or listed in an index.
cache_config() {
  local digest
  digest=$(raw "$1" | jq -r '[.config // empty, .manifests[]?] | map(select(.mediaType == "application/vnd.buildkit.cacheconfig.v0"))[0].digest')
  blob "$1" "$digest"
}
# Steps that have a result, and the layers it consists of.
results() {
  cache_config "$1" | jq -c '. as $c | def chain: if . < 0 then [] else (($c.layers[.].parent // 0) | chain) + [$c.layers[.].blob] end;
    .records[] | select(.layers) | [.digest, (.layers[] | (.layer // 0) | chain)]' | sort -u
}
requests() { tail -n "+$(($2 + 1))" "$1" | jq -rR 'fromjson? | select(.msg | startswith("response completed")) | [.["http.request.method"], .["http.response.status"], .["http.request.uri"]] | @tsv'; }

log "BuildKit writes a cache of a build whose bases are lazy"
dockerfile one
build -t built --cache-to "type=registry,ref=$NEAR/theirs:max,mode=max" --cache-to "type=registry,ref=$NEAR/theirs:min,mode=min"
steps | sed 's/^/  first: /' >&2
[ "$(grep -c '#.*ran-2' "$SCRATCH/build")" -ge 3 ] || die "the first build ran nothing: $(cat "$SCRATCH/build")"
log "it has $(results "$NEAR/theirs:max" | wc -l) results (mode=max), $(results "$NEAR/theirs:min" | wc -l) (mode=min)"
[ "$(results "$NEAR/theirs:max" | wc -l)" -gt 4 ] || die "BuildKit's cache has results: $(results "$NEAR/theirs:max")"

for form in buildkit buildkit-index; do
  log "$form: taken over within the registry, no layer moves"
  sleep 0.3
  mark=$(wc -l < "$NEAR_LOG")
  export_ --cache-import "$NEAR/theirs:max" --cache "$NEAR/ours/$form:1" --cache-format "$form" --cache-mode max
  sleep 0.3
  requests "$NEAR_LOG" "$mark" > "$SCRATCH/requests"
  for digest in $(cache_config "$NEAR/theirs:max" | jq -r '.layers[].blob' | sort -u); do
    if grep -P "^GET\t.*$digest" "$SCRATCH/requests"; then die "$form: a layer was read"; fi
    if grep -P "^PUT\t.*$digest" "$SCRATCH/requests"; then die "$form: a layer was sent"; fi
    grep -qP "^POST\t201\t.*mount=$(sed 's/:/(:|%3A)/' <<< "$digest")" "$SCRATCH/requests" || die "$form: $digest was not mounted: $(cat "$SCRATCH/requests")"
  done
  diff <(results "$NEAR/theirs:max") <(results "$NEAR/ours/$form:1") || die "$form: a result was dropped or changed"
  log "$form: to another registry"
  export_ --cache-import "$NEAR/ours/$form:1" --cache "$FAR/cache:$form" --cache-format "$form" --cache-mode max
  [ "$(raw "$FAR/cache:$form" | sha256sum)" = "$(raw "$NEAR/ours/$form:1" | sha256sum)" ] || die "$form: other bytes"
  log "$form: BuildKit builds from it"
  forget
  build -t built --cache-from "type=registry,ref=$FAR/cache:$form"
  all_cached "$form" 6
  "${DOCKER[@]}" run --rm --network none built cat /all > "$SCRATCH/all" || die "the built image does not run"
  [ "$(xargs < "$SCRATCH/all")" = "tools input one" ] || die "the image built from the cache holds: $(cat "$SCRATCH/all")"
  log "$form: mode=max holds the stages below, too"
  forget
  build --target tools --cache-from "type=registry,ref=$FAR/cache:$form"
  all_cached "$form, stage tools" 1
  dockerfile two
  forget
  build -t built --cache-from "type=registry,ref=$FAR/cache:$form"
  steps > "$SCRATCH/steps"
  [ "$(grep -c '^ran' "$SCRATCH/steps")" = 1 ] && grep -q '^ran .*RUN cat' "$SCRATCH/steps" || die "$form: with another last step: $(cat "$SCRATCH/steps")"
  dockerfile one
done

log "skopeo reads the image manifest form"
skopeo copy -q --src-tls-verify=false "docker://$FAR/cache:buildkit" "oci:$SCRATCH/skopeo:x" || die "skopeo cannot copy it"
[ "$(skopeo inspect --raw "oci:$SCRATCH/skopeo:x" | sha256sum)" = "$(raw "$FAR/cache:buildkit" | sha256sum)" ] || die "skopeo's copy is another"

log "mode=min of the cache is the last stage"
export_ --cache-import "$NEAR/theirs:max" --cache "$FAR/cache:min"
forget
build -t built --cache-from "type=registry,ref=$FAR/cache:min"
all_cached "min" 6

log "an inline cache, kept in an image of ours"
forget
build --cache-to type=inline --output "type=image,name=$NEAR/inline:1,push=true"
export_ --base "$NEAR/inline:1" --image "$FAR/inline:1" --cache-format inline --cache-import "$NEAR/inline:1"
# Steps with a result in the inline cache of an image, or of the first image of an index.
inline_results() {
  local digest
  digest=$(raw "$1" | jq -r '.manifests[0].digest // empty')
  blob "$1" "$(raw "${1%:*}${digest:+@}${digest:-:${1##*:}}" | jq -r .config.digest)" |
    jq -r '."moby.buildkit.cache.v0"' | base64 -d | jq -r '.[] | select(.layers or .chains) | .digest' | sort
}
inline_results "$NEAR/inline:1" > "$SCRATCH/theirs"
inline_results "$FAR/inline:1" > "$SCRATCH/ours"
[ "$(wc -l < "$SCRATCH/theirs")" -ge 3 ] || die "inline: BuildKit's image has too few results"
diff "$SCRATCH/theirs" "$SCRATCH/ours" || die "inline: results were dropped or added"
forget
build -t built --cache-from "type=registry,ref=$FAR/inline:1"
all_cached "inline" 3

log "a cache that is not there yet is a warning, one that is denied or damaged an error, and options without effect are told"
export_ --cache-import "$NEAR/nosuch:1" --cache-import "$NEAR/theirs:max" --cache "$FAR/cache:first"
grep -q "warning: .*nosuch" "$SCRATCH/err" || die "no warning: $(cat "$SCRATCH/err")"
if lb --root "$ROOT_DIR" export --plain-http --progress none --cache-import "$NEAR/nosuch:1" --cache "$FAR/cache:none" > "$SCRATCH/out" 2> "$SCRATCH/err"; then
  die "an empty cache was exported"
fi
grep -q "nothing to export" "$SCRATCH/err" || die "an empty cache: $(cat "$SCRATCH/err")"
if raw "$FAR/cache:none" > "$SCRATCH/out" 2>&1; then die "an empty cache is tagged"; fi
config=$(raw "$NEAR/ours/buildkit:1" | jq -r .config.digest)
truncate -s 10 "$SCRATCH"/near/docker/registry/v2/blobs/sha256/"$(cut -c8-9 <<< "$config")/${config#sha256:}/data"
lb_refused lb --root "$ROOT_DIR" export --plain-http --progress none --cache-import "$NEAR/ours/buildkit:1" --cache "$FAR/cache:none" || die "a damaged cache"
grep -q "ours/buildkit:1" "$LB_ERR" || die "a damaged cache: $(cat "$LB_ERR")"
export_ --base "$NEAR/inline:1" --image "$FAR/warned:1" --parallel on
grep -q "warning: parallel has no effect" "$SCRATCH/err" || die "no warning: $(cat "$SCRATCH/err")"
printf '{"images": [{"base": "%s"}], "destinations": ["%s"], "parallel": "ON"}' "$NEAR/inline:1" "$FAR/warned:2" > "$SCRATCH/spec.json"
export_ --spec "$SCRATCH/spec.json"
grep -q "warning: parallel has no effect" "$SCRATCH/err" || die "no warning of a spec: $(cat "$SCRATCH/err")"

log "records from a file, for layers of this machine"
mkdir -p "$SCRATCH/dep" "$SCRATCH/app"
echo dep > "$SCRATCH/dep/file"
echo app > "$SCRATCH/app/file"
cat > "$SCRATCH/records.json" <<RECORDS
{"layers": [{"parent": -1}, {}], "records": [
  {"digest": "sha256:$(printf %064d 1)", "layers": [{"layer": 0, "createdAt": "2024-01-02T03:04:05Z"}]},
  {"digest": "sha256:$(printf %064d 2)", "layers": [{"layer": 1}], "inputs": [[{"link": 0}]]}]}
RECORDS
for destination in one two; do
  SOURCE_DATE_EPOCH=1 export_ --cache "$FAR/made:$destination" --cache-layer "dir:$SCRATCH/dep" --cache-layer "dir:$SCRATCH/app" \
    --cache-records "$SCRATCH/records.json" --cache-mode max
done
[ "$(raw "$FAR/made:one" | sha256sum)" = "$(raw "$FAR/made:two" | sha256sum)" ] || die "other bytes the second time"
[ "$(results "$FAR/made:one" | wc -l)" = 2 ] || die "records: $(cache_config "$FAR/made:one")"

forget
"${DOCKER[@]}" image rm -f $("${DOCKER[@]}" images -q | sort -u) > /dev/null 2>&1 || true
end_process "$DOCKERD_PID"
containerd_stop
serve_stop
log "passed"

#!/bin/bash
# Many exports into one place while some are killed: processes with daemons of their own into one OCI layout, and the
# clients of one daemon into one index of a registry. Somebody reads index.json, or the index, all the time: it is never
# torn, and never loses an image. In the end skopeo and umoci read every one.
#   e2e_many_exports.sh layout|registry
. "$(dirname "$0")/lib/common.sh"
for part in registry lazyblob; do . "$E2E_DIR/lib/$part.sh"; done
need_root
need_tools docker-registry skopeo umoci jq pgrep
need_programs
make_scratch

PART=${1:?layout or registry}
WRITERS=8 ROUNDS=${ROUNDS:-8}
RANDOM=${SEED:-4711}
log "seed ${SEED:-4711}"

watch_end() {
  kill "$WATCHER"
  wait "$WATCHER" || die "the watcher: $(cat "$SCRATCH/watch.err")"
  log "$(cat "$SCRATCH/watch.out")"
}
# watch KIND WHERE: reads it until it gets SIGTERM; fails if it is torn, or loses an entry.
watch() {
  "$PYTHON" -B - "$@" > "$SCRATCH/watch.out" 2> "$SCRATCH/watch.err" <<'PYTHON' &
import json, signal, sys, time, urllib.error, urllib.request
kind, where = sys.argv[1:]
state = {"go": True}
signal.signal(signal.SIGTERM, lambda *_: state.update(go=False))
known, reads, errors = set(), 0, 0
while state["go"]:
    time.sleep(0.002)
    try:
        if kind == "file":
            with open(where) as f:
                text = f.read()
        else:
            request = urllib.request.Request(where, headers={"Accept": "application/vnd.oci.image.index.v1+json"})
            text = urllib.request.urlopen(request).read()
    except (FileNotFoundError, urllib.error.HTTPError):
        errors += 1   # docker-registry may be writing the tag just now
        assert not known or kind == "url" and errors < 5, "it is gone"
        continue
    errors = 0
    manifests = json.loads(text)["manifests"]
    if kind == "file":
        names = [m["annotations"]["org.opencontainers.image.ref.name"] for m in manifests]
    else:
        names = [m["platform"]["architecture"] for m in manifests]
    assert len(names) == len(set(names)), "twice: %s" % names
    assert known <= set(names), "lost: %s" % (known - set(names))
    known, reads = set(names), reads + 1
assert reads > 20, reads
print("read %d times, %d images" % (reads, len(known)))
PYTHON
  WATCHER=$!
  on_exit "kill $WATCHER 2>/dev/null"
}

tree() {  # WRITER ROUND: something new
  rm -rf "$SCRATCH/tree-$1"
  mkdir "$SCRATCH/tree-$1"
  head -c 2000000 /dev/urandom > "$SCRATCH/tree-$1/data"
  echo "$1 $2" > "$SCRATCH/tree-$1/name"
}
pause() { sleep "0.$(printf %03d $((RANDOM % 250)))"; }
# Client, keeper and daemon of a root of ours, one by one.
kill_all_of() {
  local pid
  for pid in $(pgrep -f -- "--root $1( |\$)"); do
    if kill -9 "$pid" 2>/dev/null; then killed=$((killed + 1)); fi
  done
}

layout() {
  local layout=$SCRATCH/layout i round victim pid killed=0 ended=0
  for ((i = 0; i < WRITERS; i++)); do lb_root "$i"; done
  export_one() { lb --root "$SCRATCH/root-$1" export --progress none --base scratch --layer "dir:$SCRATCH/tree-$1" --image "oci:$layout:image-$1" > "$SCRATCH/out.$1" 2>&1; }
  watch file "$layout/index.json"
  for ((round = 0; round < ROUNDS; round++)); do
    local pids=()
    for ((i = 0; i < WRITERS; i++)); do tree $i $round; export_one $i & pids+=($!); done
    for victim in $((RANDOM % WRITERS)) $((RANDOM % WRITERS)) $((RANDOM % WRITERS)); do
      pause
      kill_all_of "$SCRATCH/root-$victim"
    done
    for pid in "${pids[@]}"; do wait "$pid" && ended=$((ended + 1)); done
  done
  log "$ended exports came to their end, $killed processes were killed"
  [ "$killed" -gt 0 ] && [ "$ended" -gt 0 ] || die "nothing was tried"
  local pids=()
  for ((i = 0; i < WRITERS; i++)); do tree $i last; export_one $i & pids+=($!); done
  for pid in "${pids[@]}"; do wait "$pid" || die "an export that nobody killed: $(cat "$SCRATCH"/out.?)"; done
  watch_end
  [ "$(umoci ls --layout "$layout" | sort | xargs)" = "$(seq -f 'image-%g' 0 $((WRITERS - 1)) | xargs)" ] || die "umoci finds: $(umoci ls --layout "$layout")"
  for ((i = 0; i < WRITERS; i++)); do
    skopeo copy -q "oci:$layout:image-$i" "dir:$SCRATCH/copied-$i" || die "skopeo cannot read image-$i"
    umoci raw unpack --image "$layout:image-$i" "$SCRATCH/unpacked-$i" > "$SCRATCH/umoci.log" 2>&1 || die "umoci cannot read image-$i"
    [ "$(cat "$SCRATCH/unpacked-$i/name")" = "$i last" ] || die "image-$i is not the last one"
  done
  local pids=()
  for i in 0 1 2 3; do
    lb --root "$SCRATCH/root-$i" export --progress none --append --platform "linux/cpu$i" --base scratch --layer "dir:$SCRATCH/tree-$i" --image "oci:$layout:all" > "$SCRATCH/out.$i" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || die "an export of one platform: $(cat "$SCRATCH"/out.?)"; done
  [ "$(skopeo inspect --raw "oci:$layout:all" | jq -r '.manifests[].platform.architecture' | xargs)" = "cpu0 cpu1 cpu2 cpu3" ] || die "the index in the layout: $(skopeo inspect --raw "oci:$layout:all")"
  [ -z "$(find "$layout" -maxdepth 1 -name '.lazyblob-*')" ] || die "left behind: $(find "$layout" -maxdepth 1 -name '.lazyblob-*')"
  lb --root "$SCRATCH/root-0" export --progress none --base scratch --layer "dir:$SCRATCH/tree-1" --layer "dir:$SCRATCH/tree-2:/two" --image "oci:$layout" > "$SCRATCH/out" 2>&1 || die "an image without a name"
  lb_refused lb --root "$SCRATCH/root-0" export --progress none --base scratch --layer "dir:$SCRATCH/tree-3:/three" --image "oci:$layout" || die "two images without a name"
  grep -q 'image-0' "$LB_ERR" || die "the names in use are not told: $(cat "$LB_ERR")"
}

registry() {
  registry_start many "$SCRATCH/store"
  lb_root many
  local i round pid victim killed=0 ended=0
  local ref=$REG/app:all
  export_one() {
    exec "$LAZYBLOB" --root "$ROOT_DIR" export --plain-http --progress none --append --platform "linux/cpu$1" --base scratch \
      --layer "dir:$SCRATCH/tree-$1" --image "$ref" > "$SCRATCH/out.$1" 2>&1
  }
  watch url "http://$REG/v2/app/manifests/all"
  for ((round = 0; round < ROUNDS; round++)); do
    local pids=()
    for ((i = 0; i < WRITERS; i++)); do tree $i $round; (export_one $i) & pids+=($!); done
    for victim in $((RANDOM % WRITERS)) $((RANDOM % WRITERS)); do
      pause
      if kill -9 "${pids[$victim]}" 2>/dev/null; then killed=$((killed + 1)); fi
    done
    if ((round % 2)); then
      pid=$(lb_daemon_pid "$ROOT_DIR")
      if [ -n "$pid" ] && kill -9 "$pid" 2>/dev/null; then killed=$((killed + 1)); fi
    fi
    for pid in "${pids[@]}"; do wait "$pid" && ended=$((ended + 1)); done
  done
  log "$ended exports came to their end, $killed processes were killed"
  [ "$killed" -gt 0 ] && [ "$ended" -gt 0 ] || die "nothing was tried"
  local pids=()
  for ((i = 0; i < WRITERS; i++)); do tree $i last; (export_one $i) & pids+=($!); done
  for pid in "${pids[@]}"; do wait "$pid" || die "an export that nobody killed: $(cat "$SCRATCH"/out.?)"; done
  watch_end
  skopeo inspect --raw --tls-verify=false "docker://$ref" > "$SCRATCH/index.json"
  [ "$(jq -r '.manifests[].platform.architecture' "$SCRATCH/index.json" | xargs)" = "$(seq -f 'cpu%g' 0 $((WRITERS - 1)) | xargs)" ] || die "the index: $(cat "$SCRATCH/index.json")"
  for ((i = 0; i < WRITERS; i++)); do
    skopeo copy -q --override-arch "cpu$i" --src-tls-verify=false "docker://$ref" "oci:$SCRATCH/copied:$i" || die "skopeo cannot read cpu$i"
    umoci raw unpack --image "$SCRATCH/copied:$i" "$SCRATCH/unpacked-$i" > "$SCRATCH/umoci.log" 2>&1 || die "umoci cannot read cpu$i"
    [ "$(cat "$SCRATCH/unpacked-$i/name")" = "$i last" ] || die "cpu$i is not the last one"
  done
  assemble
}

# One index from repositories that others have filled.
assemble() {
  local i a b c mark
  index_of() { skopeo inspect --raw --tls-verify=false "docker://$1" | jq -r '.manifests[] | .platform.architecture + "=" + .digest' | xargs; }
  run() { lb --root "$ROOT_DIR" assemble --plain-http --progress none "$@" > "$SCRATCH/out" 2> "$SCRATCH/err" || die "assemble $*: $(cat "$SCRATCH/err")"; }
  digest() { skopeo inspect --raw --tls-verify=false --override-arch "$2" "docker://$1" | sha256sum | cut -d' ' -f1; }
  for i in amd64 arm64 s390x; do
    lb --root "$ROOT_DIR" export --plain-http --progress none --platform "linux/$i" --base scratch --layer "dir:$SCRATCH/tree-1" --image "$REG/part/$i:1" > "$SCRATCH/out" || die "export for $i"
  done
  a=sha256:$(digest "$REG/part/amd64:1" amd64) b=sha256:$(digest "$REG/part/arm64:1" arm64) c=sha256:$(digest "$REG/part/s390x:1" s390x)
  sleep 0.3
  mark=$(registry_mark)
  run "$REG/whole:1" --manifest "linux/amd64=$REG/part/amd64:1" --manifest "$REG/part/arm64:1"
  sleep 0.3
  tail -n "+$((mark + 1))" "$REG_LOG" | jq -rR 'fromjson? | select(.msg | startswith("response completed")) | .["http.request.method"] + " " + .["http.request.uri"]' > "$SCRATCH/requests"
  grep -q 'POST .*mount=' "$SCRATCH/requests" || die "nothing was mounted: $(cat "$SCRATCH/requests")"
  if grep -E '^(PUT|PATCH) .*/blobs/' "$SCRATCH/requests"; then die "blobs were sent within a registry"; fi
  [ "$(index_of "$REG/whole:1")" = "amd64=$a arm64=$b" ] || die "the index: $(index_of "$REG/whole:1")"
  run "$REG/whole:1" "oci:$SCRATCH/assembled:x" --append --manifest "$REG/part/s390x:1"
  [ "$(index_of "$REG/whole:1")" = "amd64=$a arm64=$b s390x=$c" ] || die "the index: $(index_of "$REG/whole:1")"
  [ "$(cat "$SCRATCH/out" | head -1)" = "$REG/whole@sha256:$(digest "$REG/whole:1" x)" ] || die "says: $(cat "$SCRATCH/out")"
  run "oci:$SCRATCH/assembled:x" --append --manifest "$REG/whole:1"
  skopeo copy -q --all --src-tls-verify=false "docker://$REG/whole:1" "dir:$SCRATCH/assembled-copy" || die "skopeo cannot copy the index"
  [ "$(skopeo inspect --raw "oci:$SCRATCH/assembled:x" | sha256sum)" = "$(sha256sum < "$SCRATCH/assembled-copy/manifest.json")" ] || die "the layout has another index"
  lb --root "$ROOT_DIR" export --plain-http --progress none --platform linux/amd64 --base scratch --layer "dir:$SCRATCH/tree-2" --image "$REG/part/amd64:2" > "$SCRATCH/out" || die "export"
  lb_refused lb --root "$ROOT_DIR" assemble --plain-http --progress none "$REG/whole:1" --manifest "$REG/part/amd64:1" --manifest "$REG/part/amd64:2" || die "two of a platform"
  grep -q linux/amd64 "$LB_ERR" || die "says: $(cat "$LB_ERR")"
  lb_refused lb --root "$ROOT_DIR" assemble --plain-http --progress none "$REG/whole:1" --manifest "linux/arm64=$REG/part/amd64:1" || die "another platform"
  [ "$(index_of "$REG/whole:1")" = "amd64=$a arm64=$b s390x=$c" ] || die "what was refused has changed the index"
  run "$REG/whole:1" --append --manifest "$REG/part/amd64:2"
  [ "$(index_of "$REG/whole:1")" = "amd64=sha256:$(digest "$REG/part/amd64:2" amd64) arm64=$b s390x=$c" ] || die "a new image of a platform: $(index_of "$REG/whole:1")"
}

case $PART in layout | registry) "$PART" ;; *) die "no part $PART" ;; esac
log "passed"

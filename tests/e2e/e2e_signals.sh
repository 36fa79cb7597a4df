#!/bin/bash
# What the command line says of an export, when, and how it ends: files that appear when an image can be pulled and not
# before, exit statuses under every failure policy, warnings from every way of asking, and Ctrl-C.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/lazyblob.sh"
need_root
need_tools skopeo curl jq
need_programs
make_scratch

lb_root signals
# A registry that waits and refuses as it is told.
"$BUILD_DIR/tests/test_registry_server" --host-file "$SCRATCH/host" > "$SCRATCH/registry.out" 2>&1 &
REGISTRY_PID=$!
disown "$REGISTRY_PID"
on_exit "end_process $REGISTRY_PID"
wait_until 20 "the test registry did not start" test -s "$SCRATCH/host"
REG=$(cat "$SCRATCH/host")
control() { curl -fsS -X "$1" ${3:+-d "$3"} "http://$REG/_test/$2"; }
fault() { control POST faults "$1" > /dev/null; }
waits_at() { [ "$(control GET "gates/$1" | jq .waiting)" -ge 1 ]; }
sessions() { control GET stats | jq .upload_sessions; }
no_sessions() { [ "$(sessions)" = 0 ]; }
pullable() { skopeo inspect --raw --tls-verify=false "docker://$REG/$1" > "$SCRATCH/manifest" 2>&1; }
# A registry that is empty for an export: new repositories, no rule, gates closed; new layers.
ROUND=0
fresh() {
  ROUND=$((ROUND + 1))
  APP=app-$ROUND CACHE=cache-$ROUND GATE=gate-$ROUND
  control DELETE faults > /dev/null
  mkdir -p "$SCRATCH/image" "$SCRATCH/cache"
  head -c 300000 /dev/urandom > "$SCRATCH/image/data"
  head -c 300000 /dev/urandom > "$SCRATCH/cache/data"
  rm -f "$SCRATCH/report.json"
  # Left by an export before: must not stay.
  echo old | tee "$SCRATCH/image-ready" > "$SCRATCH/cache-ready"
}
start() {
  "$LAZYBLOB" --root "$ROOT_DIR" export --plain-http --progress json --base scratch --layer "dir:$SCRATCH/image" --image "$REG/$APP:1" \
    --cache "$REG/$CACHE:1" --cache-layer "dir:$SCRATCH/cache" --image-ready-file "$SCRATCH/image-ready" \
    --cache-ready-file "$SCRATCH/cache-ready" --report "$SCRATCH/report.json" "$@" > "$SCRATCH/out" 2> "$SCRATCH/err" &
  EXPORT_PID=$!
}
STATUS=0
ended() { STATUS=0; wait "$EXPORT_PID" || STATUS=$?; }
complete() { [ -s "$SCRATCH/$1-ready" ] && pullable "$(sed "s,^$REG/,," "$SCRATCH/$1-ready")"; }
none() { [ ! -e "$SCRATCH/$1-ready" ]; }

log "the image is ready, and can be pulled, while the cache still waits"
fresh
fault "{\"method\":\"PUT\",\"path_contains\":\"/$CACHE/manifests/\",\"gate\":\"$GATE\"}"
start
wait_until 30 "the cache does not come to its manifest" waits_at "$GATE"
wait_until 30 "no file says that the image is ready" test -s "$SCRATCH/image-ready"
skopeo copy -q --src-tls-verify=false "docker://$(cat "$SCRATCH/image-ready")" "oci:$SCRATCH/pulled-$ROUND:x" || die "skopeo cannot pull it"
none cache || die "the cache is said to be ready"
if pullable "$CACHE:1"; then die "the cache is there"; fi
[ "$(jq -r '.complete, (.images | length), (.caches | length)' "$SCRATCH/report.json" | xargs)" = "false 1 0" ] || die "report: $(cat "$SCRATCH/report.json")"
control POST "gates/$GATE/open" > /dev/null
ended
[ "$STATUS" = 0 ] || die "status $STATUS: $(cat "$SCRATCH/err")"
complete cache || die "the cache cannot be pulled"
[ "$(jq -r '.complete, (.caches | length)' "$SCRATCH/report.json" | xargs)" = "true 1" ] || die "report: $(cat "$SCRATCH/report.json")"

log "before the tag is there no file says so"
fresh
fault "{\"method\":\"PUT\",\"path_contains\":\"/$APP/manifests/\",\"gate\":\"$GATE\"}"
start --parallel on
wait_until 30 "the image does not come to its manifest" waits_at "$GATE"
wait_until 30 "the cache is not exported beside it" test -s "$SCRATCH/cache-ready"
none image || die "the image is said to be ready"
control POST "gates/$GATE/open" > /dev/null
ended
[ "$STATUS" = 0 ] && complete image || die "status $STATUS: $(cat "$SCRATCH/err")"

for policy in independent cache-required fail-fast; do
  for who in image cache; do
    log "$policy: the $who fails"
    fresh
    [ "$who" = image ] && failing=$APP other=$CACHE rest=cache || { failing=$CACHE other=$APP rest=image; }
    # The one fails when the other is in the middle of its blobs.
    fault "[{\"method\":\"POST\",\"path_contains\":\"/$failing/blobs/uploads\",\"gate\":\"$GATE\",\"status\":403},{\"method\":\"PUT\",\"path_contains\":\"/$other/blobs/uploads\",\"gate\":\"$GATE-other\"}]"
    start --on-failure "$policy"
    wait_until 30 "the $who does not start" waits_at "$GATE"
    wait_until 30 "the other does not start" waits_at "$GATE-other"
    control POST "gates/$GATE/open" > /dev/null
    if [ "$policy" != fail-fast ]; then
      wait_until 30 "the $who does not fail" grep -q '"failed"' "$SCRATCH/err"
      control POST "gates/$GATE-other/open" > /dev/null
    fi
    ended
    control POST "gates/$GATE-other/open" > /dev/null
    none "$who" || die "the $who is said to be ready"
    if pullable "$failing:1"; then die "the $who is there"; fi
    if [ "$policy" = fail-fast ]; then
      none "$rest" || die "the other is said to be ready"
    else
      complete "$rest" || die "the other is not complete"
    fi
    want=1
    [ "$policy/$who" = independent/cache ] && want=0
    [ "$STATUS" = "$want" ] || die "exit status $STATUS, not $want: $(cat "$SCRATCH/err")"
    if [ "$want" = 0 ]; then grep -q '"warning":"the cache was not exported' "$SCRATCH/err" || die "no warning: $(cat "$SCRATCH/err")"; fi
    [ "$(jq -r "if .${who}_error == \"\" then \"fine\" else \"told\" end" "$SCRATCH/report.json")" = told ] || die "report: $(cat "$SCRATCH/report.json")"
    wait_until 20 'upload sessions are left: $(sessions)' no_sessions
  done
done

log "Ctrl-C ends both, and their sessions"
fresh
fault "[{\"method\":\"PUT\",\"path_contains\":\"/$APP/blobs/uploads\",\"gate\":\"$GATE\"},{\"method\":\"PUT\",\"path_contains\":\"/$CACHE/blobs/uploads\",\"gate\":\"$GATE-other\"}]"
set -m   # a job of its own: else SIGINT is ignored
start
set +m
wait_until 30 "the image does not start" waits_at "$GATE"
wait_until 30 "the cache does not start" waits_at "$GATE-other"
kill -INT "$EXPORT_PID"
ended
[ "$STATUS" = 1 ] || die "exit status $STATUS: $(cat "$SCRATCH/err")"
none image && none cache || die "something is said to be ready"
[ "$(jq -r '.complete, (.image_error != "")' "$SCRATCH/report.json" | xargs)" = "true true" ] || die "no report of how it ended"
wait_until 20 "upload sessions are left" no_sessions
control POST "gates/$GATE/open" > /dev/null
control POST "gates/$GATE-other/open" > /dev/null
wait_until 20 "the daemon does not end" lb_no_daemon "$ROOT_DIR"
no_sessions || die "upload sessions are left"
if pullable "$APP:1" || pullable "$CACHE:1"; then die "something is tagged"; fi
if grep -q 'warning' "$SCRATCH/err"; then die "a warning of what was cancelled: $(cat "$SCRATCH/err")"; fi

log "Ctrl-C while only a hook runs: what is exported is exported"
fresh
mkdir "$SCRATCH/hooks"
printf '#!/bin/sh\nwhile [ ! -e %s/go ]; do sleep 0.1; done\n' "$SCRATCH" > "$SCRATCH/hooks/exporter-image-exported"
chmod +x "$SCRATCH/hooks/exporter-image-exported"
reported() { [ -s "$SCRATCH/report.json" ] && [ "$(jq .complete "$SCRATCH/report.json")" = true ]; }
set -m
start --hooks "$SCRATCH/hooks"
set +m
wait_until 30 "there is no report" reported
kill -INT "$EXPORT_PID"
touch "$SCRATCH/go"
ended
[ "$STATUS" = 0 ] && complete image && complete cache || die "exit status $STATUS: $(cat "$SCRATCH/err")"

log "parallel without a cache: a warning, whoever asks and how"
fresh
lb --root "$ROOT_DIR" export --plain-http --progress none --parallel on --base scratch --layer "dir:$SCRATCH/image" --image "$REG/$APP:1" \
  > "$SCRATCH/out" 2> "$SCRATCH/err" || die "export: $(cat "$SCRATCH/err")"
grep -q 'warning: parallel has no effect' "$SCRATCH/err" || die "no warning of options: $(cat "$SCRATCH/err")"
printf '{"images":[{"base":"scratch","layers":[{"source":"dir:%s"}]}],"destinations":["%s"],"parallel":"ON","access":{"plainHttpHosts":["%s"]}}' \
  "$SCRATCH/image" "$REG/$APP:2" "$REG" > "$SCRATCH/spec.json"
lb --root "$ROOT_DIR" export --progress none --report "$SCRATCH/report.json" --spec "$SCRATCH/spec.json" > "$SCRATCH/out" 2> "$SCRATCH/err" || die "spec: $(cat "$SCRATCH/err")"
grep -q 'warning: parallel has no effect' "$SCRATCH/err" || die "no warning of a spec: $(cat "$SCRATCH/err")"
jq -e '.warnings[0] | contains("parallel has no effect")' "$SCRATCH/report.json" > "$SCRATCH/out" || die "not in the report: $(cat "$SCRATCH/report.json")"
wait_until 20 "the daemon does not end" lb_no_daemon "$ROOT_DIR"
log "passed"

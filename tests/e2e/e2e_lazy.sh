#!/bin/bash
# Lazy, counted by docker-registry's own log: starting python3 and running a program with its standard library fetches
# at most 30 % of the image (with numpy, two thirds of a layer that is made of little else, it is told, not judged);
# one request per manifest, connections reused, one token per scope; 64 readers of one cold file cause each chunk to be
# requested once. Plain formats after `lazyblob index` in the same root.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/lazyblob.sh"
need_root
need_programs
make_scratch
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
MAX_CONNECTIONS=${LAZYBLOB_MAX_CONNECTIONS:-16}

image_size() {
  skopeo inspect --raw --tls-verify=false ${2:+--creds "$2"} "docker://$REG/$1" |
    "$PYTHON" -c 'import json,sys; print(sum(d["size"] for d in json.load(sys.stdin)["layers"]))'
}

share_of_start() {
  local format=$1 dir=$SCRATCH/mnt size mark started options
  lb_root "lazy-$format"
  size=$(image_size "debian:$format")
  case $format in
    gzip | tar | zstd)
      lb --root "$ROOT_DIR" index --plain-http --progress none "$REG/debian:$format" > "$SCRATCH/index.out" ||
        { fail "lazyblob index debian:$format"; return 0; } ;;
  esac
  drop_caches
  mark=$(registry_mark)
  lb_mount auto "$REG/debian:$format" "$dir" || { fail "mount debian:$format"; return 0; }
  timeout 60 chroot "$dir" /usr/bin/python3 -c 'import json, re, sys; print(json.dumps(list(range(3))))' \
    > "$SCRATCH/json" || fail "python3 does not start from debian:$format"
  grep -qx '\[0, 1, 2\]' "$SCRATCH/json" || fail "debian:$format: wrong output $(cat "$SCRATCH/json")"
  sleep 0.3   # the log is written after the answer
  started=$(registry_mark)
  timeout 60 chroot "$dir" /usr/bin/python3 /app/hello.py > "$SCRATCH/hello" || fail "python3 does not run from debian:$format"
  grep -q 'hello from python 3.*numpy.*trace' "$SCRATCH/hello" || fail "debian:$format: wrong output $(cat "$SCRATCH/hello")"
  lb --root "$ROOT_DIR" status --json "$dir" > "$SCRATCH/status.json" || fail "status of debian:$format"
  lb_umount "$dir" || fail "umount debian:$format"
  sleep 0.3   # the log is written after the answer
  options=(--from "$mark" --image-size "$size" --one-request-per-manifest --max-connections "$MAX_CONNECTIONS")
  # a single zstd frame has no way in: it is streamed once, never twice
  if [ "$format" = zstd ]; then options+=(--max-share 1.001); else options+=(--max-share 0.30); fi
  head -n "$started" "$REG_LOG" > "$SCRATCH/start.log"
  log "debian:$format, python3: $("$PYTHON" "$E2E_DIR/lazy_count.py" "${options[@]}" "$SCRATCH/start.log" 2> "$SCRATCH/count.err")" || true
  log "debian:$format, and numpy: $("$PYTHON" "$E2E_DIR/lazy_count.py" --from "$mark" --image-size "$size" "$REG_LOG")" || true
  [ ! -s "$SCRATCH/count.err" ] || fail "debian:$format: $(cat "$SCRATCH/count.err")"
  # what we claim must be what the registry saw: every body byte counted, none invented
  "$PYTHON" - "$SCRATCH/status.json" "$REG_LOG" "$mark" "$E2E_DIR" <<'CLAIM' || fail "debian:$format: fetched_bytes of status is not what the registry sent"
import json, sys
sys.path.insert(0, sys.argv[4])
import lazy_count
claim = {l["digest"]: l["fetched_bytes"] for l in json.load(open(sys.argv[1]))["layers"]}
seen = lazy_count.summary(lazy_count.read_log(open(sys.argv[2]).readlines()[int(sys.argv[3]):]))["blobs"]
for digest, fetched in claim.items():
    sent = seen.get(digest, 0)
    if not sent * 0.9 - 65536 <= fetched <= sent:   # an answer that we broke off may sit in a socket buffer
        sys.exit(f"{digest}: says {fetched}, docker-registry sent {sent}")
CLAIM
}

registry_start lazy "$WORK/images/registry"
for format in gzip tar zstd estargz zstdchunked; do share_of_start "$format"; done
registry_stop

# Tokens: docker-registry with token auth, credentials from a docker config file.
tokens() {
  local dir=$SCRATCH/mnt
  lb_root tokens
  registry_start lazy-token "$WORK/images/registry" token
  mkdir -p "$SCRATCH/docker"
  printf '{"auths":{"%s":{"auth":"%s"}}}' "$REG" "$(printf tester:secret | base64)" > "$SCRATCH/docker/config.json"
  export DOCKER_CONFIG=$SCRATCH/docker
  lb_mount auto "$REG/debian:estargz" "$dir" || { fail "mount with token auth"; return 0; }
  timeout 60 chroot "$dir" /usr/bin/python3 /app/hello.py > /dev/null || fail "python3 with token auth"
  lb_umount "$dir" || fail "umount with token auth"
  unset DOCKER_CONFIG
  sleep 0.3
  log "token auth: $("$PYTHON" "$E2E_DIR/lazy_count.py" --token-log "$TOKEN_LOG" --one-token-per-scope \
    --max-connections "$MAX_CONNECTIONS" "$REG_LOG" 2> "$SCRATCH/count.err")" || true
  [ ! -s "$SCRATCH/count.err" ] || fail "token auth: $(cat "$SCRATCH/count.err")"
  ! grep -rqF -e "$(printf tester:secret | base64)" -e 'tester:secret' "$ROOT_DIR" || fail "credentials lie in the state directory"
  registry_stop
}
tokens

# 64 readers, one cold file, answers held back until all of them wait.
single_flight() {
  local format=$1 dir=$SCRATCH/mnt i pids=()
  lb_root "flight-$format"
  registry_start lazy-flight "$WORK/images/registry"
  proxy_start "flight-$format"
  if [ "$format" = gzip ]; then
    lb --root "$ROOT_DIR" index --plain-http --progress none "$PROXY/made/large:gzip" > /dev/null || { fail "index made/large"; return 0; }
  fi
  lb_mount auto "$PROXY/made/large:$format" "$dir" || { fail "mount made/large:$format"; return 0; }
  drop_caches
  local mark; mark=$(wc -l < "$PROXY_LOG")
  touch "$PROXY_HOLD"
  for ((i = 0; i < 64; i++)); do sha256sum "$dir/noise" > "$SCRATCH/sum-$i" 2>&1 & pids+=($!); done
  wait_until 30 "no reader caused a request" grep -q '"holding"' "$PROXY_LOG"
  sleep 1   # all 64 processes are started and wait (or would have asked again by now)
  rm -f "$PROXY_HOLD"
  for i in "${pids[@]}"; do wait "$i" || fail "a reader failed"; done
  [ "$(cat "$SCRATCH"/sum-* | sort -u | wc -l)" = 1 ] || fail "64 readers saw different bytes"
  "$PYTHON" - "$PROXY_LOG" "$mark" <<'ONCE' || fail "made/large:$format: bytes were requested more than once"
import collections, json, re, sys
ranges = []
for line in open(sys.argv[1]).readlines()[int(sys.argv[2]):]:
    record = json.loads(line)
    if record.get("method") == "GET" and "/blobs/" in record["uri"]:
        m = re.fullmatch(r"bytes=(\d+)-(\d+)", record["range"] or "")
        if not m:
            sys.exit(f"a request without a range: {record}")
        ranges.append((record["uri"], int(m[1]), int(m[2])))
if not ranges:
    sys.exit("no request was seen")
# Neighbouring chunks may share the compressed bytes at their border, nothing more.
ranges.sort()
for (uri, _, end), (next_uri, start, _) in zip(ranges, ranges[1:]):
    if uri == next_uri and start < end - 65536:
        sys.exit(f"{uri}: bytes {start}-{end} were requested twice")
print(f"{len(ranges)} requests for 64 readers", file=sys.stderr)
ONCE
  lb_umount "$dir" || fail "umount made/large:$format"
  registry_stop
}
for format in gzip estargz zstdchunked; do single_flight "$format"; done

log "$failures failures"
[ "$failures" = 0 ]

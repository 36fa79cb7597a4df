#!/bin/bash
# Rows 40 to 46 and 48 to 50 of the fault table: images and registries that mean harm. See docs/FAULTS.md.
#   hostile.sh [ROW…]      LAZYBLOB_LONG=1: all images in all formats, bombs and chains of full size; VERBOSE=1: every refusal;
#                          ONLY=TEXT: images whose names have it
# Also run on the build with AddressSanitizer and UndefinedBehaviorSanitizer (LAZYBLOB_BUILD=build-asan): a line of
# theirs in any log is a failure.
export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=32:allocator_may_return_null=1:${ASAN_OPTIONS:-}
export UBSAN_OPTIONS=print_stacktrace=1:${UBSAN_OPTIONS:-}
FAULTS_RSS_KIB=${FAULTS_RSS_KIB:-393216}
ROW_LIMIT=${ROW_LIMIT:-600}
. "$(dirname "$0")/lib/faults.sh"
need_tools containerd ctr ctr-remote strace

CORPUS_LIB=$(cd "$(dirname "$0")/hostile" && pwd)
CORPUS=$SCRATCH/corpus
CANARY=$SCRATCH/canary
SANITIZERS='AddressSanitizer|LeakSanitizer|UndefinedBehaviorSanitizer|runtime error:'

# A directory of everything that a host has, which images try to read, replace, delete, or put something into.
make_canary() {
  mkdir -p "$CANARY/directory/below"
  printf 'canary\n' > "$CANARY/file"
  printf 'secret\n' > "$CANARY/directory/secret"
  chmod 0600 "$CANARY/directory/secret"
  chmod 4750 "$CANARY/file"
  ln "$CANARY/file" "$CANARY/directory/hard"
  ln -s ../file "$CANARY/directory/link"
  mkfifo "$CANARY/fifo"
  mknod "$CANARY/null" c 1 3
  setfattr -n user.canary -v yes "$CANARY/file"
}
# Everything about it, change times too: any write, chmod, chown, link or removal shows.
canary_state() {
  find "$CANARY" "$CANARY/.." -maxdepth 0 -printf '%f %m %u %g\n'
  find "$CANARY" -printf '%P %y %m %U %G %s %n %i %l %T@ %C@\n' | sort
  find "$CANARY" -type f -exec sha256sum {} + | sort
  getfattr -R -d -m - --absolute-names "$CANARY" | sort
}
canary_is_unchanged() {
  canary_state > "$SCRATCH/canary.now"
  diff "$CANARY_STATE" "$SCRATCH/canary.now" > "$SCRATCH/canary.diff" || wrong "the canary has changed: $(head -5 "$SCRATCH/canary.diff")"
}
no_sanitizer_lines() {
  local found
  found=$(grep -hE "$SANITIZERS" "$LB_LOG" "$ROOT_DIR"/*.log "$FAULTS_SCRATCH"/*.log 2>/dev/null | head -3) || true
  [ -z "$found" ] || wrong "a sanitizer reports: $found"
}
same_daemon() {
  local now; now=$(lb_daemon_pid "$ROOT_DIR")
  [ "$now" = "$DAEMON" ] || wrong "lazyblobd $DAEMON has died; now it is '$now': $(tail -2 "$LB_LOG")"
}
clean_afterwards() {
  canary_is_unchanged
  no_sanitizer_lines
  same_daemon
}

# judge_row NN: all images of a row.
judge_row() {
  local status=0 line
  "$PYTHON" -B "$CORPUS_LIB/judge_images.py" --cases "$CORPUS/r$1.cases" --repository "$EVIL/r$1" --work "$SCRATCH" \
    --containerd "$CTR_ADDRESS" --lazyblob "$LAZYBLOB" --root "$ROOT_DIR" ${ONLY:+--only "$ONLY"} > "$SCRATCH/judged" || status=$?
  seen "$(tail -1 "$SCRATCH/judged")"
  [ "$status" = 0 ] || while read -r line; do wrong "$line"; done < <(head -n -1 "$SCRATCH/judged")
  remove_everything || wrong "images cannot be removed"
  clean_afterwards
}

row_40() {
  fault 40 "layers with names that lead outside, or are none; containerd's breakouts" \
    "no host path is touched; containerd's tree, or a refusal and containerd's unpacking"
  judge_row 40
}
row_40a() {
  fault 40a "the same breakouts, system calls of daemon and keeper traced" "no name of theirs in a call that takes a path"
  local pid pids=()
  for pid in $(lb_pids "$ROOT_DIR"); do pids+=(-p "$pid"); done
  strace -f -q "${pids[@]}" -e trace=%file -e signal=none -s 4096 -o "$SCRATCH/calls" 2> "$SCRATCH/strace.err" &
  WATCHER=$!
  disown "$WATCHER"
  on_exit "end_process $WATCHER"
  for pid in $(lb_pids "$ROOT_DIR"); do
    wait_until 20 "strace does not attach: $(cat "$SCRATCH/strace.err")" grep -q "^TracerPid:.*[1-9]" "/proc/$pid/status"
  done
  ONLY=breakout-symlink judge_row 40
  end_process "$WATCHER"
  # a name alone, in a directory that is open, is an extraction's; what a new link says is not looked up
  sed -E 's/(symlinkat\()"[^"]*"/\1/; /readlink/d; /openat2\(.*RESOLVE_NO_SYMLINKS/d' "$SCRATCH/calls" |
    grep -E '"[^"]*/[^"]*(unbroken|localetc|localpasswd|dummy|emptied)|(unbroken|localetc|localpasswd|dummy|emptied)/' > "$SCRATCH/leaks" || true
  [ ! -s "$SCRATCH/leaks" ] || wrong "names of an image in a system call: $(head -2 "$SCRATCH/leaks" | cut -c1-300)"
  grep -q 'm/' "$SCRATCH/calls" || wrong "nothing was traced"
  seen "$(wc -l < "$SCRATCH/calls") calls traced"
}
row_41() {
  fault 41 "links: outside, to themselves, to nothing, in cycles and chains" "symbolic links verbatim; as 40"
  judge_row 41
}
row_42() {
  fault 42 "duplicates, whiteouts and opaque markers in every order and shape" "containerd's tree, or a refusal"
  judge_row 42
}
row_43() {
  fault 43 "devices, set-id bits, capabilities, attributes that steer overlayfs" "as containerd, without what steers an overlay"
  judge_row 43
}
row_44() {
  fault 44 "tar headers that lie: numbers, PAX records, sparse maps" "containerd's tree, or a refusal"
  judge_row 44
}

# While a hostile image is looked at, somebody reads a good one.
with_victim() {
  make_image victim --files 12 --size 300000
  local registry=$EVIL
  evil_start "victim=$IMAGE_LAYOUT"
  lb_mount auto "$EVIL/victim:latest" "$SCRATCH/victim"
  EVIL=$registry
  oracle_start "$IMAGE_TREE" "$SCRATCH/victim" --errno none --deadline 20
  echo 5 > "/proc/$DAEMON/clear_refs"   # VmHWM starts anew
  VICTIM_BEFORE=$(awk '/^VmRSS:/ {print $2}' "/proc/$DAEMON/status")
}
victim_is_fine() {
  local grown
  grown=$(($(awk '/^VmHWM:/ {print $2}' "/proc/$DAEMON/status") - VICTIM_BEFORE))
  [ "$grown" -lt "$1" ] || wrong "the daemon took $grown KiB more, $1 are allowed"
  oracle_stop || wrong "the good image beside them: $ORACLE"
  [ "$(oracle_n right)" -gt 0 ] || wrong "the good image was not read: $ORACLE"
  seen "at most $((grown / 1024)) MiB more; beside them: $ORACLE"
  lb_umount "$SCRATCH/victim" || wrong "the good image cannot be unmounted"
}
row_45() {
  fault 45 "bombs (gzip, zstd, table, names), windows and frames that lie, garbage behind streams" \
    "bounded memory; containerd's tree or a refusal; a good image is read meanwhile"
  with_victim
  judge_row 45
  victim_is_fine "$PEAK_KIB"
}
row_46() {
  fault 46 "tables of contents that lie (eStargz, zstd:chunked)" "containerd's bytes, EIO, or a refusal; as 45"
  with_victim
  judge_row 46
  victim_is_fine "$PEAK_KIB"
}

# --- who is asked, and what is said ---

# watch: from here on, whom lazyblobd connects to; watched: "ADDRESS:PORT", each once.
watch() {
  strace -f -q -p "$DAEMON" -e trace=connect,sendmsg,sendto -e signal=none -o "$SCRATCH/connects" 2> "$SCRATCH/strace.err" &
  WATCHER=$!
  disown "$WATCHER"
  on_exit "end_process $WATCHER"
  wait_until 20 "strace does not attach: $(cat "$SCRATCH/strace.err")" grep -q "^TracerPid:.*[1-9]" "/proc/$DAEMON/status"
}
watched() {
  end_process "$WATCHER"
  sed -nE 's/.*sin6?_port=htons\(([0-9]+)\).*inet_addr\("([^"]+)"\).*/\2:\1/p; s/.*sin6_port=htons\(([0-9]+)\).*inet_pton\(AF_INET6, "([^"]+)".*/[\2]:\1/p' \
    "$SCRATCH/connects" | sort -u
}
# asked_only WHAT HOST:PORT…: nobody else was connected to since `watch`
asked_only() {
  local what=$1 others
  shift
  others=$(watched | tee "$SCRATCH/asked" | grep -vxF "$(printf '%s\n' "$@")" | tr '\n' ' ') || true
  grep -q send "$SCRATCH/connects" || wrong "$what: nothing was watched"
  [ -z "$others" ] || wrong "$what: others were asked: $others"
}
# witness_start ADDRESS…: sets WITNESS_LOG, WITNESS_PORT
witness_start() {
  local pid
  WITNESS_LOG=$SCRATCH/witness.log
  rm -f "$SCRATCH/witness.port"
  : > "$WITNESS_LOG"
  "$PYTHON" -B "$CORPUS_LIB/witness.py" --log "$WITNESS_LOG" --port-file "$SCRATCH/witness.port" --port "$WITNESS_PORT" "$@" &
  pid=$!
  disown "$pid"
  on_exit "end_process $pid"
  wait_until 20 "the witness did not start" test -s "$SCRATCH/witness.port"
}
no_credentials_at_witness() {
  ! grep -qi '"authorization"' "$WITNESS_LOG" || wrong "$1: credentials for another host: $(grep -i -m1 authorization "$WITNESS_LOG" | cut -c1-300)"
}
# credentials HOST…: docker's config for the client, with $SECRET for them
credentials() {
  local host
  export DOCKER_CONFIG=$SCRATCH/docker
  mkdir -p "$DOCKER_CONFIG"
  "$PYTHON" -c 'import base64,json,sys; print(json.dumps({"auths": {h: {"auth": base64.b64encode(("tester:" + sys.argv[1]).encode()).decode()} for h in sys.argv[2:]}}))' \
    "$SECRET" "$@" > "$DOCKER_CONFIG/config.json"
}

# pulled TAG: through the snapshotter by plain ctr, which sends no labels of its own, and what is seen is what overlayfs has
pulled() {
  local tag=$1 at=$SCRATCH/at-$1 how
  for how in overlayfs lazyblob; do
    ctr_ images pull --plain-http --snapshotter "$how" "$EVIL/r48:$tag" > "$SCRATCH/pull.out" 2>&1 ||
      { wrong "$tag: not pulled into $how: $(tail -1 "$SCRATCH/pull.out")"; return 0; }
    mkdir -p "$at.$how"
    ctr_ images mount --snapshotter "$how" "$EVIL/r48:$tag" "$at.$how" > /dev/null || { wrong "$tag: not mounted from $how"; return 0; }
  done
  "$PYTHON" -B "$E2E_DIR/tree_diff.py" --allow toc-files --allow toc-seconds --allow implied-dir-mtime --allow root-mtime \
    "$at.overlayfs" "$at.lazyblob" > "$SCRATCH/diff" 2>&1 || wrong "$tag: $(head -3 "$SCRATCH/diff")"
  for how in overlayfs lazyblob; do ctr_ images unmount --snapshotter "$how" --rm "$at.$how" > /dev/null || wrong "unmount"; done
  ctr_ images rm --sync "$EVIL/r48:$tag" > /dev/null || wrong "$tag: cannot be removed"
}
row_48() {
  fault 48 "annotations that become labels: references elsewhere, URLs, skipverify, id maps" \
    "no other host is asked; if all of a client's labels are an image's, that host for a manifest, without credentials"
  local tag requests
  witness_start 127.0.0.9
  credentials "127.0.0.9:$WITNESS_PORT"
  watch
  for tag in plain reference-only urls skip-verify id-maps remote; do pulled "$tag"; done
  asked_only "labels of no whole family" "$EVIL"
  # a client that says where the image is from, and an image that says another place: neither is believed
  watch
  for tag in cri-family stargz-family; do
    ctr_remote images rpull --plain-http --snapshotter lazyblob "$EVIL/r48:$tag" > "$SCRATCH/pull.out" 2>&1 || wrong "$tag: $(tail -1 "$SCRATCH/pull.out")"
    ctr_ images rm --sync "$EVIL/r48:$tag" > /dev/null || wrong "$tag: cannot be removed"
  done
  asked_only "labels that contradict the client's" "$EVIL"
  [ ! -s "$WITNESS_LOG" ] || wrong "the witness was asked: $(head -1 "$WITNESS_LOG")"
  for tag in cri-family stargz-family; do pulled "$tag"; done
  requests=$(grep -c '"method"' "$WITNESS_LOG") || true
  grep '"method"' "$WITNESS_LOG" | grep -vE '"(GET|HEAD)", "path": "/v2/(internal/app/manifests/1)?"' > "$SCRATCH/others" || true
  [ ! -s "$SCRATCH/others" ] || wrong "the witness was asked for more than a manifest: $(head -1 "$SCRATCH/others")"
  no_credentials_at_witness labels
  [ -z "${VERBOSE:-}" ] || { grep r48 "$LB_LOG"; cat "$WITNESS_LOG"; } >&2
  seen "8 images pulled, $requests requests to the host that two of them named"
  remove_everything || wrong "images cannot be removed"
  clean_afterwards
}

# lying WHAT TAG NEEDLE [FAULT]: what the registry answers is refused
lying() {
  local what=$1 ref=$EVIL/r49${2/#[a-z]/:&} needle=$3 started
  ref=${ref/:@/@}
  [ -z "${4:-}" ] || evil_fault "$4"
  started=$(now_ms)
  lb_refused lb --root "$ROOT_DIR" mount --plain-http --progress none "$ref" "$SCRATCH/at" || wrong "$what: $(cat "$LB_ERR" | head -c 300)"
  [ -z "$needle" ] || grep -qiE -- "$needle" "$LB_ERR" || wrong "$what: '$needle' is not in: $(cat "$LB_ERR")"
  [ $(($(now_ms) - started)) -lt 60000 ] || wrong "$what: took $(($(now_ms) - started)) ms"
  LIES=$((LIES + 1))
  evil_clear
  [ -z "${VERBOSE:-}" ] || log "$what: $(cat "$LB_ERR")"
  mounted_nothing "$what"
}
mounted_nothing() { ! mountpoint -q "$SCRATCH/at" || { wrong "$1: something is mounted"; lb_umount "$SCRATCH/at" || true; }; }
manifest_of() { evil GET "../v2/r49/manifests/$1" 2>/dev/null; }
row_49() {
  fault 49 "a registry that lies: digests, sizes, types, headers, realms, URLs of layers; answers without end" \
    "refused in one line, in bounded time and memory; nobody else is asked; credentials stay"
  local tag LIES=0 digest mani="application/vnd.oci.image.manifest.v1+json"
  mkdir -p "$SCRATCH/at"
  witness_start 127.0.0.9 169.254.169.254 10.99.0.1
  watch
  for tag in both-kinds index-with-layers type-of-index size-too-small size-too-big size-huge size-negative config-size-wrong \
    config-is-layer one-layer-too-many no-layers layers-501 manifest-5-mib digest-of-path foreign; do
    lying "$tag" "$tag" "r49"
  done
  digest=$(skopeo inspect --raw --tls-verify=false "docker://$EVIL/r49:zero-layers" | sha256sum | cut -d' ' -f1)
  local at="\"path_contains\": \"/manifests/\", \"count\": -1"
  lying "another manifest under this digest" "@sha256:$digest" "digest" "{$at, \"flip_bit_of_byte\": 20}"
  lying "a digest header that lies" zero-layers "" "{$at, \"headers\": {\"Docker-Content-Digest\": \"sha256:$(printf '1%.0s' {1..64})\"}}"
  lying "a type header that lies" zero-layers "" "{$at, \"headers\": {\"Content-Type\": \"application/vnd.oci.image.index.v1+json\"}}"
  lying "a manifest of 10 GiB, it says" zero-layers "" "{$at, \"headers\": {\"Content-Length\": \"10737418240\"}}"
  lying "a header of 1 MiB" zero-layers "" "{$at, \"huge_header_bytes\": 1048576}"
  lying "gzip that is none" zero-layers "" "{$at, \"claim_gzip\": true}"
  lying "a document nested 3000 deep" zero-layers "" "{$at, \"status\": 200, \"body\": \"$(printf '[%.0s' {1..3000})\", \"headers\": {\"Content-Type\": \"$mani\"}}"
  lying "a page of HTML" zero-layers "" "{$at, \"status\": 200, \"body\": \"<html>\", \"headers\": {\"Content-Type\": \"text/html\"}}"
  lying "401 without end" zero-layers "" "{$at, \"status\": 401, \"headers\": {\"WWW-Authenticate\": \"Basic realm=x\"}}"
  lying "a realm that is no URL" zero-layers "" "{$at, \"status\": 401, \"headers\": {\"WWW-Authenticate\": \"Bearer realm=\\\"file:///etc/passwd\\\"\"}}"
  lying "a realm on the link" zero-layers "" "{$at, \"status\": 401, \"headers\": {\"WWW-Authenticate\": \"Bearer realm=\\\"http://169.254.169.254:$WITNESS_PORT/token\\\"\"}}"
  lying "a redirect to the link" zero-layers "" "{$at, \"status\": 307, \"headers\": {\"Location\": \"http://169.254.169.254:$WITNESS_PORT/x\"}}"
  asked_only "a registry that lies" "$EVIL"
  seen "$LIES lies refused"
  lb_mount auto "$EVIL/r49:zero-layers" "$SCRATCH/at" && {
    [ -z "$(ls -A "$SCRATCH/at")" ] || wrong "an image without layers shows $(ls -A "$SCRATCH/at")"
    ! touch "$SCRATCH/at/x" 2> /dev/null || wrong "an image without layers can be written to"
    lb_umount "$SCRATCH/at" || wrong "umount"
    seen "an image without layers is empty and read-only"
  }
  public_registry_lies
  [ ! -s "$WITNESS_LOG" ] || wrong "the witness was asked: $(head -2 "$WITNESS_LOG" | tr '\n' ' ')"
  clean_afterwards
}
# A registry on an address that is nobody's network, with credentials: who else is told them?
public_registry_lies() {
  local local_registry=$EVIL realm
  ip address add 203.0.113.5/32 dev lo 2> /dev/null || true
  evil_start --address 203.0.113.5 "r49=$CORPUS/r49"
  serve_plain_http "$EVIL"
  credentials "$EVIL"
  watch
  for realm in http://127.0.0.9 http://10.99.0.1 http://169.254.169.254 http://localhost "http://[::1]" http://0x7f000009 http://2130706441; do
    evil POST auth "{\"kind\": \"bearer\", \"username\": \"tester\", \"password\": \"$SECRET\", \"realm\": \"$realm:$WITNESS_PORT/token\"}" > /dev/null
    lying "realm $realm" zero-layers "" ""
  done
  asked_only "realms elsewhere" "$EVIL"
  evil POST auth '{"kind": "none"}' > /dev/null
  watch
  for realm in http://127.0.0.9 http://10.99.0.1 http://169.254.169.254; do
    lying "a manifest redirected to $realm" both-kinds "" "{\"path_contains\": \"/manifests/\", \"status\": 307, \"headers\": {\"Location\": \"$realm:$WITNESS_PORT/b\"}}"
  done
  asked_only "redirects to this machine" "$EVIL"
  end_process "$EVIL_PID"
  EVIL=$local_registry
}

# found_nowhere WHAT PATTERN…: in no log, answer, file of the state, command line or environment of lazyblob's
found_nowhere() {
  local what=$1 pid patterns=()
  shift
  for pid in "$@"; do [ -z "$pid" ] || patterns+=(-e "$pid"); done
  for pid in $(lb_pids "$ROOT_DIR"); do cat "/proc/$pid/cmdline" "/proc/$pid/environ"; done > "$SCRATCH/of-processes"
  lb --root "$ROOT_DIR" status > "$SCRATCH/said-status" 2>&1
  lb --root "$ROOT_DIR" status --json > "$SCRATCH/said-json" 2>&1
  find "$ROOT_DIR" "$LB_RUN" "$LB_LOG" "$SCRATCH"/said-* "$SCRATCH/of-processes" "$CTR_DIR/log" -xdev -type f \
    -exec grep -laF "${patterns[@]}" {} + > "$SCRATCH/found" || true
  [ ! -s "$SCRATCH/found" ] || { wrong "$what is in $(tr '\n' ' ' < "$SCRATCH/found")"; return 1; }
}
row_50() {
  fault 50 "secrets: a password, tokens, signed URLs, through failures of every kind" "in no log, error, status or file; only where they are for"
  local at=$SCRATCH/at told
  mkdir -p "$at"
  cp -r "$CORPUS/r49" "$SCRATCH/layout"
  evil_start "r50=$SCRATCH/layout"
  credentials "$EVIL"
  serve_plain_http "$EVIL"
  say() { lb --root "$ROOT_DIR" mount --plain-http "$EVIL/r50:$1" "$at" > "$SCRATCH/said-$2" 2>&1; }
  evil POST auth '{"kind": "basic", "username": "tester", "password": "another"}' > /dev/null
  ! say size-too-big wrong-password || wrong "mounted with a wrong password"
  evil POST auth "{\"kind\": \"bearer\", \"username\": \"tester\", \"password\": \"another\"}" > /dev/null
  ! say size-too-big wrong-token || wrong "mounted with a wrong password"
  evil POST auth "{\"kind\": \"bearer\", \"username\": \"tester\", \"password\": \"$SECRET\"}" > /dev/null
  evil POST cdn '{"enabled": true, "ttl_ms": 600000}' > /dev/null
  ! say size-too-big bad-image || wrong "a layer of another size is mounted"
  evil_fault '{"path_contains": "/cdn/", "status": 500, "body": "no"}'
  ! say size-too-small bad-cdn || wrong "mounted without the layer"
  evil_clear
  make_image good --files 4 --size 200000
  evil_start "r50=$IMAGE_LAYOUT"   # another registry: its own secrets
  evil POST auth "{\"kind\": \"bearer\", \"username\": \"tester\", \"password\": \"$SECRET\"}" > /dev/null
  evil POST cdn '{"enabled": true, "ttl_ms": 600000}' > /dev/null
  credentials "$EVIL"
  say latest good || wrong "not mounted: $(tail -1 "$SCRATCH/said-good")"
  oracle "$IMAGE_TREE" "$at" f00 || wrong "$ORACLE"
  evil_fault '{"path_contains": "/cdn/", "status": 403, "body": "<Error>ExpiredToken</Error>"}'
  oracle "$IMAGE_TREE" "$at" --deadline 60 f01 || wrong "$ORACLE"
  [ "$(oracle_n EIO)" = 1 ] || wrong "f01 was read without its bytes: $ORACLE"
  ctr_ images pull --plain-http --snapshotter lazyblob --user "tester:$SECRET" "$EVIL/r50:latest" > "$SCRATCH/said-ctr" 2>&1 || true
  ctr_remote images rpull --plain-http --snapshotter lazyblob --user "tester:$SECRET" "$EVIL/r50:latest" > "$SCRATCH/said-rpull" 2>&1 || true
  told=$(evil GET log | "$PYTHON" -c 'import json,sys
log = json.load(sys.stdin)
print(*sorted({r["authorization"].split()[-1] for r in log if r["authorization"]} | {r["query"] for r in log if "signature" in r["query"]}), sep="\n")
sys.stderr.write("%d" % sum(1 for r in log if r["cdn"] and r["authorization"]))' 2> "$SCRATCH/at-cdn")
  [ "$(cat "$SCRATCH/at-cdn")" = 0 ] || wrong "credentials were sent along a redirect"
  [ "$(wc -l <<< "$told")" -ge 3 ] || wrong "too few secrets were in use: $told"
  mapfile -t told <<< "$told"
  found_nowhere "a secret" "$SECRET" "signature=" "$(printf 'tester:%s' "$SECRET" | base64 -w0)" "${told[@]}"
  seen "$((${#told[@]} + 2)) secrets looked for in $(find "$ROOT_DIR" -xdev -type f | wc -l) files, logs and answers"
  # the search itself can find
  printf '%s' "$SECRET" > "$ROOT_DIR/planted"
  (wrong() { :; }; ! found_nowhere planted "$SECRET") || wrong "the search finds nothing at all"
  rm "$ROOT_DIR/planted"
  lb_umount "$at" || wrong "umount"
  remove_everything || wrong "images cannot be removed"
  clean_afterwards
}

SECRET=hunter2-$(tr -dc a-z0-9 < /dev/urandom | head -c 24 || true)
WITNESS_PORT=7399   # in a network namespace of our own
PEAK_KIB=${PEAK_KIB:-1048576}
for address in 169.254.169.254 10.99.0.1; do ip address add "$address/32" dev lo; done
make_canary
CANARY_STATE=$SCRATCH/canary.before
canary_state > "$CANARY_STATE"
"$PYTHON" -B "$CORPUS_LIB/hostile_images.py" "$CORPUS" --canary "$CANARY" --witness "127.0.0.9:$WITNESS_PORT" ${LAZYBLOB_LONG:+--long}
evil_start $(for row in 40 41 42 43 44 45 46 48 49; do echo "r$row=$CORPUS/r$row"; done)
faults_daemon shared $'log_level = "debug"\n[fuse]\nread_deadline = "20s"\n[snapshotter]\nresolve_timeout = "20s"'
serve_plain_http "$EVIL"
DAEMON=$(lb_daemon_pid "$ROOT_DIR")
CTR_PARENT=$SCRATCH CTR_EXTRA=$(proxy_plugin lazyblob)
containerd_start containerd lazyblob
faults_main "$@"

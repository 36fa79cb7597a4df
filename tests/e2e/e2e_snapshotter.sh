#!/bin/bash
# lazyblobd behind Debian's containerd, as its proxy plugin "lazyblob": images of docker-registry are pulled by
# ctr-remote and by `lazyblob pull`, and run by runc. Parts (default: all):
#   lazy      nothing but manifests and configs in containerd, at most 30 % of an image fetched when Python runs; all gone
#             after the images are
#   trees     what a lazily pulled image looks like is what containerd unpacks into overlayfs; after changes too
#   restart   kill -9 of the daemon below a running container; a stop of daemon and keeper: no request is needed
#   kills     kill -9 of containerd at random points of pull, commit and remove
#   fallback  layers that cannot be lazy are unpacked by containerd, with a reason in `lazyblob status`
#   refusals  roots and sockets that others could write to
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry judge lazyblob containerd snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo containerd ctr ctr-remote runc
make_scratch
chmod 0711 "$SCRATCH"
private_programs
forget_cgroups
mkdir -p /run/containerd
mount -t tmpfs -o mode=0711 shims /run/containerd   # sockets of shims: of this run alone
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
START='import json, re, sys; print(json.dumps(list(range(3))))'
CTR_PARENT=$SCRATCH

# machine NAME [TOML of lazyblobd]: registry, lazyblobd, containerd, all fresh.
machine() {
  registry_start "snapshotter-$1" "$WORK/images/registry"
  serve_configure "$1" "${2:-}"
  serve_plain_http "$REG"
  serve_start
  CTR_EXTRA=$(proxy_plugin lazyblob)
  containerd_start "containerd-$1" lazyblob
}
machine_end() {
  remove_everything || fail "$1: images cannot be removed"
  nothing_left "$1"
  containerd_stop
  serve_stop
  registry_stop
}
nothing_left() {
  local left; left=$(left_behind)
  [ -z "$left" ] || fail "$1: left behind: $(head -c 600 <<< "$left")"
}
rpull() { ctr_remote images rpull --plain-http --snapshotter lazyblob "$1" > "$SCRATCH/pull.out" 2>&1; }
lbpull() {
  lb --root "$ROOT_DIR" pull --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --snapshotter lazyblob --plain-http --progress none "$1" \
    > "$SCRATCH/pull.out" 2>&1
}
run() {  # ID REF CMD…: a container of its own, gone afterwards
  local id=$1 ref=$2
  shift 2
  ctr_ run --rm --snapshotter "$CTR_SNAPSHOTTER" "$ref" "$id" "$@"
}

part_lazy() {
  local limit=8388608 format how mark size got hello cached
  for how in rpull lbpull; do
    machine "lazy-$how" "[cache]
max_bytes = $limit"
    for format in estargz zstdchunked gzip; do
      size=$(image_size "debian:$format")
      if [ "$format" = gzip ]; then
        lb --root "$ROOT_DIR" index --plain-http --progress none "$REG/debian:gzip" > "$SCRATCH/index.out" 2>&1 ||
          { fail "$how: lazyblob index: $(tail -1 "$SCRATCH/index.out")"; continue; }
      fi
      mark=$(registry_mark)
      $how "$REG/debian:$format" || { fail "$how debian:$format: $(tail -1 "$SCRATCH/pull.out")"; continue; }
      run "json-$format" "$REG/debian:$format" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
      grep -qx '\[0, 1, 2\]' "$SCRATCH/out" || fail "$how debian:$format: python3 said $(tail -1 "$SCRATCH/out")"
      got=$(fetched_since "$mark")
      [ "$got" -le $((size * 30 / 100)) ] || fail "$how debian:$format: $got of $size bytes fetched, more than 30 %"
      [ "$(content_has_layers "debian:$format")" = 0 ] || fail "$how debian:$format: containerd has layer blobs"
      run "numpy-$format" "$REG/debian:$format" /usr/bin/python3 /app/hello.py > "$SCRATCH/out" 2>&1 || true
      hello=$(grep -c 'hello from python 3.*numpy.*trace' "$SCRATCH/out") || true
      [ "$hello" = 1 ] || fail "$how debian:$format: hello.py said $(tail -1 "$SCRATCH/out")"
      log "$how debian:$format: python3 $(megabytes "$got") of $(megabytes "$size") MB ($(percent "$got" "$size") %)," \
        "and numpy $(megabytes "$(fetched_since "$mark")") MB"
    done
    [ "$(serve_mounts | wc -l)" -gt 0 ] || fail "$how: no mount while lazy images are there"
    machine_end_check_cache "$how" "$limit"
  done
}
machine_end_check_cache() {
  local before cached
  before=$(cache_bytes)
  [ "$before" -gt "$2" ] || fail "$1: the cache never came to its limit"
  remove_everything || fail "$1: images cannot be removed"
  nothing_left "$1"
  cached=$(cache_bytes)
  [ "${cached:-0}" -le "$2" ] || fail "$1: the cache holds $cached bytes, its limit is $2"
  log "$1: cache $(megabytes "$before") MB, after removal $(megabytes "${cached:-0}") MB, limit $(megabytes "$2") MB"
  machine_end "$1"
}

# same_tree WHAT A B OPTIONS…
same_tree() {
  local what=$1 a=$2 b=$3
  shift 3
  "$PYTHON" "$E2E_DIR/tree_diff.py" --max-lines 20 --allow-file "$JUDGE_ALLOW" --allow dropped-trusted-xattrs \
    --allow clamped-mtime "$@" "$a" "$b" > "$SCRATCH/diff" 2>&1 || { fail "$what: trees differ"; cat "$SCRATCH/diff" >&2; }
}
mount_key() {  # SNAPSHOTTER KEY DIR
  local at=$3
  mkdir -p "$at"
  eval "$(ctr_ snapshots --snapshotter "$1" mounts "$at" "$2")" || die "cannot mount snapshot $2 of $1"
}
part_trees() {
  local format snapshotter options changed
  machine trees
  judge_tree debian gzip
  for format in gzip estargz zstdchunked; do
    options=()
    [ "$format" = gzip ] || options=(--allow toc-files --allow toc-seconds)
    rpull "$REG/debian:$format" || { fail "rpull debian:$format: $(tail -1 "$SCRATCH/pull.out")"; continue; }
    ctr_ images pull --plain-http --snapshotter overlayfs "$REG/debian:$format" > /dev/null 2>&1 || die "pull into overlayfs"
    for snapshotter in overlayfs lazyblob; do
      mkdir -p "$SCRATCH/$snapshotter-$format"
      ctr_ images mount --snapshotter "$snapshotter" "$REG/debian:$format" "$SCRATCH/$snapshotter-$format" > /dev/null ||
        fail "debian:$format cannot be mounted from $snapshotter"
    done
    same_tree "debian:$format" "$SCRATCH/overlayfs-$format" "$SCRATCH/lazyblob-$format" "${options[@]}"
    for snapshotter in overlayfs lazyblob; do
      ctr_ images unmount --snapshotter "$snapshotter" --rm "$SCRATCH/$snapshotter-$format" > /dev/null || fail "unmount"
      ctr_ run --snapshotter "$snapshotter" "$REG/debian:$format" "changes-$snapshotter-$format" /usr/bin/python3 -c \
        "$(cat "$E2E_DIR/lib/container_changes.py")" > "$SCRATCH/out" 2>&1 || true
      changed=$(grep -c '^changed' "$SCRATCH/out") || true
      [ "$changed" = 1 ] || fail "changes in debian:$format on $snapshotter: $(tail -1 "$SCRATCH/out")"
      mount_key "$snapshotter" "changes-$snapshotter-$format" "$SCRATCH/changed-$snapshotter-$format"
    done
    same_tree "debian:$format changed" "$SCRATCH/changed-overlayfs-$format" "$SCRATCH/changed-lazyblob-$format" "${options[@]}"
    for snapshotter in overlayfs lazyblob; do umount "$SCRATCH/changed-$snapshotter-$format"; done
    log "debian:$format: $(tail -1 "$SCRATCH/diff")"
  done
  machine_end trees
}

daemon_is_new() { local now; now=$(lb_daemon_pid "$ROOT_DIR"); [ -n "$now" ] && [ "$now" != "$1" ]; }
task_exec() { ctr_ tasks exec --exec-id "e$RANDOM$RANDOM" "$@"; }
says_json() { grep -qx '\[0, 1, 2\]' "$1"; }
part_restart() {
  local before after old mark i
  machine restart
  rpull "$REG/debian:estargz" || { fail "rpull: $(tail -1 "$SCRATCH/pull.out")"; return 0; }
  lbpull "$REG/debian:zstdchunked" || { fail "lazyblob pull: $(tail -1 "$SCRATCH/pull.out")"; return 0; }
  ctr_ run -d --snapshotter lazyblob "$REG/debian:estargz" long /usr/bin/sleep infinity || { fail "run"; return 0; }
  task_exec long /usr/bin/python3 -c "$START" > "$SCRATCH/out" || fail "exec before"
  run warm "$REG/debian:zstdchunked" /usr/bin/python3 -c "$START" > "$SCRATCH/out" || fail "python3 of zstdchunked"
  before=$(serve_mounts)
  sleep 0.3
  mark=$(registry_mark)
  for i in 1 2 3; do
    old=$(lb_daemon_pid "$ROOT_DIR")
    kill -9 "$old"
    wait_until 20 "no successor of lazyblobd $old" daemon_is_new "$old"
    wait_until 20 "the successor does not answer" lb --root "$ROOT_DIR" status
  done
  ctr_ snapshots --snapshotter lazyblob ls > /dev/null || fail "containerd was refused by the snapshotter after a kill"
  drop_caches
  task_exec long /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" || fail "the container after kills of the daemon: $(tail -1 "$SCRATCH/out")"
  run again "$REG/debian:zstdchunked" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" || fail "a new container after kills of the daemon: $(tail -1 "$SCRATCH/out")"
  after=$(serve_mounts)
  [ "$before" = "$after" ] || fail "mounts after kills of the daemon: $(diff <(echo "$before") <(echo "$after") | head -5)"
  [ "$(requests_since "$mark")" = 0 ] || fail "$(requests_since "$mark") registry requests after kills of the daemon"
  # something that nobody read yet comes from the registry, through the successor
  task_exec long /usr/bin/sha256sum /app/size-3145728 > "$SCRATCH/out" 2>&1 || fail "cold bytes after a kill: $(cat "$SCRATCH/out")"
  registry_stop
  drop_caches
  task_exec long /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" || fail "cached bytes without a registry: $(tail -1 "$SCRATCH/out")"
  ctr_ tasks kill -s KILL long > /dev/null
  wait_until 10 "the container does not end" sh -c "! ctr --address '$CTR_ADDRESS' tasks ls | grep -q RUNNING"
  ctr_ tasks rm long > /dev/null 2>&1 || true
  ctr_ containers rm long
  # daemon and keeper end and start again, still without a registry
  serve_stop
  [ "$(serve_mounts | wc -l)" = 0 ] || fail "mounts after the keeper's end: $(serve_mounts | head -3)"
  serve_start
  wait_until 10 "containerd does not come back to the snapshotter" ctr_ snapshots --snapshotter lazyblob ls
  after=$(serve_mounts)
  [ "$before" = "$after" ] || fail "mounts after a new start: $(diff <(echo "$before") <(echo "$after") | head -5)"
  for i in estargz zstdchunked; do
    run "restarted-$i" "$REG/debian:$i" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
    says_json "$SCRATCH/out" || fail "$i after a new start: $(tail -1 "$SCRATCH/out")"
  done
  log "restart: $(wc -l <<< "$after") mounts came back, no request"
  machine_end restart
}

prepare_and_commit() {  # ROUND: until containerd is gone
  local i
  for ((i = 0; i < 1000; i++)); do
    ctr_ snapshots --snapshotter lazyblob prepare "k$1-$i" && ctr_ snapshots --snapshotter lazyblob commit "c$1-$i" "k$1-$i" ||
      return 1
  done > /dev/null 2>&1
}
# client_ends PID: its status. A client that waits for the containerd that is gone dies like it.
client_ends() {
  local i children
  for ((i = 0; i < 40; i++)); do
    kill -0 "$1" 2>/dev/null || { wait "$1"; return; }
    sleep 0.05
  done
  children=$(pgrep -P "$1") || true
  kill -9 "$1"
  [ -z "$children" ] || kill $children 2>/dev/null || true
  return 1
}
part_kills() {
  local round what seed=${LAZYBLOB_SEED:-$RANDOM} pid ref key through=0 started
  local -A takes=([commit]=500)
  RANDOM=$seed
  log "kills: seed $seed (LAZYBLOB_SEED)"
  machine kills
  ref=$REG/debian:estargz
  for what in pull remove; do   # how long they take sets how late they may be killed
    started=$(now_ms)
    case $what in pull) rpull "$ref" ;; remove) ctr_ images rm --sync "$ref" > /dev/null ;; esac || fail "$what"
    takes[$what]=$((($(now_ms) - started) * 3 / 4))   # the rest is the client's own end
  done
  for ((round = 0; round < ${LAZYBLOB_KILL_ROUNDS:-15}; round++)); do
    case $((round % 3)) in
      0) what=pull; rpull "$ref" & ;;
      1) what=commit; prepare_and_commit "$round" & ;;
      2) what=remove; ctr_ images rm --sync "$ref" > /dev/null 2>&1 & ;;
    esac
    pid=$!
    sleep "$(printf '%d.%03d' $((key = RANDOM % takes[$what], key / 1000)) $((key % 1000)))"
    containerd_kill
    if client_ends "$pid"; then through=$((through + 1)); fi
    containerd_launch
    case $what in
      pull)
        rpull "$ref" || fail "round $round: pull again: $(tail -1 "$SCRATCH/pull.out")"
        run "after-$round" "$ref" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
        says_json "$SCRATCH/out" || fail "round $round: python3: $(tail -1 "$SCRATCH/out")" ;;
      commit)
        # what containerd had not noted yet when it died is unknown to it, and goes when it collects
        remove_everything || fail "round $round: nothing can be removed"
        for key in $(ctr_ snapshots --snapshotter lazyblob ls | awk '{print $1}' | grep -E "^[kc]$round-"); do
          ctr_ snapshots --snapshotter lazyblob rm "$key" || fail "round $round: remove $key"
        done
        # nor does it list a name that it has and we have committed
        ctr_ snapshots --snapshotter lazyblob rm "k$round-0" > /dev/null 2>&1 || true
        ctr_ snapshots --snapshotter lazyblob prepare "k$round-0" > /dev/null || fail "round $round: prepare again"
        ctr_ snapshots --snapshotter lazyblob commit "c$round-0" "k$round-0" || fail "round $round: commit again"
        ctr_ snapshots --snapshotter lazyblob rm "c$round-0" || fail "round $round: remove" ;;
      remove) ctr_ images rm --sync "$ref" > /dev/null 2>&1 || fail "round $round: remove again" ;;
    esac
  done
  log "kills: $round rounds, a pull takes ${takes[pull]} ms, a removal ${takes[remove]} ms; $through were through before"
  [ $((through * 3)) -le $((round * 2)) ] || fail "too few operations were interrupted"
  machine_end kills
}
part_fallback() {
  local mark
  machine fallback '[snapshotter]
plain_layers = "client"'
  # a plain layer without an index, left to the client by configuration
  rpull "$REG/debian:gzip" || fail "rpull of a plain image: $(tail -1 "$SCRATCH/pull.out")"
  run plain "$REG/debian:gzip" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" || fail "a plain image: python3 said $(tail -1 "$SCRATCH/out")"
  [ "$(content_has_layers debian:gzip)" = 4 ] || fail "containerd should have fetched the layers itself"
  status_says no-index
  # annotations by an image's author that name another registry, where all of it lies: nobody asks it
  local shared=$REG shared_log=$REG_LOG family
  remove_everything || fail "the plain image cannot be removed"
  judge_tree made/pax gzip
  skopeo copy -q --preserve-digests --src-tls-verify=false "docker://$REG/made/pax:gzip" "oci:$SCRATCH/author:image" || die "skopeo"
  registry_start snapshotter-author "$SCRATCH/author-registry"
  serve_plain_http "$REG"
  sleep 0.3
  mark=$(wc -l < "$shared_log")
  for family in cri stargz; do
    author_image "$family" "$shared/made/pax:gzip"
    rpull "$REG/author/$family:latest" || fail "labels of another registry ($family): $(tail -1 "$SCRATCH/pull.out")"
    author_tree "$family"
  done
  sleep 0.3
  [ "$(wc -l < "$shared_log")" = "$mark" ] || fail "the registry that an image's author named was asked"
  status_says bad-labels
  machine_end fallback
}
author_image() {  # FAMILY REFERENCE: author/FAMILY:latest in $REG, annotated with labels that name REFERENCE
  "$E2E_DIR/lib/foreign_labels.py" "$SCRATCH/author" image "$1" "$2" || die "foreign_labels.py"
  skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$SCRATCH/author:$1" "docker://$REG/author/$1:latest" || die "push"
}
author_tree() {
  mkdir -p "$SCRATCH/author-$1"
  ctr_ images mount --snapshotter lazyblob "$REG/author/$1:latest" "$SCRATCH/author-$1" > /dev/null || fail "mount of author/$1"
  same_tree "author/$1" "$JUDGE" "$SCRATCH/author-$1"
  ctr_ images unmount --snapshotter lazyblob --rm "$SCRATCH/author-$1" > /dev/null || fail "unmount of author/$1"
  ctr_ images rm --sync "$REG/author/$1:latest" > /dev/null || fail "remove author/$1"
}
status_says() {
  lb --root "$ROOT_DIR" status --json > "$SCRATCH/status.json" 2>&1 && grep -qF "$1" "$SCRATCH/status.json" ||
    fail "status does not say $1: $(tr -d '\n' < "$SCRATCH/status.json")"
  lb --root "$ROOT_DIR" status 2>&1 | grep -qF "$1" || fail "plain status does not say $1"
}

# serve_refused WHAT NEEDLE: lazyblobd does not start, with one line that names the place.
serve_refused() {
  lb_refused timeout 20 "$LAZYBLOBD" --config "$LB_CONFIG" --root "$ROOT_DIR" --address "$LB_SOCKET" || { fail "$1"; return 0; }
  grep -qF -- "$2" "$LB_ERR" || fail "$1: the line does not name $2: $(cat "$LB_ERR")"
}
part_refusals() {
  serve_configure refusals
  chmod 0777 "$ROOT_DIR"; serve_refused "a root that all may write to" "$ROOT_DIR"
  chmod 0700 "$ROOT_DIR"
  chown 65534:65534 "$ROOT_DIR"; serve_refused "another's root" "$ROOT_DIR"
  chown 0:0 "$ROOT_DIR"
  mkdir -p "$LB_RUN"
  chmod 0777 "$LB_RUN"; serve_refused "a socket directory that all may write to" "$LB_RUN"
  chmod 0700 "$LB_RUN"
  chown 65534:65534 "$LB_RUN"; serve_refused "another's socket directory" "$LB_RUN"
  chown 0:0 "$LB_RUN"
  cp "$LB_CONFIG" "$LB_CONFIG.good"
  echo 'no_such_key = 1' | cat - "$LB_CONFIG.good" > "$LB_CONFIG"
  serve_refused "an unknown key" "$LB_CONFIG:1"
  cp "$LB_CONFIG.good" "$LB_CONFIG"
  touch "$LB_SOCKET"; serve_refused "a file where the socket goes" "$LB_SOCKET"
  rm "$LB_SOCKET"
  rmdir "$LB_RUN"
  serve_start
  [ "$(stat -c '%a %u' "$LB_SOCKET")" = "600 0" ] || fail "the socket is $(stat -c '%a %u' "$LB_SOCKET"), not 600 of root"
  [ "$(stat -c '%a %u' "$LB_RUN")" = "700 0" ] || fail "its directory is $(stat -c '%a %u' "$LB_RUN"), not 700 of root"
  local second=$ROOT_DIR
  lb_root refusals-second
  serve_refused "a socket that is served" "$LB_SOCKET"
  ROOT_DIR=$second
  serve_stop
}

[ $# -gt 0 ] || set -- refusals lazy trees restart kills fallback
for part in "$@"; do started=$(now_ms); "part_$part"; log "$part: $(( ($(now_ms) - started) / 1000 )) s"; done
log "$failures failures"
[ "$failures" = 0 ]

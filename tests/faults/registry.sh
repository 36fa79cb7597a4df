#!/bin/bash
# Rows 1 to 20 of the fault table: registries, networks, names, certificates and credentials that fail. See
# docs/FAULTS.md.
#   registry.sh [ROW…]
# LAZYBLOB_LONG=1: row 5 goes on for a minute, longer than the kernel would wait.
. "$(dirname "$0")/lib/faults.sh"
need_tools iptables openssl containerd ctr ctr-remote
. "$FAULTS_LIB/registry_rows.sh"

row_01() {
  fault 1 "registry stopped during reads (SIGSTOP)" "cached bytes served; a miss is EIO within the deadline; a later read tries afresh"
  lazy down --files 6 --size 1048576
  all_right "before" f00
  kill -STOP "$EVIL_PID"
  outcomes "down" "1 right, 1 EIO" f00 f03
  kill -CONT "$EVIL_PID"
  comes_back f03
  all_right "back"
}

row_01a() {
  fault 1a "registry answers with TCP resets (iptables REJECT) and its connections break" "as 1"
  lazy reset --files 6 --size 1048576
  all_right "before" f00
  iptables -A INPUT -p tcp --dport "${EVIL#*:}" -j REJECT --reject-with tcp-reset
  on_exit "iptables -F INPUT"
  outcomes "down" "1 right, 1 EIO" f00 f03
  iptables -F INPUT
  comes_back f03
  all_right "back"
}

row_02() {
  fault 2 "registry dead for lazyblobd at Prepare: refused, then silent" "a normal unpack within the time limit; the whole image is right; no half snapshot"
  local how started
  containerd_with_us fallback
  for how in refused silent; do
    make_image "$how" --files 4 --layers 2
    evil_start "$how=$IMAGE_LAYOUT"
    case $how in
      refused) unreachable "$EVIL" 127.0.0.1:1 ;;
      silent)
        unreachable "$EVIL" 127.0.0.1:9
        iptables -A INPUT -p tcp --dport 9 -j DROP
        on_exit "iptables -F INPUT" ;;
    esac
    started=$(now_ms)
    rpull "$EVIL/$how:latest" || { wrong "$how: not pulled: $(tail -1 "$SCRATCH/pull.err")"; continue; }
    started=$(( $(now_ms) - started ))
    [ "$started" -lt 60000 ] || wrong "$how: the pull took $started ms"
    at_snapshot
    oracle "$IMAGE_TREE" "$AT" --errno none || wrong "$how: $ORACLE"
    lb --root "$ROOT_DIR" status --json > "$SCRATCH/status.json"
    [ "$(lb_json "$SCRATCH/status.json" 'len(image["snapshot_layers"])')" = 0 ] || wrong "$how: a layer is lazy"
    seen "$how: unpacked, $ORACLE"
  done
  nothing_half
}

row_02a() {
  fault 2a "registry answers with 503 to all at a pull, and at a mount" "one clear error in time; no snapshot, nothing mounted"
  containerd_with_us nothing
  make_image nothing
  evil_start "nothing=$IMAGE_LAYOUT"
  serve_plain_http "$EVIL"
  evil_fault '{"status": 503}'
  ! lb --root "$ROOT_DIR" pull --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --snapshotter lazyblob --plain-http \
    --progress none "$EVIL/nothing:latest" > "$SCRATCH/pull.err" 2>&1 || wrong "lazyblob pull succeeded"
  mkdir "$SCRATCH/no"
  lb_refused lb --root "$ROOT_DIR" mount --plain-http --progress none "$EVIL/nothing:latest" "$SCRATCH/no" ||
    wrong "mount: $(cat "$LB_ERR")"
  grep -qF 503 "$LB_ERR" || wrong "the line does not say 503: $(cat "$LB_ERR")"
  nothing_half
  seen "pull: $(tail -1 "$SCRATCH/pull.err" | cut -c1-160); mount: $(cut -c1-160 "$LB_ERR")"
}

row_03() {
  fault 3 "registry gone when keeper and daemon start" "they start from the disk, without a request; cached files work, others are EIO with a reason; the registry's return needs no hand"
  local port started
  containerd_with_us offline
  make_image offline --files 6 --size 1048576
  evil_start "offline=$IMAGE_LAYOUT"
  port=${EVIL#*:}
  serve_plain_http "$EVIL"
  rpull "$EVIL/offline:latest" || die "pull: $(tail -1 "$SCRATCH/pull.err")"
  at_snapshot
  oracle "$IMAGE_TREE" "$AT" --errno none f00 f01 || die "before: $ORACLE"
  leave_snapshot
  end_process "$EVIL_PID"
  serve_stop
  started=$(now_ms)
  serve_start
  started=$(( $(now_ms) - started ))
  at_snapshot
  outcomes "started in $started ms" "2 right, 1 EIO" f00 f01 f04
  status_tells "127.0.0.1"
  evil_start --port "$port" "offline=$IMAGE_LAYOUT"
  comes_back f04
  all_right "back"
  leave_snapshot
}

row_04() {
  fault 4 "1 kB/s, and 10 s to the first byte" "EIO at the deadline whatever the rate; files of another registry are not delayed"
  local slow slow_tree
  lazy slow --files 4 --size 1048576
  evil_fault '[{"path_contains": "/blobs/", "bytes_per_second": 1000, "count": 3}, {"path_contains": "/blobs/", "delay_ms": 10000}]'
  slow=$AT slow_tree=$IMAGE_TREE
  lazy quick --files 8
  oracle_start "$slow_tree" "$slow" --threads 4 --deadline "$IN_TIME"
  oracle "$IMAGE_TREE" "$AT" --errno none || wrong "quick: $ORACLE"
  seen "quick beside it: $ORACLE"
  oracle "$slow_tree" "$slow" --deadline "$IN_TIME" f03 || wrong "slow: $ORACLE"
  oracle_stop || wrong "slow: $ORACLE"
  [ "$(oracle_n EIO)" -gt 0 ] || wrong "no EIO: the rate was no fault"
  seen "slow: $ORACLE"
}

row_05() {
  fault 5 "fs.fuse.max_request_timeout = 10, registry silent" "each request is answered long before; the connection lives on"
  local limits=/proc/sys/fs/fuse/max_request_timeout old
  if [ ! -e "$limits" ]; then
    seen "Linux $(uname -r) has no request timeout"
    return 0
  fi
  old=$(cat "$limits")
  on_exit "echo $old > $limits"
  echo 10 > "$limits"
  serve_configure timeout '[fuse]
read_deadline = "60s"'
  serve_start
  echo "$old" > "$limits"   # a connection keeps what it began with; others of this machine shall not
  grep -qF 'fs.fuse.*_request_timeout' "$LB_LOG" || wrong "the log does not tell the shorter deadline: $(tail -3 "$LB_LOG")"
  lazy timeout --files 4 --size 1048576
  kill -STOP "$EVIL_PID"
  if [ -z "${LAZYBLOB_LONG:-}" ]; then
    oracle "$IMAGE_TREE" "$AT" --deadline 10 --threads 4 || wrong "$ORACLE"
  else
    oracle_start "$IMAGE_TREE" "$AT" --deadline 10 --threads 4
    sleep 60
    oracle_stop || wrong "$ORACLE"
  fi
  seen "silent: $ORACLE"
  [ "$(oracle_n right)" = 0 ] || wrong "a silent registry, and bytes"
  kill -CONT "$EVIL_PID"
  comes_back
  all_right "afterwards"
  lb_umount "$AT" || wrong "umount"
}

row_06() {
  fault 6 "503 twice, then service; 500 for ever, then service" "tried again with pauses, no EIO; EIO in time, attempts bounded; then right"
  local before
  lazy fivehundred --files 8 --size 1048576
  evil_fault '{"path_contains": "/blobs/", "status": 503, "count": 2}'
  all_right "503 twice" f00
  evil_fault '{"path_contains": "/blobs/", "status": 500}'
  before=$(evil_count 'r["status"] == 500')
  outcomes "500" "1 EIO" f05
  before=$(( $(evil_count 'r["status"] == 500') - before ))
  [ "$before" -ge 2 ] && [ "$before" -le 40 ] || wrong "$before attempts"
  seen "$before attempts"
  evil_clear
  comes_back f05
  all_right "afterwards"
}

row_07() {
  fault 7 "429 with Retry-After: 1" "waited for: no EIO, and no request before"
  local started
  lazy wait --files 8
  evil_fault '{"path_contains": "/blobs/", "status": 429, "headers": {"Retry-After": "1"}, "count": 1}'
  started=$(now_ms)
  all_right "429" f00
  started=$(( $(now_ms) - started ))
  [ "$started" -ge 1000 ] || wrong "only $started ms were waited"
}

row_07a() {
  fault 7a "429 with Retry-After: 3600, 64 readers" "EIO at once; the host is left alone by all readers; other hosts are not"
  local first again
  lazy pause --files 8
  evil_fault '{"path_contains": "/blobs/", "status": 429, "headers": {"Retry-After": "3600"}}'
  oracle "$IMAGE_TREE" "$AT" --threads 8 --deadline "$IN_TIME" || wrong "$ORACLE"
  [ "$(oracle_n EIO)" = 8 ] || wrong "8 EIO expected: $ORACLE"
  seen "first: $ORACLE"
  first=$(evil_count '"/blobs/" in r["path"] and r["status"] == 429')
  local names=(f0{0..7}{,,,,,,,})
  oracle "$IMAGE_TREE" "$AT" --threads 64 --deadline "$IN_TIME" "${names[@]}" || wrong "$ORACLE"
  [ "$(oracle_n EIO)" = 64 ] || wrong "64 EIO expected: $ORACLE"
  again=$(evil_count '"/blobs/" in r["path"] and r["status"] == 429')
  [ "$first" -le 8 ] && [ "$again" = "$first" ] || wrong "$first requests, then $((again - first)) more"
  seen "$ORACLE; $first requests in all"
  status_tells "asked to be left alone"
  lazy other
  all_right "another host"
}

row_08() {
  fault 8 "TCP reset after 300000 bytes of a body" "goes on from where it broke off, no EIO"
  lazy torn --files 6 --size 1048576
  evil_fault '{"path_contains": "/blobs/", "reset_at": 300000, "count": 1}'
  all_right "reset" f02
  resumed
}

row_09() {
  fault 9 "body ends after 300000 bytes with a clean FIN" "as 8"
  lazy short --files 6 --size 1048576
  evil_fault '{"path_contains": "/blobs/", "truncate_at": 300000, "count": 1}'
  all_right "truncated" f02
  resumed
}

row_10() {
  fault 10 "Content-Range of another start, another total, another unit, a range that is shifted and says so" "EIO; nothing of it is kept"
  lazy lying --files 16
  bad_answers "other start" f00 '"content_range": "bytes 7-1000/5000"'
  bad_answers "other total" f07 '"content_range": "bytes 0-1/2"'
  bad_answers "other unit" f03 '"content_range": "items 0-9/10"'
  bad_answers "shifted" f12 '"shift_range": 512'
  all_right "afterwards"
}

row_11() {
  fault 11 "server ignores Range (200 and all of the blob)" "right bytes; the blob is not fetched once per read"
  local sent size
  lazy ignorant --files 8
  size=$(stat -c %s "$(find "$IMAGE_LAYOUT/blobs" -type f -printf '%s %p\n' | sort -n | tail -1 | cut -d' ' -f2)")
  evil DELETE log > /dev/null
  evil_fault '{"path_contains": "/blobs/", "ignore_range": true}'
  all_right "200" f06 f01 f04 f00 f07 f02 f05 f03
  sent=$(evil GET stats | jq .body_bytes)
  # once to learn it, once more by who asked meanwhile, once for all
  [ "$sent" -le $((3 * size)) ] || wrong "$sent bytes sent for a blob of $size"
  seen "$sent bytes sent for a blob of $size"
}

row_12() {
  fault 12 "multipart/byteranges; 206 without Content-Type; 416 to a range; 400 to several ranges" "EIO or right, never parts taken for bytes; the rest is right"
  lazy parts --files 16
  bad_answers "multipart" f00 '"status": 206, "body": "--x\r\nContent-Type: a/b\r\nContent-Range: bytes 0-1/9\r\n\r\nxx\r\n--x--\r\n", "headers": {"Content-Type": "multipart/byteranges; boundary=x"}'
  evil_fault '{"path_contains": "/blobs/", "headers": {"Content-Type": ""}}'
  all_right "no Content-Type" f07
  evil_clear
  evil_fault '{"range_contains": ",", "status": 400}'
  evil_fault '{"range_contains": "bytes", "path_contains": "/blobs/", "status": 416}'
  all_right "416" f03
  evil_clear
  all_right "afterwards"
  [ "$(evil_count '"," in r["range"]')" = 0 ] || wrong "several ranges were asked for at once"
}

row_13() {
  fault 13 "a bit flips: once; for ever; on the mirror only" "fetched again, no EIO; EIO; taken from the other source. Never stored"
  lazy flipped --files 16
  flip() { printf '{"path_contains": "/blobs/", "flip_bit_of_byte": %s%s}' "$(blob_offset "$1")" "${2:-}"; }
  evil_fault "$(flip f00 ', "count": 1')"
  all_right "once" f00
  evil_fault "$(flip f07)"
  outcomes "for ever" "1 EIO" f07
  evil_clear
  all_right "afterwards"
  # a mirror that flips, with the registry behind it: of a layer that is read in parts, and of one that is streamed
  local kind good
  for kind in estargz gzip; do
    make_image "mirrored-$kind" --files 4 --format "$kind"
    evil_start "mirrored-$kind=$IMAGE_LAYOUT"
    good=$EVIL
    evil_start "mirrored-$kind=$IMAGE_LAYOUT"
    hosts_toml "$good" "server = \"http://$good\"
[host.\"http://$EVIL\"]"
    [ "$kind" = estargz ] || evil_fault "$(flip f02)"
    mount_it "mirrored-$kind" "$good/mirrored-$kind:latest"
    [ "$kind" = gzip ] || evil_fault "$(flip f02)"
    all_right "mirror flips, $kind" f02
    [ "$(evil_count '"/blobs/" in r["path"] and r["body_bytes"] > 200000')" -gt 0 ] || wrong "the mirror was not asked"
  done
}

row_14() {
  fault 14 "Content-Encoding: gzip on a range" "refused: EIO; asked for identity"
  lazy encoded --files 8
  bad_answers "gzip" f00 '"claim_gzip": true'
  all_right "afterwards"
  [ "$(evil_count '"/blobs/" in r["path"] and ["accept-encoding", "identity"] not in r["headers"]')" = 0 ] ||
    wrong "not all requests ask for identity"
}

row_15() {
  fault 15 "bearer tokens that live 2 s, and are revoked" "renewed, no EIO"
  local tokens
  make_image token --files 24
  evil_start "token=$IMAGE_LAYOUT"
  evil POST auth '{"kind": "bearer", "username": "tester", "password": "secret", "token_ttl_ms": 2000}' > /dev/null
  docker_config "$EVIL" tester secret
  mount_it token "$EVIL/token:latest"
  all_right "first" f00
  tokens=$(evil GET stats | jq .token_requests)
  sleep 2.5   # nothing can be seen of a token that ends
  all_right "expired" f05 f12
  evil POST revoke_tokens > /dev/null
  all_right "revoked" f20 f09
  tokens=$(( $(evil GET stats | jq .token_requests) - tokens ))
  [ "$tokens" -ge 2 ] || wrong "$tokens new tokens"
  seen "$tokens new tokens"
}

row_16() {
  fault 16 "credentials revoked, then rotated; the daemon is killed meanwhile" "EIO only for what is not cached, with a reason; new ones are picked up without a restart"
  serve_configure rotated "[fuse]
read_deadline = \"${READ_DEADLINE}s\""
  serve_start
  make_image rotated --files 16
  evil_start "rotated=$IMAGE_LAYOUT"
  evil POST auth '{"kind": "basic", "username": "tester", "password": "old"}' > /dev/null
  docker_config "$EVIL" tester old
  mount_it rotated "$EVIL/rotated:latest"
  all_right "first" f00
  evil POST auth '{"kind": "basic", "username": "tester", "password": "new"}' > /dev/null
  outcomes "revoked" "1 right, 1 EIO" f00 f07
  successor
  outcomes "the next daemon" "1 right, 1 EIO" f00 f07
  status_tells "401"
  docker_config "$EVIL" tester new
  comes_back f07
  all_right "rotated"
  ! grep -rlE 'dGVzdGVyO|tester:(old|new)' "$LB_LOG" "$ROOT_DIR" || wrong "a password is in a file"
}

row_16a() {
  fault 16a "docker-registry's htpasswd changes" "as 16"
  make_image changed --files 8
  registry_start "faults-$$" "$SCRATCH/store" basic
  EVIL=$REG
  docker_config "$REG" tester secret
  skopeo copy -q --preserve-digests --dest-creds tester:secret --dest-tls-verify=false "oci:$IMAGE_LAYOUT:latest" \
    "docker://$REG/changed:latest" || die "skopeo"
  mount_it changed "$REG/changed:latest"
  all_right "first" f00
  restart_registry other
  outcomes "revoked" "1 right, 1 EIO" f00 f05
  docker_config "$REG" tester other
  comes_back f05
  all_right "rotated"
}

row_17() {
  fault 17 "redirects to signed URLs that end: 403, and 400 ExpiredToken" "the registry is asked again once, no EIO; no Authorization for the other host"
  make_image signed --files 16
  evil_start "signed=$IMAGE_LAYOUT"
  evil POST auth '{"kind": "bearer", "username": "tester", "password": "secret"}' > /dev/null
  evil POST cdn '{"enabled": true}' > /dev/null
  docker_config "$EVIL" tester secret
  mount_it signed "$EVIL/signed:latest"
  all_right "signed" f00
  evil POST expire_urls > /dev/null
  all_right "403" f07
  [ "$(evil_count 'r["cdn"] and r["status"] == 403')" -gt 0 ] || wrong "no URL had ended"
  evil_fault '{"path_regex": "^/(?!v2/)", "status": 400, "body": "<Error><Code>ExpiredToken</Code></Error>", "count": 1}'
  all_right "400" f12
  [ "$(evil_count 'r["cdn"] and r["status"] == 400')" = 1 ] || wrong "no 400 of the other host"
  [ "$(evil_count 'r["cdn"] and r["authorization"]')" = 0 ] || wrong "the other host was sent an Authorization"
  [ "$(evil_count 'not r["cdn"] and r["authorization"]')" -gt 0 ] || wrong "no request was authorised"
}

row_18() {
  fault 18 "redirect loop; to file://; to 169.254.169.254; https to http" "EIO, nobody else is asked; then right"
  local registry canary where
  lazy astray --files 16
  registry=$EVIL
  ip addr add 169.254.169.254/32 dev lo
  on_exit "ip addr del 169.254.169.254/32 dev lo"
  evil_start --address 169.254.169.254
  canary=$EVIL EVIL=$registry
  local places=("/v2/astray/blobs/loop" "file:///etc/passwd" "http://$canary/x" "gopher://$canary/x")
  local files=(f00 f07 f03 f12) names=(loop file link-local gopher)
  for where in 0 1 2 3; do
    bad_answers "${names[$where]}" "${files[$where]}" "\"status\": 307, \"headers\": {\"Location\": \"${places[$where]}\"}"
  done
  all_right "afterwards"
  [ "$(EVIL=$canary; evil_count True)" = 0 ] || wrong "169.254.169.254 was asked"
  # from https to http
  certificates good
  make_image downgrade --files 8
  evil_start "downgrade=$IMAGE_LAYOUT"
  tls_start good "$EVIL"
  hosts_toml "$TLS" "server = \"https://$TLS\"
ca = \"$CERTIFICATES/ca.pem\""
  mount_tls downgrade "$TLS/downgrade:latest"
  all_right "https" f00
  canary=$EVIL
  bad_answers "to http" f05 "\"status\": 307, \"headers\": {\"Location\": \"http://$canary/v2/downgrade/blobs/other\"}"
  [ "$(evil_count '"other" in r["path"]')" = 0 ] || wrong "http was spoken"
}

row_19() {
  fault 19 "name server dead, then silent; then another address" "open connections and known addresses serve on; a name that cannot be resolved is EIO in time, other hosts are not delayed; then right"
  local tree at how name=reg.lazyblob.test
  serve_configure names "[fuse]
read_deadline = \"${READ_DEADLINE}s\""
  serve_start
  lazy known --files 16
  tree=$IMAGE_TREE at=$AT
  dns_start "$name" 127.0.0.1
  make_image named --files 16
  evil_start "named=$IMAGE_LAYOUT"
  mount_it named "$name:${EVIL#*:}/named:latest"
  all_right "resolved" f00
  dns_stop
  all_right "dead, an open connection" f07
  break_connections
  all_right "dead, a known address" f03
  successor   # which knows no address
  for how in dead silent; do
    [ "$how" = dead ] || dns_start "$name" silent
    oracle_start "$IMAGE_TREE" "$AT" --deadline "$IN_TIME" --threads 2
    oracle "$tree" "$at" --errno none || wrong "the other host beside it ($how): $ORACLE"
    outcomes "$how, no address" "1 right, 1 EIO" f00 f12
    oracle_stop || wrong "$how: $ORACLE"
  done
  dns_start "$name" 127.0.0.3
  kill -9 "$EVIL_PID"
  evil_start --address 127.0.0.3 --port "${EVIL#*:}" "named=$IMAGE_LAYOUT"
  comes_back f12
  all_right "another address"
}

row_20() {
  fault 20 "TLS: expired, for another host, self-signed; also while mounted" "refused with a clear line, never http; cached bytes served, EIO for others, then right"
  local kind
  certificates good expired elsewhere selfsigned
  make_image secret --files 8
  evil_start "secret=$IMAGE_LAYOUT"
  tls_start good "$EVIL"
  hosts_toml "$TLS" "server = \"https://$TLS\"
ca = \"$CERTIFICATES/ca.pem\""
  mkdir "$SCRATCH/no"
  for kind in expired elsewhere selfsigned; do
    tls_serve "$kind"
    lb_refused lb --root "$ROOT_DIR" mount --progress none "$TLS/secret:latest" "$SCRATCH/no" || wrong "$kind: $(cat "$LB_ERR")"
    grep -qiE 'TLS|certificate' "$LB_ERR" || wrong "$kind: the line does not say why: $(cat "$LB_ERR")"
    seen "$kind: $(grep -oE 'TLS.*' "$LB_ERR" | cut -c1-90)"
  done
  tls_serve good
  mount_tls secret "$TLS/secret:latest"
  all_right "good" f00
  tls_serve expired
  outcomes "expired while mounted" "1 right, 1 EIO" f00 f05
  tls_serve good
  comes_back f05
  all_right "good again"
  [ "$(grep -c 'http request' "$TLS_LOG")" = 0 ] || wrong "http was spoken: $(grep 'http request' "$TLS_LOG" | head -1)"
}

faults_daemon shared "[fuse]
read_deadline = \"${READ_DEADLINE}s\"
[snapshotter]
resolve_timeout = \"5s\""
faults_main "$@"

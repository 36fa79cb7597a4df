#!/bin/bash
# Bad input is one clear line on stderr, an exit status other than 0, and nothing left mounted; a daemon that serves
# something good meanwhile goes on serving it. A TOC that cannot be used but says nothing wrong may also be passed over,
# the layer then being read as a plain one: all of it verified, not lazy, with a reason. Then single bytes are flipped:
# EIO or a refusal, never wrong bytes.
#   e2e_bad_input.sh [images | machine | flips]      default: all
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/judge.sh"
. "$E2E_DIR/lib/lazyblob.sh"
need_root
need_programs
make_scratch
parts=${1:-images machine flips}
CASES=$WORK/images/made/cases.json
mkdir -p "$SCRATCH/bad"
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
cases() { "$PYTHON" -c "import json,sys; c=json.load(open(sys.argv[1])); $1" "$CASES"; }

# refused WHAT NEEDLE CMD…: fails with one line that holds NEEDLE; mounts are as before.
refused() {
  local what=$1 needle=$2 before after
  shift 2
  before=$(our_mounts)
  if ! lb_refused "$@"; then
    fail "$what: $(lb --root "$ROOT_DIR" status "$SCRATCH/bad" 2>&1 | tail -1)"
    lb_umount "$SCRATCH/bad" 2>/dev/null || unmount_below "$SCRATCH/bad"
    return 0
  fi
  grep -qF -- "$needle" "$LB_ERR" || fail "$what: the line does not name '$needle': $(cat "$LB_ERR")"
  after=$(our_mounts)
  [ "$before" = "$after" ] || { fail "$what: left mounted: $(diff <(echo "$before") <(echo "$after") | tr '\n' ' ')"; unmount_below "$SCRATCH/bad"; }
  [ "${VERBOSE:-}" = "" ] || log "$what: $(cat "$LB_ERR")"
}
# A lie in a TOC: refused, or seen through: mounted as the plain layer that the blob is, not lazy, the reason told.
toc_lie() {
  local what=$1 ref=$2 needle=$3
  if ! lb_mount auto "$ref" "$SCRATCH/bad" 2> /dev/null; then
    refused "$what" "$needle" mount_bad "$ref"
    return 0
  fi
  lb_json "$LB_OUT" 'not any(l["lazy"] for l in layers) and all(l["reason"] for l in layers)' | grep -qx True ||
    fail "$what: a layer whose TOC lies is lazy, or no reason is given"
  local sums; sums=$(cd "$SCRATCH/bad" && find . -type f ! -name stargz.index.json ! -name .no.prefetch.landmark | sort | xargs -r sha256sum | sha256sum)
  [ "$sums" = "$4" ] || fail "$what: wrong files: $(cd "$SCRATCH/bad" && find . -type f | head -5 | tr '\n' ' ')"
  lb_umount "$SCRATCH/bad" || fail "$what: cannot be unmounted"
}
# The files of an image as umoci unpacks them, as one digest.
files_of() {
  judge_tree "$1" "$2"
  (cd "$JUDGE" && find . -type f ! -name stargz.index.json ! -name .no.prefetch.landmark | sort | xargs -r sha256sum | sha256sum)
}
mount_bad() { lb --root "$ROOT_DIR" mount --plain-http --progress none "$1" "$SCRATCH/bad"; }

images() {
  registry_start bad "$WORK/images/registry"
  lb_root bad
  lb_mount auto "$REG/made/pax:estargz" "$SCRATCH/good" || die "the good image cannot be mounted"
  local first; first=$(lb_daemon_pid "$ROOT_DIR")
  local name expect file sum daemon
  while read -r name expect file sum <&3; do
    if [[ $name == toc-* && $expect == refuse && $name != toc-bomb ]]; then
      toc_lie "bad/$name" "$REG/bad/$name:latest" "bad/$name" "$(files_of "bad/$name" latest)"
      continue
    fi
    if [ "$expect" = refuse ]; then
      refused "bad/$name" "bad/$name" mount_bad "$REG/bad/$name:latest" || true
      continue
    fi
    if ! lb_mount auto "$REG/bad/$name:latest" "$SCRATCH/bad" 2> "$SCRATCH/err"; then
      log "bad/$name: refused at once, fine: $(tail -1 "$SCRATCH/err")"
      continue
    fi
    if timeout 90 cat "$SCRATCH/bad/$file" > "$SCRATCH/out" 2> "$SCRATCH/err"; then
      [ "$(sha256sum < "$SCRATCH/out" | cut -d' ' -f1)" = "$sum" ] || fail "bad/$name: $file was read, with wrong bytes"
    else
      grep -q 'Input/output error' "$SCRATCH/err" || fail "bad/$name: not EIO: $(cat "$SCRATCH/err")"
      [ ! -s "$SCRATCH/out" ] || fail "bad/$name: wrong bytes were given out before the error"
      lb --root "$ROOT_DIR" status --json "$SCRATCH/bad" > "$SCRATCH/status.json" || fail "bad/$name: no status"
      [ -n "$(lb_json "$SCRATCH/status.json" '"".join(l["last_error"] for l in layers)')" ] || fail "bad/$name: status gives no reason"
    fi
    lb_umount "$SCRATCH/bad" || fail "bad/$name: cannot be unmounted"
  done 3< <(cases '[print(n, v["expect"], v["file"] or "-", v.get("sha256")) for n, v in c["bad"].items()]')
  for name in $(cases 'print(*c["lies"])'); do
    toc_lie "made/large:lie-$name" "$REG/made/large:lie-$name" "made/large" "$(files_of made/large gzip)"
  done
  # two TOCs that disagree: not lazy, but right
  if lb_mount auto "$REG/made/large:lie-disagree" "$SCRATCH/bad"; then
    judge_tree made/large gzip
    "$PYTHON" "$E2E_DIR/tree_diff.py" --allow toc-files --allow-file "$JUDGE_ALLOW" "$JUDGE" "$SCRATCH/bad" ||
      fail "two TOCs that disagree: wrong tree"
    [ "$(lb_json "$LB_OUT" 'any(l["lazy"] for l in layers)')" = False ] || fail "two TOCs that disagree: mounted lazily"
    lb_umount "$SCRATCH/bad"
  else
    fail "two TOCs that disagree: could be mounted like a plain layer"
  fi
  # the daemon went through all of this with a good image mounted
  judge_tree made/pax gzip
  "$PYTHON" "$E2E_DIR/tree_diff.py" --allow toc-files --allow toc-seconds --allow-file "$JUDGE_ALLOW" "$JUDGE" "$SCRATCH/good" ||
    fail "the good image beside the bad ones is wrong now"
  daemon=$(lb_daemon_pid "$ROOT_DIR")
  [ "$daemon" = "$first" ] || fail "lazyblobd $first died of bad input; now it is '$daemon'"
  local peak; peak=$(awk '/^VmHWM:/ {print int($2 / 1024)}' "/proc/$daemon/status")
  log "peak memory of the daemon: $peak MiB"
  [ "$peak" -lt 1024 ] || fail "the daemon took $peak MiB for bad input"
  [ "$(du -sm "$ROOT_DIR" | cut -f1)" -lt 256 ] || fail "bad images left $(du -sm "$ROOT_DIR" | cut -f1) MiB behind"
  lb_umount "$SCRATCH/good" || fail "umount of the good image"
  registry_stop
}

machine() {
  registry_start bad-machine "$WORK/images/registry"
  lb_root machine
  mkdir -p "$SCRATCH/bad"
  local ref=$REG/made/pax:estargz
  refused "unknown repository" "nobody/nothing" mount_bad "$REG/nobody/nothing:latest"
  refused "unknown tag" "no-such-tag" mount_bad "$REG/made/pax:no-such-tag"
  refused "unknown digest" "sha256:0000" mount_bad "$REG/made/pax@sha256:$(printf '0%.0s' {1..64})"
  refused "malformed reference" "UPPER" mount_bad "$REG/UPPER:x"
  refused "no registry there" "127.0.0.1:1" mount_bad "127.0.0.1:1/made/pax:estargz"
  refused "no layout there" "/nonexistent" mount_bad "oci:/nonexistent/layout:x"
  refused "no directory" "$SCRATCH/missing" lb --root "$ROOT_DIR" mount --plain-http --progress none "$ref" "$SCRATCH/missing"
  touch "$SCRATCH/file"
  refused "a file as mount point" "$SCRATCH/file" lb --root "$ROOT_DIR" mount --plain-http --progress none "$ref" "$SCRATCH/file"
  mount -t tmpfs -o size=4k busy "$SCRATCH/bad"
  refused "busy mount point" "$SCRATCH/bad" mount_bad "$ref"
  umount "$SCRATCH/bad"
  lb_mount auto "$ref" "$SCRATCH/good" || fail "mount of a good image"
  refused "mounted there already" "$SCRATCH/good" lb --root "$ROOT_DIR" mount --plain-http --progress none "$ref" "$SCRATCH/good"
  refused "umount of another's mount" "/proc" lb --root "$ROOT_DIR" umount /proc
  lb_umount "$SCRATCH/good" || fail "umount of the good image"
  refused "umount twice" "$SCRATCH/good" lb --root "$ROOT_DIR" umount "$SCRATCH/good"
  refused "state on tmpfs" "/dev/shm" lb --root "/dev/shm/lazyblob-e2e.$$" mount --plain-http --progress none "$ref" "$SCRATCH/bad"
  rm -rf "/dev/shm/lazyblob-e2e.$$"
  registry_stop

  registry_start bad-auth "$WORK/images/registry" basic
  export DOCKER_CONFIG=$SCRATCH/docker
  mkdir -p "$DOCKER_CONFIG"
  refused "no credentials" "$REG" mount_bad "$REG/made/pax:estargz"
  printf '{"auths":{"%s":{"auth":"%s"}}}' "$REG" "$(printf tester:wrong | base64)" > "$DOCKER_CONFIG/config.json"
  refused "wrong credentials" "$REG" mount_bad "$REG/made/pax:estargz"
  ! grep -q wrong "$LB_ERR" || fail "the error shows the password"
  printf '{"auths":{"%s":{"auth":"%s"}}}' "$REG" "$(printf tester:secret | base64)" > "$DOCKER_CONFIG/config.json"
  lb_mount auto "$REG/made/pax:estargz" "$SCRATCH/good" || fail "right credentials"
  lb_umount "$SCRATCH/good" || fail "umount with credentials"
  unset DOCKER_CONFIG
  registry_stop

  local open; open=$(mktemp -d)   # where nobody can get
  on_exit "rm -rf '$open'"
  chmod 0755 "$open"
  cp "$LAZYBLOB" "$open/lazyblob"
  mkdir "$open/dir"
  chown 65534:65534 "$open/dir"
  refused "not root" "root" timeout 30 setpriv --reuid 65534 --regid 65534 --clear-groups \
    "$open/lazyblob" --root "$open/dir" mount --plain-http --progress none "$ref" "$open/dir"
  full_disk
}

full_disk() {
  local disk=$SCRATCH/disk files
  registry_start full "$WORK/images/registry"
  truncate -s 96M "$SCRATCH/disk.img"
  mkfs.ext4 -q -m 0 "$SCRATCH/disk.img"   # root has no more of it than others
  mkdir -p "$disk"
  mount -o loop "$SCRATCH/disk.img" "$disk"
  ROOT_DIR=$disk/root
  on_exit "lb_end_root '$ROOT_DIR'"
  # not even an index fits
  fallocate -l "$(($(df --output=avail -B1 "$disk" | tail -1) - 262144))" "$disk/filler"
  refused "full disk" "debian" mount_bad "$REG/debian:gzip"
  rm "$disk/filler"
  # the data of a plain layer do not fit: a clear refusal, or the right tree
  if lb_refused mount_bad "$REG/debian:gzip" 2> /dev/null; then
    log "full disk: a plain layer is refused: $(cat "$LB_ERR")"
  else
    mountpoint -q "$SCRATCH/bad" || fail "full disk: neither refused nor mounted: $(cat "$LB_ERR")"
    judge_tree debian gzip
    "$PYTHON" "$E2E_DIR/tree_diff.py" --allow clamped-mtime --allow-file "$JUDGE_ALLOW" "$JUDGE" "$SCRATCH/bad" ||
      fail "full disk: wrong tree"
    lb_umount "$SCRATCH/bad" || fail "full disk: umount of the plain image"
  fi
  lb_end_root "$ROOT_DIR"
  rm -rf "$ROOT_DIR"
  # a lazy one is read through a cache that is too small: right bytes all the same
  if lb_mount auto "$REG/debian:estargz" "$SCRATCH/bad"; then
    judge_tree debian gzip
    (cd "$JUDGE" && find usr/lib/x86_64-linux-gnu usr/bin -xdev -type f -print0 | sort -z | xargs -0 sha256sum) > "$SCRATCH/want"
    (cd "$SCRATCH/bad" && timeout 300 find usr/lib/x86_64-linux-gnu usr/bin -xdev -type f -print0 | sort -z |
      timeout 300 xargs -0 sha256sum) > "$SCRATCH/got" || fail "full disk: reading failed"
    cmp -s "$SCRATCH/want" "$SCRATCH/got" || fail "full disk: wrong bytes"
    files=$(wc -l < "$SCRATCH/got")
    log "full disk: $files files right, $(df --output=avail -m "$disk" | tail -1) MiB free"
    lb_umount "$SCRATCH/bad" || fail "full disk: umount"
  else
    fail "full disk: a lazy image cannot be mounted"
  fi
  lb_end_root "$ROOT_DIR"
  umount "$disk" || fail "full disk: the state's file system is busy after the last umount"
  registry_stop
}

# One byte of what the registry holds is changed at a time: manifest, config and layers, at random places.
flips() {
  local store=$SCRATCH/flip-store format trial file size offset wrong=0 eio=0 refusals=0 unseen=0
  registry_start flip-source "$WORK/images/registry"
  local source=$REG
  registry_start flip "$store"
  (REG=$source; judge_tree made/type-changes gzip)
  judge_tree made/type-changes gzip
  RANDOM=${LAZYBLOB_SEED:-$$}
  log "flips: seed ${LAZYBLOB_SEED:-$$}"
  for format in gzip zstd none estargz zstdchunked; do
    rm -rf "${store:?}"/*
    skopeo copy -q --preserve-digests --src-tls-verify=false --dest-tls-verify=false \
      "docker://$source/made/type-changes:$format" "docker://$REG/flip:$format"
    mapfile -t blobs < <(find "$store" -name data -path '*/blobs/*' -size +0 | sort)
    for ((trial = 0; trial < ${LAZYBLOB_FLIPS:-12}; trial++)); do
      file=${blobs[RANDOM % ${#blobs[@]}]}
      size=$(stat -c %s "$file")
      offset=$(((RANDOM * 32768 + RANDOM) % size))
      "$PYTHON" -c 'import sys
f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2])); c = f.read(1)[0]; f.seek(-1, 1); f.write(bytes([c ^ 1 << int(sys.argv[3])]))' \
        "$file" "$offset" $((trial % 8))
      ROOT_DIR=$SCRATCH/root-flip
      mkdir -m 0700 "$ROOT_DIR"
      if ! LB_TIMEOUT=60 lb_mount auto "$REG/flip:$format" "$SCRATCH/bad" 2> "$SCRATCH/err"; then
        refusals=$((refusals + 1))
      elif ! "$PYTHON" "$E2E_DIR/tree_diff.py" --allow toc-files --allow toc-seconds --allow eio \
        --allow-file "$JUDGE_ALLOW" "$JUDGE" "$SCRATCH/bad" > "$SCRATCH/diff" 2>&1; then
        fail "flips: $format, byte $offset of $file: $(head -3 "$SCRATCH/diff")"
        wrong=$((wrong + 1))
      elif ! grep -q 'files with EIO' "$SCRATCH/diff"; then
        unseen=$((unseen + 1))   # a byte that the mount has no use for
      else
        eio=$((eio + 1))
      fi
      lb_umount "$SCRATCH/bad" 2>/dev/null || unmount_below "$SCRATCH/bad"
      lb_end_root "$ROOT_DIR"
      rm -rf --one-file-system "$ROOT_DIR"
      "$PYTHON" -c 'import sys
f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2])); c = f.read(1)[0]; f.seek(-1, 1); f.write(bytes([c ^ 1 << int(sys.argv[3])]))' \
        "$file" "$offset" $((trial % 8))
    done
  done
  log "flips: $refusals refused, $eio with EIO, $unseen without effect, $wrong wrong"
  [ $((refusals + eio)) -gt 0 ] || fail "flips: no flip was noticed, so none was made"
}

for part in $parts; do $part; done
log "$failures failures"
[ "$failures" = 0 ]

#!/bin/bash
# What `lazyblob pull` leaves in a real containerd equals what `ctr images pull` leaves there: content, labels, snapshots,
# image record. The snapshotter here is containerd's own overlayfs, so every layer takes the way of one that cannot be
# lazy; e2e_snapshotter.sh has the lazy ones. With the argument "trixie" the containerd is Debian 13's, with
# "forky" Debian testing's.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
TRIXIE_SUITE=${1:-trixie}
for part in registry lazyblob containerd snapshotter trixie; do . "$E2E_DIR/lib/$part.sh"; done
need_tools containerd ctr docker-registry skopeo jq
make_scratch
private_programs
if [ $# -gt 0 ]; then
  trixie_make
  trixie_enter
  CTR_RUN=("${TRIXIE_EXEC[@]}")
fi
registry_start "pull${1:+-$1}" "$WORK/images/registry"
CTR_PARENT=$SCRATCH
containerd_start pull
log "containerd $(ctr_ version | sed -n '/Server/,$ s/ *Version: *//p')"

# An array and no function: what goes to the background is to be the program, and not a shell that waits for it.
ONLY_PULL=("$LAZYBLOB" pull --root "$SCRATCH/none" --config "$SCRATCH/none.toml" --plain-http)
PULL=("${ONLY_PULL[@]}" --containerd "$CTR_ADDRESS" --snapshotter overlayfs)
pull() { "${PULL[@]}" "$@"; }
# Digests, sizes and labels, those sorted.
contents() {
  local digest size rest
  ctr_ -n "$1" content ls | tail -n +2 | sort | while read -r digest size rest; do
    echo "$digest $size $(tr , '\n' <<< "${rest##*[[:space:]]}" | sort | tr '\n' ' ')"
  done
}
snapshots() { ctr_ -n "$1" snapshots ls | awk 'NR > 1 {print $1, $2, $3}' | sort; }
check_equal() { diff -u "$1" "$2" >&2 || die "$3 differs"; }

# In namespaces of their own, and ours first: else containerd would have the blobs from the other namespace.
for image in debian:gzip debian:zstd debian:estargz; do
  ref=$REG/$image ours=ours-${image#*:} theirs=theirs-${image#*:}
  CONTAINERD_NAMESPACE=wrong pull --namespace "$ours" "$ref" > "$SCRATCH/out" 2> "$SCRATCH/err" || die "pull $ref: $(cat "$SCRATCH/err")"
  ctr_ -n "$theirs" images pull --plain-http --snapshotter overlayfs "$ref" > /dev/null
  for what in contents snapshots; do
    $what "$theirs" > "$SCRATCH/theirs"
    $what "$ours" > "$SCRATCH/ours"
    [ -s "$SCRATCH/ours" ] || die "$image: no $what"
    check_equal "$SCRATCH/theirs" "$SCRATCH/ours" "$image: $what"
  done
  for who in theirs ours; do
    ctr_ -n "${!who}" images ls "name==$ref" | awk 'NR > 1 {print $1, $2, $3, $4, $5}' > "$SCRATCH/$who"
    ctr_ -n "${!who}" images check --snapshotter overlayfs "name==$ref" >> "$SCRATCH/$who"
  done
  check_equal "$SCRATCH/theirs" "$SCRATCH/ours" "$image: image record"
  grep -q 'complete' "$SCRATCH/ours" || die "$image: ctr images check does not find it complete"
  [ "$(ctr_ -n "$ours" leases ls -q | wc -l)" = 0 ] || die "$image: a lease is left"
  log "$image: like ctr's"
done

log "again, and several at once"
for i in 1 2 3 4; do pull --namespace many --json "$REG/debian:gzip" > "$SCRATCH/many$i" 2> "$SCRATCH/err$i" & pids[i]=$!; done
for i in 1 2 3 4; do wait "${pids[$i]}" || die "pull $i of 4: $(cat "$SCRATCH/err$i")"; done
[ "$(jq -s 'unique | length' "$SCRATCH"/many[1-4])" = 1 ] || die "four pulls of one image tell different things"
pull --namespace many "$REG/debian:gzip" > /dev/null 2>&1 || die "a second pull fails"
snapshots many | grep -q Active && die "an active snapshot is left"
[ "$(contents many | wc -l)" = 6 ] || die "not 6 blobs: $(contents many)"

log "killed at any time, a pull leaves only garbage"
for i in $(seq 1 12); do
  "${PULL[@]}" --namespace killed "$REG/debian:gzip" > /dev/null 2>&1 & pid=$!
  sleep "0.$(printf %02d $((i * 4)))"
  kill -9 "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
done
# What containerd does when they expire. The last request of one that was killed may still be under way.
for lease in $(ctr_ -n killed leases ls -q); do ctr_ -n killed leases rm --sync "$lease" > /dev/null 2>&1 || true; done
[ -z "$(ctr_ -n killed leases ls -q)" ] || die "leases are left: $(ctr_ -n killed leases ls -q)"
if [ -z "$(ctr_ -n killed images ls -q)" ]; then
  [ "$(contents killed | wc -l)" = 0 ] || die "content is left: $(contents killed)"
  [ "$(snapshots killed | wc -l)" = 0 ] || die "snapshots are left: $(snapshots killed)"
fi
pull --namespace killed "$REG/debian:gzip" > /dev/null 2> "$SCRATCH/err" || die "the pull after: $(cat "$SCRATCH/err")"
ctr_ -n killed images rm --sync "$REG/debian:gzip" > /dev/null
[ "$(contents killed | wc -l)" = 0 ] || die "content is left after rm"
[ "$(snapshots killed | wc -l)" = 0 ] || die "snapshots are left after rm"

log "interrupted, it gives its lease back"
"${PULL[@]}" --namespace interrupted "$REG/debian:gzip" > /dev/null 2> "$SCRATCH/err" & pid=$!
wait_until 20 "no lease appears" sh -c "[ -n \"\$(ctr --address '$CTR_ADDRESS' -n interrupted leases ls -q)\" ]"
kill -INT "$pid"
if wait "$pid"; then die "an interrupted pull says it is done"; fi
grep -qx 'lazyblob: interrupted' "$SCRATCH/err" || die "says: $(cat "$SCRATCH/err")"
[ -z "$(ctr_ -n interrupted leases ls -q)" ] || die "its lease is left"

log "errors are one line"
expect_error() {
  local want=$1; shift
  if "${ONLY_PULL[@]}" "$@" > "$SCRATCH/out" 2> "$SCRATCH/err"; then die "'$*' succeeds"; fi
  grep -v 'warning' "$SCRATCH/err" > "$SCRATCH/lines" || true
  [ "$(wc -l < "$SCRATCH/lines")" = 1 ] && grep -q "$want" "$SCRATCH/lines" || die "'$*' says: $(cat "$SCRATCH/err")"
}
export CONTAINERD_ADDRESS=$CTR_ADDRESS
expect_error 'nosuchtag' --snapshotter overlayfs "$REG/debian:nosuchtag"
expect_error 'namespace' --namespace 'a b' "$REG/debian:gzip"
expect_error 'no-such-snapshotter' --snapshotter no-such-snapshotter "$REG/debian:gzip"
expect_error 'layout' "oci:$WORK/images/debian:gzip"
expect_error 'is containerd running' --containerd "$SCRATCH/none.sock" "$REG/debian:gzip"
log "passed"

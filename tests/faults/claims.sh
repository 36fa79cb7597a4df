#!/bin/bash
# Row 47 of the fault table: images whose configs claim diffIDs, and so chain ids, of others. See docs/FAULTS.md.
#   claims.sh [ROW…]
. "$(dirname "$0")/lib/faults.sh"
need_tools containerd ctr ctr-remote
. "$FAULTS_LIB/registry_rows.sh"

# claims NAME FORMAT [TOML]: lazyblobd, containerd, and the images "good" and "evil" in $EVIL/NAME, of chain $CHAIN, with the
# layers $GOOD_LAYER and $EVIL_LAYER.
claims() {
  serve_configure "$1" "${3:-}"
  serve_start
  CTR_PARENT=$SCRATCH CTR_EXTRA=$(proxy_plugin lazyblob)
  containerd_start "containerd-$1" lazyblob
  read -r CHAIN GOOD_LAYER EVIL_LAYER < <("$PYTHON" -B "$FAULTS_LIB/claims_image.py" "$SCRATCH/images" "$SCRATCH/trees" --format "$2")
  evil_start "$1=$SCRATCH/images"
  serve_plain_http "$EVIL"
}
in_namespace() { ctr_ --namespace "$1" "${@:2}"; }
rpull_in() { ctr_remote --namespace "$1" images rpull --plain-http --snapshotter lazyblob "$2" > "$SCRATCH/pull.err" 2>&1; }
# at NAMESPACE IMAGE: a new container's root is at $AT; else what containerd said is in at.err.
at() {
  CONTAINER=c$RANDOM$RANDOM AT=$SCRATCH/at-$1-$RANDOM
  mkdir -p "$AT"
  in_namespace "$1" containers create --snapshotter lazyblob "$EVIL/$2" "$CONTAINER" true > /dev/null 2> "$SCRATCH/at.err" || return 1
  eval "$(in_namespace "$1" snapshots --snapshotter lazyblob mounts "$AT" "$CONTAINER")" || die "the root of $2 cannot be mounted"
}
leave() {  # NAMESPACE
  umount "$AT" || wrong "unmount of $AT"
  in_namespace "$1" containers rm "$CONTAINER" || wrong "container $CONTAINER cannot be removed"
}
all_of() {  # WHOSE WHAT: $AT holds that tree
  oracle "$SCRATCH/trees/$1" "$AT" --errno none || wrong "$2: not the $1 tree: $ORACLE"
  seen "$2: the $1 bytes ($ORACLE)"
}
layer_is() {  # DIGEST PYTHON: holds for l, the layer's status
  lb --root "$ROOT_DIR" status --json > "$SCRATCH/status.json" 2>/dev/null &&
    "$PYTHON" -c 'import json,sys; l = [l for l in json.load(open(sys.argv[1]))["layers"] if l["digest"] == sys.argv[2]][0]; sys.exit(not eval(sys.argv[3]))' \
      "$SCRATCH/status.json" "$1" "$2" 2>/dev/null
}
layer_says() { grep -A14 -F "$1" "$SCRATCH/status.json" 2>/dev/null | tr -d ' \n' | cut -c 1-400; }
remove_evil() { in_namespace default images rm --sync "$EVIL/$1:evil" > /dev/null || wrong "evil cannot be removed"; }
# NAMESPACE IMAGE: has no container any more
refused_at() {
  ! at "$1" "$2" || { wrong "$2 has one more container"; leave "$1"; }
}

row_47() {
  fault 47 "eStargz image with the diffIDs of another, pulled before it" "another namespace reads its own bytes; once read whole the layer is quarantined, its snapshots unavailable; without it the good image is right"
  local -a evil
  claims poison estargz '[cache]
fill = "off"'
  rpull_in default "$EVIL/poison:evil" || die "evil: $(tail -1 "$SCRATCH/pull.err")"
  at default poison:evil || die "evil: $(cat "$SCRATCH/at.err")"
  all_of evil "evil, pulled lazily"
  evil=($CONTAINER "$AT")
  expect "evil is not lazy and unverified: $(layer_says "$EVIL_LAYER")" layer_is "$EVIL_LAYER" 'l["lazy"] and l["diff_id"] == "claimed"'
  # Another namespace of containerd asks lazyblobd itself: the chain id is not what counts there.
  rpull_in other "$EVIL/poison:good" || die "good: $(tail -1 "$SCRATCH/pull.err")"
  at other poison:good || die "good: $(cat "$SCRATCH/at.err")"
  all_of good "good, with evil mounted"
  leave other
  # Now somebody reads all of it.
  ! lb --root "$ROOT_DIR" unlazy --plain-http --progress none "$EVIL/poison:evil" > /dev/null 2> "$SCRATCH/unlazy.err" || wrong "evil was unlazied"
  expect "evil is not quarantined: $(layer_says "$EVIL_LAYER")" layer_is "$EVIL_LAYER" 'l["reason"] == "quarantined" and l["diff_id"] != "verified"'
  expect "there is no line in the log" grep -qF "$EVIL_LAYER is quarantined" "$LB_LOG"
  seen "unlazy: $(tail -1 "$SCRATCH/unlazy.err" | cut -c 1-200)"
  refused_at default poison:evil
  seen "evil again: $(tail -1 "$SCRATCH/at.err" | cut -c 1-260)"
  successor
  expect "evil is not quarantined after a restart" layer_is "$EVIL_LAYER" 'l["reason"] == "quarantined"'
  refused_at default poison:evil
  CONTAINER=${evil[0]} AT=${evil[1]}
  leave default
  remove_evil poison
  rpull_in default "$EVIL/poison:good" || die "good after evil: $(tail -1 "$SCRATCH/pull.err")"
  at default poison:good || die "good after evil: $(cat "$SCRATCH/at.err")"
  all_of good "good after evil"
  leave default
}

row_47a() {
  fault 47a "the same, with background fill" "the layer is quarantined by itself; the good one completes, is verified and needs no registry"
  local requests
  claims filled estargz '[cache]
fill = "on"'
  rpull_in default "$EVIL/filled:evil" || die "evil: $(tail -1 "$SCRATCH/pull.err")"
  wait_until 90 "evil is not found out: $(tail -1 "$LB_LOG")" layer_is "$EVIL_LAYER" 'l["reason"] == "quarantined"'
  refused_at default filled:evil
  seen "evil: $(tail -1 "$SCRATCH/at.err" | cut -c 1-260)"
  remove_evil filled
  rpull_in default "$EVIL/filled:good" || die "good: $(tail -1 "$SCRATCH/pull.err")"
  wait_until 90 "good does not become complete: $(tail -1 "$LB_LOG")" layer_is "$GOOD_LAYER" 'not l["lazy"] and not l["reason"] and l["diff_id"] == "verified" and not l["fill"]'
  requests=$(evil_count "'/blobs/' in r['path']")
  at default filled:good || die "good: $(cat "$SCRATCH/at.err")"
  all_of good "good"
  expect "reads of a complete layer asked the registry" test "$(evil_count "'/blobs/' in r['path']")" = "$requests"
  leave default
}

row_47b() {
  fault 47b "the same; diffIDs are compared before layers are mounted" "evil is refused; good, pulled next in the same namespace, is right"
  claims first estargz '[snapshotter]
compare_diff_ids = "mount"'
  evil_then_good first
  expect "good is not verified" layer_is "$GOOD_LAYER" 'l["diff_id"] == "verified"'
}

row_47c() {
  fault 47c "a gzip image with the diffIDs of another, pulled before it" "as 47b, without any setting: the layer is streamed whole"
  claims plain gzip
  evil_then_good plain
}

# What claims to be the good image is not pulled; the good one then is, with its own bytes.
evil_then_good() {
  ! rpull_in default "$EVIL/$1:evil" || wrong "evil was pulled"
  seen "evil: $(grep -v '^$' "$SCRATCH/pull.err" | tail -1 | cut -c 1-120)"
  rpull_in default "$EVIL/$1:good" || die "good: $(tail -1 "$SCRATCH/pull.err")"
  at default "$1:good" || die "good: $(cat "$SCRATCH/at.err")"
  all_of good "good, after evil"
  leave default
}
faults_main "$@"

#!/bin/bash
# lazyblobd behind Debian testing's containerd 2.x, with deploy/containerd-2.toml as it is but for the paths: every way to
# pull, `lazyblob doctor`, and then all of e2e_trixie.sh and e2e_pull.sh. Testing moves, so nothing but `make e2e-forky`
# runs it.
#   e2e_forky.sh [--update] [PART…]      parts: config pull cri doctor others same; --update writes the table to docs/E2E.md
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
export TRIXIE_SUITE=forky
for part in registry lazyblob containerd snapshotter trixie; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry skopeo nsenter unshare jq
UPDATE=
[ "${1:-}" != --update ] || { UPDATE=1; shift; }
trixie_machine
. "$E2E_DIR/lib/table.sh"
START='import json, re, sys; print(json.dumps(list(range(3))))'

# containerd_configure NAME [SED…]: deploy/containerd-2.toml with this run's paths, edited by the sed scripts.
containerd_configure() {
  local name=$1 edit
  shift
  CTR_SNAPSHOTTER=lazyblob CTR_DIR=$SCRATCH/$name CTR_ADDRESS=$SCRATCH/$name/containerd.sock
  mkdir -p "$CTR_DIR/root" "$CTR_DIR/state"
  sed -e "s|/run/lazyblob/lazyblob.sock|$LB_SOCKET|" -e "s|/var/lib/lazyblob|$ROOT_DIR|" \
    -e "s|^version = 3|&\nroot = \"$CTR_DIR/root\"\nstate = \"$CTR_DIR/state\"|" \
    "$SOURCE_DIR/deploy/containerd-2.toml" > "$CTR_DIR/config.toml"
  cat >> "$CTR_DIR/config.toml" <<CONFIG

# of this test
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "$LB_HOSTS"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
[plugins."io.containerd.internal.v1.opt"]
  path = "$CTR_DIR/opt"
[grpc]
  address = "$CTR_ADDRESS"
CONFIG
  for edit in "$@"; do sed -i "$edit" "$CTR_DIR/config.toml"; done
}
machine() {
  registry_start "forky-$1" "$WORK/images/registry"
  serve_configure "$1"
  serve_plain_http "$REG"
  printf 'address = "%s"\nroot = "%s"\n' "$LB_SOCKET" "$ROOT_DIR" | cat - "$LB_CONFIG" > "$LB_CONFIG.new"
  mv "$LB_CONFIG.new" "$LB_CONFIG"
  serve_start
}
containerd_begin() { : > "$CTR_DIR/log"; containerd_launch; }
machine_end() {
  remove_everything || fail "$1: images cannot be removed"
  wait_until 60 "$1: something is left behind: \$(left_behind | head -c 400)" nothing_left
  containerd_stop
  serve_stop
  registry_stop
}
nothing_left() { [ -z "$(left_behind)" ]; }

part_config() {
  local plugins key
  machine config
  containerd_configure config
  in_trixie containerd --config "$CTR_DIR/config.toml" config dump > "$SCRATCH/dump" 2> "$SCRATCH/err" ||
    fail "containerd config dump: $(tail -1 "$SCRATCH/err")"
  for key in "capabilities = \['remap-ids'\]" "enable_remote_snapshot_annotations = 'true'" "snapshotter = 'lazyblob'"; do
    grep -q "$key" "$SCRATCH/dump" || fail "containerd config dump has no $key"
  done
  [ "$(grep -A20 'unpack_config' "$SCRATCH/dump" | grep -cE "snapshotter = '(lazyblob|overlayfs)'")" = 2 ] ||
    fail "containerd config dump has not both unpack_config"
  containerd_begin
  for key in io.containerd.snapshotter.v1:lazyblob io.containerd.transfer.v1:local io.containerd.cri.v1:images; do
    ctr_ plugins ls | awk -v t="${key%:*}" -v i="${key#*:}" '$1 == t && $2 == i && $NF == "ok"' | grep -q . ||
      fail "$key is not ok: $(ctr_ plugins ls | grep "${key#*:}")"
  done
  machine_end config
}

run_python() {  # WHO REF
  ctr_ run --rm --snapshotter lazyblob "$2" "python-$RANDOM" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  grep -qx '\[0, 1, 2\]' "$SCRATCH/out" || fail "$1: python3 said $(tail -1 "$SCRATCH/out")"
}

# one_pull WHO TAG COMMAND…: COMMAND pulls REF (its last argument); then python starts; nothing of it in containerd.
one_pull() {
  local who=$1 tag=$2 ref=$REG/debian:$2 size mark pulled
  shift 2
  size=$(image_size "debian:$tag")
  mark=$(registry_mark)
  "$@" "$ref" > "$SCRATCH/out" 2>&1 || { fail "$who: $(tail -1 "$SCRATCH/out")"; return 0; }
  pulled=$(fetched_since "$mark")
  [ "$(ctr_ snapshots --snapshotter lazyblob ls | grep -c Committed)" = 4 ] ||
    fail "$who: not 4 snapshots: $(ctr_ snapshots --snapshotter lazyblob ls)"
  [ "$(content_has_layers "debian:$tag")" = 0 ] || fail "$who: containerd has layer blobs"
  lazy_row "$who" "$tag: the pull" "$pulled" "$size"
  run_python "$who" "$ref"
  lazy_row "$who" "$tag: python3 starts" "$(fetched_since "$mark")" "$size"
}

# whole_pull WHO TAG COMMAND…: the same, with a client that sends no labels: unpacked, fetched once.
whole_pull() {
  local who=$1 tag=$2 ref=$REG/debian:$2 size mark got
  shift 2
  size=$(image_size "debian:$tag")
  mark=$(registry_mark)
  "$@" "$ref" > "$SCRATCH/out" 2>&1 || { fail "$who: $(tail -1 "$SCRATCH/out")"; return 0; }
  run_python "$who" "$ref"
  got=$(fetched_since "$mark")
  row "$who" "$tag: no labels, unpacked" "$got" "$size"
  [ "$got" -ge "$size" ] && [ "$got" -le $((size + size / 100)) ] || fail "$who: $got of $size bytes fetched, not all once"
}

part_pull() {
  local how who
  for how in lazyblob transfer local; do
    machine "$how"
    containerd_configure "$how"
    containerd_begin
    for tag in estargz zstdchunked; do
      case $how in
        lazyblob) one_pull "lazyblob pull, ctr run" "$tag" "$LAZYBLOB" pull --root "$ROOT_DIR" --config "$LB_CONFIG" \
          --plain-http --containerd "$CTR_ADDRESS" ;;
        transfer) one_pull "ctr images pull, ctr run" "$tag" ctr_ images pull --plain-http --snapshotter lazyblob ;;
        local) whole_pull "ctr images pull --local, ctr run" "$tag" \
          ctr_ images pull --local --plain-http --snapshotter lazyblob ;;
      esac
      remove_everything || fail "$how: images cannot be removed"
    done
    machine_end "$how"
  done
}

# CRI as kubelet uses it: our snippet (CRI's own client, with labels), the transfer service, and the client without labels.
part_cri() {
  local how client=$BUILD_DIR/tests/cri_client labels='disable_snapshot_annotations = false'
  [ -x "$client" ] || die "no $client: build it first"
  for how in snippet transfer local; do
    machine "cri-$how"
    case $how in
      snippet) containerd_configure "cri-$how" ;;
      transfer) containerd_configure "cri-$how" "/$labels/d" ;;
      local) containerd_configure "cri-$how" "s/$labels/use_local_image_pull = true/" ;;
    esac
    CTR_RUN=("${TRIXIE_EXEC[@]}" CONTAINERD_NAMESPACE=k8s.io)
    containerd_begin
    wait_until 30 "CRI does not answer" "$client" "$CTR_ADDRESS" list
    set -- estargz timeout -k 5 300 "$client" "$CTR_ADDRESS" pull
    case $how in
      snippet) one_pull "CRI, disable_snapshot_annotations = false" "$@"; doctor_says kubelet ok ;;
      transfer) one_pull "CRI, by the transfer service" "$@"; doctor_says kubelet ok ;;
      local) whole_pull "CRI, use_local_image_pull = true" "$@"; doctor_says kubelet warning ;;
    esac
    machine_end "cri-$how"
    CTR_RUN=("${TRIXIE_EXEC[@]}")
  done
}

# doctor_says CHECK RESULT: warnings leave the exit status 0.
doctor_says() {
  local status=0 got text
  lb doctor --json --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --containerd-config "$CTR_DIR/config.toml" \
    > "$SCRATCH/doctor.json" 2> "$SCRATCH/doctor.err" || status=$?
  got=$(jq -r --arg c "$1" '[.checks[] | select(.check == $c) | .result] | unique | join(",")' "$SCRATCH/doctor.json")
  text=$(jq -r --arg c "$1" '[.checks[] | select(.check == $c) | .text][0]' "$SCRATCH/doctor.json")
  [ "$got" = "$2" ] || fail "doctor: $1: '$got', not '$2': $text"
  [ "$status" = 0 ] || fail "doctor: exit status $status: $(cat "$SCRATCH/doctor.json" "$SCRATCH/doctor.err")"
  log "doctor: $1: ${text:0:150}"
}

# What the doctor says, and that it is so.
part_doctor() {
  local check how mark size got
  size=$(registry_start forky-size "$WORK/images/registry" >&2; image_size debian:estargz; registry_stop)
  for how in well no-entry no-labels no-remap; do
    machine "doctor-$how"
    case $how in
      well) containerd_configure "$how" ;;
      no-entry) containerd_configure "$how" '/unpack_config\]\]/{N;N;/lazyblob/d}' ;;
      no-labels) containerd_configure "$how" '/enable_remote_snapshot_annotations/d' ;;
      no-remap) containerd_configure "$how" '/^ *capabilities/d' ;;
    esac
    containerd_begin
    mark=$(registry_mark)
    case $how in
      well)
        for check in containerd registration capabilities transfer kubelet 'mount propagation'; do
          doctor_says "$check" ok
        done
        jq -e 'all(.checks[]; .result == "ok")' "$SCRATCH/doctor.json" > "$SCRATCH/out" ||
          fail "doctor: a machine that is well: $(jq -c '.checks[] | select(.result != "ok")' "$SCRATCH/doctor.json")" ;;
      no-remap) doctor_says capabilities warning ;;
      *)
        doctor_says transfer warning
        ctr_ images pull --plain-http --snapshotter lazyblob "$REG/debian:estargz" > "$SCRATCH/out" 2>&1 || true
        got=$(ctr_ snapshots --snapshotter lazyblob ls | grep -c Committed || true)
        log "$how: $got snapshots: $(tail -1 "$SCRATCH/out")"
        if [ "$how" = no-entry ]; then
          [ "$got" = 0 ] || fail "without an entry the transfer service made $got snapshots"
        else
          got=$(fetched_since "$mark")
          [ "$got" -ge "$size" ] || fail "lazy without labels? $got of $size bytes"
        fi ;;
    esac
    machine_end "doctor-$how"
  done
}

# ctr-remote, id-mapped containers and dockerd; and whether `lazyblob pull` leaves what containerd 2's ctr leaves.
part_others() { env -u E2E_ENTERED "$E2E_DIR/e2e_trixie.sh" >> "$TABLE" || fail "e2e_trixie.sh"; }
part_same() { env -u E2E_ENTERED "$E2E_DIR/e2e_pull.sh" forky || fail "e2e_pull.sh"; }

whole=$#
[ $# -gt 0 ] || set -- config pull cri doctor others same
run_parts "$@"
end_with_failures
cat "$TABLE"
[ -n "$UPDATE" ] || exit 0
[ "$whole" = 0 ] || die "--update wants all parts"
grep -qx '<!-- forky -->' "$SOURCE_DIR/docs/E2E.md" && grep -qx '<!-- /forky -->' "$SOURCE_DIR/docs/E2E.md" ||
  die "docs/E2E.md has no place for the table"
document() {
  sed '/^<!-- forky -->$/,$d' "$SOURCE_DIR/docs/E2E.md"
  printf '<!-- forky -->\ncontainerd %s, dockerd %s, ctr-remote %s, runc %s, Linux %s, %s.\n\n' "$(trixie_version containerd)" \
    "$(trixie_version docker.io)" "$(trixie_version stargz-snapshotter)" "$(trixie_version runc)" "$(uname -r | cut -d- -f1)" \
    "$(date -u +%F)"
  table_print
  sed -n '/^<!-- \/forky -->$/,$p' "$SOURCE_DIR/docs/E2E.md"
}
document > "$SCRATCH/E2E.md"
cat "$SCRATCH/E2E.md" > "$SOURCE_DIR/docs/E2E.md"

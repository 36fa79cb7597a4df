#!/bin/bash
# Row 28, loss of power: the disk below lazyblobd, containerd and an image layout stops without writing what it holds in
# memory, its journal neither, while images are pulled, removed, read and exported and snapshots committed. Then the
# machine starts again: every committed snapshot is whole or absent, all that was answered has happened, no reader ever
# got a wrong byte, images can be pulled, nothing has to be cleaned by hand.
#   LAZYBLOB_POINTS=50   how often, half of them on ext4 and half on xfs (default 4)
#   LAZYBLOB_SEED=N      of the moments
#   LAZYBLOB_POWER_IMAGE=debian   a large image (default made/large)
POINTS=${LAZYBLOB_POINTS:-4}
ROW_LIMIT=${ROW_LIMIT:-$((120 + POINTS * 30))}
. "$(dirname "$0")/lib/faults.sh"
need_tools docker-registry skopeo containerd ctr xfs_io mkfs.ext4 mkfs.xfs
SEED=${LAZYBLOB_SEED:-$RANDOM}
POWER_IMAGE=${LAZYBLOB_POWER_IMAGE:-made/large}
FORMATS=(estargz zstdchunked gzip)
declare -A saw=()
count() { saw[$1]=$((${saw[$1]:-0} + ${2:-1})); }

# --- the machine -----------------------------------------------------------------------------------------------------

machine_make() {  # FILE-SYSTEM
  DISK=$SCRATCH/disk IMAGE=$SCRATCH/image
  mkdir "$DISK"
  truncate -s 3G "$IMAGE"
  "mkfs.$1" -q "$IMAGE"
  mount -o loop "$IMAGE" "$DISK"
  serve_configure "power-$1"
  serve_plain_http "$REG"
  ROOT_DIR=$DISK/root
  mkdir -m 0700 "$ROOT_DIR"
  on_exit "lb_end_root '$ROOT_DIR'"
  serve_start
  CTR_PARENT=$DISK CTR_EXTRA=$(proxy_plugin lazyblob)
  containerd_start containerd lazyblob
  sync -f "$DISK"
}

cut_power() {
  xfs_io -x -c shutdown "$DISK" || die "the file system cannot be shut down"
  for pid in "${loads[@]}" "$CTR_PID" $(lb_pids "$ROOT_DIR"); do kill -9 "$pid" 2>/dev/null || true; done
  wait_until 30 "lazyblobd does not die" lb_no_daemon "$ROOT_DIR"
  for pid in "${loads[@]}"; do wait "$pid" 2>/dev/null || true; done
  # what the loads have started ends by itself: all it talks to is gone
  wait_until 60 'somebody has files open: $(fuser -vm "$DISK" 2>&1 | head -5)' end_of_mounts
  losetup -n -O BACK-FILE | grep -qxF "$IMAGE" && die "a loop device is left"
  mount -o loop "$IMAGE" "$DISK" || die "the file system cannot be mounted again"
}
end_of_mounts() {
  local m
  while read -r m; do umount "$m" 2>/dev/null || true; done < <(mounts_below "$SCRATCH")
  [ -z "$(mounts_below "$SCRATCH")" ]
}

machine_restart() {
  serve_start
  containerd_launch
  wait_until 30 "containerd does not come to the snapshotter" ctr_ snapshots --snapshotter lazyblob ls
}

# --- what goes on when the power goes: each until it is killed -------------------------------------------------------

pull() {
  lb --root "$ROOT_DIR" pull --config "$LB_CONFIG" --containerd "$CTR_ADDRESS" --snapshotter lazyblob --plain-http --progress none "$1"
}
pull_and_remove() {
  local format
  while :; do
    for format in "${FORMATS[@]}"; do
      pull "$REG/$POWER_IMAGE:$format" || true
      ctr_ images rm --sync "$REG/$POWER_IMAGE:${FORMATS[$((RANDOM % 3))]}" || true
      lb --root "$ROOT_DIR" gc || true
    done
  done > "$SCRATCH/load-pull" 2>&1
}
# What a failed disk gives may be an error; never other bytes.
read_all_the_time() {  # FORMAT
  local dir=$SCRATCH/read
  lb_mount erofs "$REG/$POWER_IMAGE:$1" "$dir" || true
  while :; do
    shuf -n 200 --random-source=<(yes "$RANDOM") "$SCRATCH/sums" > "$SCRATCH/sums-some"
    (cd "$dir" && sha256sum --quiet -c "$SCRATCH/sums-some") >> "$SCRATCH/read.out" 2>&1 || true
    echo >> "$SCRATCH/read.rounds"
    echo 1 > /proc/sys/vm/drop_caches
  done > "$SCRATCH/load-read" 2>&1
}
# Snapshots whose files are synced before they are committed, noted once containerd has answered.
commit_all_the_time() {  # POINT
  local i at=$SCRATCH/upper
  mkdir -p "$at"
  for ((i = 0;; i++)); do
    ctr_ snapshots --snapshotter lazyblob prepare "key-$1-$i" || return 0
    eval "$(ctr_ snapshots --snapshotter lazyblob mounts "$at" "key-$1-$i")" || return 0
    head -c 100000 /dev/urandom > "$at/bytes"
    sha256sum < "$at/bytes" > "$at/sum"
    sync -f "$at" && umount "$at" || return 0
    ctr_ snapshots --snapshotter lazyblob commit "commit-$1-$i" "key-$1-$i" || return 0
    echo "commit-$1-$i" >> "$SCRATCH/committed"
  done > "$SCRATCH/load-commit" 2>&1
}
export_all_the_time() {  # POINT
  local i
  for ((i = 0;; i++)); do
    head -c 3000000 /dev/urandom > "$SCRATCH/payload/file"
    lb --root "$ROOT_DIR" export --progress none --base scratch --layer "dir:$SCRATCH/payload" --image "oci:$DISK/layout:t$1-$i" ||
      return 0
  done > "$SCRATCH/load-export" 2>&1
}

# --- what must hold afterwards ---------------------------------------------------------------------------------------

no_wrong_byte_was_read() {
  local wrong
  wrong=$(grep -a ': FAILED$' "$SCRATCH/read.out" | head -3) || true
  [ -z "$wrong" ] || wrong "$1: wrong bytes were served: $wrong"
  count rounds "$(wc -l < "$SCRATCH/read.rounds")"
  count errors "$(grep -ac 'FAILED open or read' "$SCRATCH/read.out" || true)"
  : > "$SCRATCH/read.out"
  : > "$SCRATCH/read.rounds"
}

inventory() { (cd "$1" && find . -mindepth 1 -printf '%p %y %m %U %G %s %T@ %l\n' | sort); }
# look NAME: a child of a committed snapshot at $SCRATCH/view, until look_end.
look() {
  local at=$SCRATCH/view
  mkdir -p "$at"
  ctr_ snapshots --snapshotter lazyblob prepare look "$1" > "$SCRATCH/out" 2>&1 &&
    ctr_ snapshots --snapshotter lazyblob mounts "$at" look > "$SCRATCH/mount.sh" && . "$SCRATCH/mount.sh"
}
look_end() { umount "$SCRATCH/view" && ctr_ snapshots --snapshotter lazyblob rm look; }
chain_of() {  # FORMAT: the name of the image's topmost snapshot
  skopeo inspect --config --tls-verify=false "docker://$REG/$POWER_IMAGE:$1" | "$PYTHON" -c 'import hashlib,json,sys
chain = ""
for diff in json.load(sys.stdin)["rootfs"]["diff_ids"]:
    chain = "sha256:" + hashlib.sha256(f"{chain} {diff}".encode()).hexdigest() if chain else diff
print(chain)'
}
image_is_whole() {  # WHERE FORMAT [all]
  local sums=$SCRATCH/sums reference=$FAULTS_SCRATCH/inventory-$2
  look "$(chain_of "$2")" || { wrong "$1: $POWER_IMAGE:$2 cannot be mounted: $(tail -1 "$SCRATCH/out")"; return 0; }
  inventory "$SCRATCH/view" > "$SCRATCH/inventory"
  [ -e "$reference" ] || cp "$SCRATCH/inventory" "$reference"
  cmp -s "$SCRATCH/inventory" "$reference" || wrong "$1: another tree of $POWER_IMAGE:$2: $(diff "$reference" "$SCRATCH/inventory" | head -3)"
  if [ -z "${3:-}" ]; then shuf -n 500 "$SCRATCH/sums" > "$SCRATCH/sums-some"; sums=$SCRATCH/sums-some; fi
  (cd "$SCRATCH/view" && sha256sum --quiet -c "$sums") > "$SCRATCH/out" 2>&1 || wrong "$1: $POWER_IMAGE:$2: $(head -3 "$SCRATCH/out")"
  look_end || wrong "$1: the view of $POWER_IMAGE:$2 cannot be removed"
}
images_are_whole_or_absent() {  # WHERE FORMAT: this one is compared in full
  local format has
  has=$(ctr_ images ls -q)
  for format in "${FORMATS[@]}"; do
    if grep -qxF "$REG/$POWER_IMAGE:$format" <<< "$has"; then
      count whole
    else
      count absent
      pull "$REG/$POWER_IMAGE:$format" > "$SCRATCH/out" 2>&1 || { wrong "$1: pull again: $(tail -1 "$SCRATCH/out")"; continue; }
    fi
    image_is_whole "$1" "$format" "$([ "$format" != "$2" ] || echo all)"
  done
}
commits_are_whole() {  # WHERE
  local name sum known
  known=$(ctr_ snapshots --snapshotter lazyblob ls | awk '$NF == "Committed" {print $1}' | grep '^commit-') || true
  while read -r name; do
    grep -qxF "$name" <<< "$known" || wrong "$1: $name was committed and is gone"
    count commits
  done < "$SCRATCH/committed"
  for name in $known; do
    look "$name" || { wrong "$1: $name cannot be mounted: $(tail -1 "$SCRATCH/out")"; continue; }
    sum=$(sha256sum < "$SCRATCH/view/bytes") || true
    [ "$sum" = "$(cat "$SCRATCH/view/sum")" ] || wrong "$1: $name is torn"
    look_end && ctr_ snapshots --snapshotter lazyblob rm "$name" || wrong "$1: $name cannot be removed"
  done
  for name in $(ctr_ snapshots --snapshotter lazyblob ls | awk '{print $1}' | grep '^key-'); do
    ctr_ snapshots --snapshotter lazyblob rm "$name" || wrong "$1: $name cannot be removed"
  done
  : > "$SCRATCH/committed"
}
layout_is_whole() {  # WHERE: whatever its index names, by digest and size
  [ -e "$DISK/layout/index.json" ] || return 0
  "$PYTHON" - "$DISK/layout" > "$SCRATCH/out" 2>&1 << 'PYTHON' || wrong "$1: the layout: $(tail -1 "$SCRATCH/out")"
import hashlib, json, sys
def blob(d):
    data = open(sys.argv[1] + "/blobs/sha256/" + d["digest"].split(":")[1], "rb").read()
    assert len(data) == d["size"] and "sha256:" + hashlib.sha256(data).hexdigest() == d["digest"], d
    return data
images = json.load(open(sys.argv[1] + "/index.json"))["manifests"]
for d in images:
    m = json.loads(blob(d))
    for part in [m["config"], *m["layers"]]:
        blob(part)
print(len(images))
PYTHON
  count exports "$(tail -1 "$SCRATCH/out")"
  rm -rf "$DISK/layout"
}
# Status 1: something was found and is repaired.
check_disk() {  # WHERE
  local status=0
  lb --root "$ROOT_DIR" fsck --repair > "$SCRATCH/fsck" 2>&1 || status=$?
  case $status in
    0) ;;
    1) count repaired "$(grep -c '^repaired:' "$SCRATCH/fsck")" ;;
    *) wrong "$1: fsck --repair: status $status: $(grep -v ^repaired "$SCRATCH/fsck" | head -3)" ;;
  esac
  lb --root "$ROOT_DIR" fsck > "$SCRATCH/fsck" 2>&1 || wrong "$1: fsck after repair: $(head -3 "$SCRATCH/fsck")"
}

point() {  # NUMBER FILE-SYSTEM
  local format=${FORMATS[$(($1 % 3))]} where="point $1 ($2)" delay=$((RANDOM % ${LAZYBLOB_POWER_MS:-3000}))
  loads=()
  pull_and_remove & loads+=($!)
  read_all_the_time "$format" & loads+=($!)
  commit_all_the_time "$1" & loads+=($!)
  export_all_the_time "$1" & loads+=($!)
  sleep "$(printf '%d.%03d' $((delay / 1000)) $((delay % 1000)))"
  cut_power
  log "$where: after $delay ms"
  # in every other one lazyblobd has to do with what it finds
  [ $(($1 % 2)) = 0 ] || check_disk "$where, before the start"
  machine_restart
  no_wrong_byte_was_read "$where"
  commits_are_whole "$where"
  images_are_whole_or_absent "$where" "$format"
  layout_is_whole "$where"
  if [ $(($1 % 2)) = 0 ]; then
    serve_stop
    check_disk "$where, afterwards"
    serve_start
    wait_until 30 "containerd does not come back to the snapshotter" ctr_ snapshots --snapshotter lazyblob ls
  fi
}

machine_end() {
  remove_everything || wrong "$1: images cannot be removed"
  lb --root "$ROOT_DIR" gc > /dev/null || wrong "$1: gc"
  local left; left=$(left_behind; find "$ROOT_DIR/layers/layers" "$ROOT_DIR/leases" -mindepth 1 2>/dev/null)
  [ -z "$left" ] || wrong "$1: left behind: $(head -c 600 <<< "$left")"
  containerd_stop
  serve_stop
  end_of_mounts || wrong "$1: mounts are left: $(mounts_below "$SCRATCH")"
}

# Half of the points on each file system.
power() {  # FILE-SYSTEM FIRST LAST
  local format number
  RANDOM=$((SEED + $2))
  log "seed $SEED (LAZYBLOB_SEED), points $2 to $3 (LAZYBLOB_POINTS)"
  mkdir "$SCRATCH/payload"
  touch "$SCRATCH"/{committed,read.out,read.rounds}
  registry_start power "$WORK/images/registry"
  judge_tree "$POWER_IMAGE" gzip
  (cd "$JUDGE" && find . -xdev -type f -size +0 -print0 | xargs -0 sha256sum | grep -av '^\\') > "$SCRATCH/sums"
  machine_make "$1"
  for format in "${FORMATS[@]}"; do
    [ ! -e "$FAULTS_SCRATCH/inventory-$format" ] || continue
    pull "$REG/$POWER_IMAGE:$format" > "$SCRATCH/out" 2>&1 || die "pull: $(tail -1 "$SCRATCH/out")"
    image_is_whole "before" "$format"
  done
  for ((number = $2; number <= $3; number++)); do point "$number" "$1"; done
  machine_end "$1"
  seen "$(($3 - $2 + 1)) cuts: ${saw[whole]:-0} images there, ${saw[absent]:-0} pulled again, all right;" \
    "${saw[commits]:-0} answered commits there; ${saw[exports]:-0} exports whole; ${saw[rounds]:-0} rounds of 200 files read," \
    "${saw[errors]:-0} errors; fsck repaired ${saw[repaired]:-0}"
}
row_28a() {
  fault 28 "power is lost, ext4" "committed: whole or absent; no wrong byte; pull again works; nothing to clean"
  power ext4 1 $((POINTS / 2))
}
row_28b() {
  fault 28 "power is lost, xfs" "the same"
  power xfs $((POINTS / 2 + 1)) "$POINTS"
}

faults_main "$@"

# Part `export` of bench/run.sh: pushes over a shaped link (bench/shaped_link.cc), 200 Mbit/s each way and 20 ms round
# trip, to docker-registry; contenders take turns, each on an empty registry. Sourced.
#   LAZYBLOB_EXPORT   which of: java go two shared base kill; default: all
#   LAZYBLOB_KEEP_TARS=1 keeps the made layers (3 GB) for the next run
. "$E2E_DIR/lib/snapshotter.sh"
SHAPED_LINK=$BUILD_DIR/shaped_link
LINK_RATE=25000000 LINK_DELAY=10
EXPORT_DIR=$WORK/export

# link_start RATE DELAY UPSTREAM…: a link with these registries (host:port) behind it: sets LINK (their addresses, an
# array), LINK_COUNTERS and LINK_PID.
link_start() {
  local rate=$1 delay=$2 ports upstream upstreams=()
  shift 2
  for upstream in "$@"; do upstreams+=("${upstream##*:}"); done
  ports=$(mktemp -u "$SCRATCH/link.XXXXXX")
  "$SHAPED_LINK" --rate "$rate" --delay "$delay" --ports "$ports" "${upstreams[@]}" &
  LINK_PID=$!
  disown "$LINK_PID"
  on_exit "end_process $LINK_PID"
  wait_until 10 "shaped_link did not start" test -e "$ports"
  read -r -a LINK < "$ports"
  LINK_COUNTERS=${LINK[0]}
  LINK=("${LINK[@]:1}")
  LINK=("${LINK[@]/#/127.0.0.1:}")
}
# link_bytes up|down [COUNTERS]
link_bytes() {
  local up down rest
  exec {link_fd}<> "/dev/tcp/127.0.0.1/${2:-$LINK_COUNTERS}"
  read -r up down rest <&"$link_fd"
  exec {link_fd}>&-
  case $1 in up) echo "$up" ;; down) echo "$down" ;; esac
}

# random_tar NAME BYTES: a tar of so many bytes (in multiples of 512) with one file that nothing compresses.
random_tar() {
  local tar=$EXPORT_DIR/$1.tar size=$(($2 / SHRINK / 512 * 512))
  [ "$size" -ge 2048 ] || size=2048
  [ "$(stat -c %s "$tar" 2>/dev/null)" = "$size" ] && return 0
  mkdir -p "$EXPORT_DIR"
  "$PYTHON" - "$tar" "$1" "$size" <<'PROGRAM'
import os, random, sys, tarfile
path, name, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
info = tarfile.TarInfo("export/" + name)
info.size = left = size - 1536
stream = random.Random(name)
with open(path + ".new", "wb") as f:
    f.write(info.tobuf(tarfile.USTAR_FORMAT))
    while left > 0:
        piece = stream.randbytes(min(left, 1 << 20))
        f.write(piece)
        left -= len(piece)
    f.write(bytes(size - f.tell()))
os.rename(path + ".new", path)
PROGRAM
}
tar_options() { local option=$1 name; shift; for name in "$@"; do printf '%s\ntar:%s\n' "$option" "$EXPORT_DIR/$name.tar"; done; }
bytes_of() { local name sum=0; for name in $(printf '%s\n' "$@" | sort -u); do sum=$((sum + $(stat -c %s "$EXPORT_DIR/$name.tar"))); done; echo "$sum"; }

export_lb() { lb --root "$ROOT_DIR" "$@" --plain-http --progress none > "$SCRATCH/export.out" 2> "$SCRATCH/export.err" ||
  die "$1: $(tail -1 "$SCRATCH/export.err")"; }
push_skopeo() { skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$EXPORT_DIR/layout-$1" "docker://$2" ||
  die "skopeo cannot push to $2"; }

# contender WHAT WORKLOAD REGISTRIES: one push on empty registries; its times and bytes go to series
# WORKLOAD-WHAT-{ready,total,bytes}. Layers are in IMAGE_TARS and CACHE_TARS.
contender() {
  local what=$1 workload=$2 registries=$3 i started ready image cache pids=() upstreams=() arguments=()
  for ((i = 0; i < registries; i++)); do
    rm -rf "$STORES/$i"
    registry_start "export-$i" "$STORES/$i"
    upstreams+=("$REG") pids+=("$REG_PID")
  done
  link_start "$LINK_RATE" "$LINK_DELAY" "${upstreams[@]}"
  pids+=("$LINK_PID")
  image=${LINK[0]}/team/app:1 cache=${LINK[-1]}/team/cache:1
  mapfile -t arguments < <(tar_options --layer "${IMAGE_TARS[@]}")
  [ "$what" = alone ] || mapfile -t -O ${#arguments[@]} arguments < <(printf '%s\n' --cache "$cache"; tar_options --cache-layer "${CACHE_TARS[@]}")
  rm -f "$SCRATCH/ready"
  drop_caches
  cat "${IMAGE_TARS[@]/#/$EXPORT_DIR/}" "${CACHE_TARS[@]/#/$EXPORT_DIR/}" > /dev/null 2>&1 || true
  started=$(now_ms)
  case $what in
    ours | alone | serial)
      [ "$what" != serial ] || arguments+=(--parallel off)
      export_lb export --base scratch --compression none --image "$image" "${arguments[@]}" --image-ready-file "$SCRATCH/ready"
      ready=$(stat -c %.3Y "$SCRATCH/ready") ready=${ready/./} ;;
    skopeo-alone)
      push_skopeo "$workload-image" "$image"
      ready=$(now_ms) ;;
    skopeo-serial)
      push_skopeo "$workload-image" "$image"
      ready=$(now_ms)
      push_skopeo "$workload-cache" "$cache" ;;
    skopeo-both)
      (push_skopeo "$workload-cache" "$cache") &
      i=$!
      push_skopeo "$workload-image" "$image"
      ready=$(now_ms)
      wait "$i" || die "skopeo cannot push the cache" ;;
  esac
  value "$workload-$what-total" $(($(now_ms) - started))
  value "$workload-$what-ready" $((ready - started))
  value "$workload-$what-bytes" "$(awk -v n="$(link_bytes up)" 'BEGIN {printf "%.3f", n / 1e6}')"
  for i in "${pids[@]}"; do end_process "$i"; done
}

# workload NAME LABEL REGISTRIES: IMAGE_TARS and CACHE_TARS are set.
workload() {
  local name=$1 label=$2 registries=$3 unique what round
  unique=$(bytes_of "${IMAGE_TARS[@]}" "${CACHE_TARS[@]}")
  serve_configure "export-$name"
  serve_start
  mapfile -t image < <(tar_options --layer "${IMAGE_TARS[@]}")
  mapfile -t cache < <(tar_options --layer "${CACHE_TARS[@]}")
  rm -rf "$EXPORT_DIR/layout-$name-image" "$EXPORT_DIR/layout-$name-cache"
  export_lb export --base scratch --compression none --image "oci:$EXPORT_DIR/layout-$name-image" "${image[@]}"
  export_lb export --base scratch --compression none --image "oci:$EXPORT_DIR/layout-$name-cache" "${cache[@]}"
  for ((round = 0; round < ROUNDS; round++)); do
    for what in alone serial ours skopeo-alone skopeo-serial skopeo-both; do
      log "$name: $what"
      contender "$what" "$name" "$registries"
    done
  done
  serve_stop
  value "$name-unique-bytes" "$(awk -v n="$unique" 'BEGIN {printf "%.3f", n / 1e6}')"
  value "$name-unique-time" "$(awk -v n="$unique" -v r="$LINK_RATE" 'BEGIN {printf "%.1f", n * 1000 / r}')"
  # To two registries nobody can know that they share a link.
  row "$label: image ready (image alone)" "$name-ours-ready" "$name-alone-ready" $([ "$registries" = 1 ] && echo 1.05 || echo -) ms
  row "$label: image ready (skopeo, image alone)" "$name-ours-ready" "$name-skopeo-alone-ready" - ms
  row "$label: image ready (ours, one after the other)" "$name-ours-ready" "$name-serial-ready" - ms
  row "$label: image ready (skopeo, two at once)" "$name-ours-ready" "$name-skopeo-both-ready" 1.0 ms
  row "$label: total (unique bytes ÷ bandwidth)" "$name-ours-total" "$name-unique-time" 1.1 ms
  row "$label: total (ours, one after the other)" "$name-ours-total" "$name-serial-total" - ms
  row "$label: total (skopeo, one after the other)" "$name-ours-total" "$name-skopeo-serial-total" - ms
  row "$label: total (skopeo, two at once)" "$name-ours-total" "$name-skopeo-both-total" 1.0 ms
  row "$label: sent (unique bytes)" "$name-ours-bytes" "$name-unique-bytes" 1.01 MB
  row "$label: sent (skopeo, two at once)" "$name-ours-bytes" "$name-skopeo-both-bytes" - MB
  rm -rf "$EXPORT_DIR/layout-$name-image" "$EXPORT_DIR/layout-$name-cache" "${STORES:?}"/*
}

export_java() {
  local size
  for size in 1103 15153 107648 49953 28502 9411 40465; do random_tar "java-$size" $((size * 1000)); done
  for size in 1 2 3; do random_tar "java-empty-$size" 2048; done
  IMAGE_TARS=(java-empty-1 java-1103 java-15153 java-107648 java-49953 java-empty-2 java-empty-3 java-28502)
  CACHE_TARS=(java-9411 java-40465 java-107648)
  workload java "Java: 202.4 MB and a cache of 157.5, 107.6 shared" 1
}
go_tars() {
  random_tar go-image-1 60000000
  random_tar go-image-2 54273000
  random_tar go-cache-1 120000000
  random_tar go-cache-2 55833000
  IMAGE_TARS=(go-image-1 go-image-2) CACHE_TARS=(go-cache-1 go-cache-2)
}
export_go() { go_tars; workload go "Go: 114.3 MB and a cache of 175.8" 1; }
export_two() { go_tars; workload two "Go, to two registries behind one link" 2; }
export_shared() {
  local size
  for size in 107000 60000 45000 50000; do random_tar "shared-$size" $((size * 1000)); done
  IMAGE_TARS=(shared-107000 shared-60000 shared-45000) CACHE_TARS=(shared-107000 shared-60000 shared-45000 shared-50000)
  workload shared "212 MB and a cache of 262, all of the image shared" 1
}

# Requests for blobs in the log of the registry that move bytes, after MARK.
blob_moves() {
  sleep 0.3   # the log is written after the answer
  tail -n "+$(($1 + 1))" "$REG_LOG" | jq -rR 'fromjson? | select(.msg | startswith("response completed")) |
    [.["http.request.method"], .["http.response.status"], .["http.request.uri"]] | @tsv' |
    grep -P '^(GET|PATCH|PUT)\t.*/blobs/' || true
}
disk_writes() { awk '/^write_bytes/ {print $2}' "/proc/$(lb_daemon_pid "$ROOT_DIR")/io"; }

# A base of 1 GiB, lazy: kept where it is within a registry, streamed to another one.
export_base() {
  local i source before digest started mark pids=() up
  for i in 1 2 3 4 5 6 7 8; do random_tar "base-$i" $((128 << 20)); done
  serve_configure export-base
  serve_start
  registry_start export-src "$STORES/src"
  local src=$REG
  mapfile -t layers < <(tar_options --layer base-{1..8})
  export_lb export --base scratch --compression none --image "$src/base:1" "${layers[@]}"
  export_lb copy "$src/base:1" "oci:$SCRATCH/base:1"
  serve_stop
  serve_configure export-lazy   # a daemon that has seen nothing of it
  serve_start
  link_start "$LINK_RATE" "$LINK_DELAY" "$src"
  source=${LINK[0]}
  local source_counters=$LINK_COUNTERS

  mark=$(registry_mark)
  before=$(($(link_bytes up) + $(link_bytes down)))
  export_lb copy "$source/base:1" "$source/base:again" "$source/other/base:1"
  value base-same "$(awk -v n="$(($(link_bytes up) + $(link_bytes down) - before))" 'BEGIN {print n / 1e3}')"
  [ -z "$(blob_moves "$mark")" ] || die "layer bytes move within a registry: $(blob_moves "$mark" | head -3)"
  row "base of 1 GiB: retag, and push to a second repository, all traffic" base-same - 100 KB

  log "base: download alone"
  started=$(now_ms)
  for digest in $(image_layers_of "$source" base 1); do
    curl -sf -o /dev/null "http://$source/v2/base/blobs/$digest" &
    pids+=($!)
  done
  for i in "${pids[@]}"; do wait "$i" || die "curl"; done
  value base-download $(($(now_ms) - started))
  log "base: upload alone"
  registry_start export-up "$STORES/up"
  link_start "$LINK_RATE" "$LINK_DELAY" "$REG"
  started=$(now_ms)
  skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$SCRATCH/base:1" "docker://${LINK[0]}/base:1" || die "skopeo"
  value base-upload $(($(now_ms) - started))
  end_process "$LINK_PID"
  registry_stop
  rm -rf "$STORES/up" "$SCRATCH/base"

  log "base: from one registry to the other"
  registry_start export-dst "$STORES/dst"
  link_start "$LINK_RATE" "$LINK_DELAY" "$REG"
  before=$(disk_writes)
  started=$(now_ms)
  export_lb copy "$source/base:1" "${LINK[0]}/base:1"
  value base-copy $(($(now_ms) - started))
  value base-written "$(awk -v n="$(($(disk_writes) - before))" 'BEGIN {print n / 1e6}')"
  value base-memory "$(awk '/^VmHWM:/ {print $2 * 1024 / 1e6}' "/proc/$(lb_daemon_pid "$ROOT_DIR")/status")"
  value base-left "$(du -s -B1 "$ROOT_DIR" | awk '{print $1 / 1e6}')"
  up=$(link_bytes up)
  value base-sent "$(awk -v n="$up" 'BEGIN {print n / 1e6}')"
  value base-bytes "$(awk -v s=$SHRINK 'BEGIN {print 2 ^ 30 / 1e6 / s}')"
  value base-slower "$(sort -k2 -n -t"$(printf '\t')" <(grep -P '^base-(download|upload)\t' "$RESULTS") | tail -1 | cut -f2)"
  row "base of 1 GiB to another registry (the slower of download and upload, each alone)" base-copy base-slower 1.15 ms
  row "base of 1 GiB to another registry: sent (its bytes)" base-sent base-bytes 1.01 MB
  row "base of 1 GiB to another registry: written to disk by the daemon" base-written - 2 MB
  row "base of 1 GiB to another registry: left below the daemon's root" base-left - 2 MB
  row "base of 1 GiB to another registry: the daemon's memory" base-memory - 160 MB
  serve_stop
  rm -rf "${STORES:?}"/*
}
image_layers_of() { skopeo inspect --raw --tls-verify=false "docker://$1/$2:$3" | jq -r '.layers[].digest'; }

successor_serves() {
  local now; now=$(lb_daemon_pid "$ROOT_DIR")
  [ -n "$now" ] && [ "$now" != "$1" ] &&
    "$PYTHON" -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$ROOT_DIR/control.sock"
}
# kill -9 of the daemon at 60 % of an upload of 1 GiB, to the registry behind the link; the next copy goes on.
killed_upload() {
  local series=$1 source=$2 size=$((2 ** 30 / SHRINK)) old copy
  link_start 100000000 1 "$REG"
  (export_lb copy "$source" "${LINK[0]}/big:1") 2> /dev/null &
  copy=$!
  while [ "$(link_bytes up)" -lt $((size * 6 / 10)) ]; do
    kill -0 "$copy" 2>/dev/null || die "the upload ended by itself: $(tail -1 "$SCRATCH/export.err")"
    sleep 0.02
  done
  old=$(lb_daemon_pid "$ROOT_DIR")
  kill -9 "$old"
  sleep 0.3   # what was on its way has been counted
  value "$series-before" "$(awk -v n="$(link_bytes up)" 'BEGIN {print n / 2 ^ 20}')"
  if wait "$copy"; then die "the copy survived the daemon it asked"; fi
  wait_until 20 "no successor" successor_serves "$old"
  export_lb copy "$source" "${LINK[0]}/big:1"
  value "$series-again" "$(awk -v n="$(link_bytes up)" -v s="$size" 'BEGIN {print (n - s) / 2 ^ 20}')"
  rm -rf "$SCRATCH/killed"
  skopeo copy -q --src-tls-verify=false "docker://$REG/big:1" "dir:$SCRATCH/killed" || die "skopeo cannot verify what was resumed"
  rm -rf "$SCRATCH/killed"
  end_process "$LINK_PID"
}
export_kill() {
  local source dir=$SCRATCH/personality server
  random_tar big $((1 << 30))
  serve_configure export-kill
  serve_start
  registry_start export-src "$STORES/big"
  source=$REG/big:1
  export_lb export --base scratch --compression none --layer "tar:$EXPORT_DIR/big.tar" --image "$source"
  log "kill: sessions that survive"
  mkdir -p "$dir"
  "$BUILD_DIR/tests/test_registry_server" --personality distribution --uploads "$dir" --host-file "$SCRATCH/personality.host" > "$SCRATCH/server.out" &
  server=$!
  disown "$server"
  on_exit "end_process $server"
  wait_until 10 "test_registry_server did not start" test -s "$SCRATCH/personality.host"
  REG=$(cat "$SCRATCH/personality.host")
  killed_upload kill-kept "$source"
  end_process "$server"
  rm -rf "$dir"
  log "kill: docker-registry"
  registry_start export-dst "$STORES/kill"
  killed_upload kill-lost "$source"
  row "upload of 1 GiB, daemon killed at 60 %: sent again where sessions survive" kill-kept-again - 8.5 MiB
  row "the same, docker-registry: sent again (sent before; the session is lost with a PATCH that is cut)" kill-lost-again kill-lost-before 1.02 MiB
  serve_stop
}

export_part() {
  local part
  need_tools docker-registry skopeo jq curl
  [ -x "$SHAPED_LINK" ] || die "no shaped_link in $BUILD_DIR: configure with -DLAZYBLOB_BENCH=ON (make bench)"
  # In memory (4 GB at most): it is the link that is measured, not the registry's disk.
  STORES=$(mktemp -d /dev/shm/lazyblob-bench.XXXXXX)
  on_exit "rm -rf '$STORES'"
  note "export: link of $((LINK_RATE * 8 / 1000000)) Mbit/s each way, $((LINK_DELAY * 2)) ms; $(skopeo --version); load at the start $(cut -d' ' -f1-3 /proc/loadavg)"
  [ -z "$SMOKE" ] || LAZYBLOB_EXPORT=${LAZYBLOB_EXPORT:-java two base}   # what is left of 1 GiB is gone before it could be killed
  for part in ${LAZYBLOB_EXPORT:-java go two shared base kill}; do "export_$part"; done
  [ -n "${LAZYBLOB_KEEP_TARS:-}" ] || rm -rf "$EXPORT_DIR"
}

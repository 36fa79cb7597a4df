# A containerd of our own (Debian's), beside whatever runs on the machine: converts images with ctr-remote, judges
# unpacking, and runs containers for scripts that are in a namespace of their own (namespace.sh).
#
#   containerd_start NAME [SNAPSHOTTER]   sets CTR_ADDRESS; state in $CTR_PARENT/NAME, removed by containerd_stop
#   containerd_stop [PID DIR]
#   containerd_kill, containerd_launch    kill -9 the last one; start it again on the same state
#   ctr_ ARGS…, ctr_remote ARGS…          ctr and ctr-remote on it, bounded in time
# To be set before the start, if at all:
#   CTR_PARENT    where the state lies; default $WORK/containerd
#   CTR_EXTRA     more lines of its configuration
#   CTR_RUN       words before each command, e.g. those that enter another root (trixie.sh)

CTR_RUN=()

containerd_start() {
  local name=$1
  CTR_SNAPSHOTTER=${2:-overlayfs}
  CTR_DIR=${CTR_PARENT:-$WORK/containerd}/$name
  unmount_below "$CTR_DIR"
  rm -rf --one-file-system "$CTR_DIR"
  mkdir -p "$CTR_DIR/root" "$CTR_DIR/state"
  CTR_ADDRESS=$CTR_DIR/containerd.sock
  cat > "$CTR_DIR/config.toml" <<CONFIG
version = 2
root = "$CTR_DIR/root"
state = "$CTR_DIR/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "$CTR_ADDRESS"
${CTR_EXTRA:-}
CONFIG
  : > "$CTR_DIR/log"
  containerd_launch
}

containerd_launch() {
  "${CTR_RUN[@]}" containerd --config "$CTR_DIR/config.toml" --log-level "${CTR_LOG_LEVEL:-warn}" >> "$CTR_DIR/log" 2>&1 &
  CTR_PID=$!
  disown "$CTR_PID"
  on_exit "containerd_stop $CTR_PID '$CTR_DIR'"
  wait_until 30 "containerd did not start, see $CTR_DIR/log" "${CTR_RUN[@]}" ctr --address "$CTR_ADDRESS" version
}

containerd_kill() {
  kill -9 "$CTR_PID"
  while kill -0 "$CTR_PID" 2>/dev/null; do sleep 0.02; done
}

containerd_stop() {
  local pid=${1:-$CTR_PID} dir=${2:-$CTR_DIR}
  end_process "$pid"
  unmount_below "$dir"
  rm -rf --one-file-system "$dir"
}

ctr_() { "${CTR_RUN[@]}" timeout -k 5 300 ctr --address "$CTR_ADDRESS" "$@"; }
ctr_remote() { "${CTR_RUN[@]}" timeout -k 5 300 ctr-remote --address "$CTR_ADDRESS" "$@"; }

# Unpacks REF (pulled over plain http) and mounts its root read-only at DIR.
containerd_unpack() {
  local ref=$1 dir=$2
  mkdir -p "$dir"
  ctr_ images pull --plain-http --snapshotter "$CTR_SNAPSHOTTER" "$ref" >/dev/null
  ctr_ images mount --snapshotter "$CTR_SNAPSHOTTER" "$ref" "$dir" >/dev/null
}

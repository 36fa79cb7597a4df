# lazyblobd as containerd's snapshotter. After common.sh, lazyblob.sh, registry.sh and containerd.sh.
#
#   private_programs              copies the programs to $SCRATCH/bin: a build may replace them meanwhile
#   serve_configure NAME [TOML]   a fresh root, socket and configuration: sets ROOT_DIR, LB_SOCKET, LB_CONFIG. Registries
#                                 on 127.0.0.1 named by `serve_plain_http HOST` are spoken to by http
#   serve_start                   starts lazyblobd on them and waits for its socket; sets SERVE_PID (the keeper)
#   serve_stop                    SIGTERM, and everything is gone
#   serve_mounts                  the mounts below ROOT_DIR, sorted: "target type source options"
#   proxy_plugin NAME [LINES]     a stanza of containerd's configuration for it

private_programs() {
  local program
  need_programs
  mkdir -p "$SCRATCH/bin"
  for program in lazyblob lazyblobd lazyblob-keeper; do cp "$BUILD_DIR/$program" "$SCRATCH/bin/"; done
  LAZYBLOB=$SCRATCH/bin/lazyblob LAZYBLOBD=$SCRATCH/bin/lazyblobd LAZYBLOB_KEEPER=$SCRATCH/bin/lazyblob-keeper
}

serve_configure() {
  lb_root "$1"
  LB_RUN=$SCRATCH/run-$1
  LB_SOCKET=$LB_RUN/lazyblob.sock LB_CONFIG=$SCRATCH/$1.toml LB_LOG=$SCRATCH/$1.log LB_HOSTS=$SCRATCH/hosts.d
  mkdir -p "$LB_HOSTS"
  : > "$LB_LOG"
  { printf '%s\n' "${2:-}"
    printf '[registry]\nconfig_path = "%s"\n' "$LB_HOSTS"; } > "$LB_CONFIG"
}

serve_plain_http() {
  mkdir -p "$LB_HOSTS/$1"
  printf 'server = "http://%s"\n' "$1" > "$LB_HOSTS/$1/hosts.toml"
}

serve_start() {
  "$LAZYBLOBD" --config "$LB_CONFIG" --root "$ROOT_DIR" --address "$LB_SOCKET" >> "$LB_LOG" 2>&1 &
  SERVE_PID=$!
  disown "$SERVE_PID"
  wait_until 30 'lazyblobd did not start, see $LB_LOG: $(tail -2 "$LB_LOG")' test -S "$LB_SOCKET"
  wait_until 30 "lazyblobd does not answer" lb --root "$ROOT_DIR" status
}

serve_stop() {
  kill -TERM "$SERVE_PID" 2>/dev/null || true
  wait_until 30 "lazyblobd does not end" lb_no_daemon "$ROOT_DIR"
}

serve_mounts() {
  awk -v d="$ROOT_DIR" '$5 == d || index($5, d "/") == 1 {for (i = 7; $i != "-"; i++); print $5, $(i + 1), $6}' \
    /proc/self/mountinfo | sort
}

proxy_plugin() {
  printf '[proxy_plugins.%s]\n  type = "snapshot"\n  address = "%s"\n%s\n' "$1" "$LB_SOCKET" "${2:-}"
}

# "digest size" of each layer of REPO:TAG in $REG.
image_layers() {
  skopeo inspect --raw --tls-verify=false "docker://$REG/$1" |
    "$PYTHON" -c 'import json,sys; [print(d["digest"], d["size"]) for d in json.load(sys.stdin)["layers"]]'
}
image_size() { image_layers "$1" | awk '{s += $2} END {print s}'; }

# How many layers of REPO:TAG lie in containerd's content store.
content_has_layers() {
  ctr_ content ls -q | grep -cxF -f <(image_layers "$1" | cut -d' ' -f1) || true
}

# Bytes of blobs that docker-registry sent since MARK.
fetched_since() {
  sleep 0.3   # the log is written after the answer
  "$PYTHON" "$E2E_DIR/lazy_count.py" --from "$1" --json "$REG_LOG" |
    "$PYTHON" -c 'import json,sys; print(json.load(sys.stdin)["blob_bytes"])'
}
requests_since() { sleep 0.3; tail -n "+$(($1 + 1))" "$REG_LOG" | grep -c '"response completed' || true; }
percent() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.1f", 100 * a / b}'; }
megabytes() { awk -v b="$1" 'BEGIN {printf "%.1f", b / 1e6}'; }

# The options of the mount that containerd is given for a snapshot: snapshot_option KEY NAME prints the values of NAME.
snapshot_mount() { ctr_ snapshots --snapshotter "$CTR_SNAPSHOTTER" mounts "$SCRATCH/at" "$1"; }
snapshot_option() { snapshot_mount "$1" | grep -oE "[ ,]$2=[^, ]*" | sed "s/^.$2=//" | tr ':' '\n'; }

# After images are gone and containerd has collected: nothing of theirs may be left. Prints what is.
left_behind() {
  local snapshots
  snapshots=$(ctr_ snapshots --snapshotter "$CTR_SNAPSHOTTER" ls | tail -n +2)
  [ -z "$snapshots" ] || printf 'snapshots: %s\n' "$snapshots"
  serve_mounts | sed 's/^/mount: /'
  find "$ROOT_DIR/s" -mindepth 1 -maxdepth 1 2>/dev/null | sed 's/^/directory: /'
  find "$ROOT_DIR/m" -mindepth 1 -maxdepth 1 2>/dev/null | sed 's/^/mount point: /'
}
cache_bytes() { du -s -B1 "$ROOT_DIR/layers" 2>/dev/null | cut -f1; }

# Removes all containers, images and leases of the namespace, and has containerd collect what was theirs.
remove_everything() {
  local name
  for name in $(ctr_ tasks ls -q); do ctr_ tasks kill -s KILL "$name" > /dev/null 2>&1 || true; done
  for name in $(ctr_ tasks ls -q); do ctr_ tasks rm -f "$name" > /dev/null 2>&1 || true; done
  for name in $(ctr_ containers ls -q); do ctr_ containers rm "$name" > /dev/null || return 1; done
  for name in $(ctr_ images ls -q); do ctr_ images rm "$name" > /dev/null || return 1; done
  # containerd looks for what it does not know only in snapshotters of which it has just removed something
  ctr_ snapshots --snapshotter "$CTR_SNAPSHOTTER" prepare collect > /dev/null || return 1
  ctr_ snapshots --snapshotter "$CTR_SNAPSHOTTER" rm collect || return 1
  ctr_ leases create --id collect > /dev/null || return 1   # what a killed client leased goes too
  for name in $(ctr_ leases ls -q); do ctr_ leases rm --sync "$name" > /dev/null || return 1; done
}

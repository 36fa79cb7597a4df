#!/bin/bash
# lazyblobd as snapshotter and content store of Debian 13's containerd 1.7: clients that send no label of ours.
#   e2e_content_trixie.sh [PART…]   parts (default: all):
#   transfer   ctr images pull by the transfer service; listed, checked, run
#   docker     dockerd's image store: pull, run, commit, push, save and load, build; bytes moved per step are printed
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob containerd snapshotter trixie; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry openssl skopeo nsenter unshare
trixie_machine
. "$E2E_DIR/lib/table.sh"
START='import json, re, sys; print(json.dumps(list(range(3))))'
TRIXIE_EXEC+=("SSL_CERT_FILE=$SCRATCH/ca.crt")
CTR_RUN=("${TRIXIE_EXEC[@]}")

# The transfer service of 1.7 speaks only TLS: the registry on STORE, and whoever asks it, with a certificate of this run.
tls_registry() {
  local dir=$SCRATCH/registry-$1
  mkdir -p "$dir"
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=e2e -addext subjectAltName=IP:127.0.0.1 \
    -keyout "$dir/key" -out "$SCRATCH/ca.crt" 2> /dev/null
  REG_LOG=$dir/access.log
  cat > "$dir/config.yml" <<CONFIG
version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: $2, maxthreads: 200}
  maintenance: {uploadpurging: {enabled: false}}
http: {addr: "127.0.0.1:0", secret: e2e, tls: {certificate: $SCRATCH/ca.crt, key: $dir/key}}
CONFIG
  docker-registry serve "$dir/config.yml" > "$REG_LOG" 2>&1 &
  REG_PID=$!
  disown "$REG_PID"
  on_exit "end_process $REG_PID"
  wait_until 20 "docker-registry did not start, see $REG_LOG" grep -q '"msg":"listening on' "$REG_LOG"
  REG=$(sed -n 's/.*"msg":"listening on \(127[0-9.:]*\).*/\1/p' "$REG_LOG" | head -1)
}

eval "_$(declare -f containerd_launch)"
containerd_launch() {
  sed -i 's/"io.containerd.grpc.v1.cri", /&"io.containerd.content.v1.content", /' "$CTR_DIR/config.toml"
  _containerd_launch
}
machine() {
  tls_registry "$1" "$WORK/images/registry"
  serve_configure "$1" "[content]
enabled = true
containerd_address = \"$SCRATCH/containerd-$1/containerd.sock\""
  mkdir -p "$LB_HOSTS/$REG"
  printf 'server = "https://%s"\nca = "%s"\n' "$REG" "$SCRATCH/ca.crt" > "$LB_HOSTS/$REG/hosts.toml"
  serve_start
  CTR_EXTRA="$(proxy_plugin stargz)
[proxy_plugins.lazyblob-content]
  type = \"content\"
  address = \"$LB_SOCKET\"
[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]
  platform = \"linux/$(dpkg --print-architecture)\"
  snapshotter = \"stargz\""
  containerd_start "containerd-$1" stargz
}
machine_end() {
  wait_until 60 "$1: something is left behind: \$(left_behind | head -c 400)" nothing_left
  containerd_stop
  serve_stop
  registry_stop
}
nothing_left() { [ -z "$(left_behind)" ]; }
says_json() { grep -qx '\[0, 1, 2\]' "$1" || fail "$2: python3 said $(tail -1 "$1")"; }
has_all_layers() { [ "$(content_has_layers "$1")" = "$(image_layers "$1" | wc -l)" ]; }
# moved WHAT MARK SIZE [PERCENT]: what was fetched since MARK; more than PERCENT is a failure
moved() {
  local got; got=$(fetched_since "$2")
  [ "$got" -le $(($3 * ${4:-100} / 100)) ] || fail "$1: $got of $3 bytes fetched, more than ${4:-100} %"
  log "$1: $(megabytes "$got") of $(megabytes "$3") MB ($(percent "$got" "$3") %)"
}

part_transfer() {
  local ref size mark
  machine transfer
  ref=$REG/debian:estargz size=$(image_size debian:estargz)
  mark=$(registry_mark)
  ctr_ images pull --local=false --platform "linux/$(dpkg --print-architecture)" --snapshotter stargz "$ref" > "$SCRATCH/out" 2>&1 || fail "pull: $(tail -1 "$SCRATCH/out")"
  moved "ctr images pull --local=false" "$mark" "$size" 30
  ctr_ run --rm --snapshotter stargz "$ref" "json-$RANDOM" /usr/bin/python3 -c "$START" > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" "ctr run"
  moved "ctr run" "$mark" "$size" 30
  wait_until 30 'content ls lists $(content_has_layers debian:estargz) layers' has_all_layers debian:estargz
  remove_everything || fail "images cannot be removed"
  machine_end transfer
}

part_docker() {
  local ref size mark own own_log own_pid id
  machine docker
  CTR_RUN+=(CONTAINERD_NAMESPACE=moby)
  dockerd_start
  ref=$REG/debian:estargz size=$(image_size debian:estargz)
  mark=$(registry_mark)
  "${DOCKER[@]}" pull -q "$ref" > "$SCRATCH/out" 2>&1 || fail "docker pull: $(tail -1 "$SCRATCH/out")"
  moved "docker pull" "$mark" "$size" 30
  "${DOCKER[@]}" run --network none --name changed "$ref" /bin/sh -c "echo changed > /changed; /usr/bin/python3 -c '$START'" \
    > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" "docker run"
  moved "docker pull, run" "$mark" "$size" 30
  wait_until 30 'content ls lists $(content_has_layers debian:estargz) layers' has_all_layers debian:estargz

  mark=$(registry_mark)
  "${DOCKER[@]}" commit changed committed > "$SCRATCH/out" 2>&1 || fail "docker commit: $(tail -1 "$SCRATCH/out")"
  # containerd's differ reads files whose times have no nanoseconds, and those of an image have none.
  moved "docker commit" "$mark" "$size"
  "${DOCKER[@]}" run --rm --network none committed cat /changed > "$SCRATCH/out" 2>&1 || true
  grep -qx changed "$SCRATCH/out" || fail "the committed image: $(tail -1 "$SCRATCH/out")"

  own=$REG own_log=$REG_LOG own_pid=$REG_PID mark=$(registry_mark)
  registry_start content-trixie-other "$SCRATCH/other"
  "${DOCKER[@]}" tag committed "$REG/app:1"
  "${DOCKER[@]}" push -q "$REG/app:1" > "$SCRATCH/out" 2>&1 || fail "docker push: $(tail -1 "$SCRATCH/out")"
  skopeo copy -q --src-tls-verify=false "docker://$REG/app:1" "oci:$SCRATCH/pushed:image" || fail "what was pushed is not whole"
  registry_stop
  REG=$own REG_LOG=$own_log REG_PID=$own_pid
  moved "docker push elsewhere" "$mark" "$size" 105

  mark=$(registry_mark)
  "${DOCKER[@]}" save -o "$SCRATCH/saved.tar" committed > "$SCRATCH/out" 2>&1 || fail "docker save: $(tail -1 "$SCRATCH/out")"
  "${DOCKER[@]}" load -i "$SCRATCH/saved.tar" > "$SCRATCH/out" 2>&1 || fail "docker load: $(tail -1 "$SCRATCH/out")"
  moved "docker save, load" "$mark" "$size" 105

  mkdir -p "$SCRATCH/context"
  printf 'FROM %s\nRUN python3 -c "%s" > /made\n' "$ref" 'import json; print(json.dumps(list(range(3))))' > "$SCRATCH/context/Dockerfile"
  mark=$(registry_mark)
  "${DOCKER[@]}" build --network=host --progress=plain -t built "$SCRATCH/context" > "$SCRATCH/build.out" 2>&1 ||
    fail "docker build: $(tail -5 "$SCRATCH/build.out")"
  moved "docker build" "$mark" "$size" 105
  "${DOCKER[@]}" run --rm --network none built cat /made > "$SCRATCH/out" 2>&1 || true
  says_json "$SCRATCH/out" "the built image"

  "${DOCKER[@]}" rm -f changed > /dev/null || fail "rm"
  for id in $("${DOCKER[@]}" images -q | sort -u); do "${DOCKER[@]}" rmi -f "$id" > /dev/null || fail "rmi $id"; done
  "${DOCKER[@]}" builder prune -af > /dev/null || fail "builder prune"
  "${DOCKER[@]}" image prune -af > /dev/null || fail "image prune"
  wait_until 60 'dockerd: left behind: $(left_behind | head -c 400)' nothing_left
  end_process "$DOCKERD_PID"
    machine_end docker
}

[ $# -gt 0 ] || set -- transfer docker
run_parts "$@"
end_with_failures

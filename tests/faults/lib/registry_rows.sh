# What the rows of registry.sh have in common. Sourced after faults.sh.
#
#   lazy NAME [OPTIONS of make_image]   an image on a test registry of its own ($EVIL), mounted at $AT, nothing read yet
#   mount_it NAME REF                   mounts it at $AT by plain http; mount_tls: by https
#   all_right WHAT [FILE…]              all of them are read, right, without an errno; says so
#   outcomes WHAT COUNTS [FILE…]        e.g. "1 right, 1 EIO", in time
#   bad_answers WHAT FILE FIELDS        while blobs are answered with these fields of a rule: EIO; without: right
#   comes_back [FILE…]                  all of them are read right, at last: after a deadline, reads around it fail for 5 s
#   resumed                             the log has a request that begins inside a range asked for before
#   status_tells TEXT                   `lazyblob status` does
#   hosts_toml HOST TEXT, unreachable HOST OTHER    lazyblobd goes to OTHER for HOST
#   docker_config HOST USER PASSWORD    for mounts that follow, and those there are
#   containerd_with_us NAME             lazyblobd and a containerd of the row; rpull REF; at_snapshot: $AT is the last
#                                       image's view; leave_snapshot; nothing_half: no snapshot, mount, directory is left
#   certificates KIND…                  $CERTIFICATES/KIND.pem with their keys, and ca.pem: good, expired, elsewhere, selfsigned
#   tls_start KIND HOST, tls_serve KIND TLS in front of HOST: $TLS, $TLS_LOG; another certificate from now on
#   dns_start NAME ADDRESS|silent, dns_stop         the name server of the script
#   successor                           kill -9 of the daemon; the next one serves

READ_DEADLINE=3
IN_TIME=10   # seconds until a program must have its answer: the deadline, and what a slow machine adds

cat > "$SCRATCH/resolv.conf" <<'RESOLV'
nameserver 127.0.0.53
options timeout:1 attempts:1
RESOLV
mount --bind "$SCRATCH/resolv.conf" /etc/resolv.conf

mount_it() {
  AT=$SCRATCH/at-$1
  lb_mount auto "$2" "$AT" || die "$2 cannot be mounted"
  on_exit "lb_umount '$AT' || unmount_below '$AT'"
}
mount_tls() {
  AT=$SCRATCH/at-$1
  mkdir -p "$AT"
  lb --root "$ROOT_DIR" mount --progress none "$2" "$AT" > /dev/null 2> "$SCRATCH/mount.err" || die "$(cat "$SCRATCH/mount.err")"
  on_exit "lb_umount '$AT' || unmount_below '$AT'"
}
lazy() {
  make_image "$@"
  evil_start "$1=$IMAGE_LAYOUT"
  mount_it "$1" "$EVIL/$1:latest"
}

all_right() {
  local what=$1
  shift
  oracle "$IMAGE_TREE" "$AT" --errno none --deadline "$IN_TIME" "$@" || wrong "$what: $ORACLE; $(tail -1 "$LB_LOG")"
  seen "$what: $ORACLE"
}
outcomes() {
  local what=$1 counts=$2 got
  shift 2
  oracle "$IMAGE_TREE" "$AT" --deadline "$IN_TIME" "$@" || wrong "$what: $ORACLE"
  got=${ORACLE%%, longest*}
  [ "$got" = "$counts" ] || wrong "$what: $counts expected, got $got; $(tail -1 "$LB_LOG")"
  seen "$what: $ORACLE"
}
bad_answers() {
  local what=$1 file=$2
  evil_fault "{\"path_contains\": \"/blobs/\", $3}"
  outcomes "$what" "1 EIO" "$file"
  evil_clear
  comes_back "$file"
}
comes_back() {
  wait_until 60 "not read again: ${*:-all}: $(tail -1 "$LB_LOG")" oracle "$IMAGE_TREE" "$AT" --errno none --deadline "$IN_TIME" "$@"
}
resumed() {
  evil GET log | "$PYTHON" -c '
import json, re, sys
ranges = [tuple(map(int, m.groups())) for r in json.load(sys.stdin) if (m := re.fullmatch(r"bytes=(\d+)-(\d+)", r["range"]))]
print(ranges[-3:], file=sys.stderr)
sys.exit(not any(a[0] < b[0] <= a[0] + 300000 and a[1] == b[1] for a in ranges for b in ranges))' 2> "$SCRATCH/ranges" ||
    wrong "no request goes on where the body ended: $(cat "$SCRATCH/ranges")"
}
status_tells() {
  lb --root "$ROOT_DIR" status --json > "$SCRATCH/status.json"
  grep -qF "$1" "$SCRATCH/status.json" || wrong "status does not tell '$1': $(grep -o '"last_error": "[^"]\+"' "$SCRATCH/status.json" | tail -1)"
}
# Where the bytes of a file lie in the largest blob of the image, some way in.
blob_offset() {
  "$PYTHON" - "$IMAGE_LAYOUT" "$IMAGE_TREE/$1" <<'OFFSET'
import os, sys, zlib
blob = max((os.path.join(at, n) for at, _, names in os.walk(sys.argv[1]) for n in names), key=os.path.getsize)
data, want = open(blob, "rb").read(), open(sys.argv[2], "rb").read()
at = data.find(want[1000:1064])   # random bytes are stored as they are
assert at >= 0
print(at + 20)
OFFSET
}

successor() {
  local old now
  old=$(lb_daemon_pid "$ROOT_DIR")
  kill -9 "$old"
  another() { now=$(lb_daemon_pid "$ROOT_DIR"); [ -n "$now" ] && [ "$now" != "$old" ]; }
  wait_until 30 "no successor" another
  wait_until 30 "the successor does not answer" lb --root "$ROOT_DIR" status
}
# Ends all connections of the registry: that of the request itself too.
break_connections() { curl -s -o /dev/null --max-time 30 -X POST "http://$EVIL/_test/break_connections" || true; }
hosts_toml() {
  mkdir -p "$LB_HOSTS/$1"
  printf '%s\n' "$2" > "$LB_HOSTS/$1/hosts.toml"
}
unreachable() { hosts_toml "$1" "server = \"http://$2\""; }
docker_config() {
  export DOCKER_CONFIG=$SCRATCH/docker
  mkdir -p "$DOCKER_CONFIG"
  printf '{"auths":{"%s":{"auth":"%s"}}}' "$1" "$(printf '%s:%s' "$2" "$3" | base64)" > "$DOCKER_CONFIG/config.json.new"
  mv "$DOCKER_CONFIG/config.json.new" "$DOCKER_CONFIG/config.json"
}
# docker-registry, as 16a has it, with another password for its user.
restart_registry() {
  local dir=$WORK/registry/faults-$$
  registry_stop
  htpasswd -Bbn tester "$1" > "$dir/htpasswd"
  sed -i "s|addr: \"127.0.0.1:0\"|addr: \"$REG\"|" "$dir/config.yml"
  docker-registry serve "$dir/config.yml" >> "$REG_LOG" 2>&1 &
  REG_PID=$!
  disown "$REG_PID"
  on_exit "end_process $REG_PID"
  wait_until 30 "docker-registry does not answer again" curl -s -o /dev/null "http://$REG/v2/"
}

containerd_with_us() {
  serve_configure "$1" "[fuse]
read_deadline = \"${READ_DEADLINE}s\"
[snapshotter]
resolve_timeout = \"5s\""
  serve_start
  CTR_PARENT=$SCRATCH CTR_EXTRA=$(proxy_plugin lazyblob)
  containerd_start "containerd-$1" lazyblob
}
rpull() { ctr_remote images rpull --plain-http --snapshotter lazyblob "$1" > "$SCRATCH/pull.err" 2>&1; }
at_snapshot() {
  local chain key=snapshot$RANDOM
  AT=$SCRATCH/$key
  mkdir -p "$AT"
  chain=$("$PYTHON" - "$E2E_DIR/lib" "$IMAGE_LAYOUT" <<'CHAIN'
import json, sys
sys.path.insert(0, sys.argv[1])
import ocilayout
layout = ocilayout.Layout(sys.argv[2])
chain, *rest = json.loads(layout.blob(layout.manifest("latest")["config"]["digest"]))["rootfs"]["diff_ids"]
for diff in rest:
    chain = ocilayout.digest(f"{chain} {diff}".encode())
print(chain)
CHAIN
  )
  ctr_ snapshots --snapshotter lazyblob view "$key" "$chain" > /dev/null || die "no view of $chain"
  eval "$(ctr_ snapshots --snapshotter lazyblob mounts "$AT" "$key")" || die "the view of $chain cannot be mounted"
}
leave_snapshot() {
  umount "$AT" || wrong "unmount of $AT"
  # containerd collects what nobody leased, sometimes before us
  ctr_ snapshots --snapshotter lazyblob rm "$(basename "$AT")" 2> "$SCRATCH/view.err" ||
    grep -q 'does not exist' "$SCRATCH/view.err" || wrong "$(cat "$SCRATCH/view.err")"
}
nothing_half() {
  local left
  while read -r AT; do leave_snapshot; done < <(mounts_below "$SCRATCH" | grep -E '/snapshot[0-9]+$')
  left=$(ctr_ snapshots --snapshotter lazyblob ls | awk 'NR > 1 && $NF != "Committed"')
  [ -z "$left" ] || wrong "half a snapshot: $left"
  remove_everything || wrong "images cannot be removed"
  left=$(left_behind)
  [ -z "$left" ] || wrong "left behind: $left"
}

certificates() {
  local kind
  CERTIFICATES=$SCRATCH/certificates
  mkdir -p "$CERTIFICATES/new"
  (
    cd "$CERTIFICATES"
    : > index.txt
    printf '[ca]\ndefault_ca=d\n[d]\ndir=.\ndatabase=index.txt\nnew_certs_dir=new\ndefault_md=sha256\nrand_serial=yes\nunique_subject=no\npolicy=p\ncopy_extensions=copy\n[p]\ncommonName=supplied\n' > ca.cnf
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=authority -keyout ca.key -out ca.pem 2> /dev/null
    for kind in "$@"; do
      local name=IP:127.0.0.1 from=20200101000000Z to=20991231000000Z
      [ "$kind" != expired ] || to=20210101000000Z
      [ "$kind" != elsewhere ] || name=DNS:elsewhere.lazyblob.test
      openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$kind" -addext "subjectAltName=$name" \
        -keyout "$kind.key" -out "$kind.csr" 2> /dev/null
      if [ "$kind" = selfsigned ]; then
        openssl x509 -req -in "$kind.csr" -copy_extensions copy -signkey "$kind.key" -days 3650 -out "$kind.pem" 2> /dev/null
      else
        openssl ca -batch -notext -config ca.cnf -cert ca.pem -keyfile ca.key -startdate $from -enddate $to -in "$kind.csr" -out "$kind.pem" 2> /dev/null
      fi
    done
  ) || die "certificates cannot be made"
}
tls_start() {
  local file=$SCRATCH/tls.host
  TLS_LOG=$SCRATCH/tls.log
  tls_serve "$1"
  : > "$TLS_LOG"
  "$PYTHON" -B "$FAULTS_LIB/servers.py" tls "$2" "$CERTIFICATES/now" "$file" >> "$TLS_LOG" 2>&1 &
  disown $!
  on_exit "end_process $!"
  wait_until 30 "the TLS front did not start: $(tail -1 "$TLS_LOG")" test -s "$file"
  TLS=$(cat "$file")
}
# New connections get that certificate; those there are end.
tls_serve() {
  cat "$CERTIFICATES/$1.pem" "$CERTIFICATES/$1.key" > "$CERTIFICATES/now.new"
  mv "$CERTIFICATES/now.new" "$CERTIFICATES/now"
  [ -z "${EVIL:-}" ] || break_connections
}

DNS_PID=
dns_start() {
  dns_stop
  local file=$SCRATCH/dns.ready
  rm -f "$file"
  "$PYTHON" -B "$FAULTS_LIB/servers.py" dns 127.0.0.53 "$1" "$2" "$file" >> "$SCRATCH/dns.log" 2>&1 &
  DNS_PID=$!
  disown "$DNS_PID"
  on_exit "end_process $DNS_PID"
  wait_until 30 "the name server did not start: $(tail -1 "$SCRATCH/dns.log")" test -e "$file"
}
dns_stop() {
  [ -z "$DNS_PID" ] || end_process "$DNS_PID"
  DNS_PID=
}

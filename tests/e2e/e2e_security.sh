#!/bin/bash
# What docs/SECURITY.md says of processes, sockets, files and secrets. Parts (default: all):
#   privileges  capabilities, no_new_privs and the system call filter of keeper, daemon, its successor and its children
#   access      modes of sockets and state whatever the umask; others cannot connect; nothing listens on a network
#   secrets     a password from a credential helper, right and wrong, is found nowhere
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/namespace.sh"
enter_namespace "$0" "$@"
for part in registry lazyblob snapshotter; do . "$E2E_DIR/lib/$part.sh"; done
need_tools docker-registry htpasswd capsh setpriv ss
make_scratch
chmod 0711 "$SCRATCH"
private_programs
failures=0
fail() { log "FAILED: $*"; failures=$((failures + 1)); }
FIELDS='^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):'
# Bits of capabilities(7); a container's root may have fewer to begin with.
OWN=0x$(awk '/^CapEff:/ {print $2}' /proc/self/status)
OF_DAEMON=$(printf '%016x' $((0x8920001f & OWN)))
OF_KEEPER=$(printf '%016x' $((0x892001ff & OWN)))

MARKER=hunter2-$(tr -dc a-z0-9 < /dev/urandom | head -c 20 || true)
WRONG=wrong-$MARKER
htpasswd() { command htpasswd -Bbn tester "$MARKER"; }   # registry_start's

# A credential helper that says what it may do itself.
mkdir -p "$SCRATCH/helpers" "$SCRATCH/docker"
cat > "$SCRATCH/helpers/docker-credential-marker" <<HELPER
#!/bin/sh
cat > /dev/null
grep -E '$FIELDS' /proc/self/status > "$SCRATCH/helper-status"
printf '{"ServerURL":"","Username":"tester","Secret":"%s"}' "\$(cat "$SCRATCH/password")"
HELPER
chmod 0755 "$SCRATCH/helpers/docker-credential-marker"
printf '{"credsStore":"marker"}' > "$SCRATCH/docker/config.json"
printf %s "$MARKER" > "$SCRATCH/password"
export DOCKER_CONFIG=$SCRATCH/docker PATH=$SCRATCH/helpers:$PATH
registry_start security "$WORK/images/registry" basic

# status FILE WHAT CAPABILITIES
has_only() {
  local none=0000000000000000
  diff <(printf 'CapInh:\t%s\nCapPrm:\t%s\nCapEff:\t%s\nCapBnd:\t%s\nCapAmb:\t%s\nNoNewPrivs:\t1\nSeccomp:\t2\n' \
    $none "$3" "$3" "$3" $none) <(grep -E "$FIELDS" "$1") > "$SCRATCH/diff" || fail "$2: $(cat "$SCRATCH/diff")"
}
processes_have_only() {
  local daemon pid task count=0
  daemon=$(lb_daemon_pid "$ROOT_DIR")
  for pid in $(lb_pids "$ROOT_DIR"); do
    for task in /proc/"$pid"/task/*; do
      if [ "$pid" = "$daemon" ]; then has_only "$task/status" "$1: daemon, thread ${task##*/}" "$OF_DAEMON"
      else has_only "$task/status" "$1: keeper" "$OF_KEEPER"; fi
      count=$((count + 1))
    done
  done
  [ "$count" -gt 4 ] || fail "$1: $count threads were looked at"
}

part_privileges() {
  local old at=$SCRATCH/mnt
  serve_configure privileges
  serve_plain_http "$REG"
  serve_start
  processes_have_only started
  lb_mount auto "$REG/debian:estargz" "$at" || { fail "no mount"; return 0; }
  has_only "$SCRATCH/helper-status" "credential helper" "$OF_DAEMON"
  cat "$at/usr/bin/python3" > /dev/null || fail "what is mounted cannot be read"
  processes_have_only reading
  old=$(lb_daemon_pid "$ROOT_DIR")
  kill -9 "$old"
  successor() { local now; now=$(lb_daemon_pid "$ROOT_DIR"); [ -n "$now" ] && [ "$now" != "$old" ]; }
  wait_until 20 "no successor" successor
  wait_until 20 "the successor does not answer" lb --root "$ROOT_DIR" status
  processes_have_only successor
  grep -q 'it keeps privileges' "$LB_LOG" && fail "not all could be given up: $(grep privileges "$LB_LOG")"
  # not dumpable: who has all that the daemon has, but not SYS_PTRACE, does not see into it, as it does into others
  exe_is_seen() { capsh --drop=cap_sys_ptrace -- -c "readlink /proc/$1/exe" > /dev/null 2>&1; }
  capsh --drop=cap_sys_ptrace -- -c 'exec sleep 60' & old=$!
  wait_until 10 "the control cannot be seen" exe_is_seen "$old"
  kill "$old"
  exe_is_seen "$(lb_daemon_pid "$ROOT_DIR")" && fail "the daemon's memory is open to other processes"
  lb_umount "$at" || fail "umount"
  serve_stop
}

as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
connects() { as_nobody "$PYTHON" -c 'import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1" 2> "$SCRATCH/connect"; }
mode_is() { [ "$(stat -c '%a %u:%g' "$1")" = "$2 0:0" ] || fail "$3: $1 is $(stat -c '%a %u:%g' "$1"), not $2 0:0"; }

part_access() {
  local mask at=$SCRATCH/mnt-access open pid
  echo open > "$SCRATCH/open"; chmod 0644 "$SCRATCH/open"
  as_nobody cat "$SCRATCH/open" > /dev/null || die "nobody cannot even come to $SCRATCH"
  for mask in 0 0777; do
    serve_configure "umask-$mask"
    serve_plain_http "$REG"
    rmdir "$ROOT_DIR"
    open=$(umask); umask $mask
    serve_start
    umask "$open"
    lb_mount auto "$REG/debian:estargz" "$at" || { fail "umask $mask: no mount"; serve_stop; continue; }
    cat "$at/etc/os-release" > /dev/null || fail "umask $mask: nothing can be read"
    mode_is "$ROOT_DIR" 700 "umask $mask"; mode_is "$LB_RUN" 700 "umask $mask"
    mode_is "$LB_SOCKET" 600 "umask $mask"; mode_is "$ROOT_DIR/control.sock" 600 "umask $mask"
    find "$ROOT_DIR" -xdev \( -type d ! -perm 0700 -o -type f ! -perm 0600 -o ! -uid 0 -o ! -gid 0 \) \
      ! -path "$ROOT_DIR/m/*" > "$SCRATCH/wide"
    [ ! -s "$SCRATCH/wide" ] || fail "umask $mask: not private: $(head -5 "$SCRATCH/wide" | xargs stat -c '%a %n')"
    for open in "$LB_SOCKET" "$ROOT_DIR/control.sock"; do
      connects "$open" && fail "umask $mask: nobody is connected to $open"
      grep -q PermissionError "$SCRATCH/connect" || fail "umask $mask: $(tail -1 "$SCRATCH/connect")"
    done
    as_nobody ls "$ROOT_DIR" > /dev/null 2>&1 && fail "umask $mask: nobody sees the state"
    for pid in $(lb_pids "$ROOT_DIR"); do
      ss -Htulnp | grep "pid=$pid," && fail "umask $mask: a process listens on a network"
      ss -Hxlp | grep "pid=$pid," | grep ' @' && fail "umask $mask: an abstract socket"
    done
    lb_umount "$at" || fail "umask $mask: umount"
    serve_stop
  done
}

# Everything that lazyblob has said, been called with, or written.
found_nowhere() {  # WHAT SECRET
  local pid encoded
  encoded=$(printf 'tester:%s' "$2" | base64 -w0)
  for pid in $(lb_pids "$ROOT_DIR"); do
    cat "/proc/$pid/cmdline" "/proc/$pid/environ"
  done > "$SCRATCH/of-processes"
  lb --root "$ROOT_DIR" status > "$SCRATCH/status-text" 2>&1
  lb --root "$ROOT_DIR" status --json > "$SCRATCH/status-json" 2>&1
  find "$ROOT_DIR" "$LB_RUN" "$LB_LOG" "$SCRATCH"/said-* "$SCRATCH/of-processes" "$SCRATCH"/status-{text,json} \
    -xdev -type f -exec grep -laF -e "$2" -e "${encoded%%=*}" {} + > "$SCRATCH/found" || true
  if [ -s "$SCRATCH/found" ]; then
    fail "$1 is in $(tr '\n' ' ' < "$SCRATCH/found")"
  fi
}

part_secrets() {
  local at=$SCRATCH/mnt-secrets refused
  mkdir -p "$at" "$at-2"
  serve_configure secrets 'log_level = "debug"'
  serve_plain_http "$REG"
  serve_start
  printf %s "$WRONG" > "$SCRATCH/password"
  lb --root "$ROOT_DIR" mount --plain-http "$REG/debian:zstdchunked" "$at" > "$SCRATCH/said-wrong" 2>&1 &&
    fail "mounted with a wrong password"
  grep -qE '401|denied|nauthori' "$SCRATCH/said-wrong" || fail "a wrong password: $(cat "$SCRATCH/said-wrong")"
  found_nowhere "the wrong password" "$WRONG"
  printf %s "$MARKER" > "$SCRATCH/password"
  lb --root "$ROOT_DIR" mount --json --plain-http "$REG/debian:estargz" "$at" > "$SCRATCH/said-right" 2>&1 ||
    fail "mount: $(tail -1 "$SCRATCH/said-right")"
  cat "$at/usr/bin/python3" > /dev/null || fail "what is mounted cannot be read"
  # a reference with userinfo is refused, and nothing keeps it
  for refused in "tester:$MARKER@$REG/debian:estargz" "https://tester:$MARKER@$REG/debian:estargz"; do
    lb --root "$ROOT_DIR" mount --plain-http "$refused" "$at-2" > "$SCRATCH/out" 2>&1 && fail "mounted $refused"
  done
  # the registry gone: what a failed read says
  registry_stop
  drop_caches
  timeout 60 cat "$at/usr/lib/x86_64-linux-gnu/libc.so.6" > /dev/null 2>&1 || true
  found_nowhere "the password" "$MARKER"
  # the search itself can find
  printf %s "$MARKER" > "$ROOT_DIR/planted"
  refused=$failures
  found_nowhere "(planted, to be found)" "$MARKER" 2> /dev/null
  [ "$failures" = $((refused + 1)) ] && failures=$refused || fail "the search finds nothing at all"
  rm "$ROOT_DIR/planted"
  lb_umount "$at" || fail "umount"
  serve_stop
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(privileges access secrets)
for part in "${parts[@]}"; do "part_$part"; done
log "$failures failures"
[ "$failures" = 0 ]

# Debian's docker-registry on loopback. Several may run at once; storage outlives them, so that each test starts its
# own on the shared images and has an access log of its own.
#
#   registry_start NAME STORE [none|basic|token]   sets REG (host:port), REG_LOG, REG_PID; for basic and token the
#                                                  user is "tester", the password "secret"; token also sets TOKEN_LOG
#   registry_stop                                  the last one started
# The log is JSON lines; "response completed" lines carry method, uri, remoteaddr, status, written.

registry_start() {
  local name=$1 store=$2 auth=${3:-none} dir=$WORK/registry/$1
  mkdir -p "$dir" "$store"
  REG_LOG=$dir/access.log
  local config=$dir/config.yml
  cat > "$config" <<CONFIG
version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage:
  delete: {enabled: true}
  filesystem: {rootdirectory: $store, maxthreads: 200}
  maintenance: {uploadpurging: {enabled: false}}
http: {addr: "127.0.0.1:0", secret: e2e}
validation: {disabled: true}
CONFIG
  case $auth in
    none) ;;
    basic)
      htpasswd -Bbn tester secret > "$dir/htpasswd"
      printf 'auth: {htpasswd: {realm: e2e, path: %s}}\n' "$dir/htpasswd" >> "$config" ;;
    token) _token_server_start "$dir" "$config" ;;
    *) die "unknown registry auth '$auth'" ;;
  esac
  : > "$REG_LOG"   # a start before may have left its port there
  docker-registry serve "$config" >> "$REG_LOG" 2>&1 &
  REG_PID=$!
  disown "$REG_PID"
  on_exit "end_process $REG_PID"
  wait_until 20 "docker-registry '$name' did not start, see $REG_LOG" grep -q '"msg":"listening on' "$REG_LOG"
  REG=$(sed -n 's/.*"msg":"listening on \(127[^"]*\)".*/\1/p' "$REG_LOG" | head -1)
}

registry_stop() { end_process "$REG_PID"; }

_token_server_start() {
  local dir=$1 config=$2 pid
  TOKEN_LOG=$dir/token.log
  rm -f "$dir/token.port"
  [ -s "$dir/token.key" ] || openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=e2e-issuer \
    -keyout "$dir/token.key" -out "$dir/token.crt" 2>/dev/null
  "$PYTHON" "$E2E_DIR/lib/token_server.py" --key "$dir/token.key" --certificate "$dir/token.crt" \
    --log "$TOKEN_LOG" --port-file "$dir/token.port" &
  pid=$!
  disown "$pid"
  on_exit "end_process $pid"
  wait_until 20 "the token server did not start" test -s "$dir/token.port"
  printf 'auth: {token: {realm: "http://127.0.0.1:%s/token", service: e2e, issuer: e2e-issuer, rootcertbundle: %s}}\n' \
    "$(cat "$dir/token.port")" "$dir/token.crt" >> "$config"
}

# How many log lines there are now: a mark for "from here on".
registry_mark() { wc -l < "$REG_LOG"; }

# proxy_start NAME [OPTIONS…]: range_proxy.py before $REG; sets PROXY (host:port), PROXY_LOG, PROXY_HOLD (a file that
# holds blob answers back while it exists).
proxy_start() {
  local dir=$WORK/registry/$1 pid
  shift
  mkdir -p "$dir"
  PROXY_LOG=$dir/proxy.log PROXY_HOLD=$dir/hold
  rm -f "$PROXY_HOLD" "$dir/proxy.port"
  "$PYTHON" "$E2E_DIR/lib/range_proxy.py" --upstream "$REG" --log "$PROXY_LOG" --port-file "$dir/proxy.port" \
    --hold "$PROXY_HOLD" "$@" &
  pid=$!
  disown "$pid"
  on_exit "rm -f '$PROXY_HOLD'; end_process $pid"
  wait_until 20 "the proxy did not start" test -s "$dir/proxy.port"
  PROXY=127.0.0.1:$(cat "$dir/proxy.port")
}

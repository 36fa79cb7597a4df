# Debian 13 in a folder: containerd 1.7, docker and ctr-remote newer than this machine's, as Debian ships them.
#
#   trixie_make             makes $WORK/trixie/root once, in less than a minute; sets TRIXIE
#   trixie_enter            after enter_namespace: a second mount namespace with the folder as its root (in a chroot no
#                           container could have user namespaces). $SCRATCH lies at the same path there, and what is
#                           mounted below it on one side is mounted on the other
#   in_trixie CMD…          runs there with nothing of this machine's environment; "${TRIXIE_EXEC[@]}" CMD… & where the
#                           process id matters
#   trixie_version PACKAGE  upstream part of its version
#   trixie_machine          all a script does before its parts: images, $SCRATCH, both of the above; then containerd_start
#                           starts the containerd of the folder
#   dockerd_start           dockerd there on containerd_start's containerd, with its image store on the snapshotter
#                           "stargz"; sets DOCKERD_PID, and "${DOCKER[@]}" for its docker
# LAZYBLOB_MIRROR names another Debian mirror. TRIXIE_SUITE=forky, set before, makes Debian testing in $WORK/forky/root
# instead; its versions move, only containerd 2.x is asked for. A mirror's copy of testing may be older than the week
# that its index is valid for: the signature is checked, that date is not.

TRIXIE_PACKAGES=containerd,runc,docker.io,docker-cli,docker-buildx,stargz-snapshotter,ca-certificates
TRIXIE_SUITE=${TRIXIE_SUITE:-trixie}
TRIXIE_APT=()
case $TRIXIE_SUITE in
  trixie) declare -A TRIXIE_WANT=([containerd]=1.7.24 [docker.io]=26.1.5 [stargz-snapshotter]=0.14) ;;
  *)
    declare -A TRIXIE_WANT=([containerd]=2.)
    TRIXIE_APT=(--aptopt='Acquire::Check-Valid-Until "false";') ;;
esac

trixie_make() {
  local mirror=${LAZYBLOB_MIRROR:-http://deb.debian.org/debian} proxy started package
  TRIXIE=$WORK/$TRIXIE_SUITE/root
  need_tools mmdebstrap
  mkdir -p "$WORK/$TRIXIE_SUITE"
  exec 8> "$WORK/$TRIXIE_SUITE/lock"
  flock -w 900 8 || die "another run is making $TRIXIE"
  if [ "$(cat "$WORK/$TRIXIE_SUITE/done" 2>/dev/null)" != "$TRIXIE_PACKAGES" ]; then
    started=$(now_ms)
    rm -rf --one-file-system "$TRIXIE" "$TRIXIE.new"
    proxy=$(apt-config dump Acquire::http::Proxy --format '%v%n' || true)
    timeout -k 5 600 mmdebstrap --quiet --format=directory --variant=minbase --include="$TRIXIE_PACKAGES" \
      ${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\";"} "${TRIXIE_APT[@]}" "$TRIXIE_SUITE" "$TRIXIE.new" "$mirror" < /dev/null ||
      die "mmdebstrap of $TRIXIE_SUITE failed: is $mirror reachable?"
    mv "$TRIXIE.new" "$TRIXIE"
    echo "$TRIXIE_PACKAGES" > "$WORK/$TRIXIE_SUITE/done"
    log "made $TRIXIE in $(( ($(now_ms) - started) / 1000 )) s"
  fi
  exec 8>&-
  for package in "${!TRIXIE_WANT[@]}"; do
    case $(trixie_version "$package") in
      "${TRIXIE_WANT[$package]}"*) ;;
      *) die "$package of $TRIXIE_SUITE is $(trixie_version "$package"), not ${TRIXIE_WANT[$package]}" ;;
    esac
  done
}

trixie_version() { dpkg-query --admindir="$TRIXIE/var/lib/dpkg" -W -f='${Version}' "$1" | sed 's/[~+-].*//'; }

trixie_enter() {
  mount --bind "$SCRATCH" "$SCRATCH"
  mount --make-shared "$SCRATCH"
  TRIXIE=$TRIXIE SCRATCH=$SCRATCH unshare --mount --propagation unchanged bash -euc '
    mount --bind "$TRIXIE" "$TRIXIE"
    cd "$TRIXIE"
    mount --rbind /dev dev
    mount --rbind /sys sys
    mount --bind /proc proc
    mount -t tmpfs -o mode=0755 run run
    mount -t tmpfs tmp tmp
    top=${SCRATCH#/}
    mount -t tmpfs -o mode=0755 mnt mnt   # holds the place for $SCRATCH, should the folder have none
    mkdir -p "$top" mnt/old
    mount --bind "$SCRATCH" "$top"
    [ ! -e /etc/resolv.conf ] || { touch etc/resolv.conf; cat /etc/resolv.conf > run/resolv.conf; mount --bind run/resolv.conf etc/resolv.conf; }
    pivot_root . mnt/old
    cd /
    umount -l /mnt/old
    touch /run/ready
    exec sleep infinity' &
  TRIXIE_PID=$!
  disown "$TRIXIE_PID"
  on_exit "kill $TRIXIE_PID"
  TRIXIE_EXEC=(nsenter --mount="/proc/$TRIXIE_PID/ns/mnt" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
    LC_ALL=C.UTF-8)
  wait_until 10 "the namespace of $TRIXIE" in_trixie test -e /run/ready
}

trixie_machine() {
  "$E2E_DIR/make_images.sh" debian
  make_scratch
  chmod 0711 "$SCRATCH"   # mapped users look for their root below it
  private_programs
  forget_cgroups
  trixie_make
  trixie_enter
  CTR_PARENT=$SCRATCH CTR_RUN=("${TRIXIE_EXEC[@]}")
}

in_trixie() { "${TRIXIE_EXEC[@]}" "$@"; }

dockerd_start() {
  local dir=$CTR_DIR
  : > "$SCRATCH/dockerd.log"
  printf '{"features": {"containerd-snapshotter": true}}' > "$dir/daemon.json"
  "${TRIXIE_EXEC[@]}" dockerd --config-file "$dir/daemon.json" --containerd "$CTR_ADDRESS" --data-root "$dir/docker" \
    --exec-root /run/docker-exec --pidfile "$dir/docker.pid" --host "unix://$dir/docker.sock" --bridge=none \
    --iptables=false --ip6tables=false --exec-opt native.cgroupdriver=cgroupfs --storage-driver stargz \
    > "$SCRATCH/dockerd.log" 2>&1 &
  DOCKERD_PID=$!
  disown "$DOCKERD_PID"
  on_exit "end_process $DOCKERD_PID"
  DOCKER=("${TRIXIE_EXEC[@]}" timeout -k 5 300 docker --host "unix://$dir/docker.sock")
  wait_until 60 'dockerd did not start: $(tail -5 $SCRATCH/dockerd.log; tail -5 $CTR_DIR/log)' "${DOCKER[@]}" version
}

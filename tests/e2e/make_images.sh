#!/bin/bash
# Makes the images the end-to-end tests, the demo and the benchmarks use, once, under $WORK/images:
#   registry/     docker-registry's storage with debian:{gzip,tar,zstd,estargz,zstdchunked}, made/NAME:COMPRESSION
#                 and bad/NAME:latest (see made_tars.py)
#   debian/       the image layout of debian:gzip, by umoci
#   made/         the image layout and the list of the made images
# The Debian image has four layers: a real Debian (minbase), python3 with numpy installed by apt in it, an application
# with everything that a layer can hold, and a layer with opaque markers. All tools are Debian's; nothing of lazyblob
# is used. LAZYBLOB_MIRROR names another Debian mirror. `make_images.sh debian` makes the Debian image only.
. "$(dirname "$0")/lib/common.sh"
. "$E2E_DIR/lib/registry.sh"
. "$E2E_DIR/lib/containerd.sh"

VERSION=1   # raise to have the Debian image made again
need_root
need_tools mmdebstrap umoci skopeo docker-registry containerd ctr ctr-remote zstd setfattr setcap htpasswd openssl tar
mkdir -p "$WORK"
exec 9> "$WORK/images.lock"
flock -w 900 9 || die "another make_images.sh holds $WORK/images.lock"
IMAGES=$WORK/images
MADE_VERSION=$(cat "$E2E_DIR"/{made_tars,lib/tars,lib/estargz,lib/ocilayout}.py | sha256sum | cut -c1-16)
started=$(now_ms)
step() { log "$(( ($(now_ms) - started) / 1000 )) s: $*"; }
is_done() { [ "$(cat "$IMAGES/done-$1" 2>/dev/null)" = "$2" ]; }

# The network part, kept apart: survives a new VERSION.
fetch_base() {
  BASE=$WORK/debian-base.tar
  [ ! -s "$BASE" ] || return 0
  local mirror=${LAZYBLOB_MIRROR:-http://deb.debian.org/debian} proxy
  step "mmdebstrap from $mirror"
  proxy=$(apt-config dump Acquire::http::Proxy --format '%v%n' || true)
  timeout -k 5 300 mmdebstrap --quiet --format=tar --variant=minbase --include=ca-certificates \
    ${proxy:+--aptopt="Acquire::http::Proxy \"$proxy\";"} \
    bookworm "$BASE.new" "$mirror" || die "mmdebstrap failed: is $mirror reachable?"
  mv "$BASE.new" "$BASE"
}

in_root() {
  timeout -k 5 300 chroot "$ROOT" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"
}

install_python() {
  cp "$ROOT/etc/resolv.conf" "$IMAGES/resolv.conf.image" 2>/dev/null || true
  cp -L /etc/resolv.conf "$ROOT/etc/resolv.conf"
  mount -t proc proc "$ROOT/proc"
  in_root apt-get -qq update
  in_root apt-get -qq -y --no-install-recommends install python3 python3-numpy > "$IMAGES/apt.log" 2>&1 ||
    die "apt-get in the image failed: $(tail -3 "$IMAGES/apt.log")"
  in_root apt-get -qq clean
  rm -rf "$ROOT"/var/lib/apt/lists/* "$ROOT"/var/cache/apt/*.bin "$ROOT"/tmp/* "$ROOT/var/log/apt" "$ROOT/var/log/dpkg.log"
  cp "$IMAGES/resolv.conf.image" "$ROOT/etc/resolv.conf" 2>/dev/null || rm -f "$ROOT/etc/resolv.conf"
  umount "$ROOT/proc"
}

make_debian() {
  unmount_below "$IMAGES"
  rm -rf --one-file-system "$WORK/judge" "$IMAGES/debian" "$IMAGES/bundle"
  mkdir -p "$IMAGES"
  fetch_base
  local layout=$IMAGES/debian bundle=$IMAGES/bundle tag first second
  ROOT=$bundle/rootfs
  on_exit "unmount_below '$ROOT'"
  step "base layer"
  umoci init --layout "$layout"
  umoci new --image "$layout:gzip"
  umoci raw add-layer --image "$layout:gzip" "$BASE"
  umoci unpack --image "$layout:gzip" "$bundle"
  step "python layer"
  install_python
  umoci repack --refresh-bundle --image "$layout:gzip" "$bundle"
  step "application layers"
  "$PYTHON" "$E2E_DIR/lib/app_layer.py" "$ROOT"
  umoci repack --image "$layout:gzip" "$bundle"
  "$PYTHON" "$E2E_DIR/lib/app_layer.py" --opaque-tar "$IMAGES/opaque.tar"
  umoci raw add-layer --image "$layout:gzip" "$IMAGES/opaque.tar"
  umoci gc --layout "$layout"
  rm -rf --one-file-system "$bundle" "$IMAGES/opaque.tar"

  step "zstd and tar"
  "$PYTHON" "$E2E_DIR/lib/ocilayout.py" recompress "$layout:gzip" "$layout:zstd" --to zstd
  "$PYTHON" "$E2E_DIR/lib/ocilayout.py" recompress "$layout:gzip" "$layout:tar" --to none
  for tag in gzip zstd tar; do
    skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$layout:$tag" "docker://$REG/debian:$tag"
  done

  step "converting with ctr-remote"   # the longest step: both kinds at once
  ctr_ content fetch --plain-http "$REG/debian:gzip" >/dev/null
  convert debian estargz --estargz-compression-level=5 & first=$!
  convert debian zstdchunked & second=$!
  wait $first || die "ctr-remote could not convert debian to estargz"
  wait $second || die "ctr-remote could not convert debian to zstdchunked"
}

convert() {  # repository, kind, options: REPO:gzip becomes REPO:KIND
  local repo=$1 kind=$2; shift 2
  ctr_remote images convert "--$kind" "$@" --oci "$REG/$repo:gzip" "$REG/$repo:$kind" >> "$IMAGES/convert.log" 2>&1
  ctr_ images push --plain-http "$REG/$repo:$kind" >> "$IMAGES/convert.log" 2>&1
}

check_debian() {
  local tag raw
  for tag in gzip tar zstd estargz zstdchunked; do
    raw=$(skopeo inspect --raw --tls-verify=false "docker://$REG/debian:$tag")
    "$PYTHON" - "$tag" "$raw" <<'CHECK' || die "debian:$tag is not what it should be"
import json, sys
tag, m = sys.argv[1], json.loads(sys.argv[2])
want = {"gzip": "+gzip", "tar": ".tar", "zstd": "+zstd", "estargz": "+gzip", "zstdchunked": "+zstd"}[tag]
notes = {"estargz": ["containerd.io/snapshot/stargz/toc.digest"],
         "zstdchunked": ["io.containers.zstd-chunked.manifest-checksum",
                         "io.github.containers.zstd-chunked.manifest-checksum"]}.get(tag)
assert len(m["layers"]) == 4, len(m["layers"])
for d in m["layers"]:
    assert d["mediaType"].endswith(want), d
    assert notes is None or any(n in d["annotations"] for n in notes), d
print(f"debian:{tag}: {sum(d['size'] for d in m['layers']) >> 20} MiB in {len(m['layers'])} layers", file=sys.stderr)
CHECK
  done
}

make_made() {
  step "made images"
  rm -rf "$IMAGES/made" "$IMAGES/registry/docker/registry/v2/repositories"/{made,bad} "$WORK"/judge/{made,bad}_*
  "$PYTHON" "$E2E_DIR/made_tars.py" --layout "$IMAGES/made" --registry "$REG"
  step "converting made images"
  local name first second
  while read -r name; do
    ctr_ content fetch --plain-http "$REG/made/$name:gzip" >/dev/null
    convert "made/$name" estargz & first=$!
    convert "made/$name" zstdchunked & second=$!
    wait $first || die "ctr-remote cannot convert made/$name to estargz, see $IMAGES/convert.log"
    wait $second || die "ctr-remote cannot convert made/$name to zstdchunked, see $IMAGES/convert.log"
  done < "$IMAGES/made/convert.list"
  "$PYTHON" "$E2E_DIR/made_tars.py" --lies --layout "$IMAGES/made" --registry "$REG"
  "$PYTHON" - "$IMAGES" <<'TAMPER' || die "the registry's storage is not as expected"
import json, os, sys
for kind, digest in json.load(open(sys.argv[1] + "/made/cases.json"))["tamper"].items():
    hexa = digest.split(":")[1]
    data = bytearray(open(f"{sys.argv[1]}/made/blobs/sha256/{hexa}", "rb").read())
    if kind == "flip":
        data[len(data) // 2] ^= 1
    else:
        del data[-1000:]
    path = f"{sys.argv[1]}/registry/docker/registry/v2/blobs/sha256/{hexa[:2]}/{hexa}/data"
    assert os.path.exists(path)
    open(path, "wb").write(data)   # docker-registry serves what lies there
TAMPER
}

want_made=1
[ "${1:-}" != debian ] || want_made=
if is_done debian $VERSION && { [ -z "$want_made" ] || is_done made "$MADE_VERSION"; }; then
  log "images are there: $IMAGES"
  exit 0
fi
is_done debian $VERSION || rm -rf --one-file-system "$IMAGES"
registry_start images "$IMAGES/registry"
containerd_start images native
if ! is_done debian $VERSION; then
  make_debian
  check_debian
  echo $VERSION > "$IMAGES/done-debian"
fi
if [ -n "$want_made" ] && ! is_done made "$MADE_VERSION"; then
  make_made
  echo "$MADE_VERSION" > "$IMAGES/done-made"
fi
step "done"

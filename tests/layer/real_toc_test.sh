#!/bin/bash
# real_toc_test.sh LAYERS_AGREE: a layer with every kind of entry is made by tar, converted by ctr-remote to eStargz and
# zstd:chunked and by skopeo to zstd:chunked, and judged by layers_agree. Needs root (devices, xattrs, containerd).
set -euo pipefail
agree=$(realpath "$1")
if [[ $(id -u) != 0 ]]; then
  echo "NOT TESTED: needs root" >&2
  exit 77
fi
for program in containerd ctr-remote skopeo umoci python3 setfattr setcap; do
  command -v "$program" >/dev/null || { echo "real_toc_test: $program is missing (apt install)" >&2; exit 1; }
done
work=$(mktemp -d /var/tmp/lazyblob-toc.XXXXXX)
daemon=
finish() {
  if [[ -n $daemon ]]; then
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
  fi
  rm -rf --one-file-system "$work"
}
trap finish EXIT
cd "$work"

mkdir -p root/{etc/deep,dev,tmp,usr/lib}
chmod 1777 root/tmp
cp -a /etc/apt root/etc/
cp -a /usr/lib/python3.11/{json,email,encodings} root/usr/lib/
cp /bin/bash root/usr/bash
ln root/usr/bash root/etc/hard
setcap cap_net_raw+ep root/usr/bash
setfattr -n user.test -v hello root/etc/deep
mknod root/dev/null c 1 3
mknod root/dev/big b 300 70000
mkfifo root/dev/fifo
ln -s nowhere root/etc/dangling
head -c 6000000 /dev/urandom > root/random
truncate -s 20M root/zeros
truncate -s 3M root/sparse && echo tail >> root/sparse
touch root/empty $'root/new\nline'
chown 3000000000:4000000000 root/empty
touch -d '1965-01-01' root/old
tar --posix --xattrs --xattrs-include='*' --numeric-owner -C root -cf layer.tar .
umoci init --layout layout
umoci new --image layout:plain
umoci raw add-layer --image layout:plain layer.tar >/dev/null
umoci config --image layout:plain --architecture amd64 --os linux

cat > config.toml <<CONFIG
version = 2
root = "$work/ctrd"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/c.sock"
CONFIG
containerd -c config.toml > containerd.log 2>&1 &
daemon=$!
for _ in $(seq 300); do
  ctr-remote -a "$work/c.sock" version >/dev/null 2>&1 && break
  kill -0 "$daemon" || { cat containerd.log >&2; exit 1; }
  sleep 0.1
done
ctr() { ctr-remote -a "$work/c.sock" "$@"; }
tar -C layout -cf image.tar .
ctr image import --no-unpack --base-name t image.tar >/dev/null
ctr image convert --estargz --oci t:plain t:estargz >/dev/null
ctr image convert --estargz --estargz-chunk-size 65536 --oci t:plain t:small >/dev/null
ctr image convert --zstdchunked --oci t:plain t:zstd >/dev/null
ctr image convert --uncompress --oci t:plain t:tar >/dev/null
for name in estargz small zstd tar; do
  mkdir "$name"
  ctr image export "$name.tar" "t:$name"
  tar -C "$name" -xf "$name.tar"
done
skopeo copy --quiet --dest-compress-format zstd:chunked oci:tar:t:tar oci:skopeo:x

python3 - "$agree" estargz small zstd skopeo <<'JUDGE'
import json, subprocess, sys

agree, layouts = sys.argv[1], sys.argv[2:]
failed = False
for layout in layouts:
    def blob(digest):
        return layout + "/blobs/" + digest.replace(":", "/")
    manifest = json.load(open(blob(json.load(open(layout + "/index.json"))["manifests"][0]["digest"])))
    for layer in manifest["layers"]:
        annotations = layer.get("annotations", {})
        print(layout, flush=True)
        if not annotations:
            print("  no annotations: the converter did nothing")
            failed = True
        command = [agree, blob(layer["digest"]), layer["mediaType"]] + [f"{k}={v}" for k, v in annotations.items()]
        failed |= subprocess.run(command).returncode != 0
sys.exit(failed)
JUDGE

#!/bin/bash
# layer_judges_test.sh MAKE_LAYER LAYERS_AGREE: layers made by us, judged by the programs that read them: GNU tar,
# bsdtar, Python's tarfile, zstd and gzip, umoci, containerd, ctr-remote, skopeo. Needs root (devices, xattrs).
set -euo pipefail
make_layer=$(realpath "$1")
agree=$(realpath "$2")
here=$(cd "$(dirname "$0")" && pwd)
tree_diff() { python3 -B "$here/../e2e/tree_diff.py" "$@"; }
if [[ $(id -u) != 0 ]]; then
  echo "NOT TESTED: needs root" >&2
  exit 77
fi
for program in containerd ctr ctr-remote skopeo umoci python3 bsdtar tar zstd gzip setfattr setcap; do
  command -v "$program" >/dev/null || { echo "layer_judges_test: $program is missing (apt install)" >&2; exit 1; }
done
work=$(mktemp -d /var/tmp/lazyblob-judges.XXXXXX)
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
fail() { echo "FAILED: $*" >&2; exit 1; }

# Every kind of entry; no name that JSON cannot hold, no time that containerd would change.
python3 - tree <<'MAKE'
import os, random, stat, sys
root = sys.argv[1]
rng = random.Random(7)
os.makedirs(root + "/dir/deep/er")
def write(path, data):
    with open(os.path.join(root, path), "wb") as f:
        f.write(data)
write("dir/text", b"some words and other words\n" * 90000)
write("dir/noise", rng.randbytes(9_000_001))
write("dir/empty", b"")
write("dir/deep/with\nnewline", b"1")
write("dir/deep/\u00e4\u20ac \\x", b"2")
write("dir/" + "n" * 255, b"3")
write("dir/exactly", rng.randbytes(512 * 9))
long = root + "/dir/" + "/".join(letter * 40 for letter in "abcdefg")
os.makedirs(long)
os.symlink("x" * 300, long + "/link")
os.symlink("../none", root + "/dir/dangling")
os.link(root + "/dir/text", root + "/dir/deep/hard")
os.link(root + "/dir/text", root + "/another")
os.mknod(root + "/dir/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod(root + "/dir/block", stat.S_IFBLK | 0o600, os.makedev(300, 70000))
os.mkfifo(root + "/dir/fifo", 0o620)
with open(root + "/sparse", "wb") as f:
    f.seek(6 << 20)
    f.write(rng.randbytes(5000))
    f.truncate(20 << 20)
os.setxattr(root + "/dir/deep", "user.dir", b"on a directory")
os.setxattr(root + "/dir/text", "user.text", b"a\0b\n=\xff")
os.chown(root + "/dir/empty", 3_000_000_000, 4_000_000_000)
os.lchown(root + "/dir/dangling", 7, 8)
os.chmod(root + "/dir/deep/er", 0o1777)
os.chmod(root + "/dir/noise", 0o4755)
for i, path in enumerate(["dir/empty", "dir/null", "dir/dangling", "dir/deep/er", "dir/deep", "dir", ""]):
    os.utime(os.path.join(root, path), ns=(0, 1_500_000_000_000_000_000 + i * 123_456_789), follow_symlinks=False)
MAKE
setcap cap_net_raw+ep tree/dir/exactly

declare -A layer
for compression in none gzip zstd estargz zstdchunked; do
  layer[$compression]=$("$make_layer" dir:tree "$compression" "$compression.blob" root=1)
done
layer[fast]=$("$make_layer" dir:tree gzip fast.blob root=1 level=1)
layer[small]=$("$make_layer" dir:tree estargz small.blob root=1 chunk=65536 level=2 first=dir/noise landmark=1)
layer[smallz]=$("$make_layer" dir:tree zstdchunked smallz.blob root=1 chunk=65536)

echo "== compressors read the streams"
gzip -t gzip.blob fast.blob estargz.blob small.blob
zstd -q -t zstd.blob zstdchunked.blob smallz.blob
for blob in gzip fast; do gzip -dc "$blob.blob" | cmp - none.blob; done
for blob in zstd zstdchunked smallz; do zstd -qdc "$blob.blob" | cmp - none.blob; done

echo "== GNU tar, bsdtar and Python unpack them"
for blob in none gzip zstd; do
  mkdir "gnu-$blob" "bsd-$blob"
  tar --warning=all --warning=no-timestamp -C "gnu-$blob" --xattrs --xattrs-include='*' --same-owner -xpf "$blob.blob" 2> gnu.err
  [[ ! -s gnu.err ]] || fail "GNU tar says: $(cat gnu.err)"
  tree_diff tree "gnu-$blob"
  bsdtar -C "bsd-$blob" --same-owner -xpf "$blob.blob" 2> bsd.err || fail "bsdtar: $(cat bsd.err)"
  [[ ! -s bsd.err ]] || fail "bsdtar says: $(cat bsd.err)"
  tree_diff --allow root-mtime tree "bsd-$blob"  # bsdtar leaves the directory that -C names alone
done
python3 - none.blob tree <<'TARFILE'
import hashlib, os, stat, sys, tarfile
tar, root = tarfile.open(sys.argv[1]), sys.argv[2]
seen = set()
for member in tar:
    path = os.path.join(root, member.name)
    st = os.lstat(path)
    seen.add(os.path.normpath(member.name))
    assert member.uid == st.st_uid and member.gid == st.st_gid, member.name
    assert abs(member.mtime - st.st_mtime) < 1e-6, member.name
    if member.issym():
        assert member.linkname == os.readlink(path), member.name
        continue
    if member.islnk():
        assert os.path.samefile(path, os.path.join(root, member.linkname)), member.name
        continue
    assert member.mode == stat.S_IMODE(st.st_mode), member.name
    assert member.isdir() == stat.S_ISDIR(st.st_mode) and member.isfifo() == stat.S_ISFIFO(st.st_mode), member.name
    if member.ischr() or member.isblk():
        assert os.makedev(member.devmajor, member.devminor) == st.st_rdev, member.name
    xattrs = {k[len("SCHILY.xattr."):]: v.encode("utf-8", "surrogateescape") for k, v in member.pax_headers.items()
              if k.startswith("SCHILY.xattr.")}
    assert xattrs == {k: os.getxattr(path, k) for k in os.listxattr(path)}, member.name
    if member.isreg():
        assert hashlib.sha256(tar.extractfile(member).read()).digest() == hashlib.sha256(open(path, "rb").read()).digest()
there = {"."} | {os.path.relpath(os.path.join(d, n), root) for d, dirs, files in os.walk(root) for n in dirs + files}
assert seen == there, seen ^ there
TARFILE

echo "== umoci, containerd and skopeo take them as images"
for name in "${!layer[@]}"; do printf '%s\t%s\n' "$name" "${layer[$name]}"; done > layers.tsv
python3 - layers.tsv layout <<'LAYOUT'
import hashlib, json, os, shutil, sys
layout = sys.argv[2]
os.makedirs(layout + "/blobs/sha256")
def put(data):
    digest = hashlib.sha256(data).hexdigest()
    with open(layout + "/blobs/sha256/" + digest, "wb") as f:
        f.write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}
manifests = []
for line in open(sys.argv[1]):
    name, text = line.rstrip("\n").split("\t")
    layer = json.loads(text)
    diff_id = layer.pop("diffID")
    layer.pop("tarSize")
    shutil.copy(name + ".blob", layout + "/blobs/sha256/" + layer["digest"].split(":")[1])
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/none"]},
              "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", **put(json.dumps(config).encode())}
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
                "layers": [layer]}
    manifests.append({"mediaType": manifest["mediaType"], **put(json.dumps(manifest).encode()),
                      "annotations": {"org.opencontainers.image.ref.name": name}})
json.dump({"schemaVersion": 2, "manifests": manifests}, open(layout + "/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(layout + "/oci-layout", "w"))
LAYOUT
for name in gzip fast estargz; do
  umoci unpack --image "layout:$name" "bundle-$name" > umoci.log 2>&1 || fail "umoci: $(cat umoci.log)"
  tree_diff --allow toc-files tree "bundle-$name/rootfs"
  rm -rf "bundle-$name"
done
for name in "${!layer[@]}"; do
  skopeo copy --quiet "oci:layout:$name" "dir:skopeo-$name" || fail "skopeo refuses $name"
  rm -rf "skopeo-$name"
done

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
  ctr -a "$work/c.sock" version >/dev/null 2>&1 && break
  kill -0 "$daemon" || fail "containerd: $(cat containerd.log)"
  sleep 0.1
done
tar -C layout -cf image.tar .
ctr -a "$work/c.sock" image import --snapshotter native --base-name t image.tar > import.log 2>&1 ||
  fail "containerd: $(cat import.log)"
mkdir mounted
for name in "${!layer[@]}"; do
  ctr -a "$work/c.sock" image mount --snapshotter native "t:$name" mounted >/dev/null
  result=0
  tree_diff --allow toc-files --allow root-mtime tree mounted || result=1
  ctr -a "$work/c.sock" image unmount mounted >/dev/null
  ((result == 0)) || fail "containerd shows another tree of $name"
done
for name in estargz small; do
  digest=$(python3 -c 'import json,sys; print(json.loads(sys.argv[1])["digest"])' "${layer[$name]}")
  toc=$(python3 -c 'import json,sys; print(json.loads(sys.argv[1])["annotations"]["containerd.io/snapshot/stargz/toc.digest"])' "${layer[$name]}")
  found=$(ctr-remote -a "$work/c.sock" image get-toc-digest "$digest")
  [[ $found == "$toc" ]] || fail "ctr-remote finds TOC $found in $name, we said $toc"
done

echo "== our own index: table of contents and stream agree"
for name in estargz small zstdchunked smallz; do
  python3 - "$agree" "$name.blob" "${layer[$name]}" <<'AGREE'
import json, subprocess, sys
layer = json.loads(sys.argv[3])
annotations = [f"{k}={v}" for k, v in layer["annotations"].items()]
sys.exit(subprocess.run([sys.argv[1], sys.argv[2], layer["mediaType"]] + annotations).returncode)
AGREE
done

echo "== the tar-split of zstd:chunked makes the tar again"
for name in zstdchunked smallz; do
  python3 - "$name.blob" none.blob tree "${layer[$name]}" <<'SPLIT'
import base64, hashlib, json, os, subprocess, sys
blob, tar, root, layer = open(sys.argv[1], "rb").read(), open(sys.argv[2], "rb").read(), sys.argv[3], json.loads(sys.argv[4])
prefix = "io.github.containers.zstd-chunked."
def part(key):
    offset, size, full = map(int, layer["annotations"][prefix + key].split(":")[:3])
    compressed = blob[offset:offset + size]
    plain = subprocess.run(["zstd", "-qdc"], input=compressed, stdout=subprocess.PIPE, check=True).stdout
    assert len(plain) == full, key
    return compressed, plain
compressed, toc = part("manifest-position")
assert "sha256:" + hashlib.sha256(compressed).hexdigest() == layer["annotations"][prefix + "manifest-checksum"]
toc = json.loads(toc)
compressed, split = part("tarsplit-position")
assert "sha256:" + hashlib.sha256(compressed).hexdigest() == toc["tarSplitDigest"]
table = []
for i in range(256):
    for _ in range(8):
        i = (i >> 1) ^ (0xD800000000000000 if i & 1 else 0)
    table.append(i)
def crc64(data):  # slow: for small files only
    crc = (1 << 64) - 1
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
    return (crc ^ ((1 << 64) - 1)).to_bytes(8, "big")
out, names = bytearray(), []
for position, line in enumerate(split.splitlines()):
    entry = json.loads(line)
    assert entry["position"] == position
    if entry["type"] == 2:
        out += base64.b64decode(entry["payload"])
        continue
    names.append(entry["name"])
    size = entry.get("size", 0)
    assert (entry["payload"] is None) == (size == 0)
    if size:
        data = open(os.path.join(root, entry["name"]), "rb").read()
        assert len(data) == size
        if size < 300000:
            assert base64.b64decode(entry["payload"]) == crc64(data), entry["name"]
        out += data
assert bytes(out) == tar
assert names == [e["name"] for e in toc["entries"] if e["type"] != "chunk"]
assert len(names) == len(set(names))
SPLIT
done
echo "all judges agree"

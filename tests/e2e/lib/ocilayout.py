#!/usr/bin/env python3
"""Image layouts: reading, writing, recompressing, and pushing them without touching a byte.

As a module: Layout, compress(), decompress(), push(). As a program:
  ocilayout.py recompress SRC:TAG DST:TAG --to none|gzip|multigzip|zstd|multizstd
  ocilayout.py push LAYOUT:TAG HOST:PORT/NAME:TAG        (checks nothing: hostile images pass too)
  ocilayout.py layers LAYOUT:TAG                         (digest, size, media type per line)
  ocilayout.py implied LAYOUT:TAG                        (allowances for tree_diff.py --allow-file)
"""
import argparse
import gzip
import hashlib
import http.client
import io
import json
import os
import subprocess
import sys
import tarfile
import zlib

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
SUFFIX = {"none": "", "gzip": "+gzip", "multigzip": "+gzip", "zstd": "+zstd", "multizstd": "+zstd"}
MEMBER = 1 << 20  # uncompressed bytes per gzip member or zstd frame of the multi kinds


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def zstd(data, *options):
    return subprocess.run(["zstd", "-q", "-c", "-3", *options], input=data, stdout=subprocess.PIPE, check=True).stdout


def pieces(data):
    return [data[i:i + MEMBER] for i in range(0, len(data), MEMBER)] or [b""]


def compress(tar, kind):
    if kind == "none":
        return tar
    if kind == "gzip":
        return gzip.compress(tar, 6, mtime=0)
    if kind == "multigzip":
        return b"".join(gzip.compress(p, 6, mtime=0) for p in pieces(tar))
    if kind == "zstd":
        return zstd(tar, "-T2")
    if kind == "multizstd":
        return b"".join(zstd(p) for p in pieces(tar))
    raise ValueError(kind)


def decompress(blob):
    if blob[:2] == b"\x1f\x8b":
        out, rest = io.BytesIO(), blob
        while rest[:2] == b"\x1f\x8b":
            d = zlib.decompressobj(31)
            out.write(d.decompress(rest))
            rest = d.unused_data
        return out.getvalue()
    if blob[:4] == b"\x28\xb5\x2f\xfd" or blob[1:4] == b"\x2a\x4d\x18":
        return subprocess.run(["zstd", "-q", "-d", "-c"], input=blob, stdout=subprocess.PIPE, check=True).stdout
    return blob


class Layout:
    """An OCI image layout on disk."""

    def __init__(self, path):
        self.path = path
        os.makedirs(os.path.join(path, "blobs/sha256"), exist_ok=True)
        marker = os.path.join(path, "oci-layout")
        if not os.path.exists(marker):
            with open(marker, "w") as f:
                f.write('{"imageLayoutVersion": "1.0.0"}')
            self._write_index([])

    def _write_index(self, manifests):
        with open(os.path.join(self.path, "index.json.new"), "w") as f:
            json.dump({"schemaVersion": 2, "manifests": manifests}, f)
        os.rename(os.path.join(self.path, "index.json.new"), os.path.join(self.path, "index.json"))

    def _index(self):
        with open(os.path.join(self.path, "index.json")) as f:
            return json.load(f)["manifests"]

    def blob_path(self, name):
        return os.path.join(self.path, "blobs", *name.split(":"))

    def blob(self, name):
        with open(self.blob_path(name), "rb") as f:
            return f.read()

    def add_blob(self, data):
        name = digest(data)
        path = self.blob_path(name)
        if not os.path.exists(path):
            with open(path + ".new", "wb") as f:
                f.write(data)
            os.rename(path + ".new", path)
        return name

    def descriptor(self, tag):
        for m in self._index():
            if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
                return m
        raise KeyError(f"no tag {tag} in {self.path}")

    def manifest(self, tag):
        return json.loads(self.blob(self.descriptor(tag)["digest"]))

    def tag(self, tag, manifest_bytes, media_type=MANIFEST):
        name = self.add_blob(manifest_bytes)
        key = "org.opencontainers.image.ref.name"
        rest = [m for m in self._index() if m.get("annotations", {}).get(key) != tag]
        rest.append({"mediaType": media_type, "digest": name, "size": len(manifest_bytes), "annotations": {key: tag}})
        self._write_index(rest)
        return name

    def write_image(self, tag, layers, config=None):
        """layers: (blob bytes, media type, diff id, annotations) each. Returns the manifest's digest."""
        base = dict(config or {"created": "2020-01-01T00:00:00Z", "architecture": "amd64", "os": "linux", "config": {}})
        base["rootfs"] = {"type": "layers", "diff_ids": [diff for _, _, diff, _ in layers]}
        base["history"] = [{"created": "2020-01-01T00:00:00Z", "created_by": "e2e"} for _ in layers]
        text = json.dumps(base).encode()
        descriptors = []
        for blob, media_type, _, annotations in layers:
            d = {"mediaType": media_type, "digest": self.add_blob(blob), "size": len(blob)}
            if annotations:
                d["annotations"] = annotations
            descriptors.append(d)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST,
                    "config": {"mediaType": CONFIG, "digest": self.add_blob(text), "size": len(text)},
                    "layers": descriptors}
        return self.tag(tag, json.dumps(manifest).encode())

    def write_tars(self, tag, tars, kind):
        return self.write_image(tag, [(compress(t, kind), LAYER + SUFFIX[kind], digest(t), None) for t in tars])


def recompress(source, source_tag, target, target_tag, kind):
    manifest = source.manifest(source_tag)
    config = json.loads(source.blob(manifest["config"]["digest"]))
    layers, diffs = [], []
    for descriptor in manifest["layers"]:
        tar = decompress(source.blob(descriptor["digest"]))
        layers.append((compress(tar, kind), LAYER + SUFFIX[kind], digest(tar), None))
        diffs.append(digest(tar))
    config.pop("history", None)
    return target.write_image(target_tag, layers, config)


def implied_directories(layout, tag):
    """Directories whose time no layer settles: a layer puts something below them without an entry for them (or for
    the directory in them that holds it). The root is always one: hardly a layer has an entry for it."""
    found = {""}
    for descriptor in layout.manifest(tag)["layers"]:
        entries, named = set(), set()
        with tarfile.open(fileobj=io.BytesIO(decompress(layout.blob(descriptor["digest"]))), mode="r:",
                          errors="surrogateescape") as tar:
            for member in tar:
                name = os.path.normpath("/" + member.name).lstrip("/")
                entries.add(name)
                if member.isdir():
                    named.add(name)
        for name in entries:
            parent = os.path.dirname(name)
            while parent and parent not in named:
                found |= {parent, os.path.dirname(parent)}
                parent = os.path.dirname(parent)
    return found


class Registry:
    """Monolithic uploads over one connection."""

    def __init__(self, host):
        self.connection = http.client.HTTPConnection(host, timeout=60)

    def request(self, method, path, body=None, headers=None, want=(200, 201, 202)):
        self.connection.request(method, path, body, headers or {})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status not in want:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:200]!r}")
        return answer

    def put_blob(self, name, data):
        repo, blob = name
        if self.request("HEAD", f"/v2/{repo}/blobs/{blob}", want=(200, 404)).status == 200:
            return
        where = self.request("POST", f"/v2/{repo}/blobs/uploads/", b"").getheader("Location")
        path = "/" + where.split("/", 3)[3] if where.startswith("http") else where
        self.request("PUT", path + ("&" if "?" in path else "?") + "digest=" + blob, data,
                     {"Content-Type": "application/octet-stream"})

    def put_manifest(self, repo, tag, data, media_type):
        self.request("PUT", f"/v2/{repo}/manifests/{tag}", data, {"Content-Type": media_type})


def push(layout, tag, reference):
    """reference: host:port/name:tag. Blobs that the layout lacks are left out (the registry may hold them)."""
    host, rest = reference.split("/", 1)
    repo, _, remote_tag = rest.rpartition(":")
    registry = Registry(host)
    descriptor = layout.descriptor(tag)
    raw = layout.blob(descriptor["digest"])
    manifest = json.loads(raw)
    for d in [manifest["config"], *manifest["layers"]]:
        registry.put_blob((repo, d["digest"]), layout.blob(d["digest"]))
    registry.put_manifest(repo, remote_tag, raw, descriptor["mediaType"])


def split(text):
    path, _, tag = text.rpartition(":")
    return Layout(path), tag


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("recompress")
    p.add_argument("source")
    p.add_argument("target")
    p.add_argument("--to", choices=sorted(SUFFIX), required=True)
    p = commands.add_parser("push")
    p.add_argument("source")
    p.add_argument("reference")
    for name in ("layers", "implied"):
        commands.add_parser(name).add_argument("source")
    args = parser.parse_args()
    source, tag = split(args.source)
    if args.command == "recompress":
        target, target_tag = split(args.target)
        recompress(source, tag, target, target_tag, args.to)
    elif args.command == "push":
        push(source, tag, args.reference)
    elif args.command == "implied":
        for name in sorted(implied_directories(source, tag)):
            sys.stdout.buffer.write(b"implied-dir-mtime=" + name.encode("utf-8", "surrogateescape") + b"\0")
    else:
        for d in source.manifest(tag)["layers"]:
            print(d["digest"], d["size"], d["mediaType"])


if __name__ == "__main__":
    sys.exit(main())

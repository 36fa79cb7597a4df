"""One list of tar entries as a layer of any format: tar, tar+gzip, tar+zstd, eStargz, zstd:chunked.

Entries is a Tar (tests/e2e/lib/tars.py) that remembers what it was told, so that a table of contents can say the same
as the tar, or, by `change`, something else. Formats: see tests/e2e/lib/estargz.py, and
https://github.com/containers/storage/blob/main/docs/containers-storage-zstd-chunked.md
"""
import base64
import datetime
import json
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../e2e/lib"))
import estargz  # noqa: E402
from ocilayout import LAYER, compress, digest, zstd  # noqa: E402
from tars import Tar, pad  # noqa: E402

FORMATS = ("gzip", "estargz", "zstdchunked")
KINDS = {"file": "reg", "hardlink": "hardlink", "symlink": "symlink", "char": "char", "block": "block", "dir": "dir",
         "fifo": "fifo"}


class Entries(Tar):
    def __init__(self, dialect="pax"):
        super().__init__(dialect)
        self.parts = []  # (what was asked for or None, bytes of its headers, its data)

    def add(self, name, kind="file", data=b"", **more):
        start = self.out.tell()
        super().add(name, kind, data, **more)
        raw = self.out.getvalue()[start:]
        padded = len(pad(data)) if kind == "file" else 0
        self.parts.append(({"name": name, "kind": kind, **more}, raw[:len(raw) - padded], data if padded else b""))
        return self

    def junk(self, raw):
        """Bytes that are in the tar and in no table."""
        self.raw(raw)
        self.parts.append((None, raw, b""))
        return self


def text(name):
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def toc_entry(asked):
    name, kind = text(asked["name"]), asked["kind"]
    mtime = asked.get("mtime", 1_500_000_000)
    seconds = mtime[0] if isinstance(mtime, tuple) else mtime
    default = {"dir": 0o755, "symlink": 0o777}.get(kind, 0o644)
    entry = {"name": text(asked.get("pax", {}).get("path", name)), "type": KINDS[kind], "mode": asked.get("mode", default),
             "modtime": (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)).isoformat() + "Z"}
    for key, field in (("uid", "uid"), ("gid", "gid"), ("major", "devMajor"), ("minor", "devMinor")):
        if asked.get(key):
            entry[field] = asked[key]
    if asked.get("link"):
        entry["linkName"] = text(asked["link"])
    if asked.get("xattrs"):
        entry["xattrs"] = {k: base64.b64encode(v).decode() for k, v in asked["xattrs"].items()}
    return entry


def with_toc(entries, pack, end):
    """The blob before its table, the table, and the tar."""
    blob, tar, waiting, toc = b"", b"", b"", []
    for asked, headers, data in entries.parts:
        waiting += headers
        tar += headers + pad(data)
        if asked is None:
            continue
        entry = toc_entry(asked)
        if data:
            blob += pack(waiting)
            entry.update(size=len(data), offset=len(blob), digest=digest(data), chunkDigest=digest(data))
            blob += pack(data)
            entry["endOffset"] = len(blob)
            waiting = pad(data)[len(data):]
        toc.append(entry)
    waiting += end
    tar += end
    return blob + (pack(waiting) if waiting else b""), {"version": 1, "entries": toc}, tar


def edited(toc, change):
    changed = change(toc) if change else None
    return changed if isinstance(changed, bytes) else json.dumps(toc).encode()


def skippable(data):
    return struct.pack("<II", 0x184D2A50, len(data)) + data


def make_estargz(entries, change):
    blob, toc, tar = with_toc(entries, estargz.member, b"")
    table = edited(toc, change)
    toc_tar = Tar("ustar").add("stargz.index.json", data=table).bytes()
    at = len(blob)
    return (blob + estargz.member(toc_tar) + estargz.footer(at), LAYER + "+gzip", digest(tar + toc_tar),
            {"containerd.io/snapshot/stargz/toc.digest": digest(table)})


def make_zstdchunked(entries, change, position=None, checksum=None):
    blob, toc, tar = with_toc(entries, zstd, b"\0" * 1024)
    table = edited(toc, change)
    packed = zstd(table)
    at = len(blob) + 8
    numbers = [at, len(packed), len(table), 1]
    blob += skippable(packed) + skippable(b"{}")
    blob += skippable(struct.pack("<QQQQ", *numbers) + b"\0" * 24 + b"GNUlInUx")
    prefix = "io.github.containers.zstd-chunked."
    return (blob, LAYER + "+zstd", digest(tar),
            {prefix + "manifest-checksum": checksum or digest(packed),
             prefix + "manifest-position": position or ":".join(map(str, numbers))})


def make_layer(entries, form="gzip", change=None, **lies):
    """(blob, media type, diff id, annotations), as Layout.write_image takes them."""
    if form == "estargz":
        return make_estargz(entries, change)
    if form == "zstdchunked":
        return make_zstdchunked(entries, change, **lies)
    suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[form]
    tar = entries.bytes()
    return compress(tar, form), LAYER + suffix, digest(tar), None

"""A small eStargz writer that can lie: good layers come from ctr-remote, this one makes the others.

Format: https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md
"""
import gzip
import hashlib
import json
import struct

from tars import Tar


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(data):
    return gzip.compress(data, 6, mtime=0)


def footer(toc_offset):
    payload = b"%016xSTARGZ" % (toc_offset & (1 << 64) - 1)
    extra = b"SG" + struct.pack("<H", len(payload)) + payload
    return (b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra +
            b"\x01\0\0\xff\xff" + b"\0" * 8)


def build(files, change=None, toc_offset=None, **unused):
    """files: (name, bytes or None for a directory). `change` edits the TOC in place or returns its bytes.

    Returns (blob, TOC digest, diff id). toc_offset: written into the footer instead of the true one; -1: the footer.
    """
    blob, tar, entries = b"", b"", []
    for name, data in files:
        t = Tar("ustar").add(name.rstrip("/") + "/" if data is None else name, "dir" if data is None else "file",
                             data=data or b"")
        raw = t.out.getvalue()
        header, body = raw[:512], raw[512:]
        entry = {"name": name, "type": "dir" if data is None else "reg", "modtime": "2017-07-14T02:40:00Z",
                 "mode": 0o755 if data is None else 0o644, "NumLink": 0}
        blob += member(header)
        if data:
            entry.update(size=len(data), offset=len(blob), digest=sha256(data), chunkDigest=sha256(data))
            blob += member(body)
        tar += raw
        entries.append(entry)
    toc = {"version": 1, "entries": entries}
    changed = change(toc) if change else None
    text = changed if isinstance(changed, bytes) else json.dumps(toc).encode()
    toc_at = len(blob)
    toc_tar = Tar("ustar").add("stargz.index.json", data=text).bytes()
    blob += member(toc_tar)
    blob += footer(len(blob) if toc_offset == -1 else toc_at if toc_offset is None else toc_offset)
    return blob, sha256(text), sha256(tar + toc_tar)

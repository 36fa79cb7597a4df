#!/usr/bin/env python3
"""Made images: everything a layer may hold and much of what it may not.

made_tars.py --layout DIR --registry HOST:PORT    writes all of them into an image layout, pushes made/NAME:COMPRESSION
made_tars.py --lies --layout DIR --registry …     second pass, after conversion: manifests that lie about converted layers

Written beside the layout: cases.json (what each image is and how it is judged), convert.list (images to convert with
ctr-remote). A good case is judged by what umoci makes of it, or of its twin: an image with the same meaning in plain
words, for what the judges refuse or disagree about. A hostile case names what must happen: "refuse" (mount fails with
one line) or "eio" (mounts, but reading FILE fails, or gives the bytes of its tar).
"""
import argparse
import gzip
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "lib"))
import estargz  # noqa: E402
from ocilayout import LAYER, MANIFEST, Layout, Registry, compress, digest, push  # noqa: E402
from tars import Tar, base256  # noqa: E402

SEED = 20200101
FORMATS = ("none", "gzip", "multigzip", "zstd", "multizstd")
GOOD, HOSTILE = {}, {}


def good(convert=True, twin=None, allow=(), formats=FORMATS):
    """Registers a function that returns the layers (tars as bytes, lowest first) of an image."""
    def register(f):
        GOOD[f.__name__.replace("_", "-")] = {"make": f, "convert": convert, "twin": twin, "allow": list(allow),
                                              "formats": list(formats)}
        return f
    return register


def noise(size, seed=0):
    return random.Random(SEED + seed).randbytes(size)


def base_layer():
    t = Tar("pax").dir("./", mode=0o755)
    t.dir("tmp", mode=0o1777, mtime=(1_400_000_000, 5)).dir("etc").add("etc/passwd", data=b"root:x:0:0\n")
    return t.bytes()


@good()
def ustar():
    t = Tar("ustar").dir("d")
    for i, size in enumerate((0, 1, 511, 512, 513, 4095, 4096, 4097, 70_000, 1 << 20, (1 << 20) + 511)):
        t.add(f"d/{size}", data=noise(size, i), uid=i, gid=i * 100, mode=0o600 + i)
    long_parts = "/".join("p" * 30 for _ in range(4))
    t.dir("p" * 30).dir("p" * 30 + "/" + "p" * 30)
    t.add(long_parts + "/" + "f" * 90, data=b"prefix")
    t.add("d/link", "symlink", link="4096").add("d/hard", "hardlink", link="d/4096", mode=0o600 + 6, uid=6, gid=600)
    t.add("fifo", "fifo").add("char", "char", major=1, minor=3)
    return [t.bytes()]


@good(convert=False, twin="old-types-twin")
def old_types():
    """Pre-POSIX files, and a global header, which ctr-remote refuses. (Type 7, contiguous, is refused by all judges.)"""
    t = Tar("ustar").add("old", b"\0")
    t.pax({"comment": "a global header"}, b"g")
    t.add("after", data=b"after the global header")
    return [t.bytes()]


@good(convert=False, formats=("gzip",))
def old_types_twin():
    return [Tar("ustar").add("old").add("after", data=b"after the global header").bytes()]


@good()
def gnu():
    t = Tar("gnu").dir("g")
    t.add("g/" + "/".join("component%d" % i * 5 for i in range(20)), data=b"long gnu name")
    t.add("g/link", "symlink", link="t" * 1000)
    t.add("g/hard", "hardlink", link="g/" + "/".join("component%d" % i * 5 for i in range(20)))
    t.add("g/big-uid", data=b"u", uid=3_000_000_000, gid=4_294_967_293)
    t.add("g/after-2100", data=b"m", mtime=5_000_000_000)
    return [t.bytes()]


@good(allow=["clamped-mtime"])
def times():
    t = Tar("pax").dir("t", mtime=(1_500_000_000, 1))
    for i, m in enumerate(((0, 0), (0, 1), (1, 999_999_999), (-1, 0), (-1, 500_000_000), (-2_000_000_000, 7),
                           (2_147_483_648, 1), (4_294_967_296, 123_456_789), (9_000_000_000, 1), (11_000_000_000, 5))):
        t.add(f"t/{i}", data=b"t", mtime=m)
    t.add("t/symlink", "symlink", link="0", mtime=(1_234_567_890, 987_654_321))
    g = Tar("gnu").add("t/negative-base256", data=b"n", mtime=-86_400)
    return [t.bytes(), g.bytes()]


@good()
def pax():
    t = Tar("pax")
    t.dir("p").add("p/big-ids", data=b"i", uid=3_000_000_000, gid=4_294_967_293)
    t.add("p/" + "x" * 255, data=b"255").add("p/" + "/".join("y" * 200 for _ in range(18)), data=b"deep path")
    for i, name in enumerate(("new\nline", "żółć-日本語", "tab\t", "\x01\x1b[31m", "=", "a b", "-", "…", "\\", "'\"")):
        t.add("p/" + name, data=name.encode(), mtime=(1_500_000_000, i))
    t.add("p/target-long", "symlink", link="/" + "ł" * 800)
    t.add("p/size-in-pax", data=noise(5000), pax={"size": "5000"})
    u = Tar("ustar")
    u.add(b"p/not-utf8-\xff\xfe\x80", data=b"bytes").add(b"./p/./dots", data=b"dots").add(b"/p/absolute", data=b"abs")
    u.add(b"p//slashes", data=b"slashes")
    return [t.bytes(), u.bytes()]


@good(allow=["dropped-trusted-xattrs"])
def xattrs():
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    namespaced = struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, 100_000)
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in (
        (1, 6, 0xffffffff), (2, 4, 1000), (4, 4, 0xffffffff), (16, 6, 0xffffffff), (32, 4, 0xffffffff)))
    t = Tar("pax").dir("x", xattrs={"user.dir": b"on a directory"})
    t.dir("x/empty", xattrs={"system.posix_acl_default": acl})  # empty: unpackers let children inherit it
    t.add("x/capability", data=b"c", mode=0o755, xattrs={"security.capability": capability})
    t.add("x/capability-3", data=b"c", mode=0o755, xattrs={"security.capability": namespaced})
    t.add("x/acl", data=b"a", mode=0o664, xattrs={"system.posix_acl_access": acl})
    t.add("x/binary", data=b"b", xattrs={"user.binary": bytes(range(256)), "user.newline": b"a\nb"})
    t.add("x/long", data=b"l", xattrs={"user." + "n" * 200: b"v" * 3000})
    for i in range(300):  # many that share
        t.add(f"x/same-{i}", data=b"s", xattrs={"user.same": b"shared value", "user.other": str(i % 3).encode()})
    t.add("x/trusted", data=b"t", xattrs={"trusted.image": b"dropped", "user.kept": b"kept"})
    t.add("x/hostile", "dir", xattrs={"trusted.overlay.opaque": b"y", "trusted.overlay.redirect": b"/etc"})
    return [t.bytes()]


@good()
def specials():
    t = Tar("pax").dir("s", mode=0o2755, uid=1, gid=2).dir("s/sticky", mode=0o3777)
    for i, mode in enumerate((0o4755, 0o2755, 0o6711, 0o1644, 0, 0o777, 0o4000)):
        t.add(f"s/mode-{i}", data=b"m" * i, mode=mode, uid=i, gid=i)
    t.add("s/fifo", "fifo", mode=0o622, uid=9).add("s/null", "char", major=1, minor=3, mode=0o666)
    t.add("s/block", "block", major=259, minor=300_000, mode=0o660, gid=6)
    t.add("s/many-minors", "char", major=4095, minor=1_048_575, mode=0o600)
    t.add("s/fifo-link", "hardlink", link="s/fifo", mode=0o622, uid=9)
    t.add("s/symlink", "symlink", link="null", uid=5, gid=6)
    return [t.bytes()]


SPARSE = {"many": (40 << 20, [(i * (1 << 20) + 4096 * (i % 7), 5000) for i in range(39)]), "hole": (10 << 20, []),
          "tail": ((1 << 20) + 77, [(0, 100), (1 << 20, 77)]), "start-hole": (1 << 20, [((1 << 20) - 1, 1)]),
          "dense": (9000, [(0, 9000)])}
SPARSE_KINDS = {"oldgnu": ("--format=gnu",), "pax00": ("--format=pax", "--sparse-version=0.0"),
                "pax01": ("--format=pax", "--sparse-version=0.1"), "pax10": ("--format=pax", "--sparse-version=1.0")}


def gnu_tar(tag, *options):
    """GNU tar itself, over files with many extents, odd ends, nothing but a hole."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("LAZYBLOB_WORK") or None) as d:
        os.chmod(d, 0o755)
        os.mkdir(f"{d}/{tag}", 0o755)
        for name, (size, runs) in SPARSE.items():
            with open(f"{d}/{tag}/{name}", "wb") as f:
                f.truncate(size)
                for offset, length in runs:
                    f.seek(offset)
                    f.write(noise(length, offset))
        return subprocess.run(["tar", "-C", d, "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX",
                               "--mtime=@1500000000", "--sort=name", *options, "-cf", "-", "."],
                              stdout=subprocess.PIPE, check=True).stdout


@good(convert=False, twin="sparse-twin")
def sparse():
    """The four sparse formats of GNU tar, a layer each."""
    return [gnu_tar(tag, "--sparse", "--hole-detection=seek", *options) for tag, options in SPARSE_KINDS.items()]


@good(convert=False, formats=("gzip",))
def sparse_twin():
    return [gnu_tar(tag, "--format=gnu") for tag in SPARSE_KINDS]


@good(formats=("gzip", "zstd"))
def many():
    t = Tar("ustar").dir("many")
    for i in range(100_000):
        t.add(f"many/{i * 7919 % 100_003:06d}", data=b"%d" % i if i % 100 == 0 else b"", uid=i % 5)
    return [t.bytes()]


@good()
def empty():
    return [base_layer(), Tar().bytes(), Tar().dir("etc").add("etc/after", data=b"a").bytes(), b"\0" * 10240]


@good(convert=False)
def only_empty():
    return [Tar().bytes()]


def whiteout_base():
    t = Tar("pax")
    for d in ("file", "dir", "symlink", "before", "after", "between", "implied", "nested", "twice", "gone"):
        t.dir(d)
        for name in ("1", "2", "3"):
            t.add(f"{d}/{name}", data=f"{d}/{name} of layer 1".encode())
        t.dir(f"{d}/sub").add(f"{d}/sub/deep", data=b"deep of layer 1")
    t.add("symlink/link", "symlink", link="/gone").add("top", data=b"top").add("hard", "hardlink", link="top")
    return t


@good(allow=["hidden-links", "mtime=after/sub"])  # umoci gives a directory before its opaque marker a new time
def whiteouts():
    t = Tar("pax")
    t.dir("file").whiteout("file/1")
    t.dir("dir").whiteout("dir/sub").whiteout("dir/nothing-there")
    t.dir("symlink").whiteout("symlink/link")
    t.dir("before").opaque("before").add("before/2", data=b"2 of layer 2").add("before/new", data=b"new")
    t.dir("after").add("after/2", data=b"2 of layer 2").dir("after/sub").add("after/sub/new", data=b"new").opaque("after")
    t.dir("between").add("between/a", data=b"a").opaque("between").add("between/z", data=b"z")
    t.opaque("implied").add("implied/new", data=b"new")
    t.dir("nested").dir("nested/sub").opaque("nested/sub").whiteout("nested/1")
    t.whiteout("gone").whiteout("hard")
    third = Tar("pax").dir("gone", mode=0o700).add("gone/again", data=b"again")
    third.dir("dir").dir("dir/sub", mode=0o711).add("dir/sub/new", data=b"new")
    third.dir("before").add("before/1", data=b"1 of layer 3").whiteout("before/new")
    return [whiteout_base().bytes(), t.bytes(), third.bytes()]


@good(convert=False, twin="whiteout-beside-twin", allow=["hidden-links"])
def whiteout_beside():
    """A whiteout beside an entry of the same name hides the lower one and keeps the entry, in either order."""
    t = Tar("pax")
    t.whiteout("dir").dir("dir", mode=0o750).add("dir/new", data=b"new")
    t.dir("twice", mode=0o750).add("twice/new", data=b"new").whiteout("twice")
    t.whiteout("top").add("top", data=b"top of layer 2")
    t.dir("file").add("file/1", data=b"1 of layer 2").whiteout("file/1")
    t.whiteout("gone").add("gone", "symlink", link="dir")
    return [whiteout_base().bytes(), t.bytes()]


@good(convert=False, formats=("gzip",), allow=["hidden-links"])
def whiteout_beside_twin():
    second = Tar("pax")
    for name in ("dir", "twice", "top", "gone"):
        second.whiteout(name)
    second.dir("file").whiteout("file/1")
    t = Tar("pax")
    t.dir("dir", mode=0o750).add("dir/new", data=b"new").dir("twice", mode=0o750).add("twice/new", data=b"new")
    t.add("top", data=b"top of layer 2").dir("file").add("file/1", data=b"1 of layer 2")
    t.add("gone", "symlink", link="dir")
    return [whiteout_base().bytes(), second.bytes(), t.bytes()]


@good(convert=False, twin="hard-links-twin")
def hard_links():
    t = Tar("pax").dir("h")
    t.add("h/early", "hardlink", link="h/target").add("h/earlier", "hardlink", link="h/early")
    t.add("h/target", data=b"target", mode=0o640, uid=7).add("h/late", "hardlink", link="./h/target")
    t.add("h/absolute", "hardlink", link="/h/target")
    return [t.bytes()]


@good(convert=False, formats=("gzip",))
def hard_links_twin():
    t = Tar("pax").dir("h").add("h/target", data=b"target", mode=0o640, uid=7)
    for name in ("early", "earlier", "late", "absolute"):
        t.add("h/" + name, "hardlink", link="h/target", mode=0o640, uid=7)
    return [t.bytes()]


@good(convert=False, twin="duplicates-twin")
def duplicates():
    """The last entry of a name wins; a directory over a directory keeps the children."""
    t = Tar("pax").dir("./")
    t.add("file", data=b"first").add("file", data=b"second", mode=0o600)
    t.add("fdf", data=b"file").dir("fdf").add("fdf/child", data=b"child").add("fdf", data=b"file again")
    t.dir("dfd").add("dfd/lost", data=b"lost").add("dfd", data=b"file").dir("dfd").add("dfd/kept", data=b"kept")
    t.dir("dd", mode=0o700).add("dd/child", data=b"child").dir("dd", mode=0o711, uid=3)
    t.add("sl", "symlink", link="file").add("sl", data=b"not a link")
    t.add("ls", data=b"not a link").add("ls", "symlink", link="file")
    t.add("orig", data=b"orig").add("hard", "hardlink", link="orig").add("orig", data=b"another file")
    return [t.bytes()]


@good(convert=False, formats=("gzip",))
def duplicates_twin():
    t = Tar("pax").dir("./")
    t.add("file", data=b"second", mode=0o600).add("fdf", data=b"file again")
    t.dir("dfd").add("dfd/kept", data=b"kept").dir("dd", mode=0o711, uid=3).add("dd/child", data=b"child")
    t.add("sl", data=b"not a link").add("ls", "symlink", link="file").add("hard", data=b"orig")
    t.add("orig", data=b"another file")
    return [t.bytes()]


@good()
def no_parents():
    lower = Tar("pax").dir("./").dir("tmp", mode=0o1777, uid=5, gid=6, xattrs={"user.keep": b"me"})
    lower.dir("tmp/a", mode=0o700).dir("tmp/a/b", mode=0o2750, gid=77).add("tmp/a/b/file", data=b"lower")
    upper = Tar("pax").add("tmp/new", data=b"new").add("tmp/a/b/new", data=b"new").add("no/entry/at/all", data=b"x")
    middle = Tar("pax").dir("tmp/a", mode=0o711, uid=8).add("tmp/a/c/d", data=b"d")
    return [lower.bytes(), middle.bytes(), upper.bytes()]


@good()
def type_changes():
    """What is a file in one layer is a directory in the next, and so on."""
    one = Tar("pax").dir("d2f").add("d2f/child", data=b"x").add("f2d", data=b"file").add("f2l", data=b"file")
    one.dir("d2l").add("d2l/child", data=b"x").add("l2d", "symlink", link="f2d").add("l2f", "symlink", link="f2d")
    two = Tar("pax").add("d2f", data=b"file").dir("f2d").add("f2d/child", data=b"c").add("f2l", "symlink", link="d2f")
    two.whiteout("d2l").add("l2f", data=b"file").add("fifo", "fifo")
    three = Tar("pax").add("d2l", "symlink", link="f2d").dir("d2f").add("d2f/c3", data=b"c").add("fifo", data=b"file")
    return [one.bytes(), two.bytes(), three.bytes()]


@good(formats=("gzip", "zstd"))
def deep():
    """24 layers over shared directories."""
    layers = [base_layer()]
    for i in range(23):
        t = Tar("pax").dir("shared", mtime=1_500_000_000 + i).add(f"shared/{i}", data=noise(5000, i))
        t.add("shared/top", data=b"%d" % i)
        if i > 4:
            t.whiteout(f"shared/{i - 5}")
        layers.append(t.bytes())
    return layers


@good()
def large():
    """Files longer than any chunk, easy and hard to compress, so that lazy reads cross chunk borders."""
    t = Tar("pax").add("zeros", data=b"\0" * (9 << 20)).add("noise", data=noise((5 << 20) + 13))
    t.add("text", data=b"".join(b"line %d\n" % i for i in range(900_000)))
    for i in range(500):
        t.add(f"small/{i}", data=noise(i * 17 % 3000, i))
    return [t.bytes()]


# Hostile images. Each returns a list of layers: (blob, media type, diff id, annotations).

def hostile(expect, file=None, note=""):
    def register(f):
        HOSTILE[f.__name__.replace("_", "-")] = {"make": f, "expect": expect, "file": file, "note": note}
        return f
    return register


def gz(tar, **more):
    return [(compress(tar, "gzip"), more.get("media_type", LAYER + "+gzip"), more.get("diff", digest(tar)),
             more.get("annotations"))]


def bad_name(name):
    return gz(Tar("pax").add("first", data=b"fine").add("placeholder", data=b"x", pax={"path": name}).bytes())


for label, raw_name in (("dotdot", b"../evil"), ("dotdot-inside", b"a/../../evil"), ("dotdot-end", b"a/.."),
                        ("dotdot-absolute", b"/../evil"), ("nul-in-name", b"a\0b"), ("name-256", b"n" * 256),
                        ("path-over-4096", b"/".join([b"d" * 200] * 21) + b"/f"),
                        ("whiteout-dotdot", b"a/.wh..."), ("whiteout-nameless", b"a/.wh.")):
    HOSTILE[label] = {"make": (lambda r=raw_name: bad_name(r)), "expect": "refuse", "file": None, "note": ""}


@hostile("refuse")
def hardlink_self():
    return gz(Tar().add("a", "hardlink", link="a").bytes())


@hostile("refuse")
def hardlink_cycle():
    return gz(Tar().add("a", "hardlink", link="b").add("b", "hardlink", link="c").add("c", "hardlink", link="a").bytes())


@hostile("refuse")
def hardlink_missing():
    return gz(Tar().add("a", "hardlink", link="nowhere").bytes())


@hostile("refuse")
def hardlink_to_directory():
    return gz(Tar().dir("d").add("a", "hardlink", link="d").bytes())


@hostile("refuse")
def truncated_gzip():
    tar = Tar().add("file", data=noise(300_000)).bytes()
    return [(compress(tar, "gzip")[:200_000], LAYER + "+gzip", digest(tar), None)]


@hostile("refuse")
def truncated_tar():
    return gz(Tar().add("file", data=noise(300_000)).bytes()[:100_000])


@hostile("refuse")
def not_a_tar():
    return gz(noise(100_000))


@hostile("refuse")
def bad_checksum():
    tar = bytearray(Tar().add("file", data=b"x" * 1000).bytes())
    tar[100] ^= 1
    return gz(bytes(tar))


@hostile("refuse")
def negative_size():
    tar = Tar()
    header = bytearray(tar.header(b"f", b"0", 0))
    header[124:136] = base256(-512, 12)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar.raw(bytes(header))
    return gz(tar.bytes())


@hostile("refuse")
def huge_size():
    return gz(Tar("gnu").add("f", data=b"x", size=1 << 62).bytes())


@hostile("refuse")
def wrong_diff_id():
    return gz(Tar().add("file", data=b"x").bytes(), diff="sha256:" + "1" * 64)


@hostile("refuse")
def corrupt_blob():  # its data file in the registry is changed after the push
    return gz(Tar().add("corrupt", data=noise(100_000, 99)).bytes())


@hostile("refuse")
def short_blob():  # its data file in the registry is cut after the push
    return gz(Tar().add("short", data=noise(100_000, 98)).bytes())


@hostile("refuse")
def unsupported_layer():
    return gz(Tar().bytes(), media_type="application/vnd.example.layer.v1.squashfs")


@hostile("refuse")
def encrypted_layer():
    return gz(Tar().bytes(), media_type=LAYER + "+gzip+encrypted")


@hostile("refuse")
def zstd_bomb():
    """16 GiB of zeros in about half a MiB."""
    size = 16 << 30
    head = Tar("gnu").add("zeros", data=b"", size=size).out.getvalue()
    piece = subprocess.run(["zstd", "-q", "-c", "-3", "--no-check"], input=b"\0" * (1 << 28), stdout=subprocess.PIPE,
                           check=True).stdout
    first = subprocess.run(["zstd", "-q", "-c"], input=head, stdout=subprocess.PIPE, check=True).stdout
    return [(first + piece * (size >> 28) + first, LAYER + "+zstd", "sha256:" + "2" * 64, None)]


@hostile("refuse")
def entries_bomb():
    """12 million entries in 38 MiB of gzip."""
    one = gzip.compress(Tar("ustar").header(b"same", b"0", 0) * 4096, 6, mtime=0)
    return [(one * 3000, LAYER + "+gzip", "sha256:" + "3" * 64, None)]


LYING_FILES = {"dir/a": hashlib.sha256(noise(100_000)).hexdigest(), "dir/b": hashlib.sha256(b"b" * 5000).hexdigest()}


def lying(change=None, **more):
    """An eStargz layer whose TOC `change` has edited (its digest annotation is right)."""
    blob, toc_digest, diff = estargz.build([("dir/", None), ("dir/a", noise(100_000)), ("dir/b", b"b" * 5000)],
                                           change, **more)
    return [(blob, LAYER + "+gzip", diff, {"containerd.io/snapshot/stargz/toc.digest": more.get("annotation", toc_digest)})]


def entry_of(toc, name):
    return next(e for e in toc["entries"] if e["name"] == name)


def lie(label, change, expect="refuse", file=None, **more):
    HOSTILE["toc-" + label] = {"make": lambda: lying(change, **more), "expect": expect, "file": file, "note": ""}


@hostile("refuse")
def toc_bomb():
    """A TOC of 1.3 GiB of spaces, honestly announced, in 1.3 MiB: one deflate block many times."""
    spaces, count = b" " * (8 << 20), 162
    head, tail = b'{"version":1,', b'"entries":[]}'
    size = len(head) + len(tail) + len(spaces) * count
    head = Tar("ustar").add("stargz.index.json", size=size).out.getvalue() + head
    tail += b"\0" * (-size % 512 + 1024)
    packer, crc, toc_hash = zlib.compressobj(6, zlib.DEFLATED, -15), 0, hashlib.sha256()
    body = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    packer.compress(spaces)
    packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(spaces) + packer.flush(zlib.Z_FULL_FLUSH)
    body += block * count + packer.compress(tail) + packer.flush()
    for part, times in ((head, 1), (spaces, count), (tail, 1)):
        for _ in range(times):
            crc = zlib.crc32(part, crc)
    toc_hash.update(head[512:])
    for _ in range(count):
        toc_hash.update(spaces)
    toc_hash.update(b'"entries":[]}')
    blob = (b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body +
            struct.pack("<II", crc, (len(head) + len(spaces) * count + len(tail)) & 0xffffffff))
    note = {"containerd.io/snapshot/stargz/toc.digest": "sha256:" + toc_hash.hexdigest()}
    return [(blob + estargz.footer(0), LAYER + "+gzip", "sha256:" + "7" * 64, note)]


def edit(which, /, **fields):
    return lambda toc: entry_of(toc, which).update(fields)


lie("digest-wrong", None, annotation="sha256:" + "4" * 64)
lie("chunk-digest-wrong", edit("dir/a", chunkDigest="sha256:" + "5" * 64, digest="sha256:" + "5" * 64), "eio", "dir/a")
lie("offset-elsewhere", edit("dir/b", offset=0), "eio", "dir/b")
lie("offset-beyond-blob", edit("dir/b", offset=1 << 40))
lie("offset-negative", edit("dir/b", offset=-1))
lie("size-huge", edit("dir/a", size=(1 << 63) - 1))
lie("size-negative", edit("dir/a", size=-5))
lie("size-without-chunks", edit("dir/a", size=100_000 + (1 << 30)))
lie("name-dotdot", edit("dir/a", name="../../etc/evil"))
lie("name-256", edit("dir/a", name="dir/" + "n" * 256))
lie("name-nul", edit("dir/a", name="dir/a\0b"))
lie("hardlink-cycle", lambda toc: [e.update(type="hardlink", linkName=o) for e, o in (
    (entry_of(toc, "dir/a"), "dir/b"), (entry_of(toc, "dir/b"), "dir/a"))])
lie("not-json", lambda toc: b'{"version":1,"entries":[{"name":')
lie("not-an-object", lambda toc: b"[]")
lie("nested", lambda toc: b'{"version":1,"entries":' + b"[" * 200_000 + b"]" * 200_000 + b"}")
lie("footer-beyond", None, toc_offset=1 << 40)
lie("footer-itself", None, toc_offset=-1)


def write_good(layout):
    cases, converts = {}, []
    for name, case in GOOD.items():
        tars = case["make"]()
        for kind in case["formats"]:
            layout.write_tars(f"{name}-{kind}", tars, kind)
        cases[name] = {"formats": case["formats"], "twin": case["twin"], "allow": case["allow"], "layers": len(tars)}
        if case["convert"]:
            converts.append(name)
    return cases, converts


def write_all(layout, host):
    cases, converts = write_good(layout)
    for name in cases:
        for kind in cases[name]["formats"]:
            push(layout, f"{name}-{kind}", f"{host}/made/{name}:{kind}")
    bad = {}
    for name, case in HOSTILE.items():
        layout.write_image(name, case["make"]())
        push(layout, name, f"{host}/bad/{name}:latest")
        bad[name] = {"expect": case["expect"], "file": case["file"], "sha256": LYING_FILES.get(case["file"])}
    write_manifest_lies(layout, host, bad)
    tamper = {kind: layout.manifest(name)["layers"][0]["digest"]
              for kind, name in (("flip", "corrupt-blob"), ("cut", "short-blob"))}
    with open(os.path.join(layout.path, "convert.list"), "w") as f:
        f.writelines(name + "\n" for name in converts)
    with open(os.path.join(layout.path, "cases.json"), "w") as f:
        json.dump({"good": cases, "bad": bad, "tamper": tamper}, f, indent=1)


def write_manifest_lies(layout, host, bad):
    """Manifests whose numbers or shape are wrong about a good layer."""
    def variant(name, change):
        layout.write_image(name, gz(Tar().add("file", data=b"content of " + name.encode()).bytes()))
        manifest = layout.manifest(name)
        change(manifest)
        layout.tag(name, json.dumps(manifest).encode())
        push(layout, name, f"{host}/bad/{name}:latest")
        bad[name] = {"expect": "refuse", "file": None}
    variant("layer-size-too-small", lambda m: m["layers"][0].update(size=m["layers"][0]["size"] - 7))
    variant("layer-size-too-big", lambda m: m["layers"][0].update(size=m["layers"][0]["size"] + 7))
    variant("layer-size-huge", lambda m: m["layers"][0].update(size=1 << 50))
    variant("one-layer-too-many", lambda m: m["layers"].append(m["layers"][0]))
    variant("config-size-wrong", lambda m: m["config"].update(size=m["config"]["size"] + 1))


def write_lies(layout, host):
    """Wrong annotations over layers that ctr-remote converted to zstd:chunked (made/large)."""
    registry = Registry(host)
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    registry.connection.request("GET", "/v2/made/large/manifests/zstdchunked", headers=accept)
    raw = registry.connection.getresponse().read()
    manifest = json.loads(raw)

    def keys(*endings):
        return [k for k in manifest["layers"][0]["annotations"] if k.endswith(endings)]

    def variant(name, edits):
        changed = json.loads(raw)
        changed["layers"][0]["annotations"].update(edits)
        registry.put_manifest("made/large", "lie-" + name, json.dumps(changed).encode(), MANIFEST)
        return name
    wrong = "sha256:" + "6" * 64
    position = keys("manifest-position")[0]
    parts = manifest["layers"][0]["annotations"][position].split(":")
    lies = [variant("checksum", {k: wrong for k in keys("manifest-checksum", "toc.digest")}),
            variant("position-beyond", {k: ":".join([str(1 << 40), *parts[1:]]) for k in keys("manifest-position")}),
            variant("position-text", {k: "1:2" for k in keys("manifest-position")}),
            variant("position-huge", {k: ":".join([parts[0], parts[1], str(1 << 62), *parts[3:]])
                                      for k in keys("manifest-position")})]
    variant("disagree", {k: wrong for k in keys("toc.digest")})  # two TOCs: not lazy, but right
    path = os.path.join(layout.path, "cases.json")
    with open(path) as f:
        cases = json.load(f)
    cases["lies"] = lies
    with open(path, "w") as f:
        json.dump(cases, f, indent=1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layout", required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--lies", action="store_true")
    args = parser.parse_args()
    layout = Layout(args.layout)
    (write_lies if args.lies else write_all)(layout, args.registry)


if __name__ == "__main__":
    main()

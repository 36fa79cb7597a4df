#!/usr/bin/env python3
"""Images that mean harm, as OCI layouts: one per row of the fault table, below DIR, with a list of what must happen.

hostile_images.py DIR --canary PATH --witness HOST:PORT [--long] [--rows 40,41]
                        PATH: a directory of the host that they try to get at; HOST: one that they name; --long: full
                        sizes, and each case with a table of contents in both formats instead of one in turn

DIR/rNN is a layout with a tag per image; DIR/rNN.cases has a line per image: "TAG EXPECT JUDGE ALLOW…", where EXPECT is
  same     the tree that containerd unpacks
  refuse   no mount, one clear line
  either   one of the two
  eio      as either, but files may give EIO
  bomb     as refuse; containerd is spared
JUDGE is the image that containerd is given instead where it refuses, or is led astray by, what has a clear meaning ("-":
the image itself), ALLOW are options of tree_diff.py.

Beside the made images' hostile ones (tests/e2e/made_tars.py): the names of containerd's TestBreakouts, and what their
like tried since.
"""
import argparse
import json
import os
import struct
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../e2e"), os.path.join(HERE, "../../e2e/lib")]
import made_tars  # noqa: E402
from ocilayout import LAYER, MANIFEST, Layout, compress, digest, zstd  # noqa: E402
from tars import BLOCK, Tar, base256, pax_record  # noqa: E402
from toc_layers import FORMATS, Entries, make_layer, text  # noqa: E402

ROWS = {40: {}, 41: {}, 42: {}, 43: {}, 44: {}, 45: {}, 46: {}}
CANARY = b""
INDEX = "application/vnd.oci.image.index.v1+json"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0)  # sys_admin


def put(row, name, layers, expect="same", forms=FORMATS, judge="-", allow=()):
    """layers: what gives the list of layers, each an Entries, the bytes of a tar, or ready for Layout.write_image."""
    assert name not in ROWS[row], name
    ROWS[row][name] = {"layers": layers, "expect": expect, "forms": forms, "judge": judge, "allow": list(allow)}


def case(row, expect="same", **more):
    return lambda f: put(row, f.__name__.replace("_", "-"), f, expect, **more) or f


def one(row, name, fill, expect="same", **more):
    """A case of one layer: fill(entries)."""
    put(row, name, lambda: [fill(Entries())], expect, **more)


def etc(**more):
    return Entries().dir("etc", **more).add("etc/passwd", data=b"inside")


# --- 40: names ---

def named(name, where="etc"):
    def fill():
        return [Entries().add("first", data=b"fine").add("place", data=b"evil", pax={"path": name}).add("last", data=b"z")]
    return fill


for label, raw in (("dot", b"."), ("slash", b"/"), ("dotdot", b".."), ("dotdot-first", b"../evil"),
                   ("dotdot-absolute", b"/../evil"), ("dotdot-far", b"../" * 40 + b"evil"), ("dotdot-middle", b"a/../../evil"),
                   ("dotdot-last", b"a/b/../.."), ("nul", b"a\0b"), ("nul-first", b"\0"), ("name-256", b"n" * 256),
                   ("name-4095", b"n" * 4095), ("name-256-of-directory", b"n" * 256 + b"/f"),
                   ("path-over-4096", b"/".join([b"d" * 200] * 21) + b"/f"), ("depth-1100", b"d/" * 1100 + b"f")):
    put(40, "name-" + label if not label.startswith("name") else label, named(raw), "refuse")
for label, raw in (("255", b"n" * 255), ("inside-dotdot", b"a/b/../c"), ("slashes", b"//a///b"), ("dots", b"./././a/./b"),
                   ("absolute", b"/absolute/evil"), ("escape", b"\x1b[2J\x07\r\nx"), ("percent", b"%s%n%x"),
                   ("backslash", b"..\\evil"), ("spaces", b" a "), ("three-dots", b".../a"), ("tilde", b"~/.ssh/x"),
                   ("colon-comma", b"a:b,c=d,lowerdir=/x"), ("glob", b"*?[a]{b}$(c)`d`"), ("unicode", "\u202e\u200f\u2066\ufeff".encode())):
    put(40, "name-" + label, named(raw), forms=("gzip", "estargz"))
put(40, "name-empty", named(b""), "either")  # in PAX no name, in a table an empty one
one(40, "name-not-utf8", lambda t: t.add(b"\xff\xfe\x80/\xc3", data=b"x"), forms=("gzip",))


@case(40, "refuse")
def canary_by_dotdot():
    return [Entries().add("first", data=b"x").add(b"../" * 40 + CANARY.lstrip(b"/") + b"/evil", data=b"evil")]


@case(40, forms=("gzip", "estargz"))
def canary_by_absolute_name():
    return [Entries().add(CANARY + b"/evil", data=b"evil").add(CANARY + b"/file", data=b"replaced", mode=0o777)]


# containerd's TestBreakouts by their names. (lower layer, upper layer); a lower one of None: everything is in one.
def breakout(name, lower, fill, expect="same", **more):
    layers = (lambda: [fill(Entries())]) if lower is None else (lambda: [lower(), fill(Entries())])
    put(40, "breakout-" + name, layers, expect, **more)


def in_etc(link, place="localetc", more=()):
    def fill(t):
        t.dir("etc").dir("dummy")
        for path, target in more:
            t.add(path, "symlink", link=target)
        return t.add(place, "symlink", link=link).add("/" + place + "/unbroken", data=b"unbroken")
    return fill


def linked(target, *links, at="localpasswd", mode=0o770):
    def fill(t):
        t.dir("etc", mode=mode).add("/etc/passwd", data=b"inside").dir("breakouts").dir("downandout")
        for path, to in links:
            t.add(path, "symlink", link=to)
        return t.add(at, "hardlink", link=target)
    return fill


def lower(*links):
    def layer():
        t = etc().add("etc/whitedout", data=b"whiteout")
        for path, to in links:
            t.dir(path) if to is None else t.add(path, "symlink", link=to)
        return t
    return layer


breakout("symlink-absolute", None, in_etc("/etc"))
breakout("symlink-up-and-out", None, in_etc("/dummy/../etc"))
breakout("symlink-multiple-absolute", None, in_etc("/dummy/etc", more=(("/dummy/etc", "/etc"),)))
breakout("symlink-multiple-relative", None, in_etc("./dummy/etc", more=(("/dummy/etc", "/etc"),)))
breakout("symlink-far-out", None, in_etc("../" * 30 + "etc"))
breakout("symlink-empty-file", None, lambda t: t.dir("etc").add("etc/emptied", data=b"notempty").add(
    "localetc", "symlink", link="/etc").add("/localetc/emptied"))
breakout("hardlink-relative", None, linked("/breakouts/d1/passwd", ("breakouts/d1", "../../etc"), at="breakouts/mypasswd"))
breakout("hardlink-down-and-out", None, linked("/breakouts/d1/passwd", ("breakouts/d1", "../downandout/../../etc"),
                                               at="breakouts/mypasswd"))
breakout("hardlink-absolute", None, linked("/localetc/passwd", ("localetc", "/etc")))
breakout("hardlink-relative-long", None, linked("/localetc/passwd", ("localetc", "../" * 7 + "etc")))
breakout("hardlink-relative-up-and-out", None, linked("/localetc/passwd", ("localetc", "upandout/../../../etc")), "either")
breakout("hardlink-direct-relative", None, linked("../../../../../etc/passwd"), "either")
breakout("hardlink-direct-absolute", None, linked("/etc/passwd"))
breakout("symlink-parent-directory", None, linked("/etc/passwd", ("..", "/etc/")), "refuse")
breakout("symlink-empty-filename", None, lambda t: linked("/etc/passwd")(t).add("x", "symlink", link="/etc/", pax={"path": ""}),
         "either")
breakout("symlink-parent-relative", None, linked("/etc/passwd", ("localetc/sub/..", "/etc/"), at="/localetc/localpasswd"),
         "either")
breakout("symlink-slash-ended", None, lambda t: linked("/etc/passwd", at="/localetc/localpasswd")(t.dir("localetc/", mode=0o770)))
breakout("symlink-override-directory", lower(("localetc", None)),
         lambda t: t.add("localetc", "symlink", link="/etc").add("/localetc/localpasswd", "hardlink", link="/etc/passwd"), "either")
breakout("symlink-override-directory-relative", lower(("localetc", None)),
         lambda t: t.add("localetc", "symlink", link="../../etc").add("/localetc/new", data=b"new"), "either")
breakout("symlink-override-path", lower(("localetc", "/etc")), lambda t: t.add("localetc/new", data=b"new"), "either")
breakout("symlink-override-path-replaced", lower(("localetc", "/etc")), lambda t: t.add("localetc/passwd", data=b"new"), "either")
breakout("directory-override-symlink", lower(("localetc", "/etc")),
         lambda t: t.dir("/localetc/").add("/localetc/localpasswd", data=b"different"))
breakout("directory-override-symlink-and-hardlink", lambda: etc().add("localetc", "symlink", link="etc").add(
    "/localetc/localpasswd", "hardlink", link="/etc/passwd"),
         lambda t: t.dir("/localetc/").add("/localetc/localpasswd", data=b"different"))
for label, raw in (("root-parent", ".wh..."), ("parent", "etc/.wh..."), ("root", ".wh.."), ("current-directory", "etc/.wh.."),
                   ("nameless", "etc/.wh.")):
    breakout("whiteout-" + label, lower(), lambda t, n=raw: t.add(n), "refuse")
breakout("whiteout-symlink", lower(("localetc", "/etc")), lambda t: t.add(".wh.localetc"))
breakout("whiteout-symlink-path", lower(("localetc", "/etc")), lambda t: t.add("localetc/.wh.whitedout"), "either")
breakout("whiteout-directory-name", lower(), lambda t: t.add(".wh.etc/somefile", data=b"non-empty"), "either")
breakout("whiteout-dead-symlink-parent", lower(("localetc", "/dne")), lambda t: t.add("localetc/.wh.etc"), "either")
breakout("whiteout-relative-path", lower(("localetc", "/dne")), lambda t: t.add("dne/../.wh.etc"))
breakout("whiteout-of-canary", lower(), lambda t: t.add(b"etc/.wh.." + b"/.." * 40 + CANARY), "refuse")
breakout("opaque-by-symlink", lower(("localetc", "/etc")), lambda t: t.add("localetc/.wh..wh..opq"), "either")
breakout("canary-by-symlink", None, lambda t: t.add("out", "symlink", link=CANARY).add("out/evil", data=b"evil").add(
    "out/file", data=b"replaced", mode=0o777))
breakout("canary-by-symlink-below", lambda: etc().add("out", "symlink", link=CANARY),
         lambda t: t.add("out/evil", data=b"evil").add("out/.wh.file"), "either")
breakout("canary-by-two-symlinks", None, lambda t: t.add("a", "symlink", link="../" * 40).add(
    b"b", "symlink", link=b"a/" + CANARY.lstrip(b"/")).add("b/evil", data=b"evil"))
breakout("symlink-exchanged", None, lambda t: t.dir("d").add("d/f", data=b"1").add("d", "symlink", link=CANARY).add(
    "d/f", data=b"2").add("d/file", data=b"3"), "either")
breakout("symlink-chmod", None, lambda t: t.add("sketchy", "symlink", link=CANARY + b"/file").add(
    "link", "hardlink", link="sketchy", mode=0o777))
breakout("proc-self-root", None, lambda t: t.add("p", "symlink", link="/proc/self/root").add(
    b"p" + CANARY + b"/evil", data=b"evil"))


# --- 41: links ---

one(41, "symlinks-verbatim", lambda t: t.add("a", "symlink", link="/etc/shadow").add("b", "symlink", link="../" * 50 + "etc").add(
    "c", "symlink", link="//x/./../y//").add("d", "symlink", link="d").add("e", "symlink", link="\x1b[31m\n").add(
    "f", "symlink", link="/proc/self/environ").add("g", "symlink", link=CANARY))
one(41, "symlink-4095", lambda t: t.add("a", "symlink", link="x" * 4095), "either")
one(41, "symlink-4096", lambda t: t.add("a", "symlink", link="x" * 4096), "refuse")
one(41, "symlink-empty", lambda t: t.add("a", "symlink"), "refuse")
one(41, "symlink-nul", lambda t: t.add("a", "symlink", pax={"linkpath": b"a\0b"}), "refuse")
one(41, "symlink-loop-as-parent", lambda t: t.add("a", "symlink", link="b").add("b", "symlink", link="a").add("a/f", data=b"x"),
    "refuse")
one(41, "symlinks-that-double", lambda t: [t.add(f"l{i}", "symlink", link=f"/l{i + 1}/../l{i + 1}") for i in range(60)] and
    t.dir("l60").add("l0/f", data=b"x"), "refuse")
one(41, "hardlink-outside", lambda t: t.add("a", "hardlink", link=CANARY + b"/file"), "refuse")
one(41, "hardlink-outside-relative", lambda t: t.add("a", "hardlink", link=b"../" * 40 + CANARY.lstrip(b"/") + b"/file"), "refuse")
one(41, "hardlink-to-self", lambda t: t.add("a", "hardlink", link="a"), "refuse")
one(41, "hardlink-to-self-that-was", lambda t: t.add("a", data=b"x").add("a", "hardlink", link="a"), "either")
one(41, "hardlink-cycle", lambda t: t.add("a", "hardlink", link="b").add("b", "hardlink", link="a"), "refuse")
one(41, "hardlink-to-directory", lambda t: t.dir("d").add("a", "hardlink", link="d"), "refuse")
one(41, "hardlink-to-root", lambda t: t.add("a", "hardlink", link="/"), "refuse")
one(41, "hardlink-missing", lambda t: t.add("a", "hardlink", link="nowhere"), "refuse")
one(41, "hardlink-empty", lambda t: t.add("a", "hardlink"), "refuse")
one(41, "hardlink-to-whiteout", lambda t: t.add(".wh.x").add("a", "hardlink", link="x"), "refuse")
put(41, "hardlink-to-lower-layer", lambda: [etc(), Entries().add("a", "hardlink", link="etc/passwd")], "refuse")
one(41, "hardlink-to-symlink", lambda t: t.add("s", "symlink", link=CANARY).add("a", "hardlink", link="s"))
one(41, "hardlink-to-device", lambda t: t.add("s", "char", major=1, minor=3).add("a", "hardlink", link="s"))
one(41, "hardlink-with-data", lambda t: t.add("f", data=b"file").junk(
    Tar().header(b"a", b"1", 5, link=b"f") + b"other".ljust(BLOCK, b"\0")), "either", forms=("gzip",))
one(41, "hardlink-forward-twin", lambda t: t.add("b", data=b"x").add("a", "hardlink", link="b"))
one(41, "hardlink-forward", lambda t: t.add("a", "hardlink", link="b").add("b", data=b"x"), judge="hardlink-forward-twin")
one(41, "hardlinks-from-one-name-to-another", lambda t: t.add("f", data=b"1").add("g", "hardlink", link="f").add(
    "f", data=b"2").add("h", "hardlink", link="f"))


def chain(count, end):
    out = bytearray()
    for i in range(count):
        out += Tar().header(b"l%07d" % i, b"1", link=b"l%07d" % (i + 1) if i + 1 < count else end)
    return bytes(out) + b"\0" * 1024


LONG = {"count": 100_000}
put(41, "hardlink-chain-cycle", lambda: [chain(LONG["count"], b"l0000000")], "refuse", forms=("gzip",))
put(41, "hardlink-chain-missing", lambda: [chain(LONG["count"], b"nowhere")], "refuse", forms=("gzip",))


# --- 42: duplicates and whiteouts ---

for label in ("duplicates", "type-changes", "whiteouts", "whiteout-beside", "no-parents", "hard-links"):
    made = made_tars.GOOD[label]
    twin = made["twin"]
    put(42, label, made["make"], forms=("gzip",), judge=twin or "-", allow=made["allow"])
    if twin:
        put(42, twin, made_tars.GOOD[twin]["make"], forms=("gzip",), allow=made_tars.GOOD[twin]["allow"])
put(42, "whiteout-of-root-entries", lambda: [etc().add("top", data=b"x"), Entries().whiteout("top").whiteout("etc")])
# overlayfs does not look at the mark of a layer's root, so containerd's overlay of an opaque one shows what it should hide
put(42, "opaque-root-twin", lambda: [Entries().add("new", data=b"n")], forms=("gzip",))
put(42, "opaque-root", lambda: [etc().add("top", data=b"x"), Entries().opaque("").add("new", data=b"n")], judge="opaque-root-twin")
put(42, "opaque-root-after", lambda: [etc().add("top", data=b"x"), Entries().add("new", data=b"n").opaque("")],
    judge="opaque-root-twin")
put(42, "opaque-before", lambda: [etc(), Entries().dir("etc").opaque("etc").add("etc/new", data=b"n")])
put(42, "opaque-after", lambda: [etc(), Entries().dir("etc").add("etc/new", data=b"n").opaque("etc")])
put(42, "opaque-between", lambda: [etc(), Entries().dir("etc").add("etc/a", data=b"a").opaque("etc").add("etc/z", data=b"z")])
put(42, "opaque-in-lowest", lambda: [etc().opaque("etc")])
put(42, "opaque-of-file", lambda: [etc(), Entries().add("etc/passwd/.wh..wh..opq")], "either")
put(42, "whiteout-below-file", lambda: [etc(), Entries().add("etc/passwd", data=b"x").add("etc/passwd/.wh.x")], "either")
put(42, "whiteout-once", lambda: [etc(), Entries().whiteout("etc/passwd")], forms=("gzip",))
put(42, "whiteout-twice", lambda: [etc(), Entries().whiteout("etc/passwd").whiteout("etc/passwd")], judge="whiteout-once")
put(42, "whiteout-in-opaque", lambda: [etc(), Entries().dir("etc").opaque("etc").whiteout("etc/passwd").add("etc/new", data=b"n")])
put(42, "whiteout-of-whiteout", lambda: [etc(), Entries().whiteout("etc/.wh.passwd")], "either")
put(42, "whiteout-in-lowest-twin", lambda: [etc()], forms=("gzip",))
put(42, "whiteout-in-lowest", lambda: [etc().whiteout("etc/passwd").whiteout("gone")], judge="whiteout-in-lowest-twin")
put(42, "whiteout-with-data", lambda: [etc(), Entries().dir("etc").add("etc/.wh.passwd", data=b"data")])
put(42, "whiteout-as-directory", lambda: [etc(), Entries().dir("etc").dir("etc/.wh.passwd")], "either")
put(42, "whiteout-as-symlink", lambda: [etc(), Entries().dir("etc").add("etc/.wh.passwd", "symlink", link=CANARY)], "either")
put(42, "aufs-bookkeeping", lambda: [etc(), Entries().dir(".wh..wh.plnk").add(".wh..wh.plnk/1.2", data=b"x").dir(
    ".wh..wh.orph").add(".wh..wh.aufs", data=b"x")], judge="whiteout-in-lowest-twin")
put(42, "root-as-file", lambda: [etc(), Entries().add("./", data=b"x")], "either")
put(42, "file-then-directory-then-file", lambda: [Entries().add("x", data=b"1").dir("x").add("x/y", data=b"2").add("x", data=b"3")])
put(42, "entry-below-file", lambda: [Entries().add("x", data=b"1").add("x/y", data=b"2")], "either")


# --- 43: devices, rights, attributes ---

one(43, "devices", lambda t: t.add("null", "char", major=1, minor=3, mode=0o666).add("sda", "block", major=8, mode=0o666).add(
    "mem", "char", major=1, minor=1, mode=0o666).add("fifo", "fifo", mode=0o666))
put(43, "whiteout-device", lambda: [etc(), Entries().dir("etc").add("etc/passwd", "char", mode=0)])
one(43, "device-number-too-large", lambda t: t.add("x", "char", major=1 << 20, minor=3), "refuse")
one(43, "device-minor-too-large", lambda t: t.add("x", "block", major=1, minor=1 << 20), "refuse")
one(43, "rights", lambda t: t.add("suid", data=b"#!", mode=0o4755).add("sgid", data=b"#!", mode=0o2755).dir("sticky", mode=0o1777).dir(
    "all", mode=0o7777).add("caps", data=b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY}))
put(43, "steering-twin", lambda: [etc().dir("d").add("d/f", data=b"f"), Entries().dir("d").add("m", data=b"m").dir("r")],
    forms=("gzip",))
put(43, "steering", lambda: [
    etc().dir("d").add("d/f", data=b"f"),
    Entries().dir("d", xattrs={"trusted.overlay.opaque": b"y", "user.overlay.opaque": b"y"}).add(
        "m", data=b"m", xattrs={"trusted.overlay.metacopy": b"", "trusted.overlay.redirect": b"/etc/passwd",
                                "user.overlay.metacopy": b"", "user.overlay.redirect": b"/etc/passwd"}).dir(
        "r", xattrs={"trusted.overlay.redirect": b"/etc", "user.overlay.redirect": b"/etc"})], judge="steering-twin")
one(43, "xattr-name-256", lambda t: t.add("x", xattrs={"user." + "n" * 251: b"v"}), "refuse")
one(43, "xattrs-over-64k", lambda t: t.add("x", xattrs={f"user.{i}": b"v" * 4000 for i in range(20)}), "refuse")
one(43, "xattr-over-64k", lambda t: t.add("x", xattrs={"user.x": b"v" * 65_537}), "refuse")
one(43, "xattr-unknown-namespace", lambda t: t.add("x", xattrs={"evil.x": b"v", "user.x": b"kept"}), "either")
one(43, "xattr-on-symlink", lambda t: t.add("x", "symlink", link="y", xattrs={"user.x": b"v", "security.x": b"v"}), "either")
one(43, "owners-at-the-edge", lambda t: t.add("a", data=b"a", uid=(1 << 31) - 1, gid=1 << 31).add(
    "b", data=b"b", uid=(1 << 32) - 2, gid=(1 << 32) - 2))


# --- 44: headers ---

def raw_header(change, data=b"x", expect_name=b"f"):
    header = bytearray(Tar().header(expect_name, b"0", len(data)))
    change(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def field(start, value):
    def change(header):
        header[start:start + len(value)] = value
    return change


def raw_file(change, data=b"x"):
    return lambda: [raw_header(change, data) + data.ljust(BLOCK, b"\0") + Tar().add("after", data=b"after").bytes()]


def pax_file(records, expect, name, typeflag=b"x", **more):
    def make():
        t = Tar()
        t.raw(Tar().header(b"PaxHeaders/0", typeflag, len(records)) + records.ljust(-(-len(records) // BLOCK) * BLOCK, b"\0"))
        return [t.add("f", data=b"data").add("after", data=b"after").bytes()]
    put(44, name, make, expect, forms=("gzip",), **more)


for label, change, expect in (
        ("size-negative", field(124, base256(-512, 12)), "refuse"),
        ("size-over-2-63", field(124, b"\x80" + b"\xff" * 11), "refuse"),
        ("size-not-octal", field(124, b"99999999999\0"), "refuse"),
        ("size-base256-small", field(124, base256(1, 12)), "same"),
        ("mtime-base256-min", field(136, b"\xff" + b"\0" * 11), "either"),
        ("mtime-base256-max", field(136, b"\x80" + b"\xff" * 11), "either"),
        ("mtime-negative", field(136, base256(-5, 12)), "same"),
        ("uid-negative", field(108, base256(-1, 8)), "either"),
        ("uid-over-2-32", field(108, base256((1 << 32) + 5, 8)), "either"),
        ("mode-huge", field(100, b"7777777\0"), "either"),
        ("type-unknown", field(156, b"Z"), "either"),
        ("type-nul", field(156, b"\0"), "same"),
        ("checksum-nul", None, "refuse")):
    if change is None:
        put(44, label, lambda: [bytes(bytearray(Tar().header(b"f", b"0", 0)[:148]) + b"\0" * 8 + Tar().header(b"f", b"0", 0)[156:])],
            expect, forms=("gzip",))
    else:
        put(44, label, raw_file(change), expect, forms=("gzip",), allow=("clamped-mtime",))

for label, records, expect in (
        ("length-0", b"0 path=evil\n", "refuse"), ("length-huge", b"99999999999999999999 path=evil\n", "refuse"),
        ("length-beyond", b"200 path=evil\n", "refuse"), ("length-negative", b"-9 path=evil\n", "refuse"),
        ("length-cut", b"5 path=evil\n", "refuse"), ("no-newline", b"12 path=evilX", "refuse"), ("no-equals", b"8 path\n\n", "refuse"),
        ("not-a-number", b"ab path=evil\n", "refuse"),
        ("size-negative", pax_record("size", "-1"), "refuse"), ("size-huge", pax_record("size", "9" * 25), "refuse"),
        ("size-text", pax_record("size", "12abc"), "refuse"), ("uid-huge", pax_record("uid", "99999999999999999999"), "refuse"),
        ("uid-2-32", pax_record("uid", str(1 << 32)), "either"), ("uid-minus-one", pax_record("uid", str((1 << 32) - 1)), "either"),
        ("uid-negative", pax_record("uid", "-2"), "either"), ("mtime-text", pax_record("mtime", "soon"), "refuse"),
        ("mtime-huge", pax_record("mtime", "9" * 30), "either"), ("mtime-nanoseconds", pax_record("mtime", "1.9999999999999"), "either"),
        ("atime-ctime", pax_record("atime", "5.5") + pax_record("ctime", "-7"), "same"),
        ("path-twice", pax_record("path", "first") + pax_record("path", "second"), "same"),
        ("path-emptied", pax_record("path", ""), "either"),
        ("xattr-equals", pax_record("SCHILY.xattr.user.a=b", "c=d"), "either"),
        ("xattr-nul-in-value", pax_record("SCHILY.xattr.user.a", b"a\0b"), "same"),
        ("xattr-nul-in-name", pax_record(b"SCHILY.xattr.user.a\0b", "v"), "refuse"),
        ("xattr-nameless", pax_record("SCHILY.xattr.", "v"), "either"),
        ("key-nul", pax_record(b"a\0b", "v"), "refuse"), ("key-empty", b"5 =x\n", "either"),
        ("sparse-name-only", pax_record("GNU.sparse.name", "../evil"), "either"),
        ("sparse-1-0-lies", pax_record("GNU.sparse.major", "1") + pax_record("GNU.sparse.minor", "0") +
         pax_record("GNU.sparse.name", "evil") + pax_record("GNU.sparse.realsize", str(1 << 62)), "refuse"),
        ("sparse-0-1-overlap", pax_record("GNU.sparse.map", "0,4,2,4") + pax_record("GNU.sparse.size", "8"), "refuse"),
        ("sparse-0-1-beyond", pax_record("GNU.sparse.map", "0,4,9223372036854775807,9") + pax_record("GNU.sparse.size", "8"), "refuse"),
        ("sparse-0-1-negative", pax_record("GNU.sparse.map", "-4,4") + pax_record("GNU.sparse.size", "8"), "refuse"),
        ("sparse-0-1-wide", pax_record("GNU.sparse.map", f"0,4,{1 << 60},0") + pax_record("GNU.sparse.size", str(1 << 60)), "refuse")):
    pax_file(records, expect, "pax-" + label, allow=("clamped-mtime",))
pax_file(pax_record("path", "evil") + pax_record("uid", "7"), "either", "pax-global-path", b"g")


def gnu_long(size, data):
    return lambda: [Tar().header(b"././@LongLink", b"L", size, gnu=True) + data + Tar("gnu").add("f", data=b"x").bytes()]


put(44, "gnu-long-name-1-gib", gnu_long(1 << 30, b"n" * 5120), "refuse", forms=("gzip",))
put(44, "gnu-long-name-dotdot", gnu_long(8, b"../evil\0".ljust(512, b"\0")), "refuse", forms=("gzip",))
put(44, "gnu-long-name-alone", lambda: [Tar().header(b"././@LongLink", b"L", 5, gnu=True) + b"name\0".ljust(512, b"\0") + b"\0" * 1024],
    "either", forms=("gzip",))
put(44, "pax-alone", lambda: [Tar().header(b"x", b"x", 13) + b"13 path=evil\n".ljust(512, b"\0")], "either", forms=("gzip",))
put(44, "pax-twice", lambda: [Tar().header(b"x", b"x", 13) + b"13 path=evil\n".ljust(512, b"\0") +
                              Tar("pax").add("f", data=b"x", pax={"path": "two"}).bytes()], "either", forms=("gzip",))
put(44, "pax-header-64-mib", lambda: [Tar().header(b"x", b"x", 64 << 20) + pax_record("comment", b"c" * ((64 << 20) - 20)).ljust(
    64 << 20, b"\0") + Tar().add("f").bytes()], "refuse", forms=("gzip",))


def gnu_sparse(pieces, real, stored, extended=0):
    header = bytearray(Tar().header(b"sparse", b"S", stored, gnu=True))
    for i, (offset, length) in enumerate(pieces):
        header[386 + 24 * i:386 + 24 * i + 24] = b"%011o\0%011o\0" % (offset, length) if offset < 1 << 33 else \
            base256(offset, 12) + base256(length, 12)
    header[482] = extended
    header[483:495] = base256(real, 12)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


put(44, "gnu-sparse-overlap", lambda: [gnu_sparse([(0, 4), (2, 4)], 8, 8) + b"x" * 512 + b"\0" * 1024], "refuse", forms=("gzip",))
put(44, "gnu-sparse-backwards", lambda: [gnu_sparse([(4096, 4), (0, 4)], 8192, 8) + b"x" * 512 + b"\0" * 1024], "refuse", forms=("gzip",))
put(44, "gnu-sparse-beyond", lambda: [gnu_sparse([(1 << 40, 8)], 8, 8) + b"x" * 512 + b"\0" * 1024], "refuse", forms=("gzip",))
put(44, "gnu-sparse-4-eib", lambda: [gnu_sparse([(0, 8)], 1 << 62, 8) + b"x" * 512 + b"\0" * 1024], "either", forms=("gzip",))
put(44, "gnu-sparse-endless", lambda: [gnu_sparse([], 8, 0, 1) + (b"\0" * 504 + b"\1" + b"\0" * 7) * 5000], "refuse", forms=("gzip",))
for label in ("truncated-tar", "truncated-gzip", "not-a-tar", "bad-checksum"):
    put(44, label, made_tars.HOSTILE[label]["make"], "refuse")
for label in ("gnu", "times", "pax"):
    put(44, label, made_tars.GOOD[label]["make"], forms=("gzip",), allow=made_tars.GOOD[label]["allow"])


# --- 45: bombs and odd streams ---

def gz_layer(blob, tar):
    return [(blob, LAYER + "+gzip", digest(tar) if isinstance(tar, bytes) else tar, None)]


def zst_layer(blob, tar):
    return [(blob, LAYER + "+zstd", digest(tar) if isinstance(tar, bytes) else tar, None)]


def tar_of(name):
    """Another one for each image: layers of one diffID are one to containerd."""
    return Tar().dir("d").add("d/f", data=made_tars.noise(70_000)).add(name).bytes()


NOBODYS = "sha256:" + "2" * 64


@case(45, "bomb", forms=("gzip",))
def gzip_bomb():
    """64 GiB of one deflate block, 1000 : 1, in 64 MiB of layer; honest about nothing."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    head = packer.compress(Tar("gnu").add("zeros", data=b"", size=64 << 30).out.getvalue()) + packer.flush(zlib.Z_FULL_FLUSH)
    packer.compress(b"\0" * (8 << 20))
    packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b"\0" * (8 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return gz_layer(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + head + block * (8192 if LONG["count"] > 100_000 else 512), NOBODYS)


for label in ("zstd-bomb", "toc-bomb"):
    put(45, label, made_tars.HOSTILE[label]["make"], "bomb")


def zstd_frame(window_log, body=b""):
    """A frame that claims a window, and one raw block."""
    return struct.pack("<I", 0xFD2FB528) + bytes([0, (window_log - 10) << 3]) + struct.pack("<I", len(body) << 3 | 1)[:3] + body


def stream(name, make, expect="refuse", layer=gz_layer):
    """make: from a tar to the blob."""
    put(45, name, lambda: layer(make(tar_of(name)), tar_of(name)), expect)


def lengths(t):
    return struct.pack("<I", len(t) << 3 | 1)[:3] + t


ZSTD = struct.pack("<I", 0xFD2FB528)
for label, make, expect in (
        ("window-2-31", lambda t: zstd_frame(31, t), "refuse"), ("window-2-41", lambda t: zstd_frame(41, t), "refuse"),
        ("dictionary", lambda t: ZSTD + b"\x23\x01\x02\x03\x04" + b"\0" * 20, "refuse"),
        ("content-size-lies", lambda t: ZSTD + b"\xe0" + struct.pack("<Q", 1 << 62) + lengths(t), "refuse"),
        ("skippable-frames", lambda t: b"".join(struct.pack("<II", 0x184D2A50 + i % 16, 5) + b"skip\n" for i in range(300)) + zstd(t),
         "either"),
        ("skippable-4-gib", lambda t: zstd(t) + struct.pack("<II", 0x184D2A50, 0xffffffff) + b"x", "refuse"),
        ("cut", lambda t: zstd(t)[:-9], "refuse"), ("trailing-garbage", lambda t: zstd(t) + b"garbage", "refuse"),
        ("is-gzip", lambda t: compress(t, "gzip"), "either")):
    stream("zstd-" + label, make, expect, zst_layer)
for label, make, expect in (
        ("is-zstd", zstd, "either"), ("is-tar", lambda t: t, "either"),
        ("members", lambda t: b"".join(compress(t[i:i + 100], "gzip") for i in range(0, len(t), 100)), "same"),
        ("empty-members", lambda t: compress(b"", "gzip") * 5000 + compress(t, "gzip"), "same"),
        ("trailing-zeros", lambda t: compress(t, "gzip") + b"\0" * 700, "either"),
        ("trailing-garbage", lambda t: compress(t, "gzip") + b"garbage!", "either"),
        ("crc-wrong", lambda t: compress(t, "gzip")[:-8] + b"\0" * 8, "refuse"),
        ("endless-name", lambda t: b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * (8 << 20), "refuse"),
        ("reserved-flags", lambda t: b"\x1f\x8b\x08\xe0" + compress(t, "gzip")[4:], "either")):
    stream("gzip-" + label, make, expect)
put(45, "empty-blob", lambda: gz_layer(b"", b""), "either")
put(45, "wrong-diff-id", made_tars.HOSTILE["wrong-diff-id"]["make"], "refuse")


@case(45, "bomb", forms=("gzip",))
def names_bomb():
    """Names of 4 KiB, a million times the same block: 4 GiB of names in 4 MiB."""
    head = b"".join(Tar("gnu").add("n/" * 2000 + f"{i:04d}", data=b"").out.getvalue() for i in range(64))
    one = compress(head, "gzip")
    return gz_layer(one * 8000, NOBODYS)


# --- 46: tables that lie ---

def files():
    return Entries().dir("dir").add("dir/a", data=made_tars.noise(100_000)).add("dir/b", data=b"b" * 5000).add("link", "symlink", link="dir/a")


def of(toc, name):
    return next(e for e in toc["entries"] if e["name"] == name)


def edit(which, /, **fields):
    return lambda toc: of(toc, which).update(fields)


def lies(label, change, expect="eio", **more):
    def make(form):
        return [make_layer(files(), form, change, **(more if form == "zstdchunked" else {}))]
    put(46, label, make, expect, forms=("zstdchunked",) if more else ("estargz", "zstdchunked"))


def append(*entries):
    return lambda toc: toc["entries"].extend(entries)


for label, change in (
        ("offset-elsewhere", edit("dir/b", offset=0)), ("offset-in-toc", edit("dir/b", offset=101_000)),
        ("offset-beyond", edit("dir/b", offset=1 << 40)), ("offset-negative", edit("dir/b", offset=-1)),
        ("offset-2-63", edit("dir/b", offset=1 << 63)), ("offset-float", edit("dir/b", offset=1.5)),
        ("offset-text", edit("dir/b", offset="0")), ("offsets-overlap", lambda t: of(t, "dir/b").update(offset=of(t, "dir/a")["offset"])),
        ("end-before-start", edit("dir/b", endOffset=1)), ("end-beyond", edit("dir/b", endOffset=1 << 40)),
        ("inner-offset-huge", edit("dir/b", innerOffset=(1 << 63) - 1)), ("inner-offset-negative", edit("dir/b", innerOffset=-1)),
        ("size-huge", edit("dir/a", size=(1 << 63) - 1)), ("size-negative", edit("dir/a", size=-5)),
        ("size-larger", edit("dir/b", size=5001)), ("size-smaller", edit("dir/b", size=4999)),
        ("digest-wrong", edit("dir/a", digest="sha256:" + "5" * 64, chunkDigest="sha256:" + "5" * 64)),
        ("digest-missing", lambda t: [of(t, "dir/a").pop(k) for k in ("digest", "chunkDigest")]),
        ("digest-malformed", edit("dir/a", digest="sha256:zz", chunkDigest="md5:00")),
        ("chunk-of-nothing", append({"name": "x", "type": "chunk", "offset": 0, "chunkSize": 5})),
        ("chunk-overlap", append({"name": "dir/b", "type": "chunk", "offset": 9, "chunkOffset": 10, "chunkSize": 5})),
        ("chunk-size-huge", edit("dir/a", chunkSize=1 << 62)), ("chunk-size-negative", edit("dir/a", chunkSize=-1)),
        ("chunk-offset-huge", append({"name": "link", "type": "chunk", "offset": 9, "chunkOffset": 1 << 62, "chunkSize": 5})),
        ("name-dotdot", edit("dir/a", name="../../etc/evil")), ("name-256", edit("dir/a", name="dir/" + "n" * 256)),
        ("name-nul", edit("dir/a", name="dir/a\0b")), ("name-missing", lambda t: of(t, "dir/a").pop("name")),
        ("name-number", edit("dir/a", name=5)), ("type-unknown", edit("dir/a", type="door")),
        ("hardlink-to-self", append({"name": "h", "type": "hardlink", "linkName": "h"})),
        ("hardlink-cycle", append({"name": "h", "type": "hardlink", "linkName": "i"}, {"name": "i", "type": "hardlink", "linkName": "h"})),
        ("hardlink-outside", append({"name": "h", "type": "hardlink", "linkName": "../" * 40 + "etc/passwd"})),
        ("device-huge", append({"name": "c", "type": "char", "devMajor": 1 << 40, "devMinor": -1})),
        ("time-malformed", edit("dir/a", modtime="tomorrow")), ("xattr-malformed", edit("dir/a", xattrs={"user.a": "%%%"})),
        ("uid-huge", edit("dir/a", uid=1 << 40)), ("mode-huge", edit("dir/a", mode=1 << 40)),
        ("not-json", lambda t: b'{"version":1,"entries":[{"name":'), ("not-an-object", lambda t: b"[]"),
        ("no-entries", lambda t: b'{"version":1}'), ("version-2", lambda t: t.update(version=2)),
        ("keys-twice", lambda t: b'{"version":1,"entries":[],"entries":[{"name":"a","type":"dir"}]}'),
        ("nested", lambda t: b'{"version":1,"entries":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        ("not-utf8", lambda t: b'{"version":1,"entries":[{"name":"\xff\xfe","type":"dir"}]}'),
        ("many-entries", lambda t: t["entries"].extend([of(t, "dir/")] * 300_000))):
    lies(label, change, "either" if label in ("offsets-overlap",) else "eio")
lies("checksum-wrong", None, checksum="sha256:" + "6" * 64)
lies("position-beyond", None, position=f"{1 << 40}:100:100:1")
lies("position-overflow", None, position=f"{(1 << 64) - 8}:{1 << 63}:100:1")
lies("position-negative", None, position="-1:100:100:1")
lies("position-text", None, position="1:2")
lies("position-uncompressed-huge", None, position=f"0:100:{1 << 62}:1")
lies("position-of-itself", None, position="0:100:100:1")
for label in ("toc-digest-wrong", "toc-footer-beyond", "toc-footer-itself"):
    put(46, label, made_tars.HOSTILE[label]["make"], "eio")


# --- 48, 49: manifests that lie, and good ones for a registry that does (hostile.sh says how) ---

WITNESS = ""  # HOST:PORT, for those that name another host


def small(name):
    return [make_layer(Entries().dir("d").add("d/file", data=b"contents of " + name.encode()).add("large", data=made_tars.noise(
        200_000, len(name))), "estargz")]


def manifest_lies(layout):
    """Documents that are not what they seem; {TAG: change}."""
    def lie(tag, change, media_type=None):
        layout.write_image(tag, small(tag))
        document = layout.manifest(tag)
        changed = change(document)
        raw = changed if isinstance(changed, bytes) else json.dumps(document).encode()
        layout.tag(tag, raw, media_type or document.get("mediaType", MANIFEST))
    lie("both-kinds", lambda m: m.update(manifests=[]))
    lie("index-with-layers", lambda m: m.update(mediaType=INDEX, manifests=[]), INDEX)
    lie("type-of-index", lambda m: m.update(mediaType=INDEX), MANIFEST)
    lie("size-too-small", lambda m: m["layers"][0].update(size=m["layers"][0]["size"] - 7))
    lie("size-too-big", lambda m: m["layers"][0].update(size=m["layers"][0]["size"] + 7))
    lie("size-huge", lambda m: m["layers"][0].update(size=1 << 60))
    lie("size-negative", lambda m: m["layers"][0].update(size=-1))
    lie("config-size-wrong", lambda m: m["config"].update(size=m["config"]["size"] + 1))
    lie("config-is-layer", lambda m: m.update(config=dict(m["layers"][0])))
    lie("one-layer-too-many", lambda m: m["layers"].append(m["layers"][0]))
    lie("no-layers", lambda m: m["layers"].clear())
    lie("layers-501", lambda m: m["layers"].extend(m["layers"] * 500))
    lie("manifest-5-mib", lambda m: m.update(annotations={"a": "x" * (5 << 20)}))
    lie("digest-of-path", lambda m: m["layers"][0].update(mediaType="../../etc/passwd"))
    layout.write_image("zero-layers", [])
    layout.write_image("foreign", [(os.urandom(1000), FOREIGN, NOBODYS, None)])
    foreign = layout.manifest("foreign")
    foreign["layers"][0]["urls"] = [f"http://{WITNESS}/blob", f"https://{WITNESS}/blob", "file:///etc/passwd"]
    os.remove(layout.blob_path(foreign["layers"][0]["digest"]))
    layout.tag("foreign", json.dumps(foreign).encode())


def label_lies(layout):
    """Layers whose annotations become labels of their snapshots."""
    def lie(tag, notes):
        (blob, media_type, diff, own), = small(tag)
        layout.write_image(tag, [(blob, media_type, diff, {**own, **notes(digest(blob))})])
    prefix = "containerd.io/snapshot/"
    elsewhere = f"{WITNESS}/internal/app:1"
    lie("cri-family", lambda d: {prefix + "cri.image-ref": elsewhere, prefix + "cri.layer-digest": d, prefix + "cri.image-layers": d})
    lie("stargz-family", lambda d: {prefix + "remote/stargz.reference": elsewhere, prefix + "remote/stargz.digest": d})
    lie("reference-only", lambda d: {prefix + "cri.image-ref": elsewhere})
    lie("urls", lambda d: {prefix + "remote/urls": f"https://{WITNESS}/blob,http://{WITNESS}/blob"})
    lie("skip-verify", lambda d: {prefix + "remote/stargz.skipverify": "true", TOC_DIGEST: "sha256:" + "4" * 64})
    lie("id-maps", lambda d: {prefix + "uidmapping": "0:0:4294967295", prefix + "gidmapping": "junk"})
    lie("remote", lambda d: {prefix + "remote": "1", "containerd.io/snapshot.ref": "sha256:" + "8" * 64})
    lie("not-a-reference", lambda d: {prefix + "cri.image-ref": "UPPER CASE\n\x1b[31m", prefix + "cri.layer-digest": d})
    layout.write_image("plain", small("plain"))


# --- writing them ---

def ready(layer, form):
    if isinstance(layer, tuple):
        return layer
    if isinstance(layer, Entries):
        return make_layer(layer, form)
    return compress(layer, form), LAYER + "+gzip", digest(layer), None


def write_row(directory, row, cases, every_form):
    layout, lines = Layout(os.path.join(directory, f"r{row}")), []
    for name, c in cases.items():
        takes_form = c["layers"].__code__.co_argcount == 1 and row == 46
        layers = None if takes_form else c["layers"]()
        forms = c["forms"]
        if layers is not None and not any(isinstance(layer, Entries) for layer in layers):
            forms = ("gzip",)
        tables = [form for form in forms if form != "gzip"]
        if len(tables) > 1 and not every_form:  # in turn
            forms = [form for form in forms if form == "gzip"] + [tables[len(lines) % 2]]
        for form in forms:
            made = c["layers"](form) if takes_form else [ready(layer, form) for layer in layers]
            tag = name if form == "gzip" else f"{name}-{form}"
            layout.write_image(tag, made)
            allow = list(c["allow"]) + (["toc-files", "toc-seconds"] if form != "gzip" or row == 46 else [])
            lines.append(" ".join([tag, c["expect"], c["judge"], *allow]))
    with open(os.path.join(directory, f"r{row}.cases"), "w") as f:
        f.write("".join(line + "\n" for line in lines))
    return len(lines)


def main():
    global CANARY, WITNESS
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--canary", required=True)
    parser.add_argument("--witness", required=True)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--rows", default="")
    args = parser.parse_args()
    CANARY, WITNESS = os.fsencode(args.canary), args.witness
    manifest_lies(Layout(os.path.join(args.directory, "r49")))
    label_lies(Layout(os.path.join(args.directory, "r48")))
    if args.long:
        LONG["count"] = 1_000_000
        put(45, "entries-bomb", made_tars.HOSTILE["entries-bomb"]["make"], "bomb")
    rows = [int(row) for row in args.rows.split(",") if row] or list(ROWS)
    counts = {row: write_row(args.directory, row, ROWS[row], args.long) for row in rows}
    print(f"hostile_images: {counts}, {sum(counts.values())} images", file=sys.stderr)


if __name__ == "__main__":
    main()

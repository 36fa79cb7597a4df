#!/usr/bin/env python3
"""Compares two directory trees, every property of every inode, and reads every byte of both.

tree_diff.py [options] A B     A is the reference (or a dump of it), B the tree under test
tree_diff.py --dump A          writes A as JSON lines (usable as A later)

Compared: names (bytes), types, modes, owners, sizes, mtimes to the nanosecond, symlink targets, device numbers,
xattrs of all namespaces, hard-link groups, SHA-256 of every regular file. No link is followed and no file system
border is heeded. Each difference is one line on stdout; exit status 1 on any, 2 on trouble.

Files of B are read in random order (--seed; printed), each by one of: read() of pieces in random order, mmap with
pages touched in random order, 1-byte preads at sampled offsets (compared with A's bytes) before reading it through.

Nothing is forgiven unless asked for by --allow NAME[=PATH]; the names are:
  implied-dir-mtime[=PATH]  mtime of directory PATH (or of every directory) differs: the layers have no entry for it
  root-mtime                mtime of the root directory
  mtime[=PATH]              mtime of PATH: times clamped by one of the two
  clamped-mtime                 one side says 0 where the other's time lies outside 1970…2262 (containerd clamps so)
  toc-seconds                   B's mtime is A's rounded to a second (TOCs of eStargz and zstd:chunked hold no more)
  dropped-trusted-xattrs    A has trusted.* that B has not (B must not have more)
  overlay-xattrs            trusted.overlay.* or user.overlay.* on either side: marks of an overlay's own layers
  toc-files                 names at the root that eStargz adds: stargz.index.json, .prefetch.landmark, .no.prefetch.landmark
  eio                           a file of B that cannot be read: the error is EIO (never wrong bytes)
  missing=PATH, extra=PATH  PATH (and what is below) is in A only, in B only
  directory-nlink           never compared; here to say so
"""
import argparse
import errno
import hashlib
import json
import mmap
import os
import random
import stat
import sys

TOC_FILES = (b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark")
PIECE = 1 << 17
SECOND = 10**9


def show(path):
    """Bytes as printable text, one line."""
    return "".join(chr(c) if 32 < c < 127 and c != 92 else f"\\x{c:02x}" for c in path) or "."


def text_of(raw):
    return raw.decode("latin-1")


def xattrs_of(path):
    out = {}
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as e:
        if e.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
            return out
        raise
    for name in names:
        try:
            out[name] = text_of(os.getxattr(path, name, follow_symlinks=False))
        except OSError as e:
            if e.errno != errno.ENODATA:
                raise
    return out


def walk(root, phantoms=None):
    """relative path (bytes) -> record. Hard links: 'inode' is the same for names of one file. A list as `phantoms` gets
    the names that a directory lists and does not have (overlayfs: whiteouts where nothing is merged)."""
    root = os.fsencode(root)
    found, todo = {}, [b""]
    while todo:
        relative = todo.pop()
        path = os.path.join(root, relative) if relative else root
        try:
            st = os.lstat(path)
        except FileNotFoundError:
            if phantoms is None:
                raise
            phantoms.append(relative)
            continue
        record = {"type": stat.S_IFMT(st.st_mode), "mode": stat.S_IMODE(st.st_mode), "uid": st.st_uid,
                  "gid": st.st_gid, "mtime": st.st_mtime_ns, "xattrs": xattrs_of(path)}
        if stat.S_ISREG(st.st_mode):
            record["size"] = st.st_size
        elif stat.S_ISLNK(st.st_mode):
            record["link"] = text_of(os.readlink(path))
            record["size"] = st.st_size
        elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
            record["device"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
        if not stat.S_ISDIR(st.st_mode):
            record["inode"] = [st.st_dev, st.st_ino]
            record["nlink"] = st.st_nlink
        found[relative] = record
        if stat.S_ISDIR(st.st_mode):
            for name in os.listdir(path):
                todo.append(relative + b"/" + name if relative else name)
    return found


def hard_link_groups(tree):
    groups = {}
    for path, record in tree.items():
        if "inode" in record:
            groups.setdefault(tuple(record["inode"]), []).append(path)
    return {p: tuple(sorted(paths)) for paths in groups.values() for p in paths}


def read_through(fd, size):
    h, done = hashlib.sha256(), 0
    while True:
        piece = os.read(fd, 1 << 20)
        if not piece:
            return h.hexdigest(), done
        h.update(piece)
        done += len(piece)


def read_pieces(fd, size, rng):
    data = bytearray(size)
    offsets = list(range(0, size, PIECE))
    rng.shuffle(offsets)
    for offset in offsets:
        want, at = min(PIECE, size - offset), offset
        while want:
            piece = os.pread(fd, want, at)
            if not piece:
                return "short read at %d" % at, at
            data[at:at + len(piece)] = piece
            at, want = at + len(piece), want - len(piece)
    if os.pread(fd, 1, size):
        return "bytes beyond the end", size + 1
    return hashlib.sha256(data).hexdigest(), size


def read_mapped(fd, size, rng):
    if size == 0:
        return read_through(fd, size)
    data = bytearray(size)
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as m:
        offsets = list(range(0, size, 4096))
        rng.shuffle(offsets)
        for offset in offsets:
            data[offset:offset + 4096] = m[offset:offset + 4096]
    return hashlib.sha256(data).hexdigest(), size


def read_bytewise(fd, size, rng, reference):
    """1-byte preads, each compared with the reference's byte (when it is a tree), then the whole."""
    offsets = {0, size - 1, size // 2, size, size + 4095} | {rng.randrange(size) for _ in range(32)} if size else {0}
    other = os.open(reference, os.O_RDONLY | os.O_NOFOLLOW) if reference else None
    try:
        for offset in rng.sample(sorted(offsets), len(offsets)):
            got = os.pread(fd, 1, max(offset, 0))
            if len(got) != (1 if offset < size else 0):
                return f"pread of 1 byte at {offset} gave {len(got)}", size
            if other is not None and got != os.pread(other, 1, offset):
                return f"wrong byte at {offset}", size
    finally:
        if other is not None:
            os.close(other)
    return read_through(fd, size)


def sha256_of(path, size, how, rng, reference=None):
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if how == "mmap":
            return read_mapped(fd, size, rng)
        if how == "pieces":
            return read_pieces(fd, size, rng)
        if how == "bytes":
            return read_bytewise(fd, size, rng, reference)
        return read_through(fd, size)
    finally:
        os.close(fd)


def add_digests(root, tree, rng=None, reference=None, mapped=True):
    """One digest per inode. With rng: random order and ways; mmap only if `mapped` (its errors are SIGBUS)."""
    root, seen = os.fsencode(root), {}
    paths = [p for p, r in tree.items() if r["type"] == stat.S_IFREG]
    paths.sort()
    if rng:
        rng.shuffle(paths)
    for path in paths:
        record = tree[path]
        key = tuple(record["inode"])
        if key not in seen:
            ways = ("read", "pieces", "bytes", "mmap") if mapped else ("read", "pieces", "bytes")
            how = rng.choice(ways) if rng and record["size"] < 256 << 20 else "read"
            other = os.path.join(reference, path) if reference is not None else None
            if other is not None and not (os.path.isfile(other) and not os.path.islink(other)):
                other = None
            try:
                got, length = sha256_of(os.path.join(root, path), record["size"], how, rng, other)
                if length != record["size"]:
                    got = f"{got} ({length} bytes read by {how})"
            except OSError as e:
                got = f"{errno.errorcode.get(e.errno, e.errno)} by {how}"
            seen[key] = got
        record["sha256"] = seen[key]


def dump(tree, out):
    for path in sorted(tree):
        out.write(json.dumps({"path": text_of(path), **tree[path]}) + "\n")


def load(name):
    if os.path.isdir(name):
        return walk(name), True
    tree = {}
    with open(name) as f:
        for line in f:
            record = json.loads(line)
            tree[record.pop("path").encode("latin-1")] = record
    return tree, False


class Allowed:
    NAMES = {"implied-dir-mtime", "root-mtime", "mtime", "clamped-mtime", "toc-seconds", "dropped-trusted-xattrs", "overlay-xattrs", "toc-files",
             "missing", "extra", "hidden-links", "eio"}

    def __init__(self, options):
        self.options = []
        for option in options:
            name, _, path = option.partition("=")
            if name not in self.NAMES:
                raise SystemExit(f"tree_diff: unknown --allow {name}")
            self.options.append((name, os.fsencode(path).strip(b"/") if "=" in option else None))

    def has(self, name, path=None):
        return any(n == name and (p is None or p == path) for n, p in self.options)

    def below(self, name, path):
        return any(n == name and p is not None and (path == p or path.startswith(p + b"/")) for n, p in self.options)

    def mtime(self, path, a, b):
        times = sorted((a["mtime"], b["mtime"]), key=lambda t: t != 0)
        if self.has("toc-seconds"):
            rounded = (a["mtime"] + SECOND // 2) // SECOND * SECOND
            clamped = rounded if 0 <= rounded < 1 << 63 else 0
            if b["mtime"] in (rounded, clamped if self.has("clamped-mtime") else rounded):
                return True
        return (self.has("mtime", path) or (path == b"" and self.has("root-mtime")) or
                (a["type"] == stat.S_IFDIR and self.has("implied-dir-mtime", path)) or
                (self.has("clamped-mtime") and times[0] == 0 and not 0 <= times[1] < 1 << 63))

    def xattrs(self, a, b):
        if self.has("overlay-xattrs"):
            a, b = ({k: v for k, v in x.items() if not k.startswith(("trusted.overlay.", "user.overlay."))}
                    for x in (a, b))
        if self.has("dropped-trusted-xattrs"):
            a = {k: v for k, v in a.items() if not k.startswith("trusted.") or k in b}
        return a, b


def compare(a, b, allowed):
    """Yields one line per difference."""
    skip = TOC_FILES if allowed.has("toc-files") else ()
    groups_a, groups_b = hard_link_groups(a), hard_link_groups(b)
    for path in sorted(set(a) | set(b)):
        if path in skip:
            continue
        if path not in b:
            if not allowed.below("missing", path):
                yield f"{show(path)}: missing"
            continue
        if path not in a:
            if not allowed.below("extra", path):
                yield f"{show(path)}: not in the reference"
            continue
        x, y = a[path], b[path]
        if x["type"] != y["type"]:
            yield f"{show(path)}: type {oct(x['type'])} is {oct(y['type'])}"
            continue
        for key in ("mode", "uid", "gid", "size", "link", "device", "sha256"):
            if key == "sha256" and allowed.has("eio") and str(y.get(key)).startswith("EIO by"):
                continue
            if x.get(key) != y.get(key):
                values = [oct(v) if key == "mode" else repr(v) for v in (x.get(key), y.get(key))]
                yield f"{show(path)}: {key} {values[0]} is {values[1]}"
        if x["mtime"] != y["mtime"] and not allowed.mtime(path, x, y):
            yield f"{show(path)}: mtime {x['mtime']} is {y['mtime']}"
        if x["xattrs"] != y["xattrs"]:
            want, got = allowed.xattrs(x["xattrs"], y["xattrs"])
            for name in sorted(set(want) | set(got)):
                if want.get(name) != got.get(name):
                    yield f"{show(path)}: xattr {name!r} {want.get(name)!r} is {got.get(name)!r}"
        if groups_a.get(path) != groups_b.get(path):
            names = [" ".join(show(p) for p in g.get(path, ())) for g in (groups_a, groups_b)]
            yield f"{show(path)}: hard links {{{names[0]}}} are {{{names[1]}}}"
        elif "nlink" in y and y["nlink"] != x["nlink"] and not (
                allowed.has("hidden-links") and y["nlink"] > x["nlink"]):
            yield f"{show(path)}: link count {x['nlink']} is {y['nlink']}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dump", action="store_true")
    parser.add_argument("--allow", action="append", default=[], metavar="NAME[=PATH]")
    parser.add_argument("--allow-file", help="allowances, each ended by a NUL")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--plain", action="store_true", help="read B front to back, in order")
    parser.add_argument("--max-lines", type=int, default=200)
    parser.add_argument("trees", nargs="+")
    args = parser.parse_args(argv)
    if args.dump:
        tree = walk(args.trees[0])
        add_digests(args.trees[0], tree)
        dump(tree, sys.stdout)
        return 0
    if len(args.trees) != 2:
        parser.error("two trees, please")
    if args.allow_file:
        with open(args.allow_file, "rb") as f:
            args.allow += [os.fsdecode(a) for a in f.read().split(b"\0") if a]
    allowed = Allowed(args.allow)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    a, a_is_tree = load(args.trees[0])
    b, b_is_tree = load(args.trees[1])
    if b_is_tree:
        rng = None if args.plain else random.Random(seed)
        add_digests(args.trees[1], b, rng, os.fsencode(args.trees[0]) if a_is_tree else None,
                    mapped=not allowed.has("eio"))
    if a_is_tree:
        add_digests(args.trees[0], a)
    lines = 0
    for line in compare(a, b, allowed):
        lines += 1
        if lines <= args.max_lines:
            print(line)
    if lines > args.max_lines:
        print(f"… and {lines - args.max_lines} more")
    files = [r for r in b.values() if r["type"] == stat.S_IFREG]
    unread = sum(str(r.get("sha256")).startswith("EIO by") for r in files)
    print(f"tree_diff: {len(b)} names, {len(files)} files, {sum(r['size'] for r in files)} bytes, seed {seed}: "
          f"{lines} differences" + (f", {unread} files with EIO" if unread else ""), file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        print(f"tree_diff: {error}", file=sys.stderr)
        sys.exit(2)

"""A tar writer that writes what it is told, valid or not: names are bytes, every header field can be forced."""
import io
import struct

BLOCK = 512
TYPES = {"file": b"0", "hardlink": b"1", "symlink": b"2", "char": b"3", "block": b"4", "dir": b"5", "fifo": b"6"}


def pad(data):
    return data + b"\0" * (-len(data) % BLOCK)


def octal(value, width):
    return b"%0*o\0" % (width - 1, value)


def base256(value, width):
    return ((1 << (8 * width - 1)) | (value & ((1 << (8 * width - 1)) - 1))).to_bytes(width, "big") if value >= 0 else \
        value.to_bytes(width, "big", signed=True)


def fits(value, width):
    return 0 <= value < 8 ** (width - 1)


def pax_record(key, value):
    if isinstance(key, str):
        key = key.encode()
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    if len(str(length)) + len(body) != length:
        length += 1
    return b"%d" % length + body


def pax_time(value):
    seconds, nanoseconds = value if isinstance(value, tuple) else (value, 0)
    if nanoseconds == 0:
        return str(seconds)
    if seconds >= 0:
        return f"{seconds}.{nanoseconds:09d}"
    total = seconds * 10**9 + nanoseconds  # nanoseconds are added to seconds, the text is a signed decimal
    return f"-{-total // 10**9}.{-total % 10**9:09d}"


class Tar:
    """dialect: ustar, gnu or pax. mtime: seconds, or (seconds, nanoseconds) with pax."""

    def __init__(self, dialect="pax"):
        self.out = io.BytesIO()
        self.dialect = dialect

    def header(self, name, typeflag, size=0, mode=0o644, uid=0, gid=0, mtime=0, link=b"", major=0, minor=0,
               prefix=b"", gnu=False, uname=b"", gname=b""):
        number = lambda v, w: octal(v, w) if fits(v, w) else base256(v, w)
        magic = b"ustar  \0" if gnu else b"ustar\x0000"
        block = struct.pack("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x", name, octal(mode, 8), number(uid, 8),
                            number(gid, 8), number(size, 12), number(mtime, 12), b" " * 8, typeflag, link, magic,
                            uname, gname, number(major, 8), number(minor, 8), prefix)
        return block[:148] + b"%06o\0 " % sum(block) + block[156:]

    def raw(self, data):
        self.out.write(data)

    def long_gnu(self, typeflag, text):
        self.raw(self.header(b"././@LongLink", typeflag, len(text) + 1, gnu=True) + pad(text + b"\0"))

    def pax(self, records, typeflag=b"x"):
        data = b"".join(pax_record(k, v) for k, v in records.items())
        self.raw(self.header(b"PaxHeaders/0", typeflag, len(data)) + pad(data))

    def add(self, name, kind="file", data=b"", mode=None, uid=0, gid=0, mtime=1_500_000_000, link=b"", major=0,
            minor=0, xattrs=None, pax=None, size=None):
        name = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        link = link.encode("utf-8", "surrogateescape") if isinstance(link, str) else link
        mode = (0o755 if kind == "dir" else 0o777 if kind == "symlink" else 0o644) if mode is None else mode
        size = (len(data) if kind == "file" else 0) if size is None else size
        seconds, nanoseconds = mtime if isinstance(mtime, tuple) else (mtime, 0)
        prefix, records = b"", dict(pax or {})
        if self.dialect == "pax":
            if len(name) > 100 or not name.isascii():
                records["path"] = name
            if len(link) > 100 or not link.isascii():
                records["linkpath"] = link
            for key, value, width in (("uid", uid, 8), ("gid", gid, 8), ("size", size, 12)):
                if not fits(value, width):
                    records[key] = str(value)
            uid, gid = (v if fits(v, 8) else 0 for v in (uid, gid))
            if nanoseconds or not fits(seconds, 12):
                records["mtime"] = pax_time((seconds, nanoseconds))
                seconds = seconds if fits(seconds, 12) else 0
            for key, value in (xattrs or {}).items():
                records["SCHILY.xattr." + key] = value
        elif self.dialect == "gnu":
            if len(name) > 100:
                self.long_gnu(b"L", name)
            if len(link) > 100:
                self.long_gnu(b"K", link)
        elif len(name) > 100:
            cut = name.rfind(b"/", 0, 156)
            prefix, name = name[:cut], name[cut + 1:]
            assert len(name) <= 100, "does not fit ustar"
        if records:
            self.pax(records)
        self.raw(self.header(name[:100], TYPES.get(kind, kind if isinstance(kind, bytes) else b"0"), size, mode, uid,
                             gid, seconds, link[:100], major, minor, prefix, gnu=self.dialect == "gnu"))
        if kind == "file":
            self.raw(pad(data))
        return self

    def dir(self, name, **more):
        return self.add(name.rstrip("/") + "/" if isinstance(name, str) else name, "dir", **more)

    def whiteout(self, path):
        parent, _, base = path.rpartition("/")
        return self.add((parent + "/" if parent else "") + ".wh." + base, mode=0)

    def opaque(self, directory):
        return self.add((directory.rstrip("/") + "/" if directory else "") + ".wh..wh..opq", mode=0)

    def bytes(self):
        return self.out.getvalue() + b"\0" * (2 * BLOCK)

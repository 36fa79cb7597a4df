#!/usr/bin/env python3
"""tree_diff.py must see each kind of difference, and nothing else. As root also owners, devices, trusted xattrs."""
import contextlib
import io
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tree_diff  # noqa: E402

ROOT = os.geteuid() == 0
TIME = 1_500_000_000_123_456_789


def make(root):
    os.mkdir(root)
    at = lambda name: os.path.join(root, name)
    for name in ("dir", "empty"):
        os.mkdir(at(name), 0o755)
    for name, data in (("file", b"x" * 300_000), ("dir/small", b"small"), ("none", b"")):
        with open(at(name), "wb") as f:
            f.write(data)
    with open(os.path.join(root.encode(), b"odd\xff\nname"), "wb") as f:
        f.write(b"odd")
    os.link(at("dir/small"), at("link"))
    os.link(at("dir/small"), at("dir/link"))
    os.symlink("file", at("symlink"))
    os.mkfifo(at("fifo"))
    os.setxattr(at("file"), "user.a", b"\x00\xff")
    if ROOT:
        os.mknod(at("device"), 0o020600, os.makedev(1, 3))
        os.setxattr(at("file"), "trusted.t", b"t")
    stamp(root)


def stamp(root):
    for path, dirs, files in os.walk(root, topdown=False):
        for name in [*dirs, *files, "."]:
            os.utime(os.path.join(path, name), ns=(TIME, TIME), follow_symlinks=False)


class TreeDiffTest(unittest.TestCase):
    def setUp(self):
        # not in a tmpfs: user xattrs are asked for
        self.scratch = tempfile.TemporaryDirectory(dir=os.environ.get("LAZYBLOB_WORK") or os.getcwd())
        self.addCleanup(self.scratch.cleanup)
        self.a, self.b = (os.path.join(self.scratch.name, n) for n in "ab")
        make(self.a)
        make(self.b)

    def diff(self, *options):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            status = tree_diff.main([*options, self.a, self.b])
        lines = out.getvalue().splitlines()
        self.assertEqual(status, 1 if lines else 0)
        return lines

    def at(self, name):
        return os.path.join(self.b, name)

    def check(self, *expected, restamp=True, options=()):
        if restamp:
            stamp(self.b)
        lines = self.diff(*options)
        self.assertEqual(len(lines), len(expected), lines)
        for line, part in zip(lines, expected):
            self.assertIn(part, line)

    def test_equal_whatever_the_order_and_way_of_reading(self):
        for seed in range(20):
            self.assertEqual(self.diff("--seed", str(seed)), [])
        self.assertEqual(self.diff("--plain"), [])

    def test_dump_is_a_reference(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            tree_diff.main(["--dump", self.a])
        with open(os.path.join(self.scratch.name, "dump"), "w") as f:
            f.write(out.getvalue())
        self.a = f.name
        self.assertEqual(self.diff(), [])
        with open(self.at("none"), "w") as f:
            f.write("y")
        self.check("none: size 0 is 1", "none: sha256")

    def test_one_flipped_byte_by_each_way(self):
        with open(self.at("file"), "r+b") as f:
            f.seek(123_456)
            f.write(b"y")
        stamp(self.b)
        for seed in range(12):
            lines = self.diff("--seed", str(seed))
            self.assertEqual(len(lines), 1, lines)
            self.assertIn("file: sha256", lines[0])

    def test_missing_and_extra(self):
        os.unlink(self.at("none"))
        os.mkdir(self.at("more"))
        self.check("more: not in the reference", "none: missing")
        self.check(options=("--allow", "missing=/none", "--allow", "extra=more"))

    def test_mode(self):
        os.chmod(self.at("dir"), 0o1755)
        self.check("dir: mode 0o755 is 0o1755")

    def test_mtime_to_the_nanosecond(self):
        os.utime(self.at("symlink"), ns=(TIME, TIME + 1), follow_symlinks=False)
        os.utime(self.at("dir"), ns=(TIME, TIME - 1))
        self.check("dir: mtime", "symlink: mtime", restamp=False)
        self.check("symlink: mtime", restamp=False, options=("--allow", "implied-dir-mtime=dir"))
        self.check("symlink: mtime", restamp=False, options=("--allow", "implied-dir-mtime"))
        self.check("dir: mtime", restamp=False, options=("--allow", "mtime=symlink"))

    def test_toc_seconds(self):
        os.utime(self.at("file"), ns=(0, TIME // 10**9 * 10**9))
        os.utime(self.at("none"), ns=(0, (TIME // 10**9 + 1) * 10**9))
        self.check("none: mtime", restamp=False, options=("--allow", "toc-seconds"))

    def test_clamped(self):
        os.utime(os.path.join(self.a, "file"), ns=(0, -5))
        os.utime(self.at("file"), ns=(0, 0))
        self.check(restamp=False, options=("--allow", "clamped-mtime"))
        os.utime(os.path.join(self.a, "file"), ns=(0, 5))
        self.check("file: mtime 5 is 0", restamp=False, options=("--allow", "clamped-mtime"))

    def test_symlink_target_and_type(self):
        os.unlink(self.at("symlink"))
        os.symlink("filf", self.at("symlink"))
        os.rmdir(self.at("empty"))
        os.symlink("dir", self.at("empty"))
        self.check("empty: type", "symlink: link 'file' is 'filf'")

    def test_user_xattr(self):
        os.setxattr(self.at("file"), "user.a", b"\x00")
        os.setxattr(self.at("dir"), "user.b", b"")
        self.check("dir: xattr 'user.b' None is ''", "file: xattr 'user.a'")

    def test_hard_links_broken_and_made(self):
        os.unlink(self.at("link"))
        with open(self.at("link"), "wb") as f:
            f.write(b"small")
        self.check("dir/link: hard links", "dir/small: hard links", "link: hard links {dir/link dir/small link} are {link}")

    def test_names_are_bytes(self):
        os.rename(os.path.join(self.b.encode(), b"odd\xff\nname"), os.path.join(self.b.encode(), b"odd\xfe\nname"))
        self.check("odd\\xfe\\x0aname: not in the reference", "odd\\xff\\x0aname: missing")

    def test_unknown_allowance_is_refused(self):
        with self.assertRaises(SystemExit):
            self.diff("--allow", "everything")

    @unittest.skipUnless(ROOT, "root only")
    def test_owner_device_trusted(self):
        os.chown(self.at("file"), 1, 2)
        os.unlink(self.at("device"))
        os.mknod(self.at("device"), 0o020600, os.makedev(1, 5))
        os.setxattr(self.at("none"), "trusted.t", b"t")
        os.removexattr(self.at("file"), "trusted.t")
        self.check("device: device [1, 3] is [1, 5]", "file: uid 0 is 1", "file: gid 0 is 2",
                   "file: xattr 'trusted.t'", "none: xattr 'trusted.t' None is 't'")
        self.check("device", "file: uid", "file: gid", "none: xattr", options=("--allow", "dropped-trusted-xattrs"))

    @unittest.skipUnless(ROOT, "root only")
    def test_overlay_marks(self):
        os.setxattr(self.at("dir"), "trusted.overlay.opaque", b"y")
        self.check("dir: xattr")
        self.check(options=("--allow", "overlay-xattrs"))

    def test_toc_files_only_at_the_root(self):
        for name in ("stargz.index.json", "dir/stargz.index.json"):
            open(self.at(name), "w").close()
        self.check("dir/stargz.index.json: not in", options=("--allow", "toc-files"))


if __name__ == "__main__":
    unittest.main()

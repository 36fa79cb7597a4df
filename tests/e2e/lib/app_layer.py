#!/usr/bin/env python3
"""The application layers of the Debian test image.

app_layer.py ROOT               changes an unpacked root (umoci repack makes a layer with whiteouts of it)
app_layer.py --opaque-tar FILE  writes the layer with opaque markers as a tar
"""
import os
import random
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tars import Tar  # noqa: E402

HELLO = """import sys
import numpy
a = numpy.arange(10000, dtype=numpy.int64).reshape(100, 100)
print("hello from python", sys.version.split()[0], "numpy", numpy.__version__, "trace", int(numpy.trace(a @ a)))
"""


def change(root):
    app = os.path.join(root, "app")
    os.mkdir(app, 0o755)
    with open(os.path.join(app, "hello.py"), "w") as f:
        f.write(HELLO)
    at = lambda name: os.path.join(app, name)
    for i, size in enumerate((0, 1, 511, 512, 513, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 3 << 20)):
        with open(at(f"size-{size}"), "wb") as f:
            f.write(random.Random(i).randbytes(size))
    os.link(at("hello.py"), at("hard-1"))
    os.mkdir(at("deep"))
    os.link(at("hello.py"), at("deep/hard-2"))
    os.symlink("../hello.py", at("deep/relative"))
    os.symlink("/" + "x" * 200, at("deep/dangling"))
    for name in ("n" * 255, "new\nline", "tab\there", "żółć-日本", "space and 'quote\"", "-dash", "b\\ackslash"):
        with open(at(name), "w") as f:
            f.write(name)
    with open(os.path.join(app.encode(), b"not-utf8-\xff\xfe"), "wb") as f:
        f.write(b"bytes")
    shutil.copy(os.path.join(root, "usr/bin/id"), at("setuid-id"))
    os.chmod(at("setuid-id"), 0o4755)
    os.mkdir(at("sticky"))
    os.chmod(at("sticky"), 0o1777)
    os.mkdir(at("setgid"))
    os.chown(at("setgid"), 12, 34)
    os.chmod(at("setgid"), 0o2750)
    with open(at("owned"), "w") as f:
        f.write("owned")
    os.chown(at("owned"), 3_000_000_000, 4_000_000_000)
    shutil.copy(os.path.join(root, "usr/bin/id"), at("with-capability"))
    subprocess.run(["setcap", "cap_net_raw,cap_net_bind_service+ep", at("with-capability")], check=True)
    os.setxattr(at("hello.py"), "user.comment", b"value with \x00 and \n")
    os.setxattr(at("deep"), "user.on-directory", b"x" * 1000)
    os.mkfifo(at("fifo"), 0o600)
    os.mknod(at("char"), 0o020640, os.makedev(5, 1))
    os.mknod(at("block"), 0o060660, os.makedev(259, 300000))
    many = at("many")
    os.mkdir(many)
    for i in range(2000):
        with open(os.path.join(many, f"file-{i:05d}"), "w") as f:
            f.write(f"{i}\n" * (i % 50))
    for name in ("usr/share/doc/apt", "usr/share/lintian", "usr/share/common-licenses/GPL-1"):  # whiteouts
        path = os.path.join(root, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    os.utime(at("hello.py"), ns=(0, 1_600_000_000_123_456_789))
    os.utime(at("owned"), ns=(0, -86_400_000_000_000))
    os.utime(at("deep/relative"), ns=(0, 1_234_567_890_000_000_001), follow_symlinks=False)


def opaque_tar():
    tar = Tar("pax")
    tar.dir("usr").dir("usr/share").dir("usr/share/doc")
    tar.dir("usr/share/doc/bash").opaque("usr/share/doc/bash").add("usr/share/doc/bash/only-this", data=b"new\n")
    tar.dir("app/sticky", mode=0o1777)                # no entry for app: it keeps what the lower layer says
    tar.add("app/sticky/later", data=b"later\n")
    tar.whiteout("app/many/file-00007")               # no entry for app/many either
    return tar.bytes()


if __name__ == "__main__":
    if sys.argv[1] == "--opaque-tar":
        with open(sys.argv[2], "wb") as out:
            out.write(opaque_tar())
    else:
        change(sys.argv[1])

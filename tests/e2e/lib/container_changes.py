#!/usr/bin/env python3
"""Run in a container: changes its root in every way that makes overlayfs copy up, cover or hide what lies below.

Times that would differ from run to run are set: on everything that was touched, and on the directories above it.
"""
import errno
import os
import shutil

TIME = 1_600_000_000
touched = set()


def touch(path):
    while True:
        touched.add(path)
        if path == "/":
            return
        path = os.path.dirname(path)


def write(path, data, mode="w"):
    with open(path, mode) as f:
        f.write(data)
    touch(path)


def renamed(old, new):
    """Directories of a lower layer cannot be renamed without redirect_dir: like mv, copy then."""
    touch(os.path.dirname(old))
    try:
        os.rename(old, new)
    except OSError as e:
        if e.errno != errno.EXDEV:
            raise
        shutil.copytree(old, new, symlinks=True)
        shutil.rmtree(old)
    touch(new)
    for top, directories, files in os.walk(new):
        for name in directories + files:
            touch(os.path.join(top, name))


def main():
    # copy-up by data, by truncation, by metadata, by a second name, by an extended attribute
    write("/etc/hostname", "changed by the container\n")
    write("/etc/passwd", "added:x:1234:1234::/:/bin/false\n", "a")
    os.truncate("/app/size-1048577", 4097)
    touch("/app/size-1048577")
    os.chmod("/app/size-4096", 0o600)
    touch("/app/size-4096")
    os.chown("/app/sticky", 1000, 1001)
    touch("/app/sticky")
    os.link("/app/size-513", "/app/second-name")
    touch("/app/second-name")
    os.setxattr("/app/size-512", "user.added", b"by the container")
    touch("/app/size-512")
    with open("/app/size-3145728", "r+b") as f:   # in the middle of a large file
        f.seek(1_000_000)
        f.write(b"here")
    touch("/app/size-3145728")
    # rename: a file, a directory of below, a directory of our own
    renamed("/app/size-4097", "/app/renamed")
    renamed("/app/deep", "/app/deeper")
    os.mkdir("/app/own")
    write("/app/own/file", "x")
    renamed("/app/own", "/app/own-renamed")
    # delete: a file, a tree; a name again as another type
    os.unlink("/app/size-511")
    touch("/app")
    shutil.rmtree("/usr/share/doc")
    touch("/usr/share")
    os.unlink("/app/size-1")
    os.mkdir("/app/size-1")
    write("/app/size-1/inside", "a directory now")
    os.unlink("/etc/issue")
    os.symlink("hostname", "/etc/issue")
    touch("/etc/issue")
    # opaque: a directory gone and made again hides what was in it, and has children of its own
    shutil.rmtree("/app/many")
    os.mkdir("/app/many")
    write("/app/many/only", "this")
    shutil.rmtree("/usr/share/common-licenses")
    os.mkdir("/usr/share/common-licenses", 0o750)
    touch("/usr/share/common-licenses")
    for path in sorted(touched, key=len, reverse=True):
        if os.path.lexists(path):
            os.utime(path, (TIME, TIME), follow_symlinks=False)
    print("changed", len(touched))


main()

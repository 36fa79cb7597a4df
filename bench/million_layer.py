#!/usr/bin/env python3
"""Writes the layer with a million entries into an image layout: million_layer.py LAYOUT TAG [ENTRIES]"""
import os
import sys
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/e2e/lib"))
from ocilayout import LAYER, Layout, digest  # noqa: E402
from tars import Tar  # noqa: E402


def main():
    layout, tag = Layout(sys.argv[1]), sys.argv[2]
    entries = int(sys.argv[3]) if len(sys.argv) > 3 else 1_000_000
    per_directory = 1000
    tar = Tar("ustar")
    made = 0
    for d in range(-(-entries // per_directory)):
        name = f"data/{d % 32:02d}/set-{d:04d}"
        tar.dir(name)
        made += 1
        for i in range(min(per_directory - 1, entries - made)):
            tar.add(f"{name}/file-{i:06d}.txt", mtime=1_500_000_000 + i, uid=d % 7, data=b"x" if i == 0 else b"")
            made += 1
    data = tar.bytes()
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    blob = packer.compress(data) + packer.flush()
    layout.write_image(tag, [(blob, LAYER + "+gzip", digest(data), None)])
    print(made)


if __name__ == "__main__":
    main()

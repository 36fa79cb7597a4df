#!/usr/bin/env python3
"""Makes an image of random files that no cache has seen, as an OCI layout (tag "latest"), and beside it the tree it holds.

  fault_image.py LAYOUT TREE [--files 8] [--size BYTES] [--layers 1] [--format estargz|gzip|zstd|none]

Files are f00, f01, … (fLL-NN with several layers); each is a chunk of its own in an eStargz layer.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../e2e/lib"))
import estargz  # noqa: E402
from ocilayout import LAYER, SUFFIX, Layout, compress, digest  # noqa: E402
from tars import Tar  # noqa: E402

TOC = "containerd.io/snapshot/stargz/toc.digest"


def layer(files, kind):
    if kind == "estargz":
        blob, toc, diff = estargz.build(files)
        return blob, LAYER + "+gzip", diff, {TOC: toc}
    tar = Tar("ustar")
    for name, data in files:
        tar.add(name, "file", data=data)
    plain = tar.bytes()
    return compress(plain, kind), LAYER + SUFFIX[kind], digest(plain), None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("layout")
    parser.add_argument("tree")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--size", type=int, default=256 << 10)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--format", default="estargz", choices=["estargz", *sorted(SUFFIX)])
    args = parser.parse_args()
    os.makedirs(args.tree)
    layers = []
    for number in range(args.layers):
        prefix = "f" if args.layers == 1 else f"f{number:02d}-"
        files = [(f"{prefix}{i:02d}", os.urandom(args.size)) for i in range(args.files)]
        for name, data in files:
            with open(os.path.join(args.tree, name), "wb") as file:
                file.write(data)
        layers.append(layer(files, args.format))
    Layout(args.layout).write_image("latest", layers)


if __name__ == "__main__":
    main()

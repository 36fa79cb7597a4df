#!/usr/bin/env python3
"""Two images whose configs give the same diffIDs: that of an honest one, and of one with other blobs.

  claims_image.py LAYOUT TREES [--format estargz|gzip|zstd|none]

Tags "good" and "evil" in LAYOUT; TREES/good and TREES/evil hold what their blobs hold: a file "who" and random ones.
Prints the chain id of both, and the digests of the good and the evil layer.
"""
import argparse
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../e2e/lib")]
from fault_image import layer  # noqa: E402
from ocilayout import Layout  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("layout")
    parser.add_argument("trees")
    parser.add_argument("--format", default="estargz")
    args = parser.parse_args()
    layout = Layout(args.layout)
    made = {}
    for who in ("good", "evil"):
        files = [("who", who.encode())] + [(f"f{i:02d}", os.urandom(128 << 10)) for i in range(3)]
        os.makedirs(os.path.join(args.trees, who))
        for name, data in files:
            with open(os.path.join(args.trees, who, name), "wb") as file:
                file.write(data)
        made[who] = layer(files, args.format)
    diff_id = made["good"][2]
    for who, (blob, media_type, _, annotations) in made.items():
        layout.write_image(who, [(blob, media_type, diff_id, annotations)])
    print(diff_id, *(layout.manifest(who)["layers"][0]["digest"] for who in made))


if __name__ == "__main__":
    main()

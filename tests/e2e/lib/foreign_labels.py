#!/usr/bin/env python3
"""An image whose layers' annotations pose as labels of a pull from another registry.

foreign_labels.py LAYOUT TAG FAMILY REFERENCE     FAMILY: cri or stargz; the result gets FAMILY as its tag
"""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from ocilayout import Layout  # noqa: E402


def main():
    path, tag, family, reference = sys.argv[1:]
    layout = Layout(path)
    manifest = layout.manifest(tag)
    for d in manifest["layers"]:
        prefix = "containerd.io/snapshot/"
        if family == "cri":
            labels = {"cri.image-ref": reference, "cri.layer-digest": d["digest"]}
        else:
            labels = {"remote/stargz.reference": reference, "remote/stargz.digest": d["digest"],
                      "remote/stargz.skipverify": "true"}
        labels["remote/urls"] = "http://" + reference.split("/")[0] + "/v2/x/blobs/" + d["digest"]
        d.setdefault("annotations", {}).update({prefix + k: v for k, v in labels.items()})
    layout.tag(family, json.dumps(manifest).encode())


main()

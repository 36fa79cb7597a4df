#!/usr/bin/env python3
"""Includes go down only: base < proto, oci < registry, layer, containerd < contentstore < fuse, exporter <
snapshotter, contentservice < daemon.

Folders of one rank never include each other; headers in internal/ are their folder's own; third-party headers with
an interface of their own stay where they are wrapped.
"""

import re

import lint

RANKS = {
    "base": 0,
    "proto": 1, "oci": 1,
    "registry": 2, "layer": 2, "containerd": 2,
    "contentstore": 3,
    "fuse": 4, "exporter": 4,
    "snapshotter": 5, "contentservice": 5,
    "daemon": 6,
}

# What a header's name starts with, and whether a file (its folder, its path) may include it.
GRPC_FILES = re.compile(r"(_service|_client|_server|_main)\.(cc|h)$")
THIRD_PARTY = [
    ("curl/", "libcurl is wrapped by registry/", lambda folder, name: folder == "registry"),
    ("fuse_", "libfuse is wrapped by fuse/", lambda folder, name: folder == "fuse"),
    ("fuse.h", "libfuse is wrapped by fuse/", lambda folder, name: folder == "fuse"),
    ("fuse3/", "libfuse is wrapped by fuse/", lambda folder, name: folder == "fuse"),
    ("grpc", "gRPC stays in *_service.cc, *_client.cc, *_server.cc and *_main.cc",
     lambda folder, name: GRPC_FILES.search(name) is not None),
    ("sqlite3.h", "SQLite is wrapped by base/sqlite.cc",
     lambda folder, name: name == "base/sqlite.cc"),
    ("seccomp.h", "libseccomp is wrapped by daemon/privileges.cc", lambda folder, name: name == "daemon/privileges.cc"),
    ("toml++/", "toml++ is wrapped by base/toml.cc", lambda folder, name: name == "base/toml.cc"),
    (re.compile(r"proto/\w+\.grpc\.pb\.h"), "gRPC stays in *_service.cc, *_client.cc, *_server.cc and *_main.cc",
     lambda folder, name: GRPC_FILES.search(name) is not None),
]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def folder_of(name):
    """The code folder a file belongs to, tests counted with the folder they test; "" for all others."""
    parts = name.split("/")
    if parts[0] == "tests" and len(parts) > 2 and parts[1] in RANKS:
        return parts[1]
    return parts[0] if parts[0] in RANKS else ""


def check_include(name, line, header):
    where = f"{name}:{line}: includes {header}"
    folder, target = folder_of(name), header.split("/")[0]
    is_test = name.startswith(("tests/", "bench/"))
    if target in RANKS and folder and not is_test and target != folder and RANKS[target] >= RANKS[folder]:
        kind = "sideways" if RANKS[target] == RANKS[folder] else "upwards"
        yield f"{where}: {kind} ({folder} may use lower folders only)"
    if target in ("tests", "bench") and not is_test:
        yield f"{where}: code that ships uses no test code"
    if "/internal/" in header:
        owner = header.split("/internal/")[0]
        if not (name.startswith(owner + "/") or name.startswith(f"tests/{owner}/")
                or name.startswith(("tests/fuzz/", "bench/"))):
            yield f"{where}: private to {owner}/"
    for prefix, why, allowed in THIRD_PARTY:
        matches = prefix.match(header) if isinstance(prefix, re.Pattern) else header.startswith(prefix)
        if matches and not is_test and not allowed(folder, name):
            yield f"{where}: {why}"


def check(root):
    findings, sqlite_users = [], []
    for name in lint.files(root, (".cc", ".h")):
        for number, text in enumerate(lint.read(root, name).split("\n"), 1):
            match = INCLUDE.match(text)
            if not match:
                continue
            findings.extend(check_include(name, number, match.group(2)))
            if match.group(2).startswith("sqlite3") and not name.startswith("tests/"):
                sqlite_users.append(f"{name}:{number}")
    if len(sqlite_users) > 1:
        findings.append(f"{', '.join(sqlite_users)}: SQLite belongs into one file")
    return findings


if __name__ == "__main__":
    lint.main(check, __doc__)

"""What the checks of this folder share: which files there are, and how findings are told.

A check is a function from a root directory to a list of findings; main() prints them, one line each, and exits 1
if there are any.
"""

import argparse
import os
import re
import subprocess
import sys

SKIPPED_DIRECTORIES = {".git", "__pycache__"}


def files(root, suffixes=None):
    """Paths below `root` that belong to the project (known to git, or new and not ignored), sorted."""
    listing = None
    if os.path.isdir(os.path.join(root, ".git")) or os.path.isfile(os.path.join(root, ".git")):
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, stdout=subprocess.PIPE, check=True)
        listing = [name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\0") if name]
    else:
        listing = list(_walk(root))
    found = sorted({name for name in listing if os.path.isfile(os.path.join(root, name))})
    if suffixes is None:
        return found
    return [name for name in found if name.endswith(tuple(suffixes))]


def _walk(root):
    for directory, names, leaves in os.walk(root):
        names[:] = [n for n in names if n not in SKIPPED_DIRECTORIES and not n.startswith("build")]
        for leaf in leaves:
            yield os.path.relpath(os.path.join(directory, leaf), root)


def read(root, name):
    with open(os.path.join(root, name), encoding="utf-8", errors="surrogateescape") as source:
        return source.read()


FOREACH = re.compile(r"\bforeach\s*\(\s*(\w+)\s+(?:IN\s+ITEMS\s+)?([^()]*)\)((?:(?!\bforeach\s*\().)*?)\bendforeach\s*\([^()]*\)",
                     re.DOTALL)


def cmake_text(root, name):
    """A CMake file without its comments (what is commented out is not registered) and with its loops unrolled."""
    text = re.sub(r"#.*", "", read(root, name))
    while True:
        text, loops = FOREACH.subn(
            lambda loop: "\n".join(loop.group(3).replace("${" + loop.group(1) + "}", item)
                                   for item in loop.group(2).split()), text)
        if loops == 0:
            return text


def main(check, description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    root = os.path.abspath(parser.parse_args().root)
    findings = check(root)
    for finding in findings:
        print(finding)
    print(f"{os.path.basename(sys.argv[0])}: {len(findings)} findings" if findings else "clean")
    sys.exit(1 if findings else 0)

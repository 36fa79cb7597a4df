#!/usr/bin/env python3
"""All C++ is as clang-format 19 with the project's .clang-format leaves it."""

import shutil
import subprocess

import lint

BATCH = 50


def check(root):
    program = shutil.which("clang-format-19")
    if program is None:
        return ["clang-format-19 is not installed (deploy/install-deps.sh test)"]
    findings = []
    names = lint.files(root, (".cc", ".h"))
    for i in range(0, len(names), BATCH):
        done = subprocess.run([program, "--dry-run", "-Werror", "--ferror-limit=1", *names[i:i + BATCH]], cwd=root,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        said = [line for line in done.stdout.split("\n") if ": error: " in line]
        findings += said
        if done.returncode != 0 and not said:
            findings.append(f"{program}: {done.stdout.strip()}")
    return findings


if __name__ == "__main__":
    lint.main(check, __doc__)

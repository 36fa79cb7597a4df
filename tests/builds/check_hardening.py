#!/usr/bin/env python3
"""The programs of a build, and the libraries they are made of, have what makes attacks on them harder.

Judged by readelf: position-independent, relocations and the global offset table read-only before main, nothing both
writable and executable, data apart from code, no run path; stack protector and fortified functions in use; code of
ours compiled with stack clash protection and (x86-64) indirect branch tracking and shadow stack.
"""

import argparse
import os
import re
import subprocess
import sys

PROGRAMS = ("lazyblobd", "lazyblob", "lazyblob-keeper")
PRODUCER = re.compile(rb"GNU C\+\+\d+ [^\0]*")


def readelf(options, path):
    done = subprocess.run(["readelf", "-W", *options, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return done.stdout.decode("utf-8", "replace")


def segments(path):
    """(type, flags) of each program header."""
    found = re.findall(r"^\s+([A-Z_]+)\s+(?:0x[0-9a-f]+\s+){5}([RWE ]{3})", readelf(["-l"], path), re.MULTILINE)
    return [(kind, flags.replace(" ", "")) for kind, flags in found]


def check_program(path):
    wrong = []
    headers, dynamic, symbols = readelf(["-h"], path), readelf(["-d"], path), readelf(["--dyn-syms"], path)
    parts = segments(path)
    if not re.search(r"Type:\s+DYN", headers) or not re.search(r"FLAGS_1.*\bPIE\b", dynamic):
        wrong.append("is not position-independent (-pie)")
    if not any(kind == "GNU_RELRO" for kind, _ in parts):
        wrong.append("has no part that is read-only after relocation (-z relro)")
    if not re.search(r"BIND_NOW|FLAGS_1.*\bNOW\b", dynamic):
        wrong.append("binds lazily (-z now)")
    if ("GNU_STACK", "RW") not in parts:
        wrong.append("has an executable stack (-z noexecstack)")
    if any("W" in flags and "E" in flags for _, flags in parts):
        wrong.append("has memory both writable and executable")
    if sum(1 for kind, flags in parts if kind == "LOAD" and flags == "R") < 2:
        wrong.append("has data in memory that is executable (-z separate-code)")
    if re.search(r"\((TEXTREL|RPATH|RUNPATH)\)", dynamic):
        wrong.append("has text relocations or a run path")
    if "__stack_chk_fail" not in symbols:
        wrong.append("has no stack protector (-fstack-protector-strong)")
    if not re.search(r"\b__\w+_chk@", symbols.replace("__stack_chk_fail", "")):
        wrong.append("has no fortified function (-D_FORTIFY_SOURCE)")
    return [f"{path} {what}" for what in wrong]


def check_flags(path, flags):
    """What the debug information says that our code was compiled with."""
    with open(path, "rb") as file:
        producers = set(PRODUCER.findall(file.read()))
    if not producers:
        return [f"{path} does not say how it was compiled: built without -g, or stripped"]
    return [f"{path} has code compiled without {flag}"
            for flag in flags if any(flag.encode() not in producer for producer in producers)]


def check_properties(path):
    """Every object of a library must have the marks; a program has them only if C's start files do, too."""
    text = readelf(["-n"], path)
    objects = re.split(r"^File: ", text, flags=re.MULTILINE)[1:]
    bare = [part.split("\n", 1)[0] for part in objects if not re.search(r"x86 feature: IBT, SHSTK", part)]
    if not objects:
        return [f"{path} holds no objects"]
    return [f"{name} is compiled without -fcf-protection=full" for name in bare]


def check(build, machine=os.uname().machine):
    findings = []
    for name in PROGRAMS:
        path = os.path.join(build, name)
        if not os.path.exists(path):
            findings.append(f"{path} is not built")
            continue
        findings += check_program(path)
        flags = ["-fstack-clash-protection", "-fstack-protector-strong"]
        findings += check_flags(path, flags + (["-fcf-protection=full"] if machine == "x86_64" else []))
    if machine == "x86_64":
        for folder, _, names in sorted(os.walk(build)):
            if os.path.relpath(folder, build).split(os.sep)[0] == "tests":
                continue
            for name in sorted(names):
                if name.startswith("liblazyblob_") and name.endswith(".a"):
                    findings += check_properties(os.path.join(folder, name))
    return findings


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True)
    found = check(parser.parse_args().build)
    for finding in found:
        print(finding)
    print(f"{len(found)} findings" if found else "clean")
    sys.exit(1 if found else 0)

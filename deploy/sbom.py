#!/usr/bin/env python3
"""The bill of materials of a build, as SPDX 2.3 JSON on standard output:  sbom.py --build DIRECTORY PROGRAM...

For each program: every Debian package a library of which it loads (DYNAMIC_LINK: named by the program itself,
RUNTIME_DEPENDENCY_OF: by another library), holds (STATIC_LINK) or was compiled with (BUILD_DEPENDENCY_OF: headers, the
compiler), with version, package URL and, where apt knows it, the SHA-256 of the .deb; and the SHA-256 of programs and
loaded libraries as they are here. The time is that of the last change of the sources (SOURCE_DATE_EPOCH overrides).
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys


def run(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
                          env={**os.environ, "LC_ALL": "C"})
    return done.stdout.decode("utf-8", "replace")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def needed(path):
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-dW", path)))


def loaded(program):
    """Name and path of each library that the dynamic linker finds for it."""
    return dict(re.findall(r"^\s+(\S+) => (/\S+)", run("ldd", program), re.MULTILINE))


def compiled_from(build, program):
    """What the build read that is not its own: static libraries and headers of the system."""
    inputs = run("ninja", "-C", build, "-t", "inputs", os.path.relpath(program, build)).split("\n")
    objects = {name for name in inputs if name.endswith(".o")}
    static = {name for name in inputs if name.startswith("/usr/") and name.endswith(".a")}
    headers = set()
    current = None
    for line in run("ninja", "-C", build, "-t", "deps").split("\n"):
        if line and not line.startswith(" "):
            current = line.split(":", 1)[0]
        elif line.startswith("    /") and current in objects:
            headers.add(os.path.realpath(line.strip()))
    return static, {name for name in headers if name.startswith("/usr/")}


def owners(paths):
    """The package of each file that has one; few questions, for each takes a while."""
    # Libraries may be known by their name before /usr was merged.
    names = {}
    for path in paths:
        real = os.path.realpath(path)
        for name in (path, real, real.removeprefix("/usr")):
            names.setdefault(name, set()).add(path)
    found = {}
    asked = sorted(names)
    for start in range(0, len(asked), 1000):
        for line in run("dpkg", "-S", *asked[start:start + 1000]).split("\n"):
            package, _, name = line.partition(": ")
            for path in names.get(name, ()):
                found[path] = package.split(",", 1)[0].split(":", 1)[0]
    return found


def describe(packages):
    table = run("dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}\t${source:Package}\n", *packages)
    known = dict.fromkeys(tuple(line.split("\t")) for line in table.split("\n") if line)
    archives = {}
    for entry in run("apt-cache", "show", *(f"{known_as[0]}={known_as[1]}" for known_as in known)).split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|SHA256): (\S+)$", entry, re.MULTILINE))
        if "SHA256" in fields:
            archives[fields["Package"], fields["Version"]] = fields["SHA256"]
    return [package_entry(*one, archives.get(one[:2])) for one in sorted(known)]


def package_entry(package, version, arch, source, digest):
    entry = {
        "SPDXID": spdx_id("Package", package),
        "name": package,
        "versionInfo": version,
        "supplier": "Organization: Debian",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "sourceInfo": f"built from the Debian source package {source}",
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": f"pkg:deb/debian/{package}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={arch}",
        }],
    }
    if digest:
        entry["checksums"] = [{"algorithm": "SHA256", "checksumValue": digest}]
    return entry


def spdx_id(kind, name):
    return f"SPDXRef-{kind}-" + re.sub(r"[^A-Za-z0-9.-]", lambda c: f".{ord(c.group(0)):02x}", name)


def file_entry(path, name):
    return {"SPDXID": spdx_id("File", name), "fileName": name, "licenseConcluded": "NOASSERTION",
            "copyrightText": "NOASSERTION", "checksums": [{"algorithm": "SHA256", "checksumValue": sha256(path)}]}


def relate(found, left, kind, right):
    found.append({"spdxElementId": left, "relationshipType": kind, "relatedSpdxElement": right})


def add_program(build, program, packages, files, relations):
    """Fills the three; files that no package has are an error."""
    me = spdx_id("File", os.path.basename(program))
    files[me] = file_entry(program, os.path.basename(program))
    relate(relations, "SPDXRef-DOCUMENT", "DESCRIBES", me)
    direct = needed(program)
    libraries = loaded(program)
    of_package = owners(libraries.values())
    for name, path in sorted(libraries.items()):
        if path not in of_package:
            sys.exit(f"sbom.py: {program} loads {path}, which is of no Debian package")
        package = of_package[path]
        packages.add(package)
        library = file_entry(path, path)
        if library["SPDXID"] not in files:
            files[library["SPDXID"]] = library
            relate(relations, spdx_id("Package", package), "CONTAINS", library["SPDXID"])
        if name in direct:
            relate(relations, me, "DYNAMIC_LINK", library["SPDXID"])
        else:
            relate(relations, library["SPDXID"], "RUNTIME_DEPENDENCY_OF", me)
    static, headers = compiled_from(build, program)
    held = set(owners(static).values())
    for package in sorted(held):
        relate(relations, me, "STATIC_LINK", spdx_id("Package", package))
    tools = set(owners(headers | {os.path.realpath("/usr/bin/c++"), os.path.realpath("/usr/bin/ld")}).values()) - held
    for package in sorted(tools):
        relate(relations, spdx_id("Package", package), "BUILD_DEPENDENCY_OF", me)
    packages |= held | tools


def bill(build, programs):
    packages, files, relations = set(), {}, []
    for program in programs:
        add_program(os.path.abspath(build), os.path.abspath(program), packages, files, relations)
    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    changed = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "-c", "safe.directory=*", "log", "-1", "--format=%ct",
                                                         cwd=source).strip()
    created = datetime.datetime.fromtimestamp(int(changed or 0), datetime.timezone.utc)
    identity = hashlib.sha256("".join(files[name]["checksums"][0]["checksumValue"] for name in sorted(files)).encode())
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "lazyblob",
        "documentNamespace": f"urn:sha256:{identity.hexdigest()}",
        "creationInfo": {"created": created.strftime("%Y-%m-%dT%H:%M:%SZ"), "creators": ["Tool: lazyblob-sbom"]},
        "packages": describe(sorted(packages)),
        "files": [files[name] for name in sorted(files)],
        "relationships": relations,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True)
    parser.add_argument("programs", nargs="+")
    arguments = parser.parse_args()
    json.dump(bill(arguments.build, arguments.programs), sys.stdout, indent=1)
    sys.stdout.write("\n")

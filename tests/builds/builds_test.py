#!/usr/bin/env python3
"""The check of hardening finds what it is there for; the bill of materials names what a program is made of.

builds_test.py BUILD: the second needs the programs of a build.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import check_hardening

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = ""

SOURCE = """#include <cstdio>
#include <cstring>
int main(int argc, char** argv) {
  char text[64];
  strcpy(text, argv[argc - 1]);
  return std::puts(text);
}
"""
HARD = ["-O2", "-g1", "-fPIE", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3", "-fstack-protector-strong", "-fstack-clash-protection"]
LINKED = ["-pie", "-Wl,-z,relro,-z,now,-z,noexecstack,-z,separate-code"]


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()


class HardeningTest(unittest.TestCase):

    def setUp(self):
        self.root = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.root)
        self.source = os.path.join(self.root, "a.cc")
        with open(self.source, "w", encoding="utf-8") as out:
            out.write(SOURCE)

    def findings(self, *flags):
        program = os.path.join(self.root, "program")
        subprocess.run(["g++", *HARD, *flags, self.source, "-o", program, *LINKED, *flags], check=True)
        return check_hardening.check_program(program) + check_hardening.check_flags(program, HARD[5:])

    def test_a_hard_program_passes(self):
        self.assertEqual(self.findings(), [])

    def test_each_thing_missing_is_found(self):
        for flag, what in [("-no-pie", "position-independent"), ("-Wl,-z,norelro", "relro"), ("-Wl,-z,lazy", "lazily"),
                           ("-Wl,-z,execstack", "executable stack"), ("-Wl,-z,noseparate-code", "separate-code"),
                           ("-Wl,-rpath,/x", "run path"), ("-U_FORTIFY_SOURCE", "fortified"),
                           ("-fno-stack-protector", "no stack protector"),
                           ("-fno-stack-clash-protection", "without -fstack-clash-protection")]:
            found = self.findings(flag)
            self.assertTrue(any(what in finding for finding in found), f"{flag}: {found}")

    @unittest.skipUnless(os.uname().machine == "x86_64", "x86-64 only")
    def test_an_object_without_branch_tracking_is_found(self):
        library = os.path.join(self.root, "lib.a")
        for flag, count in [("-fcf-protection=full", 0), ("-fcf-protection=branch", 1), ("-fcf-protection=none", 1)]:
            subprocess.run(["g++", *HARD, flag, "-c", self.source, "-o", os.path.join(self.root, "a.o")], check=True)
            subprocess.run(["ar", "rcs", library, os.path.join(self.root, "a.o")], check=True)
            self.assertEqual(len(check_hardening.check_properties(library)), count, flag)


class BillTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.programs = [os.path.join(BUILD, name) for name in ("lazyblobd", "lazyblob-keeper")]
        cls.bill = json.loads(output(sys.executable, "-B", os.path.join(HERE, "../../deploy/sbom.py"), "--build", BUILD,
                                     *cls.programs))
        cls.names = {}
        for package in cls.bill["packages"]:
            cls.names[package["SPDXID"]] = package["name"]
        for file in cls.bill["files"]:
            cls.names[file["SPDXID"]] = os.path.basename(file["fileName"])

    def related(self, kind, program):
        """Pairs of names, one of which is the program."""
        pairs = [(self.names[one["spdxElementId"]], self.names[one["relatedSpdxElement"]])
                 for one in self.bill["relationships"] if one["relationshipType"] == kind]
        return {other for pair in pairs if program in pair for other in pair if other != program}

    def test_references_are_of_what_is_there_once(self):
        parts = self.bill["packages"] + self.bill["files"]
        self.assertEqual(len(self.names), len(parts))
        for one in self.bill["relationships"]:
            for end in (one["spdxElementId"], one["relatedSpdxElement"]):
                self.assertTrue(end in self.names or end == "SPDXRef-DOCUMENT", end)

    def test_every_library_is_named_with_its_package(self):
        for program in self.programs:
            name = os.path.basename(program)
            needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-dW", program)))
            linked = {re.sub(r"(\.so\.\d+).*", r"\1", library) for library in self.related("DYNAMIC_LINK", name)}
            missing = {library for library in needed - {"ld-linux-x86-64.so.2"}
                       if re.sub(r"(\.so\.\d+).*", r"\1", library) not in linked}
            self.assertEqual(missing, set(), name)
        self.assertEqual(self.related("STATIC_LINK", "lazyblobd") & {"libfuse3-dev"}, {"libfuse3-dev"})
        self.assertIn("nlohmann-json3-dev", self.related("BUILD_DEPENDENCY_OF", "lazyblobd"))

    def test_versions_and_digests_are_those_of_this_machine(self):
        for package in self.bill["packages"]:
            self.assertIn(package["versionInfo"] + "\n",
                          output("dpkg-query", "-W", "-f", "${Version}\n", package["name"]), package["name"])
        for program in self.programs:
            digest = output("sha256sum", program).split()[0]
            found = [file["checksums"][0]["checksumValue"] for file in self.bill["files"]
                     if file["fileName"] == os.path.basename(program)]
            self.assertEqual(found, [digest])


if __name__ == "__main__":
    BUILD = os.path.abspath(sys.argv.pop(1))
    unittest.main()

#!/usr/bin/env python3
"""Every test, fuzz target, corpus and golden file is used: a test that nobody runs is worse than none.

A file counts as used when a CMakeLists.txt in its folder or above names it outside comments (data files: when a
test source or script beside them does).
"""

import os
import re

import lint

DATA_FOLDERS = ("corpus", "golden", "testdata")


def is_test(name):
    base = os.path.basename(name)
    if not name.startswith("tests/"):
        return False
    if re.search(r"_test\.(cc|py|sh)$", base) or (name.startswith("tests/fuzz/") and base.endswith(".cc")):
        return True
    return name.startswith("tests/lint/") and base.startswith("check_")


def named(texts, word):
    return any(re.search(r"(?<![\w.-])" + re.escape(word) + r"(?![\w-])", text) for text in texts)


def cmake_texts(root, name):
    """The CMake files of the folder of `name` and of those above it."""
    folder = os.path.dirname(name)
    while True:
        path = os.path.join(folder, "CMakeLists.txt")
        if os.path.isfile(os.path.join(root, path)):
            yield lint.cmake_text(root, path)
        if not folder:
            return
        folder = os.path.dirname(folder)


def data_groups(names):
    """Folders of data: those right below corpus/, golden/ or testdata/, else these themselves."""
    groups = set()
    for name in names:
        parts = name.split("/")
        for i, part in enumerate(parts[:-1]):
            if part in DATA_FOLDERS and parts[0] == "tests":
                groups.add("/".join(parts[:i + 2]))
    return sorted(groups)


def check(root):
    names = lint.files(root)
    findings = []
    for name in names:
        if is_test(name) and not named(cmake_texts(root, name), os.path.basename(name)):
            findings.append(f"{name}: registered in no CMakeLists.txt, so it never runs")
    for group in data_groups(names):
        top = "/".join(group.split("/")[:2])
        users = list(cmake_texts(root, group))
        users += [lint.read(root, name) for name in names
                  if name.startswith(top + "/") and name.endswith((".cc", ".py", ".sh"))]
        if not named(users, os.path.basename(group)):
            findings.append(f"{group}: test data that no test names")
    return findings


if __name__ == "__main__":
    lint.main(check, __doc__)

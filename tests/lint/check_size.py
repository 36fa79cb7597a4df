#!/usr/bin/env python3
"""Budgets police the tail: .cc <= 600 lines, .h <= 300, a function <= 80.

Exceptions are lines of size_exceptions.txt: `path[:function] reason`. One that is not needed is a finding too.
"""

import os
import re

import lint

MAX_LINES = {".cc": 600, ".h": 300}
MAX_FUNCTION = 80
EXCEPTIONS = "tests/lint/size_exceptions.txt"

LITERALS = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^\s()\\]{0,16})\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])+\'',
    re.DOTALL)
ATTRIBUTE = re.compile(r"\b(ABSL_\w+|alignas|decltype|__attribute__)\s*\((?:[^()]|\([^()]*\))*\)")
# What holds functions. (Literals are blank here, so `extern "C" {` is a bare extern.)
SCOPE = re.compile(r"\b(namespace|class|struct|union)\b|\bextern\s*$")
# "…) : a_(1), b_" before a brace: the braces hold a member's value.
MEMBER_VALUE = re.compile(r"\)[\w\s&*<>,:()-]*:\s*(?:.*[,\s])?\w+(?:<[^{}]*>)?\s*$", re.DOTALL)
NAME = re.compile(r"([~\w:]+|operator\s*[^\s(]+)\s*\(")


def blank(match):
    """Comments and literals become spaces; lines stay."""
    return re.sub(r"[^\n]", " ", match.group(0))


def without_directives(text):
    out, continued = [], False
    for line in text.split("\n"):
        directive = continued or line.lstrip().startswith("#")
        out.append("" if directive else line)
        continued = directive and line.rstrip().endswith("\\")
    return "\n".join(out)


def classify(statement, outer):
    if outer in ("function", "other", "value"):
        return "value" if outer == "value" else "other"
    text = ATTRIBUTE.sub(" ", statement).strip()
    if text.count("(") > text.count(")"):
        return "value"  # a default argument
    if "(" not in text:
        return "scope" if SCOPE.search(text) else "other"
    if MEMBER_VALUE.search(text) and not re.search(r"\)\s*(const|noexcept|override|final)?\s*$", text):
        return "value"
    if re.search(r"=\s*$", text):
        return "other"
    return "function"


def functions(text):
    """(name, first line, last line) of each function definition. A heuristic for formatted code."""
    text = without_directives(LITERALS.sub(blank, text))
    stack, statement, start, line = [], "", 1, 1
    for char in text:
        if char == "\n":
            line += 1
        if char == "{":
            kind = classify(statement, stack[-1][0] if stack else "scope")
            stack.append((kind, statement, start))
            if kind not in ("value",):
                statement = ""
        elif char == "}":
            if not stack:
                continue
            kind, opened, first = stack.pop()
            if kind == "value":
                statement = opened + "{}"
                continue
            if kind == "function":
                name = NAME.search(ATTRIBUTE.sub(" ", opened))
                yield (name.group(1) if name else "?", first, line)
            statement = ""
        elif char == ";" and "(" in statement and statement.count("(") > statement.count(")"):
            statement += char
        elif char == ";":
            statement = ""
        else:
            if not statement.strip():
                statement, start = "", line
            statement += char
        if not statement:
            start = line


def read_exceptions(root):
    exceptions = {}
    if os.path.isfile(os.path.join(root, EXCEPTIONS)):
        for line in lint.read(root, EXCEPTIONS).split("\n"):
            if line.strip() and not line.startswith("#"):
                subject, _, reason = line.strip().partition(" ")
                exceptions[subject] = reason.strip()
    return exceptions


def check(root):
    exceptions, used, findings = read_exceptions(root), set(), []

    def find(subject, message):
        if exceptions.get(subject):
            used.add(subject)
        else:
            findings.append(message)

    for name in lint.files(root, tuple(MAX_LINES)):
        text = lint.read(root, name)
        lines = text.count("\n")
        limit = MAX_LINES[os.path.splitext(name)[1]]
        if lines > limit:
            find(name, f"{name}: {lines} lines, more than {limit}")
        for function, first, last in functions(text):
            if last - first + 1 > MAX_FUNCTION:
                find(f"{name}:{function}",
                     f"{name}:{first}: {function} has {last - first + 1} lines, more than {MAX_FUNCTION}")
    for subject in sorted(set(exceptions) - used):
        findings.append(f"{EXCEPTIONS}: {subject}: " +
                        ("needed by nothing" if exceptions[subject] else "gives no reason"))
    return findings


if __name__ == "__main__":
    lint.main(check, __doc__)

#!/usr/bin/env python3
"""Nothing in the project speaks of where and how it was written, or of work that is not done."""

import re

import lint

FORBIDDEN = [
    (r"(?<![\w.])/work/", "a path of a workplace"),
    (r"/tmp/(b\b|BRIEF|bash_jobs|build\.lock)", "a path of a workplace"),
    (r"\b(TODO|FIXME|XXX|HACK)\b", "unfinished work: finish it, or say plainly what is not supported"),
    (r"(?i)\bissues? #?\d+\b", "a number of a tracker that readers cannot see"),
    (r"(?i)\b(this|another|earlier|next|previous) session\b(?! of)", "how the work was organised"),
    (r"(?i)\b(work ?place|brief\.md|sub-?agent)\b", "how the work was organised"),
    (r"\b(Claude|Anthropic|ChatGPT|OpenAI|Copilot)\b", "how the work was organised"),
    (r"(?<![\w/])(design|style)\.md\b", "a document that is not part of the project"),
    (r"(?<![\w/])(reference/)?(wire-contract|reliability|field)\.md\b", "a document that is not part of the project"),
]
# Files that have to name what is forbidden.
EXEMPT = ("tests/lint/check_words.py", "tests/lint/lint_test.py")
BINARY = re.compile("\0")


def check(root):
    findings = []
    patterns = [(re.compile(pattern), why) for pattern, why in FORBIDDEN]
    for name in lint.files(root):
        if name in EXEMPT:
            continue
        text = lint.read(root, name)
        if BINARY.search(text):
            continue
        for number, line in enumerate(text.split("\n"), 1):
            for pattern, why in patterns:
                match = pattern.search(line)
                if match:
                    findings.append(f"{name}:{number}: {match.group(0)!r}: {why}")
    return findings


if __name__ == "__main__":
    lint.main(check, __doc__)

#!/usr/bin/env python3
"""Code that ships keeps no deadline on the wall clock: timed waits are those of base/cond_var.h.

Abseil's wait on CLOCK_REALTIME where it is older than 2024, and the standard library's do for system_clock.
"""

import re

import lint

FORBIDDEN = [
    (r"\b\w*(WithTimeout|WithDeadline)\s*\(", "Abseil's timed waits hold no deadline when the clock is set"),
    (r"\bstd::condition_variable(_any)?\b", "base::CondVar waits on the monotonic clock, with absl::Mutex"),
    (r"\b(pthread_cond_timedwait|sem_timedwait)\b", "waits on the wall clock"),
    (r"\bsystem_clock\b|\bToChronoTime\b", "a deadline that is told is a span of time, or monotonic"),
]
OWN = "base/cond_var."
NOT_SHIPPED = ("tests/", "bench/")


def check(root):
    findings = []
    patterns = [(re.compile(pattern), why) for pattern, why in FORBIDDEN]
    for name in lint.files(root, (".cc", ".h")):
        if name.startswith(NOT_SHIPPED) or name.startswith(OWN):
            continue
        for number, line in enumerate(lint.read(root, name).split("\n"), 1):
            code = line.split("//")[0]
            for pattern, why in patterns:
                match = pattern.search(code)
                if match:
                    findings.append(f"{name}:{number}: {match.group(0)!r}: {why}; see base/cond_var.h")
    return findings


if __name__ == "__main__":
    lint.main(check, __doc__)

#!/usr/bin/env python3
"""The oracle of the fault table: reads files below a directory and compares every byte with a known tree.

Allowed are right bytes, or an errno in time. Wrong bytes, fewer bytes than there are, or an answer later than
--deadline are failures (status 1), as is an errno that --errno does not list. What was seen goes to --result as JSON:
{"counts": {"reads", "right", "EIO", …, "wrong", "late", "longest_ms"}, "text": one line}.

Without --until each named file (default: all of the tree) is read once, by --threads at once. With it, files are read in
random order, cold as far as this kernel's page cache goes, until that file exists.
"""
import argparse
import errno
import json
import os
import random
import sys
import threading
import time

GIVEN_UP = 30  # seconds beyond the deadline: nobody answers any more


class Oracle:
    def __init__(self, args):
        self.args = args
        self.lock = threading.Lock()
        self.counts = {"reads": 0, "right": 0, "wrong": 0, "late": 0, "longest_ms": 0}
        self.complaints = []
        self.under_way = {}
        self.pending = 0

    def complain(self, kind, text):
        with self.lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.complaints.append(text)

    def note(self, outcome):
        with self.lock:
            self.counts["reads"] += 1
            self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def step(self, name, call):
        """One system call, timed; None when it failed with an errno that is allowed."""
        start = time.monotonic()
        self.under_way[threading.get_ident()] = (name, start)
        try:
            return call()
        except OSError as error:
            code = errno.errorcode.get(error.errno, str(error.errno))
            self.note(code)
            if code not in self.args.errno:
                self.complain("wrong", f"{name}: {code}")
            return None
        finally:
            self.under_way.pop(threading.get_ident(), None)
            seconds = time.monotonic() - start
            with self.lock:
                self.counts["longest_ms"] = max(self.counts["longest_ms"], round(seconds * 1000))
            if seconds > self.args.deadline:
                self.complain("late", f"{name}: answered after {seconds:.1f} s")

    def read(self, name):
        with open(os.path.join(self.args.tree, name), "rb") as file:
            want = file.read()
        fd = self.step(name, lambda: os.open(os.path.join(self.args.directory, name), os.O_RDONLY))
        if fd is None:
            return
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            at = 0
            while True:
                got = self.step(name, lambda: os.pread(fd, self.args.block, at))
                if got is None:
                    return
                if not got:
                    break
                if got != want[at:at + len(got)]:
                    self.complain("wrong", f"{name}: wrong bytes at {at}")
                    return
                at += len(got)
            if at != len(want):
                self.complain("wrong", f"{name}: {at} bytes of {len(want)}")
            else:
                self.note("right")
        finally:
            os.close(fd)

    def work(self, names):
        try:
            while True:
                with self.lock:
                    if not names:
                        return
                    name = names.pop(0)
                self.read(name)
        finally:
            with self.lock:
                self.pending -= 1

    def loop(self, names, seed):
        chosen = random.Random(seed)
        try:
            while not os.path.exists(self.args.until):
                self.read(chosen.choice(names))
        finally:
            with self.lock:
                self.pending -= 1

    def run(self, names):
        names = list(names)
        self.pending = self.args.threads
        for number in range(self.args.threads):
            target, given = (self.loop, (names, self.args.seed + number)) if self.args.until else (self.work, (names,))
            threading.Thread(target=target, args=given, daemon=True).start()
        while True:
            with self.lock:
                if self.pending == 0:
                    break
            now = time.monotonic()
            hung = [(name, now - start) for name, start in list(self.under_way.values())
                    if now - start > self.args.deadline + GIVEN_UP]
            if hung:
                self.complain("late", f"{hung[0][0]}: no answer after {hung[0][1]:.0f} s")
                break
            time.sleep(0.01)

    def finish(self):
        counts = self.counts
        kinds = [f"{n} {k}" for k, n in counts.items() if k not in ("reads", "longest_ms") and n]
        text = f"{', '.join(kinds) or 'nothing read'}, longest {counts['longest_ms'] / 1000:.1f} s"
        if self.complaints:
            text += ": " + "; ".join(self.complaints[:3])
        with open(self.args.result + ".new", "w") as file:
            json.dump({"counts": counts, "text": text, "complaints": self.complaints[:50]}, file)
        os.rename(self.args.result + ".new", self.args.result)
        sys.stdout.flush()
        os._exit(1 if self.complaints else 0)   # a thread that hangs must not hold the result back


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tree")
    parser.add_argument("directory")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--deadline", type=float, default=30, help="seconds for one system call")
    parser.add_argument("--errno", default="EIO", type=lambda text: text.split(","), help="what reads may fail with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--block", type=int, default=1 << 20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until", default="")
    parser.add_argument("--result", required=True)
    args = parser.parse_intermixed_args()
    names = args.files or sorted(os.path.relpath(os.path.join(at, name), args.tree)
                                 for at, _, files in os.walk(args.tree) for name in files)
    if not names:
        parser.error(f"no files in {args.tree}")
    oracle = Oracle(args)
    oracle.run(names)
    oracle.finish()


if __name__ == "__main__":
    main()

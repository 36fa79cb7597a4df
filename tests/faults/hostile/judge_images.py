#!/usr/bin/env python3
"""Every image of a row: what `lazyblob mount` shows is what containerd unpacks into overlayfs, or a refusal that says why;
and a refused one, pulled through the snapshotter, ends as it does without.

judge_images.py --cases FILE --repository HOST/NAME --work DIR --containerd ADDRESS --lazyblob PROGRAM --root DIR

See hostile_images.py for the cases. One line per image that is not as it should be, on stdout; the counts on the last.
"""
import argparse
import collections
import concurrent.futures
import os
import subprocess
import sys
import threading
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../e2e"))
import tree_diff  # noqa: E402

ALLOWED = ["dropped-trusted-xattrs", "clamped-mtime", "implied-dir-mtime", "root-mtime"]
TOC = ["toc-files", "toc-seconds"]
FORMS = ("-estargz", "-zstdchunked")


def run(*command, limit=240):
    """(status, stdout, stderr); a status of 124 for what hangs."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
        return done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as hung:
        return 124, hung.stdout or b"", b"hung for %d s" % limit


def unmount(directory):
    subprocess.run(["umount", directory], check=False, capture_output=True)


class Judge:
    def __init__(self, args):
        self.args = args
        self.lock = threading.Lock()
        self.known = {}
        self.count = collections.Counter()

    def ctr(self, program, *command):
        return run(program, "--address", self.args.containerd, "images", *command)

    def path(self, kind, tag):
        path = os.path.join(self.args.work, kind, tag)
        os.makedirs(path, exist_ok=True)
        return path

    def unpacked(self, tag):
        """The tree of what containerd makes of an image, or why it makes nothing."""
        with self.lock:
            future, mine = self.known.get(tag), False
            if future is None:
                future = self.known[tag] = concurrent.futures.Future()
                mine = True
        if mine:
            future.set_result(self.tree_of(self.pull("ctr", "pull", "overlayfs", tag), "overlayfs", tag))
        return future.result()

    def pull(self, program, verb, snapshotter, tag):
        return self.ctr(program, verb, "--plain-http", "--snapshotter", snapshotter, f"{self.args.repository}:{tag}")

    def tree_of(self, pulled, snapshotter, tag):
        status, out, err = pulled
        if status != 0:
            if status == 124:
                return None, "hung"
            return None, (err or out).decode(errors="replace").strip().splitlines()[-1:]
        at = self.path(snapshotter, tag)
        status, _, err = self.ctr("ctr", "mount", "--snapshotter", snapshotter, f"{self.args.repository}:{tag}", at)
        if status != 0:
            return None, "not mounted: " + err.decode(errors="replace")
        try:
            tree = tree_diff.walk(at, [])
            tree_diff.add_digests(at, tree)
            return tree, None
        except OSError as e:
            return None, f"not readable: {e}"
        finally:
            self.ctr("ctr", "unmount", "--snapshotter", snapshotter, "--rm", at)

    def differences(self, want, got, allow):
        return list(tree_diff.compare(want, got, tree_diff.Allowed(ALLOWED + allow)))

    def mounted(self, tag):
        """(tree, None), or (None, the one line that says why not). ValueError: neither."""
        at = self.path("mount", tag)
        base = [self.args.lazyblob, "--root", self.args.root]
        status, _, err = run(*base, "mount", "--plain-http", "--progress", "none", f"{self.args.repository}:{tag}", at)
        if status == 0:
            try:
                tree = tree_diff.walk(at, [])
                tree_diff.add_digests(at, tree)
                return tree, None
            except OSError as e:
                raise ValueError(f"mounted, but cannot be walked: {e}") from e
            finally:
                status, _, err = run(*base, "umount", at)
                if status != 0:
                    unmount(at)
                    raise ValueError(f"cannot be unmounted: {err!r}")
        if status == 124 or status >= 128 or status < 0:
            raise ValueError(f"mount ended with {status}: {err[-300:]!r}")
        line = err.decode(errors="replace")
        if line.count("\n") != 1 or len(line) > 1000 or any(not 32 <= ord(c) < 127 for c in line.rstrip("\n")):
            raise ValueError(f"not one clear line: {err[:600]!r}")
        if os.path.ismount(at):
            raise ValueError("refused, but something is mounted")
        return None, line.strip()

    def extracted(self, tag):
        """`lazyblob unlazy` into a directory: the only place where names of images become names of the host's. What it
        makes is judged elsewhere (it unpacks layer over layer, as containerd does where there is no overlayfs)."""
        status, _, err = run(self.args.lazyblob, "--root", self.args.root, "unlazy", "--plain-http", "--progress", "none",
                             f"{self.args.repository}:{tag}", "dir:" + self.path("extracted", tag) + "/tree")
        if status == 0:
            self.count["extracted"] += 1
            return []
        line = err.decode(errors="replace")
        bad = status == 124 or status >= 128 or status < 0 or line.count("\n") != 1 or "\x1b" in line
        return [f"unlazy ended with {status}: {err[-300:]!r}"] if bad else []

    def wrong_with(self, tag, expect, judge, allow):
        base = tag
        for form in FORMS:
            base = base.removesuffix(form)
        # the tar is the same whatever table there is; lies differ only in their tables
        own = base if base in self.tags else tag
        want, refusal = self.unpacked(own if judge == "-" else judge) if expect != "bomb" else (None, "spared")
        if refusal == "hung":
            return ["containerd hung"]
        got, line = self.mounted(tag)
        wrong = []
        if got is None:
            self.count["refused"] += 1
            if expect == "same":
                wrong.append(f"refused: {line}")
            if os.environ.get("VERBOSE"):
                print(f"{tag}: {line}   [containerd: {'unpacks' if want is not None else refusal}]", file=sys.stderr)
            if own == tag and expect == "eio":  # what is refused is the table; the tar is good, and a part will do
                wrong += self.fallback(tag, allow) if zlib.crc32(tag.encode()) % 4 == 0 else []
            elif own == tag and expect != "bomb":
                wrong += self.fallback(tag, allow) + self.extracted(tag)
            return wrong
        self.count["same tree"] += 1
        if expect in ("refuse", "bomb"):
            wrong.append("mounted")
        if own == tag and expect != "eio":
            wrong += self.extracted(tag)
        if want is None:
            return wrong + [f"mounted, but containerd refuses: {refusal}"]
        unread = [path for path, r in got.items() if str(r.get("sha256")).startswith("EIO by")]
        if unread and expect == "eio":
            self.count["EIO"] += 1
            for path in unread:  # nothing is said of a file that gives nothing
                got[path]["size"] = want.get(path, {}).get("size")
        wrong += self.differences(want, got, allow + (["eio"] if expect == "eio" else []))[:4]
        return wrong

    def fallback(self, tag, allow):
        """A layer that we refuse is unpacked by containerd, or the pull fails, as it does with overlayfs."""
        want, refusal = self.unpacked(tag)
        got, why = self.tree_of(self.pull("ctr-remote", "rpull", "lazyblob", tag), "lazyblob", tag)
        if why == "hung":
            return ["rpull hung"]
        if want is None:
            self.count["no pull either way"] += 1
            return [] if got is None else ["pulled lazily, though neither mount nor containerd takes it"]
        self.count["unpacked by containerd"] += 1
        if got is None:
            return [f"not pulled through the snapshotter: {why}"]
        return ["through the snapshotter: " + d for d in self.differences(want, got, allow)[:4]]

    def check(self, line):
        tag, expect, judge, *allow = line.split()
        try:
            return [f"{tag}: {w}" for w in self.wrong_with(tag, expect, judge, allow)]
        except ValueError as e:
            return [f"{tag}: {e}"]


def main():
    parser = argparse.ArgumentParser()
    for name in ("cases", "repository", "work", "containerd", "lazyblob", "root"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--only", default="", help="a part of the tags")
    args = parser.parse_args()
    judge = Judge(args)
    with open(args.cases) as f:
        lines = f.read().splitlines()
    judge.tags = {line.split()[0] for line in lines}
    lines = [line for line in lines if args.only in line.split()[0]]
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        wrong = [w for found in pool.map(judge.check, lines) for w in found]
    for w in wrong:
        print("".join(c if 32 <= ord(c) < 127 else "?" for c in w)[:600])
    print(f"{len(lines)} images: " + ", ".join(f"{n} {what}" for what, n in sorted(judge.count.items())) + f", {len(wrong)} wrong")
    return 1 if wrong or not lines else 0


if __name__ == "__main__":
    sys.exit(main())

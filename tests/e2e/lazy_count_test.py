#!/usr/bin/env python3
"""lazy_count.py must count what docker-registry's log says, and object when a limit is passed."""
import contextlib
import io
import json
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lazy_count  # noqa: E402

BLOB = "sha256:" + "a" * 64


def line(uri, written=0, status=200, method="GET", client="127.0.0.1:1000", msg="response completed"):
    return json.dumps({"http.request.method": method, "http.request.uri": uri, "http.request.remoteaddr": client,
                       "http.response.status": status, "http.response.written": written, "msg": msg})


LOG = [line("/v2/", 87, 401), line("/v2/debian/manifests/gzip", 500), line(f"/v2/debian/blobs/{BLOB}", 1000, 206),
       line(f"/v2/debian/blobs/{BLOB}", 50, 206, client="127.0.0.1:2000"), line(f"/v2/debian/blobs/{BLOB}", 0, 200, "HEAD"),
       line("/v2/x/y/blobs/uploads/?digest=1", 77, method="POST"), "not json", line("/x", msg="something else")]


class LazyCountTest(unittest.TestCase):
    def run_on(self, log, *options):
        with tempfile.NamedTemporaryFile("w") as f, contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()) as err:
            f.write("\n".join(log) + "\n")
            f.flush()
            status = lazy_count.main([f.name, *options])
        return status, out.getvalue(), err.getvalue()

    def test_counts_bodies_of_blob_gets_only(self):
        counted = lazy_count.summary(lazy_count.read_log(LOG))
        self.assertEqual((counted["blob_bytes"], counted["blob_requests"], counted["manifest_bytes"]), (1050, 2, 500))
        self.assertEqual((counted["connections"], counted["refused"]), (2, 1))
        self.assertEqual(counted["blobs"], {BLOB: 1050})

    def test_share(self):
        self.assertEqual(self.run_on(LOG, "--image-size", "3500", "--max-share", "0.30")[0], 0)
        status, _, err = self.run_on(LOG, "--image-size", "3499", "--max-share", "0.30")
        self.assertEqual(status, 1)
        self.assertIn("1050 of 3499", err)

    def test_manifest_twice_or_never(self):
        self.assertEqual(self.run_on(LOG, "--one-request-per-manifest")[0], 0)
        again = [*LOG, line("/v2/debian/manifests/gzip", 0, method="HEAD")]
        self.assertIn("requested 2 times", self.run_on(again, "--one-request-per-manifest")[2])
        self.assertEqual(self.run_on(LOG[2:], "--one-request-per-manifest")[0], 1)

    def test_connections(self):
        self.assertEqual(self.run_on(LOG, "--max-connections", "2")[0], 0)
        self.assertEqual(self.run_on(LOG, "--max-connections", "1")[0], 1)

    def test_from_a_line_on(self):
        self.assertIn("50 blob bytes", self.run_on(LOG, "--from", "3")[1])

    def test_tokens(self):
        scope = json.dumps({"scopes": ["repository:debian:pull"], "user": "tester", "status": 200})
        self.assertEqual(lazy_count.token_problems([scope])[1], [])
        self.assertEqual(len(lazy_count.token_problems([scope, scope])[1]), 1)


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""What docker-registry served, from its own log: the judge of laziness.

lazy_count.py LOG [--from LINE] [--image-size BYTES] [--max-share 0.30] [--one-request-per-manifest]
              [--max-connections N] [--token-log FILE --one-token-per-scope] [--json]

Counts bodies of blob and manifest GETs (http.response.written), requests per manifest, connections (distinct remote
addresses, ports included: keep-alive keeps the port). Each broken condition is one line on stderr; exit status 1.
"""
import argparse
import collections
import json
import re
import sys

BLOB = re.compile(r"^/v2/.+/blobs/(sha256:[0-9a-f]{64})$")
MANIFEST = re.compile(r"^/v2/(.+)/manifests/(.+)$")


def read_log(lines):
    """The finished requests of a docker-registry JSON log. One that the client broke off is logged too."""
    requests = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("msg") in ("response completed", "response completed with error") and \
                "http.request.uri" in record:
            requests.append({"method": record["http.request.method"], "uri": record["http.request.uri"],
                             "client": record["http.request.remoteaddr"],
                             "status": record.get("http.response.status", 0),
                             "bytes": record.get("http.response.written", 0)})
    return requests


def summary(requests):
    out = {"blob_bytes": 0, "manifest_bytes": 0, "blob_requests": 0, "refused": 0, "blobs": collections.Counter(),
           "manifests": collections.Counter(), "requests": len(requests),
           "connections": len({r["client"] for r in requests})}
    for r in requests:
        path = r["uri"].split("?")[0]
        blob, manifest = BLOB.match(path), MANIFEST.match(path)
        if r["status"] == 401:
            out["refused"] += 1  # the challenge, not an answer
        elif blob and r["method"] == "GET":
            out["blob_requests"] += 1
            out["blob_bytes"] += r["bytes"]
            out["blobs"][blob.group(1)] += r["bytes"]
        elif manifest:  # HEAD counts as a request too: it is a round trip
            out["manifests"]["/".join(manifest.groups())] += 1
            out["manifest_bytes"] += r["bytes"] if r["method"] == "GET" else 0
    return out


def token_problems(lines):
    scopes = collections.Counter()
    for line in lines:
        record = json.loads(line)
        scopes[" ".join(sorted(record["scopes"]))] += 1
    return scopes, [f"{n} tokens were requested for scope '{s}'" for s, n in scopes.items() if n > 1]


def problems(counted, image_size=None, max_share=None, one_per_manifest=False, max_connections=None):
    found = []
    if image_size and max_share is not None:
        share = counted["blob_bytes"] / image_size
        if share > max_share:
            found.append(f"fetched {counted['blob_bytes']} of {image_size} bytes: {share:.1%}, allowed {max_share:.0%}")
    if one_per_manifest:
        found += [f"manifest {name} was requested {n} times" for name, n in counted["manifests"].items() if n > 1]
        if not counted["manifests"]:
            found.append("no manifest was requested: is this the right log?")
    if max_connections is not None and counted["connections"] > max_connections:
        found.append(f"{counted['requests']} requests came over {counted['connections']} connections, "
                     f"allowed {max_connections}")
    return found


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--from", dest="start", type=int, default=0)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--max-share", type=float)
    parser.add_argument("--one-request-per-manifest", action="store_true")
    parser.add_argument("--max-connections", type=int)
    parser.add_argument("--token-log")
    parser.add_argument("--one-token-per-scope", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    with open(args.log) as f:
        counted = summary(read_log(f.readlines()[args.start:]))
    found = problems(counted, args.image_size, args.max_share, args.one_request_per_manifest, args.max_connections)
    if args.token_log:
        with open(args.token_log) as f:
            counted["tokens"], bad = token_problems(f)
        if args.one_token_per_scope:
            found += bad if counted["tokens"] else ["no token was requested"]
    if args.json:
        print(json.dumps(counted))
    else:
        share = f" ({counted['blob_bytes'] / args.image_size:.1%} of the image)" if args.image_size else ""
        print(f"{counted['blob_bytes']} blob bytes{share} in {counted['blob_requests']} requests, "
              f"{sum(counted['manifests'].values())} manifest requests, {counted['connections']} connections")
    for line in found:
        print(f"lazy_count: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

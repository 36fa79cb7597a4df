#!/usr/bin/env python3
"""A token server for docker-registry's `auth: token`: one access token per request, signed with openssl.

Answers GET /token?service=…&scope=… for the user tester:secret (Basic). Each request is one JSON line in --log:
{"scopes": […], "user": …, "status": …}. Tokens live for --ttl seconds.
"""
import argparse
import base64
import http.server
import json
import os
import subprocess
import time
import urllib.parse


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def make_token(args, service, scopes):
    with open(args.certificate) as f:
        lines = [line.strip() for line in f if line.strip() and not line.startswith("-----")]
    header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(lines)]}
    now = int(time.time())
    access = []
    for scope in scopes:
        kind, name, actions = scope.split(":", 2)
        access.append({"type": kind, "name": name, "actions": actions.split(",")})
    claims = {"iss": "e2e-issuer", "sub": "tester", "aud": service, "exp": now + args.ttl, "nbf": now - 10,
              "iat": now, "jti": str(time.monotonic_ns()), "access": access}
    text = b64(json.dumps(header).encode()) + "." + b64(json.dumps(claims).encode())
    signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", args.key], input=text.encode(),
                               stdout=subprocess.PIPE, check=True).stdout
    return text + "." + b64(signature)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--ttl", type=int, default=300)
    args = parser.parse_args()
    log = open(args.log, "w", buffering=1)
    right = "Basic " + base64.b64encode(b"tester:secret").decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *unused):
            pass

        def do_GET(self):
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            scopes = [s for value in query.get("scope", []) for s in value.split()]
            known = self.headers.get("Authorization") == right
            log.write(json.dumps({"scopes": scopes, "user": "tester" if known else None,
                                  "status": 200 if known else 401}) + "\n")
            if known:
                token = make_token(args, query.get("service", [""])[0], scopes)
                body = json.dumps({"token": token, "access_token": token, "expires_in": args.ttl}).encode()
                self.send_response(200)
            else:
                body = b'{"errors":[{"code":"UNAUTHORIZED"}]}'
                self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with open(args.port_file + ".new", "w") as f:
        f.write(str(server.server_address[1]))
    os.rename(args.port_file + ".new", args.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()

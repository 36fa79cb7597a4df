#!/usr/bin/env python3
"""A host that nobody has any business with: writes down who comes, and what they bring.

witness.py --log FILE --port-file FILE [--port N] ADDRESS…

One line per connection ("ADDRESS connected"), and per request its head, as JSON. Every answer is 401, and asks for
credentials by Basic.
"""
import argparse
import http.server
import json
import os
import threading


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("addresses", nargs="+")
    args = parser.parse_args()
    log = open(args.log, "a", buffering=1)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            log.write(f"{self.server.server_address[0]} connected\n")
            super().setup()

        def log_message(self, *unused):
            pass

        def answer(self):
            log.write(json.dumps({"at": self.server.server_address[0], "method": self.command, "path": self.path,
                                  "headers": {k.lower(): v for k, v in self.headers.items()}}) + "\n")
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="witness"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_POST = do_PUT = answer

    port = args.port
    for address in args.addresses:
        server = http.server.ThreadingHTTPServer((address, port), Handler)
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever).start()
    with open(args.port_file + ".new", "w") as f:
        f.write(str(port))
    os.rename(args.port_file + ".new", args.port_file)


if __name__ == "__main__":
    main()

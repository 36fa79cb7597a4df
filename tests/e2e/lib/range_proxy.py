#!/usr/bin/env python3
"""A proxy before a registry that writes down what docker-registry's log does not say, and can hold answers back.

range_proxy.py --upstream HOST:PORT --log FILE --port-file FILE [--hold FILE] [--rate BYTES_PER_SECOND]

Log: a JSON line per request when it arrives: {"connection", "method", "uri", "range"}. While the --hold file exists,
answers to GETs of blobs wait before their first byte; each waiting one is a line {"holding": uri} in the log.
"""
import argparse
import http.client
import http.server
import itertools
import json
import os
import threading
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--hold", default="")
    parser.add_argument("--rate", type=int, default=0)
    args = parser.parse_args()
    log, lock = open(args.log, "w", buffering=1), threading.Lock()
    numbers = itertools.count(1)

    def note(**record):
        with lock:
            log.write(json.dumps(record) + "\n")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self):
            super().setup()
            self.number = next(numbers)
            self.upstream = http.client.HTTPConnection(args.upstream, timeout=60)

        def log_message(self, *unused):
            pass

        def forward(self):
            note(connection=self.number, method=self.command, uri=self.path, range=self.headers.get("Range"))
            if self.command == "GET" and "/blobs/" in self.path and args.hold and os.path.exists(args.hold):
                note(holding=self.path, range=self.headers.get("Range"))
                while os.path.exists(args.hold):
                    time.sleep(0.02)
            self.upstream.request(self.command, self.path, headers=dict(self.headers))
            answer = self.upstream.getresponse()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            try:
                while piece := answer.read(1 << 16):
                    self.wfile.write(piece)
                    if args.rate:
                        time.sleep(len(piece) / args.rate)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
                self.upstream.close()

        do_GET = do_HEAD = forward

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    with open(args.port_file + ".new", "w") as f:
        f.write(str(server.server_address[1]))
    os.rename(args.port_file + ".new", args.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Small servers that fault scripts need.

  servers.py tls BACKEND_HOST:PORT PEM READY   TLS in front of a plain server; PEM (certificate and key) is read again for
                                               each connection. READY gets host:port. A client that speaks http is logged
                                               as "http request"
  servers.py dns ADDRESS NAME ANSWER READY     a name server on port 53: NAME is ANSWER (other names do not exist), or
                                               says nothing at all when ANSWER is "silent"
"""
import os
import socket
import ssl
import sys
import threading


def ready(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve_tls(client, backend, pem):
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        encrypted = context.wrap_socket(client, server_side=True)
        host, port = backend.rsplit(":", 1)
        plain = socket.create_connection((host, int(port)))
    except (OSError, ssl.SSLError) as error:
        print("http request" if "HTTP_REQUEST" in str(error) else f"handshake: {error}", flush=True)
        client.close()
        return
    # One thread per direction: an SSLSocket takes a reader and a writer at a time.
    threading.Thread(target=pump, args=(encrypted, plain), daemon=True).start()
    pump(plain, encrypted)


def tls(backend, pem, path):
    listener = socket.create_server(("127.0.0.1", 0))
    ready(path, "127.0.0.1:%d" % listener.getsockname()[1])
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve_tls, args=(client, backend, pem), daemon=True).start()


def question(packet):
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1:at + 1 + packet[at]])
        at += 1 + packet[at]
    return b".".join(labels).decode("ascii", "replace").lower(), packet[at + 1:at + 3], packet[12:at + 5]


def dns(address, name, answer, path):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 53))
    ready(path, "")
    while True:
        packet, client = sock.recvfrom(2048)
        if answer == "silent":
            continue
        asked, kind, text = question(packet)
        records = b""
        if asked == name and kind == b"\0\1":   # an address of version 4, for no time at all
            records = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(answer)
        code = b"\x85\x80" if asked == name else b"\x85\x83"
        sock.sendto(packet[:2] + code + b"\0\1" + (b"\0\1" if records else b"\0\0") + b"\0\0\0\0" + text + records, client)


if __name__ == "__main__":
    {"tls": tls, "dns": dns}[sys.argv[1]](*sys.argv[2:])

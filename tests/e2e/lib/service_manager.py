#!/usr/bin/env python3
"""What systemd does for a unit with Type=notify, NotifyAccess=main, Restart=always and FileDescriptorStoreMax=.

  service_manager.py FILE COMMAND...

Starts COMMAND, and again whenever it dies, with the descriptors that it has stored (sd_notify(3), sd_listen_fds(3)).
Writes one line per event to FILE: "main PID", "ready", "stored NAME", "removed NAME", "ended STATUS". Ends when COMMAND
has ended by itself with 0, or by a signal to this process, which it passes on.
"""

import array
import os
import select
import signal
import socket
import struct
import sys

STORE_MAX = 16
FIRST = 3


def main():
    log = open(sys.argv[1], "w", buffering=1)
    command = sys.argv[2:]
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind("\0lazyblob-service-manager-%d" % os.getpid())
    notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    store = []  # (name, descriptor), as stored
    state = {"main": -1, "stop": False}

    def start():
        names = ":".join(name for name, _ in store)
        pid = os.fork()
        if pid == 0:
            moved = [os.dup2(fd, 200 + i) for i, (_, fd) in enumerate(store)]
            for i, fd in enumerate(moved):
                os.dup2(fd, FIRST + i)  # inheritable
                os.close(fd)
            os.environ["NOTIFY_SOCKET"] = "@lazyblob-service-manager-%d" % os.getppid()
            if moved:
                os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(moved)), LISTEN_FDNAMES=names)
            os.execv(command[0], command)
        state["main"] = pid
        log.write("main %d\n" % pid)

    def stop(number, _):
        state["stop"] = True
        os.kill(state["main"], number)

    def hear(message, descriptors, sender):
        if sender != state["main"]:
            for fd in descriptors:
                os.close(fd)
            return
        said = dict(line.split("=", 1) for line in message.decode().split("\n") if "=" in line)
        name = said.get("FDNAME", "stored")
        if said.get("FDSTORE") == "1" and len(store) + len(descriptors) <= STORE_MAX:
            store.extend((name, fd) for fd in descriptors)
            log.write("stored %s\n" % name)
        if said.get("FDSTOREREMOVE") == "1":
            for _, fd in [one for one in store if one[0] == name]:
                os.close(fd)
            store[:] = [one for one in store if one[0] != name]
            log.write("removed %s\n" % name)
        if said.get("READY") == "1":
            log.write("ready\n")

    def drain():
        while select.select([notify], [], [], 0)[0]:
            message, ancillary, _, _ = notify.recvmsg(65536, socket.CMSG_SPACE(STORE_MAX * 4) + socket.CMSG_SPACE(12))
            descriptors, sender = array.array("i"), -1
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
                elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    sender = struct.unpack("3i", data)[0]
            hear(message, list(descriptors), sender)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, lambda number, _: os.kill(state["main"], number))
    start()
    while True:
        select.select([notify], [], [], 0.1)
        drain()
        pid, status = os.waitpid(state["main"], os.WNOHANG)
        if pid == 0:
            continue
        drain()  # what it said before it died
        code = os.waitstatus_to_exitcode(status)
        log.write("ended %d\n" % code)
        if code == 0 or state["stop"]:
            sys.exit(max(code, 0))
        start()


main()

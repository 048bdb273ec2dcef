"""Run in the box, as a service: an internet in a network namespace, with a resolver and a server that answers for every
name.

A box has no way out. What its guests may reach is asked here, and what they must not reach is nobody's.
"""

from __future__ import annotations

import http.server
import socket
import socketserver
import struct
import subprocess
import threading

HOST, THERE, DNS, WEB = "198.51.100.254", "198.51.100.1", "198.51.100.53", "198.51.100.10"


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, timeout=20)


def make_network() -> None:
    """The host's uplink, and its default route over it."""
    subprocess.run(["ip", "netns", "del", "internet"], check=False, timeout=20, stderr=subprocess.DEVNULL)
    ip("netns add internet")
    ip("link add uplink type veth peer name out netns internet")
    ip(f"addr add {HOST}/24 dev uplink")
    ip("link set uplink up")
    ip("-n internet link set lo up")
    for address in (THERE, DNS, WEB):
        ip(f"-n internet addr add {address}/24 dev out")
    ip("-n internet link set out up")
    ip(f"route replace default via {THERE} dev uplink")


class Names(socketserver.BaseRequestHandler):
    """Every name has the one address; what is no A record has none."""

    def handle(self) -> None:
        query, sock = self.request
        end = query.find(b"\0", 12) + 5
        if end < 5 or len(query) < end:
            return
        wanted = query[end - 4 : end - 2] == b"\0\x01"
        answer = b"\xc0\x0c\0\x01\0\x01" + struct.pack(">IH", 60, 4) + socket.inet_aton(WEB) if wanted else b""
        sock.sendto(
            query[:2] + b"\x81\x80\0\x01" + struct.pack(">HHH", int(wanted), 0, 0) + query[12:end] + answer,
            self.client_address,
        )


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"the box's internet: {self.headers.get('Host')}{self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET


def main() -> None:
    make_network()
    import ctypes
    import os

    there = os.open("/run/netns/internet", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(there, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the namespace")
    names = socketserver.ThreadingUDPServer((DNS, 53), Names)
    threading.Thread(target=names.serve_forever, daemon=True).start()
    http.server.ThreadingHTTPServer((WEB, 80), Web).serve_forever()


if __name__ == "__main__":
    main()

"""Probes, run as root inside a guest: a namespace, a VM, a container in it. Standard library only, since the file is
copied there.

A probe is a mapping with `kind`; the answer is a mapping with `outcome`: connected, answered, timeout, refused, reset,
closed, sent. As a program: a JSON list of probes on standard input, a JSON list of answers on standard output.
"""

import json
import os
import socket
import ssl
import struct
import sys
import threading

LIMIT = 1.5


def tcp(probe):
    """Connect, send what there is to send, read the first bytes."""
    with socket.create_connection((probe["address"], probe["port"]), probe.get("limit", LIMIT)) as connection:
        if probe.get("send"):
            connection.sendall(probe["send"].encode())
        try:
            said = connection.recv(4096)
        except TimeoutError:
            return {"outcome": "connected", "said": ""}
        return {"outcome": "connected" if said else "closed", "said": said.decode("latin-1")}


def tls(probe):
    """TLS to an address with any name, or none, in the hello; then a request. The certificate is the lab's for every
    name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((probe["address"], probe["port"]), probe.get("limit", LIMIT)) as plain:
        plain.settimeout(probe.get("limit", LIMIT) + 8)
        with context.wrap_socket(plain, server_hostname=probe.get("name")) as connection:
            host = probe.get("host", probe.get("name") or "x")
            connection.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            said = b""
            while piece := connection.recv(4096):
                said += piece
    return {"outcome": "answered" if said else "closed", "said": said.decode("latin-1")}


def http(probe):
    """The bytes of a request as they are, and the status that came back. `patience` is for an answer that is not
    closed."""
    with socket.create_connection((probe["address"], probe["port"]), probe.get("limit", LIMIT)) as connection:
        connection.settimeout(probe.get("patience", probe.get("limit", LIMIT) + 8))
        connection.sendall(probe["send"].encode())
        said = b""
        try:
            while piece := connection.recv(4096):
                said += piece
        except TimeoutError:
            pass
    words = said.split()
    return {
        "outcome": "answered" if said else "closed",
        "status": int(words[1]) if len(words) > 1 else 0,
        "said": said.decode("latin-1"),
    }


def _query(name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return (
        struct.pack("!6H", int.from_bytes(os.urandom(2), "big"), 0x0100, 1, 0, 0, 0)
        + labels
        + struct.pack("!2H", kind, 1)
    )


def _addresses(reply):
    """A records of a reply: names are skipped, whatever they are compressed to."""

    def skip(at):
        while True:
            if reply[at] & 0xC0:
                return at + 2
            if not reply[at]:
                return at + 1
            at += reply[at] + 1

    at, found = 12, []
    for _ in range(struct.unpack("!H", reply[4:6])[0]):
        at = skip(at) + 4
    for _ in range(struct.unpack("!H", reply[6:8])[0]):
        at = skip(at)
        kind, _, _, size = struct.unpack("!HHIH", reply[at : at + 10])
        if kind == 1:
            found.append(socket.inet_ntoa(reply[at + 10 : at + 14]))
        at += 10 + size
    return found


def dns(probe):
    """One question to any server, over UDP or TCP."""
    query = _query(probe["name"], probe.get("type", 1))
    place, limit = (probe["address"], probe.get("port", 53)), probe.get("limit", LIMIT)
    if probe.get("over") == "tcp":
        with socket.create_connection(place, limit) as connection:
            connection.sendall(len(query).to_bytes(2, "big") + query)
            size = int.from_bytes(connection.recv(2), "big")
            reply = connection.recv(size) if size else b""
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            connection.settimeout(limit)
            connection.connect(place)
            connection.send(query)
            reply = connection.recv(4096)
    if len(reply) < 12:
        return {"outcome": "closed"}
    return {
        "outcome": "answered",
        "rcode": reply[3] & 15,
        "answers": struct.unpack("!H", reply[6:8])[0],
        "addresses": _addresses(reply),
        "hex": reply.hex(),
    }


def udp(probe):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(probe.get("limit", LIMIT))
        connection.connect((probe["address"], probe["port"]))
        connection.send(probe.get("send", "x" * 32).encode())
        return {"outcome": "answered", "said": connection.recv(4096).decode("latin-1")}


def raw_ip(probe):
    """A packet of any IP protocol. Echo replies are waited for, of the rest only that it was sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, probe["protocol"]) as connection:
        connection.settimeout(probe.get("limit", LIMIT))
        connection.sendto(bytes.fromhex(probe["payload"]), (probe["address"], 0))
        if probe["protocol"] != socket.IPPROTO_ICMP:
            return {"outcome": "sent"}
        while True:
            reply, peer = connection.recvfrom(4096)
            if reply[(reply[0] & 15) * 4] == 0:
                return {"outcome": "answered", "said": peer[0]}


def frame(probe):
    """An Ethernet frame as it is, out of the guest's NIC."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as connection:
        connection.bind((probe["interface"], 0))
        for _ in range(probe.get("times", 1)):
            connection.send(bytes.fromhex(probe["frame"]))
    return {"outcome": "sent"}


KINDS = {"tcp": tcp, "tls": tls, "http": http, "dns": dns, "udp": udp, "raw_ip": raw_ip, "frame": frame}


def run(probe):
    try:
        return KINDS[probe["kind"]](probe)
    except TimeoutError:
        return {"outcome": "timeout"}
    except ConnectionRefusedError:
        return {"outcome": "refused"}
    except ConnectionResetError:
        return {"outcome": "reset"}
    except ssl.SSLError as error:
        return {"outcome": "closed", "said": str(error)}
    except OSError as error:
        return {"outcome": "error", "said": str(error)}


def run_all(probes, at_once=16):
    """Answers in the order of the probes; `at_once` of them under way at a time."""
    answers = [None] * len(probes)
    room = threading.Semaphore(at_once)

    def one(number):
        with room:
            answers[number] = run(probes[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(probes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


if __name__ == "__main__":
    json.dump(run_all(json.load(sys.stdin), at_once=4), sys.stdout)

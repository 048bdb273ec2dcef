"""The servers of the world outside, as threads whose sockets live in another namespace. Each records who came."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import socket
import socketserver
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from laboratory.recorder import Hit, Recorder


class Authority:
    """A certificate authority of the lab, and one certificate of it for all the lab's names."""

    def __init__(self, names: Iterable[str]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab authority")])

        def build(
            subject: x509.Name, public: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
        ) -> x509.Certificate:
            builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
            builder = builder.serial_number(x509.random_serial_number()).not_valid_before(
                now - datetime.timedelta(days=1)
            )
            builder = builder.not_valid_after(now + datetime.timedelta(days=2)).add_extension(extension, critical=True)
            return builder.sign(ca_key, hashes.SHA256())

        authority = build(issuer, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab server")])
        leaf = build(subject, key.public_key(), x509.SubjectAlternativeName([x509.DNSName(name) for name in names]))
        self.pem = authority.public_bytes(serialization.Encoding.PEM).decode()
        self.chain = leaf.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def server_context(self, on_name: object) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as scratch:
            chain = Path(scratch, "chain.pem")
            chain.write_bytes(self.chain)
            context.load_cert_chain(chain)
        context.sni_callback = on_name  # type: ignore[assignment]
        return context


class _Threading(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A guest that hangs up is no news."""


def _serve(server: socketserver.BaseServer) -> None:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 3600}, daemon=True).start()


APPLICATIONS: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
"""What answers for a Host instead, where a test says so."""


class _Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def _answer(self) -> None:
        address, port = self.request.getsockname()[:2]
        host = self.headers.get("Host", "")
        if host in APPLICATIONS:
            APPLICATIONS[host](self)
            return
        self.server.recorder.hit(Hit("https" if port == 443 else "http", address, port, host))  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length") or 0)
        while length > 0 and (piece := self.rfile.read(min(length, 65536))):
            length -= len(piece)
        body = f"served by {address}:{port} as {host}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Hits are recorded, not printed."""


def start_web(address: str, port: int, recorder: Recorder, authority: Authority | None = None) -> None:
    """HTTP, or HTTPS where an authority is given. Every connection is a hit `tcp`, every SNI a hit `tls`, every request
    one more."""

    def on_name(connection: ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
        address, port = connection.getsockname()[:2]
        recorder.hit(Hit("tls", address, port, name or ""))

    context = authority.server_context(on_name) if authority else None

    class Server(_Threading):
        def get_request(self) -> tuple[socket.socket, object]:
            connection, peer = super().get_request()
            recorder.hit(Hit("tcp", *connection.getsockname()[:2]))
            return connection, peer

        def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
            if context is not None:
                request.settimeout(20)
                request = context.wrap_socket(request, server_side=True)
            with contextlib.suppress(OSError):
                _Web(request, client_address, self)  # type: ignore[arg-type]

    server = Server((address, port), _Web)
    server.recorder = recorder  # type: ignore[attr-defined]
    _serve(server)


def start_echo(address: str, port: int, recorder: Recorder) -> None:
    """TCP: says where it was reached, then repeats what it hears."""

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            place = self.request.getsockname()[:2]
            recorder.hit(Hit("tcp", *place))
            self.request.settimeout(60)
            with contextlib.suppress(OSError):
                self.request.sendall(f"echo {place[0]}:{place[1]}\n".encode())
                while data := self.request.recv(65536):
                    self.request.sendall(data)

    class Server(_Threading):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    _serve(Server((address, port), Echo))


def start_udp(address: str, port: int, recorder: Recorder) -> None:
    """UDP: records, and repeats what it hears."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((address, port))

    def read() -> None:
        while True:
            data, peer = listener.recvfrom(65536)
            recorder.hit(Hit("udp", address, port))
            with contextlib.suppress(OSError):
                listener.sendto(data, peer)

    threading.Thread(target=read, daemon=True).start()


class Dns:
    """A name server over UDP and TCP with a zone that tests may change. Every query is a hit `dns`."""

    def __init__(self, address: str, recorder: Recorder) -> None:
        self.zone: dict[str, list[tuple[str, str]]] = {}
        """Name to records: (type, value). A name that is not in it does not exist."""
        self.cut: list[str] = []
        """Names whose answers did not fit what was asked for over UDP."""
        self.ttl = 60
        self._recorder = recorder
        self._address = address
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((address, 53))
        threading.Thread(target=self._read, daemon=True).start()
        owner = self

        class Stream(socketserver.StreamRequestHandler):
            timeout = 10

            def handle(self) -> None:
                wire = self.rfile.read(int.from_bytes(self.rfile.read(2), "big"))
                reply = owner.answer(wire)
                self.wfile.write(len(reply).to_bytes(2, "big") + reply)

        _serve(_Threading((address, 53), Stream))

    def _read(self) -> None:
        while True:
            wire, peer = self._udp.recvfrom(4096)
            with contextlib.suppress(dns.exception.DNSException, OSError):
                self._udp.sendto(self._fit(wire, self.answer(wire)), peer)

    def _fit(self, wire: bytes, reply: bytes) -> bytes:
        """As a name server does it: an answer that is larger than the client takes goes without its records, and says
        so."""
        query = dns.message.from_wire(wire)
        if len(reply) <= max(query.payload, 512):
            return reply
        self.cut.append(query.question[0].name.to_text(omit_final_dot=True))
        short = dns.message.make_response(query)
        short.flags |= dns.flags.TC
        return short.to_wire()

    def answer(self, wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self._recorder.hit(Hit("dns", self._address, 53, name))
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if name not in self.zone:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        wanted = dns.rdatatype.to_text(question.rdtype)
        while name in self.zone:
            for kind, value in self.zone[name]:
                if kind in (wanted, "CNAME"):
                    reply.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", kind, value))
            aliases = [value for kind, value in self.zone[name] if kind == "CNAME"]
            if not aliases:
                break
            name = aliases[0].rstrip(".")
        return reply.to_wire(max_size=65535)

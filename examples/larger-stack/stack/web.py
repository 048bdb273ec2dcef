"""JSON over HTTP, with the standard library: a server of one function, and a client."""

import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, object]
MAX_BODY = 64 * 1024


def serve(port: int, answer: Callable[[str, str, object], Answer], token: str = "") -> None:
    """Serve until SIGTERM. `answer` gets method, path and body; with a token, every path but /health requires it."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if token and self.path != "/health" and self.headers.get("Authorization") != f"Bearer {token}":
                status, document = 401, {"error": "no token"}
            elif length > MAX_BODY:
                status, document = 413, {"error": "too large"}
            else:
                try:
                    status, document = answer(self.command, self.path, json.loads(self.rfile.read(length) or b"null"))
                except ValueError as error:
                    status, document = 400, {"error": str(error)}
            body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(document, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = handle_any

        def log_message(self, *_words: object) -> None:
            """Health checks would fill the log."""

    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"listens on {port}", flush=True)
    server.serve_forever(poll_interval=0.1)


def call(url: str, body: object = None, *, token: str = "", method: str = "") -> Answer:
    """Status and document; status 0 if nothing answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {token}"}, method=method or None)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")
    except (OSError, ValueError) as error:
        return 0, {"error": type(error).__name__}

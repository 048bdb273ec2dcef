"""The HTTP API: /health, POST /orders, GET /orders/<id>."""

import json
import os
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2

from app.database import connect
from app.orders import InvalidOrder, parse_order

VERSION = os.environ.get("APP_VERSION", "0")
MAX_BODY = 64 * 1024


def check_database() -> str:
    """`ok`, or the class of what went wrong; never the message, which can name users and hosts."""
    try:
        connection = connect(timeout=3)
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM migrations")
        connection.close()
    except psycopg2.Error as error:
        return type(error).__name__
    return "ok"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            # 200 as long as the API itself lives: restarting it would not bring the database back.
            self.answer(200, {"version": VERSION, "database": check_database()})
        elif match := re.fullmatch(r"/orders/([0-9]{1,18})", self.path):
            self.get_order(int(match[1]))
        else:
            self.answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/orders" or length > MAX_BODY:
            self.close_connection = True
            self.answer(404 if self.path != "/orders" else 413, {"error": "not found or too large"})
            return
        try:
            order = parse_order(json.loads(self.rfile.read(length) or b"null"))
        except ValueError as error:
            self.answer(400, {"error": str(error) if isinstance(error, InvalidOrder) else "not JSON"})
            return
        connection = connect()
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO orders (item, quantity) VALUES (%s, %s) RETURNING id", (order.item, order.quantity)
            )
            (number,) = cursor.fetchone()
        connection.close()
        self.answer(201, {"id": number, "state": "new"})

    def get_order(self, number: int) -> None:
        connection = connect()
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT item, quantity, total, state FROM orders WHERE id = %s", (number,))
            row = cursor.fetchone()
        connection.close()
        if row is None:
            self.answer(404, {"error": "no such order"})
            return
        item, quantity, total, state = row
        total = None if total is None else str(total)
        self.answer(200, {"id": number, "item": item, "quantity": quantity, "total": total, "state": state})

    def answer(self, status: int, document: dict) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> int:
    server = ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
    server.daemon_threads = True
    # shutdown() waits for the loop, so it must not be called from it.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"api {VERSION} listens on 8000", flush=True)
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

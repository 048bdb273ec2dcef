"""The store, in the place of PostgreSQL: jobs in a file of a volume. `--ping` asks a running one."""

import json
import os
import re
import sqlite3
import sys
import threading

from stack.web import Answer, call, serve

PORT = int(os.environ.get("STORE_PORT", "5432"))
URL = os.environ.get("STORE_URL", f"http://store:{PORT}")
TOKEN = os.environ.get("STORE_TOKEN", "")
FILE = os.environ.get("STORE_FILE", "/data/store.db")
_LOCK = threading.Lock()


def answer(method: str, path: str, body: object) -> Answer:
    with _LOCK, sqlite3.connect(FILE) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, kind TEXT, state TEXT, content TEXT)"
        )
        if path == "/health":
            return 200, {"jobs": connection.execute("SELECT count(*) FROM jobs").fetchone()[0]}
        if (method, path) == ("POST", "/jobs") and isinstance(body, dict) and body.get("kind") in ("price", "mail"):
            made = connection.execute(
                "INSERT INTO jobs (kind, state, content) VALUES (?, 'new', ?)", (body["kind"], json.dumps(body))
            )
            return 201, {"id": made.lastrowid}
        if found := re.fullmatch(r"/jobs/([0-9]{1,15})", path):
            row = connection.execute("SELECT state, content FROM jobs WHERE id = ?", (int(found[1]),)).fetchone()
            return (200, {"state": row[0], **json.loads(row[1])}) if row else (404, {"error": "no such job"})
        if found := re.fullmatch(r"/take/(price|mail)", path):
            row = connection.execute(
                "SELECT id, content FROM jobs WHERE kind = ? AND state = 'new' ORDER BY id", (found[1],)
            ).fetchone()
            return 200, {"id": row[0], **json.loads(row[1])} if row else None
        if (found := re.fullmatch(r"/done/([0-9]{1,15})", path)) and isinstance(body, dict):
            connection.execute(
                "UPDATE jobs SET state = 'done', content = ? WHERE id = ?", (json.dumps(body), int(found[1]))
            )
            return 200, {}
    return 404, {"error": "not found"}


if __name__ == "__main__":
    if "--ping" in sys.argv:
        sys.exit(0 if call(f"http://127.0.0.1:{PORT}/health")[0] == 200 else 1)
    serve(PORT, answer, TOKEN)

"""The API: POST /jobs, GET /jobs/<id>, /health, /metrics."""

import os

from stack.store import TOKEN, URL
from stack.web import Answer, call, serve

PORT = int(os.environ.get("LISTEN_PORT", "8080"))
_COUNTS = {"requests": 0}


def answer(method: str, path: str, body: object) -> Answer:
    if path == "/health":
        status, _ = call(f"{URL}/health")
        return 200, {"version": "1.0.0", "database": "ok" if status == 200 else "unreachable"}
    if path == "/metrics":
        return 200, _COUNTS
    if not path.startswith("/jobs"):
        return 404, {"error": "not found"}
    _COUNTS["requests"] += 1
    return call(f"{URL}{path}", body, token=TOKEN, method=method)


if __name__ == "__main__":
    serve(PORT, answer)

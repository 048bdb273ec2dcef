"""In the place of Prometheus: scrapes the API and keeps the last values."""

import os
import threading
import time

from stack.web import Answer, call, serve

TARGET = os.environ.get("METRICS_TARGET", "http://api:8080/metrics")
_VALUES: list[tuple[float, object]] = []


def answer(_method: str, path: str, _body: object) -> Answer:
    if path == "/health":
        return (200, {}) if _VALUES else (503, {"error": "nothing scraped yet"})
    return (200, _VALUES[-60:]) if path == "/values" else (404, {"error": "not found"})


def scrape() -> None:
    while True:
        status, document = call(TARGET)
        if status == 200:
            _VALUES.append((time.time(), document))
            del _VALUES[:-60]
        time.sleep(2)


if __name__ == "__main__":
    threading.Thread(target=scrape, daemon=True).start()
    serve(int(os.environ.get("LISTEN_PORT", "9090")), answer)

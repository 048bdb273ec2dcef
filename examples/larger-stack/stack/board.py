"""In the place of Grafana: a page with the values of `metrics`."""

import os

from stack.web import Answer, call, serve

SOURCE = os.environ.get("BOARD_SOURCE", "http://metrics:9090/values")


def answer(_method: str, path: str, _body: object) -> Answer:
    status, values = call(SOURCE)
    if path == "/health":
        return (200, {}) if status == 200 else (503, {"error": "no metrics"})
    rows = (
        "".join(f"<tr><td>{time:.0f}<td>{value['requests']}" for time, value in values)
        if isinstance(values, list)
        else ""
    )
    return 200, f"<!doctype html><title>board</title><table>{rows}</table>"


if __name__ == "__main__":
    serve(int(os.environ.get("LISTEN_PORT", "3000")), answer)

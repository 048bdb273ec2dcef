"""A worker for one kind of job: `price` computes totals, `mail` writes what would be sent."""

import os
import pathlib
import signal
import sys
import time

from pricing import price

from stack.store import TOKEN, URL
from stack.web import call


def work(kind: str, job: dict) -> dict:
    """The job with its result."""
    if kind == "mail":
        return job | {"sent": f"to {job.get('to', 'nobody')}"}
    try:
        return job | {"total": price(str(job.get("item")), int(job.get("quantity", 1)))}
    except (KeyError, ValueError, TypeError):
        return job | {"error": "no price"}


def main(kind: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pathlib.Path(os.environ.get("READY_FILE", "/tmp/ready")).touch()
    print(f"works on {kind}", flush=True)
    while True:
        status, job = call(f"{URL}/take/{kind}", {}, token=TOKEN)
        if status == 200 and isinstance(job, dict):
            call(f"{URL}/done/{job.pop('id')}", work(kind, job), token=TOKEN)
        else:
            time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1])

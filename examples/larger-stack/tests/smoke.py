"""Smoke tests against the running stack."""

import os
import time
import unittest

from stack.web import call

API = os.environ.get("API_URL", "http://127.0.0.1:8080")
BOARD = os.environ.get("BOARD_URL", "http://127.0.0.1:3000")


def wait_for_job(number: int) -> dict:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        _, job = call(f"{API}/jobs/{number}")
        if job.get("state") == "done":
            return job
        time.sleep(0.5)
    raise AssertionError(f"job {number} is not done")


class Stack(unittest.TestCase):
    def test_both_workers_do_their_jobs(self) -> None:
        _, priced = call(f"{API}/jobs", {"kind": "price", "item": "melon", "quantity": 10})
        _, mailed = call(f"{API}/jobs", {"kind": "mail", "to": "somebody"})
        self.assertEqual(wait_for_job(priced["id"])["total"], 2250)
        self.assertEqual(wait_for_job(mailed["id"])["sent"], "to somebody")

    def test_the_board_shows_what_the_metrics_have(self) -> None:
        self.assertEqual(call(f"{BOARD}/health"), (200, {}))

    def test_an_unknown_kind_is_refused(self) -> None:
        self.assertEqual(call(f"{API}/jobs", {"kind": "unknown"})[0], 404)


if __name__ == "__main__":
    unittest.main()

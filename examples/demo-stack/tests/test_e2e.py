"""End to end: orders survive a restart of everything that holds or prices them. Needs `docker compose` and a running
stack."""

import subprocess
import time
import unittest

from tests.test_smoke import call


def compose(*words: str) -> None:
    subprocess.run(["docker", "compose", "--ansi", "never", "--progress", "plain", *words], check=True, timeout=300)


def wait_for(condition, seconds: float):
    """The first true value of `condition()`, or its last value when the time is over."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return value


def database_answers() -> bool:
    return call("/health")[1].get("database") == "ok"


class OrdersOutliveTheirServices(unittest.TestCase):
    def test_an_order_waits_for_the_worker_and_survives_a_restart_of_the_database(self) -> None:
        compose("stop", "worker")
        status, created = call("/orders", {"item": "melon", "quantity": 10})
        self.assertEqual(status, 201)
        compose("restart", "db")
        self.assertTrue(wait_for(database_answers, 120), "the API does not reach the database again")
        _, order = call(f"/orders/{created['id']}")
        self.assertEqual((order["state"], order["total"]), ("new", None))
        compose("start", "worker")
        wait_for(lambda: call(f"/orders/{created['id']}")[1]["state"] == "priced", 120)
        status, order = call(f"/orders/{created['id']}")
        self.assertEqual((status, order["state"], order["total"]), (200, "priced", "28.80"))


if __name__ == "__main__":
    unittest.main()

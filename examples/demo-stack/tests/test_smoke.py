"""Smoke tests against the running stack: API_URL, by default http://127.0.0.1:8000."""

import json
import os
import time
import unittest
import urllib.error
import urllib.request

API = os.environ.get("API_URL", "http://127.0.0.1:8000")


def call(path: str, document: object = None) -> tuple[int, dict]:
    data = None if document is None else json.dumps(document).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(API + path, data=data), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Smoke(unittest.TestCase):
    def test_health_names_the_version_and_the_database(self) -> None:
        status, health = call("/health")
        self.assertEqual((status, health["database"]), (200, "ok"))
        self.assertTrue(health["version"])

    def test_an_order_is_priced_by_the_worker(self) -> None:
        status, created = call("/orders", {"item": "pear", "quantity": 10})
        self.assertEqual(status, 201)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            status, order = call(f"/orders/{created['id']}")
            if order["state"] == "priced":
                break
            time.sleep(0.3)
        self.assertEqual((status, order["state"], order["total"]), (200, "priced", "4.95"))

    def test_a_bad_order_is_the_clients_fault(self) -> None:
        self.assertEqual(call("/orders", {"item": "brick", "quantity": 1})[0], 400)

    def test_what_is_not_there_is_not_found(self) -> None:
        self.assertEqual(call("/orders/999999999")[0], 404)


if __name__ == "__main__":
    unittest.main()

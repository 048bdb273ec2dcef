"""Unit tests, for pytest."""

import pytest
from pricing import price
from stack.worker import work


@pytest.mark.parametrize(("quantity", "total"), [(1, 250), (9, 2250), (10, 2250)])
def test_ten_cost_a_tenth_less(quantity, total):
    assert price("melon", quantity) == total


def test_a_job_without_a_price_says_so():
    assert work("price", {"item": "stone"})["error"] == "no price"

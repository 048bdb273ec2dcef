"""Unit tests: the rules of the shop, without a database."""

import unittest
from decimal import Decimal

from app.orders import InvalidOrder, Order, parse_order, price_order


class Pricing(unittest.TestCase):
    def test_a_single_piece_costs_its_price(self) -> None:
        self.assertEqual(price_order(Order("apple", 1)), Decimal("0.40"))

    def test_the_discount_begins_at_ten_pieces(self) -> None:
        self.assertEqual(price_order(Order("pear", 9)), Decimal("4.95"))
        self.assertEqual(price_order(Order("pear", 10)), Decimal("4.95"))


class Parsing(unittest.TestCase):
    def test_a_good_order_is_taken(self) -> None:
        self.assertEqual(parse_order({"item": "melon", "quantity": 2}), Order("melon", 2))

    def test_bad_orders_are_refused(self) -> None:
        for document in (
            None,
            [],
            {},
            {"item": "brick", "quantity": 1},
            {"item": "pear", "quantity": 0},
            {"item": "pear", "quantity": True},
            {"item": "pear", "quantity": "3"},
        ):
            with self.subTest(document=document), self.assertRaises(InvalidOrder):
                parse_order(document)


if __name__ == "__main__":
    unittest.main()

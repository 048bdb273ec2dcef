"""What an order is and what it costs. No input or output, so that unit tests need nothing."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

PRICES = {"apple": Decimal("0.40"), "pear": Decimal("0.55"), "melon": Decimal("3.20")}
DISCOUNT_FROM = 10
DISCOUNT = Decimal("0.10")


class InvalidOrder(ValueError):
    """The client's fault: answered with 400."""


@dataclass(frozen=True)
class Order:
    item: str
    quantity: int


def parse_order(document: object) -> Order:
    """Check what a client sent."""
    if not isinstance(document, dict):
        raise InvalidOrder("an order is a JSON object")
    item, quantity = document.get("item"), document.get("quantity")
    if item not in PRICES:
        raise InvalidOrder(f"item must be one of {', '.join(sorted(PRICES))}")
    if not isinstance(quantity, int) or isinstance(quantity, bool) or not 1 <= quantity <= 1000:
        raise InvalidOrder("quantity must be a whole number from 1 to 1000")
    return Order(item, quantity)


def price_order(order: Order) -> Decimal:
    """The total, with a discount from ten pieces on."""
    total = PRICES[order.item] * order.quantity
    if order.quantity >= DISCOUNT_FROM:
        total *= 1 - DISCOUNT
    return total.quantize(Decimal("0.01"), ROUND_HALF_UP)

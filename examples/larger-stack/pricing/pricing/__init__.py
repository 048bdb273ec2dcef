"""What an order costs, in cents."""

PRICES = {"apple": 30, "melon": 250}


def price(item: str, quantity: int) -> int:
    """The total; a tenth less from ten pieces on. KeyError for an unknown item."""
    total = PRICES[item] * quantity
    return total * 9 // 10 if quantity >= 10 else total

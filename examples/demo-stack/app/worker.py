"""Prices new orders. Several workers can run: each locks the rows it takes."""

import signal
import sys
import threading
from pathlib import Path

from app.database import connect
from app.orders import Order, price_order

READY = Path("/tmp/worker-ready")
BATCH = 20
PAUSE = 0.5


def work_once(connection) -> int:
    """Price one batch. Returns how many orders were done."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, item, quantity FROM orders WHERE state = 'new' ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED",
            (BATCH,),
        )
        rows = cursor.fetchall()
        for number, item, quantity in rows:
            cursor.execute(
                "UPDATE orders SET total = %s, state = 'priced' WHERE id = %s",
                (price_order(Order(item, quantity)), number),
            )
    return len(rows)


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    connection = connect()
    READY.touch()
    print("worker ready", flush=True)
    while not stop.is_set():
        if work_once(connection) == 0:
            stop.wait(PAUSE)
    connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

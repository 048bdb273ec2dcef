"""Apply the migrations that are missing, in the order of their names, each in a transaction."""

import sys
from pathlib import Path

from app.database import connect

MIGRATIONS = Path(__file__).parent.parent / "migrations"


def find_pending(applied: set[str], names: list[str]) -> list[str]:
    return [name for name in sorted(names) if name not in applied]


def main() -> int:
    connection = connect()
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, applied_at timestamptz DEFAULT now())"
        )
        cursor.execute("SELECT name FROM migrations")
        applied = {name for (name,) in cursor.fetchall()}
    for name in find_pending(applied, [place.name for place in MIGRATIONS.glob("*.sql")]):
        with connection, connection.cursor() as cursor:
            cursor.execute((MIGRATIONS / name).read_text(encoding="utf-8"))
            cursor.execute("INSERT INTO migrations (name) VALUES (%s)", (name,))
        print(f"applied {name}", flush=True)
    connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One place that knows how to reach the database."""

import os

import psycopg2


def connect(timeout: int = 10):
    """A new connection; the settings come from the environment, as in any container."""
    return psycopg2.connect(
        host=os.environ.get("DATABASE_HOST", "localhost"),
        dbname=os.environ.get("DATABASE_NAME", "demo"),
        user=os.environ.get("DATABASE_USER", "demo"),
        password=os.environ.get("DATABASE_PASSWORD", ""),
        connect_timeout=timeout,
    )

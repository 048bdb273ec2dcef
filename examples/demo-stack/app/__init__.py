"""A small order service: an HTTP API, a worker that prices orders, and migrations."""

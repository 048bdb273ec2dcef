"""The API with a bug: every answer is a 500."""

import sys

from app import api


class BrokenHandler(api.Handler):
    def answer(self, status: int, document: dict) -> None:
        print("KeyError: 'tenant' while answering", self.path, file=sys.stderr, flush=True)
        super().answer(500, {"error": "internal error"})


api.Handler = BrokenHandler
sys.exit(api.main())

"""docs/images.md says which stand-ins were tried. One that was changed afterwards counts as not tried."""

from __future__ import annotations

import sys

from ktrdr_vm.host.paths import PROJECT

sys.path.insert(0, str(PROJECT))

from tests.docs.stock_table import PAGE, render


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, (
        "KTRDR_GOLDEN=write pytest tests/lab/test_stock_images.py, then python tests/docs/stock_table.py --write"
    )

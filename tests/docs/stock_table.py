"""The table of docs/images.md about stand-ins for published cloud images, from what the lab tried last.

`python tests/docs/stock_table.py --write` writes it.
"""

from __future__ import annotations

import sys

from ktrdr_vm.host.paths import PROJECT

sys.path.insert(0, str(PROJECT / "tests" / "lab"))

from laboratory.stock import FLAVOURS, SUITE, TOLD, read_tried

PAGE = PROJECT / "docs/images.md"
BEGIN = "<!-- stand-ins: python tests/docs/stock_table.py --write -->"
END = "<!-- end of stand-ins -->"


def render_table() -> str:
    rows = [
        "| stands for | how it differs | content | disk that was booted | packages |",
        "| --- | --- | --- | --- | --- |",
    ]
    tried = read_tried()
    for name, flavour in FLAVOURS.items():
        entry = tried.get(name, {})
        disk = packages = "not tried with this content"
        if entry.get("content") == flavour.digest:
            disk = f"`{entry['disk'][:16]}`"
            versions = ", ".join(f"{package} {entry['packages'][package]}" for package in TOLD)
            packages = f"Debian {SUITE}: {versions}"
        rows.append(
            f"| {flavour.stands_for} | {'; '.join(flavour.shows)} | `{flavour.digest[:16]}` | {disk} | {packages} |"
        )
    return "\n".join(rows)


def render(page: str) -> str:
    """The page with the table."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{render_table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

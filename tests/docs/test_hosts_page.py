"""The page of hosts says what the last run in boxes said."""

from __future__ import annotations

import json
import subprocess
import sys

from ktrdr_vm.host.paths import PROJECT


def test_the_table_is_that_of_the_last_run() -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts" / "render-hosts", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_row_hides_a_denial_or_a_failure() -> None:
    rows = json.loads((PROJECT / "docs" / "hosts.json").read_text())["rows"]
    assert rows and all(set(row) >= {"release", "test", "passed", "denials", "commit", "day"} for row in rows)
    page = (PROJECT / "docs" / "hosts.md").read_text()
    for row in rows:
        ended = "passed" if row["passed"] else "failed"
        assert f"| {row['test']} | {row['release']} | {ended}" in page

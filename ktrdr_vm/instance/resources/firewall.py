"""The instance's nftables table. It names the tap before the tap exists, so the guest's first packet already meets it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ktrdr_vm.errors import ForeignError, ProvisionError
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.nft import load_ruleset, read_comment, read_table
from ktrdr_vm.instance.resources.base import Resource


class Firewall(Resource):
    kind = "firewall"
    isolates = True

    @property
    def name(self) -> str:
        return f"inet {self.target.identity.table}"

    @property
    def _expected(self) -> dict[str, Any]:
        """The table as it was read back when it was loaded, and the digest of the ruleset that it was loaded from."""
        path = self.target.paths.directory / "ruleset.expected"
        found = json.loads(path.read_bytes()) if path.exists() else None
        return found if isinstance(found, dict) else {"rendered": "", "table": found}

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.blueprint.documents["ruleset.nft"].encode()).hexdigest()

    def exists(self) -> bool:
        return read_table(self.target.identity.table) is not None

    def create(self) -> None:
        """Replace the table in one transaction, read it back, and keep what was read as what it must stay."""
        ruleset = self.blueprint.documents["ruleset.nft"]
        self._refuse_foreign()
        load_ruleset(ruleset)
        loaded = read_table(self.target.identity.table)
        if loaded is None or count_rules(loaded) != count_rules_of_text(ruleset):
            raise ProvisionError(
                "the firewall that was loaded is not the one that was rendered",
                where=self.name,
                hint="another program changes nftables at the same moment; `nft monitor` shows which",
            )
        expected = json.dumps({"rendered": self._digest, "table": loaded})
        write_durably(self.target.paths.directory / "ruleset.expected", expected.encode())

    def verify(self) -> list[str]:
        found, expected = read_table(self.target.identity.table), self._expected
        if found is None:
            return ["the table is gone"]
        if found != expected["table"]:
            return ["the table's rules were changed"]
        return [] if expected["rendered"] == self._digest else ["the table's rules are those of an earlier plan"]

    def remove(self) -> None:
        if self.exists():
            self._refuse_foreign()
            table = self.target.identity.table
            # `add` first, so that one that vanished meanwhile is no error.
            load_ruleset(f"add table inet {table}\ndelete table inet {table}\n")
        (self.target.paths.directory / "ruleset.expected").unlink(missing_ok=True)

    def _refuse_foreign(self) -> None:
        comment = read_comment(self.target.identity.table)
        if comment is not None and comment != self.target.mark:
            raise ForeignError(
                f"the nft table {self.name} exists and was not made for this instance",
                where=self.name,
                hint="look at it with `nft list table`",
            )

    def by_hand(self) -> str:
        return f"nft delete table {self.name}"


def count_rules(table: list[dict[str, Any]]) -> int:
    return sum("rule" in entry for entry in table)


def count_rules_of_text(ruleset: str) -> int:
    """Rules in a ruleset as `render_ruleset` writes it: the lines inside chains, less the hook and comments."""
    count, inside = 0, False
    for line in (line.strip() for line in ruleset.splitlines()):
        if line.startswith("chain "):
            inside = True
        elif line == "}":
            inside = False
        elif inside and line and not line.startswith(("type ", "#")):
            count += 1
    return count

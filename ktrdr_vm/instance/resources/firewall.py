"""The two nftables tables of the instance: in its namespace, for the packets of the guest, and on the host, for its
proxy and resolver.

The first names the tap before the tap exists, so that it applies to the guest's first packet.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ktrdr_vm.errors import ForeignError, ProvisionError
from ktrdr_vm.host.durable import write_durably
from ktrdr_vm.host.netns import is_namespace
from ktrdr_vm.host.nft import Table, load_ruleset, read_comment, read_table
from ktrdr_vm.instance.resources.base import Resource


class Firewall(Resource):
    kind = "firewall"
    isolates = True
    lane = "isolation"

    @property
    def name(self) -> str:
        return f"inet {self.target.identity.table}"

    @property
    def _expected(self) -> dict[str, Any]:
        """The tables as they were read back after they were loaded, and the digest of the rulesets that they were
        loaded from."""
        path = self.target.paths.directory / "ruleset.expected"
        found = json.loads(path.read_bytes()) if path.exists() else None
        return found if isinstance(found, dict) else {}

    @property
    def _rulesets(self) -> tuple[str, str]:
        return self.blueprint.documents["ruleset.nft"], self.blueprint.documents["ruleset-host.nft"]

    @property
    def _digest(self) -> str:
        return hashlib.sha256("\0".join(self._rulesets).encode()).hexdigest()

    @property
    def _namespace(self) -> str:
        """The namespace with the guest's table; empty if there is no such namespace, and so no table in it."""
        namespace = self.target.identity.namespace
        return namespace if is_namespace(namespace) else ""

    def exists(self) -> bool:
        table = self.target.identity.table
        return read_table(table) is not None or bool(self._namespace and read_table(table, self._namespace) is not None)

    def create(self) -> None:
        """Replace each table in one transaction, read both back, and store the result as the expected state."""
        self._refuse_foreign()
        # Side by side: nft takes some ten milliseconds for each of the two.
        with ThreadPoolExecutor(2) as pool:
            inner, outer = pool.map(self._load, self._rulesets, (self.target.identity.namespace, ""))
        expected = {"rendered": self._digest, "table": inner, "host": outer}
        write_durably(self.target.paths.directory / "ruleset.expected", json.dumps(expected).encode())

    def _load(self, ruleset: str, namespace: str) -> Table:
        load_ruleset(ruleset, namespace)
        loaded = read_table(self.target.identity.table, namespace)
        if loaded is None or count_rules(loaded) != count_rules_of_text(ruleset):
            raise ProvisionError(
                "the firewall that was loaded is not the one that was rendered",
                where=self.name,
                hint="another program changes nftables at the same moment; `nft monitor` shows which",
            )
        return loaded

    def verify(self) -> list[str]:
        expected, table = self._expected, self.target.identity.table
        found = read_table(table, self._namespace) if self._namespace else None
        if found is None:
            return ["the table is gone"]
        if found != expected.get("table"):
            return ["the table's rules were changed"]
        outside = read_table(table)
        if outside is None:
            return ["the table on the host is gone"]
        if outside != expected.get("host"):
            return ["the rules of the table on the host were changed"]
        return [] if expected.get("rendered") == self._digest else ["the table's rules are those of an earlier plan"]

    def remove(self) -> None:
        self._refuse_foreign()
        table = self.target.identity.table
        for namespace in {"", self._namespace}:
            if read_table(table, namespace) is not None:
                # `add` first, so that a table that was removed meanwhile is no error.
                load_ruleset(f"add table inet {table}\ndelete table inet {table}\n", namespace)
        (self.target.paths.directory / "ruleset.expected").unlink(missing_ok=True)

    def _refuse_foreign(self) -> None:
        namespaces = sorted({"", self._namespace})
        with ThreadPoolExecutor(2) as pool:
            comments = pool.map(partial(read_comment, self.target.identity.table), namespaces)
        for namespace, comment in zip(namespaces, comments, strict=True):
            if comment is not None and comment != self.target.mark:
                raise ForeignError(
                    f"the nft table {self.name} exists and was not made for this instance",
                    where=namespace or self.name,
                    hint="inspect it with `nft list table`",
                )

    def by_hand(self) -> str:
        return f"nft delete table {self.name}"


def count_rules(table: list[dict[str, Any]]) -> int:
    return sum("rule" in entry for entry in table)


def count_rules_of_text(ruleset: str) -> int:
    """Rules in a ruleset as `render_ruleset` writes it: the lines inside chains, without the hook and comments."""
    count, inside = 0, False
    for line in (line.strip() for line in ruleset.splitlines()):
        if line.startswith("chain "):
            inside = True
        elif line == "}":
            inside = False
        elif inside and line and not line.startswith(("type ", "#")):
            count += 1
    return count

"""nftables through the nft program: load, read back, watch. The rules are rendered by `plan/nftables_*.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ktrdr_vm.errors import HostError, ProvisionError, keep_end
from ktrdr_vm.host import process
from ktrdr_vm.host.netns import run_inside

Table = list[dict[str, Any]]

_COMMENT = re.compile(r'^\s*comment "([^"]*)"$', re.MULTILINE)

# Parts that change while the rules stay the same.
_VOLATILE = frozenset({"handle", "packets", "bytes", "index"})


def load_ruleset(ruleset: str | Path, namespace: str = "") -> None:
    """Load a ruleset, text or file, in one transaction, in a named network namespace or where this process is."""
    file, text = (ruleset, b"") if isinstance(ruleset, Path) else ("-", ruleset.encode())
    argv = [*process.DIES_WITH_CALLER, "nft", "-f", file]
    run_inside(namespace, lambda: process.run(argv, stdin=text, timeout=30))


def list_tables(prefix: str) -> list[str]:
    """Tables of the family inet whose name begins so. HostError if nft fails: a failed listing does not mean that there
    are none."""
    listed = process.run(["nft", "-j", "list", "tables", "inet"], timeout=30)
    tables = [entry["table"]["name"] for entry in json.loads(listed.stdout)["nftables"] if "table" in entry]
    return sorted(name for name in tables if name.startswith(prefix))


def read_comment(table: str, namespace: str = "") -> str | None:
    """The comment of the table, or an empty text; None if the table does not exist. nft 1.0 prints it in text only, not
    in JSON."""
    listed = _ask(["nft", "-t", "list", "table", "inet", table], namespace)
    if listed.exit_code != 0:
        if _is_absent(listed):
            return None
        raise _cannot_list(table, listed)
    # Before the first chain or set, which have comments themselves.
    head = listed.text.split("{", 2)[1]
    match = _COMMENT.search(head)
    return match[1] if match else ""


def list_ruleset() -> Table:
    """All tables of the host, of any program."""
    listed = process.run(["nft", "-j", "list", "ruleset"], timeout=30, check=False)
    if listed.exit_code != 0:
        raise HostError(
            f"nft cannot list the rules: {keep_end(listed.error_text, 200)}",
            where="nft",
            hint="load the kernel's nf_tables",
        )
    found: Table = json.loads(listed.stdout)["nftables"]
    return found


def list_table(table: str, namespace: str = "") -> Table | None:
    """The content of a table of the family inet as JSON of nft, or None if it does not exist."""
    listed = _ask(["nft", "-j", "list", "table", "inet", table], namespace)
    if listed.exit_code != 0:
        if _is_absent(listed):
            return None
        raise _cannot_list(table, listed)
    entries: Table = json.loads(listed.stdout)["nftables"]
    return [entry for entry in entries if "metainfo" not in entry]


def has_element(table: str, name: str, element: str, namespace: str = "") -> bool:
    """True if a packet with this value matches the set now. `element` is an address, or an address, ` . ` and a
    port."""
    got = _ask(["nft", "get", "element", "inet", table, name, f"{{ {element} }}"], namespace)
    if got.exit_code != 0 and not _is_absent(got):
        raise _cannot_list(table, got)
    return got.exit_code == 0


def read_table(table: str, namespace: str = "") -> Table | None:
    """The rules and fixed sets of the table, without handles, counters and elements that packets or the guard add."""
    entries = list_table(table, namespace)
    return None if entries is None else keep_rules(entries)


def keep_rules(entries: Table) -> Table:
    """The part of a listing that changes only with the rules."""
    kept = []
    for entry in entries:
        # nft 1.0 does not print `dynamic` in JSON; a set that packets fill has a statement for each element instead.
        if "set" in entry and ({"timeout", "dynamic"} & set(entry["set"].get("flags", ())) or "stmt" in entry["set"]):
            entry = {"set": {key: value for key, value in entry["set"].items() if key != "elem"}}
        kept.append(_strip(entry))
    return kept


def _ask(argv: list[str], namespace: str) -> process.Completed:
    return run_inside(namespace, lambda: process.run(argv, timeout=30, check=False))


def _is_absent(listed: process.Completed) -> bool:
    return "No such file or directory" in listed.error_text


def _cannot_list(table: str, listed: process.Completed) -> ProvisionError:
    return ProvisionError(
        f"nft cannot list the table: {listed.error_text}", where=table, hint="`ktrdr-vm doctor` checks nft"
    )


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(entry) for key, entry in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_strip(entry) for entry in value]
    return value

"""The tasks of a play that run and whose failure fails the gate, whatever the guest answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ktrdr_vm.gates.model import Block, Common, Node, Task

# With these, a module may have nothing to do, or find its file in the guest.
_DECIDING = ("creates", "removes", "remote_src")


def is_certain(common: Common) -> bool:
    """False for keywords that skip tasks or forgive their failure."""
    return not common.when and common.ignore_errors is None and "never" not in common.tags


def list_certain(nodes: Iterable[Node]) -> Iterator[Task]:
    """Without handlers, loops (their list may be empty) and what has a `rescue`."""
    for node in nodes:
        if not is_certain(node.common):
            continue
        if isinstance(node, Block):
            yield from list_certain((*(() if node.rescue else node.block), *node.always))
        elif node.loop is None and node.failed_when is None and not any(map(node.arguments.get, _DECIDING)):
            yield node
            yield from list_certain(node.included)

"""Other tools that start a machine, each on our image and on a stock one, with the same memory and processors.

None is told more than it has to be to run here: no KVM, the same processor, cache and machine type where it can be
told.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from bench.peers import debvm_run, images, install, vagrant_libvirt, virt_install, virt_lightning
from bench.peers.drive import make_name
from bench.place import Place
from ktrdr_vm.images.store import Image

# In how many of the rounds: 1 is every one, 2 every second. The stock image takes minutes to boot in emulation.
OURS_EVERY, STOCK_EVERY = 2, 5
Step = Callable[[Place], dict[str, float]]
PEERS: dict[str, Any] = {module.PEER: module for module in (virt_install, debvm_run, virt_lightning, vagrant_libvirt)}


def install_peers(image: Image, accelerator: str) -> dict[str, str]:
    """Install what can be, and make the images, before the namespaces are entered, which have no mirror.

    Peer to why it is left out, or nothing.
    """
    common = install.install_root("tools")
    if not common:
        try:
            images.make_forms(image, accelerator)
        except Exception as error:  # the rest of the bench goes on
            common = f"the images for it cannot be made: {error}"
    found = {}
    for peer in PEERS:
        found[peer] = common or (
            install.install_virt_lightning() if peer == virt_lightning.PEER else install.install_root(peer)
        )
        if found[peer]:
            print(f"peer {peer} is skipped: {found[peer]}", file=sys.stderr, flush=True)
    return found


def find_steps(installed: dict[str, str]) -> dict[str, tuple[Step, int]]:
    """The steps of those that can be measured, and in how many of the rounds: `NAME` on our image and `NAME.stock` on
    the stock one."""
    steps: dict[str, tuple[Step, int]] = {}
    for peer, reason in installed.items():
        if not reason:
            for stock in (False, True):
                steps[make_name(peer, stock=stock)] = (
                    functools.partial(PEERS[peer].measure, stock=stock),
                    STOCK_EVERY if stock else OURS_EVERY,
                )
    return steps

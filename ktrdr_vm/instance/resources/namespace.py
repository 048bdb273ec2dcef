"""The network namespace of the instance. Its only interface is the guest's tap: what may leave passes through the
guard's sockets."""

from __future__ import annotations

from pathlib import Path

from ktrdr_vm.errors import ForeignError
from ktrdr_vm.host import netns, process
from ktrdr_vm.host.links import list_links, make_ip
from ktrdr_vm.instance.resources.base import Resource

# There is nothing to forward to; a new namespace copies the setting of a host that forwards.
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class Namespace(Resource):
    kind = "namespace"
    isolates = True
    lane = "isolation"

    @property
    def name(self) -> str:
        return self.target.identity.namespace

    def exists(self) -> bool:
        return netns.exists(self.name)

    def create(self) -> None:
        self._refuse_foreign()
        netns.create(self.name)
        process.run([*make_ip(self.name), "link", "set", "dev", "lo", "alias", self.target.mark], timeout=10)
        netns.run_inside(self.name, lambda: _FORWARD.write_text("0"))

    def verify(self) -> list[str]:
        if not netns.is_namespace(self.name):
            return ["the namespace is gone"]
        forwards = netns.run_inside(self.name, _FORWARD.read_text).strip() != "0"
        differences = ["it forwards"] if forwards else []
        others = sorted(list_links(self.name).keys() - {"lo", self.target.identity.tap})
        if others:
            differences.append(f"it has other interfaces: {', '.join(others)}")
        return differences

    def remove(self) -> None:
        self._refuse_foreign()
        if netns.is_namespace(self.name):
            # This ends the connections of `ssh` and `exec` now, and not when their keep-alive fails. A kernel that
            # cannot do it reports an error, which is ignored.
            process.run(["ss", "-N", self.name, "--tcp", "--kill"], timeout=10, check=False)
        netns.remove(self.name)

    def _refuse_foreign(self) -> None:
        # The alias is set just after the namespace is created; a crash in between leaves none, and the name is ours.
        if netns.is_namespace(self.name) and list_links(self.name).get("lo", "") not in ("", self.target.mark):
            raise ForeignError(
                f"the network namespace {self.name} exists and was not made for this instance",
                where=self.name,
                hint="inspect it with `ip netns exec`",
            )

    def by_hand(self) -> str:
        return f"ip netns del {self.name}"

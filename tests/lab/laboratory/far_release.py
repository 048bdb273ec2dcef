"""`ktrdr-vm` of a far end that has another release."""

from __future__ import annotations

from ktrdr_vm.cli.main import main
from ktrdr_vm.places import relay

if __name__ == "__main__":
    vars(relay)["version"] = lambda _name: "99.1.0"
    main()

"""Where `egress.child_main` was: a guard that an earlier version started begins its children by this name. For one
release."""

from ktrdr_vm.egress.child_main import main as main

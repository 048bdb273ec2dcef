"""Where `egress.expiry` was: a guard that an earlier version started begins its children by this name. For one
release."""

from ktrdr_vm.egress.expiry import main as main

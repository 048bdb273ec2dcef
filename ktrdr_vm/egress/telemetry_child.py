"""Where `egress.telemetry.child` was: a guard that an earlier version started begins its children by this name. For one
release."""

from ktrdr_vm.egress.telemetry.child import main as main

"""Where `approvals.loans` was: a guard that an earlier version started begins its children by this name. For one release."""

from ktrdr_vm.approvals.loans import main as main

"""The former name of `approvals.loans`, with which a guard of an earlier version starts its children. For one
release."""

from ktrdr_vm.approvals.loans import main as main

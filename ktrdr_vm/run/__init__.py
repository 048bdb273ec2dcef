"""One run: its VMs in their order, the workload, the gates, the evidence, the teardown, the report.

Public: `run.Run`, `listener.Listener`, `listener.Options`, `gates.run_gates`.
"""

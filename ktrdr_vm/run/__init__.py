"""One run: which VMs it uses in which order, the workload, the gates, the evidence, the end, the report.

Public: `run.Run`, `listener.Listener`, `listener.Options`, `gates.run_gates`.
"""

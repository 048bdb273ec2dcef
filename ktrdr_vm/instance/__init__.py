"""One instance on this host: its resources, created forward and removed backward, and its journal.

Public: `instance.Instance`, `inventory.find_instances`, `garbage.collect_garbage`, `suspend.suspend`,
`snapshot.take_snapshot`.
"""

"""One instance on this host: its resources made forward and removed backward, with the journal between.

Public: `instance.Instance`, `inventory.find_instances`, `garbage.collect_garbage`, `suspend.suspend`, `snapshot.take_snapshot`.
"""

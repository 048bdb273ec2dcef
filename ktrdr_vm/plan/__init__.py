"""The plan and a pure renderer for each document: domain XML, cloud-init, nftables, HAProxy.

Public: `plan.Plan`, `facts.Facts`, `changes.find_changes`. Uses no disk, clock, network or randomness.
"""

"""The plan and a pure renderer for each document: domain XML, cloud-init, nftables, HAProxy.

Public: `plan.Plan`, `facts.Facts`, `changes.find_changes`. Touches no disk, clock, network or chance.
"""

"""Answers to escalations, applied to a running instance: grants, secrets, and hot-plugged mounts, vCPUs and memory.

Public: `apply.approve`, `apply.deny`, `apply.revoke_approval`, `apply.reapply`, `loans.add_loan`.
"""

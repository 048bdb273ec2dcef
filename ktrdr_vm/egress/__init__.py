"""The guard, a process of its own that carries and records every byte that leaves: resolver, proxy, grants, ledger.

Public: `client.GuardClient`, `ledger.read_ledger`,
`connection_check.judge_connection`; `guard.main` is a program.
"""

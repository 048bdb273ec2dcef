"""The guard, a separate process that opens and records every outbound connection: resolver, proxy, grants, ledger.

Public: `client.GuardClient`, `ledger.read_ledger`,
`connection_check.judge_connection`; `guard_main.main` is a program.
"""

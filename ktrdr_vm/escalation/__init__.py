"""Escalations: the typed packet by which the workload asks for more, its inbox, its store, and the one decision about
it.

Public: `packet.Packet`, `store.EscalationStore`, `decision.check_request`, `inbox.run_inbox`. It cannot act:
`approvals` does.
"""

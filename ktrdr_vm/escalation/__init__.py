"""Escalations: the typed packet by which the workload asks for more, its inbox, and the owner's line."""

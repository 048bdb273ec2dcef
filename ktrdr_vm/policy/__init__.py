"""The owner's policy: what no profile, preset or grant may go beyond.

Public: `owner_policy.OwnerPolicy`, `owner_policy.check_policy`, `load.read_policy`.
"""

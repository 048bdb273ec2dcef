"""The owner's policy: the limits of every profile, preset and grant.

Public: `owner_policy.OwnerPolicy`, `owner_policy.check_policy`, `load.read_policy`.
"""

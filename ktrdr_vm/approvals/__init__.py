"""Answers to escalations, applied to a living instance: grants, secrets, and what is hot-plugged for a time.

Public: `apply.approve`, `apply.deny`, `apply.take_back`, `apply.give_again`, `loans.lend`.
"""

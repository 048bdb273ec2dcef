"""The results of a run as data, and their forms: JSON, JUnit, HTML, text. Reads its own templates only.

Public: `model.RunReport`, `mask.mask_values`, `ledger_row.parse_row`, `egress_summary.sum_up_egress`.
"""

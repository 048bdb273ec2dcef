"""The state of this host: the checks of doctor, the rows of list, Prometheus metrics.

Public: `doctor.check_host`, `overview.list_rows`, `metrics.render_metrics`.
"""

"""Places: where runs happen: this host, another host over SSH, or a Slurm cluster, each with requests and attempts as
folders.

Public: `model.Place`, `pack.pack_request`, `request.Request`, `spool.Spool`, `far_end.FarEnd`, `open.open_place`,
`attempt.run_request`.
"""

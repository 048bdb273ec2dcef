"""What a run is made from, gathered before the plan: profile, references, playbooks, the repository, facts of the host.

Public: `resolve.gather`, `from_run.gather_run`, `from_commits.make_fresh`, `from_ref.gather_ref`.
"""

"""Every name in a spool, the folder of the requests at a place.

requests/<request_id>/
  request.json, workspace.bundle, …   the request, complete when its folder has this name; see request.py
  started.json                        who was asked to run it: a process, or a job of the scheduler
  cancel                              it is to be cancelled
  outcome.json                        it ended without an attempt: it was cancelled while it waited
  output.log                          what the program printed
  attempts/<n>/                       see attempt.py
incoming/<request_id>/                a request that is being received
batches/<request_id>/<k>              links to the requests of one array
bundles/<sha256>[.part]               bundles of history, which requests have as hard links; see kept_bundles.py
"""

from __future__ import annotations

REQUESTS = "requests"
INCOMING = "incoming"
BATCHES = "batches"
BUNDLES = "bundles"
# In the folder of a request.
ATTEMPTS = "attempts"
STARTED = "started.json"
CANCEL = "cancel"
# In the folder of an attempt, and the first also in that of a request.
OUTCOME = "outcome.json"
LEASE = "lease.jsonl"
EVENTS = "events.jsonl"
LEDGER = "egress.jsonl"
RUN = "run/"
COMMITS = "commits.bundle"

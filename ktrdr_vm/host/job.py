"""The job of a scheduler to which a process, and the instances that it creates, belong."""

from __future__ import annotations

import os
import re

from ktrdr_vm.errors import UsageError

_JOB = re.compile(r"slurm:[0-9]{1,12}")


def parse_job(word: str) -> str:
    """The job that owns an instance, as `slurm:ID`. UsageError for anything else."""
    if _JOB.fullmatch(word):
        return word
    raise UsageError(
        f"{word!a:.60} is not a job", where="--owner", hint="name it as slurm:ID, such as slurm:$SLURM_JOB_ID"
    )


def find_job() -> str:
    """The job of a scheduler that this process belongs to; empty outside of one."""
    job = f"slurm:{os.environ.get('SLURM_JOB_ID', '')}"
    return job if _JOB.fullmatch(job) else ""

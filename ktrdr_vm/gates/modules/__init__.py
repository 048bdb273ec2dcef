"""The modules a task can call, by their short names. `include_tasks` is part of the runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ktrdr_vm.gates.modules.base import Call, Host, ModuleFailure, Result
from ktrdr_vm.gates.modules.commands import run_command, run_script, run_shell
from ktrdr_vm.gates.modules.compose import run_compose
from ktrdr_vm.gates.modules.control import run_assert, run_debug, run_fail, run_pause, run_set_fact
from ktrdr_vm.gates.modules.files import run_copy, run_fetch, run_file, run_stat, run_template
from ktrdr_vm.gates.modules.git import run_git
from ktrdr_vm.gates.modules.network import run_uri, run_wait_for

__all__ = ["RUN", "Call", "Host", "ModuleFailure", "Result"]

RUN: Mapping[str, Callable[[Call], Result]] = {
    "assert": run_assert,
    "command": run_command,
    "copy": run_copy,
    "debug": run_debug,
    "docker_compose_v2": run_compose,
    "fail": run_fail,
    "fetch": run_fetch,
    "file": run_file,
    "git": run_git,
    "pause": run_pause,
    "script": run_script,
    "set_fact": run_set_fact,
    "shell": run_shell,
    "stat": run_stat,
    "template": run_template,
    "uri": run_uri,
    "wait_for": run_wait_for,
}

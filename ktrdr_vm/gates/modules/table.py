"""The modules a task can call, by their short names. Includes, imports and `meta` are part of the runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ktrdr_vm.gates.modules.base import Call, Result
from ktrdr_vm.gates.modules.commands import run_command, run_script, run_shell
from ktrdr_vm.gates.modules.compose import run_compose
from ktrdr_vm.gates.modules.control import run_assert, run_debug, run_fail, run_pause, run_set_fact
from ktrdr_vm.gates.modules.edits import run_find, run_get_url, run_lineinfile, run_replace, run_setup, run_slurp
from ktrdr_vm.gates.modules.files import run_copy, run_fetch, run_file, run_stat, run_template
from ktrdr_vm.gates.modules.git import run_git
from ktrdr_vm.gates.modules.network import run_uri, run_wait_for
from ktrdr_vm.gates.modules.packages import run_apt, run_package
from ktrdr_vm.gates.modules.pip import run_pip
from ktrdr_vm.gates.modules.services import run_service

RUN: Mapping[str, Callable[[Call], Result]] = {
    "apt": run_apt,
    "assert": run_assert,
    "command": run_command,
    "copy": run_copy,
    "debug": run_debug,
    "docker_compose_v2": run_compose,
    "fail": run_fail,
    "fetch": run_fetch,
    "find": run_find,
    "get_url": run_get_url,
    "lineinfile": run_lineinfile,
    "package": run_package,
    "pip": run_pip,
    "replace": run_replace,
    "service": run_service,
    "setup": run_setup,
    "slurp": run_slurp,
    "systemd": run_service,
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

"""The facts that a gate may use, and the variables of Ansible that the runner sets itself. The guest's part is
`guest_side/facts.py`."""

from __future__ import annotations

import re

FACTS = frozenset(
    "architecture date_time default_ipv4 distribution distribution_major_version distribution_release"
    " distribution_version env hostname kernel machine memfree_mb memtotal_mb nodename os_family pkg_mgr"
    " processor_cores processor_count processor_vcpus python python_version service_mgr swaptotal_mb system"
    " uptime_seconds user_dir user_gecos user_gid user_id user_shell user_uid".split()
)

# Variables of the runner, which are no facts.
MAGIC = frozenset(
    "ansible_check_mode ansible_diff_mode ansible_facts ansible_failed_result ansible_failed_task ansible_index_var"
    " ansible_loop_var ansible_managed ansible_play_name ansible_role_name ansible_version".split()
)

# Variables of Ansible that are not supported, each with what to do.
REFUSED = dict.fromkeys(
    "hostvars groups group_names ansible_play_hosts ansible_play_hosts_all ansible_play_batch inventory_dir"
    " inventory_file ansible_inventory_sources play_hosts".split(),
    "a gate has one host and no inventory; use `vars` or the profile's `vars`",
) | {
    "ansible_user": "use ansible_facts.user_id",
    "ansible_host": "a gate runs in the guest; use 127.0.0.1",
    "ansible_search_path": "use playbook_dir or role_path",
    "ansible_loop": "use `loop_control: {index_var: …}`",
    "template_path": "write the name",
    "vars": "name the variables one by one",
}


# Variables by which Ansible connects, becomes another user and finds programs. A gate does not read them.
_SETTINGS = re.compile(
    "ansible_(?:become|become_.+|connection|host|port|user|password|private_key_file|python_interpreter|pipelining"
    "|remote_tmp|remote_user|async_dir|ssh_.+|shell_.+|paramiko_.+|docker_.+|command_timeout|timeout)"
)


# Names that a template cannot ask for: Jinja2 reads them as values and operators.
_WORDS = frozenset("true false none True False None not self super caller loop varargs kwargs".split())
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def is_variable(name: object) -> bool:
    """True for what can be the name of a variable, as in Ansible: ASCII, and no word of the language of templates."""
    return isinstance(name, str) and _VARIABLE.fullmatch(name) is not None and name not in _WORDS


def refuse_setting(name: str) -> str:
    """Why a playbook may not set a variable that would change how Ansible runs a task, or an empty text."""
    if _SETTINGS.fullmatch(name) is None:
        return ""
    advice = "use `become`, or `command: sudo -u USER …`" if "become" in name else "remove it"
    return f"the variable {name!r} has no effect here; {advice}"


def refuse_name(name: str, keys: set[str], defined: set[str]) -> str:
    """Why a variable of Ansible is not supported, or an empty text. `keys` are taken from it, `defined` are the
    playbook's own."""
    if name in defined:
        return ""
    if name in REFUSED:
        return f"the variable {name!r} is not supported: {REFUSED[name]}"
    if name == "ansible_failed_task" and keys - {"name"}:
        return "of 'ansible_failed_task' only `ansible_failed_task.name` is supported"
    if name == "ansible_facts":
        unknown = sorted(keys - FACTS)
        if "" in unknown:
            return "ansible_facts can only be used with the literal name of a fact, such as ansible_facts.distribution"
        return _unknown(f"ansible_facts.{unknown[0]}") if unknown else ""
    if name.startswith("ansible_") and name not in MAGIC and name.removeprefix("ansible_") not in FACTS:
        return _unknown(name)
    return ""


def is_fact(name: str) -> bool:
    return name == "ansible_facts" or (name.startswith("ansible_") and name.removeprefix("ansible_") in FACTS)


def _unknown(name: str) -> str:
    return (
        f"the fact {name!r} is not supported: docs/playbooks.md lists those that are; run a command in the guest and"
        " register its output"
    )

"""OpenSSH settings of an instance, and of programs that call OpenSSH: its own key and its pinned host key, and nothing
of the person's configuration."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from ktrdr_vm.instance.allocation import publish_keys
from ktrdr_vm.instance.loaded import LoadedInstance
from ktrdr_vm.plan.facts import STOCK_USER
from ktrdr_vm.users import in_user_namespace


def make_ssh_options(loaded: LoadedInstance) -> dict[str, str]:
    """OpenSSH's options by name. Nothing is forwarded, and no agent is used."""
    paths, name = loaded.paths, loaded.instance_id
    if not paths.known_hosts.exists():
        publish_keys(paths)
    return {
        "HostName": name,
        "HostKeyAlias": name,
        **_make_options(paths.home, name, paths.known_hosts, paths.login_key, loaded.plan.facts.image.user),
    }


def make_wildcard_options(home: Path) -> dict[str, str]:
    """The same for `Host *.ktrdr`: every instance of a state directory whose image has the usual user, later ones
    included."""
    keys = home / "ssh/%n"
    return _make_options(home, "'%n'", keys / "known_hosts", keys / "login_key", STOCK_USER)


def _make_options(home: Path, name: str, known_hosts: Path, login_key: Path, user: str) -> dict[str, str]:
    return {
        "ProxyCommand": f"{_find_program(home)} proxy --pass-descriptor {name}",
        # OpenSSH takes the connection over, so that no other process carries its data.
        "ProxyUseFdpass": "yes",
        "User": user,
        "UserKnownHostsFile": str(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "IdentityFile": str(login_key),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        # A VM that has ended closes no connection: its commands end after a minute instead of hours.
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
        "LogLevel": "ERROR",
    }


def _find_program(home: Path) -> str:
    """This program, as words for a shell. In a world they contain the state directory, by which the world is found."""
    script = Path(sys.executable).with_name("ktrdr-vm")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "ktrdr_vm"]
    return shlex.join(["env", f"KTRDR_VM_HOME={home}", *words] if in_user_namespace() else words)


def make_inventory_host(options: Mapping[str, str]) -> dict[str, str]:
    """Ansible's variables of a host. Ansible calls OpenSSH, so all other options are passed to it unchanged."""
    own = ("HostName", "User", "IdentityFile")
    rest = [f"-o {shlex.quote(f'{name}={value}')}" for name, value in options.items() if name not in own]
    return {
        "ansible_host": options["HostName"],
        "ansible_user": options["User"],
        "ansible_ssh_private_key_file": options["IdentityFile"],
        "ansible_ssh_common_args": " ".join(["-F /dev/null", *rest]),
    }

"""Sources of the values of secrets on the host: a variable, a file or a command that the owner's policy allows."""

from __future__ import annotations

import os

from ktrdr_vm.egress.delivered_values import MAX_BYTES
from ktrdr_vm.errors import HostError, UsageError, keep_end
from ktrdr_vm.host import process
from ktrdr_vm.host.owner import find_login, find_owner
from ktrdr_vm.profile.model import Secret as SecretEntry

COMMAND_LIMIT = 60.0
_CLIENT_VARIABLES = (
    "HOME",
    "USER",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "SSH_AUTH_SOCK",
    "VAULT_ADDR",
)


def read_source(entry: SecretEntry) -> bytes:
    """The value from its source on the host, read once, before anything is created. It is hidden wherever calls of
    programs are shown."""
    value = _read(entry)
    process.hide_secret(value)
    return value


def _read(entry: SecretEntry) -> bytes:
    if entry.command:
        return _ask_command(entry)
    if entry.env:
        value = os.environb.get(entry.env.encode())
        if not value:
            raise UsageError(
                f"the variable {entry.env} of the secret {entry.name} is not set",
                where="secrets",
                hint="set it; under sudo, name it with --preserve-env",
            )
        _require_size(entry, value, entry.env)
        return value
    try:
        descriptor = os.open(entry.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            value = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise HostError(
            f"the secret {entry.name} cannot be read: {error.strerror}",
            where=entry.file,
            hint="see secrets.files in the owner's policy",
        ) from None
    _require_size(entry, value, entry.file)
    return value


def _require_size(entry: SecretEntry, value: bytes, where: str) -> None:
    """HostError for an empty value and for one that is too large: a truncated key would be delivered as if it were
    whole."""
    if not value or len(value) > MAX_BYTES:
        raise HostError(
            f"the secret {entry.name} is {'empty' if not value else f'larger than {MAX_BYTES >> 10} KiB'}",
            where=where,
            hint="a secret is a value, such as a token or a key; use a mount for larger files",
        )


def _ask_command(entry: SecretEntry) -> bytes:
    """The output of a command, such as the client of a vault. It runs as the person who calls, with the variables of
    the person that such clients need."""
    owner = find_owner()
    environment = {name: os.environ[name] for name in _CLIENT_VARIABLES if name in os.environ} | find_login(owner[0])
    done = process.run(
        list(entry.command),
        timeout=COMMAND_LIMIT,
        environment=environment,
        check=False,
        owner=owner,
    )
    value = done.stdout.rstrip(b"\n")
    if done.exit_code != 0 or not value or len(value) > MAX_BYTES:
        raise HostError(
            f"the command of the secret {entry.name} ended with {done.exit_code} and {len(value)} bytes:"
            f" {keep_end(done.error_text, 200)}",
            where=entry.command[0],
            hint="run it by hand as the same user; it must print the value and nothing else",
        )
    return value

"""The values of secrets that a client sends: over the connection into the memory of the program that runs the request,
and never to a file, an argument or an environment."""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ktrdr_vm.errors import DocumentError, KtrdrError, UsageError
from ktrdr_vm.host import process
from ktrdr_vm.inputs.resolve import read_profile
from ktrdr_vm.instance.secret_sources import read_source
from ktrdr_vm.places.request import FILES, Request
from ktrdr_vm.policy.load import read_policy
from ktrdr_vm.policy.owner_policy import refuse_secret
from ktrdr_vm.profile.load import LoadedProfile
from ktrdr_vm.profile.model import Secret

Values = Mapping[str, bytes]
# Of all requests of one message, and the most that a pipe holds for an ordinary user.
MAX_VALUES = 512 * 1024
_HINT = "name a secret of the profile that has a `broker`; others come from a source of the place"


def check_sent(loaded: LoadedProfile, names: Sequence[str]) -> None:
    """UsageError unless each name is that of a brokered secret: only its value stays outside of the guest."""
    brokered = {secret.name for secret in loaded.profile.secrets if secret.broker is not None}
    for name in names:
        if name not in brokered:
            raise UsageError(
                f"the secret {name!a:.80} cannot be sent to a place: the profile has no brokered secret of that name",
                where=loaded.source,
                hint=_HINT,
            )


def read_sent(request: Request, folder: Path) -> dict[str, bytes]:
    """The values that go with a request, from their sources on this host. DocumentError if the owner's policy of this
    host refuses one."""
    if not request.sent_secrets:
        return {}
    root = folder / FILES
    loaded = read_profile(root / request.profile, root)
    problems, values, policy = [], {}, read_policy()
    for number, secret in enumerate(loaded.profile.secrets):
        if secret.name not in request.sent_secrets:
            continue
        if reason := refuse_secret(secret, policy, str(root)):
            problems.append(loaded.problem(("secrets", number, "source"), reason))
        else:
            values[secret.name] = read_source(secret)
    if problems:
        raise DocumentError(problems, hint="a value is sent only from a source that this host allows")
    return values


def require_sources(request: Request, secrets: Sequence[Secret]) -> None:
    """Refuse a request whose secrets this host does not have, and that do not come with it either."""
    for secret in secrets:
        if secret.name not in request.sent_secrets:
            try:
                read_source(secret)
            except KtrdrError as error:
                if secret.broker is not None:
                    error.hint += f"; or send it from the client with --send-secret {secret.name}"
                raise
        elif secret.broker is None:
            raise UsageError(f"the secret {secret.name} cannot be sent", where=request.request_id, hint=_HINT)


def encode_values(values: Mapping[str, Values]) -> dict[str, dict[str, str]]:
    """The values of requests, for a message. UsageError if they are too large for one."""
    if sum(len(value) for one in values.values() for value in one.values()) > MAX_VALUES:
        raise UsageError(
            f"the values of the secrets are larger than {MAX_VALUES >> 10} KiB together",
            where="--send-secret",
            hint="submit fewer references in one call",
        )
    return {
        request_id: {name: base64.b64encode(value).decode("ascii") for name, value in one.items()}
        for request_id, one in values.items()
    }


def parse_values(content: object, request: Request) -> dict[str, bytes]:
    """The values of one request. UsageError unless they are those that it names."""
    given = content if isinstance(content, dict) else {}
    if given.keys() != set(request.sent_secrets):
        raise UsageError(
            "the values of its secrets did not come with it", where=request.request_id, hint="submit it again"
        )
    try:
        values = {name: base64.b64decode(value, validate=True) for name, value in given.items()}
    except (ValueError, TypeError):
        raise UsageError("a value is not in base64", where=request.request_id, hint="submit it again") from None
    for value in values.values():
        process.hide_secret(value)
    return values


def open_pipe(values: Values) -> int:
    """The end of a pipe from which `read_pipe` reads the values in another process; the caller closes it."""
    data = json.dumps({name: base64.b64encode(value).decode("ascii") for name, value in values.items()}).encode()
    reads, writes = os.pipe()
    try:
        # All of it fits: nobody waits for the reader, and a reader that dies leaves nothing.
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, max(4096, len(data)))
        os.write(writes, data)
    except BaseException:
        os.close(reads)
        raise
    finally:
        os.close(writes)
    return reads


def read_pipe(descriptor: int, request: Request) -> dict[str, bytes]:
    """The values that `open_pipe` wrote, to the end of the pipe."""
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        data = file.read(2 * MAX_VALUES)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    return parse_values(content, request)

"""Personal files and folders, which are never shared with a sandbox, whatever the policy allows."""

from __future__ import annotations

from collections.abc import Iterable

_PERSONAL = frozenset(
    ".ssh .aws .azure .gnupg .kube .docker .dockercfg .netrc .npmrc .pypirc .pgpass .my.cnf .git-credentials"
    " .password-store .mozilla .thunderbird .config .local .cache .histfile .vault-token keyrings".split()
)
# Of shells and of interpreters, such as `.bash_history` and `.psql_history`.
_HISTORY = "_history"
# Names that projects use too. They are refused if a path names them, and allowed inside of a shared folder.
_SHARED = frozenset(".docker .npmrc .config .local .cache".split())


def find_personal(parts: Iterable[str], *, inside: bool = False) -> str:
    """The part of a path that is personal, or an empty text. `inside` is for the content of a shared folder."""
    known = _PERSONAL - _SHARED if inside else _PERSONAL
    return next(
        (part for part in parts if part.lower() in known or (part[:1] == "." and part.lower().endswith(_HISTORY))), ""
    )

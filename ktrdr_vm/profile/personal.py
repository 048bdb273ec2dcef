"""A person's own places: what never enters a sandbox, whatever any policy says and whichever way it is named."""

from __future__ import annotations

from collections.abc import Iterable

_PERSONAL = frozenset(
    ".ssh .aws .azure .gnupg .kube .docker .netrc .npmrc .pypirc .git-credentials .password-store .mozilla .thunderbird "
    ".config .local .cache .bash_history .zsh_history .vault-token keyrings".split()
)
# Names that a project has as well, for what is no person's. Named, they are refused; inside a folder that is shared they are its own.
_SHARED = frozenset(".docker .npmrc .config .local .cache".split())


def find_personal(parts: Iterable[str], *, inside: bool = False) -> str:
    """The part of a path that is a person's own place, or an empty text. `inside` is for what lies in a folder that is shared whole."""
    known = _PERSONAL - _SHARED if inside else _PERSONAL
    return next((part for part in parts if part.lower() in known), "")

"""One call of a program, and the shell command that repeats it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

# Control characters and line ends are quoted with printf, so that a call is one line.
_UNSAFE = re.compile(r"[^ -~]+")


@dataclass(frozen=True)
class ProgramCall:
    """A program as `host/process.py` calls it. `outcome` is its result, or that it is still running; `stdin_size` is in
    bytes."""

    argv: tuple[str, ...]
    cwd: Path | None = None
    user: int | None = None
    group: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin_size: int = 0
    descriptors: tuple[int, ...] = ()
    outcome: str = ""

    def masked(self, mask: Callable[[str], str]) -> ProgramCall:
        """The same call with all words masked. This is done before quoting, which would change a secret."""
        return replace(
            self,
            argv=tuple(map(mask, self.argv)),
            cwd=None if self.cwd is None else Path(mask(str(self.cwd))),
            environment={name: mask(value) for name, value in self.environment.items()},
            outcome=mask(self.outcome),
        )

    def render_shell(self) -> str:
        """One line of POSIX shell, which the same user can paste; a comment names omitted parts and the result."""
        words = list(self.argv)
        if self.environment:
            words = ["env", *(f"{name}={value}" for name, value in sorted(self.environment.items())), *words]
        if self.user is not None:
            group = self.user if self.group is None else self.group
            words = ["setpriv", f"--reuid={self.user}", f"--regid={group}", "--clear-groups", *words]
        line = " ".join(map(quote, words))
        if self.cwd is not None:
            line = f"(cd {quote(str(self.cwd))} && {line})"
        notes = [self.outcome] if self.outcome else []
        if self.stdin_size:
            notes.append(f"{self.stdin_size} bytes of standard input not shown")
        if self.descriptors:
            notes.append(f"requires the file descriptors {' '.join(map(str, self.descriptors))}")
        return f"{line}  # {_UNSAFE.sub('?', '; '.join(notes))}" if notes else line


def quote(word: str) -> str:
    """The word for a POSIX shell in printable ASCII, except line ends at its end, which `$(...)` would cut off."""
    if not _UNSAFE.search(word):
        return shlex.quote(word)
    body = word.rstrip("\n")
    ends = f"'{word[len(body) :]}'" if body != word else ""
    # In the operand of %b an octal escape begins with \0.
    octal = "".join(
        chr(byte) if 32 <= byte <= 126 and byte not in b"\\'" else f"\\0{byte:03o}"
        for byte in body.encode("utf-8", "surrogateescape")
    )
    return f"\"$(printf %b '{octal}')\"{ends}"

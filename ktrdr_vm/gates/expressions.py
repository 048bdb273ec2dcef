"""Regular expressions of a playbook, on text of a guest. They run in the process that renders templates, which can be
killed."""

from __future__ import annotations

import re
from typing import Any, Literal

from ktrdr_vm.gates.bounds import TemplateError

MAX_PATTERN = 1_000
# Maximal characters of a result.
MAX_ANSWER = 4 * 1024 * 1024


def evaluate(
    verb: Literal["search", "match", "findall", "sub"],
    pattern: Any,
    subject: str,
    flags: int = 0,
    replacement: str = "",
    count: int = 0,
) -> Any:
    """`search` and `match`: the groups by number and by name, or None. `findall`: a list. `sub`: a text and the number
    of replacements.

    TemplateError for an invalid expression or a result over the limit.
    """
    text = str(pattern)
    if len(text) > MAX_PATTERN:
        raise TemplateError(f"a regular expression is longer than {MAX_PATTERN} characters")
    try:
        compiled = re.compile(text, flags)
        if verb in ("search", "match"):
            found = compiled.search(subject) if verb == "search" else compiled.match(subject)
            return found and {"groups": [found.group(), *found.groups()], "names": found.groupdict()}
        if verb == "findall":
            answer, size = [], 0
            for hit in compiled.finditer(subject):
                groups = hit.groups(default="")
                answer.append(hit.group() if not groups else groups[0] if len(groups) == 1 else list(groups))
                size += len(hit.group()) + sum(map(len, groups)) + 4
                if size > MAX_ANSWER:
                    raise TemplateError("a regular expression has too many matches")
            return answer
        references = replacement.count("\\")
        # A reference may insert the subject at every match, so the worst case is bounded.
        if (
            sum(1 for _hit in compiled.finditer(subject)) * (len(replacement) + references * len(subject))
            > 16 * MAX_ANSWER
        ):
            raise TemplateError("the result of a regular expression would be too large")
        return compiled.subn(replacement, subject, count=count)
    except (re.error, IndexError, RecursionError, OverflowError, MemoryError) as error:
        raise TemplateError(f"not a regular expression: {error}") from None

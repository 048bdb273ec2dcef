"""One regular expression on one text. Also a program, which knows Python alone: the request is JSON on its standard input."""

from __future__ import annotations

import json
import re
import resource
import sys
from typing import Any

# What an answer may hold, in characters.
MAX_ANSWER = 4 * 1024 * 1024
_MEMORY = 1 << 30


def evaluate(verb: str, pattern: str, subject: str, flags: int, replacement: str = "") -> Any:
    """`search` and `match`: the groups by number and by name, or None. `findall`: a list. `sub`: a text.

    ValueError says what is wrong with the expression, or that the answer would be too large.
    """
    try:
        compiled = re.compile(pattern, flags)
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
                    raise ValueError("finds too much")
            return answer
        references = replacement.count("\\")
        # A reference may insert the subject at every place, so the worst case is what is bounded.
        if sum(1 for _hit in compiled.finditer(subject)) * (len(replacement) + references * len(subject)) > 16 * MAX_ANSWER:
            raise ValueError("the result would be too large")
        return compiled.sub(replacement, subject)
    except (re.error, IndexError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"not a regular expression: {error}") from None


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        answer = {"answer": evaluate(**json.load(sys.stdin))}
    except ValueError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

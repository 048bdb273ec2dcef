"""Rendering templates in a process that can be killed, so that no expression blocks the runner or exhausts its
memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ktrdr_vm.gates.bounds import TemplateError
from ktrdr_vm.gates.template_values import decode_value, encode_value
from ktrdr_vm.gates.templating import Scope
from ktrdr_vm.host import process

# Seconds of CPU time of one template.
CPU_LIMIT = 5.0
# Seconds of wall time, which is longer than CPU time on a busy host.
_LIMIT = 60.0
# Limit of a message in either direction. Registered results and rendered templates are bounded too.
_MAX_MESSAGE = 256 * 1024 * 1024
# Paths of the host that one template may test.
_MAX_PATHS = 100
_NOBODY = 65534
_WORD = re.compile(r"[A-Za-z_]\w*")


class Renderer(Protocol):
    """The interface to templates for gates. All methods raise TemplateError."""

    def render(self, value: Any, scope: Scope, *, shown: bool = False) -> Any: ...
    def render_file(self, text: str, scope: Scope, *, trim_blocks: bool = True, lstrip_blocks: bool = False) -> str: ...
    def condition(self, expression: Any, scope: Scope) -> bool: ...


class IsolatedRenderer:
    """A `Renderer` whose process is started with the first template, and again after it was killed. Use it in a `with`
    block."""

    def __init__(self, cpu_limit: float = CPU_LIMIT) -> None:
        self._cpu_limit = cpu_limit
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IsolatedRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def render(self, value: Any, scope: Scope, *, shown: bool = False) -> Any:
        return self._ask("render", value, scope, shown=shown) if _has_template(value) else value

    def render_file(self, text: str, scope: Scope, *, trim_blocks: bool = True, lstrip_blocks: bool = False) -> str:
        return str(self._ask("file", text, scope, trim_blocks=trim_blocks, lstrip_blocks=lstrip_blocks))

    def condition(self, expression: Any, scope: Scope) -> bool:
        if isinstance(expression, bool):
            return expression
        return expression is None or expression == "" or bool(self._ask("condition", expression, scope))

    def _ask(self, verb: str, value: Any, scope: Scope, **options: bool) -> Any:
        layers = [[encode_value(layer), is_template] for layer, is_template in pick_layers(value, scope)]
        paths: dict[str, str] = {}
        for _ in range(_MAX_PATHS):
            reply = self._request(
                {"verb": verb, "value": encode_value(value), "layers": layers, "options": options, "paths": paths}
            )
            wanted = reply.get("path")
            if not isinstance(wanted, str) or wanted in paths or scope.probe is None:
                break
            paths[wanted] = scope.probe(wanted)
        if "value" not in reply:
            raise TemplateError(str(reply.get("error", f"a template tests more than {_MAX_PATHS} paths")))
        return decode_value(reply["value"])

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(request).encode()
        if len(data) > _MAX_MESSAGE:
            raise TemplateError(f"a template and its variables are larger than {_MAX_MESSAGE >> 20} MiB")
        worker = self._start()
        try:
            reply: dict[str, Any] = json.loads(_exchange(worker, data, time.monotonic() + _LIMIT))
        except (OSError, ValueError, EOFError, TimeoutError):
            self._end()
            raise TemplateError(f"a template exceeds {self._cpu_limit:g} s of CPU time or its memory limit") from None
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            uid = str(_NOBODY if os.geteuid() == 0 else 0)
            pipes = process.Streams(subprocess.PIPE, subprocess.PIPE)
            self._worker = process.start_module(
                "ktrdr_vm.gates.template_worker", [uid, str(self._cpu_limit)], streams=pipes
            )
            assert self._worker.stdin is not None
            os.set_blocking(self._worker.stdin.fileno(), False)
        return self._worker

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def pick_layers(value: Any, scope: Scope) -> Iterator[tuple[dict[str, Any], bool]]:
    """The variables of the scope that the value may use, directly or through other variables."""
    wanted, waiting = set[str](), list(_find_words(value))
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        wanted.add(name)
        found = scope.find(name)
        if found is not None and found[1]:
            waiting += _find_words(found[0])
    for layer, is_template in scope.layers:
        yield {name: layer[name] for name in wanted if name in layer}, is_template


def _find_words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _WORD.findall(value)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _find_words(key)
            yield from _find_words(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _find_words(one)


def _has_template(value: Any) -> bool:
    if isinstance(value, str):
        return "{{" in value or "{%" in value or "{#" in value
    if isinstance(value, Mapping):
        return any(_has_template(key) or _has_template(one) for key, one in value.items())
    return isinstance(value, list | tuple) and any(_has_template(one) for one in value)


def _exchange(worker: subprocess.Popen[bytes], data: bytes, end: float) -> bytes:
    """Send one message and read one, within the time limit. EOFError if the process has ended, TimeoutError if it does
    not answer."""
    assert worker.stdin is not None and worker.stdout is not None
    out, answers = worker.stdin.fileno(), worker.stdout.fileno()
    left = memoryview(len(data).to_bytes(4, "big") + data)
    while left:
        _wait(end, writing=out)
        left = left[os.write(out, left[: 1 << 20]) :]
    reply = bytearray()
    while len(reply) < 4 or len(reply) < 4 + int.from_bytes(reply[:4], "big"):
        _wait(end, reading=answers)
        piece = os.read(answers, 1 << 20)
        if not piece:
            raise EOFError
        reply += piece
        if len(reply) > _MAX_MESSAGE:
            raise ValueError("too long")
    return bytes(reply[4:])


def _wait(end: float, *, reading: int = -1, writing: int = -1) -> None:
    ready = select.select(
        [reading] if reading >= 0 else [], [writing] if writing >= 0 else [], [], max(0.0, end - time.monotonic())
    )
    if not any(ready):
        raise TimeoutError

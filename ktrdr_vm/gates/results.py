"""Conversion of registered results to rows of the report: masked, limited, with one message."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ktrdr_vm.errors import keep_beginning, keep_end
from ktrdr_vm.gates.model import Task
from ktrdr_vm.report.model import Attachment, TaskOutcome, TaskResult

MAX_STREAM = 64 * 1024
MAX_MESSAGE = 4 * 1024
MAX_NAME = 300
MAX_EVIDENCE = 32 * 1024


def cap(text: str, limit: int) -> str:
    """A long text without its middle: the beginning and a longer part of the end, which usually contains the reason."""
    # Text of a guest can have parts that are not UTF-8, which no document of the report can contain.
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n[... {len(text) - limit} characters omitted ...]\n{text[-(limit - head) :]}"


def plain_text(value: Any) -> str:
    """A value of a playbook as text: text as it is, everything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return "(a value that cannot be shown)"


def find_message(module: str, result: Mapping[str, Any]) -> str:
    """The message in one line, including whether the output was cut."""
    message = _find_message(module, result)
    if result.get("truncated") is not True:
        return message
    return f"{message}{'; ' if message else ''}the output was cut at 1 MiB"


def hide_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a task with `no_log`, for the report: what it says is left out."""
    kept = {key: result[key] for key in ("changed", "failed", "skipped", "attempts") if key in result}
    return kept | {"msg": "the output is hidden, because the task has `no_log: true`"}


def _find_message(module: str, result: Mapping[str, Any]) -> str:
    message = plain_text(result.get("msg"))
    if result.get("skipped") and "false_condition" in result:
        return f"when: {plain_text(result['false_condition'])}"
    if result.get("skipped") and not message:
        message = plain_text(result.get("skipped_reason"))
    if result.get("failed"):
        if message == "non-zero return code":
            last = _last_line(result.get("stderr")) or _last_line(result.get("stdout"))
            message = f"non-zero return code {result.get('rc')}{': ' + last if last else ''}"
        if result.get("failed_when_result") is True:
            message = f"failed_when is true{': ' + message if message else ''}"
        if "assertion" in result:
            message = f"{message}: {plain_text(result['assertion'])}"
        if "until_failed" in result:
            message = (
                f"not reached after {result.get('attempts', 'all')} retries: until"
                f" {plain_text(result['until_failed'])}; {message}"
            )
        return message or "failed"
    if module == "debug" and "msg" not in result:
        return plain_text({key: value for key, value in result.items() if key not in ("changed", "failed")})
    return message


def _last_line(value: Any) -> str:
    """The last line that is not empty, in which most programs report their error."""
    lines = [line.strip() for line in keep_end(plain_text(value), 4000).splitlines()]
    last = next((line for line in reversed(lines) if any(character.isalnum() for character in line)), "")
    return keep_beginning(last, 300)


def has_failed(result: Mapping[str, Any]) -> bool:
    """Whether a task failed. `failed_when` decides alone, as in Ansible, also if `until` was never true; the registered
    `failed` is true then."""
    rows = result.get("results")
    if isinstance(rows, list) and rows and all(isinstance(row, Mapping) and "ansible_loop_var" in row for row in rows):
        return any(has_failed(row) for row in rows)
    return bool(result.get("failed_when_result", result.get("failed")))


def find_outcome(result: Mapping[str, Any], *, failed: bool, ignored: bool) -> TaskOutcome:
    if failed:
        return "ignored" if ignored else "failed"
    if result.get("skipped"):
        return "skipped"
    return "changed" if result.get("changed") else "ok"


def make_task_result(
    task: Task,
    name: str,
    items: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    outcome: TaskOutcome,
    started_at: str,
    duration_s: float,
    mask: Callable[[str], str],
    evidence: Sequence[tuple[str, str]] = (),
) -> TaskResult:
    """One row of the report. `items` are the registered results: one without a label, or one for each iteration of a
    loop."""
    messages, streams = [], {"stdout": "", "stderr": ""}
    attempts = 1
    looped = len(items) > 1 or (len(items) == 1 and items[0][0] != "")
    for label, result in items:
        message = find_message(task.module, result)
        if message and (not looped or result.get("failed") or len(items) <= 20):
            messages.append(f"{label}: {message}" if looped else message)
        for stream in streams:
            text = plain_text(result.get(stream))
            if stream == "stdout" and not text and result.get("failed"):
                text = plain_text(result.get("content"))
            if text:
                streams[stream] += f"[{label}]\n{text}\n" if looped else text
        tried = result.get("attempts", 1)
        attempts = max(attempts, tried if isinstance(tried, int) else 1)
    return TaskResult(
        name=cap(mask(name), MAX_NAME),
        module=task.module,
        outcome=outcome,
        changed=outcome not in ("failed", "skipped") and any(result.get("changed") is True for _, result in items),
        started_at=started_at,
        duration_s=round(duration_s, 3),
        message=cap(mask("; ".join(messages)), MAX_MESSAGE),
        stdout=cap(mask(streams["stdout"]), MAX_STREAM),
        stderr=cap(mask(streams["stderr"]), MAX_STREAM),
        attempts=attempts,
        where=task.where,
        evidence=tuple(
            Attachment(cap(mask(title), MAX_NAME), cap(mask(text), MAX_EVIDENCE)) for title, text in evidence
        ),
    )


def add_hints(made: TaskResult, hints: Sequence[str], mask: Callable[[str], str]) -> TaskResult:
    """The row with causes of its failure added to the message."""
    return replace(made, message=cap("; ".join((made.message, *map(mask, hints))), MAX_MESSAGE)) if hints else made

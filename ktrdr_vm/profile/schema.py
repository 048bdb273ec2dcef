"""The schema of profiles and of presets, for cerberus, with the parts that the owner's policy shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ktrdr_vm.errors import Problem
from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.request_headers import parse_passed_header
from ktrdr_vm.profile.strict_yaml import Document

Schema = dict[str, Any]


def text(check: Callable[[object], object], **more: Any) -> Schema:
    """The schema of a text that `check` accepts; the message of its ValueError is that of the problem."""

    def check_with(field: str, value: object, error: Callable[[str, str], None]) -> None:
        try:
            check(value)
        except ValueError as reason:
            error(field, str(reason))

    return {"type": "string", "check_with": check_with, **more}


PORTS: Schema = {
    "type": "list",
    "minlength": 1,
    "maxlength": 64,
    "schema": {"type": "integer", "min": 1, "max": 65535, "notbool": True},
}
_GUEST_PATH = text(scalars.parse_guest_path)
_HOST_PATH = text(scalars.parse_host_path)
SIZE = text(scalars.parse_size)
_NAME: Schema = {"type": "string", "regex": "[a-z0-9][a-z0-9_.-]{0,62}"}
_SCALAR: Schema = {"type": ["string", "integer", "float", "boolean"], "nullable": True}

_METHODS: Schema = {
    "type": "list",
    "minlength": 1,
    "maxlength": 7,
    "allowed": list(scalars.METHODS),
    "schema": {"type": "string"},
}
_PATHS: Schema = {"type": "list", "minlength": 1, "maxlength": 20, "schema": text(scalars.parse_url_prefix)}
_HEADERS: Schema = {"type": "list", "minlength": 1, "maxlength": 20, "schema": text(parse_passed_header)}
_BY_ADDRESS = ["cidr", "preset"]

# An entry of the owner's ceiling.
BOUND: Schema = {
    "type": "dict",
    "schema": {
        "host": text(scalars.parse_host, excludes=["cidr", "preset"]),
        "cidr": text(scalars.parse_cidr, excludes=["host", "preset"]),
        "preset": {**_NAME, "excludes": ["host", "cidr", "ports"]},
        "ports": PORTS,
        "reason": text(scalars.parse_plain_text),
        "methods": {**_METHODS, "excludes": _BY_ADDRESS},
        "paths": {**_PATHS, "excludes": _BY_ADDRESS},
    },
    "check_with": ["one_destination", "ports_of_requests"],
}
_RULE: Schema = {
    **BOUND,
    "schema": {
        **BOUND["schema"],
        "base_url_env": {**text(scalars.parse_environment_name), "excludes": _BY_ADDRESS},
        "base_path": {**text(scalars.parse_url_prefix), "excludes": _BY_ADDRESS},
        "headers": {**_HEADERS, "excludes": _BY_ADDRESS},
    },
}
# The use of a secret that never enters the guest.
_BROKER: Schema = {
    "type": "dict",
    "excludes": ["path", "mode", "ttl"],
    "schema": {
        "host": {**text(scalars.parse_exact_host), "required": True},
        "header": {**text(scalars.parse_header_template), "required": True},
        "base_url_env": {**text(scalars.parse_environment_name), "required": True},
        "base_path": text(scalars.parse_url_prefix),
        "methods": _METHODS,
        "paths": _PATHS,
        "headers": _HEADERS,
        "after": text(scalars.parse_gate),
        "docker_mirror": {"type": "boolean"},
    },
}
_WORD = text(scalars.parse_word)
COMMAND: Schema = {"type": "list", "minlength": 1, "maxlength": 100, "schema": {**_WORD, "minlength": 1}}
_SECRET: Schema = {
    "type": "dict",
    "schema": {
        "name": {**_NAME, "required": True},
        "source": {
            "type": "dict",
            "required": True,
            "minlength": 1,
            "schema": {
                "env": text(scalars.parse_environment_name, excludes=["file", "command"]),
                "file": {**_HOST_PATH, "excludes": ["env", "command"]},
                "command": {**COMMAND, "excludes": ["env", "file"]},
            },
        },
        "path": {**_GUEST_PATH, "check_with": "secret_path"},
        "mode": text(scalars.parse_file_mode),
        "ttl": text(scalars.parse_duration),
        "broker": _BROKER,
    },
}

PROFILE: Schema = {
    "version": {"type": "integer", "allowed": [1], "required": True, "notbool": True},
    "name": {**_NAME, "required": True},
    "extends": _HOST_PATH,
    "mode": {"type": "string", "allowed": ["sandbox", "interactive"]},
    "image": {
        "type": ["string", "dict"],
        "required": True,
        "regex": "[a-z0-9][a-z0-9_.-]{0,62}",
        "schema": {
            "url": {"type": "string", "required": True, "regex": r"(https?|file)://[!#-&(-;=?-\[\]-~]{1,1000}"},
            "sha256": {"type": "string", "required": True, "regex": "[0-9a-f]{64}"},
        },
    },
    "resources": {
        "type": "dict",
        "schema": {"vcpus": {"type": "integer", "min": 1, "max": 64, "notbool": True}, "memory": SIZE, "disk": SIZE},
    },
    "workspace": {
        "type": "dict",
        "schema": {
            "source": _HOST_PATH,
            "target": _GUEST_PATH,
            "transfer": {"type": "string", "allowed": ["copy", "mount"]},
            "uncommitted": {"type": "string", "allowed": ["include", "refuse", "ignore"]},
            "include": {"type": "list", "maxlength": 100, "schema": _HOST_PATH},
        },
    },
    "mounts": {
        "type": "list",
        "maxlength": 16,
        "schema": {
            "type": "dict",
            "schema": {
                "source": {**_HOST_PATH, "required": True},
                "target": {**_GUEST_PATH, "required": True},
                "readonly": {"type": "boolean"},
            },
        },
    },
    "egress": {
        "type": "dict",
        "nullable": True,
        "schema": {
            "allow": {"type": "list", "nullable": True, "maxlength": 500, "schema": _RULE},
            "mode": {"type": "string", "allowed": ["enforce", "observe"]},
        },
    },
    "secrets": {"type": "list", "maxlength": 50, "schema": _SECRET},
    "environment": {
        "type": "dict",
        "maxlength": 200,
        "keysrules": text(scalars.parse_environment_name),
        "valuesrules": {**_SCALAR, "nullable": False},
    },
    "telemetry": {"type": "dict", "schema": {"otlp": {"type": "boolean"}}},
    "workload": {
        "type": "dict",
        "schema": {
            "command": {
                "type": "list",
                "required": True,
                "minlength": 1,
                "maxlength": 1000,
                "schema": _WORD,
            },
            "timeout": text(scalars.parse_duration),
        },
    },
    "prepare": {
        "type": "dict",
        "schema": {
            "playbook": {**text(scalars.parse_gate), "required": True},
            "key": {
                "type": "list",
                "required": True,
                "minlength": 1,
                "maxlength": 50,
                "schema": text(scalars.parse_gate),
            },
        },
    },
    "verify": {"type": "string", "allowed": ["fresh", "same"]},
    "gates": {"type": "list", "maxlength": 50, "schema": text(scalars.parse_gate)},
    "gate_timeout": text(scalars.parse_duration),
    "vars": {
        "type": "dict",
        "maxlength": 200,
        "keysrules": {"type": "string", "regex": "[a-zA-Z_][a-zA-Z0-9_]{0,63}"},
        "valuesrules": _SCALAR,
    },
    "artifacts": {"type": "list", "maxlength": 100, "schema": _GUEST_PATH},
    "ttl": text(scalars.parse_duration),
}

# A list in profiles/egress/, which `{preset: name}` names.
PRESET: Schema = {
    "version": {"type": "integer", "allowed": [1], "required": True, "notbool": True},
    "name": {**_NAME, "required": True},
    "description": text(scalars.parse_plain_text, required=True),
    "allow": {
        "type": "list",
        "required": True,
        "minlength": 1,
        "maxlength": 100,
        "schema": {
            "type": "dict",
            "schema": {
                "host": text(scalars.parse_host, required=True),
                "ports": PORTS,
                "reason": text(scalars.parse_plain_text),
            },
        },
    },
}


def check_shape(document: Document, schema: Schema) -> list[Problem]:
    """All violations of the schema in the document, with their places."""
    if not isinstance(document.data, dict):
        return [document.problem((), "must be a mapping of keys and values")]
    # Imported with the first document, because commands on existing instances do not need it.
    from ktrdr_vm.profile.validator import validate

    problems, wrong = [], set()
    for path, message in validate(document.data, schema):
        if message == "unknown key":
            message = _unknown(path, schema)
        wrong.add(path)
        problems.append(document.problem(path, message, at_key=message.startswith("unknown")))
    for path, written in document.written.items():
        # YAML 1.1 has octal numbers: port 0443 would be 291. A variable can be text as well, which its own check says.
        if path not in wrong and path[:1] != ("vars",):
            message = (
                f"the number {written} is {find_value(document.data, path)} in YAML 1.1; write it in plain decimal"
            )
            problems.append(document.problem(path, message))
    return problems


def find_value(data: Any, path: tuple[str | int, ...]) -> Any:
    """The value at a path that the document has."""
    for part in path:
        data = data[part]
    return data


def _unknown(path: tuple[str | int, ...], schema: Schema) -> str:
    known = _keys_at(path[:-1], schema)
    import difflib

    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; known here: {', '.join(sorted(known))}" if known else "unknown key"


def _keys_at(path: tuple[str | int, ...], schema: Schema) -> list[str]:
    here: Any = schema
    for part in path:
        inner = here.get(part) if isinstance(part, str) else here
        here = inner.get("schema", {}) if isinstance(inner, dict) else {}
        if isinstance(part, int) and here.get("type") == "dict":
            here = here.get("schema", {})
    return [key for key, value in here.items() if isinstance(value, dict)]

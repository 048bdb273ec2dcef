"""The schema of the owner's policy, for cerberus."""

from __future__ import annotations

from ktrdr_vm.profile import scalars
from ktrdr_vm.profile.collector import parse_address
from ktrdr_vm.profile.schema import BOUND, COMMAND, PORTS, SIZE, Schema, text

_REFS: Schema = {"type": "list", "maxlength": 50, "schema": text(scalars.parse_plain_text)}
_PROJECT: Schema = {
    "type": "dict",
    "schema": {
        "path": text(scalars.parse_guest_path, required=True),
        "refs": {**_REFS, "required": True, "minlength": 1},
    },
}
_VARIABLE: Schema = {"type": "string", "regex": r"[A-Za-z_][A-Za-z0-9_]*\*?"}
# One secret of the host, and the hosts to which it may be sent.
_USE: Schema = {
    "type": "dict",
    "schema": {
        "env": {**_VARIABLE, "excludes": ["file", "command"]},
        "file": text(scalars.parse_guest_path, excludes=["env", "command"]),
        "command": {**COMMAND, "excludes": ["env", "file"]},
        "hosts": {
            "type": "list",
            "required": True,
            "minlength": 1,
            "maxlength": 100,
            "schema": text(lambda value: value if value == "*" else scalars.parse_host(value)),
        },
    },
    "check_with": "one_source",
}

POLICY: Schema = {
    "mounts": {"type": "dict", "schema": {"roots": {"type": "list", "schema": text(scalars.parse_guest_path)}}},
    "secrets": {
        "type": "dict",
        "schema": {
            "env": {"type": "list", "schema": _VARIABLE},
            "files": {"type": "list", "schema": text(scalars.parse_guest_path)},
            "commands": {"type": "list", "maxlength": 100, "schema": COMMAND},
            "uses": {"type": "list", "maxlength": 200, "schema": _USE},
        },
    },
    "egress": {
        "type": "dict",
        "schema": {
            "reserved": {"type": "list", "schema": {"type": "string", "regex": r"\d{1,3}(\.\d{1,3}){3}:\d{1,5}"}},
            "observe": {"type": "boolean"},
            "ceiling": {"type": "list", "maxlength": 500, "schema": BOUND},
        },
    },
    "resources": {
        "type": "dict",
        "schema": {
            "max": {"type": "dict", "schema": {"vcpus": {"type": "integer", "min": 1}, "memory": SIZE, "disk": SIZE}},
        },
    },
    "images": {
        "type": "dict",
        "schema": {"sources": {"type": "list", "maxlength": 100, "schema": {"type": "string", "minlength": 7}}},
    },
    "instances": {
        "type": "dict",
        "schema": {
            "max": {"type": "integer", "min": 1, "max": 16384, "notbool": True},
            "ttl": text(scalars.parse_duration),
        },
    },
    "prepare": {
        "type": "dict",
        "schema": {"refs": _REFS, "projects": {"type": "list", "maxlength": 200, "schema": _PROJECT}},
    },
    "publish": {
        "type": "dict",
        "schema": {
            "command": {"type": "list", "minlength": 1, "maxlength": 100, "schema": {"type": "string"}},
            "signing_key": text(scalars.parse_guest_path),
        },
    },
    "verify": {
        "type": "dict",
        "schema": {"notify": {"type": "list", "minlength": 1, "maxlength": 100, "schema": {"type": "string"}}},
    },
    "telemetry": {
        "type": "dict",
        "schema": {
            "collector": {"type": "string", "required": True},
            "address": text(parse_address),
            "headers_file": text(scalars.parse_guest_path),
            "ca_file": text(scalars.parse_guest_path),
            "runs": {"type": "boolean"},
        },
    },
    "escalations": {
        "type": "dict",
        "schema": {
            "kinds": {
                "type": "list",
                "allowed": ["network", "secret", "mount", "resources", "decision"],
                "schema": {"type": "string"},
            },
            "wait": text(scalars.parse_duration),
            "longest": text(scalars.parse_duration),
            "hook": {"type": "list", "minlength": 1, "maxlength": 100, "schema": {"type": "string"}},
            "approve": {
                "type": "list",
                "maxlength": 200,
                "schema": {
                    "type": "dict",
                    "schema": {
                        "host": text(scalars.parse_host, required=True),
                        "ports": PORTS,
                        "longest": text(scalars.parse_duration),
                    },
                },
            },
        },
    },
}

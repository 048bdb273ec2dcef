"""The schema of a profile as JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

from ktrdr_vm.profile.schema import PROFILE, Schema


def render_json_schema(schema: Schema = PROFILE) -> dict[str, Any]:
    """The schema as JSON Schema 2020-12, for editors. Paths and names are checked by the loader only."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ktrdr-vm profile", **_object(schema)}


_JSON_TYPES = {
    "dict": "object",
    "list": "array",
    "string": "string",
    "integer": "integer",
    "float": "number",
    "boolean": "boolean",
}
_JSON_KEYS = {"min": "minimum", "max": "maximum", "allowed": "enum"}


def _object(schema: Schema) -> dict[str, Any]:
    rendered: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    rendered["properties"] = {key: _value(rule) for key, rule in schema.items()}
    required = [key for key, rule in schema.items() if rule.get("required")]
    if required:
        rendered["required"] = required
    return rendered


def _value(rule: Schema) -> dict[str, Any]:
    types = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    names = [_JSON_TYPES[name] for name in types] + (["null"] if rule.get("nullable") else [])
    out: dict[str, Any] = {"type": names[0] if len(names) == 1 else names}
    out |= {_JSON_KEYS[key]: rule[key] for key in _JSON_KEYS if key in rule}
    if "regex" in rule:
        out["pattern"] = f"^(?:{rule['regex']})$"
    for key, name in (("minlength", "min"), ("maxlength", "max")):
        if key in rule:
            out[name + ("Items" if "list" in types else "Properties")] = rule[key]
    if "list" in types and "schema" in rule:
        out["items"] = _value(rule["schema"])
    elif "dict" in types and "schema" in rule:
        out |= {key: value for key, value in _object(rule["schema"]).items() if key != "type"}
    return out

"""Every schema of the program is one that cerberus accepts. Validation itself does not check schemas, because this takes
longer than a document does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from cerberus import SchemaError
from cerberus.schema import DefinitionSchema

from ktrdr_vm.places.model import PLACES
from ktrdr_vm.policy.schema import POLICY
from ktrdr_vm.profile.schema import PRESET, PROFILE
from ktrdr_vm.profile.validator import Validator

SCHEMAS = {"profile": PROFILE, "policy": POLICY, "preset": PRESET, "places": PLACES}


@pytest.mark.parametrize("name", SCHEMAS)
def test_cerberus_accepts_the_schema(name: str) -> None:
    Validator(copy.deepcopy(SCHEMAS[name]))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_has_no_shorthand(name: str) -> None:
    """`anyof_type` and its like would have no effect, because only the check of a schema expands them."""
    assert DefinitionSchema.expand(copy.deepcopy(SCHEMAS[name])) == SCHEMAS[name]


@pytest.mark.parametrize("rule", [{"minlenght": 1}, {"type": "text"}, {"check_with": "nothing"}, {"required": "yes"}])
def test_an_error_in_a_schema_is_found(rule: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        Validator({"key": {"type": "dict", "schema": {"inner": rule}}})


def test_a_shorthand_is_found() -> None:
    schema = {"key": {"anyof_type": ["string", "integer"]}}
    assert DefinitionSchema.expand(copy.deepcopy(schema)) != schema

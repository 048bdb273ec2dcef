"""Filters of lists and mappings."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Undefined
from jinja2.environment import Environment
from jinja2.filters import do_unique
from jinja2.utils import pass_environment

from ktrdr_vm.gates.bounds import MAX_ITERATIONS, TemplateError, measure

_LIST_MERGES: dict[str, Callable[[list[Any], list[Any]], list[Any]]] = {
    "replace": lambda old, new: new,
    "keep": lambda old, new: old,
    "append": lambda old, new: old + new,
    "prepend": lambda old, new: new + old,
    "append_rp": lambda old, new: [value for value in old if value not in new] + new,
    "prepend_rp": lambda old, new: new + [value for value in old if value not in new],
}


def combine(*mappings: Any, recursive: bool = False, list_merge: str = "replace") -> Any:
    """Merge mappings, from the last to the first; one alone is returned unchanged, whatever its type."""
    listed = flatten(mappings, 1)
    if not listed:
        return {}
    merged = listed[-1]
    for mapping in reversed(listed[:-1]):
        merged = _merge(mapping, merged, recursive, list_merge)
    return merged


def _merge(low: Any, high: Any, recursive: bool, list_merge: str) -> dict[Any, Any]:
    if list_merge not in _LIST_MERGES:
        raise TemplateError(f"combine: list_merge is one of {', '.join(_LIST_MERGES)}, not {str(list_merge)[:40]!r}")
    if not isinstance(low, Mapping) or not isinstance(high, Mapping):
        raise TemplateError("combine: requires mappings")
    # In these cases the order of the keys is another one.
    if not low or low == high:
        return dict(high)
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        if key in merged and recursive and isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[key] = _merge(old, value, recursive, list_merge)
        elif isinstance(value, list) and isinstance(old, list):
            merged[key] = _LIST_MERGES[list_merge](old, value)
            measure(merged[key])
        else:
            merged[key] = value
    return merged


def flatten(values: Any, levels: int | None = None, skip_nulls: bool = True) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        if skip_nulls and value in (None, "None", "null"):
            continue
        if isinstance(value, (list, tuple, range)) and (levels is None or levels >= 1):
            flat.extend(flatten(value, None if levels is None else int(levels) - 1, skip_nulls))
        else:
            flat.append(value)
        measure(flat[-1:])
    return flat


def mandatory(value: Any, msg: str | None = None) -> Any:
    if isinstance(value, Undefined):
        raise TemplateError(msg if msg is not None else "mandatory: the variable is not defined")
    return value


def default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    if not isinstance(boolean, bool):
        raise TemplateError(f"default: the third argument must be true or false, not {str(boolean)[:40]!r}")
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


def ternary(value: Any, true_val: Any, false_val: Any, none_val: Any = None) -> Any:
    if value is None and none_val is not None:
        return none_val
    return true_val if value else false_val


def dict2items(mapping: Any, key_name: str = "key", value_name: str = "value") -> list[Any]:
    if not isinstance(mapping, Mapping):
        raise TemplateError(f"dict2items: requires a mapping, not {type(mapping).__name__}")
    return [{key_name: key, value_name: value} for key, value in mapping.items()]


def items2dict(items: Any, key_name: Any = "key", value_name: Any = "value") -> dict[Any, Any]:
    if not isinstance(items, list | tuple | range):
        raise TemplateError(f"items2dict: requires a list, not {type(items).__name__}")
    listed: list[Any] = list(items)
    try:
        return {item[key_name]: item[value_name] for item in listed}
    except (KeyError, TypeError):
        raise TemplateError(f"items2dict: requires a list of mappings with {key_name!r} and {value_name!r}") from None


def rekey_on_member(data: Any, key: Any, duplicates: str = "error") -> dict[Any, Any]:
    if duplicates not in ("error", "overwrite"):
        raise TemplateError(f"rekey_on_member: duplicates is error or overwrite, not {str(duplicates)[:40]!r}")
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise TemplateError("rekey_on_member: requires a list or a mapping")
    found: dict[Any, Any] = {}
    for item in data.values() if isinstance(data, Mapping) else data:
        if not isinstance(item, Mapping) or key not in item:
            raise TemplateError(f"rekey_on_member: an item is no mapping, or has no {key!r}")
        if found.get(item[key]) and duplicates == "error":
            raise TemplateError(f"rekey_on_member: {str(item[key])[:60]!r} occurs twice")
        found[item[key]] = item
    return found


def subelements(data: Any, subelements: Any, skip_missing: bool = False) -> list[Any]:
    """(element, value) for each value in the list that a dotted name finds in each element."""
    if not isinstance(data, dict | list):
        raise TemplateError("subelements: requires a list of mappings, or a mapping of them")
    if not isinstance(subelements, str | list):
        raise TemplateError("subelements: the second argument must be a name or a list of names")
    path = subelements.split(".") if isinstance(subelements, str) else subelements
    found: list[Any] = []
    for element in data.values() if isinstance(data, dict) else data:
        values = element
        for part in path:
            if not isinstance(values, Mapping):
                raise TemplateError(f"subelements: {part!r} is wanted of a value that is no mapping")
            if part not in values and not skip_missing:
                raise TemplateError(f"subelements: an element has no {part!r}")
            values = values.get(part, [])
            if part and values == []:
                break
        if not isinstance(values, list):
            raise TemplateError(f"subelements: {path[-1:]} is not a list")
        found += [(element, value) for value in values]
        measure(found[-1:])
    return found


@pass_environment
def extract(environment: Environment, item: Any, container: Any, morekeys: Any = None) -> Any:
    value: Any = container
    keys: list[Any] = morekeys if isinstance(morekeys, list) else [] if morekeys is None else [morekeys]
    for key in (item, *keys):
        value = environment.getitem(value, key)
    return value


@pass_environment
def unique(
    environment: Environment, values: Any, case_sensitive: bool | None = None, attribute: Any = None
) -> list[Any]:
    """Each value once. Values without a hash, such as lists, are compared with each other."""
    try:
        return list(do_unique(environment, values, bool(case_sensitive), attribute))
    except Exception as error:
        if case_sensitive is False or attribute:
            raise TemplateError(f"unique: {error}") from None
    return _once(values)


def _once(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _in_order(found: set[Any], *lists: Iterable[Any]) -> list[Any]:
    """The values of a set, in the order of the lists that they come from, so that a result is the same each time."""
    places: dict[Any, int] = {}
    for number, value in enumerate(itertools.chain(*lists)):
        places.setdefault(value, number)
    return sorted(found, key=places.__getitem__)


def intersect(first: Any, second: Any) -> list[Any]:
    try:
        return _in_order(set(first) & set(second), first)
    except TypeError:
        return _once(value for value in first if value in second)


def difference(first: Any, second: Any) -> list[Any]:
    try:
        return _in_order(set(first) - set(second), first)
    except TypeError:
        return _once(value for value in first if value not in second)


def union(first: Any, second: Any) -> list[Any]:
    try:
        return _in_order(set(first) | set(second), first, second)
    except TypeError:
        return _once(first + second)


def symmetric_difference(first: Any, second: Any) -> list[Any]:
    try:
        return _in_order(set(first) ^ set(second), first, second)
    except TypeError:
        both = intersect(first, second)
        return [value for value in union(first, second) if value not in both]


def _check_number(name: str, number: float) -> None:
    if number > MAX_ITERATIONS:
        raise TemplateError(f"{name}: more than {MAX_ITERATIONS} results")


def product(*lists: Any, repeat: int = 1) -> list[Any]:
    listed = [list(one) for one in lists]
    _check_number(
        "product", math.prod(max(1, len(one)) for one in listed) ** min(int(repeat), 20) if repeat < 20 else math.inf
    )
    return list(itertools.product(*listed, repeat=repeat))


def permutations(values: Any, r: int | None = None) -> list[Any]:
    listed = list(values)
    size = len(listed) if r is None else r
    _check_number("permutations", math.perm(min(len(listed), 1000), size) if size >= 0 else 0)
    return list(itertools.permutations(listed, r))


def combinations(values: Any, r: int) -> list[Any]:
    listed = list(values)
    _check_number("combinations", math.comb(min(len(listed), 1000), r) if r >= 0 else 0)
    return list(itertools.combinations(listed, r))


def zip_lists(*lists: Any, strict: bool = False) -> list[Any]:
    return list(zip(*lists, strict=strict))


def zip_longest(*lists: Any, fillvalue: Any = None) -> list[Any]:
    return list(itertools.zip_longest(*lists, fillvalue=fillvalue))


def random_of(end: Any, start: int | None = None, step: int | None = None, seed: Any = None) -> Any:
    """A number below `end`, or an item of a list. With a seed it is the same each time."""
    source = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311 - no secret is made
    if isinstance(end, int):
        return source.randrange(start or 0, end, step or 1)
    if start or step:
        raise TemplateError("random: start and step are for numbers only")
    return source.choice(end)


def shuffle(values: Any, seed: Any = None) -> Any:
    try:
        listed = list(values)
    except TypeError:
        return values
    source = random.Random(seed) if seed else random.SystemRandom()  # noqa: S311 - no secret is made
    source.shuffle(listed)
    return listed


def type_debug(value: Any) -> str:
    return "UndefinedMarker" if isinstance(value, Undefined) else type(value).__name__

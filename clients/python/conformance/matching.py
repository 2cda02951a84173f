"""The matcher language of clients/CONFORMANCE.md."""

import json
import math
from collections.abc import Mapping
from typing import Any


class Nothing:
    """A value that is not there."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = Nothing()
_TOLERANCE = 1e-6


def at(value: Any, path: str) -> Any:
    """The value at a path of names and indices between dots, or NOTHING."""
    for name in path.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return NOTHING
    return value


def _operation(value: Any) -> tuple[str, Any] | None:
    """Name and argument of an object with one key that begins with a dollar sign."""
    if isinstance(value, dict) and len(value) == 1:
        ((name, argument),) = value.items()
        if name.startswith("$"):
            return name, argument
    return None


def resolve(value: Any, facts: Any, values: Any) -> Any:
    """``value`` with what stands for a value replaced."""
    match _operation(value):
        case ("$fact", path):
            return at(facts, path)
        case ("$value", path):
            return at(values, path)
        case ("$repeat", [text, count]):
            return text * count
        case ("$join", parts):
            return "".join(resolve(part, facts, values) for part in parts)
        case ("$nothing", _):
            return NOTHING
    if isinstance(value, dict):
        return {name: resolve(each, facts, values) for name, each in value.items()}
    if isinstance(value, list):
        return [resolve(each, facts, values) for each in value]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits_alone(expected: Any, actual: Any) -> bool:
    if _is_number(expected) and _is_number(actual):
        return math.isclose(expected, actual, rel_tol=_TOLERANCE)
    return type(expected) is type(actual) and bool(expected == actual)


def mismatch(expected: Any, actual: Any, path: str) -> str:
    """Where ``actual`` is not what is expected, or an empty string."""
    operation = _operation(expected)
    if operation is not None:
        return _operation_mismatch(*operation, actual, path)
    if actual is NOTHING:
        if isinstance(expected, dict):
            actual = {}  # whose fields must then all be zero
        elif not expected or expected is NOTHING:
            return ""
    if isinstance(expected, dict) and isinstance(actual, dict):
        inner = (mismatch(each, actual.get(name, NOTHING), f"{path}.{name}") for name, each in expected.items())
        return next(filter(None, inner), "")
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return next(filter(None, (mismatch(*pair, f"{path}.{index}") for index, pair in pairs)), "")
    return "" if _fits_alone(expected, actual) else f"{path}: expected {shown(expected)}, got {shown(actual)}"


def _operation_mismatch(name: str, argument: Any, actual: Any, path: str) -> str:
    elements = actual if isinstance(actual, list) else []
    fits = False
    match name:
        case "$absent":
            fits = actual is NOTHING
        case "$present":
            fits = actual is not NOTHING and not mismatch(argument, actual, path)
        case "$contains":
            fits = isinstance(actual, str) and argument in actual
        case "$at_least":
            fits = _is_number(actual) and actual >= argument
        case "$at_most":
            fits = _is_number(actual) and actual <= argument
        case "$not":
            fits = bool(mismatch(argument, actual, path))
        case "$all":
            return next(filter(None, (mismatch(each, actual, path) for each in argument)), "")
        case "$any":
            fits = any(not mismatch(each, actual, path) for each in argument)
        case "$each" if isinstance(actual, list | Nothing):
            inner = (mismatch(argument, each, f"{path}.{index}") for index, each in enumerate(elements))
            return next(filter(None, inner), "")
        case "$some":
            fits = any(not mismatch(argument, each, path) for each in elements)
        case "$count" if isinstance(actual, list | Nothing):
            return mismatch(argument, len(elements), f"{path} (count)")
        case "$joined":
            return mismatch(argument, "".join(elements), f"{path} (joined)")
        case "$each" | "$count":
            pass
        case _:
            return f"{path}: this runner does not know {name}"
    return "" if fits else f"{path}: expected {name} {shown(argument)}, got {shown(actual)}"


def shown(value: Any) -> str:
    """A value as a failure shows it."""
    if value is NOTHING:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 300 else f"{text[:300]}…"

"""Text and JSON from sensors → finite numbers by channel. Pure; nothing here trusts what it is given."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from edge_agent.errors import ConfigError

MAX_PAYLOAD = 64 * 1024  #: bytes
_MAX_DEPTH = 16
_NUMBER = re.compile(r"[+-]?([0-9]{1,32}(\.[0-9]{0,32})?|\.[0-9]{1,32})([eE][+-]?[0-9]{1,3})?")
_KEY = re.compile(r"[^.\[\]]+")
_INDEX = re.compile(r"\[([0-9]{1,4})\]")
#: What switches and contacts say.
_WORDS = {
    "on": 1.0,
    "off": 0.0,
    "true": 1.0,
    "false": 0.0,
    "open": 1.0,
    "closed": 0.0,
    "yes": 1.0,
    "no": 0.0,
    "detected": 1.0,
    "clear": 0.0,
}

Step = str | int


class Unusable(ValueError):
    """A value cannot become a reading. `reason`: malformed | non_finite | oversize."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def path(text: str) -> tuple[Step, ...]:
    """The steps of `temperature`, `a.b[0].c`. ConfigError shows where it cannot be read."""
    steps: list[Step] = []
    rest = text
    while rest:
        index = _INDEX.match(rest)
        key = _KEY.match(rest)
        if index and steps:
            steps.append(int(index[1]))
            rest = rest[index.end() :]
        elif key:
            steps.append(key[0])
            rest = rest[key.end() :]
        else:
            break
        if rest.startswith(".") and len(rest) > 1 and rest[1] not in ".[":
            rest = rest[1:]
        elif rest and not rest.startswith("["):
            break
    if rest or not steps or len(steps) > _MAX_DEPTH:
        raise ConfigError(f"{text!r} is not a path such as temperature or a.b[0].c (unreadable from {rest!r})")
    return tuple(steps)


def decode(payload: bytes) -> Any:
    """The JSON value in a payload. Unusable if it is none, or too large or too deep to be one of a sensor."""
    if len(payload) > MAX_PAYLOAD:
        raise Unusable("oversize", f"{len(payload)} bytes, at most {MAX_PAYLOAD}")
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable("malformed", str(error)) from error
    except RecursionError as error:
        raise Unusable("malformed", "nested too deep") from error


def text(payload: bytes) -> str:
    """A payload that is a plain word or number."""
    if len(payload) > MAX_PAYLOAD:
        raise Unusable("oversize", f"{len(payload)} bytes, at most {MAX_PAYLOAD}")
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("malformed", str(error)) from error


def number(value: Any, *, decimal: str = ".") -> float:
    """One finite float from a JSON value or a word: true, on, open … are 1, their opposites 0."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        word = value.strip()
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        plain = word if decimal == "." else word.replace(decimal, ".", 1)
        if not _NUMBER.fullmatch(plain):
            reason = "non_finite" if word.lower().lstrip("+-") in ("nan", "inf", "infinity") else "malformed"
            raise Unusable(reason, f"{word[:40]!r} is no number")
        value = float(plain)
    if not isinstance(value, int | float):
        raise Unusable("malformed", f"{type(value).__name__} is no number")
    try:
        found = float(value)
    except OverflowError as error:
        raise Unusable("non_finite", "too large a number") from error
    if not math.isfinite(found):
        raise Unusable("non_finite", str(found))
    return found


def at(value: Any, steps: tuple[Step, ...]) -> Any:
    """What lies at a path; None if nothing does."""
    for step in steps:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value


def leaves(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything in a JSON object that may be a number, with its path as the name."""
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    elif isinstance(value, bool | int | float) or (isinstance(value, str) and _looks_numeric(value)):
        yield prefix, value


def _looks_numeric(word: str) -> bool:
    return word.strip().lower() in _WORDS or _NUMBER.fullmatch(word.strip()) is not None

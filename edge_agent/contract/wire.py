"""Bytes ↔ records, with every limit checked before anything is believed.

A payload is one JSON message, or a zstd frame that holds a JSON array of messages. Refusals carry a stable
reason, so that the dead-letter table can be counted by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import zstandard

from edge_agent.contract.event import VERSION, Ack, Message
from edge_agent.errors import WireError

MAX_PAYLOAD = 128 * 1024  #: bytes on the wire
MAX_BATCH = 1024 * 1024  #: bytes after decompression
MAX_DEPTH = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# An unterminated string matches up to the end: without that, a run of escaped quotes would cost quadratic time.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_WINDOW_LOG_MAX = 20  #: a frame that asks for a larger window is a bomb

#: Every reason a payload can be refused for; part of the contract.
REASONS = ("oversize", "depth", "malformed", "schema", "version", "non_finite", "compression", "topic", "device")

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SEQUENCES = (list, tuple)

T = TypeVar("T")


def encode(record: msgspec.Struct) -> bytes:
    """JSON of one record. WireError `non_finite` or `oversize` if it may not travel.

    msgspec writes NaN as `null` without a word, so finiteness is checked here, on the way out too.
    """
    _check_finite(msgspec.to_builtins(record, builtin_types=(bytes,)))
    data = msgspec.json.encode(record)
    if len(data) > MAX_PAYLOAD:
        raise WireError("oversize", f"{len(data)} bytes; at most {MAX_PAYLOAD} travel over MQTT")
    return data


def encode_batch(encoded: Sequence[bytes]) -> bytes:
    """One zstd frame of messages that `encode` made. WireError `oversize` if they do not fit together."""
    joined = b"[" + b",".join(encoded) + b"]"
    frame = zstandard.ZstdCompressor(level=3).compress(joined)
    if len(joined) > MAX_BATCH or len(frame) > MAX_PAYLOAD:
        raise WireError("oversize", f"batch of {len(joined)} bytes ({len(frame)} compressed)")
    return frame


def split(payload: bytes) -> list[bytes]:
    """The JSON texts in a payload: itself, or the members of a batch. WireError on anything over a limit."""
    if len(payload) > MAX_PAYLOAD:
        raise WireError("oversize", f"{len(payload)} bytes; at most {MAX_PAYLOAD}")
    if not payload.startswith(_ZSTD_MAGIC):
        return [payload]
    text = _decompress(payload)
    _check_depth(text)
    try:
        return [bytes(raw) for raw in msgspec.json.decode(text, type=list[msgspec.Raw])]
    except msgspec.DecodeError as error:
        raise WireError("malformed", f"batch: {error}") from error


def decode(data: bytes, kind: type[T]) -> T:
    """One record of `kind` from JSON. WireError with the reason if it is refused.

    Depth is checked before parsing: 120 kB of `[` ends in RecursionError, not in DecodeError.
    """
    if len(data) > MAX_PAYLOAD:
        raise WireError("oversize", f"{len(data)} bytes; at most {MAX_PAYLOAD}")
    _check_depth(data)
    try:
        version = msgspec.json.decode(data, type=_Versioned).v
    except msgspec.ValidationError as error:
        raise WireError("schema", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError("malformed", str(error)) from error
    if version != VERSION:
        raise WireError("version", f"message has v={version}; this side knows {VERSION}")
    try:
        record = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise WireError("schema", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError("malformed", str(error)) from error
    _check_finite(msgspec.to_builtins(record, builtin_types=(bytes,)))
    return record


def decode_message(data: bytes, device: str) -> Message:
    """A durable message that claims to come from `device`, the device of the topic it came on."""
    message = decode(data, Message)
    if message.device != device:
        raise WireError("device", f"topic says {device!r}, message says {message.device!r}")
    return message


def decode_ack(data: bytes) -> Ack:
    """The cloud's acknowledgement."""
    return decode(data, Ack)


class _Versioned(msgspec.Struct):
    v: int


def _decompress(frame: bytes) -> bytes:
    try:
        # max_window_size refuses before memory is taken; max_length bounds what a small frame may grow to.
        reader = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG_MAX)
        with reader.stream_reader(frame) as stream:
            text = stream.read(MAX_BATCH + 1)
    except zstandard.ZstdError as error:
        raise WireError("compression", str(error)) from error
    if len(text) > MAX_BATCH:
        raise WireError("oversize", f"batch expands to more than {MAX_BATCH} bytes")
    return text


def _check_depth(data: bytes) -> None:
    """Bracket depth outside strings. Only the brackets themselves are walked in Python: a payload is up to 1 MiB."""
    # Without escapes every quote opens or closes a string, so what is outside is every other piece.
    plain = _ESCAPE.sub(b"", data) if b"\\" in data else data
    depth = 0
    for byte in b"".join(plain.split(b'"')[::2]).translate(None, _NOT_BRACKETS):
        if byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise WireError("depth", f"nested deeper than {MAX_DEPTH}")
        else:
            depth -= 1


def _check_finite(value: Any) -> None:
    if not _finite(value):
        raise WireError("non_finite", _not_finite(value, "$"))


def _finite(value: Any) -> bool:
    # Runs for every message on both sides, so it builds no paths.
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if kind in _SEQUENCES else True


def _not_finite(value: Any, path: str) -> str:
    """Where in the tree the first number is that is not finite, and what it is."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{path} is {value}"
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        items = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        items = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    return next(filter(None, (_not_finite(item, where) for where, item in items)), "")

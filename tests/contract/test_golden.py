"""The wire only grows: every example ever released still decodes, and to the same values."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from edge_agent.contract import event, identity, manifest, status, wire
from tests.contract.examples import EXAMPLES

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = Path(event.__file__).parent / "schema"
KINDS: dict[str, type[msgspec.Struct]] = {
    "message": event.Message,
    "ack": event.Ack,
    "state": status.State,
    "health": status.Health,
    "desired": status.Desired,
    "manifest": manifest.Manifest,
    "identity": identity.Identity,
}
FILES = sorted(GOLDEN.glob("v*/*.json"))


def kind_of(name: str) -> type[msgspec.Struct]:
    return KINDS[name.partition("-")[0]]


def test_every_record_has_a_golden_file() -> None:
    assert {path.stem for path in FILES if path.parent.name == f"v{event.VERSION}"} >= set(EXAMPLES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_file_still_decodes(path: Path) -> None:
    record = wire.decode(path.read_bytes(), kind_of(path.stem))
    told = json.loads(path.read_bytes())
    kept = json.loads(wire.encode(record))
    assert _without_new_fields(kept, told) == told


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_survives_the_wire(name: str) -> None:
    record = EXAMPLES[name]
    assert wire.decode(wire.encode(record), type(record)) == record


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_fits_the_published_schema(name: str) -> None:
    kind = kind_of(name)
    schema = json.loads((SCHEMA / f"{kind.__name__.lower()}.schema.json").read_text())
    jsonschema.validate(json.loads(wire.encode(EXAMPLES[name])), schema)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_schema_file_is_what_the_code_says(kind: type[msgspec.Struct]) -> None:
    path = SCHEMA / f"{kind.__name__.lower()}.schema.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(published(kind))), (
        "run `python scripts/contract_files.py`"
    )


def published(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The record's JSON Schema, the same by every msgspec: since 0.23 it takes indents out of docstrings itself."""
    return {key: _dedented(key, part) for key, part in msgspec.json.schema(kind).items()}


def _dedented(key: str, part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _dedented(name, inner) for name, inner in part.items()}
    return inspect.cleandoc(part) if key == "description" and isinstance(part, str) else part


def _without_new_fields(kept: object, told: object) -> object:
    """`kept`, less the optional fields that the record has grown since the file was written."""
    if isinstance(kept, dict) and isinstance(told, dict):
        return {key: _without_new_fields(kept[key], told[key]) for key in told if key in kept}
    if isinstance(kept, list) and isinstance(told, list) and len(kept) == len(told):
        return [_without_new_fields(*pair) for pair in zip(kept, told, strict=True)]
    return kept

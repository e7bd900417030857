"""Recorded sensor logs: an office that is used and left, and the temperature of another."""

from __future__ import annotations

import json
from pathlib import Path

from edge_agent.errors import ConfigError
from models.data.records import Split, Table, folder, rows

#: Light is nearly the label there: never read.
_COLUMNS = {"temperature": "Temperature", "humidity": "Humidity", "co2": "CO2"}
_FILES: tuple[tuple[str, Split], ...] = (("datatraining.csv", "train"), ("datatest.csv", "dev"))
_NAB = "realKnownCause/ambient_temperature_system_failure.csv"
_NAB_TRAIN_SHARE = 0.6


def occupancy(root: Path) -> list[Table]:
    """An office, one row a minute (CC BY 4.0): 1 where someone is in. `datatest` is dev."""
    base = folder(root, "occupancy")
    tables = []
    for name, split in _FILES:
        lines = list(rows(base / name))
        values = tuple({quantity: float(line[column]) for quantity, column in _COLUMNS.items()} for line in lines)
        tables.append(Table("occupancy", split, values, tuple(int(line["Occupancy"]) for line in lines)))
    return tables


def ambient(root: Path) -> list[Table]:
    """Room temperature, one row an hour (NAB, MIT), as a background: the labelled failures are left out."""
    base = folder(root, "nab")
    try:
        windows = json.loads((base / "labels" / "combined_windows.json").read_text(encoding="utf-8"))[_NAB]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot read the label windows of {_NAB} in {base}: {error!r}") from error
    # Both sides are "YYYY-MM-DD hh:mm:ss…": text order is time order.
    lines = [
        line
        for line in rows(base / "data" / _NAB)
        if not any(first <= line["timestamp"] <= last for first, last in windows)
    ]
    celsius = tuple({"temperature": (float(line["value"]) - 32.0) / 1.8} for line in lines)
    cut = int(len(celsius) * _NAB_TRAIN_SHARE)
    parts: tuple[tuple[Split, tuple[dict[str, float], ...]], ...] = (("train", celsius[:cut]), ("dev", celsius[cut:]))
    return [Table("nab", split, part, (-1,) * len(part)) for split, part in parts]

"""What each choice is worth: one row each, three seeds a row, all of them in one table.

`python -m models ablate` writes one JSON file a row and, from all of them, tables and a plot. A row that is done is
not done again; one whose definition, data or schedule have changed is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError
from models.ablate import encoders, heads, table
from models.config import Preset
from models.progress import Progress

#: In the order in which they are worth having: with too little time the last are left out.
ROWS: tuple[heads.Row | encoders.Row, ...] = (*heads.ROWS, *encoders.ROWS)


def run(
    out: Path, preset: Preset, root: Path | None, shipped: Path, only: Sequence[str] = (), *, quick: bool = False
) -> dict[str, Any]:
    """Do the rows that are not done yet, write the tables, and return where. ConfigError for an unknown row."""
    chosen = select(only)
    out.mkdir(parents=True, exist_ok=True)
    shown = Progress("rows", len(chosen))
    windows: heads.Embedded | None = None
    parts = encoders.Parts(out, preset, root, quick=quick)
    for index, row in enumerate(chosen, 1):
        if isinstance(row, encoders.Row):
            encoders.work(row, parts, out)
        else:
            windows = windows or heads.embedded(out / heads.EMBEDDINGS, preset, root, shipped, quick=quick)
            heads.work(row, preset, windows, out, quick=quick)
        shown.at(index, row.key)
    done = table.write(out, [row.key for row in ROWS])
    return {"rows": done, "of": len(ROWS), "table": str(out / "ablations.md")}


def select(only: Sequence[str]) -> tuple[heads.Row | encoders.Row, ...]:
    """All rows, or those of the named groups and rows. ConfigError lists what there is."""
    known = {row.group for row in ROWS} | {row.key for row in ROWS}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(
            f"no row or group is named {', '.join(unknown)}; there are {', '.join(sorted(known))}", "--only"
        )
    return tuple(row for row in ROWS if not only or row.group in only or row.key in only)

"""Write the contract's JSON Schema files, and golden files for records that have none yet.

Run from the root of the repository: `python scripts/contract_files.py`. A golden file is never rewritten: it is what
some released device has sent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edge_agent.contract import event, wire  # noqa: E402
from tests.contract.examples import EXAMPLES  # noqa: E402
from tests.contract.test_golden import GOLDEN, KINDS, SCHEMA, published  # noqa: E402


def main() -> None:
    """Write what is missing or out of date, naming each file."""
    SCHEMA.mkdir(exist_ok=True)
    for kind in KINDS.values():
        path = SCHEMA / f"{kind.__name__.lower()}.schema.json"
        _write(path, json.dumps(published(kind), indent=1, ensure_ascii=False) + "\n")
    folder = GOLDEN / f"v{event.VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in EXAMPLES.items():
        path = folder / f"{name}.json"
        if not path.exists():
            _write(path, wire.encode(record).decode())


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

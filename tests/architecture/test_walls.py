"""What import-linter cannot see: what really is loaded, what the documentation says, what ships."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "onnx", "sklearn", "matplotlib", "sqlalchemy", "fastapi", "nicegui")


def loaded(code: str, names: tuple[str, ...]) -> set[str]:
    """Which of `names` a fresh interpreter has loaded after `code`."""
    report = f"{code}; import sys; print(','.join(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    return set(filter(None, done.stdout.strip().split(",")))


def test_the_agent_loads_nothing_of_training_or_cloud() -> None:
    assert loaded("import edge_agent.__main__, edge_agent.app", HEAVY) == set()


def test_the_cloud_loads_nothing_of_training_or_of_the_device_but_its_contract() -> None:
    names = ("torch", "models", "edge_agent.core", "edge_agent.engine", "edge_agent.config", "cv2", "av", "openvino")
    assert loaded("import cloud_sync.__main__, cloud_sync.app", names) == set()


def test_every_driver_of_the_entry_points_loads() -> None:
    drivers = importlib.metadata.entry_points(group="tectum.sources")
    assert {driver.name for driver in drivers} >= {
        "camera",
        "v4l2",
        "microphone",
        "mqtt",
        "csv",
        "replay",
        "synthetic",
    }
    for driver in drivers:
        assert hasattr(driver.load(), "read"), driver.name


def test_the_reference_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/reference.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run `python scripts/reference.py`"


def markdown() -> list[Path]:
    return [path for path in ROOT.rglob("*.md") if not {".venv", "node_modules"} & set(path.relative_to(ROOT).parts)]


@pytest.mark.parametrize("page", markdown(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link and not link.startswith("#")]
    lost = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert lost == []


def test_the_shipped_bundle_is_small_and_has_its_card() -> None:
    bundle = ROOT / "edge_agent" / "bundle"
    size = sum(path.stat().st_size for path in bundle.iterdir() if path.is_file())
    assert size < 8_000_000
    assert (bundle / "card.md").read_text(encoding="utf-8").startswith("#")

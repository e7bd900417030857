"""What the documentation shows is run here, or at least held against the programs that it speaks of."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_sync.__main__ import build_parser as cloud_parser
from edge_agent.__main__ import build_parser as edge_parser
from edge_agent.clock import SystemClock
from edge_agent.config import SourceConfig, options
from edge_agent.core.records import Reading, Sample
from edge_agent.errors import ConfigError, SourceError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
#: Where a block without a language is for the shell; elsewhere it is a drawing.
SHELL = [page for page in PAGES if page.parent.name not in ("explanation", "reference")]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PARSERS = {"edge-agent": edge_parser, "cloud-sync": cloud_parser}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, words by words, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.sub(r"(^|\s)#.*", "", line).split("&&"):
            words = shlex.split(part)
            if words[:1] == ["sudo"]:
                words = words[3:] if words[1] == "-u" else words[1:]
            if words:
                yield words


def shown(name: str) -> list[Any]:
    """Every use of program `name` in a shell block of a page or in a unit."""
    found = [
        (page, words[1:])
        for page in SHELL
        for text in blocks(page, "")
        for words in commands(text)
        if words[0] == name
    ]
    starts = [
        (unit, line.partition("=")[2].split())
        for unit in UNITS
        for line in unit.read_text().splitlines()
        if line.startswith("ExecStart")
    ]
    found += [(unit, words[1:]) for unit, words in starts if words[0].endswith(f"/{name}")]
    return [pytest.param(words, id=f"{path.name}: {' '.join(words)}") for path, words in found]


def lacking(parser: argparse.ArgumentParser, words: list[str]) -> str:
    """The first word that names no command or option; empty if all do. Words that are values are passed over."""
    for word in words:
        actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if word.startswith("--"):
            if word.partition("=")[0] not in parser._option_string_actions:
                return word
        elif actions:
            if word not in actions[0].choices:
                return word
            parser = actions[0].choices[word]
    return ""


@pytest.mark.parametrize("words", shown("edge-agent"))
def test_a_command_of_the_agent_is_understood(words: list[str]) -> None:
    assert callable(edge_parser().parse_args(words).command)


@pytest.mark.parametrize("words", shown("cloud-sync"))
def test_a_command_of_the_cloud_is_understood(words: list[str]) -> None:
    assert callable(cloud_parser().parse_args(words).command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_running_text_exist(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    spoken = [
        (name, words)
        for name, rest in re.findall(r"`(edge-agent|cloud-sync) ([^`]+)`", text)
        if (words := [word for word in rest.split() if not re.fullmatch(r"[A-Z_]+|…|\.\.\.", word)])
    ]
    wrong = [f"{name} {' '.join(words)}" for name, words in spoken if lacking(PARSERS[name](), words)]
    assert wrong == []


def test_extras_and_targets_that_pages_name_exist() -> None:
    project, makefile = (ROOT / "pyproject.toml").read_text(), (ROOT / "Makefile").read_text()
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = {extra for group in re.findall(r"tectum\[([a-z,]+)\]", text) for extra in group.split(",")}
    assert named
    assert named <= extras
    wanted = set(re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE))
    assert {"demo", "test", "check"} <= wanted
    assert wanted <= targets


def test_programs_and_files_that_shell_blocks_name_are_there() -> None:
    for page in SHELL:
        for words in (words for text in blocks(page, "") for words in commands(text)):
            if words[:2] == ["python", "-m"] and words[2] != "pip":
                assert (ROOT / words[2].replace(".", "/") / "__main__.py").is_file(), words
            for word in words:
                if word.startswith(("examples/", "scripts/", "deploy/")):
                    assert (ROOT / word).exists(), (page.name, word)


# --- the driver of docs/how-to/add-a-driver.md ---

HOW_TO = ROOT / "docs" / "how-to" / "add-a-driver.md"


@pytest.fixture
def thermal() -> Any:
    (code,) = blocks(HOW_TO, "python")
    module: dict[str, Any] = {"__name__": "my_package.thermal"}
    exec(compile(code, str(HOW_TO), "exec"), module)
    return module["Thermal"]


def driver(kind: Any, **chosen: Any) -> Any:
    source = SourceConfig(name="attic", driver="thermal", options=chosen)
    return kind("attic", options(source, kind.Options), SystemClock())


def test_the_driver_of_the_how_to_reads(thermal: Any, tmp_path: Path) -> None:
    (tmp_path / "temp").write_text("21500\n")
    source = driver(thermal, path=str(tmp_path / "temp"), every_s=0.0)
    source.open()
    first, second = source.read(0.2), source.read(0.2)
    assert isinstance(first, Sample)
    assert first.data == Reading("temperature", 21.5)
    assert (first.source, first.kind) == ("attic", "reading")
    assert second.seq > first.seq
    assert first.captured_ns <= second.captured_ns
    source.close()
    source.close()


def test_the_driver_of_the_how_to_waits_no_longer_than_it_is_told(thermal: Any, tmp_path: Path) -> None:
    (tmp_path / "temp").write_text("21500\n")
    source = driver(thermal, path=str(tmp_path / "temp"), every_s=1000.0)
    source.open()
    assert source.read(0.0) is not None
    assert source.read(0.01) is None
    source.close()
    with pytest.raises(SourceError, match="closed"):
        source.read(100.0)


def test_the_driver_of_the_how_to_fails_as_drivers_do(thermal: Any, tmp_path: Path) -> None:
    source = driver(thermal, path=str(tmp_path / "nothing"))
    source.open()
    with pytest.raises(SourceError, match="nothing"):
        source.read(0.2)
    with pytest.raises(ConfigError, match="pth"):
        driver(thermal, pth="typing mistake")


def test_the_entry_point_of_the_how_to_is_the_one_that_is_asked_for() -> None:
    (snippet,) = blocks(HOW_TO, "toml")
    group = snippet.splitlines()[0]
    assert group in (ROOT / "pyproject.toml").read_text()
    assert "my_package.thermal:Thermal" in snippet

"""The benchmarks' runner, results and budgets hold together. Nothing here is timed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import result
from benchmarks.result import Budget, Findings
from benchmarks.site import Options

HERE = Path(runner.__file__).parent
BUDGETS = {"fake": {"speed": Budget(unit="x", reason="because", at_least=2.0)}}


def measure(options: Options, findings: Findings) -> None:
    """Three known rounds."""
    for number in range(options.repeat):
        findings.add("speed", float(number), "x", "how fast it is")
        findings.add_spread("wait", [float(value) for value in range(1, 201)], "ms", "how long it takes")
    findings.note("a fake")
    findings.note("a fake")


def refuse(_options: Options, _findings: Findings) -> None:
    """A part that is missing."""
    raise FileNotFoundError("no clip")


FAKE = runner.Benchmark("fake", "Is it fast?", measure)


def test_a_run_is_kept_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over, broken = runner.run_all([FAKE], Options(repeat=3), tmp_path, BUDGETS, {"fake": "python -m fake"})
    assert (over, broken) == (1, 0)
    (kept,) = result.load_all(tmp_path, ("fake", "absent"))
    assert {figure.name: figure.value for figure in kept.figures} == {
        "speed": 1.0,
        "wait_p50": 100.0,
        "wait_p99": 198.0,
        "wait_worst": 200.0,
    }
    assert kept.figures[0].runs == (0.0, 1.0, 2.0)
    assert kept.notes == ("a fake",)
    assert kept.command == "python -m fake"
    assert kept.machine.cores >= 1
    assert kept.machine.cpu
    assert "python" in kept.versions
    assert "OVER ≥ 2" in capsys.readouterr().out


def test_one_that_cannot_run_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = runner.Benchmark("broken", "What if?", refuse)
    command = {"fake": "", "broken": ""}
    assert runner.run_all([broken, FAKE], Options(repeat=3), tmp_path, {}, command) == (0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["fake.json"]
    assert "no clip" in capsys.readouterr().err


def test_the_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{runner.BEGIN}\nold\n{runner.END}\nafter\n")
    found = runner.run(FAKE, Options(repeat=3), "python -m fake")
    for _ in range(2):
        runner.write_table(readme, [found], BUDGETS)
        text = readme.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert text.count("| how fast it is | 1 x | 0 – 2 | ≥ 2 | **over** |") == 1
    readme.write_text("nothing of the kind")
    with pytest.raises(ValueError, match="lacks the lines"):
        runner.write_table(readme, [found], BUDGETS)


def test_figures_are_finite_and_of_the_unit_that_their_budget_is_in() -> None:
    with pytest.raises(ValueError, match="nan"):
        Findings().add("speed", math.nan, "x", "")
    found = runner.run(FAKE, Options(repeat=1), "")
    with pytest.raises(ValueError, match="in x, its budget in s"):
        result.verdicts(found, {"fake": {"speed": Budget(unit="s", reason="", at_most=1.0)}})


@pytest.mark.parametrize("text", ["at_most = 1\nat_least = 2", "", "at_mots = 1"])
def test_a_budget_has_one_limit(tmp_path: Path, text: str) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text(f'[fake.speed]\nunit = "x"\nreason = "because"\n{text}\n')
    with pytest.raises(ValueError, match=r"budgets\.toml"):
        result.load_budgets(path)


def test_every_budget_is_of_a_figure_that_was_measured() -> None:
    budgets = result.load_budgets(HERE / "budgets.toml")
    kept = {
        found.name: {figure.name for figure in found.figures}
        for found in result.load_all(HERE / "results", runner.NAMES)
    }
    assert set(kept) == set(runner.NAMES)
    assert [f"{name}.{key}" for name, limits in budgets.items() for key in limits if key not in kept[name]] == []


def test_every_benchmark_asks_a_question() -> None:
    for name in runner.NAMES:
        assert runner.find(name).question.endswith("?"), name

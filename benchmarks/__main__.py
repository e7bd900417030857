"""Runs the benchmarks, keeps what they found, and holds it against the budgets.

    python -m benchmarks                    all of them: a quarter of an hour and more
    python -m benchmarks cpu latency        some
    python -m benchmarks --table            only make the table in README.md and the drawing anew

A figure over its budget is said to be over, here and in README.md, and that is all: exit code 1 is for a benchmark
that could not run, and with `--strict` for a figure over its budget.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import machine, result
from benchmarks.result import Budgets, Findings, Result
from benchmarks.site import Options

HERE = Path(__file__).parent
NAMES = ("cpu", "throughput", "step", "latency", "start", "outbox", "ingest")
BEGIN, END = "<!-- made by python -m benchmarks: begin -->", "<!-- made by python -m benchmarks: end -->"

USUAL = Options()

Measure = Callable[[Options, Findings], None]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One question and what asks it."""

    name: str
    question: str
    measure: Measure


def find(name: str) -> Benchmark:
    """The benchmark of `benchmarks/<name>.py`; its question is the first line of its docstring."""
    module = importlib.import_module(f"benchmarks.{name}")
    return Benchmark(name, (module.__doc__ or "").split("\n\n")[0].replace("\n", " "), module.measure)


def run(benchmark: Benchmark, options: Options, command: str) -> Result:
    """Ask once. What the benchmark raises passes through."""
    load, began = machine.load(), time.monotonic()
    findings = Findings()
    benchmark.measure(options, findings)
    return Result(
        name=benchmark.name,
        question=benchmark.question,
        command=command,
        taken=result.now(),
        took_s=round(time.monotonic() - began, 1),
        machine=machine.facts(load),
        versions=machine.versions(),
        figures=findings.figures(),
        notes=tuple(findings.notes),
    )


def report(found: Result, budgets: Budgets) -> tuple[list[str], int]:
    """A run as lines for a terminal, and how many figures are over their budget."""
    judged = result.verdicts(found, budgets)
    limits = budgets.get(found.name, {})
    lines = []
    for figure in found.figures:
        held = judged.get(figure.name)
        verdict = "" if held is None else f"{'within' if held else 'OVER'} {limits[figure.name].limit}"
        lines.append(f"  {figure.text:68.68s} {result.shown(figure.value):>8s} {figure.unit:14s} {verdict}".rstrip())
    return lines, sum(not held for held in judged.values())


def write_table(readme: Path, results: Sequence[Result], budgets: Budgets) -> None:
    """Replace what stands between the marks in README.md. ValueError if they are not there."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} lacks the lines {BEGIN!r} and {END!r}")
    made = [*result.machines(results), ""]
    for found in results:
        made += result.table(found, budgets)
    readme.write_text("\n".join([before + BEGIN, "", *made, END + after]), encoding="utf-8")


def run_all(
    benchmarks: Sequence[Benchmark], options: Options, folder: Path, budgets: Budgets, command: Mapping[str, str]
) -> tuple[int, int]:
    """Run, print and keep each; how many figures are over budget, and how many benchmarks did not run."""
    over = broken = 0
    for benchmark in benchmarks:
        print(f"{benchmark.name}: {benchmark.question}", flush=True)
        try:
            found = run(benchmark, options, command[benchmark.name])
        except (OSError, ValueError, RuntimeError, AssertionError, SystemExit, subprocess.SubprocessError):
            traceback.print_exc()
            broken += 1
            continue
        result.save(found, folder)
        lines, worse = report(found, budgets)
        over += worse
        load = f"load average {found.machine.load_before:.1f} to {found.machine.load_after:.1f}"
        print("\n".join(lines), f"  took {found.took_s:.0f} s, {load}", sep="\n", flush=True)
    return over, broken


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without")
    parser.add_argument("--repeat", type=int, default=USUAL.repeat, help="rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=USUAL.seconds, help="per measurement (default: %(default)s)")
    parser.add_argument("--clip", type=Path, help="another video file for cpu and start")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a figure is over its budget")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    budgets = result.load_budgets(HERE / "budgets.toml")
    over = broken = 0
    if not args.table:
        options = replace(USUAL, repeat=args.repeat, seconds=args.seconds, clip=args.clip)
        names = args.names or NAMES
        changed = "".join(
            f" --{key} {getattr(args, key)}"
            for key in ("repeat", "seconds")
            if getattr(args, key) != getattr(USUAL, key)
        )
        command = {name: f"python -m benchmarks {name}{changed}" for name in names}
        over, broken = run_all([find(name) for name in names], options, HERE / "results", budgets, command)
    results = result.load_all(HERE / "results", NAMES)
    write_table(HERE / "README.md", results, budgets)
    _draw(results)
    if over:
        print(f"{over} figures are over their budget (benchmarks/budgets.toml says why it is what it is)")
    return 1 if broken or (over and args.strict) else 0


def _draw(results: Sequence[Result]) -> None:
    """The drawing, where there is matplotlib: it comes with the `train` extra."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from benchmarks import drawing

    drawing.draw(results, HERE / "results" / "cpu.svg")


if __name__ == "__main__":
    sys.exit(main())

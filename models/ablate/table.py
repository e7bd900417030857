"""Rows that are done, kept as one JSON file each; and the tables and the plot that are made of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from edge_agent.contract.event import MODALITIES
from edge_agent.core.records import Arrays
from models import runtime

SEEDS = (0, 1, 2)
_TIMED = 100


def digest(data: bytes) -> str:
    """Tells one state of what a row rests on from another."""
    return hashlib.sha256(data).hexdigest()[:16]


def kept(out: Path, key: str, mark: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one row: from its file if that bears the same mark, else made, and written there."""
    path = out / "rows" / f"{key}.json"
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8")))["mark"] == mark:
        return dict(found)
    begin = time.monotonic()
    figures = {"mark": mark, **make(), "seconds": round(time.monotonic() - begin, 1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
    return dict(json.loads(text))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, and the sample's standard deviation over the seeds (0 for one)."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(mean(values), 4), "spread": round(deviation, 4), "each": [round(v, 4) for v in values]}


def times_ms(made: runtime.Made, graph: str, item: Arrays) -> dict[str, float]:
    """Median time of one window through a graph, by precision: OpenVINO, one thread. {} where it is not installed."""
    found = {}
    for _, precision, engine in runtime.variants(made, ("openvino",)):
        times = []
        for _ in range(_TIMED):
            begin = time.perf_counter()
            engine.run(graph, [item])
            times.append(time.perf_counter() - begin)
        found[precision] = float(np.median(times) * 1e3)
    return found


def write(out: Path, order: Sequence[str]) -> int:
    """All rows that are done, in this order, as JSON, as Markdown and as a plot; how many."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (out / "rows").glob("*.json")}
    done = [found[key] for key in order if key in found]
    (out / "ablations.json").write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    (out / "ablations.md").write_text("\n".join(markdown(done)) + "\n", encoding="utf-8")
    plot(done, out / "ablations.svg")
    return len(done)


def markdown(done: Iterable[Mapping[str, Any]]) -> list[str]:
    """The table of heads, then one of each encoder; figures in percent with their spread."""
    rows = list(done)
    heads, encoders = [row for row in rows if _of_head(row)], [row for row in rows if not _of_head(row)]
    lines = [
        "| group | row | fused AP | without vision | without audio | without sensors | parameters | ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_head_line(found) for found in heads),
    ]
    for group in dict.fromkeys(found["row"]["group"] for found in encoders):
        here = [found for found in encoders if found["row"]["group"] == group]
        names = list(here[0]["figures"])
        titles = [group, *names, "parameters", "ms", "ms int8"]
        lines += ["", f"| {' | '.join(titles)} |", "| " + " | ".join(["---"] * len(titles)) + " |"]
        for found in here:
            cells = [found["row"]["name"], *(_percent(found["figures"][name]) for name in names)]
            cells += [str(found["parameters"]), *(_ms(found["ms"], precision) for precision in ("fp32", "int8"))]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _of_head(found: Mapping[str, Any]) -> bool:
    return "fusion" in found["row"]


def _head_line(found: Mapping[str, Any]) -> str:
    figures, row = found["figures"], found["row"]
    cells = [_percent(figures["ap"])]
    cells += [f"{_percent(figures[f'without_{n}'])} ({-100 * figures[f'lost_{n}']['mean']:+.1f})" for n in MODALITIES]
    return f"| {row['group']} | {row['name']} | {' | '.join(cells)} | {found['parameters']} | {found['ms']:.2f} |"


def _percent(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['mean']:.1f} ± {100 * figure['spread']:.1f}"


def _ms(times: Mapping[str, float], precision: str) -> str:
    return f"{times[precision]:.2f}" if precision in times else "–"


def plot(done: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Heads above encoders, each figure with its spread over the seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tectum"  # the same figures give the same file
    from matplotlib import pyplot as plt

    parts = [part for part in ([r for r in done if _of_head(r)], [r for r in done if not _of_head(r)]) if part]
    sizes = [len(part) + 3 for part in parts]
    figure, every = plt.subplots(
        len(parts), figsize=(8, 0.28 * sum(sizes)), height_ratios=sizes, layout="constrained", squeeze=False
    )
    for axes, part in zip(every[:, 0], parts, strict=True):
        _draw(axes, part)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [f"{found['row']['group']}: {found['row']['name']}" for found in rows][::-1]
    for index, found in enumerate(reversed(rows)):
        figures = found["figures"]
        if _of_head(found):
            first, last = figures["ap"], min(figures[f"without_{name}"]["mean"] for name in MODALITIES)
        else:
            values = list(figures.values())
            first, last = values[0], values[1]["mean"]
        axes.errorbar(first["mean"], index, xerr=first["spread"], fmt="o", color="tab:blue", capsize=3)
        axes.plot(last, index, "|", color="tab:red", markersize=9)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel(
        "heads: average precision on composed dev windows,\nfused (dot, ± over seeds), worst modality missing (bar)"
        if _of_head(rows[0])
        else "encoders: AUC on dev parts,\nfirst figure of the table (dot, ± over seeds), second (bar)",
        fontsize=8,
    )
    axes.grid(axis="x", alpha=0.3)

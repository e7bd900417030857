"""CPU over cameras, ours and the peer's, as a small SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Drawing

from benchmarks.result import Result

#: Rows from the top: figure of `cpu`, where it stands, and the series that it belongs to.
_ROWS = (
    ("one_share", 0.0, 0),
    ("decode_share", 1.0, 1),
    ("one_motion_share", 2.0, 2),
    ("four_share", 3.6, 0),
    ("four_motion_share", 4.6, 2),
)
_SERIES = (
    ("edge-agent: decode, align, infer, decide", "#1f6f8b"),
    ("its camera driver alone", "#8fbccb"),
    ("motion", "#c0843a"),
)
_GROUPS = ((1.0, "1 camera"), (4.1, "4 cameras"))


def draw(results: Sequence[Result], path: Path) -> None:
    """Bars of the medians with every round as a dot; nothing where `cpu` has not been run."""
    cpu = next((result for result in results if result.name == "cpu"), None)
    if cpu is None:
        return
    figures = {figure.name: figure for figure in cpu.figures}
    # Text as text (small, and read in the reader's own font), and no date: the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tectum", "font.size": 9}):
        drawing = Drawing(figsize=(5.6, 2.6), layout="constrained")
        axes = drawing.subplots()
        told: set[int] = set()
        for name, place, series in _ROWS:
            figure = figures.get(name)
            if figure is None:  # no peer on that machine
                continue
            label, colour = _SERIES[series]
            axes.barh(place, figure.value, 0.85, color=colour, label=None if series in told else label)
            axes.plot(figure.runs, [place] * len(figure.runs), ".", color="black", markersize=3)
            end = (max(figure.runs), place)
            axes.annotate(f"{figure.value:.1f}", end, (5, 0), textcoords="offset points", va="center")
            told.add(series)
        axes.set_yticks([place for place, _ in _GROUPS], [label for _, label in _GROUPS])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("% of one core (median; dots: each round)")
        axes.spines[["top", "right"]].set_visible(False)
        drawing.legend(frameon=False, loc="outside upper left", fontsize=8, ncols=3, columnspacing=1.0)
        drawing.savefig(path, metadata={"Date": None})

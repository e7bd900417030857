"""CPU over cameras, ours and the peer's, as a small SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Drawing

from benchmarks.result import Result

_COUNTS = {"one": 1, "four": 4}
_SERIES = (("share", "edge-agent: decode, align, infer, decide", "#1f6f8b"), ("motion_share", "motion", "#c0843a"))


def draw(results: Sequence[Result], path: Path) -> None:
    """Bars of the medians with every round as a dot; nothing where `cpu` has not been run."""
    cpu = next((result for result in results if result.name == "cpu"), None)
    if cpu is None:
        return
    figures = {figure.name: figure for figure in cpu.figures}
    # Text as text (small, and read in the reader's own font), and no date: the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tectum", "font.size": 9}):
        drawing = Drawing(figsize=(5.2, 2.4), layout="constrained")
        axes = drawing.subplots()
        places, labels = [], []
        for group, (word, count) in enumerate(_COUNTS.items()):
            for row, (suffix, label, colour) in enumerate(_SERIES):
                figure = figures.get(f"{word}_{suffix}")
                if figure is None:
                    continue
                place = group * 2.6 + row
                axes.barh(place, figure.value, 0.85, color=colour, label=label if not group else None)
                axes.plot(figure.runs, [place] * len(figure.runs), ".", color="black", markersize=3)
                axes.annotate(
                    f"{figure.value:.1f}", (max(figure.runs), place), (5, 0), textcoords="offset points", va="center"
                )
            places.append(group * 2.6 + 0.5)
            labels.append(f"{count} camera{'s' * (count > 1)}")
        alone = figures["decode_share"]
        axes.axvline(alone.value, color="#1f6f8b", linestyle=":", linewidth=1, label="camera driver alone, 1 camera")
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("% of one core (dots: each round)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", fontsize=8)
        drawing.savefig(path, metadata={"Date": None})

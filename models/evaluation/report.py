"""One HTML file with everything that an evaluation found: tables beside plots, nothing fetched from anywhere."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.evaluation.parity import Pair
from models.evaluation.sessions import Played

matplotlib.use("svg")
matplotlib.rcParams |= {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tectum",  # the same figures give the same file
    "font.family": "sans-serif",
}
_BLUE, _ORANGE, _RED, _GREY, _GREEN = "#2563eb", "#ea7a0c", "#dc2626", "#9ca3af", "#16a34a"
_STYLE = """
:root{color-scheme:light dark;--fg:#111827;--bg:#fff;--line:#e5e7eb;--soft:#6b7280}
@media(prefers-color-scheme:dark){:root{--fg:#e5e7eb;--bg:#111827;--line:#374151;--soft:#9ca3af}}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:0 auto;padding:1rem}
body{color:var(--fg);background:var(--bg)}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}
p{color:var(--soft);margin:.3rem 0 .8rem}.wide{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{white-space:normal;vertical-align:bottom;max-width:6rem;line-height:1.25}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--bg)}
.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots>figure{margin:0;min-width:min(100%,11rem)}
figure{margin:0 0 1rem}svg{width:100%;height:auto;background:#fff;border-radius:6px}
figcaption{color:var(--soft);font-size:.85rem;overflow-wrap:anywhere}
.strips{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.5rem .8rem}
.strips figcaption{font-size:.7rem;line-height:1.2}.strips figure{margin:0}
h3{font-size:.95rem;margin:1rem 0 .4rem}
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        + "\n".join(sections)
        + "</html>\n"
    )


def section(title: str, text: str, *parts: str) -> str:
    """A heading, a sentence that says what is to be seen, and tables or plots."""
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>" + "\n".join(parts)


def table(rows: Mapping[str, Mapping[str, Any]], corner: str = "") -> str:
    """Rows by name; columns in the order in which they come up, but for empty ones; a missing cell is a dash."""
    columns = list(
        dict.fromkeys(column for row in rows.values() for column, value in row.items() if value is not None)
    )
    head = "".join(f"<th>{html.escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{html.escape(said(row.get(c)))}</td>" for c in columns)
        + "</tr>"
        for name, row in rows.items()
    )
    return f"<div class='wide'><table><tr><th>{html.escape(corner)}</th>{head}</tr>{body}</table></div>"


def text_table(rows: Mapping[str, Mapping[str, Any]], corner: str = "") -> str:
    """The same for a terminal."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[corner, *(column.replace("_", " ") for column in columns)]]
    lines += [[name, *(said(row.get(column)) for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def said(value: Any) -> str:
    """A cell: figures with three decimals at most, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def plots(*figures: tuple[Figure, str], narrow: bool = False) -> str:
    """Plots side by side where there is room, each as wide as it was drawn (or small) and with its caption."""
    return "<div class='plots'>" + "".join(_plot(drawn, text, narrow) for drawn, text in figures) + "</div>"


def _plot(drawn: Figure, text: str, narrow: bool) -> str:
    width_rem = 4.4 * float(drawn.get_size_inches()[0])
    style = f"flex:1 1 {width_rem:.0f}rem;max-width:min(100%,{1.6 * width_rem:.0f}rem)"
    if narrow:
        style = "flex:0 0 14rem;max-width:100%"
    return f"<figure style='{style}'>{_svg(drawn)}<figcaption>{html.escape(text)}</figcaption></figure>"


def _svg(drawn: Figure) -> str:
    stream = io.StringIO()
    drawn.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _axes(width: float = 4.6, height: float = 3.2) -> tuple[Figure, Axes]:
    drawn = Figure(figsize=(width, height))
    return drawn, drawn.add_subplot()


def roc(truth: NDArray[Any], scores: Mapping[str, NDArray[Any]]) -> Figure:
    """True over false positive rate, a line for each score; the first is drawn strong."""
    drawn, axes = _axes()
    for (name, score), colour, wide in _lines(scores):
        order = np.argsort(-score, kind="stable")
        hits = np.cumsum(truth[order] > 0) / max((truth > 0).sum(), 1)
        false = np.cumsum(truth[order] <= 0) / max((truth <= 0).sum(), 1)
        axes.plot([0, *false], [0, *hits], color=colour, lw=wide, label=name)
    axes.plot([0, 1], [0, 1], color=_GREY, lw=0.8, ls=":")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return drawn


def precision_recall(truth: NDArray[Any], scores: Mapping[str, NDArray[Any]]) -> Figure:
    """Precision over recall, a line for each score."""
    drawn, axes = _axes()
    for (name, score), colour, wide in _lines(scores):
        hits = np.cumsum(truth[np.argsort(-score, kind="stable")] > 0)
        axes.plot(hits / max(hits[-1], 1), hits / np.arange(1, len(hits) + 1), color=colour, lw=wide, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return drawn


def _lines(scores: Mapping[str, NDArray[Any]]) -> list[tuple[tuple[str, NDArray[Any]], str, float]]:
    colours = [_BLUE, _ORANGE, _GREEN, "#9333ea", _GREY, _RED]
    return [(item, colours[i % len(colours)], 2.2 if i == 0 else 1.2) for i, item in enumerate(scores.items())]


def reliability(truth: NDArray[Any], probability: NDArray[Any], bins: int = 10) -> Figure:
    """How often it was so over how sure the model was (Guo et al., ICML 2017), in bins of equal width."""
    drawn, axes = _axes(3.4, 2.6)
    place = np.minimum((probability * bins).astype(int), bins - 1)
    shown = [
        (probability[place == b].mean(), truth[place == b].mean(), (place == b).sum())
        for b in range(bins)
        if (place == b).any()
    ]
    sure, so, count = (np.array(column) for column in zip(*shown, strict=True))
    axes.plot([0, 1], [0, 1], color=_GREY, lw=0.8, ls=":")
    axes.plot(sure, so, color=_BLUE, lw=1.2)
    axes.scatter(sure, so, s=12 + 120 * count / count.sum(), color=_BLUE, zorder=3)
    axes.set(xlabel="said", ylabel="was so", xlim=(0, 1), ylim=(0, 1.02))
    return drawn


def timeline(played: Played, on: float) -> Figure:
    """Score of one session over time, what was wrong shaded, alerts marked."""
    drawn, axes = _axes(9.2, 1.7)
    for cause in played.session.causes:
        axes.axvspan(cause.start_s, cause.end_s, color=_RED, alpha=0.13, lw=0)
        axes.text(cause.start_s, 1.03, f"{cause.label} ({', '.join(cause.shown)})", fontsize=6.5, color=_RED)
    axes.axhline(on, color=_GREY, lw=0.8, ls="--")
    axes.plot(played.times_s, 1 / (1 + np.exp(-np.clip(played.logits, -30, 30))), color=_BLUE, lw=1.2)
    for alert in played.alerts:
        axes.plot(played.alert_s(alert), on, marker="v", color=_ORANGE, ms=6)
    axes.set(ylim=(0, 1), xlim=(0, played.session.seconds), ylabel="score", xlabel="seconds")
    return drawn


#: Size of a strip in its own units, and the room above it for alerts.
_STRIP_WIDTH, _STRIP_HEIGHT, _STRIP_ROOM = 120.0, 36.0, 6.0


def strips(sessions: Sequence[Played], on: float) -> str:
    """The same of many short sessions, small, those together that show in the same modalities."""
    groups: dict[str, list[Played]] = {}
    for played in sessions:
        shown = sorted({name for cause in played.session.causes for name in cause.shown})
        groups.setdefault(f"wrong in {' and '.join(shown)}" if shown else "nothing wrong", []).append(played)
    return "".join(
        f"<h3>{html.escape(title)} ({len(groups[title])})</h3><div class='strips'>"
        + "".join(_strip(played, on) for played in groups[title])
        + "</div>"
        for title in sorted(groups)
    )


def _strip(played: Played, on: float) -> str:
    begin_s, span_s = played.session.begin_s, played.session.seconds - played.session.begin_s
    step_s = played.step_ms / 1000

    def across(time_s: float) -> float:
        return round((time_s - begin_s) / span_s * _STRIP_WIDTH, 1)

    def up(score: float) -> float:
        return round(_STRIP_ROOM + (1 - score) * (_STRIP_HEIGHT - _STRIP_ROOM), 1)

    times, truth = played.times_s, played.session.truth(played.times_s)
    shaded = "".join(
        f"<rect x='{across(t - step_s)}' y='{up(1)}' width='{across(begin_s + step_s)}' "
        f"height='{up(0) - up(1)}' fill='{_RED}' fill-opacity='.16'/>"
        for t in times[truth == 1]
    )
    scores = 1 / (1 + np.exp(-np.clip(played.logits, -30, 30)))
    line = " ".join(f"{across(t)},{up(float(score))}" for t, score in zip(times, scores, strict=True))
    alerts = "".join(
        f"<path d='M{across(max(played.alert_s(a), begin_s)) - 3},0h6l-3,5z' fill='{_ORANGE}'/>"
        for a in played.alerts
    )
    causes = ", ".join(cause.label for cause in played.session.causes)
    text = html.escape(played.session.name + (f": {causes}" if causes else ""))
    return (
        f"<figure><svg viewBox='0 0 {_STRIP_WIDTH:g} {_STRIP_HEIGHT:g}' role='img' aria-label='{text}'>{shaded}"
        f"<path d='M0,{up(on)}H{_STRIP_WIDTH:g}' stroke='{_GREY}' stroke-width='.6' stroke-dasharray='3 2'/>"
        f"<polyline points='{line}' fill='none' stroke='{_BLUE}' stroke-width='1.2'/>{alerts}</svg>"
        f"<figcaption>{text}</figcaption></figure>"
    )


def curves(lines: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Average precision over how many sessions lack a modality, a line for each."""
    drawn, axes = _axes()
    for (name, points), colour in zip(lines.items(), (_BLUE, _ORANGE, _GREEN, _GREY), strict=False):
        axes.plot(
            [100 * share for share, _ in points], [ap for _, ap in points], "o-", color=colour, ms=3, label=name
        )
    axes.set(xlabel="sessions that lack it, %", ylabel="average precision", ylim=(0, 1.01))
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return drawn


def differences(found: Sequence[Pair]) -> Figure:
    """Share of clips in which two forms differ by more than so much, a line for each pair; tolerances dotted."""
    drawn, axes = _axes(7.0, 3.2)
    colours = [_BLUE, _ORANGE, _GREEN, "#9333ea", _RED, "#0891b2", "#a16207", _GREY]
    for index, pair in enumerate(found):
        worst = np.sort(np.maximum(next(iter(pair.worst.values())), 1e-6))
        axes.step(worst, 1 - np.arange(len(worst)) / len(worst), color=colours[index % len(colours)], label=pair.name)
    for tolerance in {pair.tolerance for pair in found if pair.tolerance is not None}:
        axes.axvline(tolerance, color=_GREY, lw=0.8, ls=":")
    axes.set(
        xscale="log", xlabel="largest difference of the score in a clip", ylabel="share of clips", ylim=(0, 1.01)
    )
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return drawn


def ablations(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Average precision of each row with its spread over seeds."""
    drawn, axes = _axes(7.0, 0.19 * len(rows) + 0.9)
    places = range(len(rows))
    axes.errorbar(
        [row["mean"] for row in rows], places, xerr=[row["spread"] for row in rows], fmt="o", ms=3, color=_BLUE
    )
    axes.set_yticks(places, [f"{row['group']}: {row['name']}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("average precision")
    return drawn


def bars(rows: Mapping[str, Mapping[str, float | None]], column: str, label: str) -> Figure:
    """One column of a table, a bar a row; the first row is the mark that the others are held against."""
    drawn, axes = _axes(9.2, 2.6)
    values = [row.get(column) or 0.0 for row in rows.values()]
    axes.bar(range(len(values)), values, color=[_BLUE, *[_ORANGE] * (len(values) - 1)], width=0.7)
    axes.axhline(values[0], color=_BLUE, lw=0.8, ls=":")
    axes.set_xticks(range(len(values)), list(rows), fontsize=7, rotation=30, ha="right")
    axes.set_ylabel(label)
    return drawn


def matrix(rows: Mapping[str, Mapping[str, int]]) -> Figure:
    """Confusion: what it was, by what it was called."""
    columns = sorted({column for row in rows.values() for column in row})
    values = np.array([[row.get(column, 0) for column in columns] for row in rows.values()])
    drawn, axes = _axes(5.2, 0.42 * len(rows) + 1.4)
    axes.imshow(values / np.maximum(values.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if value:
            share = value / values[row].sum()
            axes.text(column, row, str(value), ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel="called", ylabel="was")
    return drawn

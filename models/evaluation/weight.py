"""One report on what a bundle weighs: bytes, parameters, multiplications, milliseconds, and what each step cost."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.contract.manifest import GRAPHS
from edge_agent.core import infer
from edge_agent.core.records import Arrays, Engine, Model, Prepared
from edge_agent.engine import Bundle, compile_graphs, installed, open_bundle, tensorrt
from edge_agent.engine.openvino import OpenVino
from models.bundle import COMPRESSION, GOLDEN, load_arrays
from models.compression.footprint import Latency, footprint, latencies
from models.compression.quantise import plain
from models.runtime import INPUT

#: Ampere, as a Jetson Orin's GPU is; its own SM87 cannot be compiled for from a CPU.
_CAPABILITY = "SM86"


#: Engines of a report, beside those of each runtime in int8 and in float32.
_OWN, _TEACHER = "openvino float, its own precision", "openvino f32, teacher"


def report(folder: Path, teacher: Path | None = None) -> dict[str, Any]:
    """Of the bundle in `folder`, and of how fast its float32 teacher was, where that bundle is given; a minute.

    BundleError if either is not whole.
    """
    opened = open_bundle(folder)
    steps = json.loads(opened.read(COMPRESSION)) if COMPRESSION in opened.manifest.files else {}
    graphs = {graph: opened.read(f"{graph}.onnx") for graph in GRAPHS}
    large = {graph: plain(data) for graph, data in graphs.items()}
    items = _items(opened)
    engines = _engines(opened, graphs, large)
    if teacher is not None:
        engines[_TEACHER] = _teacher(teacher)
    try:
        speed = {graph: _speed(engines, graph, items[graph]) for graph in GRAPHS}
        step = _told(latencies(_steps(opened, engines, items)))
    finally:
        for engine in engines.values():
            engine.close()
    return {
        "bundle": opened.hash,
        "name": opened.manifest.name,
        "graphs": {graph: asdict(footprint(data)) for graph, data in graphs.items()},
        "total": _total(graphs, large, steps),
        "latency_ms": speed,
        "step_ms": step,
        "vision_int8_over_f32": _ratio(speed["vision"], "openvino f32"),
        "vision_int8_over_own": _ratio(speed["vision"], _OWN),
        "vision_int8_over_teacher": _ratio(speed["vision"], _TEACHER),
        "steps": [step for told in steps.values() for step in told["steps"]],
        "low_rank": {graph: told["low_rank"] for graph, told in steps.items() if "low_rank" in told},
        "tensorrt": _compiled(graphs),
    }


def _items(opened: Bundle) -> dict[str, Arrays]:
    """One item of each graph: a golden window, and for the head embeddings of noise."""
    arrays = load_arrays(opened.path / GOLDEN)
    # In memory as `core.prepare` leaves a picture: the values of a pixel together.
    arrays["frames"] = np.ascontiguousarray(arrays["frames"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    rng = np.random.default_rng(0)
    shape = (opened.manifest.history, opened.manifest.embedding)
    history: dict[str, NDArray[Any]] = {name: rng.normal(0, 1, shape).astype(np.float32) for name in MODALITIES}
    fusion = {**history, "mask": np.ones((shape[0], len(MODALITIES)), np.float32)}
    return {**{graph: {key: arrays[key][0]} for graph, key in INPUT.items()}, "fusion": fusion}


def _engines(opened: Bundle, int8: Mapping[str, bytes], large: Mapping[str, bytes]) -> dict[str, Engine]:
    manifest, found = opened.manifest, dict[str, Engine]()
    for name in installed():
        found[f"{name} int8"] = compile_graphs(int8, manifest, name)
        found[f"{name} f32"] = compile_graphs(large, manifest, name)
    if "openvino" in installed():
        found[_OWN] = OpenVino(large, manifest, 1, precision=None)
    return found


def _teacher(folder: Path) -> Engine:
    opened = open_bundle(folder)
    return compile_graphs({graph: opened.read(f"{graph}.onnx") for graph in GRAPHS}, opened.manifest, "openvino")


def _speed(engines: Mapping[str, Engine], graph: str, item: Arrays) -> dict[str, dict[str, float]]:
    def way(engine: Engine) -> Callable[[], object]:
        return lambda: engine.run(graph, [item])

    return _told(latencies({name: way(engine) for name, engine in engines.items()}))


def _steps(
    opened: Bundle, engines: Mapping[str, Engine], items: Mapping[str, Arrays]
) -> dict[str, Callable[[], object]]:
    """A whole step of one scene: three encoders, then the head under every mask, as `core.infer` does it."""
    inputs = [items[graph][key] for graph, key in INPUT.items()]
    window = Prepared("scene", 0, *inputs)
    history = opened.manifest.history

    def way(engine: Engine) -> Callable[[], object]:
        model = Model(opened.manifest, opened.hash, engine)

        def step() -> object:
            encoded = infer.encode(model, [window])[0]
            embeddings, mask = np.stack([encoded.embeddings] * history), np.stack([encoded.mask] * history)
            return infer.score(model, [infer.History("scene", 0, embeddings, mask, encoded.heat)])

        return step

    return {name: way(engine) for name, engine in engines.items()}


def _total(graphs: Mapping[str, bytes], large: Mapping[str, bytes], steps: Mapping[str, Any]) -> dict[str, Any]:
    teacher = {graph: told["steps"][0]["bytes"] for graph, told in steps.items()}
    before = sum(teacher.get(graph, len(large[graph])) for graph in GRAPHS)
    after = sum(map(len, graphs.values()))
    return {
        "bytes": after,
        "parameters": sum(footprint(data).parameters for data in graphs.values()),
        "macs": sum(footprint(data).macs for data in graphs.values()),
        "float32_bytes": sum(map(len, large.values())),
        "teacher_bytes": before,
        "teacher_over_int8": round(before / after, 2),
    }


def _ratio(speed: Mapping[str, Mapping[str, float]], other: str) -> float | None:
    """How many times longer `other` takes than OpenVINO in int8; None where either is not there."""
    if "openvino int8" not in speed or other not in speed:
        return None
    return round(speed[other]["p50"] / speed["openvino int8"]["p50"], 2)


def _compiled(graphs: Mapping[str, bytes]) -> dict[str, Any]:
    """What TensorRT makes of the graphs, where one is installed that compiles without a GPU."""
    if "tensorrt_rtx" not in tensorrt.installed():
        return {}
    built = {graph: tensorrt.build(graph, data, capability=_CAPABILITY) for graph, data in graphs.items()}
    return {
        graph: {
            "version": one.version,
            "bytes": len(one.engine),
            "convolutions": one.convolutions,
            "int8": one.int8,
        }
        for graph, one in built.items()
    }


def _told(found: Mapping[str, Latency]) -> dict[str, dict[str, float]]:
    return {name: {key: round(value, 3) for key, value in asdict(one).items()} for name, one in found.items()}


def headline(found: Mapping[str, Any]) -> str:
    """What it comes to, in a sentence."""
    total = found["total"]
    words = (
        f"{total['parameters']:,} parameters in {total['bytes']:,} bytes, {total['teacher_over_int8']} times smaller"
    )
    words += f" than the float32 teacher ({total['teacher_bytes']:,})"
    if found["vision_int8_over_f32"] is not None:
        step = found["step_ms"]["openvino int8"]
        words += f"; in OpenVINO vision is {found['vision_int8_over_f32']} times faster than in true float32"
        words += f" and {found['vision_int8_over_own']} times than in its own precision"
        words += f", a whole step takes {step['p50']} ms (p99 {step['p99']}, worst {step['worst']})"
    return words


Rows = Sequence[Sequence[object]]


def tables(found: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Rows]]:
    """(title, header, rows) of a report, for people."""
    total = found["total"]
    sizes = [[name, one["bytes"], one["parameters"], one["macs"]] for name, one in found["graphs"].items()]
    sizes.append(["all", total["bytes"], total["parameters"], total["macs"]])
    sizes.append(["the same in float32", total["float32_bytes"], "", ""])
    sizes.append([f"float32 teacher ({total['teacher_over_int8']} times as large)", total["teacher_bytes"], "", ""])
    speed = [
        [graph, engine, one["p50"], one["p99"], one["worst"]]
        for graph, engines in {**found["latency_ms"], "whole step": found["step_ms"]}.items()
        for engine, one in engines.items()
    ]
    steps = [
        [
            step["graph"],
            step["name"],
            step["bytes"],
            step["parameters"],
            step["macs"],
            "" if step["error"] is None else step["error"],
            ", ".join(f"{key} {value}" for key, value in step["figures"].items()),
        ]
        for step in found["steps"]
    ]
    compiled = [
        [graph, one["version"], one["bytes"], f"{one['int8']} of {one['convolutions']}"]
        for graph, one in found["tensorrt"].items()
    ]
    return [
        ("Size", ("graph", "bytes", "parameters", "multiplications per item"), sizes),
        ("Milliseconds of one core per item", ("graph", "engine", "p50", "p99", "worst"), speed),
        (
            "Steps, each against the first",
            ("graph", "step", "bytes", "parameters", "multiplications", "embedding off by", "figures"),
            steps,
        ),
        ("Compiled ahead of time by TensorRT", ("graph", "version", "bytes", "int8 convolutions"), compiled),
    ]


def page(found: Mapping[str, Any]) -> str:
    """The report as one HTML file that needs nothing else."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Compression</title>",
        "<style>body{font:15px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em}",
        "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}",
        "td:nth-child(n+2){text-align:right}</style>",
        f"<h1>Compression of {html.escape(str(found['name']))}</h1><p>Bundle {html.escape(str(found['bundle']))}</p>",
        f"<p>{html.escape(headline(found))}.</p>",
    ]
    for title, header, rows in tables(found):
        if rows:
            parts.append(f"<h2>{html.escape(title)}</h2><table><tr>")
            parts += [f"<th>{html.escape(name)}</th>" for name in header]
            parts.append("</tr>")
            for row in rows:
                parts.append("<tr>" + "".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) + "</tr>")
            parts.append("</table>")
    return "\n".join([*parts, "</html>", ""])


def text(found: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    lines = []
    for title, header, rows in tables(found):
        cells = [list(header), *([_shown(cell) for cell in row] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        lines += ["", title, *("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)]
    return "\n".join([headline(found), *lines])


def _shown(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)

"""How many frames and windows a second does the core take, as fast as it goes, and how long does a window hold it up?

`Pipeline.push` with the bundle that ships, on OpenVINO and on ONNX Runtime (both float32 arithmetic where the graph
is not int8, one thread), one and four scenes of a simulated site with picture, sound and seven sensor channels, made
before the clock runs. A step is a push that closes a window: prepare, encode, score and decide. Frames are 320x240,
and once 1280x720, as of a camera without a sub-stream.

On a machine that does other things too, believe the figures per CPU second: they leave out who else was running.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2

from benchmarks import site
from benchmarks.result import Findings
from edge_agent import engine
from edge_agent.app import SHIPPED
from edge_agent.config import Channel, Quantity, SceneConfig
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import CLOCK, Model, Sample, Scores
from edge_agent.simulate import Site, demo

ENGINES = ("openvino", "onnxruntime")
SITE_S = 60
_FPS, _RATE_HZ, _CHUNK = 10, 16_000, 1_600
_SECOND = 1_000_000_000
_QUANTITIES: tuple[Quantity, ...] = ("temperature", "humidity", "smoke", "co2", "light", "vibration", "door")
_WARM_STEPS = 6


@dataclass(frozen=True, slots=True)
class Run:
    """One pass of all samples through a pipeline."""

    frames: int
    windows: int
    wall_s: float
    cpu_s: float
    step_ms: tuple[float, ...]  #: per step, all its scenes


def measure(options: site.Options, findings: Findings) -> None:
    small = samples(320, 240)
    large = [replace(sample, data=_enlarged(sample)) for sample in small]
    models = {name: engine.load(SHIPPED, name, 1) for name in ENGINES}
    for name, model in models.items():
        findings.note(f"{name}: {getattr(model.engine, 'settings', {})}")
    cpu: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.repeat):
        for count in (1, 4):
            for name, model in models.items():  # side by side, so that both meet the same neighbours
                run = passed(small, count, model)
                _add(f"{name}_{count}", f"{name}, {count} scene{'s' * (count > 1)}", run, findings)
                cpu.setdefault((name, count), []).append(run.cpu_s)
            ratio = cpu["onnxruntime", count][-1] / cpu["openvino", count][-1]
            findings.add(f"ratio_{count}", ratio, "x", f"CPU of ONNX Runtime over OpenVINO, {count} at once")
        _add("hd", "openvino, 1 scene of 1280x720", passed(large, 1, models["openvino"]), findings)
    for model in models.values():
        model.engine.close()


def _add(key: str, text: str, run: Run, findings: Findings) -> None:
    findings.add(f"{key}_frames_s", run.frames / run.wall_s, "frames/s", f"{text}: frames")
    findings.add(f"{key}_windows_s", run.windows / run.wall_s, "windows/s", f"{text}: windows")
    findings.add(f"{key}_windows_cpu_s", run.windows / run.cpu_s, "windows/CPU s", f"{text}: windows per CPU second")
    findings.add_spread(f"{key}_step", run.step_ms, "ms", f"{text}: a step")


def samples(width: int, height: int) -> list[Sample]:
    """What a source `cam0` gives in `SITE_S` seconds, in the order of time, with the clock's ticks."""
    place = Site(7, demo(7, SITE_S), width=width, height=height, fps=_FPS, rate_hz=_RATE_HZ)
    made: list[tuple[int, int, Sample]] = []
    readings = 0
    for index in range(SITE_S * 10):
        at_ns = index * _SECOND // 10
        made.append((at_ns, 0, Sample("cam0", "frame", index, at_ns, place.frame(index / 10))))
        heard = Sample("cam0", "audio", index, at_ns, place.sound(index * _CHUNK, _CHUNK), _RATE_HZ)
        made.append((at_ns + _SECOND // 10, 1, heard))
        if index % 10 == 0:
            for reading in place.readings(index / 10):
                made.append((at_ns, 2, Sample("cam0", "reading", readings, at_ns, reading)))
                readings += 1
        made.append((at_ns, 3, Sample("cam0", "tick", index, at_ns)))
        for half in (0, 1):  # the agent's own tick comes every 50 ms
            tick_ns = at_ns + half * _SECOND // 20
            made.append((tick_ns, 4, Sample(CLOCK, "tick", 2 * index + half, tick_ns)))
    return [sample for _, _, sample in sorted(made, key=lambda entry: entry[:2])]


def passed(given: Sequence[Sample], count: int, model: Model) -> Run:
    """All samples through a fresh pipeline of `count` scenes that look at the same site."""
    stream = [
        again
        for sample in given
        for again in (
            [sample] if sample.source == CLOCK else [replace(sample, source=f"cam{i}") for i in range(count)]
        )
    ]
    scored: list[Scores] = []
    pipeline = Pipeline([_scene(i) for i in range(count)], model, on_scores=scored.append)
    steps_ms: list[float] = []
    cpu_s, began = time.process_time(), time.perf_counter()
    for sample in stream:
        known, start = len(scored), time.perf_counter()
        pipeline.push(sample)
        if len(scored) > known:
            steps_ms.append((time.perf_counter() - start) * 1e3)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    frames = sum(sample.kind == "frame" for sample in stream)
    return Run(frames, len(scored), wall_s, cpu_s, tuple(steps_ms[_WARM_STEPS:]))


def _scene(number: int) -> SceneConfig:
    source = f"cam{number}"
    sensors = tuple(Channel(source=source, channel=name, quantity=name) for name in _QUANTITIES)
    return SceneConfig(name=f"scene{number}", camera=source, microphone=source, sensors=sensors)


def _enlarged(sample: Sample) -> object:
    return cv2.resize(sample.data, (1280, 720)) if sample.kind == "frame" else sample.data

"""What does one step of one scene cost, and what is int8 worth to it?

The three encoders and the head under every mask of the modalities, as `core.infer` runs them on a window of picture,
sound and sensors, with the bundle that ships; one thread, CPU time, all engines in turn. Without resize, alignment
and decision: those are in `throughput`. Held against the same weights in float32 on the same engine.
"""

from __future__ import annotations

from benchmarks import site
from benchmarks.result import Findings
from edge_agent.app import SHIPPED
from models.evaluation import weight

_WORDS = {
    "openvino int8": "openvino_int8",
    "openvino f32": "openvino_f32",
    "openvino float, its own precision": "openvino_own",
    "onnxruntime int8": "onnxruntime_int8",
    "onnxruntime f32": "onnxruntime_f32",
}


def measure(options: site.Options, findings: Findings) -> None:
    for _ in range(options.repeat):
        found = weight.report(SHIPPED)
        for engine, key in _WORDS.items():
            for word, value in found["step_ms"][engine].items():
                findings.add(f"step_{key}_{word}", value, "ms", f"whole step, {engine}, {word}")
            for graph, speed in found["latency_ms"].items():
                findings.add(f"{graph}_{key}_p50", speed[engine]["p50"], "ms", f"{graph} alone, {engine}, p50")
        for name in ("openvino", "onnxruntime"):
            ratio = found["step_ms"][f"{name} f32"]["p50"] / found["step_ms"][f"{name} int8"]["p50"]
            findings.add(f"step_{name}_ratio", ratio, "x", f"whole step, {name}: float32 over int8")
            speed = found["latency_ms"]["vision"]
            ratio = speed[f"{name} f32"]["p50"] / speed[f"{name} int8"]["p50"]
            findings.add(f"vision_{name}_ratio", ratio, "x", f"vision, {name}: float32 over int8")
        own = found["vision_int8_over_own"]
        findings.add("vision_openvino_own_ratio", own, "x", "vision, openvino: its own precision over int8")
    total = found["total"]
    findings.note(f"{total['bytes']} bytes, {total['parameters']} parameters, {total['macs']} multiplications a step")

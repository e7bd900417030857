"""ONNX Runtime on the CPU: the reference. The only home of the `onnxruntime` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

from edge_agent.contract.manifest import GRAPHS, Manifest
from edge_agent.core.records import Arrays
from edge_agent.engine import ports
from edge_agent.errors import BundleError

_TYPES = {"tensor(uint8)": "uint8", "tensor(int16)": "int16", "tensor(float)": "float32"}
#: What a session raises for a file that it does not take; the binding has no common base below RuntimeError.
_REFUSALS = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
)


class OnnxRuntime:
    """Engine of `edge_agent.core.records`, of whichever of the four graphs are given."""

    def __init__(self, graphs: Mapping[str, bytes], manifest: Manifest, threads: int) -> None:
        self._ports = {name: found for name, found in ports.promised(manifest).items() if name in graphs}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._outputs: dict[str, list[str]] = {}
        for graph in (name for name in GRAPHS if name in graphs):
            session = _session(graph, graphs[graph], threads)
            found = _found(graph, session)
            ports.check(graph, found, manifest)
            self._outputs[graph] = list(found.outputs)
            self._sessions[graph] = session

    @property
    def settings(self) -> dict[str, str]:
        """What the runtime says it runs with: engine, version, precision, threads."""
        session = next(iter(self._sessions.values()), None)
        # The CPU provider computes in the types of the graph, which are float32 by the contract.
        told = (
            {}
            if session is None
            else {
                "precision": "f32",
                "threads": str(session.get_session_options().intra_op_num_threads),
            }
        )
        return {"engine": "onnxruntime", "version": onnxruntime.__version__, **told}

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        """Outputs per item. ValueError for inputs that the graph does not take, and after `close`."""
        if not items:
            return []
        batch = ports.stack(graph, items, self._ports)
        session = self._sessions.get(graph)
        if session is None:
            raise ValueError("the engine is closed")
        names = self._outputs[graph]
        return ports.split(dict(zip(names, session.run(names, batch), strict=True)), len(items))

    def close(self) -> None:
        """Free the graphs. May be called twice."""
        self._sessions.clear()


def _session(graph: str, data: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A pool that spins between two windows costs a core for nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        raise BundleError(f"{graph}.onnx: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from error


def _found(graph: str, session: onnxruntime.InferenceSession) -> ports.GraphPorts:
    sides: list[dict[str, ports.Port]] = []
    for side in (session.get_inputs(), session.get_outputs()):
        found: dict[str, ports.Port] = {}
        for port in side:
            if not port.shape or isinstance(port.shape[0], int):
                raise BundleError(f"{graph}.onnx: {port.name} has no free batch axis in front: {port.shape}")
            rest = tuple(axis if isinstance(axis, int) else None for axis in port.shape[1:])
            found[port.name] = ports.Port(_TYPES.get(port.type, port.type), rest)
        sides.append(found)
    return ports.GraphPorts(*sides)

"""Bundles that are ready to run: `open_bundle` checks a folder, `load` compiles it, `selftest` proves it.

An engine's module is imported when it is asked for: a device installs the runtime it needs, not all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from edge_agent.contract.manifest import GRAPHS, Manifest
from edge_agent.core.records import Engine, Model
from edge_agent.engine.bundle import Bundle, open_bundle
from edge_agent.engine.golden import SelfTest, selftest
from edge_agent.errors import ConfigError

#: Engine → (module, class, distribution package that must be there).
_ENGINES = {
    "openvino": ("edge_agent.engine.openvino", "OpenVino", "openvino"),
    "onnxruntime": ("edge_agent.engine.onnxruntime", "OnnxRuntime", "onnxruntime"),
}


class _Opens(Protocol):
    def __call__(self, graphs: Mapping[str, bytes], manifest: Manifest, threads: int) -> Engine: ...


def installed() -> tuple[str, ...]:
    """Names of the engines whose runtime is installed here; nothing is imported."""
    return tuple(name for name, (_, _, package) in _ENGINES.items() if find_spec(package) is not None)


def load(path: Path, name: str = "openvino", threads: int = 1) -> Model:
    """The bundle in folder `path`, checked and compiled on engine `name` with `threads` threads.

    Takes from tens of milliseconds to seconds. ConfigError for an engine that is not installed, BundleError for
    a bundle that is not whole or that the engine cannot compile.
    """
    bundle = open_bundle(path)
    graphs = {graph: bundle.read(f"{graph}.onnx") for graph in GRAPHS}
    return Model(bundle.manifest, bundle.hash, compile_graphs(graphs, bundle.manifest, name, threads))


def compile_graphs(
    graphs: Mapping[str, bytes], manifest: Manifest, name: str = "openvino", threads: int = 1
) -> Engine:
    """An engine of the ONNX files given, by graph: all four or some of them, sized as the manifest says.

    For graphs that are no bundle (yet). ConfigError for an engine that is not installed and for a graph that no
    bundle has, BundleError for a file that breaks the manifest's promise or that the engine cannot compile.
    """
    here = installed()
    if name not in here:
        raise ConfigError(f"engine {name!r} is not installed; there are {', '.join(here) or 'none'}", "model.engine")
    if threads < 1:
        raise ConfigError(f"at least 1 thread, got {threads}", "model.threads")
    unknown = sorted(graphs.keys() - set(GRAPHS))
    if unknown:
        raise ConfigError(f"no graph is named {', '.join(unknown)}; there are {', '.join(GRAPHS)}")
    module, kind, _ = _ENGINES[name]
    opens = cast(_Opens, getattr(import_module(module), kind))
    return opens(graphs, manifest, threads)


__all__ = ["Bundle", "SelfTest", "compile_graphs", "installed", "load", "open_bundle", "selftest"]

"""A bundle on disk: opened, measured and hashed before anything of it is believed.

Nothing in a bundle is executed or unpickled. Files are read once, checked, and handed on as bytes, so that what an
engine parses is what was hashed, and a graph cannot name further files (ONNX external data is refused).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from edge_agent import __version__
from edge_agent.contract import wire
from edge_agent.contract.manifest import GRAPHS, Manifest, bundle_hash
from edge_agent.engine import onnxfile
from edge_agent.errors import BundleError, WireError

GOLDEN = "golden.npz"
MAX_FILES = 32
MAX_BUNDLE = 512 << 20  #: bytes of all files together
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

#: Largest values that a manifest may ask for; beyond them a window would not fit an edge device.
_LIMITS = {
    "step_ms": (50, 60_000),
    "history": (1, 64),
    "embedding": (1, 1024),
    "vision.width": (8, 2048),
    "vision.height": (8, 2048),
    "audio.rate_hz": (8_000, 48_000),
    "audio.samples": (160, 480_000),
    "sensors.steps": (1, 1024),
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked folder. `read` checks once more: files may change between two looks."""

    path: Path
    manifest: Manifest
    hash: str  #: hex SHA-256 of the manifest file

    def read(self, name: str) -> bytes:
        """Bytes of a file that the manifest names; BundleError unless size and SHA-256 are as promised."""
        ref = self.manifest.files.get(name)
        if ref is None:
            raise BundleError(f"{self.path}: the manifest names no {name}; it has {', '.join(self.manifest.files)}")
        data = _read(self.path / name, ref.size)
        if len(data) != ref.size:
            raise BundleError(f"{self.path / name}: {len(data)} bytes, the manifest says {ref.size}; fetch it again")
        digest = hashlib.sha256(data).hexdigest()
        if digest != ref.sha256:
            raise BundleError(f"{self.path / name}: SHA-256 {digest}, the manifest says {ref.sha256}; fetch it again")
        return data


def open_bundle(path: Path) -> Bundle:
    """The bundle in folder `path`, every file present and hashed. BundleError says what is wrong with which file."""
    data = _read(path / "manifest.json", wire.MAX_PAYLOAD)
    try:
        manifest = wire.decode(data, Manifest)
    except WireError as error:
        raise BundleError(f"{path / 'manifest.json'}: {error}") from error
    _check_manifest(manifest, path)
    bundle = Bundle(path, manifest, bundle_hash(data))
    for name in manifest.files:
        content = bundle.read(name)
        if name.endswith(".onnx"):
            onnxfile.check(content, str(path / name))
    return bundle


def _read(path: Path, limit: int) -> bytes:
    """At most `limit` + 1 bytes of a regular file; a link is refused, it could lead anywhere."""
    try:
        # O_NONBLOCK: opening a pipe that somebody put there must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path} is not a plain file")
            if status.st_size > limit:
                raise BundleError(f"{path}: {status.st_size} bytes, at most {limit} expected")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}; a bundle holds plain files only") from error


def _check_manifest(manifest: Manifest, path: Path) -> None:
    where = path / "manifest.json"
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == "manifest.json":
            raise BundleError(f"{where}: {name!r} may not name a file; a-z 0-9 . _ - only, no folders")
    missing = [name for name in (*(f"{graph}.onnx" for graph in GRAPHS), GOLDEN) if name not in manifest.files]
    if missing:
        raise BundleError(f"{where}: files lack {', '.join(missing)}")
    size = sum(ref.size for ref in manifest.files.values())
    if len(manifest.files) > MAX_FILES or size > MAX_BUNDLE:
        raise BundleError(
            f"{where}: {len(manifest.files)} files of {size} bytes; at most {MAX_FILES} of {MAX_BUNDLE}"
        )
    for key, (least, most) in _LIMITS.items():
        value: object = manifest
        for part in key.split("."):
            value = getattr(value, part)
        if not isinstance(value, int) or not least <= value <= most:
            raise BundleError(f"{where}: {key} is {value}; this agent takes {least}..{most}")
    problem = _contradiction(manifest)
    if problem:
        raise BundleError(f"{where}: {problem}")


def _contradiction(manifest: Manifest) -> str:
    """What in the manifest does not go together; empty if it does."""
    sensors, thresholds = manifest.sensors, manifest.thresholds
    if not 1 <= len(sensors.quantities) <= 64 or len(sensors.quantities) != len(sensors.units):
        return f"sensors has {len(sensors.quantities)} quantities and {len(sensors.units)} units"
    if not 1 <= len(manifest.classes) <= 64 or len(set(manifest.classes)) != len(manifest.classes):
        return f"classes must be 1..64 different names, got {manifest.classes}"
    if not thresholds.classes.keys() <= set(manifest.classes):
        return f"thresholds name classes that the bundle lacks: {sorted(thresholds.classes)}"
    if thresholds.off > thresholds.on:
        return f"thresholds.off {thresholds.off} is above thresholds.on {thresholds.on}"
    if manifest.vision.past_ms[0] >= manifest.vision.past_ms[1] or manifest.vision.past_ms[1] > 2_000:
        return f"vision.past_ms {manifest.vision.past_ms} must rise and end at 2000 ms or before"
    if not (math.isfinite(manifest.tolerance) and 0 < manifest.tolerance <= 0.2):
        return f"tolerance is {manifest.tolerance}; 0..0.2 expected"
    if _version(manifest.min_agent) > _version(__version__):
        return f"needs agent {manifest.min_agent}, this is {__version__}; update the agent first"
    return ""


def _version(text: str) -> tuple[int, ...]:
    """Leading numbers of a dotted version; a part that is no number counts as above every number."""
    parts = text.split(".")
    return tuple(int(part) if part.isdecimal() and len(part) < 9 else 1 << 30 for part in parts)

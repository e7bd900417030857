"""What a bundle must satisfy before a byte of its graphs is fetched. Pure: no file, clock or network."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edge_agent.contract.event import VERSION
from edge_agent.contract.manifest import GRAPHS, Manifest, bundle_hash
from edge_agent.errors import BundleError

MAX_MANIFEST = 256 * 1024  #: bytes
MAX_BUNDLE = 512 * 1024 * 1024  #: bytes of all files together


class Current(msgspec.Struct, frozen=True, kw_only=True):
    """The signed target `bundles/<family>/current.json`: which release the fleet shall run."""

    v: int = VERSION
    bundle: str
    counter: int


@dataclass(frozen=True, slots=True)
class Installed:
    """What the decision is held against."""

    family: str
    bundle: str
    counter: int
    agent: str
    refused: frozenset[str] = frozenset()  #: hashes that failed here before


def wanted(current: Current, installed: Installed) -> bool:
    """Whether `current` is something new for this device. A refused release needs a new counter and so a new hash."""
    return (
        current.v == VERSION
        and current.bundle != installed.bundle
        and current.bundle not in installed.refused
        and current.counter > installed.counter
    )


def admit(data: bytes, current: Current, installed: Installed) -> Manifest:
    """The manifest in `data` if it may be installed over `installed`; BundleError says what is wrong."""
    if bundle_hash(data) != current.bundle:
        raise BundleError(f"manifest hashes to {bundle_hash(data)}, the release names {current.bundle}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"manifest of {current.bundle} cannot be read: {error}") from error
    if manifest.v != VERSION:
        raise BundleError(f"manifest has v={manifest.v}; this agent reads {VERSION}. Update the agent first")
    if manifest.family != installed.family:
        raise BundleError(f"bundle is of family {manifest.family!r}, this device runs {installed.family!r}")
    if manifest.counter != current.counter or manifest.counter <= installed.counter:
        raise BundleError(
            f"bundle counts as release {manifest.counter} (named as {current.counter}); "
            f"this device runs {installed.counter} and never goes back without a new release"
        )
    if _version(manifest.min_agent) > _version(installed.agent):
        raise BundleError(f"bundle needs agent {manifest.min_agent}; this is {installed.agent}")
    missing = [name for name in (*(f"{graph}.onnx" for graph in GRAPHS), "golden.npz") if name not in manifest.files]
    if missing:
        raise BundleError(f"bundle lacks {', '.join(missing)}")
    strange = [name for name in manifest.files if not _plain(name)]
    if strange:
        raise BundleError(f"bundle has file names that are not plain: {strange[:3]}")
    size = sum(file.size for file in manifest.files.values())
    if size > MAX_BUNDLE:
        raise BundleError(f"bundle is {size} bytes; at most {MAX_BUNDLE} are accepted")
    return manifest


def _plain(name: str) -> bool:
    return name.replace(".", "").replace("_", "").replace("-", "").isalnum() and not name.startswith(".")


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    if not all(part.isdigit() for part in parts):
        raise BundleError(f"{text!r} is not a version like 0.1.0")
    return tuple(int(part) for part in parts)

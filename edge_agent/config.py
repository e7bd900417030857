"""One YAML file per site → frozen records, or ConfigError with the path of the wrong key.

Units are in the names. Secrets come from the identity file or as `${env:NAME}` / `${file:/path}`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from edge_agent.contract.event import Name
from edge_agent.contract.identity import Identity
from edge_agent.errors import ConfigError

Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Point = tuple[Unit, Unit]
Polygon = Annotated[tuple[Point, ...], Meta(min_length=3, max_length=64)]
PositiveInt = Annotated[int, Meta(gt=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
QUANTITIES = (
    "temperature",
    "humidity",
    "smoke",
    "co2",
    "light",
    "vibration",
    "door",
    "motion",
    "pressure",
    "gas",
    "power",
    "sound_level",
)
UNITS = ("°C", "%", "ppm", "ppm", "lx", "m/s²", "0/1", "0/1", "hPa", "ppm", "W", "dB")
Quantity = Literal[
    "temperature",
    "humidity",
    "smoke",
    "co2",
    "light",
    "vibration",
    "door",
    "motion",
    "pressure",
    "gas",
    "power",
    "sound_level",
]


class SourceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A source: which driver, and the driver's own options (validated by the driver's `Options`)."""

    name: Name
    driver: str
    options: dict[str, Any] = {}


class Channel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sensor channel of a scene: value = reading * scale + offset, in the quantity's unit."""

    source: Name
    channel: str  #: name the driver gives the reading
    quantity: Quantity
    scale: float = 1.0
    offset: float = 0.0
    stale_s: PositiveFloat = 120.0  #: older than this is missing


class IntrusionRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Motion inside a polygon while armed opens an `intrusion`."""

    name: Name
    polygon: Polygon
    armed: bool = True
    min_area: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.02  #: moving share of the polygon's area
    on_steps: PositiveInt = 2
    off_steps: PositiveInt = 6


class SceneConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is scored together: one camera and/or one microphone and/or up to 12 channels of one place."""

    name: Name
    camera: Name | None = None  #: source of frames
    microphone: Name | None = None  #: source of audio; may be the same camera
    sensors: Annotated[tuple[Channel, ...], Meta(max_length=12)] = ()
    masks: Annotated[tuple[Polygon, ...], Meta(max_length=16)] = ()  #: burned into evidence, blacked for the model
    rules: Annotated[tuple[IntrusionRule, ...], Meta(max_length=16)] = ()
    threshold: Unit | None = None  #: instead of the bundle's `on`; `off` keeps its distance in logit
    cooldown_s: Annotated[float, Meta(ge=0)] | None = None
    #: Learn the scene's own normal hours: thresholds after a day, novelty later. False: the bundle's rules for ever.
    adapt: bool = True
    #: False alarms that the learned threshold allows a day; under 1 it is learned for longer, 0.1 for ten days.
    alerts_per_day: Annotated[float, Meta(ge=0.1, le=100)] = 1.0


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which bundle, on which engine."""

    bundle: Path | None = None  #: None: the one that ships with the agent
    engine: Literal["openvino", "onnxruntime"] = "openvino"
    threads: PositiveInt = 1
    lateness_ms: PositiveInt = 500


class EvidenceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Clips, snapshots and traces on the disk of the device."""

    enabled: bool = True
    pre_s: PositiveFloat = 5.0
    post_s: PositiveFloat = 5.0
    max_clip_s: PositiveFloat = 60.0
    disk_mb: PositiveInt = 2048


class OutboxConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The durable queue of messages."""

    max_mb: PositiveInt = 512
    reserve_mb: Annotated[int, Meta(ge=0)] = 8  #: freed when the disk is full, so that state can be committed


class UpdateConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Model updates."""

    enabled: bool = True
    poll_s: PositiveFloat = 300.0  #: beside the hint on `down/desired`


class HealthConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics on loopback and the heartbeat."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 9464  #: 0: any free port
    heartbeat_s: PositiveFloat = 30.0


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the agent's words go: stderr, as text for people or JSON for machines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site's device, whole."""

    version: Literal[1]
    sources: Annotated[tuple[SourceConfig, ...], Meta(min_length=1, max_length=64)]
    scenes: Annotated[tuple[SceneConfig, ...], Meta(min_length=1, max_length=16)]
    data_dir: Path = msgspec.field(default_factory=lambda: Path("/var/lib/tectum"))
    identity: Path | None = None  #: file of `cloud-sync enrol`; None: events go to the console only
    model: ModelConfig = ModelConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    outbox: OutboxConfig = OutboxConfig()
    update: UpdateConfig = UpdateConfig()
    health: HealthConfig = HealthConfig()
    log: LogConfig = LogConfig()


_REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")


def load(path: Path) -> Config:
    """The configuration in `path`, relative paths made absolute against its folder."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}. Name a YAML file; see examples/") from error
    return parse(text, path.parent)


def parse(text: str, folder: Path) -> Config:
    """The configuration in a YAML text; `folder` anchors relative paths."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"expected a mapping at the top, got {type(tree).__name__}")
    try:
        config = msgspec.convert(_resolve(tree, "$"), Config, dec_hook=_paths)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `")
        path = where.rstrip("`").removeprefix("$.").removeprefix("$")
        if path == "version":
            message = "this agent reads version 1"
        raise ConfigError(message, path or "the top") from error
    _check_references(config)
    return _anchored(config, folder)


def load_identity(path: Path) -> Identity:
    """The identity fragment of `cloud-sync enrol`."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Identity)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error}. Make it with `cloud-sync enrol DEVICE`", "identity"
        ) from error
    except (msgspec.DecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not an identity file: {error}", "identity") from error


def options(source: SourceConfig, kind: type[Any]) -> Any:
    """The driver's own options, validated; ConfigError names the key below `sources[...]`."""
    try:
        return msgspec.convert(source.options, kind, dec_hook=_paths)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `")
        raise ConfigError(
            f"{message} (driver {source.driver!r})",
            f"sources[{source.name}].options{where.rstrip('`').removeprefix('$')}",
        ) from error


def schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    return msgspec.json.schema(Config, schema_hook=_path_schema)


def _path_schema(kind: type[Any]) -> dict[str, Any]:
    if kind is Path:
        return {"type": "string", "format": "path"}
    raise NotImplementedError(kind)  # msgspec's way of saying "not mine"


def _paths(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    raise msgspec.ValidationError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")


def _resolve(value: Any, where: str) -> Any:
    """Replace `${env:NAME}` and `${file:PATH}`: secrets never stand in the file itself."""
    if isinstance(value, dict):
        return {key: _resolve(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: _lookup(match[1], match[2], where.removeprefix("$.")), value)
    return value


def _lookup(kind: str, name: str, where: str) -> str:
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"environment variable {name} is not set", where)
        return os.environ[name]
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read secret file {name}: {error}", where) from error


def _check_references(config: Config) -> None:
    names = [source.name for source in config.sources]
    for index, name in enumerate(names):
        if name in names[:index] or name == "clock":
            raise ConfigError(f"source name {name!r} is taken", f"sources[{index}].name")
    seen: set[str] = set()
    for index, scene in enumerate(config.scenes):
        where = f"scenes[{index}]"
        if scene.name in seen:
            raise ConfigError(f"scene name {scene.name!r} is taken", f"{where}.name")
        seen.add(scene.name)
        if not (scene.camera or scene.microphone or scene.sensors):
            raise ConfigError("a scene needs a camera, a microphone or sensors", where)
        used = {f"{where}.camera": scene.camera, f"{where}.microphone": scene.microphone}
        used |= {f"{where}.sensors[{i}].source": channel.source for i, channel in enumerate(scene.sensors)}
        for key, wanted in used.items():
            if wanted is not None and wanted not in names:
                raise ConfigError(f"no source is named {wanted!r}; there are {', '.join(names)}", key)
        if scene.rules and not scene.camera:
            raise ConfigError("an intrusion rule needs a camera", f"{where}.rules")
        rules = [rule.name for rule in scene.rules]
        for number, name in enumerate(rules):
            if name in rules[:number]:
                raise ConfigError(f"rule name {name!r} is taken", f"{where}.rules[{number}].name")


def _anchored(config: Config, folder: Path) -> Config:
    def anchor(path: Path | None) -> Path | None:
        return None if path is None else (folder / path).resolve()

    model = msgspec.structs.replace(config.model, bundle=anchor(config.model.bundle))
    return msgspec.structs.replace(
        config, data_dir=(folder / config.data_dir).resolve(), identity=anchor(config.identity), model=model
    )

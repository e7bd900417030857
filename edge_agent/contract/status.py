"""What a device says of itself, retained or repeated, never stored in the outbox."""

from __future__ import annotations

from msgspec import Struct

from edge_agent.contract.event import VERSION, Modality, Name, WallQuality


class SourceStatus(Struct, frozen=True, kw_only=True):
    """One source as its host sees it."""

    name: Name
    state: str  #: live | late | down | ended
    samples: int = 0
    dropped: int = 0
    rate_hz: float = 0.0
    error: str = ""


class SceneStatus(Struct, frozen=True, kw_only=True):
    """How well a scene is known: what it has learned of its own normal hours."""

    name: Name
    calibrating: bool  #: the bundle's threshold rules, because the scene is not known long enough
    threshold: float  #: that the score is held against, probability
    blocks: int  #: of five minutes that are known
    alerts: int  #: in the last day of them, but for those that no threshold could have kept silent
    memory: dict[str, int] = {}  #: normal embeddings known, by modality
    drift: dict[str, float] = {}  #: of the last hour from the last week, in deviations, by modality
    frozen: tuple[Modality, ...] = ()  #: camera, microphone that only repeat themselves now: taken as missing


class State(Struct, frozen=True, kw_only=True):
    """Retained birth message; with `online=False` the last will."""

    v: int = VERSION
    device: Name
    online: bool
    boot: str = ""
    agent: str = ""  #: version of the agent
    bundle: str = ""  #: hash of the running bundle
    bundle_name: str = ""
    engine: str = ""
    scenes: tuple[str, ...] = ()


class Health(Struct, frozen=True, kw_only=True):
    """Every 30 s by default."""

    v: int = VERSION
    device: Name
    boot: str
    bundle: str
    uptime_s: float
    rss_bytes: int
    cpu_share: float  #: of one core, since the last message
    steps: int  #: scored since start
    step_p50_ms: float
    step_p99_ms: float
    outbox_rows: int
    outbox_bytes: int
    evicted: int
    wall_quality: WallQuality
    sources: tuple[SourceStatus, ...] = ()
    restarts: dict[str, int] = {}
    scenes: tuple[SceneStatus, ...] = ()


class Desired(Struct, frozen=True, kw_only=True):
    """Retained hint that there may be something new to fetch. Nothing in it is trusted."""

    v: int = VERSION
    bundle: str

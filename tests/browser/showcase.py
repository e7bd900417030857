"""A cloud as it looks after a day of the simulated site: for tests and for screenshots.

Everything comes in by the front door: payloads as a device would publish them go through ingest, files through the
blob store. Pictures, sound and readings are the simulated site's own; scores and shares are written by hand, for no
model runs here.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from cloud_sync import ingest
from cloud_sync.accounts import Role
from cloud_sync.app import open_services
from cloud_sync.bootstrap import bootstrap
from cloud_sync.broker import Delivery
from cloud_sync.config import load
from cloud_sync.store.tables import Device, Release, Verdict
from edge_agent.config import QUANTITIES, UNITS
from edge_agent.contract import topics, wire
from edge_agent.contract.event import Body, Event, Evidence, Gap, Heat, Message, Quality, Rollout, ScorePoint, Shares
from edge_agent.contract.status import Health, SourceStatus, State
from edge_agent.simulate import Episode, Site
from edge_agent.simulate.episodes import NATURE

S = 1_000_000_000
STEP_MS = 500
STEP_NS = STEP_MS * 1_000_000
PRE_S, POST_S = 5.0, 3.0
NONE = -3.2  #: logit of the empty head
BUNDLE = hashlib.sha256(b"showcase bundle").hexdigest()
OLD_BUNDLE = hashlib.sha256(b"older bundle").hexdigest()
MEDIA = {"clip": "video/mp4", "snapshot": "image/jpeg", "trace": "application/json", "spectrogram": "image/png"}


@dataclass(frozen=True)
class Incident:
    """One alert to make up. `shares` are logits; a modality that is not named was missing."""

    label: str
    seed: int
    device: str
    scene: str
    ago_s: float
    shares: Mapping[str, float]
    length_s: float = 8.0
    phase: str = "end"  #: the last one that was sent
    origin: str = "model"
    calibrating: bool = False
    wall_quality: str = "ntp"
    threshold: float = 0.62
    evidence: tuple[str, ...] = ("clip", "snapshot", "trace", "spectrogram")
    bundle: str = BUNDLE
    classes: Mapping[str, float] = field(default_factory=dict)
    verdicts: tuple[tuple[str, str, str], ...] = ()


class Showcase:
    """A cloud in `folder`, ready to be served, and devices that report to it."""

    def __init__(self, folder: Path, site: str = "harbour") -> None:
        self.folder = folder
        self.site = site
        if not (folder / "cloud.yaml").exists():
            bootstrap(folder, "127.0.0.1", 8080, 1883, demo=True)
        self.services = open_services(load(folder / "cloud.yaml"))
        self.store = self.services.store
        self.started_ns = time.time_ns()
        self.boot_ns = self.started_ns - 40 * 86400 * S  #: where the devices' monotonic clocks start
        self.now_ns = self.started_ns  #: the cloud's clock; set it back to make up a past
        self._intake = ingest.Intake(self.store, self.services.config.ingest, lambda: self.now_ns)
        self._seq: dict[str, int] = {}

    def step(self, ago_s: float) -> int:
        """Index of the step of a moment in the past."""
        return (self.started_ns - int(ago_s * S) - self.boot_ns) // STEP_NS

    def wall_ns(self, step: int) -> int:
        """When a step began."""
        return self.boot_ns + step * STEP_NS

    def close(self) -> None:
        """Give the database back."""
        self.store.close()

    def user(self, name: str, role: Role, sites: tuple[str, ...] | None = None) -> str:
        """Make a person and return the password, which need not be changed first."""
        accounts = self.services.accounts
        password = f"{name}-password-1"
        accounts.set_password(name, accounts.add(name, role, sites), password)
        return password

    def enrol(self, device: str) -> None:
        """Let a device in. The broker plays no part here."""
        token = hashlib.sha256(device.encode()).hexdigest()
        with self.store.write() as session:
            session.add(
                Device(name=device, site=self.site, token_hash=token, enrolled_ns=self.now_ns - 9 * 86400 * S)
            )

    def publish(self, device: str, leaf: str, payload: bytes) -> None:
        """Take in a payload as the broker would hand it over."""
        topic = topics.up(self.site, device, leaf)
        self._intake.take(ingest.read(Delivery(topic, payload, False, 1, 1, 1)))

    def send(self, device: str, id: str, body: Body, at_ns: int, wall_quality: str = "ntp") -> None:
        """Send one durable message that was made at `at_ns` and arrives a third of a second later."""
        self.now_ns = at_ns + 340_000_000
        leaf = "rollout" if isinstance(body, Rollout) else "event"
        self.publish(device, leaf, self._encode(device, id, body, at_ns, wall_quality))
        self.now_ns = self.started_ns

    def send_many(self, incidents: Sequence[Incident]) -> list[str]:
        """Only the last message of each of many incidents, without evidence, in one transaction; the events' ids."""
        ids, payloads = [], []
        for incident in incidents:
            at_ns = self.started_ns - int(incident.ago_s * S)
            ids.append(uuid7(at_ns, incident))
            last = life(incident, self.step(incident.ago_s))[-1]
            payloads.append(self._encode(incident.device, ids[-1], last, at_ns, incident.wall_quality))
        topic = topics.up(self.site, incidents[0].device, "event")
        deliveries = [Delivery(topic, payload, False, 1, 1, 1) for payload in payloads]
        self._intake.take([piece for delivery in deliveries for piece in ingest.read(delivery)])
        return ids

    def _encode(self, device: str, id: str, body: Body, at_ns: int, wall_quality: str) -> bytes:
        seq = self._seq[device] = self._seq.get(device, 0) + 1
        message = Message(
            device=device,
            stream=hashlib.md5(device.encode()).hexdigest(),
            seq=seq,
            boot="boot-1",
            id=id,
            wall_ns=at_ns,
            wall_quality=wall_quality,  # type: ignore[arg-type]
            monotonic_ns=at_ns - self.boot_ns,
            body=body,
        )
        return wire.encode(message)

    def add(self, incident: Incident, width: int = 320, height: int = 180, fps: int = 10) -> str:
        """Play an incident and return its event's id. Renders hundreds of pictures: seconds at large sizes."""
        start_ns = self.started_ns - int(incident.ago_s * S)
        id = uuid7(start_ns, incident)
        onset = self.step(incident.ago_s)
        site = site_of(incident, width, height, fps)
        for event in life(incident, onset, _heat(site, incident) if "vision" in incident.shares else None):
            self.send(incident.device, id, event, self.wall_ns(event.step), incident.wall_quality)
        length_s = PRE_S + incident.length_s + POST_S
        first_ns = onset * STEP_NS - int(PRE_S * S)
        for role in incident.evidence:
            data = render(role, site, start_ns=first_ns, length_s=length_s, fps=fps)
            self.promise(id, incident, role, data, start_ns=first_ns, length_s=length_s)
            self.upload(incident.device, data)
        with self.store.write() as session:
            for n, (who, said, note) in enumerate(incident.verdicts):
                given_ns = min(self.started_ns, start_ns + (120 + 90 * n) * S)
                session.add(
                    Verdict(event_id=id, user=who, verdict=said, note=note, bundle=incident.bundle, given_ns=given_ns)
                )
        return id

    def promise(
        self, id: str, incident: Incident, role: str, data: bytes, *, start_ns: int = 0, length_s: float = 10.0
    ) -> None:
        """Announce a file of an event; its bytes follow by `upload`, or not yet."""
        body = Evidence(
            scene=incident.scene,
            role=role,  # type: ignore[arg-type]
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            media_type=MEDIA[role],  # type: ignore[arg-type]
            start_ns=start_ns,
            end_ns=start_ns + int(length_s * S),
        )
        self.send(incident.device, id, body, self.boot_ns + body.end_ns)

    def upload(self, device: str, data: bytes) -> None:
        """Hand over the bytes of a file."""
        upload = self.services.blobs.begin(device, hashlib.sha256(data).hexdigest(), 0, len(data))
        if upload is not None:
            upload.write(data)
            upload.finish()
            upload.close()

    def report(
        self, device: str, scenes: tuple[str, ...], *sources: SourceStatus, ago_s: float = 2, **more: Any
    ) -> None:
        """Birth and health of a device, as of `ago_s` ago; `more` are fields of `Health`."""
        bundle = more.get("bundle", BUNDLE)
        name = "first" if bundle == BUNDLE else "pilot"
        born = State(
            device=device,
            online=True,
            agent="0.1.0",
            bundle=bundle,
            bundle_name=name,
            engine="openvino",
            scenes=scenes,
        )
        health: dict[str, Any] = {
            "boot": "boot-1", "bundle": bundle, "uptime_s": 143_000.0, "rss_bytes": 182_000_000, "cpu_share": 0.21,
            "steps": 286_000, "step_p50_ms": 6.1, "step_p99_ms": 11.8, "outbox_rows": 0, "outbox_bytes": 0,
            "evicted": 0, "wall_quality": "ntp", **more,
        }  # fmt: skip
        self.now_ns = time.time_ns() - int(ago_s * S)
        self.publish(device, "state", wire.encode(born))
        self.publish(device, "health", wire.encode(Health(device=device, sources=sources, **health)))
        self.now_ns = self.started_ns


def uuid7(at_ns: int, seed: object) -> str:
    """A UUIDv7 of a moment, the same one for the same seed."""
    noise = hashlib.sha256(repr(seed).encode()).digest()
    value = (at_ns // 1_000_000) << 80 | int.from_bytes(noise[:10], "big")
    value = value & ~(0xF << 76) | (7 << 76)
    return str(uuid.UUID(int=value & ~(0x3 << 62) | (2 << 62)))


def site_of(incident: Incident, width: int, height: int, fps: int = 10) -> Site:
    """The place where an incident happens, `PRE_S` after its start."""
    episode = Episode(incident.label, PRE_S, PRE_S + incident.length_s, NATURE[incident.label].modalities)
    return Site(incident.seed, (episode,), width=width, height=height, fps=fps)


def _score(incident: Incident, step: int, onset: int, last: int) -> float:
    """Calm, a steep rise at the onset, a plateau with some life in it, and a fall where the event has ended."""
    wobble = 0.35 * math.sin(step * 1.7 + incident.seed) + 0.2 * math.sin(step * 0.6)
    rise = 1 / (1 + math.exp(-(step - onset) * 2.2))
    fall = 1 / (1 + math.exp((step - last + 3) * 1.4)) if incident.phase == "end" else 1.0
    return 1 / (1 + math.exp(-(NONE + sum(incident.shares.values()) * rise * fall + wobble)))


def life(incident: Incident, onset: int, heat: Heat | None = None) -> list[Event]:
    """The messages of an event: `new` two steps after the onset with what came before, an update, the last one."""
    last = onset + int(incident.length_s * 1000 / STEP_MS)
    scores = [ScorePoint(step, _score(incident, step, onset, last)) for step in range(onset - 10, last + 1)]
    middle = (onset + 2 + last) // 2
    events = []
    at = scores[0].step
    for revision, (phase, step) in enumerate(
        (("new", onset + 2), ("update", middle), (incident.phase, last)), start=1
    ):
        part = tuple(point for point in scores if at <= point.step <= step)
        at = step + 1
        events.append(
            Event(
                scene=incident.scene,
                label=incident.label,
                phase=phase,  # type: ignore[arg-type]
                onset_step=onset,
                step=step,
                step_ms=STEP_MS,
                revision=revision,
                score=part[-1].score,
                peak=max(point.score for point in scores if point.step <= step),
                threshold=incident.threshold,
                origin=incident.origin,  # type: ignore[arg-type]
                rule="armed-area" if incident.origin == "rule" else None,
                classes={incident.label: 0.91, **incident.classes},
                shares=Shares(none=NONE, **incident.shares),
                quality=Quality(present=tuple(incident.shares), dropped={"camera": 3} if incident.seed % 2 else {}),  # type: ignore[arg-type]
                trace=part,
                heat=heat,
                bundle=incident.bundle,
                calibrating=incident.calibrating,
                p_value=None if incident.calibrating or incident.origin == "rule" else 0.0025,
            )
        )
    return events


def _heat(site: Site, incident: Incident) -> Heat:
    """Where the picture differs from the calm before: near enough to what a model marks."""
    rows, cols = 20, 30
    calm = cv2.GaussianBlur(site.frame(1.0), (0, 0), 3).astype(np.float32)
    now = cv2.GaussianBlur(site.frame(PRE_S + incident.length_s / 2), (0, 0), 3).astype(np.float32)
    change = np.abs(now - calm).max(axis=2)
    change = np.clip(change - np.percentile(change, 60), 0, None)
    cells = cv2.GaussianBlur(cv2.resize(change, (cols, rows), interpolation=cv2.INTER_AREA), (0, 0), 0.8)
    cells = np.clip(cells / max(float(cells.max()), 1e-6), 0, 1) ** 1.3
    hottest = 245 / (1 + math.exp(1.0 - 1.6 * incident.shares["vision"]))
    return Heat(rows=rows, cols=cols, values=(cells * hottest).astype(np.uint8).tobytes())


def render(role: str, site: Site, *, start_ns: int, length_s: float, fps: int) -> bytes:
    """The bytes of one evidence file."""
    if role == "clip":
        return _clip(site, length_s, fps)
    if role == "snapshot":
        return _jpeg(site.frame((PRE_S + length_s - POST_S) / 2))
    return _trace(site, start_ns, length_s) if role == "trace" else _spectrogram(site, length_s)


def _clip(site: Site, length_s: float, fps: int) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "27", "g": str(fps)})
        video.width, video.height, video.pix_fmt = site.width, site.height, "yuv420p"
        audio = container.add_stream("aac", rate=site.rate_hz, layout="mono")
        for index in range(int(length_s * fps)):
            picture = av.VideoFrame.from_ndarray(site.frame(index / fps), format="rgb24")
            picture.pts = index
            container.mux(video.encode(picture))
        container.mux(video.encode())
        for start in range(0, int(length_s * site.rate_hz), 1024):
            sound = av.AudioFrame.from_ndarray(site.sound(start, 1024)[None], format="s16", layout="mono")
            sound.rate, sound.pts = site.rate_hz, start
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return out.getvalue()


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    good, data = cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert good
    return bytes(data)


def _trace(site: Site, start_ns: int, length_s: float) -> bytes:
    points: dict[str, list[tuple[int, float]]] = {}
    for ms in range(0, int(length_s * 1000), 1000):
        for reading in site.readings(ms / 1000):
            points.setdefault(reading.channel, []).append((ms, reading.value))
    channels = [
        {"channel": f"air/{name}", "quantity": name, "unit": UNITS[QUANTITIES.index(name)], "points": values}
        for name, values in points.items()
    ]
    return json.dumps({"v": 1, "start_ns": start_ns, "channels": channels}).encode()


def _spectrogram(site: Site, length_s: float) -> bytes:
    pcm = site.sound(0, int(length_s * site.rate_hz)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(pcm, 512)[::160] * np.hanning(512)
    power = 10 * np.log10(np.abs(np.fft.rfft(frames, axis=1)) ** 2 + 1.0)
    shown = np.clip((power.T[::-1] - 40) / 80, 0, 1)
    coloured = cv2.applyColorMap((shown * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    good, data = cv2.imencode(".png", cv2.resize(coloured, (900, 160), interpolation=cv2.INTER_AREA))
    assert good
    return bytes(data)


def source(name: str, rate_hz: float, state: str = "live", dropped: int = 0, error: str = "") -> SourceStatus:
    """A source that has been running for some 40 hours."""
    return SourceStatus(
        name=name, state=state, samples=int(rate_hz * 143_000), dropped=dropped, rate_hz=rate_hz, error=error
    )


def furnish(showcase: Showcase, day: Sequence[Incident], width: int = 320, height: int = 180) -> list[str]:
    """Devices in every condition, the incidents of a day, a release, what was lost and what was refused.

    Returns the ids of the events, in the order of `day`.
    """
    now = showcase.started_ns
    for device in ("edge-gate", "edge-hall", "edge-store", "edge-street", "edge-yard"):
        showcase.enrol(device)
    ids = [showcase.add(incident, width, height) for incident in day]
    nothing = uuid7(now, "no event")
    reason = "self-test: worst score error 0.061, allowed 0.02"
    showcase.send("edge-hall", nothing, Rollout(bundle=BUNDLE, state="committed"), now - 3 * S)
    showcase.send("edge-store", nothing, Rollout(bundle=BUNDLE, state="refused", reason=reason), now - 9 * S)
    lost = Gap(first=3, last=39, count=37, priority="bulk", reason="full")
    showcase.send("edge-yard", nothing, lost, now - 260 * S)
    for payload in (b'{"v":9}', b"no json"):
        showcase.publish("edge-hall", "event", payload)
    showcase.report(
        "edge-hall", ("entrance-hall",), source("hall-cam", 10.0), source("hall-mic", 50.0), source("hall-air", 1.0)
    )
    showcase.report(
        "edge-store",
        ("warehouse-aisle", "loading-dock"),
        source("aisle-cam", 9.4, dropped=1841),
        source("dock-cam", 0.0, "down", error="rtsp: no answer in 10 s; trying again in 32 s"),
        source("aisle-mic", 50.0),
        source("store-air", 1.0, "late"),
        ago_s=12,
        cpu_share=0.48,
        restarts={"aisle-cam": 2},
    )
    showcase.report(
        "edge-yard",
        ("yard",),
        source("yard-cam", 10.0),
        source("yard-mic", 50.0),
        ago_s=260,
        bundle=OLD_BUNDLE,
        wall_quality="unsynced",
        outbox_rows=1204,
        outbox_bytes=48_200_000,
        evicted=37,
    )
    showcase.report("edge-street", ("street",), source("street-cam", 10.0), ago_s=5 * 3600)
    showcase.now_ns = now - 5 * 3600 * S
    goodbye = State(device="edge-street", online=False, scenes=("street",), bundle=BUNDLE, bundle_name="first")
    showcase.publish("edge-street", "state", wire.encode(goodbye))
    showcase.now_ns = now
    with showcase.store.write() as session:
        session.add(Release(hash=BUNDLE, family="first", name="first", counter=3, released_ns=now - 86400 * S))
    return ids


#: A day with something of everything, newest first.
DAY = (
    Incident(
        "fire",
        1,
        "edge-store",
        "warehouse-aisle",
        14,
        {"vision": 3.4, "audio": 0.9, "sensors": 2.1},
        length_s=9,
        phase="update",
        evidence=("snapshot",),
        classes={"smoke": 0.31},
    ),
    Incident(
        "glass_break",
        3,
        "edge-hall",
        "entrance-hall",
        1290,
        {"vision": -0.2, "audio": 4.9, "sensors": 1.3},
        length_s=5,
        classes={"gunshot": 0.12, "alarm": 0.05},
    ),
    Incident(
        "intrusion",
        5,
        "edge-yard",
        "yard",
        3900,
        {"vision": 4.6, "audio": 0.4},
        length_s=12,
        wall_quality="unsynced",
        bundle=OLD_BUNDLE,
        verdicts=(("olga", "real", "Man over the north fence. Guard sent, police informed."),),
    ),
    Incident(
        "gunshot",
        2,
        "edge-street",
        "street",
        7400,
        {"vision": 0.05, "audio": 5.2, "sensors": -0.6},
        length_s=6,
        phase="aborted",
    ),
    Incident(
        "intrusion",
        11,
        "edge-store",
        "loading-dock",
        11800,
        {"vision": 1.9, "audio": -0.4, "sensors": 0.1},
        length_s=9,
        origin="rule",
        threshold=0.7,
        calibrating=True,
        verdicts=(("olga", "false", "Night shift walks through at this hour."),),
    ),
    Incident(
        "fight",
        7,
        "edge-hall",
        "entrance-hall",
        19400,
        {"vision": 3.1, "audio": 2.8, "sensors": 0.2},
        length_s=11,
        verdicts=(("olga", "real", ""), ("piet", "unsure", "They may be rehearsing.")),
    ),
    Incident(
        "alarm",
        10,
        "edge-store",
        "warehouse-aisle",
        45000,
        {"vision": 0.2, "audio": 4.4, "sensors": 0.3},
        length_s=10,
        verdicts=(("piet", "false", "Monthly test of the siren."),),
    ),
    Incident(
        "fire",
        8,
        "edge-hall",
        "entrance-hall",
        93000,
        {"vision": 2.2, "audio": 0.3, "sensors": 3.7},
        length_s=14,
        verdicts=(("olga", "real", "Bin fire by the lift."),),
    ),
    Incident(
        "explosion",
        9,
        "edge-yard",
        "yard",
        101000,
        {"vision": 2.6, "audio": 3.9},
        length_s=9,
        bundle=OLD_BUNDLE,
        wall_quality="unsynced",
    ),
)

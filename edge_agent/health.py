"""How the agent is: metrics for Prometheus on loopback, the heartbeat for the cloud, and its words in the log.

Every metric and its labels stand in this file; `docs/reference/metrics.md` is made from it.
"""

from __future__ import annotations

import http.server
import logging
import os
import re
import resource
import socketserver
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_agent.clock import Clock
from edge_agent.config import LogConfig
from edge_agent.contract.status import Health, SceneStatus, SourceStatus

log = logging.getLogger(__name__)

_RECENT = 1024  #: steps that the heartbeat's percentiles are taken over
_POLL_S = 0.2
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_SLOW = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the parts say of themselves at one moment."""

    bundle: str = ""
    bundle_name: str = ""
    engine: str = ""
    sources: tuple[SourceStatus, ...] = ()
    restarts: Mapping[str, int] = field(default_factory=dict)
    scenes: tuple[SceneStatus, ...] = ()
    pipeline: Mapping[str, int] = field(default_factory=dict)
    outbox: Mapping[str, int] = field(default_factory=dict)
    publish: Mapping[str, int] = field(default_factory=dict)
    upload: Mapping[str, int] = field(default_factory=dict)
    evidence: Mapping[str, int] = field(default_factory=dict)


class Metrics:
    """What is counted while the pipeline runs. `observe_*` may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.steps = 0
        self.events: dict[tuple[str, str, str], int] = {}
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._step = Histogram(
            "tectum_step_seconds",
            "Work from the sample that closes a window to its scores and events, all scenes of that step",
            registry=self.registry,
            buckets=_FAST,
        )
        self._lag = Histogram(
            "tectum_score_delay_seconds",
            "From the end of a window, its newest light and sound, to its scores",
            registry=self.registry,
            buckets=_SLOW,
        )
        self._delay = Histogram(
            "tectum_event_delay_seconds",
            "From the end of the window that opened an event to its row on disk (phase new)",
            registry=self.registry,
            buckets=_SLOW,
        )

    def observe_step(self, seconds: float) -> None:
        """The pipeline took this long for one step of its scenes."""
        self._step.observe(seconds)
        self._recent.append(seconds)

    def observe_score(self, delay_s: float) -> None:
        """A window was scored this long after it ended."""
        self.steps += 1
        self._lag.observe(delay_s)

    def observe_event(self, scene: str, label: str, phase: str, delay_s: float) -> None:
        """An event's message is on disk, so long after the end of its window."""
        key = (scene, label, phase)
        self.events[key] = self.events.get(key, 0) + 1
        if phase == "new":
            self._delay.observe(delay_s)

    def step_ms(self, quantile: float) -> float:
        """Percentile of the last 1024 steps' work; 0 before the first."""
        recent = sorted(self._recent)
        return recent[min(len(recent) - 1, int(quantile * len(recent)))] * 1e3 if recent else 0.0


def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> CounterMetricFamily:
    """A total that only rises while the agent runs."""
    return CounterMetricFamily(name, text, labels=labels)


def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    """A value of this moment."""
    return GaugeMetricFamily(name, text, labels=labels)


class _Collector(Collector):
    """Turns figures into metrics at the moment somebody asks."""

    def __init__(
        self, agent: str, uptime_s: Callable[[], float], metrics: Metrics, figures: Callable[[], Figures]
    ) -> None:
        self._agent = agent
        self._uptime_s = uptime_s
        self._metrics = metrics
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        yield from self._process(figures)
        yield from _of_sources(figures.sources)
        yield from _of_scenes(figures.scenes)
        yield from self._of_events()
        totals = {
            "pipeline": counter("tectum_pipeline_total", "Samples and windows by what became of them", ("what",)),
            "outbox": counter("tectum_outbox_total", "Rows by what became of them", ("what",)),
            "publish": counter("tectum_publish_total", "What passed between publisher and broker", ("what",)),
            "upload": counter("tectum_upload_total", "Evidence files by what became of their upload", ("what",)),
            "evidence": counter("tectum_evidence_total", "Evidence files by what became of them", ("what",)),
        }
        sizes = gauge("tectum_size", "Rows, files and bytes held now, by part", ("part", "what"))
        for part, family in totals.items():
            for what, value in getattr(figures, part).items():
                if what in _SIZES[part]:
                    sizes.add_metric((part, what), value)
                else:
                    family.add_metric((what,), value)
        yield from (*totals.values(), sizes)

    def _process(self, figures: Figures) -> Iterator[Metric]:
        info = gauge("tectum_info", "1; says what runs", ("agent", "bundle", "bundle_name", "engine"))
        info.add_metric((self._agent, figures.bundle, figures.bundle_name, figures.engine), 1)
        restarts = counter("tectum_restarts_total", "Times that a service was started again", ("service",))
        for service, count in figures.restarts.items():
            restarts.add_metric((service,), count)
        rss = gauge("tectum_rss_bytes", "Memory that the agent has in RAM")
        rss.add_metric((), rss_bytes())
        cpu = counter("tectum_cpu_seconds_total", "Processor time since start, all threads")
        cpu.add_metric((), _cpu_s())
        uptime = gauge("tectum_uptime_seconds", "Since the start of the agent")
        uptime.add_metric((), self._uptime_s())
        yield from (info, restarts, rss, cpu, uptime)

    def _of_events(self) -> Iterator[Metric]:
        steps = counter("tectum_steps_total", "Windows scored")
        steps.add_metric((), self._metrics.steps)
        events = counter("tectum_events_total", "Messages of events", ("scene", "label", "phase"))
        for key, count in list(self._metrics.events.items()):
            events.add_metric(key, count)
        yield from (steps, events)


#: What of a part's counters is a size, not a total.
_SIZES = {
    "pipeline": {"waiting"},
    "outbox": {"rows", "bytes", "limit", "open_events", "uploads"},
    "publish": {"in_flight"},
    "upload": {"waiting"},
    "evidence": {"open", "files", "bytes", "ring_bytes"},
}


def _of_sources(sources: tuple[SourceStatus, ...]) -> Iterator[Metric]:
    samples = counter("tectum_samples_total", "Samples that a source gave", ("source",))
    drops = counter("tectum_drops_total", "Samples dropped in front of the pipeline, oldest first", ("source",))
    rate = gauge("tectum_source_rate_hz", "Samples per second of the source's main kind", ("source",))
    state = gauge("tectum_source_state", "1 for the state that the source is in", ("source", "state"))
    for source in sources:
        samples.add_metric((source.name,), source.samples)
        drops.add_metric((source.name,), source.dropped)
        rate.add_metric((source.name,), source.rate_hz)
        for name in ("live", "late", "down", "ended"):
            state.add_metric((source.name, name), float(source.state == name))
    yield from (samples, drops, rate, state)


def _of_scenes(scenes: tuple[SceneStatus, ...]) -> Iterator[Metric]:
    calibrating = gauge("tectum_scene_calibrating", "1 until the scene has a threshold of its own", ("scene",))
    threshold = gauge("tectum_scene_threshold", "What the scene's score is held against, probability", ("scene",))
    blocks = gauge("tectum_scene_blocks", "Blocks of five minutes that the threshold rests on, or will", ("scene",))
    alerts = gauge("tectum_scene_alerts", "Alerts of the model in the last day of blocks", ("scene",))
    memory = gauge("tectum_scene_memory", "Normal embeddings that are known", ("scene", "modality"))
    drift = gauge(
        "tectum_scene_drift", "Distance of the last hour from the last week, in deviations", ("scene", "modality")
    )
    frozen = gauge("tectum_scene_frozen", "1 while a camera or microphone only repeats itself", ("scene", "modality"))
    for scene in scenes:
        for modality in ("vision", "audio"):
            frozen.add_metric((scene.name, modality), float(modality in scene.frozen))
        calibrating.add_metric((scene.name,), float(scene.calibrating))
        threshold.add_metric((scene.name,), scene.threshold)
        blocks.add_metric((scene.name,), scene.blocks)
        alerts.add_metric((scene.name,), scene.alerts)
        for modality, count in scene.memory.items():
            memory.add_metric((scene.name, modality), count)
        for modality, distance in scene.drift.items():
            drift.add_metric((scene.name, modality), distance)
    yield from (calibrating, threshold, blocks, alerts, memory, drift, frozen)


class _Server(socketserver.TCPServer):
    """HTTP without http.server's own class, which asks the resolver for this machine's name before it listens."""

    allow_reuse_address = True
    timeout = _POLL_S


class HealthService:
    """Answers on loopback and beats. One thread does both, so a slow reader can only make itself wait."""

    def __init__(
        self,
        device: str,
        boot: str,
        agent: str,
        clock: Clock,
        *,
        port: int,
        heartbeat_s: float,
        metrics: Metrics,
        figures: Callable[[], Figures],
        publish: Callable[[Health], None] | None,
    ) -> None:
        """`publish` gets a heartbeat every `heartbeat_s`, the first at once; None where there is no cloud."""
        self._device = device
        self._boot = boot
        self._clock = clock
        self._wanted_port = port
        self._heartbeat_s = heartbeat_s
        self._metrics = metrics
        self._figures = figures
        self._publish = publish
        self._began_ns = clock.monotonic_ns()
        self._cpu_share = 0.0
        metrics.registry.register(_Collector(agent, self._uptime_s, metrics, figures))
        self.port: int | None = None  #: that is listened on, once it runs

    def run(self, stop: threading.Event) -> None:
        """Serve and beat until told to stop. OSError if the port is taken."""
        with _Server(("127.0.0.1", self._wanted_port), self._handler()) as server:
            self.port = server.server_address[1]
            log.info("metrics on http://127.0.0.1:%d/metrics", self.port)
            next_s, before_s, cpu_before_s = 0.0, self._uptime_s(), _cpu_s()
            while not stop.is_set():
                now_s = self._uptime_s()
                if now_s >= next_s:
                    self._cpu_share = (_cpu_s() - cpu_before_s) / max(1e-3, now_s - before_s)
                    next_s, before_s, cpu_before_s = now_s + self._heartbeat_s, now_s, _cpu_s()
                    self._beat()
                server.handle_request()
            self._beat()

    def health(self) -> Health:
        """How the agent is now; `cpu_share` is of the time between the last two heartbeats."""
        figures = self._figures()
        return Health(
            device=self._device,
            boot=self._boot,
            bundle=figures.bundle,
            uptime_s=self._uptime_s(),
            rss_bytes=rss_bytes(),
            cpu_share=self._cpu_share,
            steps=self._metrics.steps,
            step_p50_ms=self._metrics.step_ms(0.5),
            step_p99_ms=self._metrics.step_ms(0.99),
            outbox_rows=figures.outbox.get("rows", 0),
            outbox_bytes=figures.outbox.get("bytes", 0),
            evicted=figures.outbox.get("evicted", 0),
            wall_quality=self._clock.wall_quality(),
            sources=figures.sources,
            restarts=dict(figures.restarts),
            scenes=figures.scenes,
        )

    def _beat(self) -> None:
        if self._publish is not None:
            self._publish(self.health())

    def _uptime_s(self) -> float:
        return (self._clock.monotonic_ns() - self._began_ns) / 1e9

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 0.5

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(
                        "text/plain; version=0.0.4; charset=utf-8", generate_latest(service._metrics.registry)
                    )
                elif self.path == "/health":
                    self._answer("application/json", msgspec.json.encode(service.health()))
                else:
                    self.send_error(404, "there are /metrics and /health")

            def _answer(self, media_type: str, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                log.debug(format, *args)

        return Handler


def rss_bytes() -> int:
    """Resident memory of this process; its highest so far where there is no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --- log -----------------------------------------------------------------------------------------------------------

_SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+:[^/\s@]*@"), "***@"),  # user and password of an address
    (re.compile(r"(?i)\b(password|passwd|token|secret|authorization)(\W{1,4})(bearer\s+)?[^\s\"',;&}]+"), r"\1\2***"),
)


def redacted(text: str) -> str:
    """`text` without passwords and tokens, as far as they can be told by their surroundings."""
    for pattern, by in _SECRETS:
        text = pattern.sub(by, text)
    return text


class _Console(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-8s %(threadName)-16s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _Json(logging.Formatter):
    """A line for machines."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": redacted(record.getMessage()),
        }
        if record.exc_info:
            entry["exception"] = redacted(self.formatException(record.exc_info))
        return msgspec.json.encode(entry).decode()


def configure_logging(config: LogConfig) -> None:
    """Send the whole process's log to stderr as the configuration says. Called once, by the commands."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if config.format == "json" else _Console())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    # Their debug output repeats addresses and headers at length.
    for name in ("urllib3", "tuf", "libav"):
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))

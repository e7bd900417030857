"""The one place that builds the agent out of its parts, and runs it. Every other module is handed what it needs."""

from __future__ import annotations

import datetime
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edge_agent import __version__, engine, sources
from edge_agent.clock import Clock, SystemClock
from edge_agent.config import Config, ModelConfig, load_identity
from edge_agent.contract.event import Event, Message
from edge_agent.contract.identity import Identity
from edge_agent.contract.status import State
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import Model, Packet, Sample
from edge_agent.errors import BundleError, SourceEnded
from edge_agent.evidence import EvidenceStore
from edge_agent.health import Figures, HealthService, Metrics
from edge_agent.lifecycle import STOP_SIGNALS, Backoff, Closer, Spec, Supervisor, notify_systemd
from edge_agent.outbox import Outbox
from edge_agent.publish import Publisher
from edge_agent.services import (
    ClockService,
    ConsoleSink,
    Mailbox,
    PipelineService,
    RecordService,
    Sink,
    SourceService,
    describe,
)
from edge_agent.sources import replay as recordings
from edge_agent.sources.recording import Recorder
from edge_agent.update.fetch import Releases
from edge_agent.update.service import UpdateService
from edge_agent.update.slots import Slots
from edge_agent.upload import Uploader

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "bundle"
EXIT_BROKEN = 70  #: a part failed again and again; worth a restart (sysexits: EX_SOFTWARE)

_WATCH_S = 0.5
_HANGS_S = 10.0  #: a pipeline that has not turned for this long gets no more watchdog pings
_FLUSH_S = 0.8  #: of the publisher, within its stage of the stop
_PATIENCE = 20.0  #: a run that ended by itself has no supervisor waiting: its evidence may take this much longer
_MB = 1 << 20


@dataclass
class Agent:
    """The parts of a built agent that something outside of them asks for. Nothing runs before `supervisor.start`."""

    config: Config
    clock: Clock
    identity: Identity | None
    boot: str
    outbox: Outbox | None
    metrics: Metrics
    mailbox: Mailbox
    pipeline: PipelineService
    inputs: list[SourceService]
    evidence: EvidenceStore | None
    specs: list[Spec] = field(default_factory=list)
    closers: list[Closer] = field(default_factory=list)
    counters: dict[str, Callable[[], Mapping[str, int]]] = field(default_factory=dict)
    supervisor: Supervisor | None = None

    def figures(self) -> Figures:
        """What every part says of itself now."""
        model = self.pipeline.model
        return Figures(
            bundle=model.hash,
            bundle_name=model.manifest.name,
            engine=self.config.model.engine,
            sources=tuple(source.status() for source in self.inputs),
            restarts=self.supervisor.restarts if self.supervisor else {},
            scenes=self.pipeline.scenes,
            **{part: dict(read()) for part, read in self.counters.items()},
        )

    def state(self) -> State:
        """The retained birth message."""
        model = self.pipeline.model
        return State(
            device=self.identity.device if self.identity else "console",
            online=True,
            boot=self.boot,
            agent=__version__,
            bundle=model.hash,
            bundle_name=model.manifest.name,
            engine=self.config.model.engine,
            scenes=tuple(scene.name for scene in self.config.scenes),
        )


# --- build ---------------------------------------------------------------------------------------------------------


def build(config: Config, clock: Clock) -> Agent:
    """An agent that is ready to start. Takes as long as the model takes to compile.

    ConfigError for options or an identity that cannot work, BundleError for a bundle, StorageError for the disk.
    """
    identity = load_identity(config.identity) if config.identity else None
    drivers = [sources.create(source, clock) for source in config.sources]  # wrong options first: they cost nothing
    boot = boot_id()
    outbox = _outbox(config, identity, clock, boot)
    slots = Slots(config.data_dir / "slots") if identity else None
    model = _model(config.model, slots)
    sink: Sink = outbox or ConsoleSink(clock, boot)
    mailbox, metrics = Mailbox(), Metrics()
    evidence = _evidence(config, clock, sink, outbox)
    # On the console the sink itself tells of events; elsewhere the log does.
    tell: Callable[[Message], None] = _forget if outbox is None else _log_event
    note: Callable[[Message], None] = evidence.note if evidence else _forget
    keep: Callable[[Sample | Packet], None] = evidence.add if evidence else _forget
    pipeline = PipelineService(
        config.scenes,
        model,
        lateness_ms=config.model.lateness_ms,
        mailbox=mailbox,
        sink=sink,
        told=(tell, note),
        metrics=metrics,
        clock=clock,
        state=config.data_dir / "scenes.npz",
    )
    inputs = [
        SourceService(source.name, driver, clock, mailbox, keep)
        for source, driver in zip(config.sources, drivers, strict=True)
    ]
    agent = Agent(config, clock, identity, boot, outbox, metrics, mailbox, pipeline, inputs, evidence)
    agent.counters["pipeline"] = lambda: pipeline.counters
    # In the order of the data, last stage first: whoever is handed something is there before it comes.
    if identity and outbox and slots:
        _add_delivery(agent, identity, outbox, slots, model)
    else:
        _add_health(agent, None)
    if evidence:
        agent.specs.append(Spec("evidence", evidence, "evidence"))
        agent.counters["evidence"] = lambda: evidence.counters
    agent.specs.append(Spec("pipeline", pipeline, "pipeline", fatal_after=5, backoff=Backoff(cap_s=5.0)))
    agent.specs.append(Spec("clock", ClockService(clock, mailbox), "sources"))
    agent.specs += [
        Spec(source.name, source, "sources", finite=True, stalled=source.stalled, unblock=source.unblock)
        for source in inputs
    ]
    agent.supervisor = Supervisor(agent.specs, clock, closers=agent.closers)
    return agent


def _outbox(config: Config, identity: Identity | None, clock: Clock, boot: str) -> Outbox | None:
    if identity is None:
        return None
    return Outbox(
        config.data_dir / "outbox.db",
        identity.device,
        clock,
        boot,
        max_bytes=config.outbox.max_mb * _MB,
        reserve_bytes=config.outbox.reserve_mb * _MB,
    )


def _evidence(config: Config, clock: Clock, sink: Sink, outbox: Outbox | None) -> EvidenceStore | None:
    if not config.evidence.enabled:
        return None
    return EvidenceStore(
        config.data_dir / "evidence",
        config.evidence,
        config.scenes,
        clock,
        attach=sink.attach,
        pending=(lambda: [upload.sha256 for upload in outbox.uploads(10_000)]) if outbox else tuple,
    )


def _add_delivery(agent: Agent, identity: Identity, outbox: Outbox, slots: Slots, model: Model) -> None:
    clock = agent.clock
    update = _update(agent, identity, outbox, slots, model)
    publisher = Publisher(
        identity,
        outbox,
        clock,
        agent.state,
        # Nothing in a hint is trusted: it only says when to look.
        (lambda _: update.hint()) if update else _forget,
        flush_s=_FLUSH_S,
    )
    uploader = Uploader(identity, outbox, clock)
    agent.counters["outbox"] = lambda: outbox.counters
    agent.counters["publish"] = lambda: publisher.counters
    agent.counters["upload"] = lambda: uploader.counters
    agent.specs.append(Spec("publish", publisher, "publish"))
    agent.specs.append(Spec("upload", uploader, "upload"))
    _add_health(agent, publisher)
    if update:
        agent.specs.append(Spec("update", update, "update"))
    agent.closers.append(Closer("slots", "update", slots.close))
    agent.closers.append(Closer("outbox", "outbox", outbox.close))


def _add_health(agent: Agent, publisher: Publisher | None) -> None:
    health = HealthService(
        agent.identity.device if agent.identity else "console",
        agent.boot,
        __version__,
        agent.clock,
        port=agent.config.health.port,
        heartbeat_s=agent.config.health.heartbeat_s,
        metrics=agent.metrics,
        figures=agent.figures,
        publish=publisher.publish_health if publisher else None,
    )
    agent.specs.append(Spec("health", health, "health"))


def _update(agent: Agent, identity: Identity, outbox: Outbox, slots: Slots, model: Model) -> UpdateService | None:
    """None where this installation signs no updates, or the configuration wants none."""
    config = agent.config
    if not (config.update.enabled and identity.tuf_root):
        return None
    releases = Releases(
        config.data_dir / "tuf", identity.cloud, identity.tuf_root.encode(), model.manifest.family, agent.clock
    )
    return UpdateService(
        slots,
        releases,
        model,
        agent=__version__,
        poll_s=config.update.poll_s,
        prove=lambda folder: proven(folder, config.model),
        swap=agent.pipeline.request_swap,
        report=lambda rollout: _forget(outbox.report(rollout)),
    )


def _model(config: ModelConfig, slots: Slots | None) -> Model:
    """The bundle that runs: the committed slot, unless the configuration names one; else the shipped one."""
    while slots is not None and config.bundle is None and (running := slots.row().running):
        try:
            return engine.load(slots.path(running), config.engine, config.threads)
        except BundleError as error:  # the disk may have damaged it since; the slot before it still runs
            log.error("slot %s cannot be used: %s", running[:12], error)
            slots.fall_back(str(error))
    return engine.load(config.bundle or SHIPPED, config.engine, config.threads)


def proven(folder: Path, config: ModelConfig) -> Model:
    """The bundle in `folder`, loaded and through its self-test. BundleError if it fails."""
    model = engine.load(folder, config.engine, config.threads)
    try:
        result = engine.selftest(model, folder)
    except BundleError:
        model.engine.close()
        raise
    log.info("self-test of %s: worst %.4f, p50 %.1f ms", model.manifest.name, result.worst, result.p50_ms)
    return model


def boot_id() -> str:
    """Id of this run of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return os.urandom(16).hex()


def _log_event(message: Message) -> None:
    if isinstance(message.body, Event):
        level = logging.DEBUG if message.body.phase == "update" else logging.INFO
        log.log(level, "%s", describe(message.body))


def _forget(_: object) -> None:
    """Where the configuration leaves a part out, what it would be told goes here."""


def summary(config: Config) -> str:
    """What a valid configuration amounts to, in a few lines.

    ConfigError with the path of the wrong key for drivers' options or the identity, BundleError for the bundle.
    Connects to nothing.
    """
    clock = SystemClock()
    for source in config.sources:
        sources.create(source, clock)
    identity = load_identity(config.identity) if config.identity else None
    bundle = engine.open_bundle(config.model.bundle or SHIPPED)
    lines = [
        "ok",
        f"  sources   {', '.join(f'{source.name} ({source.driver})' for source in config.sources)}",
        f"  scenes    {', '.join(scene.name for scene in config.scenes)}",
        f"  model     {bundle.manifest.name}, release {bundle.manifest.counter}, on {config.model.engine}",
        f"  data      {config.data_dir}",
        f"  cloud     {f'{identity.device} at {identity.cloud.url}' if identity else 'none: events are printed'}",
    ]
    return "\n".join(lines)


# --- run -----------------------------------------------------------------------------------------------------------


def run(config: Config, *, until_ended: bool = False) -> int:
    """Run the agent until SIGTERM, SIGINT or SIGHUP; the exit code.

    The caller has blocked `STOP_SIGNALS` before any thread was started, so that one that comes at any moment, during
    the build too, waits for `sigtimedwait` here. `until_ended`: also when every source has ended.
    """
    log.info("edge-agent %s starts", __version__)
    agent = build(config, SystemClock())
    supervisor = agent.supervisor
    assert supervisor is not None
    code, patience = 0, 1.0
    if signal.sigtimedwait(STOP_SIGNALS, 0) is None:  # else it came while the model compiled: start nothing
        supervisor.start()
        notify_systemd("READY=1")
        code, patience = _watch(agent, supervisor, until_ended)
    notify_systemd("STOPPING=1")
    if agent.evidence and patience > 1:
        agent.evidence.stop_grace_s *= patience
    late = supervisor.stop(patience)
    log.info("stopped%s", f"; left behind: {', '.join(late)}" if late else "")
    if late:
        # A thread that hangs in a driver can take the interpreter down on its way out. Everything is on disk.
        _leave(code)
    agent.pipeline.model.engine.close()
    return code


def _watch(agent: Agent, supervisor: Supervisor, until_ended: bool) -> tuple[int, float]:
    """Wait for the end; (exit code, patience of the stop)."""
    while True:
        caught = signal.sigtimedwait(STOP_SIGNALS, _WATCH_S)
        if caught is not None:
            log.info("stopping on %s", signal.Signals(caught.si_signo).name)
            return 0, 1.0
        supervisor.watch()
        if supervisor.fatal:
            log.critical("giving up: %s failed again and again", supervisor.fatal)
            return EXIT_BROKEN, 1.0
        if until_ended and supervisor.ended():
            log.info("every source has ended")
            return 0, _PATIENCE
        if agent.pipeline.idle_s() < _HANGS_S:
            notify_systemd("WATCHDOG=1")


def _leave(code: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


# --- record and replay ---------------------------------------------------------------------------------------------


def record(config: Config, out: Path, seconds: float) -> dict[str, int]:
    """Record what the sources give, ticks included, as the pipeline would get it; how much of what it was.

    Stops early on `STOP_SIGNALS`, which the caller has blocked.

    StorageError if `out` is not empty or the disk is full.
    """
    clock = SystemClock()
    created = datetime.datetime.fromtimestamp(clock.wall_ns() / 1e9, datetime.timezone.utc).isoformat()
    mailbox = Mailbox()
    drivers = [(source.name, sources.create(source, clock)) for source in config.sources]
    recorder = Recorder(out, created=created, sources=config.sources, scenes=config.scenes)
    writer = RecordService(recorder, mailbox)
    inputs = [SourceService(name, driver, clock, mailbox, writer.keep) for name, driver in drivers]
    supervisor = Supervisor(
        [
            Spec("record", writer, "pipeline", fatal_after=1),
            Spec("clock", ClockService(clock, mailbox), "sources"),
            *(Spec(s.name, s, "sources", finite=True, stalled=s.stalled, unblock=s.unblock) for s in inputs),
        ],
        clock,
        closers=[Closer("recording", "evidence", recorder.close)],
    )
    supervisor.start()
    deadline_ns = clock.monotonic_ns() + int(seconds * 1e9)
    while clock.monotonic_ns() < deadline_ns and not (supervisor.ended() or supervisor.fatal):
        if signal.sigtimedwait(STOP_SIGNALS, min(_WATCH_S, max(0.0, (deadline_ns - clock.monotonic_ns()) / 1e9))):
            break
        supervisor.watch()
    supervisor.stop()
    if writer.error is not None:
        raise writer.error
    lost = writer.dropped + sum(mailbox.dropped.values())
    return {**recorder.counters, "dropped": lost}


def replay(folder: Path, config: ModelConfig, write: Callable[[str], object]) -> int:
    """Run a recording through the pipeline as fast as it goes; every event as a line of JSON. The number of samples.

    SourceError for a folder that is no recording or is damaged, BundleError for the bundle.
    """
    scenes = recordings.session(folder).scenes
    model = engine.load(config.bundle or SHIPPED, config.engine, config.threads)
    pipeline = Pipeline(scenes, model, lateness_ms=config.lateness_ms)
    count = 0
    try:
        for sample in recordings.samples(folder):
            count += 1
            _write_all(pipeline.push(sample), write)
    except SourceEnded as error:  # cut off: what there is of it counts
        log.warning("%s", error)
    _write_all(pipeline.flush(), write)
    model.engine.close()
    return count


def _write_all(events: Sequence[Event], write: Callable[[str], object]) -> None:
    for event in events:
        write(msgspec.json.encode(event).decode())

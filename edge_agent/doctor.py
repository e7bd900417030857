"""What this machine offers and what is missing, each with what to do about it. It looks, and changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from edge_agent import __version__, app, engine, sources
from edge_agent.clock import Clock, SystemClock
from edge_agent.config import Config, ModelConfig, SourceConfig, load_identity
from edge_agent.contract.identity import Broker, Cloud
from edge_agent.core.records import Packet, Sample
from edge_agent.errors import BundleError, ConfigError, SourceError
from edge_agent.evidence import missing_codecs
from edge_agent.sources.microphone import recording_devices

CONNECT_S = 5.0
FIRST_SAMPLE_S = 15.0


@dataclass(frozen=True, slots=True)
class Finding:
    """ok: there. note: not there, and not required. missing: required; `remedy` says what to do."""

    what: str
    state: Literal["ok", "note", "missing"]
    detail: str
    remedy: str = ""


def examine(config: Config | None) -> list[Finding]:
    """Everything that can be found out in half a minute; with a configuration, all that it needs as well."""
    return [*_machine(), *(_site(config) if config else ())]


def report(findings: list[Finding]) -> str:
    """A line for each finding, and below it what to do."""
    marks = {"ok": "ok     ", "note": "-      ", "missing": "MISSING"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.state]} {finding.what:<12} {finding.detail}")
        if finding.remedy:
            lines.append(f"        {'':<12} → {finding.remedy}")
    return "\n".join(lines)


def _machine() -> Iterator[Finding]:
    yield Finding("agent", "ok", f"{__version__}, {os.cpu_count()} processors")
    here = engine.installed()
    install = "pip install 'tectum[edge]'"
    yield _verdict("engines", bool(here), ", ".join(here) or "none", install, required=True)
    codecs = missing_codecs()
    yield _verdict(
        "codecs", not codecs, "lacks " + ", ".join(codecs) if codecs else "H.264, AAC", install, required=True
    )
    yield _cameras()
    yield _microphones()
    drivers = sources.installed()
    yield _verdict("drivers", bool(drivers), ", ".join(drivers) or "none", install, required=True)
    synced = SystemClock().wall_quality() == "ntp"
    yield _verdict(
        "clock",
        synced,
        "kept by NTP" if synced else "nobody keeps it: events carry `unsynced`",
        "systemctl enable --now systemd-timesyncd, or chrony",
        required=False,
    )


def _cameras() -> Finding:
    devices = sorted(Path("/dev").glob("video*"))
    closed = [str(device) for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if closed:
        return Finding(
            "cameras", "note", f"no access to {', '.join(closed)}", "usermod -aG video <user of the agent>"
        )
    names = ", ".join(str(device) for device in devices)
    return Finding("cameras", "ok" if devices else "note", names or "no /dev/video*: network cameras and files only")


def _microphones() -> Finding:
    try:
        devices = recording_devices()
    except ConfigError as error:
        return Finding("microphones", "note", "PyAudio is not installed", str(error))
    if not devices:
        return Finding("microphones", "note", "no recording device", "plug one in, or start PulseAudio or PipeWire")
    return Finding("microphones", "ok", ", ".join(devices))


def _site(config: Config) -> Iterator[Finding]:
    yield _engine(config.model)
    yield _bundle(config.model)
    yield from _disk(config)
    clock = SystemClock()
    for source in config.sources:
        yield _source(source, clock)
    if config.identity is None:
        yield Finding("identity", "note", "none: events are printed and go nowhere", "cloud-sync enrol DEVICE")
    else:
        yield from _identity(config.identity)


def _engine(model: ModelConfig) -> Finding:
    there = model.engine in engine.installed()
    return _verdict("engine", there, model.engine, f"pip install {model.engine}, or set model.engine", required=True)


def _bundle(model: ModelConfig) -> Finding:
    folder = model.bundle or app.SHIPPED
    try:
        loaded = engine.load(folder, model.engine, model.threads)
        result = engine.selftest(loaded, folder)
    except (BundleError, ConfigError) as error:
        return Finding("bundle", "missing", str(error), "fetch the bundle again, or leave model.bundle out")
    loaded.engine.close()
    name = f"{loaded.manifest.name}, release {loaded.manifest.counter}"
    return Finding("bundle", "ok", f"{name}: self-test off by {result.worst:.4f}, {result.p50_ms:.1f} ms a step")


def _disk(config: Config) -> Iterator[Finding]:
    folder = config.data_dir
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    remedy = f"mkdir -p {folder} && chown <user of the agent> {folder}"
    yield _verdict("data_dir", os.access(there, os.W_OK | os.X_OK), str(folder), remedy, required=True)
    wanted_mb = config.outbox.max_mb + config.outbox.reserve_mb
    wanted_mb += config.evidence.disk_mb if config.evidence.enabled else 0
    held = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()) if folder.is_dir() else 0
    free_mb = (shutil.disk_usage(there).free + held) >> 20
    yield _verdict(
        "disk",
        free_mb >= wanted_mb,
        f"{free_mb} MB free; evidence and outbox may take {wanted_mb} MB",
        "free some, or lower evidence.disk_mb and outbox.max_mb",
        required=True,
    )


def _source(config: SourceConfig, clock: Clock) -> Finding:
    """Open the source and wait for what it gives first."""
    what = f"source {config.name}"
    try:
        source = sources.create(config, clock)
    except ConfigError as error:
        return Finding(what, "missing", str(error), "correct the options; `edge-agent check` says which")
    began_ns = clock.monotonic_ns()
    try:
        source.open()
        item: Sample | Packet | None = None
        while item is None and clock.monotonic_ns() - began_ns < FIRST_SAMPLE_S * 1e9:
            item = source.read(0.5)
    except SourceError as error:
        return Finding(what, "missing", str(error), "check address, cable and credentials")
    finally:
        source.close()
    waited_s = (clock.monotonic_ns() - began_ns) / 1e9
    if item is not None:
        return Finding(what, "ok", f"first {_kind(item)} after {waited_s:.1f} s")
    if getattr(source, "stamps_on_arrival", False):
        return Finding(what, "note", f"connected; nothing said in {waited_s:.0f} s", "wait for the sensor to report")
    return Finding(what, "missing", f"connected, but nothing came in {waited_s:.0f} s", "is the stream running?")


def _kind(item: Sample | Packet) -> str:
    return item.kind if isinstance(item, Sample) else f"{item.codec} packet"


def _identity(path: Path) -> Iterator[Finding]:
    try:
        identity = load_identity(path)
        mode = path.stat().st_mode & 0o777
    except ConfigError as error:
        yield Finding("identity", "missing", str(error), "cloud-sync enrol DEVICE, and copy the file here")
        return
    readable = f"{identity.device} of site {identity.site}"
    if mode & 0o077:
        yield Finding("identity", "missing", f"{path} has mode {mode:o}: others can read it", f"chmod 600 {path}")
    else:
        yield Finding("identity", "ok", readable)
    yield _broker(identity.broker)
    yield _cloud(identity.cloud)
    if not identity.tuf_root:
        yield Finding("updates", "note", "this installation signs none", "cloud-sync keys init, then enrol again")


def _broker(broker: Broker) -> Finding:
    return reach("broker", broker.host, broker.port, broker.tls, broker.ca_pem)


def _cloud(cloud: Cloud) -> Finding:
    parts = urlsplit(cloud.url)
    tls = parts.scheme == "https"
    return reach("cloud", parts.hostname or "", parts.port or (443 if tls else 80), tls, cloud.ca_pem)


def reach(what: str, host: str, port: int, tls: bool, ca_pem: str) -> Finding:
    """Whether a TCP connection, and TLS over it, can be made. Says nothing of passwords."""
    where = f"{host}:{port}{' over TLS' if tls else ''}"
    try:
        with socket.create_connection((host, port), CONNECT_S) as line:
            if tls:
                context = ssl.create_default_context(cadata=ca_pem or None)
                with context.wrap_socket(line, server_hostname=host):
                    pass
    except ssl.SSLCertVerificationError as error:
        remedy = "does the CA in the identity file belong to this server, and is this machine's date right?"
        return Finding(what, "missing", f"{where}: {error.verify_message}", remedy)
    except (OSError, ValueError) as error:
        return Finding(
            what, "missing", f"{where}: {error}", "is it running, and does a firewall let this device through?"
        )
    return Finding(what, "ok", f"reached {where}")


def _verdict(what: str, good: bool, detail: str, remedy: str, *, required: bool) -> Finding:
    if good:
        return Finding(what, "ok", detail)
    return Finding(what, "missing" if required else "note", detail, remedy)

"""Metrics, heartbeat and log say how the agent is, and no secret."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edge_agent.clock import SystemClock
from edge_agent.config import LogConfig
from edge_agent.contract.status import Health, SceneStatus, SourceStatus
from edge_agent.health import Figures, HealthService, Metrics, configure_logging, redacted

FIGURES = Figures(
    bundle="ab" * 32,
    bundle_name="first",
    engine="openvino",
    sources=(SourceStatus(name="door", state="late", samples=70, dropped=3, rate_hz=9.9),),
    restarts={"door": 2},
    scenes=(
        SceneStatus(
            name="yard",
            calibrating=False,
            threshold=0.93,
            blocks=861,
            alerts=1,
            memory={"vision": 211},
            drift={"audio": 5.2},
        ),
    ),
    pipeline={"late": 4, "waiting": 1},
    outbox={"rows": 5, "bytes": 600, "evicted": 7, "accepted": 8},
    publish={"rows": 1, "in_flight": 2},
    upload={"files": 1},
    evidence={"made": 9, "ring_bytes": 10},
)


@contextmanager
def running(metrics: Metrics, beats: list[Health], port: int = 0) -> Iterator[HealthService]:
    service = HealthService(
        "box",
        "boot",
        "0.1.0",
        SystemClock(),
        port=port,
        heartbeat_s=30.0,
        metrics=metrics,
        figures=lambda: FIGURES,
        publish=beats.append,
    )
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    try:
        while service.port is None or not beats:
            assert thread.is_alive()
            stop.wait(0.005)
        yield service
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def get(service: HealthService, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{service.port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def test_every_part_is_in_the_metrics() -> None:
    metrics = Metrics()
    metrics.observe_step(0.004)
    metrics.observe_score(0.3)
    metrics.observe_event("hall", "fire", "new", 0.7)
    metrics.observe_event("hall", "fire", "end", 9.0)
    with running(metrics, []) as service:
        text = get(service, "/metrics")
    for line in (
        'tectum_samples_total{source="door"} 70.0',
        'tectum_drops_total{source="door"} 3.0',
        'tectum_source_state{source="door",state="late"} 1.0',
        'tectum_source_state{source="door",state="live"} 0.0',
        'tectum_restarts_total{service="door"} 2.0',
        'tectum_pipeline_total{what="late"} 4.0',
        'tectum_outbox_total{what="evicted"} 7.0',
        'tectum_size{part="outbox",what="rows"} 5.0',
        'tectum_publish_total{what="rows"} 1.0',
        'tectum_evidence_total{what="made"} 9.0',
        'tectum_events_total{label="fire",phase="new",scene="hall"} 1.0',
        "tectum_event_delay_seconds_count 1.0",
        'tectum_scene_calibrating{scene="yard"} 0.0',
        'tectum_scene_threshold{scene="yard"} 0.93',
        'tectum_scene_blocks{scene="yard"} 861.0',
        'tectum_scene_alerts{scene="yard"} 1.0',
        'tectum_scene_memory{modality="vision",scene="yard"} 211.0',
        'tectum_scene_drift{modality="audio",scene="yard"} 5.2',
        "tectum_steps_total 1.0",
        "tectum_step_seconds_count 1.0",
    ):
        assert line in text, line
    names = set(re.findall(r"^# HELP (\w+)", text, re.M))
    assert all(name.startswith("tectum_") for name in names)


def test_the_heartbeat_comes_at_once_and_at_the_end() -> None:
    beats: list[Health] = []
    metrics = Metrics()
    for milliseconds in range(1, 101):
        metrics.observe_step(milliseconds / 1e3)
    with running(metrics, beats) as service:
        assert len(beats) == 1
        assert json.loads(get(service, "/health"))["outbox_rows"] == 5
    assert len(beats) == 2
    assert (beats[0].device, beats[0].evicted, beats[0].restarts) == ("box", 7, {"door": 2})
    assert beats[0].scenes == FIGURES.scenes
    assert beats[0].step_p50_ms == pytest.approx(51)
    assert beats[0].step_p99_ms == pytest.approx(100)
    assert beats[0].rss_bytes > 1 << 20


def test_only_this_machine_is_answered_and_only_two_pages() -> None:
    with running(Metrics(), []) as service:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(service, "/etc/passwd")
        with socket.socket() as probe:
            probe.settimeout(1)
            name = socket.gethostbyname(socket.gethostname())
            if not name.startswith("127."):
                assert service.port is not None
                assert probe.connect_ex((name, service.port)) != 0


def test_a_client_that_says_nothing_does_not_stop_the_heart() -> None:
    with running(Metrics(), []) as service, socket.create_connection(("127.0.0.1", service.port or 0)):
        assert "tectum_info" in get(service, "/metrics")


def test_a_port_that_is_taken_is_an_error_for_the_supervisor() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        service = HealthService(
            "box",
            "boot",
            "0.1.0",
            SystemClock(),
            port=holder.getsockname()[1],
            heartbeat_s=30.0,
            metrics=Metrics(),
            figures=lambda: FIGURES,
            publish=None,
        )
        with pytest.raises(OSError, match="in use"):
            service.run(threading.Event())


@pytest.mark.parametrize(
    "text",
    [
        "cannot open rtsp://admin:geheim@10.0.0.5/stream",
        "header Authorization: Bearer geheim",
        'got {"password": "geheim", "user": "x"}',
        "token=geheim&x=1",
        "secret: geheim",
    ],
)
def test_secrets_are_not_repeated(text: str) -> None:
    assert "geheim" not in redacted(text)
    assert "***" in redacted(text)


def test_ordinary_words_stay() -> None:
    text = "broker 10.0.0.1:8883: connection refused; see http://127.0.0.1:9464/metrics at 12:00"
    assert redacted(text) == text


@pytest.mark.parametrize("form", ["json", "console"])
def test_the_log_is_one_line_for_machines_or_people(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogConfig(format=form, level="info"))  # type: ignore[arg-type]
    log = logging.getLogger("edge_agent.test")
    log.debug("too quiet")
    log.info("rtsp://u:geheim@h and %d more", 3)
    try:
        raise ValueError("password=geheim")
    except ValueError:
        log.exception("broke")
    err = capsys.readouterr().err
    assert "geheim" not in err
    assert "too quiet" not in err
    assert "ValueError" in err
    if form == "json":
        entries = [json.loads(line) for line in err.splitlines()]
        assert [entry["level"] for entry in entries] == ["info", "error"]
        assert entries[0]["message"] == "rtsp://***@h and 3 more"
        assert entries[0]["thread"] == "MainThread"

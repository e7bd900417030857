"""One real agent: stopped at any moment, killed, fed by sources that break, hang or end."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import paho.mqtt.client as mqtt
import pytest

from edge_agent.contract import wire
from tests.parts.agent import BANG, AgentProcess, closed_port, evidence, messages, phases, simulated, site
from tests.parts.bundle import tiny_bundle
from tests.parts.mosquitto import mosquitto

pytestmark = pytest.mark.system

CHANCE = random.Random(11)
#: Seconds after the first word of the log: while the model compiles, before, in and after an event.
MOMENTS = [0.0, *sorted(round(CHANCE.uniform(0.2, 9.0), 2) for _ in range(6))]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def check_left_nothing(data: Path, unpromised: int = 0) -> None:
    """No drafts, and every file of the evidence is one that a message promised, but for `unpromised` at most."""
    assert list(data.rglob("*.part")) == []
    promised = {item.sha256 for items in evidence(messages(data)).values() for item in items}
    files = {path.name for path in (data / "evidence").glob("*") if path.is_file()}
    assert promised <= files
    assert len(files - promised) <= unpromised


@pytest.mark.parametrize("after_s", MOMENTS)
def test_sigterm_at_any_moment_ends_everything_in_five_seconds(tmp_path: Path, bundle: Path, after_s: float) -> None:
    with AgentProcess(simulated(tmp_path, bundle)) as agent:
        agent.until_said("starts")
        time.sleep(after_s)  # the moment is the test: nothing to wait for
        took_s = agent.stop()
        assert agent.process.returncode == 0, agent.log[-5:]
        assert took_s < 5.0
        assert agent.said("left behind") == []
        assert [entry for entry in agent.log if entry["level"] in ("raw", "critical")] == []
    if (agent.data / "outbox.db").exists():
        for event_id, told in phases(messages(agent.data)).items():
            assert told == ["new", "end"], event_id
        check_left_nothing(agent.data)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_open_event_gets_its_end_and_its_clip(tmp_path: Path, bundle: Path, number: int) -> None:
    with AgentProcess(simulated(tmp_path, bundle)) as agent:
        agent.until_said("NEW")
        assert agent.stop(number) < 5.0
        assert agent.process.returncode == 0
    found = messages(agent.data)
    told = phases(found)
    assert told
    assert set(map(tuple, told.values())) == {("new", "end")}
    for event_id in told:
        roles = {item.role for item in evidence(found)[event_id]}
        assert roles == {"clip", "snapshot", "trace", "spectrogram"}
    check_left_nothing(agent.data)


@pytest.mark.needs("mosquitto")
def test_the_end_is_published_before_the_agent_is_gone(tmp_path: Path, bundle: Path) -> None:
    heard: list[mqtt.MQTTMessage] = []
    listener = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    listener.on_message = lambda _client, _data, message: heard.append(message)
    with mosquitto(tmp_path / "broker") as broker:
        listener.connect(broker.host, broker.port)
        listener.subscribe("tectum/v1/test/box/up/#", qos=1)
        listener.loop_start()
        try:
            with AgentProcess(simulated(tmp_path, bundle, broker_port=broker.port)) as agent:
                agent.until_said("NEW")
                assert agent.stop() < 5.0
                assert agent.process.returncode == 0
            agent_gone = time.monotonic()
            while not any(m.topic.endswith("/state") and not json.loads(m.payload)["online"] for m in heard):
                assert time.monotonic() < agent_gone + 10
                time.sleep(0.02)
        finally:
            listener.loop_stop()
            listener.disconnect()
    bodies = [text for m in heard if m.topic.endswith("/event") for text in wire.split(m.payload)]
    told = phases(list({text: wire.decode_message(text, "box") for text in bodies}.values()))
    assert told
    assert set(map(tuple, told.values())) == {("new", "end")}


def test_kill_minus_nine_is_told_at_the_next_start(tmp_path: Path, bundle: Path) -> None:
    config = simulated(tmp_path, bundle)
    with AgentProcess(config) as agent:
        agent.until_said("NEW")
        agent.stop(signal.SIGKILL)
    (agent.data / "evidence" / "tmp").mkdir(parents=True, exist_ok=True)
    (agent.data / "evidence" / "tmp" / "3.part").write_bytes(b"half a clip")
    with AgentProcess(config) as agent:
        agent.until_said("NEW")
        assert agent.stop() < 5.0
    told = list(phases(messages(agent.data)).values())
    assert told[0] == ["new", "aborted"]
    assert told[-1] == ["new", "end"]
    # The kill may fall between a file's final name and its row: it then waits for the disk limit, which evicts it.
    check_left_nothing(agent.data, unpromised=1)


def test_a_source_that_hangs_and_one_that_is_not_there_harm_nobody(tmp_path: Path, bundle: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)  # accepts and never says a word
        hanging = f"rtsp://127.0.0.1:{mute.getsockname()[1]}/x"
        missing = f"rtsp://127.0.0.1:{closed_port()}/x"
        cameras = [
            {"name": name, "driver": "camera", "options": {"url": url, "allow_local": True, "timeout_s": 60}}
            for name, url in (("hanging", hanging), ("missing", missing))
        ]
        good = {"name": "sim", "driver": "synthetic", "options": {"seed": 3, "episodes": "quiet"}}
        scenes = [
            {"name": "gate", "camera": "hanging"},
            {"name": "yard", "camera": "missing"},
            {"name": "hall", "camera": "sim", "microphone": "sim"},
        ]
        with AgentProcess(site(tmp_path, bundle, sources=[*cameras, good], scenes=scenes)) as agent:

            def states() -> dict[str, str]:
                return {source["name"]: source["state"] for source in json.loads(agent.get("/health"))["sources"]}

            agent.until(lambda: states() == {"hanging": "down", "missing": "down", "sim": "live"})
            agent.until(lambda: json.loads(agent.get("/health"))["steps"] > 6)
            agent.until(lambda: json.loads(agent.get("/health"))["restarts"]["missing"] > 0)
            assert agent.stop() < 5.0
            assert agent.process.returncode == 0
        for path, source in (("hanging", hanging), ("missing", missing)):
            assert source not in agent.printed, path


def test_a_thread_that_nothing_frees_is_named_and_left_behind(tmp_path: Path, bundle: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")  # opening it waits for a writer for ever, and so does closing the driver
    stuck = {
        "name": "stuck",
        "driver": "csv",
        "options": {"path": str(tmp_path / "pipe.csv"), "channels": {"t": "t"}, "rate_hz": 1},
    }
    sim = {"name": "sim", "driver": "synthetic", "options": {"seed": 3, "episodes": [BANG]}}
    scene = {
        "name": "hall",
        "microphone": "sim",
        "sensors": [{"source": "stuck", "channel": "t", "quantity": "temperature"}],
    }
    with AgentProcess(site(tmp_path, bundle, sources=[stuck, sim], scenes=[scene])) as agent:
        agent.until_said("NEW")
        assert agent.stop() < 5.0
        assert agent.process.returncode == 0
        assert agent.said("left behind: stuck") != []
    assert set(map(tuple, phases(messages(agent.data)).values())) == {("new", "end")}


def test_systemd_is_told_of_start_life_and_stop(tmp_path: Path, bundle: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(40)
        with AgentProcess(simulated(tmp_path, bundle), NOTIFY_SOCKET=str(tmp_path / "notify")) as agent:
            assert line.recv(64) == b"READY=1"
            assert line.recv(64) == b"WATCHDOG=1"
            agent.stop()
            said = b""
            while said != b"STOPPING=1":
                said = line.recv(64)


def test_the_whole_of_a_file_is_scored_and_its_clip_is_whole(tmp_path: Path, bundle: Path) -> None:
    film = tmp_path / "film.mp4"
    _write_film(film, seconds=6, loud_s=3.0)
    source = {"name": "film", "driver": "camera", "options": {"url": str(film)}}
    scene = {"name": "hall", "camera": "film", "microphone": "film"}
    config = site(tmp_path, bundle, sources=[source], scenes=[scene])
    with AgentProcess(config, "--until-ended") as agent:
        agent.process.wait(60)
        assert agent.process.returncode == 0, agent.log[-5:]
    found = messages(agent.data)
    (event_id,) = phases(found)
    assert phases(found)[event_id] == ["new", "end"]
    clip = next(item for item in evidence(found)[event_id] if item.role == "clip")
    assert (clip.end_ns - clip.start_ns) / 1e9 > 3.0


def test_without_an_identity_events_are_printed(tmp_path: Path, bundle: Path) -> None:
    config = simulated(tmp_path, bundle, identity=None)
    with AgentProcess(config) as agent:
        agent.until(lambda: re.search(r"NEW +\w+ in hall +score [01].\d\d of 0\.60", agent.printed))
        agent.stop()
    assert "END" in agent.printed
    assert "clip of hall" in agent.printed
    assert not (agent.data / "outbox.db").exists()


def test_metrics_say_what_happens_and_no_secret_is_told(tmp_path: Path, bundle: Path) -> None:
    with AgentProcess(simulated(tmp_path, bundle)) as agent:
        agent.until_said("NEW")
        text = agent.get("/metrics")
        health = json.loads(agent.get("/health"))
        agent.stop()
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    assert values['tectum_samples_total{source="sim"}'] > 20
    assert values['tectum_source_state{source="sim",state="live"}'] == 1
    assert values["tectum_steps_total"] >= 3
    assert values["tectum_step_seconds_count"] >= 3
    assert values["tectum_event_delay_seconds_count"] >= 1
    assert values['tectum_size{part="outbox",what="rows"}'] >= 1
    assert values["tectum_rss_bytes"] > 1 << 24
    assert health["steps"] >= 3
    assert health["sources"][0]["rate_hz"] >= 0
    words = text + json.dumps(agent.log) + agent.printed
    assert "geheim" not in words


def test_a_recording_runs_again_as_fast_as_it_goes(tmp_path: Path, bundle: Path) -> None:
    config = simulated(tmp_path, bundle)
    out = tmp_path / "recording"
    command = [sys.executable, "-m", "edge_agent"]
    done = subprocess.run(
        [*command, "record", str(config), "--out", str(out), "--seconds", "6"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "frame" in done.stdout
    replays = [
        subprocess.run(
            [*command, "replay", str(out), "--bundle", str(bundle)], capture_output=True, text=True, check=False
        )
        for _ in range(2)
    ]
    assert [replay.returncode for replay in replays] == [0, 0]
    events = [json.loads(line) for line in replays[0].stdout.splitlines()]
    assert events[0]["phase"] == "new"
    assert events[-1]["phase"] == "end"
    assert replays[0].stdout == replays[1].stdout


def _write_film(path: Path, seconds: int, loud_s: float) -> None:
    """A gray picture; a loud tone from `loud_s` on."""
    rate = 16_000
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        sound = out.add_stream("aac", rate=rate, layout="mono")
        for _ in range(seconds * 10):
            picture = np.full((96, 128, 3), 60, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
        t = np.arange(seconds * rate) / rate
        wave = np.where(t >= loud_s, 25_000 * np.sin(2 * np.pi * 700 * t), 0).astype(np.int16)
        for at in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="s16", layout="mono")
            block.rate, block.pts = rate, at
            out.mux(sound.encode(block))
        out.mux(sound.encode(None))

"""Drivers are found by entry point, and a wrong configuration says which key is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.clock import SystemClock
from edge_agent.config import SourceConfig
from edge_agent.errors import ConfigError
from edge_agent.sources import create, installed


def config(driver: str, **options: object) -> SourceConfig:
    return SourceConfig(name="yard", driver=driver, options=dict(options))


def test_ours_are_installed_by_the_same_door_as_others() -> None:
    assert {"camera", "v4l2", "microphone", "mqtt", "csv", "synthetic"} <= set(installed())


def test_an_unknown_driver_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"sources\[yard\].driver: no driver 'kamera'; installed: .*camera.*mqtt"):
        create(config("kamera"), SystemClock())


@pytest.mark.parametrize(
    ("driver", "options", "where"),
    [
        ("camera", {"url": "rtsp://cam/x", "fsp": 3}, "fsp"),
        ("camera", {"url": "rtsp://cam/x", "fps": 0}, r"sources\[yard\].options.fps"),
        ("camera", {"url": "concat:/etc/passwd"}, r"sources\[yard\].options.*concat"),
        ("camera", {"url": "rtsp://cam/x", "loop": True}, "only a file can loop"),
        ("camera", {"url": "rtsp://localhost/x"}, "allow_local"),
        ("v4l2", {"device": "/etc/passwd"}, "below /dev"),
        ("v4l2", {"device": "/dev/../etc/passwd"}, "below /dev"),
        ("v4l2", {"device": -1}, "begin with 0"),
        ("mqtt", {"host": "h", "feeds": []}, "feeds"),
        ("mqtt", {"host": "h", "feeds": [{"topic": "a/+", "fields": {"t": "t"}}]}, "one device"),
        ("mqtt", {"host": "h", "feeds": [{"topic": "a", "fields": {"t": "a..b"}}]}, r"feeds\[0\].fields.t"),
        ("mqtt", {"host": "h", "feeds": [{"shape": "number", "topic": "a/#/b"}]}, "topic filter"),
        ("csv", {"path": "x.csv", "channels": {"a": "a"}}, "rate_hz"),
        ("csv", {"path": "x.csv", "channels": {"a": "a"}, "rate_hz": 1, "decimal": ","}, "cannot be the same"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_connected(
    driver: str, options: dict[str, object], where: str
) -> None:
    with pytest.raises(ConfigError, match=where):
        create(config(driver, **options), SystemClock())


def test_nothing_is_opened_by_making_a_source(tmp_path: Path) -> None:
    create(config("csv", path=str(tmp_path / "absent.csv"), channels={"a": "a"}, rate_hz=1.0), SystemClock())

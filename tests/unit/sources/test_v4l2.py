"""A camera of this machine: what can be said without one."""

from __future__ import annotations

import pytest

from edge_agent.clock import SystemClock
from edge_agent.errors import SourceError
from edge_agent.sources.v4l2 import V4l2, V4l2Options

CLOCK = SystemClock()


@pytest.mark.parametrize("device", [63, "/dev/video63", "/dev/shm"])
def test_a_device_that_is_not_there_is_an_error_that_names_it(device: int | str) -> None:
    camera = V4l2("door", V4l2Options(device=device), CLOCK)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"door: /dev/.*no such device; there are"):
            camera.open()
    camera.close()
    camera.close()


def test_a_device_that_is_no_camera_is_an_error() -> None:
    camera = V4l2("door", V4l2Options(device="/dev/null"), CLOCK)
    with pytest.raises(SourceError, match="cannot be opened"):
        camera.open()
    with pytest.raises(SourceError, match="not open"):
        camera.read(0.1)

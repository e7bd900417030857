"""What every test may ask for, and the rule about skips.

A test is left out only for a part that the machine lacks: `@pytest.mark.needs("mosquitto")` skips with the command
that installs it. Under TECTUM_REQUIRE_ALL=1 (CI) a missing part, or any other skip, fails the test. The end of every
run lists what was left out.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# How long an example takes is the machine's affair: no test fails for being slow.
hypothesis.settings.register_profile("tectum", deadline=None)
hypothesis.settings.load_profile("tectum")

ROOT = Path(__file__).resolve().parent.parent
REQUIRE_ALL = os.environ.get("TECTUM_REQUIRE_ALL") == "1"
_LEFT_OUT: dict[str, set[str]] = {}


def data_folder() -> Path | None:
    """Folder of the evaluation sets: TECTUM_DATA, or `shared/data` beside the checkout."""
    folder = Path(os.environ.get("TECTUM_DATA", ROOT.parent / "shared" / "data"))
    return folder if (folder / "sesa" / "meta.csv").is_file() else None


def _program(name: str, package: str) -> Callable[[], str | None]:
    paths = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return lambda: None if shutil.which(name, path=paths) else f"apt-get install {package}"


def _module(name: str, extra: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"pip install {extra}"


def _gst_rtsp() -> str | None:
    found = list(Path("/usr/lib").glob("*/girepository-1.0/GstRtspServer-1.0.typelib"))
    gi = Path("/usr/lib/python3/dist-packages/gi").is_dir()
    wanted = (
        "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly gstreamer1.0-libav"
    )
    return None if found and gi else f"apt-get install {wanted}"


def _pulse() -> str | None:
    alsa = list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so"))
    audio = importlib.util.find_spec("pyaudio") is not None
    if shutil.which("pulseaudio") and shutil.which("paplay") and alsa and audio:
        return None
    return "apt-get install pulseaudio pulseaudio-utils libasound2-plugins portaudio19-dev && pip install PyAudio"


def _postgres() -> str | None:
    return None if list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) else "apt-get install postgresql"


def _data() -> str | None:
    return (
        None
        if data_folder()
        else "set TECTUM_DATA to the folder of the evaluation sets (docs/how-to/evaluation-data.md)"
    )


#: Part → what to do if it is missing (None: it is there).
PARTS: dict[str, Callable[[], str | None]] = {
    "mosquitto": _program("mosquitto", "mosquitto"),
    "ffmpeg": _program("ffmpeg", "ffmpeg"),
    "chromium": _program("chromium", "chromium"),
    "gst-rtsp": _gst_rtsp,
    "pulseaudio": _pulse,
    "postgres": _postgres,
    "data": _data,
    "torch": _module("torch", "torch==2.13.0"),
    "iotcore": _module("iotcore", "iotcore"),
    "tensorrt-rtx": _module("tensorrt_rtx", "tensorrt-rtx-cu13"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("needs"):
            for part in marker.args:
                remedy = PARTS[part]()
                if remedy is None:
                    continue
                _LEFT_OUT.setdefault(f"{part}: {remedy}", set()).add(item.nodeid)
                if not REQUIRE_ALL:
                    item.add_marker(pytest.mark.skip(reason=f"needs {part}: {remedy}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if REQUIRE_ALL:
        for marker in item.iter_markers("needs"):
            for part in marker.args:
                remedy = PARTS[part]()
                if remedy is not None:
                    pytest.fail(f"TECTUM_REQUIRE_ALL=1 and {part} is missing: {remedy}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if REQUIRE_ALL and report.skipped:  # type: ignore[attr-defined]
        report.outcome = "failed"  # type: ignore[attr-defined]
        report.longrepr = f"TECTUM_REQUIRE_ALL=1 and {item.nodeid} skipped itself: {report.longrepr}"  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _LEFT_OUT:
        terminalreporter.section("left out on this machine" if not REQUIRE_ALL else "missing parts")
        for remedy, tests in sorted(_LEFT_OUT.items()):
            terminalreporter.write_line(f"{len(tests):4d} tests need {remedy}")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The evaluation sets; ask for it together with `needs("data")`."""
    folder = data_folder()
    assert folder is not None
    return folder


@pytest.fixture(autouse=True)
def logging_as_found() -> Iterator[None]:
    """A command that runs in the test's own process sets the level and the handlers of the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


#: Threads of libraries that live as long as the process, by the start of their name.
_LASTING = ("pydevd", "Dummy-", "asyncio_", "AnyIO", "ThreadPoolExecutor-", "tqdm")


@pytest.fixture(autouse=True)
def no_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a thread behind fails."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while True:
        left = [t for t in threading.enumerate() if t not in before and not t.name.startswith(_LASTING)]
        if not left or time.monotonic() > deadline:
            break
        gc.collect()
        left[0].join(0.1)
    assert not left, f"threads left behind: {[thread.name for thread in left]}"

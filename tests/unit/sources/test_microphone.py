"""A microphone through PortAudio, ALSA and a real sound server with a null sink."""

from __future__ import annotations

import itertools
import statistics
import sys
import time

import numpy as np
import pytest

from edge_agent.clock import SystemClock
from edge_agent.core.records import Sample
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.microphone import Microphone, MicrophoneOptions, _Decimator
from tests.parts.pulse import DEVICE, pulse_sink

CLOCK = SystemClock()


def tone(hz: float, seconds: float, rate_hz: int = 16000, size: float = 8000) -> np.ndarray:
    return (size * np.sin(np.arange(round(seconds * rate_hz)) * 2 * np.pi * hz / rate_hz)).astype(np.int16)


def listen(microphone: Microphone, count: int) -> list[Sample]:
    """The next blocks with something in them."""
    found: list[Sample] = []
    deadline = time.monotonic() + 15
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {len(found)} blocks"
        sample = microphone.read(0.5)
        if sample is not None and (found or np.abs(sample.data).max() > 100):
            found.append(sample)
    return found


@pytest.mark.needs("pulseaudio")
@pytest.mark.parametrize(("hz", "gain_db"), [(880, 0.0), (3000, -6.0)])
def test_a_tone_comes_back_with_its_pitch_and_loudness(hz: int, gain_db: float) -> None:
    microphone = Microphone("hall", MicrophoneOptions(device=DEVICE, gain_db=gain_db), CLOCK)
    with pulse_sink() as sink:
        sink.play(tone(hz, 30))
        microphone.open()
        try:
            blocks = listen(microphone, 40)[5:]
        finally:
            microphone.close()
    sound = np.concatenate([block.data for block in blocks])
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(sound.size)))
    assert np.argmax(spectrum) * 16000 / sound.size == pytest.approx(hz, abs=2)
    assert sound.std() == pytest.approx(8000 / np.sqrt(2) * 10 ** (gain_db / 20), rel=0.05)
    steps_ms = [(after.captured_ns - before.captured_ns) / 1e6 for before, after in itertools.pairwise(blocks)]
    assert statistics.median(steps_ms) == pytest.approx(40, abs=1)
    assert min(steps_ms) > 0  # the estimate of the device's clock may still be settling


@pytest.mark.needs("pulseaudio")
def test_a_sound_server_that_dies_is_an_error_and_the_microphone_opens_again() -> None:
    microphone = Microphone("hall", MicrophoneOptions(device=DEVICE, timeout_s=4.0), CLOCK)
    with pulse_sink() as sink:
        sink.play(tone(440, 30))
        microphone.open()
        before = listen(microphone, 3)
        sink.stop()
        with pytest.raises(SourceError):
            listen(microphone, 1000)
        microphone.close()
        with pytest.raises(SourceError, match="hall"):
            microphone.open()
        sink.start()
        sink.play(tone(440, 30))
        microphone.open()
        after = listen(microphone, 3)
        microphone.close()
    assert after[0].seq > before[-1].seq


@pytest.mark.needs("pulseaudio")
def test_an_unknown_device_names_those_there_are() -> None:
    with pulse_sink():
        for wanted in ("kitchen", 99):
            microphone = Microphone("hall", MicrophoneOptions(device=wanted), CLOCK)
            with pytest.raises(SourceError, match=r"there are .*pulse"):
                microphone.open()
        part = Microphone("hall", MicrophoneOptions(device="PULS"), CLOCK)
        part.open()
        part.close()


@pytest.mark.needs("pulseaudio")
def test_the_libraries_keep_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with pulse_sink():
        microphone = Microphone("hall", MicrophoneOptions(device=DEVICE), CLOCK)
        microphone.open()
        microphone.close()
    assert "ALSA" not in capfd.readouterr().err


def test_without_pyaudio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyaudio", None)
    with pytest.raises(ConfigError, match=r"pip install 'tectum\[mic\]'"):
        Microphone("hall", MicrophoneOptions(), CLOCK)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_other_rates_become_16_khz_block_by_block_without_a_seam(factor: int) -> None:
    rate_hz = factor * 16000
    sound = tone(1000, 1, rate_hz).astype(np.float32)
    too_high = tone(0.6 * 16000, 1, rate_hz).astype(np.float32)
    decimate = _Decimator(factor)
    parts = [decimate(block) for block in np.split(sound, 25)]
    assert all(part.size == 640 for part in parts)
    joined = np.concatenate(parts)[640:]
    spectrum = np.abs(np.fft.rfft(joined * np.hanning(joined.size)))
    assert np.argmax(spectrum) * 16000 / joined.size == pytest.approx(1000, abs=2)
    assert joined.std() == pytest.approx(8000 / np.sqrt(2), rel=0.02)
    if factor > 1:
        aliased = np.concatenate([_Decimator(factor)(too_high)])[640:]
        assert aliased.std() < 80  # 40 dB down

"""A microphone of this machine by PyAudio (PortAudio: ALSA, PulseAudio, PipeWire)."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import threading
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from edge_agent.clock import Clock
from edge_agent.core.records import F32, I16, Sample
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.line import Line
from edge_agent.sources.timeline import SECOND, Live

RATE_HZ = 16000
_WAITING = 50  # blocks; while it is full PortAudio loses sound, which is counted
_LET_GO_S = 1.0  # a block and the stop of a stream take less; longer is a deadlock in the sound system
_OVERFLOWED = -9981  # paInputOverflowed
_PORTAUDIO = threading.Lock()  # PortAudio's start, stop and enumeration are not thread-safe


class MicrophoneOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recording device of this machine."""

    device: int | str | None = None  #: number, or a part of its name; None: the system's default
    block_ms: Annotated[int, Meta(ge=10, le=100)] = (
        40  #: sound per sample; the system keeps three blocks before it loses sound
    )
    gain_db: Annotated[float, Meta(ge=-60, le=60)] = 0.0
    timeout_s: Annotated[float, Meta(ge=0.5, le=120)] = 5.0  #: without sound the device counts as gone


class Microphone:
    """Mono blocks of `block_ms` at 16 kHz. Counters: `overflows` (sound that was lost because it was not read in
    time), `stuck` (recordings that the sound system never let go of; each keeps a thread until the process ends)."""

    Options = MicrophoneOptions
    stamps_on_arrival = False

    def __init__(self, name: str, options: MicrophoneOptions, clock: Clock) -> None:
        """ConfigError if PyAudio is not installed."""
        self._library = _library()
        self.counters = {"overflows": 0, "stuck": 0}
        self._name = name
        self._options = options
        self._clock = clock
        self._take: _Take | None = None
        self._lock = threading.Lock()
        self._seq = -1
        self._heard_ns = 0

    def open(self) -> None:
        """Start to record. SourceError if there is no such device, or it is busy."""
        take = _Take(self._library, self._name, self._options, self._clock, self.counters)
        with self._lock:
            if self._take is not None:
                raise self._error("open already; close it first")
            self._take = take
        try:
            take.line.open(take.record, self._options.timeout_s)
        except SourceError:
            self.close()
            raise
        self._heard_ns = self._clock.monotonic_ns()

    def read(self, timeout_s: float) -> Sample | None:
        """The next block. captured_ns is the time of its first sample, by the sample count and the clock together."""
        take = self._take
        if take is None:
            raise self._error("not open")
        block = take.line.get(timeout_s)
        now_ns = self._clock.monotonic_ns()
        if block is None:
            if now_ns - self._heard_ns > self._options.timeout_s * SECOND:
                raise self._error(f"no sound for {self._options.timeout_s:g} s; is the device unplugged?")
            return None
        self._heard_ns = now_ns
        self._seq += 1
        return Sample(self._name, "audio", self._seq, *block, RATE_HZ)

    def close(self) -> None:
        """Stop to record."""
        with self._lock:
            take, self._take = self._take, None
        if take is not None and not take.line.close(_LET_GO_S):
            self.counters["stuck"] += 1

    def _error(self, what: str) -> SourceError:
        return SourceError(f"{self._name}: {what}")


class _Take:
    """One recording. All of it, PortAudio's start and stop included, happens on the line's thread."""

    def __init__(
        self, library: Any, name: str, options: MicrophoneOptions, clock: Clock, counters: dict[str, int]
    ) -> None:
        self.line: Line[tuple[int, I16]] = Line(f"microphone-{name}", _WAITING)
        self._library = library
        self._name = name
        self._options = options
        self._clock = clock
        self._counters = counters
        self._gain = 10 ** (options.gain_db / 20)
        self._timeline = Live()
        self._heard_frames = 0
        self._last_ns = 0

    def record(self) -> SourceError:
        """Until the line is closed or the device is gone."""
        with _PORTAUDIO:
            _silence_libraries()
            audio = self._library.PyAudio()
        try:
            stream = self._start(audio)
            self.line.connected()
            while not self.line.closing.is_set():
                block = self._block(stream)
                if block is not None:
                    self.line.put(block)
            stream.close()
        except (OSError, ValueError) as error:
            raise SourceError(f"{self._name}: cannot record: {error}") from error
        finally:
            with _PORTAUDIO:
                audio.terminate()  # closes what is still open
        return SourceError(f"{self._name}: closed")

    def _block(self, stream: Any) -> tuple[int, I16] | None:
        """The next block with the time of its first sample; None if sound was lost."""
        try:
            data = stream.read(self._frames)
        except OSError as error:
            if error.errno != _OVERFLOWED:
                raise
            self._counters["overflows"] += 1
            self._timeline = Live()  # sound is missing: the count of samples says nothing about time any more
            return None
        start_ns = self._heard_frames * SECOND // self._rate_hz
        self._heard_frames += self._frames
        end_ns = self._heard_frames * SECOND // self._rate_hz
        self._timeline.arrived("audio", start_ns, self._clock.monotonic_ns(), end_ns)
        self._last_ns = max(self._timeline.captured_ns("audio", start_ns), self._last_ns + 1)
        sound = np.frombuffer(data, "<i2").astype(np.float32).reshape(-1, self._channels).mean(axis=1)
        loud = np.clip(np.rint(self._decimate(sound) * self._gain), -32768, 32767)
        return self._last_ns, loud.astype(np.int16)

    def _start(self, audio: Any) -> Any:
        index = _choose(audio, self._name, self._options.device)
        self._rate_hz, self._channels = _form(audio, self._library, self._name, index)
        self._frames = self._rate_hz * self._options.block_ms // 1000
        self._decimate = _Decimator(self._rate_hz // RATE_HZ)
        return audio.open(
            rate=self._rate_hz,
            channels=self._channels,
            format=self._library.paInt16,
            input=True,
            input_device_index=index,
            frames_per_buffer=self._frames,
        )


class _Decimator:
    """16 kHz out of 16, 32 or 48 kHz: a windowed sinc, then every n-th sample. Delay: under 1 ms."""

    def __init__(self, factor: int) -> None:
        self._factor = factor
        taps = 24 * factor + 1
        grid = np.arange(taps) - taps // 2
        kernel = np.sinc(grid * 0.92 / factor) * np.hamming(taps)
        self._kernel = (kernel / kernel.sum()).astype(np.float32)
        self._tail = np.zeros(taps - 1, np.float32)

    def __call__(self, sound: F32) -> F32:
        """Blocks must be a multiple of the factor long."""
        if self._factor == 1:
            return sound
        joined = np.concatenate((self._tail, sound))
        self._tail = joined[-self._tail.size :]
        return np.convolve(joined, self._kernel, "valid")[:: self._factor].astype(np.float32)


def recording_devices() -> tuple[str, ...]:
    """Names of what this machine can record from; ConfigError if PyAudio is not installed."""
    library = _library()
    _silence_libraries()
    with _PORTAUDIO:
        audio = library.PyAudio()
        try:
            infos = [audio.get_device_info_by_index(index) for index in range(audio.get_device_count())]
        finally:
            audio.terminate()
    return tuple(str(info["name"]) for info in infos if int(info["maxInputChannels"]) > 0)


def _library() -> Any:
    try:
        return importlib.import_module("pyaudio")  # optional: only a site with a microphone has it
    except ImportError as error:
        raise ConfigError(
            f"PyAudio is missing ({error}): apt install portaudio19-dev && pip install 'tectum[mic]'"
        ) from error


def _choose(audio: Any, name: str, wanted: int | str | None) -> int | None:
    """Index of the device. SourceError names those there are."""
    infos = [audio.get_device_info_by_index(index) for index in range(audio.get_device_count())]
    inputs = {int(info["index"]): str(info["name"]) for info in infos if int(info["maxInputChannels"]) > 0}
    if not inputs:
        raise SourceError(f"{name}: this machine has no recording device")
    if wanted is None:
        return None
    if isinstance(wanted, int):
        found = [wanted] if wanted in inputs else []
    else:
        found = [index for index, label in inputs.items() if label == wanted]
        found = found or [index for index, label in inputs.items() if wanted.lower() in label.lower()]
    if not found:
        there = ", ".join(f"{index} {label!r}" for index, label in inputs.items())
        raise SourceError(f"{name}: no recording device {wanted!r}; there are {there}")
    return found[0]


def _form(audio: Any, library: Any, name: str, index: int | None) -> tuple[int, int]:
    """Rate and channels the device can give and we can use: 16 kHz mono at best."""
    device = index if index is not None else int(audio.get_default_input_device_info()["index"])
    for rate_hz in (RATE_HZ, 3 * RATE_HZ, 2 * RATE_HZ):
        for channels in (1, 2):
            try:
                if audio.is_format_supported(
                    rate_hz, input_device=device, input_channels=channels, input_format=library.paInt16
                ):
                    return rate_hz, channels
            except ValueError:
                continue
    raise SourceError(f"{name}: device {device} gives neither 16, 32 nor 48 kHz; choose ALSA's `default` or `pulse`")


def _silence_libraries() -> None:
    """ALSA and JACK talk on stderr about every device that is not there. They are told to be silent: to redirect
    file descriptor 2 would swallow the log of every other thread."""
    os.environ.setdefault("JACK_NO_START_SERVER", "1")
    for file, function in _TALKERS:
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(file), function)(_SILENCE)


_SILENCE = ctypes.CFUNCTYPE(None)(lambda: None)  # must outlive every call, so it belongs to the module
_TALKERS = (
    ("libasound.so.2", "snd_lib_error_set_handler"),
    ("libjack.so.0", "jack_set_error_function"),
    ("libjack.so.0", "jack_set_info_function"),
)

"""What one source gave in the last seconds, kept small enough to stay in memory.

A camera that yields packets costs what its stream costs; for one that yields pictures alone, JPEGs are kept.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from edge_agent.core.records import Packet, Reading, Sample
from edge_agent.evidence.stills import encode_jpeg

LIMIT_BYTES = 64 << 20  #: per source; over it the oldest goes, and is counted
PICTURE_NS = 90_000_000  #: pictures closer together than this are skipped: 10 a second tell the story
MAX_READINGS = 20_000


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame as JPEG."""

    captured_ns: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Footage:
    """A cut out of a ring. Video starts with the keyframe at or before the start that was asked for."""

    video: tuple[Packet, ...] = ()
    aac: tuple[Packet, ...] = ()
    pictures: tuple[Picture, ...] = ()
    sound: tuple[Sample, ...] = ()
    readings: tuple[tuple[int, Reading], ...] = ()


class Ring:
    """Bounded by time, except for what is held for an open event, and by bytes in any case. Thread-safe."""

    def __init__(self, keep_ns: int, most_ns: int, limit_bytes: int = LIMIT_BYTES) -> None:
        """`keep_ns`: age that is always kept; `most_ns`: age beyond which nothing is held for anyone."""
        self._keep_ns = keep_ns
        self._most_ns = most_ns
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._video: deque[Packet] = deque()
        self._aac: deque[Packet] = deque()
        self._pictures: deque[Picture] = deque()
        self._sound: deque[Sample] = deque()
        self._readings: deque[tuple[int, Reading]] = deque(maxlen=MAX_READINGS)
        self._holds: dict[Hashable, int] = {}
        self._gives_packets = False
        self._last_picture_ns = -PICTURE_NS
        self.bytes = 0
        self.dropped = 0  #: pieces lost to the byte limit, not to age

    def add(self, item: Sample | Packet) -> None:
        """Take what a driver gave. Compresses pictures in the caller's thread, outside the lock."""
        if isinstance(item, Packet):
            self._add_packet(item)
        elif item.kind == "frame":
            if not self._gives_packets and item.captured_ns - self._last_picture_ns >= PICTURE_NS:
                self._last_picture_ns = item.captured_ns
                self._append(self._pictures, Picture(item.captured_ns, encode_jpeg(item.data)))
        elif item.kind == "audio":
            self._append(self._sound, item)
        elif item.kind == "reading":
            with self._lock:
                self._readings.append((item.captured_ns, item.data))
                self._trim(item.captured_ns)

    def hold(self, key: Hashable, start_ns: int) -> None:
        """Keep what is newer than `start_ns` until `release(key)`."""
        with self._lock:
            self._holds[key] = start_ns

    def release(self, key: Hashable) -> None:
        """End a hold; one that does not exist is no error."""
        with self._lock:
            self._holds.pop(key, None)

    def cut(self, start_ns: int, end_ns: int) -> Footage:
        """Everything of [start, end)."""
        with self._lock:
            video = list(self._video)
            first = 0
            for index, packet in enumerate(video):
                if packet.captured_ns > start_ns:
                    break
                if packet.key:
                    first = index
            return Footage(
                video=tuple(packet for packet in video[first:] if packet.captured_ns < end_ns),
                aac=tuple(packet for packet in self._aac if start_ns <= packet.captured_ns < end_ns),
                pictures=tuple(picture for picture in self._pictures if start_ns <= picture.captured_ns < end_ns),
                sound=tuple(block for block in self._sound if start_ns <= block.captured_ns < end_ns),
                readings=tuple(entry for entry in self._readings if start_ns <= entry[0] < end_ns),
            )

    def __len__(self) -> int:
        return sum(len(queue) for queue in (self._video, self._aac, self._pictures, self._sound, self._readings))

    def _add_packet(self, packet: Packet) -> None:
        if packet.stream == "audio":
            if packet.codec == "aac" and packet.extradata:  # what goes into MP4 as it is
                self._append(self._aac, packet)
            return
        self._gives_packets = True
        if self._pictures:
            with self._lock:
                self.bytes -= sum(map(_size, self._pictures))
                self._pictures.clear()
        if packet.key or self._video:  # without its keyframe a packet shows nothing
            self._append(self._video, packet)

    def _append(self, queue: deque[Packet] | deque[Picture] | deque[Sample], item: Packet | Picture | Sample) -> None:
        with self._lock:
            queue.append(item)  # type: ignore[arg-type]  # each caller hands in the queue of its own kind
            self.bytes += _size(item)
            self._trim(item.captured_ns)

    def _trim(self, now_ns: int) -> None:
        floor_ns = min([now_ns - self._keep_ns, *self._holds.values()])
        floor_ns = max(floor_ns, now_ns - self._most_ns)
        # Video goes by whole groups of pictures, and only once the next keyframe is old enough to start from.
        while (key := self._second_key()) and self._video[key].captured_ns <= floor_ns:
            self._pop_video(key)
        for queue in self._timed():
            while queue and queue[0].captured_ns < floor_ns:
                self.bytes -= _size(queue.popleft())
        while self._readings and self._readings[0][0] < floor_ns:
            self._readings.popleft()
        while self.bytes > self._limit_bytes:
            self._drop_oldest()

    def _timed(self) -> Iterator[deque[Packet] | deque[Picture] | deque[Sample]]:
        yield from (self._aac, self._pictures, self._sound)

    def _second_key(self) -> int:
        """Index of the second group's keyframe; 0 where there is none."""
        return next((index for index, packet in enumerate(self._video) if packet.key and index), 0)

    def _pop_video(self, count: int) -> None:
        for _ in range(count):
            self.bytes -= _size(self._video.popleft())

    def _drop_oldest(self) -> None:
        queues = [queue for queue in (self._video, *self._timed()) if queue]
        oldest = min(queues, key=lambda queue: queue[0].captured_ns)
        if oldest is self._video:
            count = self._second_key() or len(self._video)
            self._pop_video(count)
            self.dropped += count
        else:
            self.bytes -= _size(oldest.popleft())
            self.dropped += 1


def _size(item: Packet | Picture | Sample) -> int:
    if isinstance(item, Packet):
        return len(item.data)
    if isinstance(item, Picture):
        return len(item.jpeg)
    return int(item.data.nbytes)

"""Stream time → monotonic time, for all streams of one connection together. Pure: time is handed in.

Picture and sound of one connection carry times of one sender's clock. `Live` finds where that clock lies on ours:
a packet cannot arrive before what it holds was seen or heard, so the smallest (arrival − stream time) of the last
15 to 30 s is the best estimate of the difference, and it is the same for every stream. What remains is the
transport's and the encoder's smallest delay, which no receiver can know. `Paced` plays a file in real time.
`Arrival` is for streams that carry no times at all (MJPEG over HTTP): a packet's time is when it came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

SECOND = 1_000_000_000
#: A stream time that is this far off was not carried by the network: the sender's clock jumped.
JUMP_NS = SECOND
#: Longest gap of a file that is waited through.
GAP_NS = 10 * SECOND
_BUCKET_NS = 15 * SECOND
_SETTLE_NS = 5 * SECOND  # a server that sends its buffered picture first moves the estimate; no jump is counted
_SLEW = 100  # the estimate rises by at most 1 % of elapsed time: far above the drift of a crystal (0.01 %)


class Timeline(Protocol):
    """Where the packets of one connection lie on the monotonic clock."""

    jumps: int  #: discontinuities so far

    def arrived(self, stream: str, media_ns: int, now_ns: int, whole_ns: int | None = None) -> None:
        """Learn from a packet, in the order of arrival; `media_ns` is its decode time.

        whole_ns: stream time that had passed when it could be sent, if that is later (the end of a block of sound).
        """

    def captured_ns(self, stream: str, media_ns: int) -> int:
        """Monotonic time of a stream time."""


@dataclass(slots=True)
class _Stream:
    last_ns: int
    shift_ns: int = 0  #: added to its times since its clock jumped


class Live:
    """Timeline of a live stream."""

    def __init__(self) -> None:
        self.jumps = 0
        self._streams: dict[str, _Stream] = {}
        self._offset_ns = 0
        self._started_ns: int | None = None
        self._moved_ns = 0
        self._bucket_ns = 0
        self._least = [0, 0]  # of the bucket before and of this one

    def arrived(self, stream: str, media_ns: int, now_ns: int, whole_ns: int | None = None) -> None:
        if self._started_ns is None:
            self._start(media_ns, now_ns)
        state = self._streams.get(stream)
        if state is None:
            state = self._streams[stream] = _Stream(media_ns, self._newcomer_shift(media_ns, now_ns))
        elif self._jumped(state, media_ns, now_ns):
            self.jumps += 1
            state.shift_ns = self._shift(state, media_ns, now_ns)
        state.last_ns = media_ns
        self._learn(now_ns - (whole_ns or media_ns) - state.shift_ns, now_ns)

    def captured_ns(self, stream: str, media_ns: int) -> int:
        return media_ns + self._streams[stream].shift_ns + self._offset_ns

    def _start(self, media_ns: int, now_ns: int) -> None:
        self._started_ns = self._moved_ns = self._bucket_ns = now_ns
        self._offset_ns = now_ns - media_ns
        self._least = [self._offset_ns, self._offset_ns]

    def _jumped(self, state: _Stream, media_ns: int, now_ns: int) -> bool:
        step = media_ns - state.last_ns
        if step < -JUMP_NS:
            return True
        assert self._started_ns is not None
        ahead = media_ns + state.shift_ns + self._offset_ns - now_ns
        limit = JUMP_NS if now_ns - self._started_ns > _SETTLE_NS else GAP_NS
        return step > JUMP_NS and ahead > limit

    def _newcomer_shift(self, media_ns: int, now_ns: int) -> int:
        """0, as all streams share a clock, unless this one plainly does not."""
        ahead = media_ns + self._offset_ns - now_ns
        return 0 if abs(ahead) < GAP_NS or not self._streams else -ahead

    def _shift(self, state: _Stream, media_ns: int, now_ns: int) -> int:
        """What makes this stream go on at `now`; the shift of a stream that jumped with it, if there is one."""
        wanted = now_ns - self._offset_ns - media_ns
        for other in self._streams.values():
            if other is not state and abs(other.shift_ns - wanted) < JUMP_NS:
                return other.shift_ns
        return wanted

    def _learn(self, offset_ns: int, now_ns: int) -> None:
        if now_ns - self._bucket_ns > _BUCKET_NS:
            self._bucket_ns = now_ns
            self._least = [self._least[1], offset_ns]
        self._least[1] = min(self._least[1], offset_ns)
        aim = min(self._least)
        allowed = (now_ns - self._moved_ns) // _SLEW
        self._offset_ns = min(aim, self._offset_ns + max(0, allowed))
        self._moved_ns = now_ns


class Paced:
    """Timeline of a file that is played in real time from `start_ns` on, again and again if it is rewound."""

    def __init__(self, start_ns: int) -> None:
        self.jumps = 0
        self._offset_ns: int | None = None
        self._end_ns = start_ns
        self._last_ns: dict[str, int] = {}

    def arrived(self, stream: str, media_ns: int, now_ns: int, whole_ns: int | None = None) -> None:
        if self._offset_ns is None:
            self._offset_ns = self._end_ns - media_ns
        placed_ns = media_ns + self._offset_ns
        last_ns = self._last_ns.get(stream, placed_ns)
        if not -JUMP_NS <= placed_ns - last_ns <= GAP_NS:
            self.jumps += 1
            self._offset_ns += self._end_ns - placed_ns
            placed_ns = self._end_ns
        if now_ns - placed_ns > GAP_NS:  # the reader, or the whole machine, was held up: go on from now
            self.jumps += 1
            self._offset_ns += now_ns - placed_ns
            placed_ns = now_ns
        self._last_ns[stream] = placed_ns
        self._end_ns = max(self._end_ns, placed_ns, (whole_ns or media_ns) + self._offset_ns)

    def captured_ns(self, stream: str, media_ns: int) -> int:
        assert self._offset_ns is not None, "nothing has arrived yet"
        return media_ns + self._offset_ns

    def rewind(self) -> None:
        """The next packet continues where the last one ended."""
        self._offset_ns = None
        self._last_ns.clear()


class Arrival:
    """Timeline of a live stream whose times were made up on the way."""

    def __init__(self) -> None:
        self.jumps = 0
        self._last: dict[str, tuple[int, int]] = {}

    def arrived(self, stream: str, media_ns: int, now_ns: int, whole_ns: int | None = None) -> None:
        self._last[stream] = media_ns, now_ns

    def captured_ns(self, stream: str, media_ns: int) -> int:
        last_ns, came_ns = self._last[stream]
        return came_ns + min(0, media_ns - last_ns)

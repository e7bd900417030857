"""Files of an event, made beside the pipeline and kept within a limit: clip, snapshot, sensor trace, spectrogram.

    source threads ── add ──▶ rings          pipeline ── note ──▶ stories
                                  └──── run (own thread, low priority) ──▶ files ──▶ attach

A file is complete or not there: it is written under `tmp/`, synced, and renamed to its SHA-256.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_agent.clock import Clock
from edge_agent.config import EvidenceConfig, SceneConfig
from edge_agent.contract.event import Event, Evidence, Message
from edge_agent.core.records import Packet, Sample
from edge_agent.errors import StorageError
from edge_agent.evidence.clip import Span, pcm, picture_at, write_clip
from edge_agent.evidence.rings import Footage, Ring
from edge_agent.evidence.stills import snapshot, spectrogram, trace

log = logging.getLogger(__name__)

Attach = Callable[[str, Evidence, Path], object]
Role = Literal["clip", "snapshot", "trace", "spectrogram"]
MediaType = Literal["video/mp4", "image/jpeg", "image/png", "application/json"]

_SECOND_NS = 1_000_000_000
_SLACK_NS = 6 * _SECOND_NS  #: an event is known this long after its onset at the latest: steps to open, lateness
_SETTLE_NS = _SECOND_NS // 2  #: the last packets of a clip may still be on their way
_BEHIND_NS = 30 * _SECOND_NS  #: how far the encoder may fall behind before clips lose their beginning
_POLL_S = 0.2
_HURRY_S = 5.0  #: with less time than this after the stop, clips start shortly before their onset, to reach it
_HURRY_PRE_NS = _SECOND_NS
MAX_STORIES = 64


@dataclass(slots=True)
class _Story:
    """An event whose files are still to be made."""

    event_id: str
    scene: SceneConfig
    onset_ns: int
    start_ns: int
    due_ns: int  #: nothing of the clip is newer
    peak: float
    peak_ns: int
    pictured: bool = False


class EvidenceStore:
    """`add` and `note` never block on encoding; `run` is a service of the supervisor.

    folder    files lie in it under their SHA-256; it is made, and left-overs of a crash are removed
    attach    promises a file to the cloud: `Outbox.attach`
    pending   SHA-256s that still wait for upload, which are evicted last
    """

    def __init__(
        self,
        folder: Path,
        config: EvidenceConfig,
        scenes: Sequence[SceneConfig],
        clock: Clock,
        *,
        attach: Attach,
        pending: Callable[[], Collection[str]],
    ) -> None:
        self._config = config
        self._clock = clock
        self._attach = attach
        self._disk = _Disk(folder, config.disk_mb << 20, pending)
        self._scenes = {scene.name: scene for scene in scenes}
        keep_ns = _ns(config.pre_s) + _SLACK_NS
        most_ns = _ns(config.max_clip_s) + keep_ns + _BEHIND_NS
        self._rings = {name: Ring(keep_ns, most_ns) for scene in scenes for name in _sources(scene)}
        self._lock = threading.Lock()
        self._stories: dict[str, _Story] = {}
        self._counts: Counter[str] = Counter(made=0, failed=0, refused=0)
        self._hurry_from_ns: int | None = None
        self.stop_grace_s = 0.8  #: of encoding after the stop; what has been encoded by then is the clip

    @property
    def counters(self) -> Mapping[str, int]:
        """Totals (made, failed, refused, evicted, evicted_unsent, ring_dropped) and sizes (open, files, bytes,
        ring_bytes)."""
        rings = list(self._rings.values())
        return {
            **self._counts,
            **self._disk.counters,
            "open": len(self._stories),
            "ring_bytes": sum(ring.bytes for ring in rings),
            "ring_dropped": sum(ring.dropped for ring in rings),
        }

    def add(self, item: Sample | Packet) -> None:
        """Remember what a source gave, if a scene watches it. From the source's own thread."""
        ring = self._rings.get(item.source)
        if ring is not None:
            ring.add(item)

    def note(self, message: Message) -> None:
        """Follow an event's life. Messages of other kinds are ignored."""
        event = message.body
        if not isinstance(event, Event) or event.scene not in self._scenes:
            return
        with self._lock:
            story = self._stories.get(message.id)
            if story is None and event.phase == "new":
                story = self._begin(message.id, event)
            if story is None:
                return
            step_ns = event.step_ms * 1_000_000
            for point in event.trace:
                if not story.pictured and point.score > story.peak and (point.step + 1) * step_ns > story.onset_ns:
                    story.peak, story.peak_ns = point.score, (point.step + 1) * step_ns - step_ns // 2
            if event.phase in ("end", "aborted"):
                end_ns = (event.step + 1) * step_ns
                story.due_ns = min(story.due_ns, end_ns + _ns(self._config.post_s))

    def run(self, stop: threading.Event) -> None:
        """Make files as they fall due. After `stop`, make what is open at once, shorter, and return."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        self._disk.clean()
        while not stop.is_set():
            self._work(stop)
            stop.wait(_POLL_S)
        self._work(stop)

    def _begin(self, event_id: str, event: Event) -> _Story | None:
        if len(self._stories) >= MAX_STORIES:
            self._counts["refused"] += 1
            return None
        scene = self._scenes[event.scene]
        step_ns = event.step_ms * 1_000_000
        onset_ns = event.onset_step * step_ns
        start_ns = onset_ns - _ns(self._config.pre_s)
        story = _Story(
            event_id=event_id,
            scene=scene,
            onset_ns=onset_ns,
            start_ns=start_ns,
            due_ns=start_ns + _ns(self._config.max_clip_s),
            peak=event.score,
            peak_ns=(event.step + 1) * step_ns - step_ns // 2,
        )
        for name in _sources(scene):
            self._rings[name].hold(event_id, start_ns)
        self._stories[event_id] = story
        return story

    def _work(self, stop: threading.Event) -> None:
        """Snapshots first: they cost little and are what a person looks at first."""
        with self._lock:
            stories = list(self._stories.values())
        for story in stories:
            if not story.pictured:
                story.pictured = True
                self._make(story, "snapshot", self._snapshot)
        for story in sorted(stories, key=lambda story: story.due_ns):
            if stop.is_set() or self._clock.monotonic_ns() >= story.due_ns + _SETTLE_NS:
                self._finish(story, stop)

    def _finish(self, story: _Story, stop: threading.Event) -> None:
        with self._lock:
            self._stories.pop(story.event_id, None)  # first, or a story that breaks the service would break it again
        if stop.is_set():
            if self.stop_grace_s < _HURRY_S:
                story.start_ns = max(story.start_ns, story.onset_ns - _HURRY_PRE_NS)
            story.due_ns = min(story.due_ns, self._clock.monotonic_ns())
        try:
            self._make(story, "trace", self._trace)
            self._make(story, "spectrogram", self._spectrogram)
            self._make(story, "clip", lambda story: self._clip(story, stop))
        finally:
            for name in _sources(story.scene):
                self._rings[name].release(story.event_id)

    def _make(self, story: _Story, role: Role, make: Callable[[_Story], _Made | None]) -> None:
        """One file, from its bytes to its promise. A file that cannot be made is counted, and the next one tried."""
        try:
            made = make(story)
            if made is None:
                return
            path, digest, size = self._disk.keep(made.file)
        except (StorageError, ValueError, OSError) as error:
            self._counts["failed"] += 1
            self._disk.sweep()
            log.warning("no %s of event %s: %s", role, story.event_id, error)
            return
        body = Evidence(
            scene=story.scene.name,
            role=role,
            sha256=digest,
            size=size,
            media_type=made.media_type,
            start_ns=max(0, made.start_ns),
            end_ns=max(0, made.end_ns),
        )
        try:
            self._attach(story.event_id, body, path)
        except StorageError as error:  # the outbox has no room; the event's other files may still find some
            self._counts["failed"] += 1
            log.warning("%s of event %s is not promised: %s", role, story.event_id, error)
            return
        self._counts["made"] += 1

    def _snapshot(self, story: _Story) -> _Made | None:
        if story.scene.camera is None:
            return None
        ring = self._rings[story.scene.camera]
        footage = ring.cut(story.peak_ns - _SECOND_NS, self._clock.monotonic_ns())
        picture = picture_at(footage, story.peak_ns)
        if picture is None:
            return None
        file = self._disk.draft(snapshot(picture, story.scene.masks))
        return _Made(file, "image/jpeg", story.peak_ns, story.peak_ns)

    def _trace(self, story: _Story) -> _Made | None:
        names = {channel.source for channel in story.scene.sensors}
        readings = [
            (captured_ns, name, reading)
            for name in names
            for captured_ns, reading in self._rings[name].cut(story.start_ns, story.due_ns).readings
        ]
        data = trace(story.start_ns, story.scene.sensors, readings)
        return (data and _Made(self._disk.draft(data), "application/json", story.start_ns, story.due_ns)) or None

    def _spectrogram(self, story: _Story) -> _Made | None:
        if story.scene.microphone is None:
            return None
        blocks = self._rings[story.scene.microphone].cut(story.start_ns, story.due_ns).sound
        if not blocks:
            return None
        start_ns = max(story.start_ns, blocks[0].captured_ns)
        wave, rate_hz = pcm(blocks, start_ns, story.due_ns)
        if not len(wave):
            return None
        return _Made(self._disk.draft(spectrogram(wave, rate_hz)), "image/png", start_ns, story.due_ns)

    def _clip(self, story: _Story, stop: threading.Event) -> _Made | None:
        scene = story.scene
        seen = self._rings[scene.camera].cut(story.start_ns, story.due_ns) if scene.camera else Footage()
        # Video starts at a keyframe, which may lie before the start: sound has to reach as far back.
        start_ns = min(story.start_ns, seen.video[0].captured_ns) if seen.video else story.start_ns
        heard = self._rings[scene.microphone].cut(start_ns, story.due_ns) if scene.microphone else Footage()
        footage = Footage(video=seen.video, pictures=seen.pictures, aac=heard.aac, sound=heard.sound)
        file = self._disk.draft_path()
        span = Span(start_ns, story.onset_ns, story.due_ns)
        covered = write_clip(file, footage, span, scene.masks, lambda: self._hurry(stop))
        return None if covered is None else _Made(file, "video/mp4", *covered)

    def _hurry(self, stop: threading.Event) -> bool:
        if not stop.is_set():
            return False
        now_ns = self._clock.monotonic_ns()
        if self._hurry_from_ns is None:
            self._hurry_from_ns = now_ns + _ns(self.stop_grace_s)
        return now_ns >= self._hurry_from_ns


@dataclass(frozen=True, slots=True)
class _Made:
    """A file under `tmp/` and what it covers."""

    file: Path
    media_type: MediaType
    start_ns: int
    end_ns: int


class _Disk:
    """The folder of files by hash, bounded. One thread writes."""

    def __init__(self, folder: Path, limit_bytes: int, pending: Callable[[], Collection[str]]) -> None:
        self._folder = folder
        self._drafts = folder / "tmp"
        self._limit_bytes = limit_bytes
        self._pending = pending
        self._files: dict[str, int] = {}  # oldest first: hash → size
        self._number = 0
        self.counters: Counter[str] = Counter(evicted=0, evicted_unsent=0, files=0, bytes=0)

    def clean(self) -> None:
        """Remove what a crash left half done, and learn what is there."""
        try:
            shutil.rmtree(self._drafts, ignore_errors=True)
            self._drafts.mkdir(parents=True, exist_ok=True)
            found = [(entry.stat(), entry.name) for entry in self._folder.iterdir() if entry.is_file()]
        except OSError as error:
            raise StorageError(f"cannot use {self._folder}: {error}. Is the folder writable?") from error
        self._files = {name: stat.st_size for stat, name in sorted(found, key=lambda item: item[0].st_mtime_ns)}
        self._count()

    def sweep(self) -> None:
        """Remove drafts that came to nothing."""
        for draft in self._drafts.iterdir():
            draft.unlink(missing_ok=True)

    def draft_path(self) -> Path:
        """A new name under `tmp/`."""
        self._number += 1
        return self._drafts / f"{self._number}.part"

    def draft(self, data: bytes) -> Path:
        """A file under `tmp/` with `data` in it."""
        path = self.draft_path()
        path.write_bytes(data)
        return path

    def keep(self, draft: Path) -> tuple[Path, str, int]:
        """Give a draft its final name once it is on disk: (path, SHA-256, bytes). Evicts others if it must.

        StorageError if it is larger than the whole limit.
        """
        with draft.open("rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
            size = file.tell()
            os.fsync(file.fileno())
        if size > self._limit_bytes:
            draft.unlink()
            raise StorageError(f"{size} bytes are more than evidence.disk_mb allows in all")
        self._make_room(size)
        path = self._folder / digest
        draft.replace(path)
        _sync_folder(self._folder)
        self._files.pop(digest, None)
        self._files[digest] = size
        self._count()
        return path, digest, size

    def _make_room(self, size: int) -> None:
        total = sum(self._files.values())
        if total + size <= self._limit_bytes:
            return
        unsent = set(self._pending())
        # What the cloud has goes first; then what it will never get, oldest first.
        for digest in sorted(self._files, key=lambda digest: digest in unsent):
            (self._folder / digest).unlink(missing_ok=True)
            total -= self._files.pop(digest)
            self.counters["evicted"] += 1
            self.counters["evicted_unsent"] += digest in unsent
            if total + size <= self._limit_bytes:
                return

    def _count(self) -> None:
        self.counters["files"] = len(self._files)
        self.counters["bytes"] = sum(self._files.values())


def _sources(scene: SceneConfig) -> set[str]:
    names = {channel.source for channel in scene.sensors} | {scene.camera, scene.microphone}
    return {name for name in names if name is not None}


def _ns(seconds: float) -> int:
    return int(seconds * _SECOND_NS)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

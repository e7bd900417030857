"""One alert whole: what was seen and heard, why it was raised, and what people say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nicegui import ui
from sqlalchemy.orm import Session

from cloud_sync import overview, review
from cloud_sync.accounts import Viewer
from cloud_sync.dashboard import frame, margin, view, words
from cloud_sync.dashboard.desk import Desk, Seat
from cloud_sync.dashboard.parts import Clip, Heat, Mix, Moment, Tag, Tracks, VerdictPanel, icon, refill
from cloud_sync.dashboard.view import Trace
from cloud_sync.errors import NotFound
from cloud_sync.review import AlertDetail, Filters

POLL_S = 1.0
SETTLE_POLLS = 15  #: after so many polls an alert that has not settled is drawn anew: time alone may settle it
SETTLED_S = 120.0  #: after the end's arrival; what a device has not announced by then it does not have
MAX_TRACE_BYTES = 8 << 20  #: a larger trace is offered as a file only


@dataclass(frozen=True)
class Shown:
    """Everything that an alert's page is drawn from."""

    detail: AlertDetail
    trace: Trace | None
    newer: str | None
    older: str | None
    course: overview.Course | None
    release: str
    settled: bool  #: what evidence was not announced by now will not come


def gather(desk: Desk, id: str, filters: Filters) -> Callable[[Session, Viewer], Shown]:
    """A query for one alert and what lies around it. NotFound if the viewer may not see it."""

    def query(session: Session, viewer: Viewer) -> Shown:
        detail = review.alert(session, viewer, id)
        newer, older = overview.neighbours(session, viewer, detail.row.started_ns, id, filters)
        course = overview.course(session, viewer, id)
        return Shown(
            detail,
            _trace(desk, detail),
            newer,
            older,
            course,
            overview.release_name(session, detail.row.bundle),
            _settled(detail, course, desk.now_ns()),
        )

    return query


def _settled(detail: AlertDetail, course: overview.Course | None, now_ns: int) -> bool:
    if detail.row.ended_ns is None:
        return False
    # The cloud's own clock where it is known: the device's may be anywhere.
    end_ns = course.last_received_ns if course else detail.row.ended_ns
    return now_ns - end_ns > SETTLED_S * 1e9


def _trace(desk: Desk, detail: AlertDetail) -> Trace | None:
    file = view.find(detail, "trace")
    if file is None or not file.stored or file.size > MAX_TRACE_BYTES:
        return None
    try:
        return view.decode_trace(desk.blobs.path(file.sha256).read_bytes())
    except NotFound:
        return None


class AlertPage:
    """One browser tab that shows an alert. `show` builds it; a timer brings in what is new."""

    def __init__(self, seat: Seat, id: str, filters: Filters) -> None:
        self.seat = seat
        self.id = id
        self.filters = filters
        self.change = 0
        self.settled = False
        self.polls = 0
        self.drawn: dict[str, object] = {}

    async def show(self) -> None:
        """Build the page in the current slot. NotFound if there is no such alert for this person."""
        shown = await self.seat.ask(gather(self.seat.desk, self.id, self.filters))
        title = words.title(shown.detail.row.label)
        with frame.page(self.seat.viewer, f"{title}, {words.title(shown.detail.row.scene)}", "alerts"):
            self.head = Tag("div", "head")
            self.notices = Tag("div", "stack", style="margin-bottom: 14px")
            with Tag("div", "alert-page"):
                with Tag("div", "column"):
                    self._media()
                with Tag("div", "column"):
                    self._reading()
        self._draw(shown)
        ui.timer(POLL_S, frame.guarded(self._poll))

    def _media(self) -> None:
        with Tag("section", "card area-media", aria_label="Clip"):
            self.clip = Clip()
            self.media_note = Tag("div", "media-note")
        with Tag("section", "card area-tracks", aria_label="Measurements over time"):
            with Tag("div", "card-head"):
                Tag("h2", text="Score, sound and sensors over time")
                self.hint = Tag("span", "dim")
            with Tag("div", "card-body"):
                self.tracks = Tracks()
                self.track_note = Tag("div")

    def _reading(self) -> None:
        with Tag("section", "card area-verdict"):
            with Tag("div", "card-head"):
                Tag("h2", text="Was it real?")
            with Tag("div", "card-body"):
                self.verdict = VerdictPanel(self._judge)
        with Tag("section", "card area-why"):
            with Tag("div", "card-head"):
                Tag("h2", text="What raised the score")
            with Tag("div", "card-body"):
                self.sentences = Tag("div", "said-words")
                self.shares = Mix()
                self.classes = Tag("div")
        with Tag("section", "card area-snapshot"):
            with Tag("div", "card-head"):
                Tag("h2", text="Where in the picture")
            with Tag("div", "card-body"):
                self.heat = Heat()
        with Tag("section", "card area-facts"):
            with Tag("div", "card-head"):
                Tag("h2", text="Facts")
            with Tag("div", "card-body"):
                self.facts = Tag("dl", "facts")

    def _draw(self, shown: Shown) -> None:
        detail = shown.detail
        self.change = detail.row.change
        self.settled = shown.settled
        clip = view.clip(detail, settled=shown.settled)
        self.clip.show(**clip)
        self.heat.show(**view.heat(detail, settled=shown.settled))
        self.shares.show(**view.shares(detail))
        self.tracks.show(**view.tracks(detail, shown.trace))
        self.verdict.show(**verdict_panel(detail, self.seat.viewer))
        query = view.query(self.filters)
        self._section("head", self.head, (_phase_of(detail), shown.newer, shown.older), lambda: _head(shown, query))
        self._section("notices", self.notices, _remarks(detail), lambda: _notices(detail))
        self._section("words", self.sentences, _sentences(detail), lambda: _say(_sentences(detail)))
        self._section("classes", self.classes, view.classes(detail), lambda: _classes(detail))
        self.hint.set_text("They follow the clip; click to go there." if clip["src"] else "")
        self._section("note", self.media_note, detail.evidence, lambda: _media_note(detail))
        waiting = _trace_note(shown)
        self._section("trace", self.track_note, waiting, lambda: _waiting(waiting))
        self._section(
            "facts", self.facts, (detail.row, detail.evidence, shown.course, shown.settled), lambda: _facts(shown)
        )

    def _section(self, name: str, container: ui.element, state: object, build: Callable[[], object]) -> None:
        if name not in self.drawn or self.drawn[name] != state:
            self.drawn[name] = state
            refill(container, build)

    async def _poll(self) -> None:
        self.polls += 1
        change = await self.seat.ask(lambda s, v: overview.change_of(s, v, self.id))
        if change is None:
            ui.navigate.to("/")
        elif change != self.change or (not self.settled and self.polls % SETTLE_POLLS == 0):
            await self._refresh()

    async def _refresh(self) -> None:
        self._draw(await self.seat.ask(gather(self.seat.desk, self.id, self.filters)))

    async def _judge(self, said: dict[str, Any]) -> None:
        if await frame.judge(self.seat, self.id, said.get("verdict"), str(said.get("note") or "")):
            await self._refresh()


def verdict_panel(detail: AlertDetail, viewer: Viewer) -> dict[str, object]:
    """Props of the verdict panel for this viewer."""
    own = next((said for said in detail.verdicts if said.user == viewer.name), None)
    return {
        "may": viewer.may("judge"),
        "mine": own.verdict if own else None,
        "said": own.note if own else "",
        "history": [
            {"by": said.user, "verdict": said.verdict, "note": said.note, "at": view.milliseconds(said.given_ns)}
            for said in detail.verdicts
        ],
    }


def _phase_of(detail: AlertDetail) -> str:
    return words.phase(detail.row.phase)


def _head(shown: Shown, query: str) -> None:
    row = shown.detail.row
    with Tag(
        "a",
        "button square",
        id_="back",
        href=f"/{query}",
        title="Back to the list (Esc)",
        aria_label="Back to the list",
    ):
        icon("arrow_back")
    Tag("h1", text=f"{words.title(row.label)}, {words.title(row.scene)}")
    phase = _phase_of(shown.detail)
    Tag("span", "badge live" if phase == "live" else "badge", {"aborted": "cut off"}.get(phase, phase))
    with Tag("span", "dim"):
        Moment(view.milliseconds(row.started_ns), "full")
    Tag("span", "push")
    for id, target, picture, text in (
        ("newer", shown.newer, "keyboard_arrow_up", "Newer alert (k)"),
        ("older", shown.older, "keyboard_arrow_down", "Older alert (j)"),
    ):
        if target:
            with Tag("a", "button square", id_=id, href=f"/alert/{target}{query}", title=text, aria_label=text):
                icon(picture)
        else:
            with Tag(
                "button", "square", type="button", disabled="", title=f"No {id} alert", aria_label=f"No {id} alert"
            ):
                icon(picture)


def _remarks(detail: AlertDetail) -> list[tuple[str, str]]:
    row = detail.row
    found = [
        (words.explain_phase(row.phase), "power_off"),
        (words.RULE if row.origin == "rule" else "", "rule"),
        (words.CALIBRATING if row.calibrating else "", "tune"),
        (words.UNSYNCED if row.wall_quality != "ntp" else "", "history_toggle_off"),
    ]
    return [(text, picture) for text, picture in found if text]


def _notices(detail: AlertDetail) -> None:
    for text, picture in _remarks(detail):
        frame.notice(text, picture)


def _sentences(detail: AlertDetail) -> list[str]:
    rarity = words.explain_p_value(detail.best.get("p_value"))
    return [*words.explain_shares(detail.row.shares, detail.row.present), *([rarity] if rarity else [])]


def _say(sentences: list[str]) -> None:
    for sentence in sentences:
        Tag("p", text=sentence)


def _classes(detail: AlertDetail) -> None:
    found = view.classes(detail)
    if found:
        with Tag("div", "classes"):
            for name, value in found:
                with Tag("span"):
                    Tag("span", text=f"{name} ")
                    Tag("b", text=words.percent(value))


def _media_note(detail: AlertDetail) -> None:
    clip, address = view.find(detail, "clip"), view.url(detail, "clip")
    if clip and address:
        before = (detail.started_monotonic_ns - clip.start_ns) / 1e9
        length = (clip.end_ns - clip.start_ns) / 1e9
        Tag("span", text=f"{words.span(length)} long, {words.span(before)} of it before the onset")
        Tag(
            "a",
            text=f"Download ({words.size(clip.size)})",
            href=view.evidence_url(detail.row.id, "clip"),
            download="",
        )
    margin.keys((("space", "play"), ("←", "→", "1 s"), ("k", "j", "newer, older alert")))


def _trace_note(shown: Shown) -> str:
    if shown.trace is not None:
        return "" if shown.trace.channels else "No sensor was watching this scene."
    waiting = view.why_not(shown.detail, "trace", settled=shown.settled)
    return waiting or "The sensor trace cannot be drawn here; it can be downloaded below."


def _waiting(text: str) -> None:
    if text:
        with Tag("div", "waiting"):
            icon("hourglass_top")
            Tag("span", text=text)


def _facts(shown: Shown) -> None:
    detail, row = shown.detail, shown.detail.row
    _fact("Scene", words.title(row.scene))
    with _entry("Device"):
        Tag("a", text=row.device, href=f"/devices#{row.device}")
        Tag("span", "dim", f" at {row.site}")
    _fact(
        "Score", f"peak {words.score(row.peak)}" + (f", now {words.score(row.score)}" if row.ended_ns is None else "")
    )
    _fact("Threshold", f"{words.score(row.threshold)}{' (general, still calibrating)' if row.calibrating else ''}")
    with _entry("Opened by"):
        Tag("span", text=f"rule {row.rule or ''}" if row.origin == "rule" else "the model")
    with _entry("Model"):
        Tag("span", text=f"{shown.release or detail.bundle_name or 'not released here'} ")
        Tag("span", "mono dim", row.bundle[:12] or "unknown", title=row.bundle)
    _times(shown)
    lost = view.dropped(detail)
    _fact("Samples lost", ", ".join(f"{name} {count}" for name, count in lost.items()) if lost else "none")
    with _entry("Evidence"):
        _files(shown)
    with _entry("Event"):
        Tag("span", "mono dim", row.id)


def _times(shown: Shown) -> None:
    row = shown.detail.row
    Tag("div", "section")
    with _entry("Started"):
        Moment(view.milliseconds(row.started_ns), "full")
    with _entry("Ended"):
        if row.ended_ns is None:
            Tag("span", text="still open")
        else:
            Moment(view.milliseconds(row.ended_ns), "full")
            Tag("span", "dim", f", after {words.span((row.ended_ns - row.started_ns) / 1e9)}")
    course = shown.course
    if course:
        delay = (course.first_received_ns - course.first_sent_ns) / 1e9
        _fact(
            "Arrived",
            f"{words.span(delay)} after it was made" if delay >= 0 else "before its own time: clocks differ",
        )
        _fact("Messages", f"{course.messages}, the last one says {course.last_phase}")
    _fact("Device clock", "synchronised (NTP)" if row.wall_quality == "ntp" else "not synchronised")
    Tag("div", "section")


def _files(shown: Shown) -> None:
    said = {"promised": "on its way", "awaited": "on its way", "absent": "none"}
    for role, text in words.ROLES.items():
        file = view.find(shown.detail, role)
        address = view.url(shown.detail, role)
        with Tag("div"):
            if file and address:
                Tag("a", text=text, href=address, download="")
                Tag("span", "dim", f" {words.size(file.size)}")
            else:
                state = view.file_state(shown.detail, role, settled=shown.settled)
                Tag("span", "dim", f"{text}: {said[state]}")


def _entry(name: str) -> Tag:
    Tag("dt", text=name)
    return Tag("dd")


def _fact(name: str, value: str) -> None:
    Tag("dt", text=name)
    Tag("dd", text=value)

"""The front page: the list of alerts, which follows what happens by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from nicegui import ui
from sqlalchemy.orm import Session

from cloud_sync import overview, review
from cloud_sync.accounts import Viewer
from cloud_sync.dashboard import frame, margin, view, words
from cloud_sync.dashboard.desk import Seat
from cloud_sync.dashboard.parts import AlertList, Tag, refill
from cloud_sync.review import AlertRow, DeviceView, Facets, Filters

PAGE = 50  #: alerts on one page
POLL_S = 1.0
SURVEY_S = 15.0  #: counts and devices in the margin
_BURST = 200  #: changes taken in one poll; the next poll goes on from there
_PHASES = (("", "All"), ("live", "Live"), ("ended", "Ended"))
_OPEN = {"live": True, "ended": False}
_VERDICTS = {"none": "To review", "real": "Real", "false": "False alarm", "unsure": "Unsure"}


def read_filters(phase: str | None, scene: str | None, label: str | None, verdict: str | None) -> Filters:
    """Filters from an address; what is no word of ours counts as absent."""
    return Filters(
        scene=scene or None,
        label=label or None,
        open=_OPEN.get(phase or ""),
        verdict=verdict if verdict in _VERDICTS else None,  # type: ignore[arg-type]  # a key of _VERDICTS is one
    )


class AlertsPage:
    """One browser tab that shows the list. `show` builds it; timers keep it true."""

    def __init__(self, seat: Seat, filters: Filters, before: str | None) -> None:
        self.seat = seat
        self.filters = filters
        self.before = before
        self.rows: dict[str, AlertRow] = {}
        self.change = 0
        self.more = False
        self.facets = Facets((), (), (), ())
        self.counts = overview.Overview(0, 0, {}, ())
        self.devices: list[DeviceView] = []

    async def show(self) -> None:
        """Build the page in the current slot."""
        await self._load()
        await self._take_survey()
        with frame.page(self.seat.viewer, "Alerts", "alerts"):
            with Tag("div", "head"):
                Tag("h1", text="Alerts")
                self.head = Tag("div", "counts", role="status")
            with Tag("div", "split"):
                with Tag("div"):
                    self.bar = Tag("div", "filters", role="group", aria_label="Filters")
                    self.empty = Tag("div")
                    self.list = AlertList(self._judge)
                    self.paging = Tag("nav", "more", aria_label="Older and newer alerts")
                self.aside = Tag("aside", "aside", aria_label="Overview")
        self._draw_list()
        self._draw_survey()
        ui.timer(POLL_S, frame.guarded(self._poll))
        ui.timer(SURVEY_S, frame.guarded(self._refresh_survey), immediate=False)

    async def _load(self) -> None:
        self.facets, found, self.change = await self.seat.ask(self._first)
        self.more = len(found) > PAGE
        self.rows = {row.id: row for row in found[:PAGE]}

    def _first(self, session: Session, viewer: Viewer) -> tuple[Facets, list[AlertRow], int]:
        # The change is read first: what comes in between is then seen twice, never missed.
        change = review.latest_change(session)
        rows = review.alerts(session, viewer, before=self.before, limit=PAGE + 1, filters=self.filters)
        return review.facets(session, viewer), rows, change

    async def _set(self, field: str, value: Any) -> None:
        await self._filter(replace(self.filters, **{field: value}))

    async def _filter(self, filters: Filters) -> None:
        self.filters = filters
        self.before = None
        await self._load()
        ui.navigate.history.replace(f"/{view.query(self.filters)}")
        self._draw_list()

    def _sorted(self) -> list[AlertRow]:
        return sorted(self.rows.values(), key=lambda row: (row.started_ns, row.id), reverse=True)

    async def _poll(self) -> None:
        after = self.change
        rows = await self.seat.ask(lambda s, v: review.alerts(s, v, after_change=after, limit=_BURST))
        if rows and after == self.change:  # else the filters were changed in the meantime and all was read anew
            self.change = max(row.change for row in rows)
            self._merge(rows)

    def _merge(self, changed: list[AlertRow]) -> None:
        was_empty = not self.rows
        shown = [row for row in changed if self._belongs(row)]
        gone = [row.id for row in changed if row.id in self.rows and not self._belongs(row)]
        self.rows.update({row.id: row for row in shown})
        for id in gone:
            del self.rows[id]
        self.more = self.more or len(self.rows) > PAGE
        self.rows = {row.id: row for row in self._sorted()[:PAGE]}
        arrived = [view.row(row) for row in shown if row.id in self.rows]
        if arrived or gone:
            self.list.merge(arrived, gone, [view.row(row) for row in self._sorted()])
            self._draw_paging()
        if was_empty or not self.rows:
            self._draw_empty()

    def _belongs(self, row: AlertRow) -> bool:
        # An older page does not move under the reader: new alerts come in on the first one.
        return view.matches(row, self.filters) and (self.before is None or row.id in self.rows)

    async def _judge(self, said: dict[str, Any]) -> None:
        if await frame.judge(self.seat, str(said.get("id")), said.get("verdict"), ""):
            await self._poll()

    async def _refresh_survey(self) -> None:
        if await self._take_survey():
            self._draw_survey()

    async def _take_survey(self) -> bool:
        now = self.seat.desk.now_ns()
        old = (self.counts, margin.scenes(self.devices))
        self.counts, self.devices = await self.seat.ask(
            lambda s, v: (overview.overview(s, v, now), review.devices(s, v, now))
        )
        return old != (self.counts, margin.scenes(self.devices))

    def _draw_survey(self) -> None:
        refill(self.head, lambda: margin.counts(self.counts))
        refill(self.aside, lambda: margin.margin(self.counts, self.devices))
        self._draw_empty()

    def _draw_list(self) -> None:
        self.list.show(query=view.query(self.filters), limit=PAGE, rows=[view.row(row) for row in self._sorted()])
        refill(self.bar, self._fill_bar)
        self._draw_empty()
        self._draw_paging()

    def _draw_empty(self) -> None:
        filtered = self.filters != Filters() or self.before is not None
        refill(self.empty, lambda: None if self.rows else margin.nothing(filtered, self.devices))

    def _draw_paging(self) -> None:
        query = view.query(self.filters)
        older = f"/{query}{'&' if query else '?'}before={self._sorted()[-1].cursor}" if self.rows else ""

        def build() -> None:
            if self.before is not None:
                Tag("a", "button", "Newest", href=f"/{query}")
            if self.more and older:
                Tag("a", "button", "Older", href=older)

        refill(self.paging, build)

    def _fill_bar(self) -> None:
        now = self.filters
        phase = "" if now.open is None else "live" if now.open else "ended"
        with Tag("div", "segments", role="group", aria_label="Phase"):
            for value, text in _PHASES:
                button = Tag("button", "", text, type="button", aria_pressed="true" if value == phase else "false")
                button.on("click", partial(self._set, "open", _OPEN.get(value)), args=[])
        labels = {name: words.title(name) for name in self.facets.labels}
        scenes = {name: words.title(name) for name in self.facets.scenes}
        for field, every, options in (
            ("label", "Any label", labels),
            ("scene", "Any scene", scenes),
            ("verdict", "Any verdict", _VERDICTS),
        ):
            _select(every, options, getattr(now, field), partial(self._set, field))
        if now != Filters():
            clear = Tag("button", "plain", "Clear", type="button")
            clear.on("click", lambda: self._filter(Filters()), args=[])


def _select(every: str, options: dict[str, str], chosen: str | None, change: Callable[[str | None], Any]) -> None:
    if chosen and chosen not in options:
        options = {**options, chosen: words.title(chosen)}
    select = Tag("select", "set" if chosen else "", aria_label=every)
    # What the browser sends back is checked against what it was offered.
    select.on(
        "change",
        lambda event: change(event.args if event.args in options else None),
        js_handler="(event) => emit(event.target.value)",
    )
    with select:
        Tag("option", text=every, value="")
        for value, text in options.items():
            selected = {"selected": ""} if value == chosen else {}
            Tag("option", text=text, value=value, **selected)

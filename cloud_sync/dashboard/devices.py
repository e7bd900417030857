"""Every device: whether it can be believed, what its sources deliver, what it lost, and how its update goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nicegui import ui
from sqlalchemy.orm import Session

from cloud_sync import overview, review
from cloud_sync.accounts import Viewer
from cloud_sync.dashboard import frame, view, words
from cloud_sync.dashboard.desk import Seat
from cloud_sync.dashboard.margin import DOTS, PRESENCE
from cloud_sync.dashboard.parts import Moment, Tag, icon, refill
from cloud_sync.overview import LossView
from cloud_sync.review import DeviceView

POLL_S = 2.0
_BACKLOG = 100  #: rows in the outbox from which it is worth a look
_SOURCE_DOTS = {"live": "", "late": "late", "down": "down", "ended": "ended"}
_SOURCE_WORDS = {"live": "Live", "late": "Late", "down": "Down", "ended": "Ended"}
_UPDATES = {
    "offered": "saw a new model",
    "downloaded": "has downloaded it",
    "verified": "has verified it",
    "staged": "has put it into the other slot",
    "selftested": "has tested it on the golden vectors",
    "committed": "runs it",
    "rolled_back": "went back to the old one",
    "refused": "refused it",
}


@dataclass(frozen=True)
class Fleet:
    """What the page is drawn from. `refused` is None for those who may not see it."""

    devices: list[DeviceView]
    losses: dict[str, list[LossView]]
    refused: dict[str, int] | None


class DevicesPage:
    """One browser tab that shows the devices. `show` builds it; a timer keeps it true."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.drawn: object = None

    async def show(self) -> None:
        """Build the page in the current slot."""
        with frame.page(self.seat.viewer, "Devices", "devices"):
            with Tag("div", "head"):
                Tag("h1", text="Devices")
                self.counts = Tag("div", "counts", role="status")
            self.cards = Tag("div")
        await self._poll()
        ui.timer(POLL_S, frame.guarded(self._poll), immediate=False)

    async def _poll(self) -> None:
        fleet = await self.seat.ask(self._fleet)
        key = ([_identity(device) for device in fleet.devices], fleet.losses, fleet.refused)
        if key != self.drawn:
            self.drawn = key
            refill(self.counts, lambda: _counts(fleet))
            refill(self.cards, lambda: _cards(fleet))

    def _fleet(self, session: Session, viewer: Viewer) -> Fleet:
        devices = review.devices(session, viewer, self.seat.desk.now_ns())
        refused = overview.dead_letters(session, viewer) if viewer.may("admin") else None
        return Fleet(devices, overview.losses(session, viewer), refused)


def _identity(device: DeviceView) -> tuple[object, ...]:
    """What of a device is drawn by the server; `silent_s` counts on in the browser."""
    return (
        device.name,
        device.presence,
        device.seen_ns,
        device.state,
        device.health,
        device.rollout,
        device.lost,
    )


def _counts(fleet: Fleet) -> None:
    for presence, text in PRESENCE.items():
        number = sum(device.presence == presence for device in fleet.devices)
        if number:
            with Tag("span"):
                Tag("b", text=str(number))
                Tag("span", text=f" {text.lower()}")
    if fleet.refused:
        with Tag("span"):
            Tag("b", text=str(sum(fleet.refused.values())))
            Tag("span", text=" refused messages")


def _cards(fleet: Fleet) -> None:
    if fleet.refused:
        reasons = ", ".join(f"{reason} {count}" for reason, count in fleet.refused.items())
        frame.notice(
            f"The cloud refused {sum(fleet.refused.values())} messages and kept them as dead letters ({reasons}).",
            "report",
        )
        Tag("div", style="height: 14px")
    if not fleet.devices:
        with Tag("div", "card empty"):
            icon("videocam_off")
            Tag("h2", text="No device yet")
            Tag("p", text="Enrol one on the machine that runs the cloud, and give the file it writes to the device:")
            Tag("p", "mono", "cloud-sync enrol NAME", style="margin-top: 10px")
        return
    with Tag("div", "devices"):
        for device in fleet.devices:
            _card(device, fleet.losses.get(device.name, []))


def _card(device: DeviceView, losses: list[LossView]) -> None:
    with Tag("article", "card device", id_=device.name, aria_label=f"Device {device.name}"):
        with Tag("div", "device-head"):
            Tag("span", f"dot {DOTS[device.presence]}")
            Tag("h2", text=device.name)
            Tag("span", "dim", f"at {device.site}")
            with Tag("span", "state"):
                Tag("b", text=PRESENCE[device.presence])
                if device.seen_ns is not None:
                    Tag("span", "dim", ", heard ")
                    Moment(view.milliseconds(device.seen_ns), "ago")
        for text, picture in _remarks(device):
            with Tag("div", style="padding: 0 16px 10px"):
                frame.notice(text, picture)
        if device.health:
            _figures(device)
            _sources(device.health.get("sources") or [])
        _foot(device, losses)


def _remarks(device: DeviceView) -> list[tuple[str, str]]:
    found = []
    if device.presence == "stale":
        found.append(("It says it is online but has been silent: what is below may no longer be true.", "schedule"))
    if device.presence == "offline":
        found.append(("Offline: events wait in its outbox and come when it is back.", "cloud_off"))
    if device.presence == "never":
        found.append(
            ("Enrolled, but not heard of yet. Has the agent been started with its identity file?", "pending")
        )
    if device.health.get("wall_quality") == "unsynced":
        found.append((words.UNSYNCED, "history_toggle_off"))
    return found


def _figures(device: DeviceView) -> None:
    health = device.health
    backlog = int(health.get("outbox_rows", 0))
    evicted = int(health.get("evicted", 0))
    restarts = sum(int(count) for count in (health.get("restarts") or {}).values())
    with Tag("div", "figures"):
        _figure("Step p50, p99", f"{health.get('step_p50_ms', 0):.1f}, {health.get('step_p99_ms', 0):.1f} ms")
        _figure("CPU of one core", f"{health.get('cpu_share', 0):.0%}")
        _figure("Memory", words.size(int(health.get("rss_bytes", 0))))
        _figure("Up for", words.span(float(health.get("uptime_s", 0))))
        size = words.size(int(health.get("outbox_bytes", 0)))
        _figure("Outbox", f"{backlog} rows, {size}", "warn" if backlog >= _BACKLOG else "")
        _figure("Evicted", str(evicted), "bad" if evicted else "")
        _figure("Lost", str(device.lost), "bad" if device.lost else "")
        _figure("Restarts", str(restarts), "warn" if restarts else "")


def _figure(name: str, value: str, kind: str = "") -> None:
    with Tag("div", f"figure {kind}"):
        Tag("span", text=name)
        Tag("b", text=value)


def _sources(sources: list[dict[str, Any]]) -> None:
    if not sources:
        return
    with Tag("div", "table-wrap"), Tag("table", "plain"):
        with Tag("thead"), Tag("tr"):
            for name, kind in (
                ("Source", ""),
                ("State", ""),
                ("Rate", "right"),
                ("Samples", "right roomy"),
                ("Dropped", "right"),
            ):
                Tag("th", kind, name, scope="col")
        with Tag("tbody"):
            for source in sources:
                _source(source)


def _source(source: dict[str, Any]) -> None:
    state = str(source.get("state", ""))
    error = str(source.get("error", ""))
    dropped = int(source.get("dropped", 0))
    with Tag("tr"):
        Tag("td", text=str(source.get("name", "")))
        with Tag("td"):
            with Tag("span", "with-dot"):
                Tag("span", f"dot {_SOURCE_DOTS.get(state, 'ended')}")
                Tag("span", text=_SOURCE_WORDS.get(state, state))
            if error:
                Tag("div", "dim", error)
        Tag("td", "right", f"{source.get('rate_hz', 0):.1f} Hz")
        Tag("td", "right roomy", f"{int(source.get('samples', 0)):,}".replace(",", " "))
        Tag("td", "right", f"{dropped:,}".replace(",", " "))


def _foot(device: DeviceView, losses: list[LossView]) -> None:
    state = device.state
    with Tag("div", "card-foot"), Tag("dl", "facts"):
        if state.get("bundle"):
            with _entry("Model"):
                Tag("span", text=f"{state.get('bundle_name') or 'unnamed'} ")
                Tag("span", "mono dim", str(state["bundle"])[:12], title=str(state["bundle"]))
        if state.get("scenes"):
            _fact("Scenes", ", ".join(words.title(str(scene)) for scene in state["scenes"]))
        if state.get("agent"):
            _fact("Agent", f"{state['agent']}, engine {state.get('engine') or 'unknown'}")
        if device.rollout:
            _update(device.rollout)
        for loss in losses:
            with _entry("Loss"):
                Tag("span", text=f"{loss.count} messages ({loss.priority}): {loss.reason}, ")
                Moment(view.milliseconds(loss.received_ns))
        with _entry("Enrolled"):
            Moment(view.milliseconds(device.enrolled_ns), "full")


def _update(rollout: dict[str, Any]) -> None:
    state = str(rollout.get("state", ""))
    with _entry("Update"):
        bad = state in ("refused", "rolled_back")
        Tag("span", "badge warn" if bad else "badge", state.replace("_", " "))
        Tag("span", text=f" The device {_UPDATES.get(state, state)}: ")
        Tag("span", "mono dim", str(rollout.get("bundle", ""))[:12])
        if rollout.get("reason"):
            Tag("div", "dim", str(rollout["reason"]))


def _entry(name: str) -> Tag:
    Tag("dt", text=name)
    return Tag("dd")


def _fact(name: str, value: str) -> None:
    Tag("dt", text=name)
    Tag("dd", text=value)

"""What stands around the list of alerts: counts, what is watched, the last day, and what the colours mean."""

from __future__ import annotations

from cloud_sync import overview
from cloud_sync.dashboard import words
from cloud_sync.dashboard.parts import Tag, icon
from cloud_sync.review import DeviceView

PRESENCE = {
    "online": "Online",
    "stale": "Late",
    "offline": "Offline",
    "never": "Not heard of yet",
    "revoked": "Revoked",
}
DOTS = {"online": "", "stale": "late", "offline": "offline", "never": "never", "revoked": "revoked"}


def counts(found: overview.Overview) -> None:
    """The line of counts beside the heading."""
    for number, text in (
        (found.total, f"in {overview.WINDOW_DAYS} days"),
        (found.live, "live now"),
        (found.verdicts["none"], "to review"),
    ):
        with Tag("span"):
            Tag("b", text=str(number))
            Tag("span", text=f" {text}")


def nothing(filtered: bool, devices: list[DeviceView]) -> None:
    """What stands in place of an empty list."""
    with Tag("div", "card empty"):
        if filtered:
            icon("filter_alt_off")
            Tag("h2", text="Nothing matches")
            Tag("p", text="No alert fits these filters. Alerts that do will appear here by themselves.")
            Tag("a", "button", "Show all alerts", href="/", style="margin-top: 16px")
            return
        icon("verified_user")
        Tag("h2", text="No alerts: that is good news")
        if devices:
            Tag("p", text="New alerts appear here by themselves, at the top. This is being watched:")
            watched(devices)
        else:
            Tag("p", text="No device has been enrolled yet. On this machine, run:")
            Tag("p", "mono", "cloud-sync enrol NAME", style="margin-top: 10px")


def scenes(devices: list[DeviceView]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(device, presence, scenes) of each device: what `watched` shows."""
    return [(device.name, device.presence, tuple(device.state.get("scenes") or ("",))) for device in devices]


def watched(devices: list[DeviceView]) -> None:
    """Every scene with the device that watches it and whether it can be believed."""
    with Tag("ul", "watched"):
        for name, presence, watching in scenes(devices):
            for scene in watching:
                with Tag("li"):
                    Tag("span", f"dot {DOTS[presence]}", role="img", aria_label=PRESENCE[presence])
                    said = PRESENCE[presence].lower()
                    Tag("span", text=words.title(scene) if scene else name)
                    Tag("span", "dim", f"{name}, {said}" if scene else said)


def margin(found: overview.Overview, devices: list[DeviceView]) -> None:
    """The column beside the list."""
    with Tag("section", "card", aria_label="Now"), Tag("div", "stats"):
        _stat(str(found.live), "live now", "hot" if found.live else "")
        _stat(str(found.verdicts["none"]), "to review")
        there = [device for device in devices if device.revoked_ns is None]
        up = sum(device.presence == "online" for device in there)
        _stat(f"{up} of {len(there)}", "devices online", "hot" if up < len(there) else "")
        judged = found.verdicts["real"] + found.verdicts["false"]
        _stat(f"{found.verdicts['real'] / judged:.0%}" if judged else "–", "of judged were real")
    with Tag("section", "card"):
        with Tag("div", "card-head"):
            Tag("h2", text="Last 24 hours")
        with Tag("div", "card-body"):
            _hours(found.hours)
    if devices:
        with Tag("section", "card"):
            with Tag("div", "card-head"):
                Tag("h2", text="Watched")
            with Tag("div", "card-body"):
                watched(devices)
    with Tag("section", "card"):
        with Tag("div", "card-head"):
            Tag("h2", text="What raised the score")
        with Tag("div", "card-body stack"):
            legend()
            keys((("j", "k", "next, previous"), ("↵", "open"), ("r", "f", "u", "verdict")))


def _stat(number: str, text: str, kind: str = "") -> None:
    with Tag("div", f"stat {kind}"):
        Tag("b", text=number)
        Tag("span", text=text)


def _hours(hours: tuple[int, ...]) -> None:
    top = max(*hours, 1)
    with Tag("div", "hours", role="img", aria_label=f"{sum(hours)} alerts in the last 24 hours"):
        for ago, count in zip(range(len(hours) - 1, -1, -1), hours, strict=True):
            Tag(
                "i", "" if count else "zero", style=f"height: {100 * count / top:.0f}%", title=f"{count}, {ago} h ago"
            )
    with Tag("div", "hours-axis"):
        Tag("span", text="24 h ago")
        Tag("span", text=f"most in an hour: {max(hours)}")
        Tag("span", text="now")


def legend() -> None:
    """What the colours of the modalities mean."""
    with Tag("div", "legend"):
        for name, text in words.MODALITY_NAMES.items():
            with Tag("span"):
                Tag("i", name)
                Tag("span", text=text)
        with Tag("span"):
            Tag("i", "negative")
            Tag("span", text="lowered it")


def keys(groups: tuple[tuple[str, ...], ...]) -> None:
    """A line of keyboard shortcuts; the last word of each group says what they do."""
    with Tag("div", "keys"):
        for *names, text in groups:
            with Tag("span"):
                for name in names:
                    Tag("kbd", text=name)
                    Tag("span", text=" ")
                Tag("span", text=text)

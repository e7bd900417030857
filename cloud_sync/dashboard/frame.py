"""What surrounds every page: head, navigation, who is logged in; and what a page does when it is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

from nicegui import app as nicegui_app
from nicegui import ui

from cloud_sync import review
from cloud_sync.accounts import Viewer
from cloud_sync.dashboard.desk import Seat
from cloud_sync.dashboard.parts import WEB, Tag, icon
from cloud_sync.errors import AccessRefused, CloudError, StoreBusy

TABS = (("alerts", "/", "Alerts", "notifications"), ("devices", "/devices", "Devices", "videocam"))


def _version() -> str:
    digest = hashlib.sha256()
    for path in sorted(WEB.iterdir()):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


#: The assets' address changes with their content, so that browsers may keep them for good.
ASSETS = f"/assets/{_version()}"


def serve_assets() -> None:
    """Serve style sheet, mark and fonts, without a login: the login page wants them too."""
    nicegui_app.add_static_files(ASSETS, WEB, max_cache_age=31536000)


def _head(title: str) -> None:
    ui.page_title(f"{title} · Tectum")
    # Constants only: nothing from outside may ever come in here.
    ui.add_head_html(
        f'<link rel="stylesheet" href="{ASSETS}/style.css">'
        '<meta name="referrer" content="same-origin"><meta name="robots" content="noindex">'
        '<meta name="theme-color" content="#ffffff" media="(prefers-color-scheme: light)">'
        '<meta name="theme-color" content="#161a21" media="(prefers-color-scheme: dark)">'
    )


@contextmanager
def page(viewer: Viewer, title: str, tab: str, narrow: bool = False) -> Iterator[None]:
    """The frame around a page of somebody who is logged in; what is made inside becomes its content."""
    _head(title)
    Tag("a", "skip", "Skip to content", href="#content")
    with Tag("header", "top"):
        with Tag("a", "brand", href="/", aria_label="Tectum: alerts"):
            Tag("span", "logo")
            Tag("span", text="Tectum")
        with Tag("nav", "nav", aria_label="Main"):
            for name, href, text, picture in TABS:
                current = {"aria_current": "page"} if name == tab else {}
                with Tag("a", href=href, **current):
                    icon(picture)
                    Tag("span", text=text)
        Tag("span", "push")
        with Tag("div", "who"):
            with Tag("a", href="/account", title="Your account"):
                icon("account_circle")
                Tag("span", text=viewer.name)
                Tag("span", "role", viewer.role)
            with (
                Tag("form", method="post", action="/logout"),
                Tag("button", "plain square", type="submit", title="Log out", aria_label="Log out"),
            ):
                icon("logout")
    with Tag("main", "page narrow" if narrow else "page", id_="content"):
        yield


@contextmanager
def gate(title: str) -> Iterator[None]:
    """The frame of the login page."""
    _head(title)
    with Tag("main", "gate"):
        Tag("div", "owl", aria_hidden="true")
        Tag("h1", text="Tectum")
        yield


def notice(text: str, picture: str = "info", kind: str = "") -> None:
    """A remark that somebody should read."""
    with Tag("div", f"notice {kind}", role="note"):
        icon(picture)
        Tag("span", text=text)


def guarded(poll: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """`poll` for a timer: a busy database is asked again at the next tick, an ended login leads to the login page."""

    async def run() -> None:
        try:
            await poll()
        except StoreBusy:
            return
        except AccessRefused:
            # What the page showed is no longer this person's to see.
            ui.navigate.to("/login?message=ended")

    return run


async def judge(seat: Seat, id: str, verdict: object, note: str) -> bool:
    """Record a verdict as a browser sent it, and tell the person if it could not be kept; whether it was."""
    wanted = next((known for known in review.JUDGEMENTS if known == verdict), None)
    if wanted is None:
        return False
    now = seat.desk.now_ns()
    try:
        await seat.tell(lambda s, v: review.give_verdict(s, v, id, wanted, now_ns=now, note=note))
    except AccessRefused as error:
        if error.status == 401:
            ui.navigate.to("/login?message=ended")
        else:
            ui.notify("You may look at alerts, but not judge them.", type="warning")
    except CloudError as error:
        ui.notify(f"The verdict was not kept: {error}", type="negative")
    else:
        return True
    return False


def login_address(wanted: str) -> str:
    """The login page that leads on to `wanted` afterwards."""
    return f"/login?next={quote(wanted, safe='')}"


def safe_next(wanted: str | None) -> str:
    """`wanted` if it is an address of this site, else the front page: a login must not lead elsewhere."""
    good = wanted and wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and wanted.isprintable()
    return wanted if good and wanted else "/"

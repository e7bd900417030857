"""A real cloud in a process of its own, and a real browser that can reach nothing else."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cloud_sync.accounts import COOKIE
from tests.browser.showcase import Incident, Showcase

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    OpenPage = Callable[..., Page]

#: Nothing but the server itself has an address: a page that asks for anything else fails.
CUT_OFF = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@dataclass
class Cloud:
    """The served installation; `showcase` puts things into its database from outside the server."""

    url: str
    showcase: Showcase
    passwords: dict[str, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def scene(self) -> str:
        """A scene name that no other test uses, so that tests can share a server."""
        return f"scene-{next(self._numbers)}"

    def token(self, user: str) -> str:
        """A new login of a user; the form is for the tests of the login itself."""
        accounts = self.showcase.services.accounts
        return accounts.redeem(accounts.make_link(user))

    def incident(self, scene: str, **more: Any) -> Incident:
        """Something short that costs little to render."""
        shares = {"vision": 2.4, "audio": 3.1, "sensors": -0.4}
        given = {"label": "intrusion", "seed": 5, "device": "edge-test", "ago_s": 30.0, "shares": shares, **more}
        return Incident(scene=scene, **{"length_s": 3.0, **given})

    def add(self, scene: str, **more: Any) -> str:
        """Play an incident with a small picture; the event's id."""
        return self.showcase.add(self.incident(scene, **more), 160, 90)


@pytest.fixture(scope="package")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One server for the package: it takes seconds to start."""
    folder = tmp_path_factory.mktemp("cloud")
    showcase = Showcase(folder)
    showcase.enrol("edge-test")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.browser.serve", str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            assert port, "the server ended before it listened"
            found = Cloud(f"http://127.0.0.1:{port}", showcase)
            for name, role in (("olga", "operator"), ("piet", "operator"), ("vic", "viewer"), ("ada", "admin")):
                found.passwords[name] = showcase.user(name, role)
            found.passwords["elsa"] = showcase.user("elsa", "operator", sites=("elsewhere",))
            yield found
        finally:
            server.terminate()
            showcase.close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, cut off from everything but this machine."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", CUT_OFF],
        )
        yield chromium
        chromium.close()


@dataclass
class Tabs:
    """Opens pages, and remembers what went wrong in any of them."""

    browser: Browser
    cloud: Cloud
    complaints: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    def open(
        self, path: str = "/", user: str | None = "olga", *, viewport: dict[str, int] = WIDE, **more: Any
    ) -> Page:
        """A page in a browser profile of its own, logged in as `user`."""
        phone = viewport["width"] < 600
        context = self.browser.new_context(
            base_url=self.cloud.url,
            viewport=viewport,  # type: ignore[arg-type]
            has_touch=phone,
            is_mobile=phone,
            reduced_motion="reduce",
            **more,
        )
        context.set_default_timeout(20_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error in page: {error}"))
        page.on("request", self._request)
        if user is not None:
            context.add_cookies([{"name": COOKIE, "value": self.cloud.token(user), "url": self.cloud.url}])
        page.goto(path)
        return page

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.cloud.url, "data:", "blob:")):
            self.complaints.append(f"request to another place: {request.url}")


def log_in(page: Page, user: str, password: str) -> None:
    """Fill in the form of the login page and send it."""
    page.get_by_label("Name").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


@pytest.fixture
def tabs(browser: Browser, cloud: Cloud) -> Iterator[Tabs]:
    """Pages for one test; at its end no console may hold an error and nothing may have been asked of elsewhere."""
    found = Tabs(browser, cloud)
    yield found
    for context in found.contexts:
        context.close()
    assert not found.complaints


@pytest.fixture
def open_page(tabs: Tabs) -> OpenPage:
    """`tabs.open`."""
    return tabs.open

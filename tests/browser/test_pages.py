"""What holds for every page: phones, themes, names for everything that can be used, nothing from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_agent.contract.event import Gap
from tests.browser.conftest import PHONE, WIDE, Cloud
from tests.browser.showcase import source, uuid7

if TYPE_CHECKING:
    from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.needs("chromium")
PAGES = ("/", "/alert", "/devices", "/account")


@pytest.fixture(scope="module")
def whole(cloud: Cloud) -> str:
    """An alert with everything, and a long note."""
    note = "a note without any blank in it: " + "x" * 200
    return cloud.add(cloud.scene(), verdicts=(("piet", "real", note),), calibrating=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_a_phone_never_scrolls_sideways(path: str, scheme: str, whole: str, open_page: OpenPage) -> None:
    page = open_page(f"/alert/{whole}" if path == "/alert" else path, viewport=PHONE, color_scheme=scheme)
    page.get_by_role("heading", level=1).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    # Backgrounds follow the browser's wish.
    light = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)"
    )
    assert (light > 384) == (scheme == "light")


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_can_be_used_has_a_name(path: str, whole: str, open_page: OpenPage) -> None:
    page = open_page(f"/alert/{whole}" if path == "/alert" else path)
    page.get_by_role("heading", level=1).wait_for()
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.evaluate("document.documentElement.lang") == "en-US"
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('a, button, select, textarea, input:not([type=hidden]), [role=img]')]
          .filter((e) => e.offsetParent !== null)
          .filter((e) => !(e.innerText?.trim() || e.ariaLabel || e.title || e.labels?.length))
          .map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    assert page.evaluate("[...document.images].filter((i) => !i.hasAttribute('alt')).length") == 0


def test_fonts_and_icons_are_the_servers_own(open_page: OpenPage) -> None:
    page = open_page("/devices")
    page.get_by_role("heading", name="Devices").wait_for()
    page.evaluate("document.fonts.ready.then(() => true)")
    loaded = page.evaluate("[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family)")
    assert any("Inter" in family for family in loaded)
    assert any("Material" in family for family in loaded)


def test_pages_forbid_the_browser_to_go_elsewhere(cloud: Cloud, open_page: OpenPage) -> None:
    page = open_page()
    answer = page.request.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http:" not in policy.replace(f"ws://{cloud.url[7:]}", "")


def test_devices_follow_what_they_say(cloud: Cloud, open_page: OpenPage) -> None:
    cloud.showcase.enrol("edge-other")
    page = open_page("/devices", viewport=WIDE)
    card = page.get_by_label("Device edge-other")
    card.get_by_text("Enrolled, but not heard of yet").wait_for()
    cloud.showcase.report(
        "edge-other",
        ("north-door",),
        source("door-cam", 9.5, dropped=12),
        source("door-mic", 0.0, "down", error="<b>no such device</b>"),
        outbox_rows=512,
    )
    card.get_by_text("Online", exact=True).wait_for()
    card.get_by_text("9.5 Hz").wait_for()
    card.get_by_text("<b>no such device</b>").wait_for()
    card.get_by_text("512 rows").wait_for()
    card.get_by_text("North door").wait_for()
    gap = Gap(first=2, last=6, count=5, priority="bulk", reason="full")
    cloud.showcase.send("edge-other", uuid7(cloud.showcase.started_ns, "gap"), gap, cloud.showcase.started_ns)
    card.get_by_text("5 messages (bulk): full").wait_for()


def test_refused_messages_are_shown_to_admins_only(cloud: Cloud, open_page: OpenPage) -> None:
    cloud.showcase.publish("edge-test", "event", b'{"v":99}')
    page = open_page("/devices", user="ada")
    page.get_by_text("kept them as dead letters").wait_for()
    page = open_page("/devices", user="olga")
    page.get_by_label("Device edge-test").wait_for()
    assert page.get_by_text("dead letters").count() == 0

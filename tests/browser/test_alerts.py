"""The list: it follows what happens, can be filtered and gone through, and stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from cloud_sync.store.tables import Verdict
from tests.browser.conftest import Cloud, Tabs
from tests.browser.showcase import S, life, uuid7

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.needs("chromium")


def titles(page: Page) -> list[str]:
    return page.locator(".alert .title span").all_inner_texts()


def test_a_new_alert_comes_in_at_the_top_by_itself_and_then_ends(cloud: Cloud, open_page: OpenPage) -> None:
    scene = cloud.scene()
    cloud.add(scene, label="siren", ago_s=90, evidence=())
    page = open_page(f"/?scene={scene}")
    page.locator(".alert").wait_for()
    page.evaluate("window.stays = true")
    incident = cloud.incident(scene, label="fire", ago_s=20, phase="update")
    id = uuid7(cloud.showcase.started_ns - 20 * S, incident)
    for event in life(incident, onset=cloud.showcase.step(20)):
        cloud.showcase.send("edge-test", id, event, cloud.showcase.wall_ns(event.step))
    page.locator(".alert.live .badge.live").wait_for()
    assert titles(page) == ["Fire", "Siren"]
    assert page.locator(".alert").first.get_attribute("class").split().count("fresh") == 1  # type: ignore[union-attr]
    ended = life(cloud.incident(scene, label="fire", ago_s=20), onset=cloud.showcase.step(20))[-1]
    cloud.showcase.send("edge-test", id, ended, cloud.showcase.wall_ns(ended.step))
    page.locator(".alert:not(.live) .title", has_text="Fire").wait_for()
    assert page.evaluate("window.stays"), "the page was loaded anew"


def test_filters_hold_for_what_comes_later_and_are_part_of_the_address(cloud: Cloud, open_page: OpenPage) -> None:
    scene = cloud.scene()
    cloud.add(scene, label="fight", ago_s=200, evidence=())
    cloud.add(scene, label="alarm", ago_s=300, evidence=())
    page = open_page(f"/?scene={scene}")
    page.get_by_label("Any label").select_option("fight")
    page.wait_for_function("document.querySelectorAll('.alert').length === 1")
    assert titles(page) == ["Fight"]
    assert "label=fight" in page.url
    cloud.add(scene, label="alarm", ago_s=100, evidence=())
    cloud.add(scene, label="fight", ago_s=50, evidence=())
    page.wait_for_function("document.querySelectorAll('.alert').length === 2")
    assert titles(page) == ["Fight", "Fight"]
    page.reload()
    page.locator(".alert").first.wait_for()
    assert titles(page) == ["Fight", "Fight"]
    page.get_by_label("Any label").select_option("")
    page.wait_for_function("document.querySelectorAll('.alert').length === 4")


def test_an_empty_list_says_that_nothing_happened_or_that_nothing_matches(cloud: Cloud, open_page: OpenPage) -> None:
    page = open_page(user="elsa")  # her site has neither alerts nor devices
    page.get_by_text("No alerts: that is good news").wait_for()
    page.get_by_text("cloud-sync enrol").wait_for()
    page.goto("/?label=no-such-label")
    page.get_by_text("Nothing matches").wait_for()


def test_keys_move_through_the_list_open_an_alert_and_judge_it(cloud: Cloud, open_page: OpenPage) -> None:
    scene = cloud.scene()
    newest = cloud.add(scene, ago_s=100, evidence=())
    oldest = cloud.add(scene, ago_s=200, evidence=())
    page = open_page(f"/?scene={scene}")
    page.locator(".alert").first.wait_for()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.locator(f".alert.chosen[data-id='{oldest}']").wait_for()
    page.keyboard.press("f")
    page.locator(f".alert[data-id='{oldest}'] .verdict.false").wait_for()
    with cloud.showcase.store.read() as session:
        rows = session.execute(sa.select(Verdict).where(Verdict.event_id.in_([oldest, newest]))).scalars().all()
    assert [(row.event_id, row.user, row.verdict) for row in rows] == [(oldest, "olga", "false")]
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/alert/{newest}*")


def test_five_hundred_alerts_come_in_pages_of_fifty(cloud: Cloud, open_page: OpenPage) -> None:
    scene = cloud.scene()
    cloud.showcase.send_many([cloud.incident(scene, ago_s=3600.0 + number) for number in range(500)])
    page = open_page(f"/?scene={scene}")
    page.locator(".alert").first.wait_for()
    assert page.locator(".alert").count() == 50
    first = page.locator(".alert").first.get_attribute("data-id")
    page.get_by_role("link", name="Older").click()
    page.get_by_role("link", name="Newest").wait_for()
    page.wait_for_function("id => document.querySelector('.alert').dataset.id !== id", arg=first)
    assert page.locator(".alert").count() == 50
    # An older page stays as it is while new alerts come in.
    top = page.locator(".alert").first.get_attribute("data-id")
    _, mark = cloud.showcase.send_many([cloud.incident(scene, ago_s=ago_s) for ago_s in (10.0, 5.0)])
    fresh = open_page(f"/?scene={scene}", user="piet")
    fresh.locator(f".alert[data-id='{mark}']").wait_for()
    assert page.locator(".alert").first.get_attribute("data-id") == top
    assert fresh.locator(".alert").count() == 50


def test_a_verdict_shows_up_in_somebody_elses_list(cloud: Cloud, tabs: Tabs) -> None:
    scene = cloud.scene()
    id = cloud.add(scene, evidence=())
    watching = tabs.open(f"/?scene={scene}", user="vic")
    watching.locator(".verdict.open").wait_for()
    judging = tabs.open(f"/alert/{id}", user="piet")
    judging.get_by_role("button", name="Real").click()
    watching.locator(".alert .verdict.real").wait_for()

"""One alert: what is played, drawn, said, and what people say of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from cloud_sync.store.tables import Verdict
from tests.browser.conftest import Cloud, Tabs
from tests.browser.showcase import render, site_of

if TYPE_CHECKING:
    from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.needs("chromium")


def verdicts(cloud: Cloud, id: str) -> list[tuple[str, str, str]]:
    with cloud.showcase.store.read() as session:
        rows = session.execute(sa.select(Verdict).where(Verdict.event_id == id).order_by(Verdict.id)).scalars()
        return [(row.user, row.verdict, row.note) for row in rows]


@pytest.fixture(scope="module")
def whole(cloud: Cloud) -> str:
    """An alert with every kind of evidence, for the tests that only look."""
    return cloud.add(cloud.scene(), verdicts=(("piet", "unsure", "too dark to tell"),))


def test_the_clip_plays_with_picture_and_sound_and_can_be_sought(whole: str, tabs: Tabs) -> None:
    page = tabs.open()
    ranges = []
    page.on("response", lambda r: ranges.append(r.status) if r.url.endswith("/evidence/clip") else None)
    page.goto(f"/alert/{whole}")
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('video').currentTime > 0.4")
    video = page.evaluate(
        "(v => ({width: v.videoWidth, seconds: v.duration, sound: v.webkitAudioDecodedByteCount,"
        " pictures: v.webkitDecodedFrameCount}))(document.querySelector('video'))"
    )
    assert video["width"] == 160
    assert video["seconds"] == pytest.approx(11.0, abs=0.3)
    assert video["sound"] > 0
    assert video["pictures"] > 0
    assert 206 in ranges
    page.locator(".playhead").wait_for(state="attached")
    box = page.locator(".tracks").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 150 + (box["width"] - 150) * 0.8, box["y"] + 40)
    page.wait_for_function("document.querySelector('video').currentTime > 7")


def test_the_heat_map_lies_over_the_snapshot_and_can_be_turned_down_and_off(whole: str, open_page: OpenPage) -> None:
    page = open_page(f"/alert/{whole}")
    canvas = page.locator(".heat canvas")
    canvas.wait_for()
    seen = page.evaluate(
        "(c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 20; return n / (d.length / 4); })"
        "(document.querySelector('.heat canvas'))"
    )
    assert 0.001 < seen < 0.9, "the map is empty, or covers everything"
    picture, heat = page.locator(".heat img").bounding_box(), canvas.bounding_box()
    assert picture is not None
    assert heat == pytest.approx(picture, abs=1.5)
    before = canvas.evaluate("c => +getComputedStyle(c).opacity")
    page.get_by_label("Heat map opacity").fill("20")
    assert canvas.evaluate("c => +getComputedStyle(c).opacity") < before
    page.locator(".heat .switch").click()
    assert not canvas.is_visible()


def test_shares_score_sensors_and_sound_are_drawn_and_said_in_words(whole: str, open_page: OpenPage) -> None:
    page = open_page(f"/alert/{whole}")
    page.get_by_text("Sound raised the score the most.").wait_for()
    page.get_by_text("Picture raised it too.").wait_for()
    page.get_by_text("Sensors lowered it.").wait_for()
    assert page.locator(".share-value").all_inner_texts() == ["+2.40", "+3.10", "−0.40"]
    page.get_by_text("threshold 0.62").wait_for()
    page.locator(".track.line").nth(6).wait_for()  # one per sensor of the simulated site
    words = page.locator(".track.score").get_attribute("aria-label") or ""
    assert words.startswith("Anomaly score over time: lowest")
    page.wait_for_function("document.querySelector('.track.image img')?.naturalWidth > 0")
    marks = page.locator(".tracks-overlay .mark")
    assert marks.all_inner_texts() == ["onset", "end"]


def test_how_rare_such_a_score_is_in_the_scene_is_said(whole: str, open_page: OpenPage) -> None:
    page = open_page(f"/alert/{whole}")
    page.get_by_text("a score this high comes about once in 33 h 20 min (p 0.003)").wait_for()


def test_a_missing_modality_an_aborted_event_and_a_rule_are_explained(cloud: Cloud, open_page: OpenPage) -> None:
    id = cloud.add(
        cloud.scene(),
        shares={"vision": 4.0},
        phase="aborted",
        origin="rule",
        calibrating=True,
        wall_quality="unsynced",
        evidence=(),
    )
    page = open_page(f"/alert/{id}")
    page.get_by_text("No sound was available then: the score rests on picture.").wait_for()
    for words in ("the device restarted while it was open", "A rule opened this alert", "still calibrating", "clock"):
        assert page.locator(".notice", has_text=words).count() == 1
    assert page.locator(".share.missing").count() == 2
    assert page.get_by_text("own normal hours, a score").count() == 0


def test_evidence_that_is_on_its_way_appears_by_itself(cloud: Cloud, open_page: OpenPage) -> None:
    incident = cloud.incident(cloud.scene(), evidence=())
    id = cloud.showcase.add(incident, 160, 90)
    site = site_of(incident, 160, 90)
    files = {role: render(role, site, start_ns=0, length_s=11.0, fps=10) for role in ("clip", "trace", "snapshot")}
    for role, data in files.items():
        cloud.showcase.promise(id, incident, role, data, start_ns=cloud.showcase.step(35) * 500_000_000)
    page = open_page(f"/alert/{id}")
    page.get_by_text("The clip is on its way").wait_for()
    page.get_by_text("The sensor trace is on its way").wait_for()
    page.evaluate("window.stays = true")
    for data in files.values():
        cloud.showcase.upload(incident.device, data)
    page.wait_for_function("document.querySelector('video')?.readyState >= 1")
    page.locator(".track.line").first.wait_for()
    page.wait_for_function("document.querySelector('.heat img')?.naturalWidth === 160")
    assert page.evaluate("window.stays")


def test_a_verdict_is_kept_once_with_its_note_and_can_be_changed(cloud: Cloud, open_page: OpenPage) -> None:
    id = cloud.add(cloud.scene(), evidence=())
    page = open_page(f"/alert/{id}")
    page.get_by_label("Note, kept with the verdict").fill("fox, not a burglar")
    page.get_by_role("heading", name="Was it real?").click()  # leave the field: its keys are text
    page.keyboard.press("f")
    page.locator(".history .text", has_text="fox, not a burglar").wait_for()
    assert verdicts(cloud, id) == [("olga", "false", "fox, not a burglar")]
    page.get_by_role("button", name="Unsure").click()
    page.locator(".history .verdict.unsure").wait_for()
    assert [said for _, said, _ in verdicts(cloud, id)] == ["false", "unsure"]
    assert page.get_by_role("button", name="Unsure").get_attribute("aria-pressed") == "true"


def test_keys_typed_into_the_note_are_text(cloud: Cloud, open_page: OpenPage) -> None:
    id = cloud.add(cloud.scene(), evidence=())
    page = open_page(f"/alert/{id}")
    page.get_by_label("Note, kept with the verdict").press_sequentially("fur jar")
    assert page.get_by_label("Note, kept with the verdict").input_value() == "fur jar"
    assert verdicts(cloud, id) == []


def test_a_viewer_cannot_judge_not_even_by_forging_the_message(cloud: Cloud, open_page: OpenPage) -> None:
    id = cloud.add(cloud.scene(), evidence=())
    page = open_page(f"/alert/{id}", user="vic")
    button = page.get_by_role("button", name="Real")
    button.wait_for()
    assert button.is_disabled()
    page.keyboard.press("r")
    # What a disabled button would have sent, sent all the same.
    page.evaluate(
        "() => { const panel = document.querySelector('.verdicts').parentElement;"
        " getElement(+panel.id.slice(1)).$emit('judge', {verdict: 'real', note: ''}); }"
    )
    page.get_by_text("You may look at alerts, but not judge them.").nth(1).wait_for()
    assert verdicts(cloud, id) == []


def test_a_note_is_text_whatever_it_holds(cloud: Cloud, open_page: OpenPage) -> None:
    nasty = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">`${hacked=1}`{{7*7}}'
    id = cloud.add(cloud.scene(), evidence=(), verdicts=(("piet", "real", nasty),))
    page = open_page(f"/alert/{id}")
    shown = page.locator(".history .text")
    shown.wait_for()
    assert shown.inner_text() == nasty
    page.get_by_label("Note, kept with the verdict").fill(nasty)
    page.get_by_role("button", name="False alarm").click()
    page.wait_for_function("document.querySelectorAll('.history .text').length === 2")
    page.reload()
    page.locator(".history .text").first.wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.locator(".history img, .history script").count() == 0
    assert verdicts(cloud, id)[-1] == ("olga", "false", nasty)


def test_a_trace_that_is_none_does_no_harm(cloud: Cloud, open_page: OpenPage) -> None:
    for data in (b"\xff\xfe", json.dumps({"v": 1, "start_ns": "x", "channels": [{"channel": "<b>"}]}).encode()):
        incident = cloud.incident(cloud.scene(), evidence=())
        id = cloud.showcase.add(incident, 160, 90)
        cloud.showcase.promise(id, incident, "trace", data)
        cloud.showcase.upload(incident.device, data)
        page = open_page(f"/alert/{id}")
        page.get_by_text("The sensor trace cannot be drawn here").wait_for()


def test_neighbours_are_a_key_away_within_the_filters(cloud: Cloud, open_page: OpenPage) -> None:
    scene = cloud.scene()
    oldest, middle, newest = (cloud.add(scene, ago_s=ago_s, evidence=()) for ago_s in (300, 200, 100))
    page = open_page(f"/alert/{middle}?scene={scene}")
    page.locator("#older").wait_for()
    page.keyboard.press("j")
    page.wait_for_url(f"**/alert/{oldest}?scene={scene}")
    page.locator("#newer").wait_for()
    assert page.locator("a#older").count() == 0
    page.go_back()
    page.locator("#newer").wait_for()
    page.keyboard.press("k")
    page.wait_for_url(f"**/alert/{newest}?scene={scene}")
    page.locator("#back").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_url(f"**/?scene={scene}")


def test_an_alert_of_another_site_does_not_exist(whole: str, tabs: Tabs) -> None:
    page = tabs.open(user="elsa")
    answer = page.goto(f"/alert/{whole}")
    assert answer is not None
    assert answer.status == 404
    page.get_by_text("There is no such alert").wait_for()
    assert page.request.get(f"/v1/alerts/{whole}/evidence/clip").status == 404
    tabs.complaints = [said for said in tabs.complaints if "404" not in said]  # the browser logs what we asked for

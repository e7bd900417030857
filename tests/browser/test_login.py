"""Who gets in, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Cloud, Tabs, log_in

if TYPE_CHECKING:
    from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.needs("chromium")


def test_a_wrong_password_is_refused_and_a_right_one_leads_where_one_was_going(
    cloud: Cloud, open_page: OpenPage
) -> None:
    page = open_page("/devices", user=None)
    assert "/login" in page.url
    log_in(page, "piet", "not the password")
    page.get_by_text("Wrong name or password").wait_for()
    log_in(page, "piet", cloud.passwords["piet"])
    page.get_by_role("heading", name="Devices").wait_for()


@pytest.mark.parametrize("path", ["/", "/devices", "/account", "/alert/0190b0a0-0000-7000-8000-000000000000"])
def test_every_page_asks_for_a_login(path: str, open_page: OpenPage) -> None:
    page = open_page(path, user=None)
    assert "/login" in page.url
    assert page.get_by_role("button", name="Log in").is_visible()


def test_a_login_never_leads_to_another_site(cloud: Cloud, open_page: OpenPage) -> None:
    page = open_page("/login?next=//example.org/", user=None)
    log_in(page, "piet", cloud.passwords["piet"])
    page.wait_for_url(f"{cloud.url}/")


def test_a_login_link_works_once(cloud: Cloud, open_page: OpenPage) -> None:
    link = f"/login/{cloud.showcase.services.accounts.make_link('vic')}"
    first = open_page(link, user=None)
    assert first.url == f"{cloud.url}/"
    first.get_by_role("heading", name="Alerts", exact=True).wait_for()
    second = open_page(link, user=None)
    second.get_by_text("This login link was used already").wait_for()
    assert "/login" in second.url


def test_logging_out_ends_the_login(open_page: OpenPage) -> None:
    page = open_page(user="vic")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto("/")
    assert "/login" in page.url


def test_a_new_password_ends_every_other_login_and_open_pages_leave_by_themselves(cloud: Cloud, tabs: Tabs) -> None:
    cloud.passwords["nora"] = cloud.showcase.user("nora", "operator")
    left_open = tabs.open(user="nora")
    page = tabs.open("/account", user="nora")
    page.get_by_label("Old password").fill(cloud.passwords["nora"])
    page.get_by_label("New password", exact=True).fill("a better password")
    page.get_by_label("New password again").fill("a better passwort")
    page.get_by_role("button", name="Change password").click()
    page.get_by_text("The two new passwords differ").wait_for()
    page.get_by_label("Old password").fill(cloud.passwords["nora"])
    page.get_by_label("New password", exact=True).fill("a better password")
    page.get_by_label("New password again").fill("a better password")
    page.get_by_role("button", name="Change password").click()
    page.get_by_text("The password was changed").wait_for()
    left_open.get_by_text("Your login has ended").wait_for()


def test_a_generated_password_must_be_changed_first(cloud: Cloud, open_page: OpenPage) -> None:
    password = cloud.showcase.services.accounts.add("newcomer", "viewer")
    page = open_page("/login", user=None)
    log_in(page, "newcomer", password)
    page.wait_for_url("**/account")
    page.get_by_text("Choose a password of your own").wait_for()
    page.goto("/devices")
    assert page.url.endswith("/account")

"""Logging in and out, login links, and one's own password: plain forms, for a cookie needs an HTTP answer."""

from __future__ import annotations

from cloud_sync.accounts import MIN_PASSWORD, Viewer
from cloud_sync.dashboard import frame
from cloud_sync.dashboard.parts import Tag

#: What a form's answer may say, by a word in the address: no text from outside is ever shown.
MESSAGES = {
    "wrong": "Wrong name or password.",
    "wait": "Too many wrong passwords. Wait a minute, then try again.",
    "link": "This login link was used already or is too old. Ask for a new one, or log in with your password.",
    "ended": "Your login has ended. Please log in again.",
    "busy": "The database is busy. Try again in a moment.",
    "old": "The old password is wrong.",
    "short": f"A password has at least {MIN_PASSWORD} characters.",
    "differ": "The two new passwords differ.",
}


def _field(label: str, name: str, kind: str, complete: str, **more: str) -> None:
    with Tag("label", text=label):
        Tag("input", type=kind, name=name, autocomplete=complete, required="", maxlength="1024", **more)


def show_login(wanted: str, message: str | None) -> None:
    """The login page; `message` is a key of `MESSAGES`."""
    with frame.gate("Log in"):
        Tag("p", "sub", "Sight, sound and sensors, watched as one")
        with Tag("div", "card"), Tag("form", "form", method="post", action="/login"):
            if message in MESSAGES:
                frame.notice(MESSAGES[message], "error_outline", "" if message == "ended" else "bad")
            Tag("input", type="hidden", name="next", value=wanted)
            _field("Name", "name", "text", "username", autofocus="", autocapitalize="none", spellcheck="false")
            _field("Password", "password", "password", "current-password")
            Tag("button", "primary", "Log in", type="submit")


def show_account(viewer: Viewer, message: str | None) -> None:
    """Who one is, and a form for a new password."""
    with frame.page(viewer, "Account", "account", narrow=True):
        with Tag("div", "head"):
            Tag("h1", text="Your account")
        with Tag("section", "card"), Tag("div", "card-body stack", style="padding-top: 16px"):
            if viewer.must_change:
                frame.notice("Choose a password of your own before you go on.", "key")
            if message == "done":
                frame.notice("The password was changed, and every other login of yours has ended.", "check", "good")
            elif message in MESSAGES:
                frame.notice(MESSAGES[message], "error_outline", "bad")
            with Tag("dl", "facts"):
                _fact("Name", viewer.name)
                _fact("Role", f"{viewer.role}: {ROLES.get(viewer.role, '')}")
                _fact("Sites", "every site" if viewer.sites is None else ", ".join(sorted(viewer.sites)) or "none")
        with Tag("section", "card", style="margin-top: 16px"):
            with Tag("div", "card-head"):
                Tag("h2", text="Change password")
            with Tag("div", "card-body"), Tag("form", "form", method="post", action="/account/password"):
                Tag("input", type="hidden", name="username", autocomplete="username", value=viewer.name)
                _field("Old password", "old", "password", "current-password")
                _field("New password", "new", "password", "new-password", minlength=str(MIN_PASSWORD))
                _field("New password again", "again", "password", "new-password", minlength=str(MIN_PASSWORD))
                Tag("span", "hint", f"At least {MIN_PASSWORD} characters. It ends your logins everywhere else.")
                Tag("button", "primary", "Change password", type="submit")


ROLES = {
    "viewer": "sees alerts and devices",
    "operator": "sees alerts and devices, and gives verdicts",
    "admin": "sees everything, gives verdicts, administers users",
}


def _fact(name: str, value: str) -> None:
    Tag("dt", text=name)
    Tag("dd", text=value)

"""People: who comes in, what they may do, and when it ends."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa

from cloud_sync import accounts as module
from cloud_sync.accounts import ATTEMPTS, ATTEMPTS_S, LINK_S, MAX_LOGINS, SESSION_S, Accounts, Viewer
from cloud_sync.errors import AccessRefused, CloudError, NotFound
from cloud_sync.store import Store, audit
from cloud_sync.store.tables import Login, User
from tests.parts.cloud import CHEAP

_S = 10**9


class HandClock:
    def __init__(self) -> None:
        self.ns = time.time_ns()

    def __call__(self) -> int:
        return self.ns

    def pass_s(self, seconds: float) -> None:
        self.ns += int(seconds * _S)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def accounts(any_store: Store, clock: HandClock) -> Accounts:
    return Accounts(any_store, clock, CHEAP)


def refused(call: object, *arguments: object) -> AccessRefused:
    with pytest.raises(AccessRefused) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value


def test_the_first_start_makes_one_admin_and_says_the_password_once(accounts: Accounts) -> None:
    password = accounts.first_run()
    assert password is not None
    assert len(password) >= 20
    assert accounts.first_run() is None
    viewer = accounts.viewer(accounts.login("admin", password))
    assert viewer == Viewer("admin", "admin")
    assert viewer.may("admin")


def test_two_first_starts_at_once_make_one_admin(any_store: Store) -> None:
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(Accounts(any_store, hasher=CHEAP).first_run())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len([password for password in found if password]) == 1


def test_there_is_no_default_password(accounts: Accounts) -> None:
    accounts.first_run()
    for guess in ("admin", "", "password", "tectum"):
        assert refused(accounts.login, "admin", guess).status == 401


def test_passwords_are_hashed_as_rfc_9106_asks(any_store: Store) -> None:
    Accounts(any_store).first_run()
    with any_store.read() as session:
        assert session.get_one(User, "admin").password_hash.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_the_database_holds_neither_passwords_nor_tokens(accounts: Accounts, any_store: Store) -> None:
    password = accounts.add("ann", "operator")
    token = accounts.login("ann", password)
    with any_store.read() as session:
        user = session.get_one(User, "ann")
        login = session.execute(sa.select(Login)).scalar_one()
    assert user.password_hash.startswith("$argon2id$")
    assert password not in user.password_hash
    assert token not in login.token_hash


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("viewer", {"view"}),
        ("operator", {"view", "judge"}),
        ("admin", {"view", "judge", "admin"}),
        ("nonsense", set()),
    ],
)
def test_each_role_may_do_its_own(role: str, may: set[str]) -> None:
    viewer = Viewer("x", role)
    assert {word for word in ("view", "judge", "admin") if viewer.may(word)} == may  # type: ignore[arg-type]


def test_a_new_user_has_to_choose_a_password(accounts: Accounts) -> None:
    password = accounts.add("ann", "viewer", ("north", "south"))
    viewer = accounts.viewer(accounts.login("ann", password))
    assert viewer == Viewer("ann", "viewer", frozenset({"north", "south"}), must_change=True)
    accounts.set_password("ann", password, "a password of my own")
    viewer = accounts.viewer(accounts.login("ann", "a password of my own"))
    assert viewer is not None
    assert not viewer.must_change


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a\x00", "x" * 65, "-a", "ä"])
def test_names_are_plain(accounts: Accounts, name: str) -> None:
    with pytest.raises(CloudError):
        accounts.add(name, "viewer")
    assert refused(accounts.login, name, "x").status == 401


def test_a_name_is_taken_once(accounts: Accounts) -> None:
    accounts.add("ann", "viewer")
    with pytest.raises(CloudError, match="already"):
        accounts.add("ann", "admin")


class TestLogins:
    def test_one_ends_by_itself(self, accounts: Accounts, clock: HandClock) -> None:
        token = accounts.login("ann", accounts.add("ann", "viewer"))
        clock.pass_s(SESSION_S - 1)
        assert accounts.viewer(token) is not None
        clock.pass_s(1)
        assert accounts.viewer(token) is None

    def test_one_ends_when_told(self, accounts: Accounts) -> None:
        token = accounts.login("ann", accounts.add("ann", "viewer"))
        accounts.logout(token)
        accounts.logout(token)
        assert accounts.viewer(token) is None

    def test_a_new_password_ends_all(self, accounts: Accounts) -> None:
        password = accounts.add("ann", "viewer")
        tokens = [accounts.login("ann", password) for _ in range(2)]
        accounts.set_password("ann", password, "another password")
        assert [accounts.viewer(token) for token in tokens] == [None, None]

    def test_a_removed_user_is_out(self, accounts: Accounts) -> None:
        accounts.first_run()
        token = accounts.login("ann", accounts.add("ann", "viewer"))
        accounts.remove("ann")
        assert accounts.viewer(token) is None
        with pytest.raises(NotFound):
            accounts.remove("ann")

    def test_the_last_admin_stays(self, accounts: Accounts) -> None:
        accounts.first_run()
        with pytest.raises(CloudError, match="last admin"):
            accounts.remove("admin")

    def test_they_are_bounded_and_the_oldest_ends(self, accounts: Accounts, clock: HandClock) -> None:
        password = accounts.add("ann", "viewer")
        tokens = []
        for _ in range(MAX_LOGINS + 2):
            tokens.append(accounts.login("ann", password))
            clock.pass_s(1)
        alive = [accounts.viewer(token) is not None for token in tokens]
        assert alive == [False, False] + [True] * MAX_LOGINS

    @pytest.mark.parametrize("token", [None, "", "x", "x" * 10_000, "\x00"])
    def test_what_is_no_token_is_nobody(self, accounts: Accounts, token: str | None) -> None:
        assert accounts.viewer(token) is None


class TestLinks:
    def test_one_works_once(self, accounts: Accounts) -> None:
        accounts.first_run()
        link = accounts.make_link("admin")
        assert accounts.viewer(link) is None, "a link is no login yet"
        assert accounts.viewer(accounts.redeem(link)) == Viewer("admin", "admin")
        assert refused(accounts.redeem, link).status == 401

    def test_two_who_follow_it_at_once_do_not_both_come_in(self, accounts: Accounts) -> None:
        accounts.first_run()
        link = accounts.make_link("admin")
        came_in: list[str] = []

        def follow() -> None:
            try:
                came_in.append(accounts.redeem(link))
            except AccessRefused:
                return

        threads = [threading.Thread(target=follow) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(came_in) == 1

    def test_one_grows_too_old(self, accounts: Accounts, clock: HandClock) -> None:
        accounts.first_run()
        link = accounts.make_link("admin")
        clock.pass_s(LINK_S)
        assert refused(accounts.redeem, link).status == 401

    def test_a_login_is_no_link(self, accounts: Accounts) -> None:
        token = accounts.login("ann", accounts.add("ann", "viewer"))
        assert refused(accounts.redeem, token).status == 401

    def test_nobody_gets_none(self, accounts: Accounts) -> None:
        with pytest.raises(NotFound):
            accounts.make_link("nobody")


class TestLimit:
    def test_too_many_wrong_passwords_have_to_wait_even_with_the_right_one(
        self, accounts: Accounts, clock: HandClock
    ) -> None:
        password = accounts.add("ann", "viewer")
        for number in range(ATTEMPTS):
            assert refused(accounts.login, "ann", "wrong", f"10.0.0.{number}").status == 401
        error = refused(accounts.login, "ann", password, "10.0.0.99")
        assert (error.status, error.retry_s) == (429, ATTEMPTS_S)
        clock.pass_s(ATTEMPTS_S)
        assert accounts.login("ann", password, "10.0.0.99")

    def test_one_address_cannot_try_many_names(self, accounts: Accounts) -> None:
        accounts.add("ann", "viewer")
        for number in range(ATTEMPTS):
            refused(accounts.login, f"user{number}", "wrong", "10.0.0.1")
        assert refused(accounts.login, "ann", "wrong", "10.0.0.1").status == 429
        assert refused(accounts.login, "ann", "wrong", "10.0.0.2").status == 401

    def test_right_passwords_do_not_count(self, accounts: Accounts) -> None:
        password = accounts.add("ann", "viewer")
        for _ in range(ATTEMPTS + 2):
            accounts.login("ann", password, "10.0.0.1")

    def test_old_passwords_are_limited_too(self, accounts: Accounts) -> None:
        accounts.add("ann", "viewer")
        for _ in range(ATTEMPTS):
            assert refused(accounts.set_password, "ann", "wrong", "long enough").status == 401
        assert refused(accounts.set_password, "ann", "wrong", "long enough").status == 429

    def test_what_is_remembered_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_TRACKED", 10)
        attempts = module._Attempts()
        for number in range(100):
            attempts.take((f"name {number}",), number)
        assert len(attempts._times) == 10


@pytest.mark.parametrize("new", ["", "short", "x" * 2000])
def test_a_new_password_has_a_good_length(accounts: Accounts, new: str) -> None:
    password = accounts.add("ann", "viewer")
    with pytest.raises(CloudError, match="characters"):
        accounts.set_password("ann", password, new)


def test_passwords_may_hold_anything(accounts: Accounts) -> None:
    password = accounts.add("ann", "viewer")
    odd = "ünïcode \ud800 \x00 pass"
    accounts.set_password("ann", password, odd)
    assert accounts.login("ann", odd)


def test_what_was_done_is_on_record(accounts: Accounts, any_store: Store) -> None:
    accounts.first_run()
    accounts.add("ann", "viewer", actor="admin")
    accounts.reset_password("ann", actor="admin")
    accounts.remove("ann", actor="admin")
    with any_store.read() as session:
        rows = session.execute(sa.text("SELECT actor, action, subject FROM audit ORDER BY id")).all()
        assert [tuple(row) for row in rows] == [
            ("console", "user.add", "admin admin"),
            ("admin", "user.add", "ann viewer"),
            ("admin", "user.password", "ann"),
            ("admin", "user.remove", "ann"),
        ]
        assert audit.broken_at(session) is None

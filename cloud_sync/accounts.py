"""People: users and roles, passwords (Argon2id), logins, one-time login links, and who may do what.

A login is a random token in a cookie; the database holds its hash alone. What a role may do is a table here and
nowhere else; which sites a person may see is part of every query (`Viewer.sites`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import argon2
import sqlalchemy as sa
from sqlalchemy.orm import Session

from cloud_sync.errors import AccessRefused, CloudError, NotFound
from cloud_sync.store import Store, audit
from cloud_sync.store.tables import Login, User

COOKIE = "tectum_session"
Role = Literal["admin", "operator", "viewer"]
Permission = Literal["view", "judge", "admin"]
#: What each role may do: see alerts and devices, give verdicts, administer users.
MAY: dict[str, frozenset[Permission]] = {
    "viewer": frozenset({"view"}),
    "operator": frozenset({"view", "judge"}),
    "admin": frozenset({"view", "judge", "admin"}),
}
SESSION_S = 12 * 3600
LINK_S = 15 * 60
MIN_PASSWORD = 10
MAX_PASSWORD = 1024  #: characters; hashing takes time in proportion
MAX_LOGINS = 20  #: of one person at a time; the oldest ends
ATTEMPTS = 5  #: wrong passwords of one name or one address …
ATTEMPTS_S = 60  #: … in this time, before it has to wait
_TRACKED = 4096  #: names and addresses remembered for that
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.@-]{0,62}[a-z0-9])?")
_NS = 1_000_000_000


@dataclass(frozen=True)
class Viewer:
    """A person who is logged in. `sites` None: every site."""

    name: str
    role: str
    sites: frozenset[str] | None = None
    must_change: bool = False

    def may(self, permission: Permission) -> bool:
        """Whether the person's role allows it."""
        return permission in MAY.get(self.role, frozenset())


#: Whoever works on the machine itself: sees everything, judges nothing.
SYSTEM = Viewer("system", "viewer")


class Accounts:
    """Users and logins of one installation. Methods block (Argon2: some 50 ms); safe between threads."""

    def __init__(
        self, store: Store, now_ns: Callable[[], int] = time.time_ns, hasher: argon2.PasswordHasher | None = None
    ) -> None:
        self._store = store
        self._now_ns = now_ns
        self._hasher = hasher or argon2.PasswordHasher()  # RFC 9106, low-memory profile: 64 MiB, 3 passes
        self._wrong = _Attempts()
        self._hashing = threading.Semaphore(2)  # 64 MiB each: logins must not exhaust the machine's memory
        self._nobody = self._hasher.hash(secrets.token_hex(16))

    def first_run(self) -> str | None:
        """Make `admin` with a generated password if there is no user yet, and return it; else None.

        Shown once, kept nowhere. Safe in two processes at once: one of them makes it.
        """
        password = secrets.token_urlsafe(15)
        hashed = self._hasher.hash(password)
        with self._store.write() as session:
            if session.execute(sa.select(User.name).limit(1)).scalar() is not None:
                return None
            admin = {"name": "admin", "password_hash": hashed, "role": "admin", "sites": None, "must_change": False}
            if not self._insert(session, admin):
                return None
            audit.record(session, "console", "user.add", "admin admin", self._now_ns())
        return password

    def add(self, name: str, role: Role, sites: tuple[str, ...] | None = None, actor: str = "console") -> str:
        """Make a user and return the generated password, shown once; it has to be changed at the first login."""
        if not _NAME.fullmatch(name):
            raise CloudError(f"user name {name!r} may hold a-z 0-9 _ . @ - only, at most 64 characters")
        if role not in MAY:
            raise CloudError(f"role {role!r} is none of {', '.join(MAY)}")
        password = secrets.token_urlsafe(15)
        hashed = self._hasher.hash(password)
        wanted = None if sites is None else sorted(sites)
        user = {"name": name, "password_hash": hashed, "role": role, "sites": wanted, "must_change": True}
        with self._store.write() as session:
            if not self._insert(session, user):
                raise CloudError(f"there is a user {name!r} already")
            audit.record(session, actor, "user.add", f"{name} {role}", self._now_ns())
        return password

    def remove(self, name: str, actor: str = "console") -> None:
        """End a user's logins and delete the user. NotFound if there is none; the last admin stays."""
        with self._store.write() as session:
            user = _existing(session, name)
            # Locked: two admins who remove each other at the same moment must not both succeed.
            admins = session.execute(sa.select(User.name).where(User.role == "admin").with_for_update()).all()
            if user.role == "admin" and len(admins) == 1:
                raise CloudError(f"{name!r} is the last admin; make another one first")
            session.execute(sa.delete(Login).where(Login.user == name))
            session.delete(user)
            audit.record(session, actor, "user.remove", name, self._now_ns())

    def users(self) -> list[Viewer]:
        """Everyone, by name."""
        with self._store.read() as session:
            return [_viewer(user) for user in session.execute(sa.select(User).order_by(User.name)).scalars()]

    def login(self, name: str, password: str, address: str = "") -> str:
        """A new session token for the cookie. AccessRefused 401 for a wrong name or password, 429 for too many."""
        keys = (f"name {name[:64]}", f"address {address}")
        self._wrong.take(keys, self._now_ns())
        with self._store.read() as session:
            user = session.get(User, name) if _NAME.fullmatch(name) else None
        # An unknown name costs the same time as a wrong password: names cannot be found out by the clock.
        good = self._verify(user.password_hash if user else self._nobody, password)
        if user is None or not good:
            raise AccessRefused(401, "wrong name or password")
        self._wrong.give_back(keys)
        with self._store.write() as session:
            return self._new_login(session, name, SESSION_S, once=False)

    def set_password(self, name: str, old: str, new: str) -> None:
        """Change one's own password and end every login of it. AccessRefused 401 if `old` is wrong."""
        keys = (f"name {name[:64]}",)
        self._wrong.take(keys, self._now_ns())
        with self._store.read() as session:
            hashed = _existing(session, name).password_hash
        if not self._verify(hashed, old):
            raise AccessRefused(401, "the old password is wrong")
        self._wrong.give_back(keys)
        if not MIN_PASSWORD <= len(new) <= MAX_PASSWORD:
            raise CloudError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
        self._set(name, new, actor=name, must_change=False)

    def reset_password(self, name: str, actor: str = "console") -> str:
        """Give a user a generated password, to be changed at the next login, and return it."""
        password = secrets.token_urlsafe(15)
        self._set(name, password, actor, must_change=True)
        return password

    def make_link(self, name: str) -> str:
        """A token that `redeem` turns into a login once within 15 minutes. NotFound for an unknown user."""
        with self._store.write() as session:
            _existing(session, name)
            return self._new_login(session, name, LINK_S, once=True)

    def redeem(self, link: str) -> str:
        """A session token for a login link, which is used up. AccessRefused 401 if it is not good."""
        good = (Login.token_hash == _hash(link), Login.once, Login.expires_ns > self._now_ns())
        with self._store.write() as session:
            # Deleting says whose it was: of two who come at once, one finds nothing to delete.
            name = session.execute(sa.delete(Login).where(*good).returning(Login.user)).scalar()
            if name is None:
                raise AccessRefused(401, "this login link was used already or is too old")
            return self._new_login(session, name, SESSION_S, once=False)

    def viewer(self, token: str | None) -> Viewer | None:
        """Who a session token belongs to; None if it is missing, unknown or has expired."""
        if not token or len(token) > 128:
            return None
        with self._store.read() as session:
            row = session.get(Login, _hash(token))
            if row is None or row.once or row.expires_ns <= self._now_ns():
                return None
            user = session.get(User, row.user)
            return None if user is None else _viewer(user)

    def logout(self, token: str) -> None:
        """End a login; nothing happens if there is none."""
        with self._store.write() as session:
            session.execute(sa.delete(Login).where(Login.token_hash == _hash(token)))

    def _insert(self, session: Session, user: Mapping[str, object]) -> bool:
        """Whether the name was free."""
        row = self._store.insert(User).values(**user, created_ns=self._now_ns()).on_conflict_do_nothing()
        return session.execute(row.returning(User.name)).scalar() is not None

    def _new_login(self, session: Session, name: str, life_s: int, *, once: bool) -> str:
        now = self._now_ns()
        session.execute(sa.delete(Login).where(Login.expires_ns <= now))
        newest = sa.select(Login.token_hash).where(Login.user == name).order_by(Login.expires_ns.desc())
        for stale in session.execute(newest.offset(MAX_LOGINS - 1)).scalars().all():
            session.execute(sa.delete(Login).where(Login.token_hash == stale))
        token = secrets.token_urlsafe(32)
        session.add(Login(token_hash=_hash(token), user=name, expires_ns=now + life_s * _NS, once=once))
        return token

    def _set(self, name: str, password: str, actor: str, *, must_change: bool) -> None:
        hashed = self._hasher.hash(_bytes(password))
        with self._store.write() as session:
            user = _existing(session, name)
            user.password_hash = hashed
            user.must_change = must_change
            session.execute(sa.delete(Login).where(Login.user == name))
            audit.record(session, actor, "user.password", name, self._now_ns())

    def _verify(self, hashed: str, password: str) -> bool:
        with self._hashing:
            try:
                return self._hasher.verify(hashed, _bytes(password[: MAX_PASSWORD + 1]))
            except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
                return False


class _Attempts:
    """Recent wrong passwords per name and per address, in memory: bounded, the longest untouched is forgotten."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[int]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, keys: tuple[str, ...], now_ns: int) -> None:
        """Count an attempt before it is judged, so that many at once count too. AccessRefused 429 at the limit."""
        with self._lock:
            for key in keys:
                times = self._times.get(key, deque())
                wait_ns = times[0] + ATTEMPTS_S * _NS - now_ns if len(times) == ATTEMPTS else 0
                if wait_ns > 0:
                    wait_s = -(-wait_ns // _NS)
                    raise AccessRefused(429, f"too many wrong passwords; try again in {wait_s} s", retry_s=wait_s)
            for key in keys:
                self._times.setdefault(key, deque(maxlen=ATTEMPTS)).append(now_ns)
                self._times.move_to_end(key)
            while len(self._times) > _TRACKED:
                self._times.popitem(last=False)

    def give_back(self, keys: tuple[str, ...]) -> None:
        """The attempt was right: it does not count."""
        with self._lock:
            for key in keys:
                times = self._times.get(key)
                if times:
                    times.pop()


def _existing(session: Session, name: str) -> User:
    user = session.get(User, name)
    if user is None:
        raise NotFound(f"there is no user {name!r}")
    return user


def _viewer(user: User) -> Viewer:
    sites = None if user.sites is None else frozenset(user.sites)
    return Viewer(user.name, user.role, sites, user.must_change)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")  # JSON may bring half a surrogate pair

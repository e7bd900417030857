"""Where the pages get their data: queries in worker threads, with the login checked anew each time.

A page lives as long as its browser tab, far longer than a login may: so every poll and every action asks again
who is there, and what that person may do now.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.orm import Session

from cloud_sync.accounts import Accounts, Viewer
from cloud_sync.blobs import Blobs
from cloud_sync.errors import AccessRefused
from cloud_sync.store import Store

T = TypeVar("T")


class Desk:
    """Store, accounts and blobs of this installation, as the pages use them."""

    def __init__(self, store: Store, accounts: Accounts, blobs: Blobs, now_ns: Callable[[], int] = time.time_ns):
        self.store = store
        self.accounts = accounts
        self.blobs = blobs
        self.now_ns = now_ns

    async def seat(self, token: str | None) -> Seat | None:
        """A seat for the person whose cookie this is; None if nobody is logged in with it."""
        viewer = await asyncio.to_thread(self.accounts.viewer, token)
        return None if viewer is None or token is None else Seat(self, token, viewer)


class Seat:
    """One person at one page. Every call checks the login again: AccessRefused 401 once it has ended."""

    def __init__(self, desk: Desk, token: str, viewer: Viewer) -> None:
        self.desk = desk
        self.token = token
        self.viewer = viewer

    async def ask(self, query: Callable[[Session, Viewer], T]) -> T:
        """The answer to a query, in a read transaction. StoreBusy: ask again later."""
        return await asyncio.to_thread(self._read, query)

    async def tell(self, change: Callable[[Session, Viewer], T]) -> T:
        """The result of a change, committed when this returns. StoreBusy: nothing was kept."""
        return await asyncio.to_thread(self._write, change)

    def _read(self, query: Callable[[Session, Viewer], T]) -> T:
        viewer = self._check()
        with self.desk.store.read() as session:
            return query(session, viewer)

    def _write(self, change: Callable[[Session, Viewer], T]) -> T:
        viewer = self._check()
        with self.desk.store.write() as session:
            return change(session, viewer)

    def _check(self) -> Viewer:
        viewer = self.desk.accounts.viewer(self.token)
        if viewer is None:
            raise AccessRefused(401, "the login has ended")
        self.viewer = viewer
        return viewer

"""Side effects after commit: each `Effect` row becomes one notification.

The row was written in the alert's own transaction, so none is forgotten and none is made twice. It is claimed
before it is sent and marked done after. A crash in between leaves the question whether it went out: it is sent
again with the same `Idempotency-Key`, by which the receiver knows it.
"""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cloud_sync.errors import StoreBusy
from cloud_sync.store import Store
from cloud_sync.store.tables import Alert, Effect

log = logging.getLogger(__name__)

EVERY_S = 1.0
BATCH = 20
ATTEMPTS = 5
CLAIM_NS = 60 * 1_000_000_000  #: a claim that is older was made by a process that is no more
KEPT_DONE = 10_000  #: rows of done effects; older ones are deleted
_AGAIN_NS = (1_000_000_000, 5_000_000_000, 30_000_000_000, 120_000_000_000)  #: waits between attempts


@dataclass(frozen=True)
class Notice:
    """What is told of an alert. Times are UTC nanoseconds."""

    key: str  #: the same however often it is sent
    alert: str
    site: str
    device: str
    scene: str
    label: str
    started_ns: int
    score: float
    threshold: float
    url: str


class Channel(Protocol):
    """One way to tell somebody."""

    def send(self, notice: Notice) -> None:
        """Tell them; OSError if it did not work."""


class Webhook:
    """POSTs JSON to a URL from cloud.yaml; any 2xx means that it was taken."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s

    def send(self, notice: Notice) -> None:
        request = urllib.request.Request(
            self._url,
            data=json.dumps(notice.__dict__).encode(),
            headers={"Content-Type": "application/json", "Idempotency-Key": notice.key, "User-Agent": "tectum"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s):
                pass
        except http.client.HTTPException as error:  # an answer that is no HTTP; urllib wraps all else
            raise OSError(f"{self._url} does not speak HTTP: {error!r}") from error


class Notifier:
    """Carries effects out, oldest first. Without a channel an alert is told by the dashboard alone."""

    def __init__(
        self, store: Store, channels: Sequence[Channel], url: str, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._store = store
        self._channels = channels
        self._url = url
        self._now_ns = now_ns

    def run(self, stop: threading.Event) -> None:
        """Until told to stop; a database that is busy is asked again."""
        while not stop.wait(EVERY_S):
            try:
                while self.carry_out(stop) == BATCH and not stop.is_set():
                    pass
            except StoreBusy as error:
                log.warning("notifications wait: %s", error)

    def carry_out(self, stop: threading.Event | None = None) -> int:
        """One batch; how many rows it was. Told to `stop`, it leaves the rest to whoever comes next."""
        with self._store.read() as session:  # most of the time there is nothing, and nothing has to be written
            if not session.execute(self._due().with_only_columns(Effect.id).limit(1)).all():
                return 0
        with self._store.write() as session:
            due = list(session.execute(self._due().limit(BATCH).with_for_update(skip_locked=True)).scalars())
            for effect in due:
                effect.claimed_ns = self._now_ns()
                effect.attempts += 1
            notices = {effect.id: _notice(session, effect, self._url) for effect in due}
        for effect in due:
            if stop is not None and stop.is_set():  # a receiver that hangs must not hold up the stop twenty times
                break
            self._send(effect, notices[effect.id])
        return len(due)

    def _due(self) -> sa.Select[Any]:
        now = self._now_ns()
        waits = sa.case(
            *((Effect.attempts == count, wait_ns) for count, wait_ns in enumerate(_AGAIN_NS, start=1)), else_=0
        )
        failed = (Effect.error != "") & (Effect.claimed_ns < now - waits)
        lost = (Effect.error == "") & (Effect.claimed_ns < now - CLAIM_NS)
        return (
            sa.select(Effect)
            .where(Effect.done_ns.is_(None), Effect.claimed_ns.is_(None) | failed | lost)
            .order_by(Effect.id)
        )

    def _send(self, effect: Effect, notice: Notice | None) -> None:
        error = ""
        try:
            for channel in self._channels:
                if notice is not None:
                    channel.send(notice)
        except OSError as problem:  # urllib's errors are OSErrors
            error = str(problem)[:500] or type(problem).__name__
            log.warning("notification %d failed (attempt %d of %d): %s", effect.id, effect.attempts, ATTEMPTS, error)
        over = not error or effect.attempts >= ATTEMPTS
        with self._store.write() as session:
            session.execute(
                sa.update(Effect)
                .where(Effect.id == effect.id)
                .values(done_ns=self._now_ns() if over else None, error=error)
            )
            session.execute(sa.delete(Effect).where(Effect.done_ns.is_not(None), Effect.id <= effect.id - KEPT_DONE))


def _notice(session: Session, effect: Effect, url: str) -> Notice | None:
    alert = session.get(Alert, effect.event_id)
    if alert is None:
        return None
    return Notice(
        key=f"tectum-{effect.kind}-{effect.event_id}",
        alert=alert.id,
        site=alert.site,
        device=alert.device,
        scene=alert.scene,
        label=alert.label,
        started_ns=alert.started_ns,
        score=alert.score,
        threshold=alert.threshold,
        url=f"{url}/alert/{alert.id}",
    )

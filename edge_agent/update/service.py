"""The way of a release through this device, one step at a time, each of which may fail or be cut off:

    current → manifest → files → stage (durable) → self-test → trial (counted first) → swap → commit

Whatever fails leaves the running model as it is, says why to the log and the cloud, and is not tried again unless the
cause was the line or the power.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Protocol

from edge_agent.contract.event import Rollout
from edge_agent.contract.manifest import Manifest
from edge_agent.core.records import Model
from edge_agent.errors import BundleError, DeliveryError
from edge_agent.update.rules import Current, Installed, admit, wanted
from edge_agent.update.slots import MAX_ATTEMPTS, Slots

log = logging.getLogger(__name__)

SWAP_TIMEOUT_S = 30.0


class ReleaseSource(Protocol):
    """Where signed releases come from; `fetch.Releases` in the product."""

    def current(self) -> Current | None: ...
    def manifest(self, bundle: str) -> bytes: ...
    def blob(self, sha256: str, size: int, target: Path) -> None: ...
    def forget_spool(self) -> None: ...


class UpdateService:
    """Looks for releases every `poll_s` and whenever it is hinted; `run` is a service of the supervisor."""

    def __init__(
        self,
        slots: Slots,
        releases: ReleaseSource,
        running: Model,
        *,
        agent: str,
        poll_s: float,
        prove: Callable[[Path], Model],
        swap: Callable[[Model], Future[None]],
        report: Callable[[Rollout], None],
    ) -> None:
        """`prove` loads a slot and runs its self-test, BundleError if it fails. `swap` asks the pipeline to change
        between two windows; its future is done once a window was scored by the new model."""
        self._slots = slots
        self._releases = releases
        self._running = running
        self._agent = agent
        self._poll_s = poll_s
        self._prove = prove
        self._swap = swap
        self._report = report
        self._hint = threading.Event()

    def hint(self) -> None:
        """Something may be new: look soon. From any thread; never blocks."""
        self._hint.set()

    def run(self, stop: threading.Event) -> None:
        """Look, install, wait; until `stop`."""
        while not stop.is_set():
            self._hint.clear()
            try:
                self.step()
            except DeliveryError as error:
                log.warning("update: %s; trying again in %.0f s", error, self._poll_s)
            self._wait(stop)

    def step(self) -> bool:
        """One look; whether a new model runs now. DeliveryError if the cloud is not there."""
        try:
            current = self._releases.current()
        except BundleError as error:
            log.error("update blocked: %s; the running model goes on", error)
            return False
        if current is None or not wanted(current, self._installed()):
            return False
        log.info("update: release %d (%s) is offered", current.counter, current.bundle[:12])
        self._say(current.bundle, "offered")
        try:
            self._install(current)
        except BundleError as error:
            log.error("update refused: %s; the running model goes on", error)
            self._slots.refuse(current.bundle, str(error))
            self._releases.forget_spool()
            self._say(current.bundle, "refused", str(error))
            return False
        return True

    def _install(self, current: Current) -> None:
        manifest = admit(self._releases.manifest(current.bundle), current, self._installed())
        folder = self._slots.path(current.bundle)
        if self._slots.row().candidate != current.bundle or not folder.is_dir():
            folder = self._download(current, manifest)
        model = self._prove(folder)
        self._say(current.bundle, "selftested")
        self._trial(model)
        self._running = model
        self._releases.forget_spool()
        log.info("update: release %d (%s) runs", current.counter, current.bundle[:12])
        self._say(current.bundle, "committed")

    def _download(self, current: Current, manifest: Manifest) -> Path:
        staging = self._slots.staging(current.bundle)
        for name, file in manifest.files.items():
            self._releases.blob(file.sha256, file.size, staging / name)
        self._say(current.bundle, "downloaded")
        (staging / "manifest.json").write_bytes(self._releases.manifest(current.bundle))
        wanted_names = {*manifest.files, "manifest.json"}
        for stray in staging.iterdir():
            if stray.name not in wanted_names:
                stray.unlink()
        folder = self._slots.stage(current.bundle, staging)
        self._say(current.bundle, "staged")
        return folder

    def _trial(self, model: Model) -> None:
        attempt = self._slots.attempt(model.hash)
        if attempt > MAX_ATTEMPTS:
            raise BundleError(f"{MAX_ATTEMPTS} trials ended without a scored window")
        future = self._swap(model)
        try:
            future.result(timeout=SWAP_TIMEOUT_S)
        except FutureTimeoutError as error:
            if future.cancel():  # else it was scored in this very moment
                self._slots.forgive(model.hash)
                model.engine.close()
                raise DeliveryError(
                    f"no source gave a window within {SWAP_TIMEOUT_S:.0f} s to try the new model on"
                ) from error
        except BundleError:
            model.engine.close()
            raise
        except CancelledError as error:
            # The agent stops, or its pipeline starts anew with the old model: no fault of the new one, which stays
            # the candidate. Its trials are counted, so that one that breaks the pipeline is not tried for ever.
            model.engine.close()
            raise DeliveryError("the pipeline stopped before the new model had scored a window") from error
        self._slots.commit(model.hash)

    def _installed(self) -> Installed:
        manifest = self._running.manifest
        return Installed(
            family=manifest.family,
            bundle=self._running.hash,
            counter=manifest.counter,
            agent=self._agent,
            refused=self._slots.refused(),
        )

    def _say(self, bundle: str, state: str, reason: str = "") -> None:
        self._report(Rollout(bundle=bundle, state=state, reason=reason))  # type: ignore[arg-type]

    def _wait(self, stop: threading.Event) -> None:
        left = self._poll_s
        while left > 0 and not stop.is_set() and not self._hint.is_set():
            stop.wait(min(0.5, left))
            left -= 0.5

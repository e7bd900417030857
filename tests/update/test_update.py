"""A release reaches the device; every attack and accident of the table leaves the running model as it was."""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from cloud_sync import release
from cloud_sync.errors import ReleaseError
from edge_agent.errors import BundleError, DeliveryError
from edge_agent.update import service as service_module
from edge_agent.update import slots as slots_module
from edge_agent.update.slots import MAX_ATTEMPTS
from tests.update.site import FAMILY, Device, Repository, Server, make_bundle, model_of, serving, spoil_json


class World:
    def __init__(self, folder: Path, server: Server, repository: Repository) -> None:
        self.folder, self.server, self.repository = folder, server, repository
        self.shipped = make_bundle(folder / "shipped", 1)
        self.device = Device(folder / "device", self.shipped, server.url, repository.root())

    def release(self, counter: int, **kind: object) -> str:
        bundle = make_bundle(self.folder / f"bundle-{counter}", counter, **kind)  # type: ignore[arg-type]
        return self.repository.release(bundle).bundle


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    repository = Repository(tmp_path / "tuf", tmp_path / "keys")
    repository.init()
    with serving(tmp_path / "tuf") as server:
        yield World(tmp_path, server, repository)


def test_nothing_is_released_nothing_happens(world: World) -> None:
    assert world.device.service.step() is False
    assert world.device.states() == []


def test_a_release_is_fetched_proven_swapped_and_stays_after_a_restart(world: World) -> None:
    released = world.release(2)
    assert world.device.service.step() is True
    assert world.device.states() == ["offered", "downloaded", "staged", "selftested", "committed"]
    assert world.device.running.hash == released
    world.device.restart()
    assert world.device.running.hash == released
    assert world.device.service.step() is False


def test_the_third_update_in_a_row_arrives_like_the_first_and_two_slots_remain(world: World) -> None:
    hashes = []
    for counter in (2, 3, 4):
        hashes.append(world.release(counter))
        assert world.device.service.step() is True
    row = world.device.slots.row()
    assert (row.running, row.previous) == (hashes[2], hashes[1])
    assert {p.name for p in world.device.slots.folder.iterdir() if len(p.name) == 64} == set(hashes[1:])


def test_a_damaged_slot_falls_back_to_the_one_before_and_then_to_the_shipped_bundle(world: World) -> None:
    first, second = world.release(2), None
    world.device.service.step()
    second = world.release(3)
    world.device.service.step()
    (world.device.slots.path(second) / "vision.onnx").write_bytes(b"rot")
    world.device.restart()
    assert world.device.running.hash == first
    assert world.device.service.step() is False, "a bundle that failed here is not tried again"
    shutil.rmtree(world.device.slots.path(first))
    world.device.restart()
    assert world.device.running.hash == model_of(world.shipped).hash


Spoil = Callable[[str, bytes], "bytes | int"]


def _json(name: str, change: Callable[[dict[str, object]], None]) -> Spoil:
    return lambda path, data: spoil_json(data, change) if name in path and data else data


ATTACKS: dict[str, Spoil] = {
    "changed timestamp": _json("metadata/timestamp", lambda signed: signed.update(version=99)),
    "changed snapshot": _json("snapshot.json", lambda signed: signed.update(expires="2099-01-01T00:00:00Z")),
    "changed delegation": _json(".models-", lambda signed: signed["targets"].clear()),  # type: ignore[attr-defined]
    "unsigned metadata": lambda path, data: data.replace(b'"sig":"', b'"sig":"00') if "models-" in path else data,
    "metadata is not JSON": lambda path, data: b"<html>" if path.endswith("timestamp.json") else data,
    "endless metadata": lambda path, data: data + b" " * 1_000_000 if path.endswith("timestamp.json") else data,
    "changed graph": lambda path, data: bytes(len(data)) if path.startswith("targets/blobs") else data,
    "longer graph": lambda path, data: data + b"x" if path.startswith("targets/blobs") else data,
    "changed manifest": lambda path, data: data.replace(b"fire", b"evil") if "manifest.json" in path else data,
    "changed current": lambda path, data: (
        data.replace(b'"counter": 2', b'"counter": 3') if "current" in path else data
    ),
    "server error": lambda path, data: 503,
    "not enrolled": lambda path, data: 403,
    "targets gone": lambda path, data: 404 if path.startswith("targets/") else data,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_leaves_the_running_model_and_the_honest_release_arrives_after(world: World, attack: Spoil) -> None:
    released = world.release(2)
    before = world.device.running.hash
    world.server.spoil = attack
    with contextlib.suppress(DeliveryError):  # an unreachable cloud is the run loop's to wait for
        assert world.device.service.step() is False
    assert world.device.running.hash == before
    assert world.device.swapped == []
    world.server.spoil = lambda path, data: data
    world.device.restart()
    assert world.device.slots.refused() == frozenset(), "a line that lies must not burn the release"
    assert world.device.service.step() is True
    assert world.device.running.hash == released


def test_old_metadata_played_back_is_refused(world: World, tmp_path: Path) -> None:
    world.release(2)
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "tuf", old)
    world.release(3)
    assert world.device.service.step() is True
    running = world.device.running.hash
    world.server.folder = old
    world.device.restart()
    assert world.device.service.step() is False
    assert world.device.running.hash == running


def test_another_installation_is_not_trusted(world: World, tmp_path: Path) -> None:
    world.release(2)
    stranger = Repository(tmp_path / "stranger", tmp_path / "stranger-keys")
    stranger.init()
    stranger.release(make_bundle(tmp_path / "evil", 9))
    world.server.folder = tmp_path / "stranger"
    assert world.device.service.step() is False
    assert world.device.swapped == []


@pytest.mark.parametrize(
    ("counter", "kind", "says"),
    [(2, {"min_agent": "9.0.0"}, "needs agent 9.0.0"), (2, {"min_agent": "new"}, "not a version")],
)
def test_a_bundle_that_does_not_fit_is_refused_by_name(
    world: World, counter: int, kind: dict[str, str], says: str
) -> None:
    world.release(counter, **kind)
    assert world.device.service.step() is False
    assert world.device.states() == ["offered", "refused"]
    assert says in world.device.reports[-1].reason


def test_a_failed_self_test_is_refused_once_and_for_all(world: World) -> None:
    bad = world.release(2)

    def fails(folder: Path) -> object:
        raise BundleError("self-test: off by 0.4")

    world.device.prove = fails  # type: ignore[assignment]
    assert world.device.service.step() is False
    assert world.device.reports[-1].reason == "self-test: off by 0.4"
    assert world.device.slots.refused() == {bad}
    world.device.prove = model_of
    assert world.device.service.step() is False, "the same release is never tried again"
    world.release(3)
    assert world.device.service.step() is True


def test_a_swap_that_fails_leaves_the_old_model(world: World) -> None:
    world.release(2)
    before = world.device.running.hash
    world.device.swap_error = BundleError("NaN in the first window")
    assert world.device.service.step() is False
    assert world.device.running.hash == before
    assert world.device.swapped == []
    assert world.device.slots.row().running == ""


def test_without_a_living_source_the_release_waits_and_is_not_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = world.release(2)
    monkeypatch.setattr(service_module, "SWAP_TIMEOUT_S", 0.01)
    world.device.silent = True
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(DeliveryError, match="no source gave a window"):
            world.device.service.step()
    assert world.device.slots.refused() == frozenset()
    world.device.silent = False
    assert world.device.service.step() is True
    assert world.device.running.hash == released


def test_an_agent_that_is_stopped_in_the_trial_does_not_refuse_the_release(world: World) -> None:
    released = world.release(2)
    world.device.swap_error = CancelledError()
    with pytest.raises(DeliveryError, match="stopped before"):
        world.device.service.step()
    assert world.device.slots.refused() == frozenset()
    world.device.swap_error = None
    world.device.restart()
    assert world.device.service.step() is True
    assert world.device.running.hash == released


def test_a_cut_line_is_resumed_where_it_broke(world: World) -> None:
    world.release(2, size=200_000)
    world.server.cut_after = 70_000
    assert world.device.service.step() is True
    resumed = [wanted for path, wanted in world.server.requests if path.startswith("targets/blobs") and wanted]
    assert resumed, "the second request asks for the rest only"
    assert int(resumed[0].removeprefix("bytes=").rstrip("-")) > 0


class PowerCutError(Exception):
    """The device lost power here."""


@pytest.mark.parametrize("moment", range(12))
def test_power_cut_at_any_step_leaves_the_old_slot_and_the_update_arrives_later(
    world: World, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before the n-th durable step (file sync, report, attempt, commit); the next start must work and finish."""
    released = world.release(2)
    left = [moment]

    def step(function: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object) -> object:
            if left[0] == 0:
                left[0] = -1
                raise PowerCutError
            left[0] -= 1
            return function(*args)

        return counted

    monkeypatch.setattr(slots_module, "_sync", step(slots_module._sync))
    for name in ("stage", "attempt", "commit"):
        monkeypatch.setattr(slots_module.Slots, name, step(getattr(slots_module.Slots, name)))
    old = world.device.running.hash
    try:
        world.device.service.step()
        cut = False
    except PowerCutError:
        cut = True
    world.device.restart()
    assert world.device.running.hash in ((old,) if cut else (released,))
    if cut:
        assert world.device.service.step() is True
        assert world.device.running.hash == released


def test_a_trial_that_the_device_never_survives_ends(world: World) -> None:
    bad = world.release(2)
    for _ in range(MAX_ATTEMPTS):
        world.device.swap_error = PowerCutError()
        with pytest.raises(PowerCutError):
            world.device.service.step()
        world.device.restart()
    assert world.device.service.step() is False
    assert world.device.slots.refused() == {bad}


def test_the_repository_refuses_what_it_should_not_sign(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "tuf", tmp_path / "keys")
    bundle = make_bundle(tmp_path / "bundle", 5)
    with pytest.raises(ReleaseError, match="keys init"):
        repository.release(bundle)
    repository.init()
    with pytest.raises(ReleaseError, match="holds keys already"):
        repository.init()
    with pytest.raises(ReleaseError, match="is not a bundle"):
        repository.release(tmp_path)
    repository.release(bundle)
    with pytest.raises(ReleaseError, match="5 is out"):
        repository.release(bundle)
    changed = make_bundle(tmp_path / "changed", 6)
    (changed / "vision.onnx").write_bytes(b"other")
    with pytest.raises(ReleaseError, match="changed after"):
        repository.release(changed)
    newest = repository.newest(FAMILY)
    assert newest is not None
    assert newest.counter == 5
    assert model_of(repository.checkout(newest, tmp_path / "out")).hash == newest.bundle
    (tmp_path / "keys" / "models-1.pem").unlink()
    with pytest.raises(ReleaseError, match="2 keys models"):
        repository.release(make_bundle(tmp_path / "late", 7))


def test_timestamp_is_renewed_at_half_its_life_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(tmp_path / "tuf", tmp_path / "keys")
    repository.init()
    assert repository.renew() is False
    later = dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=8)
    monkeypatch.setattr(release, "_now", lambda: later)
    assert repository.renew() is True

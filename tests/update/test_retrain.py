"""Verdicts become a labelled set; the training is a process whose failures are told, and nothing is released then."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_sync import dataset
from cloud_sync.errors import ReleaseError
from cloud_sync.release import Repository
from cloud_sync.retrain import retrain
from cloud_sync.store import Store, open_store
from cloud_sync.store.tables import Alert, EvidenceFile, Verdict
from tests.update.site import make_bundle


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/cloud.db")
    store.migrate()
    yield store
    store.close()


def add_alert(store: Store, number: int, *, origin: str = "model", clip: bool = True) -> str:
    event_id = f"01890a5d-ac96-774b-bcce-{number:012d}"
    with store.write() as session:
        session.add(
            Alert(
                id=event_id, change=number, site="home", device="porch", scene="yard", label="fire", phase="end",
                revision=3, started_ns=number, started_monotonic_ns=1000 + number, ended_ns=None, wall_quality="ntp",
                score=0.9, peak=0.9, threshold=0.5, origin=origin, calibrating=True, bundle="0" * 64,
                body={}, best={}, heat=None,
            )
        )  # fmt: skip
        if clip:
            session.add(
                EvidenceFile(
                    event_id=event_id, role="clip", sha256="a" * 64, device="porch", size=1,
                    media_type="video/mp4", start_ns=900, end_ns=2000, stored=True,
                )
            )  # fmt: skip
    return event_id


def judge(store: Store, event_id: str, user: str, verdict: str) -> None:
    with store.write() as session:
        session.add(Verdict(event_id=event_id, user=user, verdict=verdict, bundle="0" * 64, given_ns=1))


def rows_of(store: Store) -> list[dataset.Labelled]:
    with store.read() as session:
        return dataset.labelled(session, lambda sha256: Path("/blobs") / sha256)


def test_the_newest_verdict_of_each_person_counts_and_the_majority_decides(store: Store) -> None:
    event = add_alert(store, 1)
    for user, verdict in [("ann", "real"), ("ann", "false"), ("bob", "false"), ("eve", "real")]:
        judge(store, event, user, verdict)
    (row,) = rows_of(store)
    assert row.verdict == "false"
    assert row.clip == "/blobs/" + "a" * 64
    assert (row.start_ns, row.started_ns, row.end_ns) == (900, 1001, 2000)


def test_a_tie_is_unsure_and_rules_and_unjudged_events_are_left_out(store: Store) -> None:
    tied = add_alert(store, 1)
    judge(store, tied, "ann", "real")
    judge(store, tied, "bob", "false")
    judge(store, add_alert(store, 2, origin="rule"), "ann", "false")
    add_alert(store, 3)
    assert [(row.event_id, row.verdict) for row in rows_of(store)] == [(tied, "unsure")]


def test_one_person_cannot_outweigh_the_cap(store: Store) -> None:
    for number in range(1, 101):
        judge(store, add_alert(store, number, clip=False), "ann", "false")
    assert sum(row.weight for row in rows_of(store)) == pytest.approx(dataset.USER_CAP)


def interpreter(folder: Path, body: str) -> str:
    """A program in the place of python: what the training says and leaves is the test's to choose."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nfor out; do :; done\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "tuf", tmp_path / "keys")
    repository.init()
    return repository


def test_a_training_starts_from_the_release_in_force_and_yields_a_bundle(
    store: Store, repository: Repository, tmp_path: Path
) -> None:
    repository.release(make_bundle(tmp_path / "first", 4))
    made = make_bundle(tmp_path / "made", 5)
    judge(store, add_alert(store, 1), "ann", "false")
    said: list[str] = []
    python = interpreter(tmp_path, f'echo "step 1 of 1: $*"; cp -r {made} "$out"')
    bundle = retrain(store, Path, repository, tmp_path / "work", python=python, say=said.append)
    assert repository.release(bundle).counter == 5
    (run,) = (tmp_path / "work").iterdir()
    assert f"--start {run}/start" in said[-1]
    assert json.loads((run / "verdicts.jsonl").read_text())["verdict"] == "false"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo 'too few verdicts: 1 of 8'; exit 3", "too few verdicts: 1 of 8"),
        ("echo 'No module named torch'; exit 1", r"tectum\[train\]"),
        ("exit 0", "left no bundle"),
    ],
)
def test_a_training_that_fails_is_told_with_its_last_words(
    store: Store, repository: Repository, tmp_path: Path, body: str, says: str
) -> None:
    judge(store, add_alert(store, 1), "ann", "real")
    with pytest.raises(ReleaseError, match=says):
        retrain(store, Path, repository, tmp_path / "work", python=interpreter(tmp_path, body), say=lambda line: None)


def test_without_verdicts_nothing_starts(store: Store, repository: Repository, tmp_path: Path) -> None:
    judge(store, add_alert(store, 1), "ann", "unsure")
    with pytest.raises(ReleaseError, match="nobody has judged"):
        retrain(store, Path, repository, tmp_path / "work", python="/nowhere")


def test_a_missing_interpreter_is_named(store: Store, repository: Repository, tmp_path: Path) -> None:
    judge(store, add_alert(store, 1), "ann", "real")
    with pytest.raises(ReleaseError, match="/nowhere cannot be started"):
        retrain(store, Path, repository, tmp_path / "work", python="/nowhere", say=lambda line: None)

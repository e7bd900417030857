"""What the outbox accepted becomes exactly one row, whoever is killed, and whenever.

Real Mosquitto with dynamic security, real `cloud-sync ingest` and `serve`, a real outbox with publisher and uploader;
`kill -9` of each at random moments (TECTUM_KILLS of them, 8 by default). Judged by the producer's ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from cloud_sync.store.tables import Alert, DeadLetter, EvidenceFile, Loss, Received, Stream
from edge_agent.contract.event import Event, Message
from tests.parts.installation import Installation, Program, installation, wait_for

KILLS = int(os.environ.get("TECTUM_KILLS", "8"))
SEED = int(os.environ.get("TECTUM_SEED", "5"))

pytestmark = [
    pytest.mark.system,
    pytest.mark.needs("mosquitto"),
    pytest.mark.timeout(120 + 15 * KILLS),
]

#: The ingest as it is, but it says every now and then how many duplicates it dropped: a killed one tells no more.
INGEST = """
import sys, cloud_sync.ingest
from cloud_sync.__main__ import main
cloud_sync.ingest.TELL_S = 0.2
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Ledger:
    """What the producer wrote."""

    path: Path

    def entries(self) -> list[dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


@pytest.fixture(params=["forgets everything", "default persistence"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """An installation whose broker loses all it knows on kill -9, or all since it last wrote (every half hour)."""
    lines: tuple[str, ...] = ()
    if request.param == "default persistence":
        lines = ("persistence true", f"persistence_location {tmp_path}/broker/")
    with installation(tmp_path, lines) as running:
        running.ingest.kill()
        running.ingest.command[1:3] = ["-c", INGEST]
        running.ingest.start()
        yield running


def test_every_accepted_row_arrives_exactly_once(site: Installation) -> None:
    identity = site.folder / "porch.identity.yaml"
    site.cloud_sync("enrol", "porch", "--site", "home", "--out", str(identity))
    device = site.folder / "porch"
    producer = Program(
        "producer",
        [sys.executable, "-m", "tests.parts.producer", str(device), str(identity)],
        device.with_suffix(".log"),
    )
    site.agents["porch"] = producer
    ledger = Ledger(device / "ledger.jsonl")
    producer.start()
    killed = kill_at_random(site, producer, ledger, random.Random(SEED))
    grow(ledger, 1000)  # it may have been killed last, and must have come back before it can be told to stop
    assert producer.stop() == 0, producer.words()
    drain = Program("drain", [*producer.command, "--drain"], site.folder / "drain.log")
    site.agents["porch"] = drain
    drain.start()
    wait_for("the outbox to run empty", lambda: not drain.running, within_s=90)
    assert drain.process is not None
    assert drain.process.returncode == 0, drain.words()
    report(site, ledger, killed)
    check_rows(site, ledger)
    check_alerts(site)
    check_files(site, ledger)


def kill_at_random(site: Installation, producer: Program, ledger: Ledger, chance: random.Random) -> Counter[str]:
    """Kill and start again, each part at least once: after the ledger has grown by some bytes, or the database by
    some rows, so that the cloud is hit while it is at work and not only while it starts."""
    parts = ["producer", "broker", "ingest", "serve"]
    victims = parts + chance.choices(parts, weights=[4, 3, 3, 1], k=max(0, KILLS - len(parts)))
    chance.shuffle(victims)
    for victim in victims:
        if chance.random() < 0.5:
            grow(ledger, chance.randint(200, 12_000))
        else:
            goal = site.count(Received) + chance.randint(1, 60)
            wait_for("rows in the cloud", lambda goal=goal: site.count(Received) >= goal, every_s=0.02)
        if victim == "broker":
            site.broker.restart(kill=True)
        else:
            program = {"producer": producer, "ingest": site.ingest, "serve": site.serve}[victim]
            program.kill()
            program.start()
    return Counter(victims)


def grow(ledger: Ledger, count: int) -> None:
    """Wait until the ledger has so many bytes more."""
    goal = ledger.size() + count
    wait_for("the producer", lambda: ledger.size() >= goal, every_s=0.002)


def check_rows(site: Installation, ledger: Ledger) -> None:
    accepted = {tuple(entry["ok"]) for entry in ledger.entries() if "ok" in entry}
    tried = max(entry["try"] for entry in ledger.entries() if "try" in entry)
    assert len({(stream, seq) for stream, seq, *_ in accepted}) == len(accepted) > 0
    messages = [
        msgspec.json.decode(body, type=Message)
        for body in site.ask(lambda session: session.execute(sa.select(Received.body)).scalars().all())
    ]
    events = [(m, m.body) for m in messages if isinstance(m.body, Event)]
    rows = Counter((m.stream, m.seq, m.id, e.onset_step, e.phase) for m, e in events)
    assert accepted - set(rows) == set(), "accepted, but not in the database"
    assert max(rows.values()) == 1
    # The same phase of the same event under another seq would be a row twice as well.
    assert max(Counter((e.onset_step, e.phase) for _, e in events).values()) == 1
    # What is there and not in the ledger: put, and killed before the ledger had it; or closed by the outbox itself.
    assert all(phase == "aborted" or onset <= tried for *_, onset, phase in set(rows) - accepted)
    for stream in site.ask(lambda session: session.execute(sa.select(Stream.upto, Stream.holes)).all()):
        assert stream.holes == []
    assert site.count(Loss) == site.count(DeadLetter) == 0


def check_alerts(site: Installation) -> None:
    """Every event is closed, and is one alert."""
    phases = site.ask(lambda session: session.execute(sa.select(Alert.phase)).scalars().all())
    assert set(phases) <= {"end", "aborted"}
    ids = site.ask(
        lambda session: session.execute(
            sa.select(sa.func.count(sa.distinct(Received.event_id))).where(Received.kind == "event")
        ).scalar_one()
    )
    assert len(phases) == ids


def check_files(site: Installation, ledger: Ledger) -> None:
    attached = {entry["file"] for entry in ledger.entries() if "file" in entry}
    files = site.ask(lambda session: session.execute(sa.select(EvidenceFile.sha256, EvidenceFile.stored)).all())
    assert attached <= {file.sha256 for file in files}
    assert all(file.stored for file in files)
    for file in files:
        found = list((site.folder / "cloud").rglob(file.sha256))
        assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in found] == [file.sha256]


def report(site: Installation, ledger: Ledger, killed: Counter[str]) -> None:
    """What the campaign was: shown with `pytest -s`, and by a test that fails."""
    entries = ledger.entries()
    sent: dict[int, int] = {}
    for entry in entries:
        if "sent" in entry:
            pid, count = entry["sent"]
            sent[pid] = max(count, sent.get(pid, 0))
    dropped = 0
    told = 0
    for number in re.findall(r"so far: (?:.*, )?(\d+) duplicates", site.ingest.words()):
        dropped += max(0, int(number) - told) if int(number) >= told else int(number)
        told = int(number)
    rows = site.count(Received)
    print(
        f"\nkilled {dict(killed)}: {sum('ok' in entry for entry in entries)} rows in the ledger, {rows} in the "
        f"database, each once; {sum(sent.values())} sent, {dropped} duplicates dropped by the ingest, as far as it "
        f"lived to tell; {sum('file' in entry for entry in entries)} files"
    )

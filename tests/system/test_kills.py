"""The whole installation under `kill -9`, of every process and at every bad moment: nothing lost, nothing twice.

A real agent on a busy simulated site, a real Mosquitto with dynamic security, real `ingest` and `serve`. Killed are
the agent while a file is on its way, right after an update was staged and during its trial; `serve` while it takes a
file; `ingest` with rows in hand that it cannot commit, and while it commits; a broker that forgets; then everybody at
random (TECTUM_KILLS moments, 6 by default; TECTUM_SEED chooses them). Random moments are counted in words of the
agent's log, not in seconds: a slow machine has the same campaign.

The ledger is kept outside: what the agent's log says was accepted, and its outbox as it lay on the disk at each kill.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
import yaml

from cloud_sync.release import FAMILY
from cloud_sync.store.tables import Alert, Blob, DeadLetter, Device, Effect, EvidenceFile, Loss, Received, Stream
from edge_agent.contract.event import Event, Message
from edge_agent.contract.manifest import bundle_hash
from edge_agent.engine import open_bundle
from tests.parts.bundle import tiny_bundle
from tests.parts.installation import Installation, Program, installation, wait_for

KILLS = int(os.environ.get("TECTUM_KILLS", "6"))
SEED = int(os.environ.get("TECTUM_SEED", "5"))
RELEASE_EVERY = 8  #: random kills
SOON = 0.001  #: seconds between two looks at a moment that is over in no time

pytestmark = [
    pytest.mark.system,
    pytest.mark.needs("mosquitto"),
    pytest.mark.timeout(400 + 20 * KILLS),
]

#: The ingest as it is, but it says every now and then how many duplicates it dropped: a killed one tells no more.
INGEST = """
import sys, cloud_sync.ingest
from cloud_sync.__main__ import main
cloud_sync.ingest.TELL_S = 0.2
sys.exit(main(sys.argv[1:]))
"""

#: Something every four seconds, a second and a half long, for an hour.
LABELS = (("explosion", ["vision", "audio"]), ("fire", ["vision", "sensors"]), ("gunshot", ["audio"]))
EPISODES = [
    {"label": label, "modalities": modalities, "start_s": 2.0 + 4 * index, "end_s": 3.5 + 4 * index}
    for index in range(900)
    for label, modalities in (LABELS[index % len(LABELS)],)
]


def site_of(episodes: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Configuration of an agent: three scenes on one simulated site."""
    everywhere = [[0, 0], [1, 0], [1, 1], [0, 1]]
    rules = [{"name": "all", "polygon": everywhere, "min_area": 0.002, "on_steps": 1, "off_steps": 1}]
    own = {"threshold": threshold, "cooldown_s": 0}
    smoke = {"source": "sim", "channel": "smoke", "quantity": "smoke"}
    options = {"seed": 3, "episodes": episodes, "fps": 8}
    return {
        "sources": [{"name": "sim", "driver": "synthetic", "options": options}],
        "scenes": [
            {"name": "yard", "camera": "sim", "microphone": "sim", "sensors": [smoke], **own}
            | ({"rules": rules} if episodes else {}),
            {"name": "hall", "microphone": "sim", **own},
            {"name": "gate", "camera": "sim", **own},
        ],
        "evidence": {"pre_s": 1, "post_s": 1, "max_clip_s": 4},
        "outbox": {"reserve_mb": 1},
        "health": {"port": 0, "heartbeat_s": 1},
        "update": {"poll_s": 1},
        "log": {"format": "json", "level": "debug"},
    }


@dataclass
class Ledger:
    """What the agent accepted, by its own words and by the file it left at each kill."""

    folder: Path
    highest: dict[str, int] = field(default_factory=dict)  #: stream → newest seq
    waiting: dict[tuple[str, int], str] = field(default_factory=dict)  #: (stream, seq) → SHA-256 of the row
    words: int = 0  #: of the log that were read
    said: set[tuple[str, int]] = field(default_factory=set)

    def read(self, agent: Program) -> None:
        """The rest of the log; each line was written after its row was on the disk."""
        text = agent.words()
        found = re.findall(r"accepted ([0-9a-f]{32})/(\d+): \w+ \S{36}", text[self.words :])
        self.said |= {(stream, int(seq)) for stream, seq in found}
        self.words = text.rindex("\n") + 1 if "\n" in text else 0

    def look(self, agent: Program) -> tuple[str, set[int]]:
        """The outbox of the dead agent: its stream, and the rows that no longer wait."""
        self.read(agent)
        with opened_copy(self.folder / "porch" / "outbox.db", self.folder / "copy") as box:
            assert box.execute("PRAGMA quick_check").fetchone() == ("ok",)
            stream, highest = box.execute("SELECT stream, seq FROM state").fetchone()
            rows = box.execute("SELECT seq, payload FROM row").fetchall()
            assert box.execute("SELECT count(*) FROM quarantine").fetchone() == (0,)
        assert highest >= self.highest.get(stream, 0)
        assert all(seq <= highest for said, seq in self.said if said == stream), "accepted, and gone after kill -9"
        self.highest[stream] = highest
        self.waiting |= {(stream, seq): sha256(payload).hexdigest() for seq, payload in rows}
        return stream, set(range(1, highest + 1)) - {seq for seq, _ in rows}


@contextmanager
def opened_copy(file: Path, folder: Path) -> Iterator[sqlite3.Connection]:
    """A database of a dead process, as the next one will find it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in (file, file.with_name(file.name + "-wal")):
        if part.exists():
            shutil.copyfile(part, folder / part.name)
    with closing(sqlite3.connect(folder / file.name)) as database:
        yield database


class Campaign:
    """The installation, its agent, and everything that is done to them."""

    def __init__(self, site: Installation) -> None:
        self.site = site
        self.agent = site.agent("porch", site_of(EPISODES, 0.2))
        self.ledger = Ledger(site.folder)
        self.killed: Counter[str] = Counter()
        self.released: list[str] = []

    # --- kills ---

    def kill_agent(self, why: str = "agent") -> None:
        """Kill it and look at what it left; it is not started again."""
        self.agent.kill()
        self.killed[why] += 1
        stream, gone = self.ledger.look(self.agent)
        query = sa.select(Received.seq).where(Received.stream == stream)
        held = self.site.ask(lambda session: set(session.execute(query).scalars()))
        assert gone <= held, "the outbox let go of rows that the cloud does not have"
        self.check_slots()

    def kill_program(self, program: Program, why: str) -> None:
        program.kill()
        self.killed[why] += 1

    def kill_broker(self, why: str = "broker", *, forget: bool) -> None:
        """`forget`: it loses what it wrote to its disk, too."""
        self.site.broker.kill()
        self.killed[why] += 1
        if forget:
            self.site.broker.forget()
        self.site.broker.start()

    def grow(self, count: int) -> None:
        """Wait until the agent has said so many bytes more."""
        goal = self.agent.log.stat().st_size + count
        wait_for("words of the agent", lambda: self.agent.log.stat().st_size >= goal, 90, every_s=0.005)

    def accept(self, count: int) -> None:
        """Wait until the agent has accepted so many messages more."""
        self.ledger.read(self.agent)
        goal = len(self.ledger.said) + count

        def accepted() -> bool:
            self.ledger.read(self.agent)
            return len(self.ledger.said) >= goal

        wait_for(f"{count} more messages", accepted, 90)

    # --- updates ---

    def release(self) -> str:
        """Sign another bundle; its hash."""
        number = len(self.released) + 2  # the shipped one counts as 1
        folder = tiny_bundle(self.site.folder / "bundles", seed=number, counter=number, family=FAMILY)
        self.site.cloud_sync("release", str(folder))
        self.released.append(bundle_hash((folder / "manifest.json").read_bytes()))
        return self.released[-1]

    @property
    def slots(self) -> Path:
        return self.site.folder / "porch" / "slots"

    def slot(self) -> tuple[str, str, int]:
        """(running, candidate, attempts) as they are on the disk."""
        with closing(sqlite3.connect(f"file:{self.slots / 'slots.db'}?mode=ro", uri=True)) as slots:
            row: tuple[str, str, int] = slots.execute("SELECT running, candidate, attempts FROM slot").fetchone()
        return row

    def check_slots(self) -> None:
        """What would boot now is a release, whole to the last byte; or none was committed yet."""
        if not (self.slots / "slots.db").exists():
            return
        with opened_copy(self.slots / "slots.db", self.site.folder / "copy") as slots:
            running, _ = slots.execute("SELECT running, candidate FROM slot").fetchone()
            reasons = [reason for _, reason in slots.execute("SELECT bundle, reason FROM refused")]
        assert all("trials ended" in reason for reason in reasons), reasons
        if running:
            assert running in self.released
            assert open_bundle(self.slots / running).hash == running

    def runs(self) -> str:
        """The bundle that the device says it runs."""
        state = self.site.ask(lambda session: session.execute(sa.select(Device.state)).scalar())
        return str((state or {}).get("bundle", ""))

    def settled(self, bundle: str) -> bool:
        """The device says that it runs it, and its trial is over: the next boot takes it."""
        return self.runs() == bundle and self.slot()[0] == bundle


# --- the bad moments -----------------------------------------------------------------------------------------------


def cut_an_update(campaign: Campaign) -> None:
    """The agent right after a bundle was staged, then in the trial of it."""
    agent, old = campaign.agent, campaign.slot()[0]
    new = campaign.release()
    wait_for("the staged slot", (campaign.slots / new).is_dir, 60, SOON)
    campaign.kill_agent("agent, staged")
    assert campaign.slot()[0] == old
    agent.start()
    wait_for("the trial", lambda: campaign.slot()[2] > 0 or campaign.slot()[0] == new, 60, SOON)
    campaign.kill_agent("agent, in a trial")
    assert campaign.slot()[0] in {old, new}
    agent.start()
    wait_for("the new bundle", lambda: campaign.settled(new), 60)


def cut_an_upload(campaign: Campaign) -> None:
    """The agent while a part of a file is at the cloud, then `serve` while it holds one. The files must be whole."""
    incoming = campaign.site.folder / "cloud" / "data" / "blobs" / "incoming"
    serve = campaign.site.serve
    assert incoming.is_dir()
    for victim in ("agent", "serve"):
        part = paused_in_upload(serve, incoming)
        if victim == "agent":
            campaign.kill_agent("agent, uploading")
            campaign.agent.start()
            signal_to(serve, signal.SIGCONT)
        else:
            campaign.kill_program(serve, "serve, taking a file")
            assert part.exists()
            serve.start()
            campaign.site.wait_until_serving()
        query = sa.select(sa.func.count()).select_from(Blob).where(Blob.sha256 == part.name)
        wait_for("the whole file", lambda query=query: campaign.site.ask(lambda s: s.execute(query).scalar()), 60)


def paused_in_upload(serve: Program, incoming: Path) -> Path:
    """Stop `serve` while it holds a part of a file; the part."""

    def caught() -> Path | None:
        if not any(incoming.glob("*/*")):
            return None
        signal_to(serve, signal.SIGSTOP)
        part = next(incoming.glob("*/*"), None)
        if part is None:  # it was whole before the signal came
            signal_to(serve, signal.SIGCONT)
        return part

    return wait_for("a file on its way", caught, 60, SOON)


def signal_to(program: Program, number: signal.Signals) -> None:
    assert program.process is not None
    program.process.send_signal(number)


def cut_the_commit(campaign: Campaign) -> None:
    """`ingest` with rows in hand that it cannot commit, then twice as soon as it writes."""
    ingest, file = campaign.site.ingest, campaign.site.folder / "cloud" / "data" / "cloud.db"
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        campaign.accept(8)
        campaign.kill_program(ingest, "ingest, rows in hand")
        busy.execute("ROLLBACK")
    for _ in range(2):
        ingest.start()
        before = campaign.site.count(Received)
        wait_for("ingest at work", lambda before=before: campaign.site.count(Received) > before, 60)
        log = file.with_name(file.name + "-wal")
        written = log.stat().st_mtime_ns
        wait_for("a write", lambda log=log, written=written: log.stat().st_mtime_ns != written, 60, SOON)
        campaign.kill_program(ingest, "ingest, writing")
    ingest.start()


def kill_at_random(campaign: Campaign, chance: random.Random) -> None:
    """Everybody, at moments that nobody chose; the agent's start is among them. Now and then there is a release."""
    site = campaign.site
    for number in range(KILLS):
        campaign.grow(chance.choice((chance.randint(1, 1500), chance.randint(1500, 20_000))))
        victim = chance.choices(("agent", "broker", "ingest", "serve"), (4, 3, 3, 2))[0]
        if victim == "agent":
            campaign.kill_agent()
            campaign.agent.start()
        elif victim == "broker":
            campaign.kill_broker(forget=chance.random() < 0.5)
        else:
            program = {"ingest": site.ingest, "serve": site.serve}[victim]
            campaign.kill_program(program, victim)
            program.start()
        if number % RELEASE_EVERY == RELEASE_EVERY - 1:
            campaign.release()


def drain(campaign: Campaign) -> None:
    """Stop the busy agent in order, and let one on a quiet site deliver what is left."""
    agent, site = campaign.agent, campaign.site
    campaign.accept(1)  # it may have been killed last, and must be up before it can be told to stop
    assert agent.stop() == 0, site.told()
    campaign.ledger.look(agent)
    path = site.folder / "porch.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | site_of([], 1.0)))
    agent.start()
    box = site.folder / "porch" / "outbox.db"

    def empty() -> bool:
        with closing(sqlite3.connect(f"file:{box}?mode=ro", uri=True)) as rows:
            left = rows.execute("SELECT (SELECT count(*) FROM row) + (SELECT count(*) FROM upload)").fetchone()
        return bool(left == (0,))

    wait_for("the newest bundle", lambda: campaign.settled(campaign.released[-1]) or refused(campaign), 60)
    wait_for("outbox and uploads to run empty", empty, 120)
    assert agent.stop() == 0, site.told()
    campaign.ledger.look(agent)


def refused(campaign: Campaign) -> bool:
    """Whether three kills hit the trials of the newest bundle: then it is never tried again."""
    with closing(sqlite3.connect(f"file:{campaign.slots / 'slots.db'}?mode=ro", uri=True)) as slots:
        return campaign.released[-1] in {row[0] for row in slots.execute("SELECT bundle FROM refused")}


# --- the judgement -------------------------------------------------------------------------------------------------


def check_rows(site: Installation, ledger: Ledger) -> None:
    """Each accepted row is there once, as it was accepted; the streams have no gaps."""
    query = sa.select(Received.stream, Received.seq, Received.body_hash)
    rows = site.ask(lambda session: session.execute(query).all())
    held = {(row.stream, row.seq): row.body_hash for row in rows}
    assert len(held) == len(rows)
    assert ledger.said - set(held) == set(), "accepted, but not in the database"
    assert set(held) == {(stream, seq) for stream, last in ledger.highest.items() for seq in range(1, last + 1)}
    assert {key: held[key] for key in ledger.waiting} == ledger.waiting, "other bytes came than were accepted"
    for upto, holes in site.ask(lambda session: session.execute(sa.select(Stream.upto, Stream.holes)).all()):
        assert (upto, holes) == (max(ledger.highest.values()), [])
    assert site.count(Loss) == site.count(DeadLetter) == 0


def check_lives(site: Installation) -> None:
    """Every event begins once, goes on in order, ends once, and is one alert that was told of once."""
    bodies = sa.select(Received.body).where(Received.kind == "event").order_by(Received.stream, Received.seq)
    lives: dict[str, list[Event]] = defaultdict(list)
    for body in site.ask(lambda session: session.execute(bodies).scalars().all()):
        message = msgspec.json.decode(body, type=Message)
        assert isinstance(message.body, Event)
        lives[message.id].append(message.body)
    for life in lives.values():
        assert [event.revision for event in life] == list(range(1, len(life) + 1))
        first, *middle, last = (event.phase for event in life)
        assert first == "new"
        assert set(middle) <= {"update"}
        assert last in {"end", "aborted"}
    onsets = Counter((life[0].scene, life[0].label, life[0].onset_step) for life in lives.values())
    assert max(onsets.values()) == 1, "one event under two ids"
    alerts = site.ask(lambda session: session.execute(sa.select(Alert.id, Alert.phase, Alert.revision)).all())
    assert {row.id: (row.phase, row.revision) for row in alerts} == {
        id: (life[-1].phase, life[-1].revision) for id, life in lives.items()
    }
    effects = site.ask(lambda session: session.execute(sa.select(Effect.event_id)).scalars().all())
    assert sorted(effects) == sorted(lives)


def check_files(site: Installation) -> None:
    """Every file that was promised is in the cloud, whole, under its hash; no part is left."""
    files = site.ask(lambda session: session.execute(sa.select(EvidenceFile)).scalars().all())
    assert files
    assert [file.sha256 for file in files if not file.stored] == []
    blobs = site.folder / "cloud" / "data" / "blobs"
    for name in {file.sha256 for file in files}:
        path = blobs / name[:2] / name[2:4] / name
        assert sha256(path.read_bytes()).hexdigest() == name
    assert list((blobs / "incoming").glob("*/*")) == []


def report(campaign: Campaign) -> None:
    """What the campaign was: shown with `pytest -s`, and by a test that fails."""
    site, ledger = campaign.site, campaign.ledger
    dropped = told = 0
    for number in map(int, re.findall(r"so far: (?:.*, )?(\d+) duplicates", site.ingest.words())):
        dropped += number - told if number >= told else number
        told = number
    accepted, rows = sum(ledger.highest.values()), site.count(Received)
    print(
        f"\n{sum(campaign.killed.values())} kills {dict(campaign.killed)}, {len(campaign.released)} releases: "
        f"{accepted} rows accepted, {len(ledger.said)} of them said to be, {rows} in the database, "
        f"{accepted - rows} lost; {dropped} duplicates dropped, as far as the ingest lived to tell; "
        f"{site.count(Alert)} alerts, {site.count(EvidenceFile)} files"
    )


def test_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    disk = ("persistence true", f"persistence_location {tmp_path}/broker/", "autosave_interval 1")
    with installation(tmp_path, disk) as site:
        site.ingest.kill()
        site.ingest.command[1:3] = ["-c", INGEST]
        site.ingest.start()
        campaign = Campaign(site)
        first = campaign.release()
        campaign.agent.start()
        wait_for("the first release", lambda: campaign.settled(first), 60)
        cut_an_update(campaign)
        campaign.kill_broker("broker, forgets", forget=True)
        cut_an_upload(campaign)
        cut_the_commit(campaign)
        kill_at_random(campaign, random.Random(SEED))
        drain(campaign)
        report(campaign)
        check_rows(site, campaign.ledger)
        check_lives(site)
        check_files(site)
        campaign.check_slots()
        assert campaign.slot()[0] == campaign.released[-1] or refused(campaign)

"""What people ask of the store, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from cloud_sync import fleet, review
from cloud_sync.accounts import SYSTEM, Viewer
from cloud_sync.config import IngestConfig
from cloud_sync.errors import AccessRefused, CloudError, NotFound
from cloud_sync.ingest import Intake, read
from cloud_sync.review import Filters
from cloud_sync.store import Store, audit
from cloud_sync.store.tables import Device, EvidenceFile, Verdict
from edge_agent.contract.event import Event, Gap
from tests.parts.cloud import WALL_NS, add_devices, delivery, event, event_id, evidence, message

ANN = Viewer("ann", "operator")
NORTH = Viewer("norah", "operator", frozenset({"north"}))
NOBODY = Viewer("noone", "admin", frozenset())
SHA = "ab" * 32


def tell(store: Store, seq: int, body: Event, of: int, *, device: str = "cam", site: str = "home") -> None:
    pieces = read(delivery(message(seq, body, device=device, of=of), device=device, site=site))
    Intake(store, IngestConfig()).take(pieces)


@pytest.fixture
def store(any_store: Store) -> Store:
    """Alerts 1 to 5 of home, 6 of north; each a second later than the one before."""
    add_devices(any_store, "cam")
    add_devices(any_store, "far", site="north")
    for number in range(1, 6):
        label, scene = ("fire", "yard") if number % 2 else ("fight", "hall")
        phase = "end" if number == 3 else "new"
        tell(any_store, number, event(phase, label=label, scene=scene, score=0.5 + number / 20), number)
    tell(any_store, 6, event(), 6, device="far", site="north")
    return any_store


def ids(store: Store, viewer: Viewer = ANN, **how: object) -> list[int]:
    with store.read() as session:
        return [int(row.id[-2:], 16) for row in review.alerts(session, viewer, **how)]  # type: ignore[arg-type]


def judge(store: Store, viewer: Viewer, number: int, verdict: str, note: str = "", *, now_ns: int = 1) -> None:
    with store.write() as session:
        review.give_verdict(session, viewer, event_id(number), verdict, now_ns=now_ns, note=note)  # type: ignore[arg-type]


class TestList:
    def test_the_newest_comes_first(self, store: Store) -> None:
        assert ids(store) == [6, 5, 4, 3, 2, 1]

    def test_pages_follow_each_other(self, store: Store) -> None:
        with store.read() as session:
            first = review.alerts(session, ANN, limit=4)
            second = review.alerts(session, ANN, limit=4, before=first[-1].cursor)
        assert [row.id for row in first + second] == [event_id(number) for number in (6, 5, 4, 3, 2, 1)]

    @pytest.mark.parametrize("cursor", ["", "x", "1", ".x", "-1.x", "9" * 30 + ".x", "1.5", "٣.x"])
    def test_a_cursor_of_somebody_else_is_refused(self, store: Store, cursor: str) -> None:
        if cursor == "1.5":
            assert ids(store, before=cursor) == []
            return
        with pytest.raises(CloudError, match="cursor"):
            ids(store, before=cursor)

    def test_what_happens_can_be_followed(self, store: Store) -> None:
        with store.read() as session:
            change = review.latest_change(session)
        assert ids(store, after_change=change) == []
        tell(store, 7, event("update", 2), 2)
        judge(store, ANN, 1, "real")
        assert ids(store, after_change=change) == [2, 1]

    @pytest.mark.parametrize(
        ("filters", "found"),
        [
            (Filters(site="north"), [6]),
            (Filters(device="cam"), [5, 4, 3, 2, 1]),
            (Filters(scene="hall"), [4, 2]),
            (Filters(label="fire"), [6, 5, 3, 1]),
            (Filters(open=True), [6, 5, 4, 2, 1]),
            (Filters(open=False), [3]),
            (Filters(since_ns=WALL_NS + 5 * 10**9), [6, 5]),
            (Filters(until_ns=WALL_NS + 3 * 10**9), [2, 1]),
            (Filters(since_ns=-(10**30), until_ns=10**30), [6, 5, 4, 3, 2, 1]),
            (Filters(verdict="false"), [2]),
            (Filters(verdict="none"), [6, 5, 4, 3]),
            (Filters(scene="hall", verdict="none"), [4]),
            (Filters(label="'; DROP TABLE alert; --"), []),
        ],
    )
    def test_it_can_be_narrowed(self, store: Store, filters: Filters, found: list[int]) -> None:
        judge(store, ANN, 1, "real")
        judge(store, ANN, 2, "real")
        judge(store, ANN, 2, "false")
        assert ids(store, filters=filters) == found

    @pytest.mark.parametrize(("limit", "count"), [(0, 1), (-5, 1), (3, 3), (10**9, 6)])
    def test_it_has_a_limit(self, store: Store, limit: int, count: int) -> None:
        assert len(ids(store, limit=limit)) == count

    def test_facets_are_what_there_is(self, store: Store) -> None:
        with store.read() as session:
            assert review.facets(session, ANN) == review.Facets(
                ("home", "north"), ("cam", "far"), ("hall", "yard"), ("fight", "fire")
            )
            assert review.facets(session, NORTH).devices == ("far",)


class TestScope:
    def test_other_sites_do_not_exist(self, store: Store) -> None:
        assert ids(store, NORTH) == [6]
        assert ids(store, NOBODY) == []
        assert len(ids(store, SYSTEM)) == 6
        with store.read() as session:
            assert review.alert(session, NORTH, event_id(6)).row.site == "north"
            with pytest.raises(NotFound):
                review.alert(session, NORTH, event_id(1))
            assert [device.name for device in fleet.devices(session, NORTH, 0)] == ["far"]
            assert fleet.devices(session, NOBODY, 0) == []

    def test_nor_do_their_files_and_verdicts(self, store: Store) -> None:
        tell(store, 10, evidence(SHA, 5), 1)  # type: ignore[arg-type]
        with store.write() as session:
            session.execute(sa.update(EvidenceFile).values(stored=True))
        with store.read() as session:
            assert review.evidence(session, ANN, event_id(1), "clip").sha256 == SHA
            with pytest.raises(NotFound):
                review.evidence(session, NORTH, event_id(1), "clip")
        with pytest.raises(NotFound):
            judge(store, NORTH, 1, "real")


class TestDetail:
    def test_it_holds_everything(self, store: Store) -> None:
        tell(store, 10, event("update", 2, score=0.9, step=101, heat=True, trace=((99, 0.4), (101, 0.9))), 1)
        tell(store, 11, evidence(SHA, 5), 1)  # type: ignore[arg-type]
        judge(store, ANN, 1, "real", "a fire")
        with store.read() as session:
            detail = review.alert(session, ANN, event_id(1))
        assert (detail.step_ms, detail.onset_step, detail.started_monotonic_ns) == (500, 98, 49_000_000_000)
        assert detail.points == ((99, 0.4), (100, 0.55), (101, 0.9))
        assert detail.heat is not None
        assert [(file.role, file.stored) for file in detail.evidence] == [("clip", False)]
        assert [(one.user, one.verdict, one.note) for one in detail.verdicts] == [("ann", "real", "a fire")]
        assert (detail.row.verdict, detail.row.evidence, detail.row.peak) == ("real", (), 0.9)
        assert detail.row.shares == {"vision": 1.5, "audio": 0.25, "sensors": -0.5, "none": -2.0}

    def test_a_file_that_is_not_here_is_not_shown(self, store: Store) -> None:
        tell(store, 10, evidence(SHA, 5), 1)  # type: ignore[arg-type]
        with store.read() as session, pytest.raises(NotFound):
            review.evidence(session, ANN, event_id(1), "clip")

    def test_a_file_that_another_device_promised_for_it_is_not_shown(self, store: Store) -> None:
        with store.write() as session:
            session.add(
                EvidenceFile(
                    event_id=event_id(1), device="far", role="clip", sha256=SHA, size=1, media_type="video/mp4",
                    start_ns=0, end_ns=1, stored=True,
                )
            )  # fmt: skip
        with store.read() as session:
            assert review.alert(session, ANN, event_id(1)).evidence == ()
            with pytest.raises(NotFound):
                review.evidence(session, ANN, event_id(1), "clip")

    @pytest.mark.parametrize("id", ["", "nonsense", "../x", event_id(99)])
    def test_what_is_not_there_is_not_found(self, store: Store, id: str) -> None:
        with store.read() as session, pytest.raises(NotFound):
            review.alert(session, ANN, id)


class TestVerdicts:
    def test_the_newest_of_each_person_counts_and_all_stay_on_record(self, store: Store) -> None:
        judge(store, ANN, 1, "real", now_ns=1)
        judge(store, Viewer("bob", "admin"), 1, "unsure", now_ns=2)
        judge(store, ANN, 1, "false", now_ns=3)
        with store.read() as session:
            detail = review.alert(session, ANN, event_id(1))
            assert [(one.user, one.verdict) for one in detail.verdicts] == [("ann", "false"), ("bob", "unsure")]
            assert detail.row.verdict == "false"
            assert session.execute(sa.select(sa.func.count()).select_from(Verdict)).scalar() == 3
            assert audit.broken_at(session) is None

    def test_it_speaks_of_the_model_that_raised_the_alert(self, store: Store) -> None:
        judge(store, ANN, 1, "real")
        with store.read() as session:
            assert review.alert(session, ANN, event_id(1)).verdicts[0].bundle == "b" * 64

    def test_a_viewer_does_not_judge(self, store: Store) -> None:
        with pytest.raises(AccessRefused) as caught:
            judge(store, Viewer("vic", "viewer"), 1, "real")
        assert caught.value.status == 403

    @pytest.mark.parametrize("word", ["", "REAL", "true", "real; --"])
    def test_a_word_that_is_no_verdict_is_refused(self, store: Store, word: str) -> None:
        with pytest.raises(CloudError, match="none of"):
            judge(store, ANN, 1, word)

    def test_notes_are_bounded_and_hold_anything(self, store: Store) -> None:
        with pytest.raises(CloudError, match="characters"):
            judge(store, ANN, 1, "real", "x" * 3000)
        judge(store, ANN, 1, "real", "a\x00b\ud800 <script>")
        with store.read() as session:
            assert review.alert(session, ANN, event_id(1)).verdicts[0].note == "ab? <script>"


class TestFleet:
    NOW_NS = 10**18

    @pytest.mark.parametrize(
        ("values", "presence"),
        [
            ({"seen_ns": None}, "never"),
            ({"seen_ns": NOW_NS - 99 * 10**9, "online": True}, "online"),
            ({"seen_ns": NOW_NS - 101 * 10**9, "online": True}, "stale"),
            ({"seen_ns": NOW_NS, "online": False}, "offline"),
            ({"seen_ns": NOW_NS, "online": True, "revoked_ns": 5}, "revoked"),
            ({"seen_ns": NOW_NS + 10**9, "online": True}, "online"),
        ],
    )
    def test_last_words_are_believed_for_a_while(
        self, any_store: Store, values: dict[str, object], presence: str
    ) -> None:
        add_devices(any_store, "cam")
        with any_store.write() as session:
            session.execute(sa.update(Device).values(**values))
        with any_store.read() as session:
            (device,) = fleet.devices(session, ANN, self.NOW_NS)
        assert device.presence == presence
        assert device.silent_s is None or device.silent_s >= 0

    def test_losses_are_counted_but_no_conflicts(self, store: Store) -> None:
        gap = Gap(first=2, last=9, count=5, priority="bulk", reason="full", ranges=((20, 24),))
        tell(store, 30, gap, 1)  # type: ignore[arg-type]
        tell(store, 30, event(), 1)
        with store.read() as session:
            assert {device.name: device.lost for device in fleet.devices(session, ANN, 0)} == {"cam": 5, "far": 0}

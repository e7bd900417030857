"""What is counted of a session: causes found, alerts astray, delays, budgets; and the page that shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edge_agent.config import SceneConfig
from edge_agent.contract.event import MODALITIES, Event, Quality, Shares
from edge_agent.core.records import Scores
from edge_agent.simulate import Episode, Site
from models.evaluation import fieldtest, parity, report
from models.evaluation.disturb import Disturbance
from models.evaluation.fieldtest import Result, Sites
from models.evaluation.sessions import Cause, Played, Remembering, Session
from models.evaluation.variants import Variant
from tests.parts.bundle import tiny_bundle

STEP_MS = 500


def scores(step: int, logit: float) -> Scores:
    return Scores(
        scene="s",
        step=step,
        logit=logit,
        score=float(1 / (1 + np.exp(-logit))),
        classes={},
        shares={},
        modality_logits={"vision": logit, "audio": -logit},
        present=("vision", "audio"),
        embedding=np.array([logit, step], np.float32),
        heat=None,
    )


def alert(step: int, label: str = "anomaly") -> Event:
    return Event(
        scene="s", label=label, phase="new", onset_step=step - 1, step=step, step_ms=STEP_MS, revision=1, score=0.9,
        peak=0.9, threshold=0.5, origin="model", rule=None, classes={}, shares=Shares(), quality=Quality(present=()),
        trace=(), heat=None, bundle="0" * 64, calibrating=True,
    )  # fmt: skip


def played(logits: Sequence[float], causes: Sequence[Cause] = (), alerts: Sequence[Event] = ()) -> Played:
    session = Session(
        "s", "simulated", len(logits) / 2, SceneConfig(name="s", camera="c"), tuple(causes), lambda m: ()
    )
    return Played(session, STEP_MS, [scores(i, x) for i, x in enumerate(logits)], list(alerts))


FIRE = Cause("fire", 10.0, 15.0, ("vision",))


def test_a_step_is_wrong_inside_its_cause_and_undecided_while_it_fades() -> None:
    truth = played([0.0] * 60, [FIRE]).session.truth(np.array([9.5, 10.0, 10.5, 15.0, 15.5, 19.0, 19.5]))
    assert truth.tolist() == [0, 0, 1, 1, -1, -1, 0]


def test_alerts_belong_to_the_cause_they_come_in_and_the_others_are_astray() -> None:
    one = played([0.0] * 60, [FIRE], [alert(2), alert(22, "fire"), alert(50)])
    [(cause, found)] = one.found()
    assert cause is FIRE
    assert [a.label for a in found] == ["fire"]
    assert [a.step for a in one.astray()] == [2, 50]
    assert fieldtest.delays_s(one) == [1.5]


def test_the_row_of_a_condition() -> None:
    logits = [-3.0] * 20 + [4.0] * 10 + [-3.0] * 30
    test, quiet = played(logits, [FIRE], [alert(22)]), played([-3.0] * 7100 + [5.0] + [-2.0] * 99)
    result = Result(None, [test], [quiet])
    row = fieldtest.figures(result, result, on_steps=2)
    assert row["frame_auc_micro"] == row["frame_auc_macro"] == row["ap"] == 1.0
    assert row["recall"] == row["recall_at_1_per_h"] == 1.0
    assert row["false_alarms_per_h"] == row["astray"] == 0.0
    assert row["detect_s_median"] == 1.5


def test_a_level_that_one_step_reaches_is_not_sustained() -> None:
    assert fieldtest.sustained(np.array([0.0, 5.0, 0.0, 2.0, 3.0]), 2).tolist() == [-np.inf, 0.0, 0.0, 0.0, 2.0]


def test_the_budget_allows_one_peak_an_hour() -> None:
    quiet = np.full(7200, -4.0)  # an hour
    quiet[100:104], quiet[3000:3004] = 6.0, 2.0
    assert fieldtest.budget_logit([played(list(quiet))], 2, 1) == 2.0


def test_types_and_confusion() -> None:
    seen = played([0.0] * 60, [FIRE], [alert(21), alert(23, "fire")])
    missed = played([0.0] * 60, [FIRE], [alert(55, "siren")])
    result = Result(None, [seen, missed], [])
    assert fieldtest.by_type([result]) == {"fire": {"n": 2, "detect_s_median": 1.0, "clean": 0.5}}
    assert fieldtest.confusion(result, ("fire", "siren")) == {
        "fire": {"fire": 1, "nothing": 1},
        "nothing": {"siren": 1},
    }


def test_what_shows_in_the_lost_modality_alone_is_not_asked_for() -> None:
    logits = [-3.0] * 20 + [4.0] * 10 + [-3.0] * 30
    clean = Result(None, [played(logits, [FIRE], [alert(22)])], [played([-3.0] * 60)])
    blind = Result(Disturbance("vision", "missing"), [played([-3.0] * 60, [FIRE])], clean.quiet)
    row = fieldtest.figures(blind, clean, on_steps=2)
    assert row["recall"] is row["recall_at_1_per_h"] is None
    noisy = Result(Disturbance("vision", "noisy"), blind.tests, clean.quiet)
    row = fieldtest.figures(noisy, clean, on_steps=2)
    assert row["recall"] == 0.0
    assert row["ap_lost"] == pytest.approx(1 - row["ap"])
    assert fieldtest.by_type([clean, blind]) == {
        "fire": {"n": 1, "detect_s_median": 1.5, "clean": 1.0, "vision missing": None}
    }


def test_steps_that_only_the_lost_modality_could_judge_are_neither() -> None:
    marks = {name: np.zeros(4, np.int8) for name in MODALITIES}
    marks["vision"][:] = (0, 1, 1, -1)
    marks["audio"][:] = (0, 0, 1, 0)
    session = Session("e", "composed", 22.0, SceneConfig(name="s", camera="c"), (), lambda m: (), 20.0, marks)
    times = np.array([20.0, 20.5, 21.0, 21.5, 22.0])
    assert session.truth(times).tolist() == [-1, 0, 1, 1, -1]
    assert session.truth(times, "vision").tolist() == [-1, 0, -1, 1, -1]
    assert session.truth(times, "audio").tolist() == [-1, 0, 1, 1, -1]
    assert session.shows("sensors", times).tolist() == [-1, 0, 0, 0, 0]


def test_another_method_is_held_against_its_own_quiet_hours() -> None:
    test = played([-3.0] * 20 + [4.0] * 10 + [-3.0] * 30, [FIRE])
    clean = Result(None, [test], [played([-3.0] * 60)])
    turned = clean.said_by(lambda one: -one.logits)
    row = fieldtest.figures(turned, turned, on_steps=2, alerts=False)
    assert row["frame_auc_micro"] == 0.0
    assert row["recall_at_1_per_h"] == 0.0
    assert "recall" not in row


def test_a_curve_of_what_is_missing_ends_where_the_head_without_it_is() -> None:
    logits = [-3.0] * 20 + [4.0] * 10 + [-3.0] * 30
    causes = [Cause("fire", 10.0, 15.0, ("vision", "audio"))]
    subsets = [frozenset(c for c in range(3) if n >> c & 1) for n in range(8)]
    # Vision alone knows it; without it every step is the same.
    answers = [{kept: (x if 0 in kept else 0.0) for kept in subsets} for x in logits]
    test = dataclasses.replace(played(logits, causes), answers=answers)
    found = fieldtest.missing_curves(Result(None, [test] * 8, []), seed=1)
    assert found["vision"][0] == found["audio"][0] == (0.0, 1.0)
    assert found["audio"][-1] == (1.0, 1.0)
    assert found["vision"][-1][1] < 0.5
    assert 0.5 < found["vision"][2][1] < 1.0
    assert found["any"][-1][0] == 0.75


def test_every_output_of_the_head_is_held_against_its_own_truth() -> None:
    test = played([-3.0] * 20 + [4.0] * 10 + [-3.0] * 30, [FIRE])
    loud = [dataclasses.replace(s, classes={"fire": 0.9, "siren": 0.2}) for s in test.scores]
    found = fieldtest.heads(Result(None, [dataclasses.replace(test, scores=loud)], []))
    assert list(found) == ["score", "vision", "audio", "sensors", "fire"]  # nothing was a siren
    truth, probability = found["fire"]
    assert (truth.sum(), len(truth), probability[0]) == (10, 52, 0.9)
    assert found["audio"][0].sum() == 0
    assert len(found["sensors"][0]) == 0  # it was not there


def test_normal_footage_is_told_by_kind() -> None:
    film = played([-3.0] * 100 + [2.0, 2.0, -3.0], alerts=[alert(101)])
    film = dataclasses.replace(film, session=dataclasses.replace(film.session, kind="film", seconds=1800.0))
    table = fieldtest.quiet_table([film, played([-4.0] * 60)], 2)
    assert table["film"]["alerts_per_h"] == 2.0
    assert table["film"]["highest_score"] == pytest.approx(1 / (1 + np.exp(-2)))
    assert table["simulated"]["alerts"] == 0


def test_sessions_run_through_the_pipeline_clean_and_disturbed(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path)
    variants = [Variant("int8", folder, "onnxruntime"), Variant("int8", folder, "openvino")]
    sites = [Site(1, [Episode("fire", 2.0, 5.0, ("vision",))], width=64, height=48), Site(2, (), width=64, height=48)]
    silent, astray = Disturbance("audio", "missing"), Disturbance("vision", "contradicting")
    heap = fieldtest.run(Sites(sites, 6.0, "sites"), variants, (None, silent, astray), 0)
    assert list(heap.conditions) == ["clean", "audio missing", "vision contradicting"]
    clean, missing, other = heap.conditions.values()
    assert [one.session.name for one in clean] == ["site-1", "site-2"]
    assert [s.present for s in missing[0].scores][-1] == ("vision", "sensors")
    assert len(clean[0].scores) == len(other[0].scores) >= 11
    assert not np.allclose(clean[0].logits, missing[0].logits)
    assert clean[0].session.causes == (Cause("fire", 2.0, 5.0, ("vision",)),)
    assert clean[0].features.shape == (len(clean[0].scores), 3 * 8)
    for kept, answer in zip(clean[0].given(frozenset({0, 1, 2})), clean[0].scores, strict=True):
        assert kept == pytest.approx(answer.logit)
    [pair] = parity.pairs(variants, {name: {"sessions": parity.scores(p)} for name, p in heap.variants.items()})
    assert pair.row()["clips"] == pair.row()["clips_within"] == 2
    assert heap.step_ms["int8 on openvino"] > 0


def test_parity_tells_the_clips_that_are_off() -> None:
    one, two, three = Variant("int8", Path(), "a"), Variant("int8", Path(), "b"), Variant("teacher", Path(), "torch")
    said = {
        one.name: {"sessions": [np.array([0.1, 0.2]), np.array([0.5])]},
        two.name: {"sessions": [np.array([0.1, 0.5]), np.array([0.5])]},
        three.name: {"sessions": [np.array([0.1, 0.2]), np.array([0.9])]},
    }
    engines, compressed = parity.pairs([one, two, three], said)
    assert engines.row() | {"mean_of_steps": 0, "p99_of_steps": 0} == {
        "clips": 2, "worst, sessions": pytest.approx(0.3), "tolerance": parity.INT8_TOLERANCE, "clips_within": 1,
        "mean_of_steps": 0, "p99_of_steps": 0,
    }  # fmt: skip
    assert compressed.name == "int8 on a against teacher on torch"
    assert compressed.row()["clips_within"] is None
    assert compressed.worst["sessions"].max() == pytest.approx(0.4)


def test_what_was_encoded_once_is_not_encoded_again_and_little_is_kept() -> None:
    class Counting:
        calls = 0

        def run(self, graph, items):
            Counting.calls += len(items)
            return [{"embedding": item["pcm"] * 2.0} for item in items]

        def close(self):
            pass

    engine = Remembering(Counting(), most=2)
    items = [{"pcm": np.array([float(i)])} for i in range(3)]
    for _ in range(2):
        assert [output["embedding"] for output in engine.run("audio", items[:2])] == [[0.0], [2.0]]
    assert Counting.calls == 2
    engine.run("audio", [items[2], items[0]])  # the oldest, 0, is let go
    assert Counting.calls == 3
    engine.run("audio", [items[0], items[0], items[2]])
    assert Counting.calls == 4
    engine.run("vision", [items[2]])  # another graph's
    assert Counting.calls == 5


class _Balance(HTMLParser):
    """Counts what is opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "path", "use", "!doctype"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def result() -> Result:
    test = played([-3.0] * 20 + [4.0] * 10 + [-3.0] * 30, [FIRE], [alert(22)])
    return Result(None, [test], [played([-3.0] * 60)])


def test_the_page_stands_alone_and_escapes_what_it_shows(result: Result) -> None:
    truth, score = (np.concatenate(part) for part in result.steps())
    rows = {"clean": {"ap": 1.0, "<b>": None}}
    text = report.page(
        "a & b",
        [
            report.section("Plots", "of all kinds", report.table(rows), report.plots(
                (report.roc(truth, {"fused": score}), "r"),
                (report.precision_recall(truth, {"fused": score}), "p"),
                (report.reliability(truth, 1 / (1 + np.exp(-score))), "s"),
                (report.timeline(result.tests[0], 0.5), "t"),
                (report.curves({"any": [(0.0, 1.0), (0.5, 0.7)]}), "c"),
                (report.ablations([{"group": "block", "name": "late", "mean": 0.8, "spread": 0.01}]), "a"),
                (report.bars({"clean": {"ap": 1.0}}, "ap", "AP"), "b"),
                (report.matrix(fieldtest.confusion(result, ("fire",))), "m"),
            ), report.strips(result.tests, 0.5)),
        ],
    )  # fmt: skip
    reader = _Balance()
    reader.feed(text)
    assert text.count("<svg") == 9
    assert "a &amp; b" in text
    assert "<b>" not in text
    assert "src=" not in text
    assert "fire (vision)" in "".join(reader.texts)
    assert "wrong in vision (1)" in "".join(reader.texts)
    strip = text[text.index("<div class='strips'>") :]
    assert strip.count("<rect") == 10  # steps that were wrong
    assert strip.count("l-3,5z") == 1  # the alert


def test_a_table_for_the_terminal_lines_up() -> None:
    lines = report.text_table({"clean": {"ap": 0.5}, "audio missing": {"ap": None, "n": 3}}, "x").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "–" in lines[2]

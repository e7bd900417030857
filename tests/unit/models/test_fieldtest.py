"""What is counted of a session: causes found, alerts astray, delays, budgets; and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edge_agent.config import SceneConfig
from edge_agent.contract.event import Event, Quality, Shares
from edge_agent.core.records import Scores
from edge_agent.engine import load
from edge_agent.simulate import Episode, Site
from models.evaluation import fieldtest, report
from models.evaluation.disturb import Disturbance
from models.evaluation.fieldtest import Result
from models.evaluation.sessions import Cause, Played, Session, simulated
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
    assert row["recall"] == row["recall_at_budget"] == 1.0
    assert row["false_alarms_per_h"] == row["astray"] == 0.0
    assert row["detect_s_median"] == 1.5


def test_a_level_that_one_step_reaches_is_not_sustained() -> None:
    assert fieldtest.sustained(np.array([0.0, 5.0, 0.0, 2.0, 3.0]), 2).tolist() == [-np.inf, 0.0, 0.0, 0.0, 2.0]


def test_the_budget_allows_one_peak_an_hour() -> None:
    quiet = np.full(7200, -4.0)  # an hour
    quiet[100:104], quiet[3000:3004] = 6.0, 2.0
    assert fieldtest.budget_logit([played(list(quiet))], 2) == 2.0


def test_types_and_confusion() -> None:
    seen = played([0.0] * 60, [FIRE], [alert(21), alert(23, "fire")])
    missed = played([0.0] * 60, [FIRE], [alert(55, "siren")])
    result = Result(None, [seen, missed], [])
    assert fieldtest.by_type([result]) == {"fire": {"n": 2, "clean": 0.5}}
    assert fieldtest.confusion(result, ("fire", "siren")) == {
        "fire": {"fire": 1, "nothing": 1},
        "nothing": {"siren": 1},
    }


def test_baselines_hold_the_same_steps_against_each_other() -> None:
    test = played([-3.0] * 20 + [4.0] * 10 + [-3.0] * 30, [FIRE])
    quiet = played(list(np.linspace(-3, -2, 60)))
    result = Result(None, [test], [quiet])
    rows = fieldtest.baselines(result, fieldtest.outliers(result))
    assert rows["fused"]["auc"] == rows["vision"]["auc"] == 1.0
    assert rows["audio"]["auc"] == 0.0
    assert set(rows) >= {"late mean", "PyOD ECOD", "PyOD IForest", "PyOD KNN"}


def site(seed: int, episodes: Sequence[Episode] = ()) -> Session:
    return simulated(Site(seed, episodes, width=64, height=48), 6.0)


def test_sessions_run_through_the_pipeline_clean_and_disturbed(tmp_path: Path) -> None:
    model = load(tiny_bundle(tmp_path), "onnxruntime")
    tests, quiet = [site(1, [Episode("fire", 2.0, 5.0, ("vision",))])], [site(2), site(3)]
    silent, astray = Disturbance("audio", "missing"), Disturbance("vision", "contradicting")
    clean, missing, other = fieldtest.run(model, tests, quiet, 0, (None, silent, astray))
    assert [clean.name, missing.name, other.name] == ["clean", "audio missing", "vision contradicting"]
    assert [s.present for s in missing.tests[0].scores][-1] == ("vision", "sensors")
    assert len(clean.tests[0].scores) == len(other.tests[0].scores) >= 11
    assert not np.allclose(clean.tests[0].logits, missing.tests[0].logits)
    assert clean.tests[0].session.causes == (Cause("fire", 2.0, 5.0, ("vision",)),)


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
                (report.timeline(result, 0, 0.5), "t"),
                (report.bars({"clean": {"ap": 1.0}}, "ap", "AP"), "b"),
                (report.matrix(fieldtest.confusion(result, ("fire",))), "m"),
            )),
        ],
    )  # fmt: skip
    reader = _Balance()
    reader.feed(text)
    assert text.count("<svg") == 6
    assert "a &amp; b" in text
    assert "<b>" not in text
    assert "src=" not in text
    assert "fire (vision)" in "".join(reader.texts)


def test_a_table_for_the_terminal_lines_up() -> None:
    lines = report.text_table({"clean": {"ap": 0.5}, "audio missing": {"ap": None, "n": 3}}, "x").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "–" in lines[2]

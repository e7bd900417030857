"""The benchmark of composed episodes: which parts are tested, and how answers become figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.event import MODALITIES
from edge_agent.errors import ConfigError
from models.benchmark import composed
from models.benchmark.composed import ALL, Heard
from models.benchmark.record import Roots
from models.bundle import UNCHOSEN, manifest, now
from models.config import preset
from models.data import registry
from models.data.episodes import Episode
from models.data.mixture import Entry, Part, Shelf, plan
from models.data.records import Recording
from models.evaluation.composed import Episodes, session_of
from models.evaluation.sessions import Listening
from models.processes import interleaved

TINY = preset("tiny")


def _heard(steps: list[dict[str, float]]) -> Heard:
    """Answers under the masks named by their modalities: "" none, "va" vision and audio, "vas" all."""
    columns = {"v": 0, "a": 1, "s": 2}
    answers = [{frozenset(columns[letter] for letter in mask): v for mask, v in step.items()} for step in steps]
    return Heard(answers, np.full((len(steps), 3), np.nan))


def _episode(shown: str, wrong: tuple[str, ...], missing: tuple[str, ...] = ()) -> Episode:
    parts = tuple(
        Part(n, "missing" if n in missing else "well", "", 0, 0, "", n in wrong, "", 0, 0, 0, 0) for n in MODALITIES
    )
    active = {n: np.array([0, int(n in wrong)], np.int8) for n in MODALITIES}
    return Episode(
        Entry("e", "test", "", shown, "", parts), TINY, None, None, None, active, dict.fromkeys(MODALITIES, "")
    )


def test_a_score_must_hold_for_two_steps():
    heard = _heard([{"": 0, "v": level} for level in (-3.0, 5.0, -2.0, 1.0, 2.0)])
    assert heard.score(ALL) == 1.0
    assert heard.score(frozenset({1})) == 0.0  # nothing of sound was there: the empty answer


def test_the_label_is_that_of_what_is_there():
    assert _episode("vision", ("vision",)).label == 1
    assert _episode("several", ("vision", "audio"), missing=("vision",)).label == 1
    assert _episode("vision", ("vision",), missing=("vision",)).label == 0


def test_losing_a_modality_is_judged_where_it_is_not_the_only_cause():
    wrong = {"": -5.0, "v": -5.0, "a": 4.0, "s": -5.0, "va": 4.0, "vs": -5.0, "as": 4.0, "vas": 4.0}
    calm = dict.fromkeys(wrong, -1.0)
    episodes = [_episode("audio", ("audio",)), _episode("nothing", ()), _episode("several", ("vision", "audio"))]
    found = composed._judged(episodes, [_heard([wrong] * 2), _heard([calm] * 2), _heard([wrong] * 2)]).metrics
    assert found["ap_fused"] == found["ap_audio"] == 1.0
    assert found["ap_vision"] < 1.0
    # Without sound the first episode shows nothing: only the third is asked for, and there the head misses it.
    assert found["ap_without_audio"] == pytest.approx(0.5)
    assert found["lost_without_audio"] == pytest.approx(0.5)
    assert found["lost_without_vision"] == 0.0


def test_what_is_said_under_every_mask_is_kept_step_by_step():
    class Engine:
        def run(self, graph, items):
            return [{"logit": np.float32(item["mask"].any(0).sum())} for item in items]

        def close(self):
            pass

    masks = [np.zeros((2, 3)), np.array([[0, 0, 0], [1, 0, 0]]), np.array([[0, 1, 0], [1, 0, 0]])]
    listening = Listening(Engine())
    for _ in range(2):
        listening.run("fusion", [{**dict.fromkeys(MODALITIES, np.full((2, 3), 7.0)), "mask": mask} for mask in masks])
    assert listening.answers == [{frozenset(): 0.0, frozenset({0}): 1.0, frozenset({0, 1}): 2.0}] * 2
    assert [found.shape for found in listening.embeddings] == [(3, 3)] * 2


def test_what_is_tested_does_not_train(tmp_path: Path, monkeypatch):
    def clip(item: str, split: str) -> Recording:
        return Recording("sesa", item, split, item)

    near, far = tmp_path / "near", tmp_path / "far"
    (near / "sesa").mkdir(parents=True)
    (far / "sesa").mkdir(parents=True)
    rows = {near: [clip("a", "train"), clip("b", "dev")], far: [clip("b", "dev"), clip("c", "hidden")]}
    monkeypatch.setitem(registry.FORMATS, "sesa", lambda root: rows[root])
    same = composed.stock(Roots(near, near))
    assert ([r.item for r in same.train], [r.item for r in same.test]) == (["a"], ["b"])
    other = composed.stock(Roots(near, far))
    assert ([r.item for r in other.train], [r.item for r in other.test]) == (["a"], ["b", "c"])
    assert "not there" in other.notes[0]
    with pytest.raises(ConfigError, match="sesa"):
        composed.stock(Roots(near, tmp_path))


def test_an_episode_is_a_session_with_its_cause_where_it_shows():
    session = session_of(_episode("several", ("vision", "audio"), missing=("audio",)))
    span_s = TINY.sensor_spec.steps * TINY.step_ms / 1000
    [cause] = session.causes
    assert (cause.start_s, cause.end_s, cause.shown) == (span_s + 0.5, span_s + 1.0, ("vision",))
    assert session.truth(np.array([span_s, span_s + 0.5, span_s + 1.0])).tolist() == [-1, 0, 1]
    assert session_of(_episode("nothing", ())).causes == ()


def test_both_halves_render_what_the_whole_does_and_a_calm_place_contradicts():
    whole = Episodes([], TINY, "test", 12)
    made = manifest(TINY, UNCHOSEN, 0, {}, now())
    sessions = [session for session, _ in whole.sessions()]
    pairs = [list(half.sessions()) for half in whole.halves()]
    assert [s.name for s, _ in interleaved(pairs)] == [s.name for s in sessions]
    for session, other in pairs[0]:
        assert other.causes == ()
        kinds = [sample.kind for sample in other.samples(made)]
        assert {"frame", "audio", "reading"} <= set(kinds)
        assert session.seconds == other.seconds


def test_halves_make_a_whole():
    whole = Episodes([], TINY, "test", 5)
    rows = [list(range(5))[half.first :: half.stride] for half in whole.halves()]
    assert interleaved(rows) == list(range(5))
    assert interleaved([]) == []
    assert [half.count for half in whole.halves()] == [5, 5]
    assert len(plan(Shelf([]), "test", 5)) == 5

"""Objectives: what each rewards and what it must not see; and each of them at work on a head."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.errors import ConfigError  # noqa: E402
from models.config import preset  # noqa: E402
from models.network.graphs import fusion_head  # noqa: E402
from models.training import objectives  # noqa: E402
from models.training.terms import TERMS, Batch, Learner, thinned  # noqa: E402

TINY = preset("tiny")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_multi_task_says_nothing_of_unknown_targets():
    wrong, own, classes = torch.tensor([1.0, -1.0]), torch.tensor([[1.0, -1, 0], [-1, -1, -1]]), torch.zeros(2, 4)
    logits = torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 4)
    other = torch.tensor([0.0, 9.0]), torch.tensor([[0.0, 9, 0], [9, 9, 9]]), torch.zeros(2, 4)
    other[2][1] = 9
    assert torch.equal(
        objectives.multi_task(logits, wrong, own, classes), objectives.multi_task(other, wrong, own, classes)
    )
    better = torch.tensor([3.0, 0.0]), logits[1], logits[2]
    assert objectives.multi_task(better, wrong, own, classes) < objectives.multi_task(logits, wrong, own, classes)


def test_masked_modelling_looks_at_what_was_hidden_only():
    target, hidden = torch.randn(2, 4, 8), torch.zeros(2, 4)
    hidden[0, 1] = 1
    guess = torch.nn.functional.layer_norm(target, (8,))
    elsewhere = guess + 5 * (1 - hidden).unsqueeze(2)
    assert objectives.masked_modelling(elsewhere, target, hidden) == 0
    assert objectives.masked_modelling(guess + hidden.unsqueeze(2), target, hidden) == pytest.approx(1)


def test_info_nce_wants_pairs_and_not_the_same_place_later():
    a = torch.eye(4)
    matched, crossed = objectives.info_nce(a, a), objectives.info_nce(a, a.flip(0))
    assert matched < 0.01 < crossed
    assert objectives.info_nce(a, a, shifted=a) > matched + 0.3
    assert objectives.info_nce(a[:1], a[:1]) == 0


def test_coordination_is_lowest_where_dimensions_vary_together():
    a = torch.randn(256, 3)
    assert objectives.coordination(a, 2 * a + 1) < 0.05 < objectives.coordination(a, torch.randn(256, 3))


def test_mil_ranking_goes_by_the_highest_of_a_bag():
    wrong = torch.tensor([1.0, 0.0])
    good = torch.tensor([[0.9, 0.9, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]])
    bad = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.9, 0.9, 0.0, 0.0]])
    assert objectives.mil_ranking(good, wrong) < 0.3 < objectives.mil_ranking(bad, wrong)
    assert objectives.mil_ranking(good, torch.ones(2)) == 0


def test_pseudo_labels_come_from_what_is_certain_only():
    strong = torch.zeros(2, requires_grad=True)
    objectives.pseudo_label(torch.tensor([4.0, 0.5]), strong).backward()
    assert strong.grad[0] < 0  # towards the certain "wrong"
    assert strong.grad[1] == 0


def test_one_class_is_zero_at_the_centre():
    centre = torch.ones(3)
    assert objectives.one_class(centre.repeat(2, 1), centre) == 0
    assert objectives.one_class(centre.repeat(2, 1) + 1, centre) == 3


@pytest.mark.parametrize("name", ["distil_logits", "distil_features", "attention_transfer", "consistency"])
def test_a_student_is_best_as_its_teacher_who_learns_nothing(name):
    shape = (6,) if name in {"distil_logits", "consistency"} else (6, 5)
    teacher = torch.rand(shape, requires_grad=True)
    student = torch.rand(shape, requires_grad=True)
    pair = (teacher, student) if name == "consistency" else (student, teacher)
    lowest = getattr(objectives, name)(teacher, teacher)
    value = getattr(objectives, name)(*pair)
    value.backward()
    assert lowest < value
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_a_reversed_gradient_is_the_other_way_round():
    x = torch.ones(2, requires_grad=True)
    (3 * objectives.reverse_gradient(x)).sum().backward()
    assert x.grad.tolist() == [-3, -3]


def _batch(count: int = 16) -> Batch:
    shape = (count, TINY.history, TINY.embedding)
    own = (torch.rand(count, 3) < 0.3).float()
    mask = torch.ones(count, TINY.history, 3)
    mask[0, :, 1:] = 0
    together = (torch.arange(count) % 2).float()
    classes = torch.zeros(count, 4)
    return Batch(
        torch.randn(shape), torch.randn(shape), torch.randn(shape), mask, own.amax(1), own, classes, together
    )


def test_thinning_takes_one_modality_that_is_no_cause():
    batch = _batch(400)
    gone = (batch.mask - thinned(batch)).amax(1)
    assert (gone[batch.own > 0.5] == 0).all()
    assert (gone.sum(1) <= 1).all()
    assert gone.sum() > 200
    assert (thinned(batch).amax((1, 2)) > 0).all()


@pytest.mark.parametrize("name", TERMS)
def test_every_term_moves_the_head_and_leaves_its_teacher(name):
    head, teacher = fusion_head(TINY), fusion_head(TINY)
    taught = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    learner = Learner(head, ((name, 1.0),), TINY.head.width, teacher)
    term, batch = learner.terms[0], _batch()
    fused = head.fused(*batch.embeddings, batch.mask)
    optimiser = torch.optim.SGD(learner.parameters(), 0.01)
    term(head, fused, batch).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    optimiser.step()
    assert all(torch.equal(taught[key], tensor) for key, tensor in teacher.state_dict().items())
    assert not any("_teacher" in key for key in learner.state_dict())


def test_unknown_terms_and_missing_teachers_are_refused():
    head = fusion_head(replace(TINY))
    with pytest.raises(ConfigError, match="no objective is named 'luck'; there are align"):
        Learner(head, (("luck", 1.0),), 32)
    with pytest.raises(ConfigError, match="needs a teacher"):
        Learner(head, (("distil_logits", 1.0),), 32)


def test_a_learner_learns_its_batch():
    head = fusion_head(TINY)
    learner, batch = Learner(head, (("consistency", 1.0),), TINY.head.width), _batch()
    optimiser = torch.optim.AdamW(learner.parameters(), 3e-3)
    losses = []
    for _ in itertools.repeat(None, 40):
        value = learner.loss(*batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.5 * losses[0]

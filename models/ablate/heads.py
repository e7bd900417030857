"""What each way to fuse, and each objective, is worth, on embeddings made once and kept.

Train windows are composed of train parts, the judged ones of dev parts: nothing judged has trained a head or an
encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_agent.contract.event import MODALITIES
from edge_agent.engine import open_bundle
from models import bundle, recipe, runtime
from models.ablate.table import SEEDS, digest, kept, spread, times_ms
from models.config import Fusion, Preset, Schedule
from models.data.compose import Windows
from models.data.corpus import read_corpus
from models.data.records import SPLITS
from models.metrics import average_precision
from models.network.fusion import FusionHead
from models.network.graphs import fusion_head
from models.training.pretrain import pretrain
from models.training.regimes import endless, rows, train_one_class, train_semi, train_weak
from models.training.terms import Batch, Learner
from models.training.train import deterministic, fit

EMBEDDINGS = "embeddings.npz"
_SCHEDULE, _QUICK = Schedule(steps=200, batch=64, rate=4e-3), Schedule(steps=30, batch=32, rate=3e-3)
_PRETRAINED = Schedule(steps=150, batch=64, rate=4e-3)
#: Composed windows: those that train (modalities left out at random), and those that are judged (all there).
_COUNT = {"train": 16384, "dev": 2048}
#: Parts that embeddings are made of: enough to tell rows apart, in a quarter of the time that all of them take.
_SITES, _EPISODES = (6, 4), (200, 120)
_FEW = 0.05  #: share of the train windows that keep their labels where labels are few
_TEACHER_WIDTH = 64


#: What every row changes one thing of, but those that say how they fuse: it has all parts that a row can change.
REFERENCE = Fusion("hybrid", "gated")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    group: str
    name: str
    fusion: Fusion = REFERENCE
    #: supervised | masked or contrastive (pre-trained, then supervised) | weak | semi | one_class
    regime: str = "supervised"
    labels: float = 1.0  #: share of the train windows that have labels

    @property
    def key(self) -> str:
        return f"{self.group}-{self.name}".replace(" ", "_").replace("%", "pc")


def _with(term: str, weight: float = 0.3) -> Fusion:
    return replace(REFERENCE, terms=((term, weight),))


_MIXED = ("hybrid", "attention", "gated", "low_rank", "bilinear", "pooling", "early", "concatenation")
#: In the order in which they are worth having: with too little time the last are left out.
ROWS: tuple[Row, ...] = (
    Row("baseline", "naive concatenation", Fusion("concatenation", "none")),
    Row("baseline", "late mean", Fusion("late", "mean")),
    *(Row("block + evidence", name, Fusion(name, "gated")) for name in _MIXED),
    Row("block", "late", Fusion("late", "alone")),
    *(Row("block", name, Fusion(name, "none")) for name in ("hybrid", "attention")),
    Row("missing", "zeros instead of learned tokens", replace(REFERENCE, learned_tokens=False)),
    Row("space", "shared", replace(REFERENCE, space="shared")),
    Row("space", "aligned", _with("align", weight=0.1)),
    Row("space", "coordinated", _with("coordinate", weight=0.1)),
    Row("transfer", "consistency", _with("consistency", weight=1.0)),
    Row("transfer", "logit distillation", _with("distil_logits")),
    Row("transfer", "feature distillation", _with("distil_features")),
    Row("transfer", "attention transfer", _with("transfer_attention")),
    Row("transfer", "adversarial alignment", _with("adversarial", weight=0.1)),
    Row("pre-training", "masked modelling", regime="masked"),
    Row("pre-training", "contrastive", regime="contrastive"),
    Row("few labels", "5 % alone", labels=_FEW),
    Row("few labels", "5 % and pseudo-labels", regime="semi", labels=_FEW),
    Row("few labels", "5 % after masked modelling", regime="masked", labels=_FEW),
    Row("few labels", "5 % after contrastive", regime="contrastive", labels=_FEW),
    Row("weak labels", "episodes (MIL ranking)", regime="weak"),
    Row("no labels", "normal windows (Deep SVDD)", regime="one_class"),
)


@dataclass(frozen=True)
class Embedded:
    """Windows of cached embeddings by split, and what they are: a hash."""

    train: Batch
    dev: Batch
    mark: str


def embedded(path: Path, preset: Preset, root: Path | None, shipped: Path, *, quick: bool) -> Embedded:
    """The windows in `path`, which are made first if they are not there or came from another bundle."""
    opened = open_bundle(shipped)
    arrays = bundle.load_arrays(path) if path.is_file() else {}
    if not arrays or arrays["bundle"].item() != opened.hash:
        graphs: dict[str, bytes] = {name: opened.read(f"{name}.onnx") for name in MODALITIES}
        corpus = read_corpus(root)
        part = replace(preset, sites=_least(preset.sites, _SITES), episodes=_least(preset.episodes, _EPISODES))
        arrays = {"bundle": np.array(opened.hash)}
        for split in SPLITS:
            composer = recipe.compose(recipe.Parts(split, corpus, part, 0), graphs)
            # Judged: composed episodes alone, nothing dropped but what the manifest drops.
            how = {} if split == "train" else {"site": 0.0, "missing": 0.0}
            drawn = composer.draw(
                np.random.default_rng([0, 61, split == "dev"]), _COUNT[split] // (16 if quick else 1), **how
            )
            arrays |= {f"{split}_{name}": array for name, array in packed(drawn).items()}
        bundle.save_arrays(path, arrays)
    return Embedded(_unpacked(arrays, "train"), _unpacked(arrays, "dev"), digest(path.read_bytes()))


def _least(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return min(a[0], b[0]), min(a[1], b[1])


def packed(windows: Windows) -> dict[str, Any]:
    """Windows as small arrays, with what `fusion_batch` needs to know of their origin."""
    together = np.array([shown == "site" for shown in windows.shown], np.int8)
    return {**recipe.packed(windows), "together": together}


def _unpacked(arrays: Mapping[str, Any], split: str) -> Batch:
    names = (*MODALITIES, "mask", "wrong", "own", "classes", "together")
    return Batch(*(torch.from_numpy(np.asarray(arrays[f"{split}_{name}"], np.float32)) for name in names))


def work(row: Row, preset: Preset, windows: Embedded, out: Path, *, quick: bool) -> dict[str, Any]:
    """The figures of one row, from its file if that is of the same row, embeddings and schedule."""
    seeds = SEEDS[:1] if quick else SEEDS
    schedule = _QUICK if quick else _SCHEDULE
    mark = digest(f"{row} {windows.mark} {seeds} {schedule} {_PRETRAINED}".encode())

    def make() -> dict[str, Any]:
        shape = replace(preset, head=row.fusion, fusion=schedule)
        heads = [trained(row, shape, windows, seed) for seed in seeds]
        judgements = [judged(score, windows.dev) for _, score in heads]
        return {
            "row": asdict(row),
            "seeds": list(seeds),
            "steps": schedule.steps,
            "figures": {name: spread([found[name] for found in judgements]) for name in judgements[0]},
            "parameters": sum(p.numel() for p in heads[0][0].parameters()),
            "ms": round(latency_ms(heads[0][0], shape), 3),
        }

    return kept(out, row.key, mark, make)


Score = Callable[[Batch], Tensor]


def trained(row: Row, shape: Preset, windows: Embedded, seed: int) -> tuple[FusionHead, Score]:
    """A head trained as the row says, and what it scores windows by: (N,), higher is more anomalous."""
    deterministic(seed)
    head = fusion_head(shape)
    few = rows(windows.train, torch.arange(int(len(windows.train.wrong) * row.labels)))
    if row.regime == "weak":
        train_weak(head, shape, windows.train, seed)
    elif row.regime == "semi":
        train_semi(head, shape, few, windows.train, seed)
    elif row.regime == "one_class":
        centre = train_one_class(head, shape, windows.train, seed)
        return head, lambda batch: (head(*batch[:4])[3] - centre).square().sum(1)
    else:
        if row.regime in ("masked", "contrastive"):
            steps = min(_PRETRAINED.steps, shape.fusion.steps)
            blind = endless(windows.train, _PRETRAINED.batch, np.random.default_rng([seed, 62]))
            pretrain(head, row.regime, shape, replace(_PRETRAINED, steps=steps), blind)
        supervise(head, shape, few, seed, _teacher(shape, few, seed))
    return head, lambda batch: head(*batch[:4])[0]


def supervise(head: FusionHead, shape: Preset, windows: Batch, seed: int, teacher: FusionHead | None) -> None:
    """The head on labelled windows, by the objectives of its shape."""
    learner = Learner(head, shape.head.terms, shape.head.width, teacher)
    batches = endless(windows, shape.fusion.batch, np.random.default_rng([seed, 63]))
    fit("fusion", learner, shape.fusion, batches, learner.loss)


def _teacher(shape: Preset, windows: Batch, seed: int) -> FusionHead | None:
    """A wider head of the same kind, trained first, where the row has something to distil."""
    if not any(name.startswith(("distil", "transfer")) for name, _ in shape.head.terms):
        return None
    wide = replace(shape, head=replace(shape.head, width=_TEACHER_WIDTH, terms=()))
    teacher = fusion_head(wide)
    supervise(teacher, wide, windows, seed, None)
    return teacher


def judged(score: Score, dev: Batch) -> dict[str, float]:
    """AP with everything there; with each modality missing, where it is not the only cause, and what that loses."""
    known = rows(dev, torch.nonzero(dev.wrong >= 0)[:, 0])
    label = known.wrong.numpy()
    full = _scores(score, known)
    found = {"ap": average_precision(label, full)}
    causes = (known.own > 0.5).sum(1)
    for index, name in enumerate(MODALITIES):
        gone = known.mask.clone()
        gone[:, :, index] = 0
        part = ~((known.own[:, index] > 0.5) & (causes == 1)).numpy()
        without = average_precision(label[part], _scores(score, known._replace(mask=gone))[part])
        found[f"without_{name}"] = without
        found[f"lost_{name}"] = average_precision(label[part], full[part]) - without
    return found


def _scores(score: Score, windows: Batch) -> Any:
    with torch.inference_mode():
        return score(windows).numpy()


def latency_ms(head: nn.Module, shape: Preset) -> float:
    """Median time of one window through the exported head in float32."""
    item: dict[str, NDArray[Any]] = {
        name: np.zeros((shape.history, shape.embedding), np.float32) for name in MODALITIES
    }
    item["mask"] = np.ones((shape.history, len(MODALITIES)), np.float32)
    return times_ms(runtime.make(shape, {"fusion": head}, {}), "fusion", item)["fp32"]

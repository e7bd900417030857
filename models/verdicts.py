"""Learning from operators: judged events, with their evidence, into a better head. No data set is needed.

The cloud writes one JSON object a line (`cloud_sync.dataset.Labelled`):

    event_id, scene, label   which event
    verdict                  real | false | unsure (left out)
    bundle                   hash of the model that raised it
    started_ns               onset
    start_ns, end_ns         first and last moment of the evidence; all on the device's monotonic clock
    clip, trace              paths of clip.mp4 (with sound, if there was any) and trace.json; empty if none came
    weight                   0..1

Only the fusion head learns: the encoders stay, so a verdict of one site cannot unlearn what fire looks like. Composed
windows that come with the bundle are replayed in every batch, and a frozen part of them, which no verdict touches,
must not get worse.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.contract.manifest import GRAPHS, Manifest
from edge_agent.core.records import F32, Engine, Model
from edge_agent.engine import compile_graphs, load, open_bundle, selftest
from edge_agent.errors import BundleError, ConfigError
from models import bundle, calibrate
from models.compression.export import export
from models.compression.tables import lighten_file
from models.config import CLASSES, Preset, preset
from models.data.compose import Windows
from models.data.evidence import embed
from models.metrics import average_precision
from models.network.fusion import FusionHead
from models.network.graphs import fusion_head
from models.progress import Progress
from models.training.train import deterministic, fusion_batch, fusion_loss

#: Fewer usable events than this teach nothing.
FEWEST = 1
_MOST_BYTES, _MOST_EVENTS = 64 << 20, 2000
_STEPS, _BATCH, _RATE = 240, 32, 1e-3
#: Average precision on the frozen windows may fall by this much, which is noise of so few, and no more.
_ALLOWED_FALL = 0.01
#: How far from the start towards the trained weights to go: the furthest that the frozen windows allow.
_STRIDES = (1.0, 0.6, 0.35, 0.2, 0.1)
#: A real event is wrong for this long after its onset; what follows is not known.
_SURE_S = 5.0


class Verdict(Struct, frozen=True, kw_only=True):
    """One line of the file."""

    event_id: str
    scene: str
    label: str
    verdict: Literal["real", "false", "unsure"]
    bundle: str = ""
    started_ns: int
    start_ns: int
    end_ns: int
    clip: str = ""
    trace: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """Windows of one judged event."""

    windows: Windows
    weight: float


def read(path: Path) -> list[Verdict]:
    """The judged events of a file. ConfigError names the line that is wrong."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is larger than {_MOST_BYTES} bytes: export fewer verdicts")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read verdicts {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(msgspec.json.decode(line, type=Verdict))
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    return found[-_MOST_EVENTS:]


def retrain(path: Path, start: Path, out: Path, seed: int) -> dict[str, Any]:
    """A bundle in `out` whose head has learned from the verdicts in `path`; figures of what changed.

    ConfigError where verdicts or evidence are too few or unreadable, BundleError where `start` cannot be continued
    or the result would be worse on the frozen windows.
    """
    deterministic(seed)
    verdicts = [verdict for verdict in read(path) if verdict.verdict != "unsure"]
    source = open_bundle(start)
    shape = _shape(source.manifest)
    model = load(start)
    head = fusion_head(shape)
    for name in (bundle.WEIGHTS, bundle.REPLAY):
        if name not in source.manifest.files:
            raise BundleError(
                f"{start} holds no {name}: it cannot be continued; start from one that this program made"
            )
    bundle.load_weights(start / bundle.WEIGHTS, head)
    lessons = _lessons(verdicts, model.engine, shape)
    if len(lessons) < FEWEST:
        raise ConfigError(
            f"{len(lessons)} of {len(verdicts)} judged events in {path} have evidence that can be read; at least "
            f"{FEWEST} needed: judge some more alerts, and see that clips reach the cloud"
        )
    replay = bundle.load_arrays(start / bundle.REPLAY)
    before = _judged(head, lessons)
    _fine_tune(head, lessons, _unpacked(replay, "train"), seed)
    frozen = _unpacked(replay, "dev")
    origin = _origin(start, shape)
    stride, ap_before, ap_after = _restrained(head, origin, frozen)
    heat = calibrate.refit(head, origin, frozen)
    figures: dict[str, Any] = {
        "start": model.hash,
        "events": len(lessons),
        "windows": int(sum(len(lesson.windows.wrong) for lesson in lessons)),
        "stride": stride,
        "frozen_ap": {"before": round(ap_before, 4), "after": round(ap_after, 4)},
        "temperatures": heat,
        "judged": {"before": before, "after": _judged(head, lessons)},
    }
    _write(model, start, out, head, figures)
    return figures


def _shape(manifest: Manifest) -> Preset:
    name = manifest.name.rsplit("-", 1)[0]
    shape = preset(name)
    if manifest.classes != CLASSES or (manifest.history, manifest.embedding) != (shape.history, shape.embedding):
        raise BundleError(f"bundle {manifest.name} has another shape than preset {name!r} of this program")
    return shape


def _lessons(verdicts: Sequence[Verdict], engine: Engine, shape: Preset) -> list[Lesson]:
    found = []
    shown = Progress("reading evidence", len(verdicts))
    for index, verdict in enumerate(verdicts, 1):
        lesson = _lesson(verdict, engine, shape)
        if lesson is not None:
            found.append(lesson)
        shown.at(index)
    return found


def _lesson(verdict: Verdict, engine: Engine, shape: Preset) -> Lesson | None:
    steps = embed(
        Path(verdict.clip) if verdict.clip else None, Path(verdict.trace) if verdict.trace else None, engine, shape
    )
    if steps is None:
        return None
    onset_s = (verdict.started_ns - verdict.start_ns) / 1e9
    rows = []
    for end in range(1, len(steps.time_s) + 1):
        target = _target(verdict.verdict == "real", float(steps.time_s[end - 1]) - onset_s)
        if target >= 0 and steps.mask[max(end - shape.history, 0) : end].any():
            rows.append((end, target))
    if not rows:
        return None
    history = {
        name: np.stack([_tail(steps.embeddings[name], end, shape.history) for end, _ in rows]) for name in MODALITIES
    }
    mask = np.stack([_tail(steps.mask, end, shape.history) for end, _ in rows])
    wrong = np.array([target for _, target in rows], np.float32)
    classes = np.zeros((len(rows), len(CLASSES)), np.float32)
    if verdict.label in CLASSES:
        classes[wrong > 0.5, CLASSES.index(verdict.label)] = 1
    # A false alarm was false in every modality; which one showed a real event nobody said.
    own = np.where((wrong[:, None] < 0.5) & mask.any(1), 0.0, -1.0).astype(np.float32)
    return Lesson(
        Windows(history, mask, wrong, own, classes, (verdict.verdict,) * len(rows)),
        float(np.clip(verdict.weight, 0, 1)),
    )


def _target(real: bool, since_onset_s: float) -> float:
    """1 wrong, 0 normal, −1 not known, for a step that ends so long after the onset."""
    if not real:
        return 0.0
    if since_onset_s < -2.0:
        return 0.0
    return 1.0 if 0.0 <= since_onset_s <= _SURE_S else -1.0


def _tail(array: F32, end: int, history: int) -> F32:
    part = array[max(end - history, 0) : end]
    return np.concatenate([np.zeros((history - len(part), *array.shape[1:]), np.float32), part])


def _fine_tune(head: FusionHead, lessons: Sequence[Lesson], replay: Windows, seed: int) -> None:
    """Half of each batch from verdicts, each event as often as any other; half replayed."""
    rng = np.random.default_rng([seed, 41])
    batches = [fusion_batch(lesson.windows) for lesson in lessons]
    judged = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    known = fusion_batch(replay)
    first = np.cumsum([0, *(len(batch[0]) for batch in batches)])
    weights = torch.tensor([lesson.weight for lesson in lessons])
    optimiser = torch.optim.AdamW(head.parameters(), _RATE, weight_decay=0.0)
    shown = Progress("fine-tuning", _STEPS)
    head.train()
    for step in range(1, _STEPS + 1):
        events = rng.integers(0, len(lessons), _BATCH)
        chosen = torch.from_numpy(rng.integers(first[events], first[events + 1]))
        replayed = torch.from_numpy(rng.integers(0, len(known[0]), _BATCH))
        mixed = tuple(torch.cat([new[chosen], old[replayed]]) for new, old in zip(judged, known, strict=True))
        value = fusion_loss(head, mixed, torch.cat([weights[torch.from_numpy(events)], torch.ones(_BATCH)]))
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        shown.at(step, f"loss {float(value.detach()):.3f}")
    head.eval()


def _origin(start: Path, shape: Preset) -> FusionHead:
    origin = fusion_head(shape)
    bundle.load_weights(start / bundle.WEIGHTS, origin)
    return origin.eval()


def _restrained(head: FusionHead, origin: FusionHead, frozen: Windows) -> tuple[float, float, float]:
    """Go as far from the start as the frozen windows allow: (stride, their AP before, and after). BundleError if no
    step at all is allowed."""
    first, goal = origin.state_dict(), {name: tensor.clone() for name, tensor in head.state_dict().items()}
    before = _frozen_ap(origin, frozen)
    for stride in _STRIDES:
        head.load_state_dict({name: first[name] + stride * (goal[name] - first[name]) for name in goal})
        after = _frozen_ap(head, frozen)
        if after >= before - _ALLOWED_FALL:
            return stride, before, after
    raise BundleError(
        f"what the verdicts teach makes the frozen windows worse (average precision {before:.3f}, then {after:.3f}): "
        "nothing was written; look for contradicting verdicts, or train anew from data"
    )


def _frozen_ap(head: FusionHead, frozen: Windows) -> float:
    known = frozen.wrong >= 0
    with torch.inference_mode():
        logit = head(*fusion_batch(frozen)[:4])[0].numpy()
    return average_precision(frozen.wrong[known], logit[known])


def _judged(head: FusionHead, lessons: Sequence[Lesson]) -> dict[str, float]:
    """Mean score of the windows that are wrong and of those that are not."""
    scores: dict[str, list[NDArray[Any]]] = {"real": [], "false": []}
    with torch.inference_mode():
        for lesson in lessons:
            batch = fusion_batch(lesson.windows)
            score = torch.sigmoid(head(*batch[:4])[0]).numpy()
            scores["real"].append(score[lesson.windows.wrong > 0.5])
            scores["false"].append(score[lesson.windows.wrong < 0.5])
    flat = {name: np.concatenate(parts) for name, parts in scores.items()}
    return {name: round(float(part.mean()), 4) for name, part in flat.items() if len(part)}


def _unpacked(replay: dict[str, NDArray[Any]], split: str) -> Windows:
    arrays = {
        name: np.asarray(replay[f"{split}_{name}"], np.float32)
        for name in (*MODALITIES, "mask", "wrong", "own", "classes")
    }
    history = {name: arrays[name] for name in MODALITIES}
    return Windows(history, arrays["mask"], arrays["wrong"], arrays["own"], arrays["classes"], ())


def _write(model: Model, start: Path, out: Path, head: FusionHead, figures: dict[str, Any]) -> None:
    """The bundle of `model` with another head: graphs, weights, golden scores, a word on the card, next counter."""
    old, shape = model.manifest, _shape(model.manifest)
    out.mkdir(parents=True, exist_ok=True)
    for name in old.files:
        shutil.copyfile(start / name, out / name)
    export(head, shape, "fusion", out / "fusion.onnx")
    lighten_file(out / "fusion.onnx")
    bundle.save_weights(out / bundle.WEIGHTS, head)
    arrays = bundle.load_arrays(out / bundle.GOLDEN)
    engine = compile_graphs({name: (out / f"{name}.onnx").read_bytes() for name in GRAPHS}, old)
    inputs = (arrays["frames"], arrays["pcm"], arrays["readings"])
    bundle.save_arrays(out / bundle.GOLDEN, bundle.golden(engine, shape, *inputs))
    card = (out / bundle.CARD).read_text(encoding="utf-8") if (out / bundle.CARD).is_file() else ""
    frozen, heat = figures["frozen_ap"], figures["temperatures"]["score"]
    told = (
        f"\n## Retrained from verdicts: release {old.counter + 1}\n"
        f"{figures['events']} judged events ({figures['windows']} windows) moved the head {figures['stride']:.0%}\n"
        f"of the way; average precision on the frozen windows {frozen['before']} before, {frozen['after']} after;\n"
        f"temperature of the score {heat['before']} before, {heat['after']} after.\n"
        f"Started from {model.hash}.\n"
    )
    (out / bundle.CARD).write_text(card + told, encoding="utf-8")
    bundle.seal(out, shape, old.thresholds, old.counter + 1)
    selftest(load(out), out)

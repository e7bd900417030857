"""Readers of public sets as their authors publish them, for users who have them on disk.

`root` is the folder that a set unpacks to. Labels come from each set's official annotation; files are looked up by
name wherever they lie below `root`, since mirrors pack them differently. None of these sets may train what ships.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import ConfigError
from models.data.media import STILLS, Layout, Pictures, Readings, Sound, has_sound, rows, told
from models.data.records import NORMAL, Recording, Span
from models.data.sets import FILMS, labels, spans_of, there

_SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".au")
_UCF_HZ, _XD_HZ, _SHANGHAI_HZ, _AVENUE_HZ, _PED2_HZ = 30.0, 24.0, 24.0, 25.0, 10.0
_LABELS = "labels.csv"
#: Names of columns that hold the time or the label of a log, in the order in which they are looked for.
_TIME = ("time", "timestamp", "datetime", "date", "time_s", "seconds")
_WRONG = ("anomaly", "label", "wrong", "is_anomaly", "attack", "occupancy")


def ucf_crime(root: Path) -> list[Recording]:
    """UCF-Crime: tests from `Temporal_Anomaly_Annotation*.txt` (frames at 30 a second), training videos from the
    official list `Anomaly_Train.txt`, whose entries are class/file. Group: the video."""
    films = _below(root, FILMS)
    table = _one(root, "Temporal_Anomaly_Annotation*.txt", "UCF-Crime")
    found, lost = [], 0
    for line in _lines(table):
        name, spans = _marked(table, line, _UCF_HZ)
        path = films.get(name)
        if path is None:
            lost += 1
            continue
        found.append(_film("ucf_crime", name, "test", path, "" if spans else NORMAL, spans, _UCF_HZ))
    for listed in sorted(root.rglob("Anomaly_Train.txt"))[:1]:
        for line in _lines(listed):
            kind, _, name = line.strip().rpartition("/")
            path = films.get(name)
            if path is None:
                lost += 1
                continue
            label = NORMAL if "normal" in kind.lower() else kind.rpartition("/")[2].lower()
            found.append(_film("ucf_crime", name, "train", path, label, (), _UCF_HZ))
    return _some(found, lost, "UCF-Crime", table)


def xd_violence(root: Path) -> list[Recording]:
    """XD-Violence: tests from `annotations.txt` (frames at 24 a second). By the authors' rule a test video that it
    does not name is normal; test videos lie in a folder with `test` in its name. Training videos carry their
    labels in their names alone, so here they are unlabelled."""
    table = _one(root, "annotations.txt", "XD-Violence")
    spans: dict[str, tuple[Span, ...]] = {}
    for line in _lines(table):
        name, marked = _marked(table, line, _XD_HZ, "violence")
        spans[_stem(name)] = marked
    found = []
    for name, path in sorted(_below(root, FILMS).items()):
        marked = spans.get(_stem(name), ())
        tested = bool(marked) or "test" in path.parent.name.lower()
        label = NORMAL if tested and not marked else ""
        # Films are cut into `<title>__#<from>_<to>…`: the title is the source.
        group = name.partition("__#")[0]
        found.append(_film("xd_violence", name, "test" if tested else "train", path, label, marked, _XD_HZ, group))
    return _some(found, len(set(spans) - {_stem(r.item) for r in found}), "XD-Violence", table)


def shanghaitech(root: Path) -> list[Recording]:
    """ShanghaiTech Campus: `training/videos`, `testing/frames/<clip>` with `testing/test_frame_mask/<clip>.npy`, one
    label a frame. Group: the camera, the first number of a clip."""
    masks = sorted(root.rglob("test_frame_mask/*.npy"))
    if not masks:
        raise ConfigError(f"ShanghaiTech: no frame labels; looked for {root}/testing/test_frame_mask/*.npy")
    found = [
        _film("shanghaitech", path.name, "train", path, NORMAL, (), None, f"train/{path.stem.partition('_')[0]}")
        for path in sorted(root.rglob("training/videos/*"))
        if path.suffix in FILMS
    ]
    lost = 0
    for mask in masks:
        path = mask.parent.parent / "frames" / mask.stem
        if not path.is_dir():
            lost += 1
            continue
        labels = _frame_labels(mask)
        frames = sum(frame.suffix.lower() in STILLS for frame in path.iterdir())
        if frames != len(labels):
            raise ConfigError(f"{mask} labels {len(labels)} frames, and {path} holds {frames}")
        spans = spans_of(labels, _SHANGHAI_HZ, "unusual")
        group = f"test/{mask.stem.partition('_')[0]}"
        pictures = Pictures(path, rate_hz=_SHANGHAI_HZ)
        found.append(
            Recording("shanghaitech", mask.stem, "test", group, "" if spans else NORMAL, spans, pictures=pictures)
        )
    return _some(found, lost, "ShanghaiTech", masks[0].parent)


def avenue(root: Path) -> list[Recording]:
    """CUHK Avenue: `training_videos`, `testing_videos`; `<n>_label.mat` (volLabel, one mask a frame), or one `.npy` a
    clip with one label or mask a frame. One camera: clips are the groups."""
    labels = {int(m.group()): p for p in sorted(root.rglob("*_label.mat")) if (m := re.match(r"\d+", p.name))}
    labels |= {int(p.stem): p for p in sorted(root.rglob("*.npy")) if p.stem.isdecimal()}
    if not labels:
        raise ConfigError(f"Avenue: no labels below {root}; looked for *_label.mat (volLabel) and <clip>.npy")
    found, lost = [], 0
    for path in sorted(p for p in root.rglob("*") if p.suffix in FILMS and p.stem.isdecimal()):
        if "train" in path.parent.name.lower():
            found.append(_film("avenue", f"train/{path.name}", "train", path, NORMAL, (), _AVENUE_HZ))
        elif int(path.stem) in labels:
            spans = spans_of(_frame_labels(labels[int(path.stem)]), _AVENUE_HZ, "unusual")
            found.append(
                _film("avenue", f"test/{path.name}", "test", path, "" if spans else NORMAL, spans, _AVENUE_HZ)
            )
        else:
            lost += 1
    return _some(found, lost, "Avenue", root)


def ped2(root: Path) -> list[Recording]:
    """UCSD Ped2 as published: `Train/Train001/*.tif`, `Test/Test001/*.tif`, ranges of frames in `Test/*.m`."""
    table = _one(root, "UCSDped*.m", "UCSD Ped2")
    ranges = [
        [tuple(map(int, pair)) for pair in re.findall(r"(\d+)\s*:\s*(\d+)", line)]
        for line in _lines(table)
        if "gt_frame" in line and re.search(r"\d\s*:\s*\d", line)
    ]
    found = [
        Recording("ped2", path.name, "train", path.name, NORMAL, pictures=Pictures(path, rate_hz=_PED2_HZ))
        for path in sorted(root.rglob("Train[0-9][0-9][0-9]"))
        if path.is_dir()
    ]
    clips = [path for path in sorted(table.parent.glob("Test[0-9][0-9][0-9]")) if path.is_dir()]
    for path in clips:
        # `TestVideoFile{end+1}.gt_frame = [61:180];`: one line a clip, in order, 1-based, ends included.
        number = int(path.name[-3:])
        if not 0 < number <= len(ranges):
            raise ConfigError(f"{table} marks {len(ranges)} clips: nothing says what is unusual in {path.name}")
        spans = tuple(
            Span((first - 1.5) / _PED2_HZ, (last - 0.5) / _PED2_HZ, "unusual") for first, last in ranges[number - 1]
        )
        found.append(
            Recording(
                "ped2",
                path.name,
                "test",
                path.name,
                "" if spans else NORMAL,
                spans,
                pictures=Pictures(path, rate_hz=_PED2_HZ),
            )
        )
    return _some(found, len(ranges) - len(clips), "UCSD Ped2", table)


def esc50(root: Path) -> list[Recording]:
    """ESC-50: `meta/esc50.csv`, `audio/`. Split: the fold. Group: the Freesound clip."""
    table = labels(root / "meta" / "esc50.csv", "filename", "fold", "src_file", "category")
    return [
        Recording(
            "esc50",
            row["filename"],
            f"fold{row['fold']}",
            row["src_file"],
            row["category"],
            sound=Sound(path),
            facts=row,
        )
        for path, row in there(root / "audio", [(row["filename"], row) for row in table], "ESC-50")
    ]


def urbansound8k(root: Path) -> list[Recording]:
    """UrbanSound8K: `metadata/UrbanSound8K.csv`, `audio/fold<n>/`. Split: the fold. Group: the Freesound clip."""
    table = labels(root / "metadata" / "UrbanSound8K.csv", "slice_file_name", "fsID", "fold", "class")
    items = [(f"fold{row['fold']}/{row['slice_file_name']}", row) for row in table]
    return [
        Recording(
            "urbansound8k",
            row["slice_file_name"],
            f"fold{row['fold']}",
            row["fsID"],
            row["class"],
            sound=Sound(path),
            facts=row,
        )
        for path, row in there(root / "audio", items, "UrbanSound8K")
    ]


def mimii(root: Path) -> list[Recording]:
    """MIMII: `<machine>/id_<nn>/normal|abnormal/*.wav`. By the set's own specification the folder is the label: there
    is no table. It has no split: divide by machine (`group`)."""
    found = [
        Recording(
            "mimii",
            str(path.relative_to(root)),
            "",
            "/".join(path.relative_to(root).parts[:-2]),
            NORMAL if path.parent.name == "normal" else "abnormal",
            sound=Sound(path),
        )
        for path in sorted(root.rglob("id_*/*normal/*.wav"))
        if path.parent.name in ("normal", "abnormal")
    ]
    return _some(found, 0, "MIMII", root / "<machine>" / "id_00" / "normal")


def audio_folder(root: Path) -> list[Recording]:
    """Any folder of sounds. `labels.csv` (file, label; split, group, start_s, end_s if there are any) labels them,
    more than one row a file where more than one span is marked; without it they are unlabelled."""
    if not (root / _LABELS).is_file():
        items = [str(path.relative_to(root)) for path in _every(root, _SOUNDS)]
        found = [Recording("audio_folder", item, "", item, sound=Sound(root / item)) for item in items]
        return _some(found, 0, "audio folder", root)
    by_file: dict[str, list[dict[str, str]]] = {}
    for row in rows(root / _LABELS):
        name = row.get("file") or row.get("filename")
        if not name or "label" not in row:
            raise ConfigError(f"{root / _LABELS}: a row without a file or a label; its header names {', '.join(row)}")
        by_file.setdefault(name, []).append(row)
    items_there = there(root, [(name, {"item": name}) for name in by_file], "audio folder")
    return [_labelled(path, row["item"], by_file[row["item"]]) for path, row in items_there]


def sensor_csv(root: Path) -> list[Recording]:
    """Any table of sensors, or a folder of them: a header, a column of times (time, timestamp, datetime, date: ISO or
    seconds; none: one row a second), columns of numbers, and `anomaly`, `label` or `wrong` (0/1) if it is labelled.
    Split and group are those of the file: a column would not survive neighbouring rows."""
    paths = [root] if root.is_file() else sorted(root.rglob("*.csv"))
    found = []
    for path in paths:
        separator, header = _header(path)
        known = {name.strip().lower(): name for name in header}
        time = next((known[name] for name in _TIME if name in known), None)
        wrong = next((known[name] for name in _WRONG if name in known), None)
        item = path.name if path == root else str(path.relative_to(root))
        layout = Layout(time=time, wrong=wrong, separator=separator)
        found.append(Recording("sensor_csv", item, "", item, readings=Readings(path, layout)))
    return _some(found, 0, "sensor CSV", root / "*.csv")


def _labelled(path: Path, item: str, lines: list[dict[str, str]]) -> Recording:
    first = lines[0]
    for column in ("split", "group"):
        if len({line.get(column) or "" for line in lines}) > 1:
            raise ConfigError(f"{_LABELS}: {item} has two values of {column!r}: a file is of one {column}")
    spans = tuple(
        _span(item, line)
        for line in lines
        if line.get("start_s") and line.get("end_s") and line["label"] not in ("", NORMAL, None)
    )
    label = "" if spans else first["label"] or ""
    return Recording(
        "audio_folder",
        item,
        first.get("split") or "",
        first.get("group") or item,
        label,
        spans,
        sound=Sound(path),
        facts=first,
    )


def _span(item: str, line: Mapping[str, str]) -> Span:
    try:
        span = Span(float(line["start_s"]), float(line["end_s"]), line["label"])
    except ValueError as error:
        raise ConfigError(f"{_LABELS}: {item}: start_s and end_s are seconds ({error})") from error
    if not 0 <= span.start_s < span.end_s:
        raise ConfigError(f"{_LABELS}: {item}: nothing lies from {span.start_s:g} s until {span.end_s:g} s")
    return span


def _marked(table: Path, line: str, rate_hz: float, label: str = "") -> tuple[str, tuple[Span, ...]]:
    """A line of an annotation: the video, what is in it unless `label` says that, and pairs of first and last frame;
    −1 for none."""
    name, *words = line.split()
    kind, numbers = (label, words) if label else ("".join(words[:1]).lower(), words[1:])
    try:
        frames = [int(number) for number in numbers]
        pairs = [pair for pair in zip(frames[::2], frames[1::2], strict=True) if pair[0] >= 0]
    except ValueError as error:
        raise ConfigError(f"{table}: {line!r} does not end with pairs of frames ({error})") from error
    if not numbers or any(begin > end for begin, end in pairs):
        raise ConfigError(f"{table}: {line!r} does not end with pairs of a first and a later frame")
    return name, tuple(Span(begin / rate_hz, end / rate_hz, kind) for begin, end in pairs)


def _film(  # noqa: PLR0917
    source: str,
    name: str,
    split: str,
    path: Path,
    label: str,
    spans: tuple[Span, ...],
    rate_hz: float | None,
    group: str = "",
) -> Recording:
    sound = Sound(path) if has_sound(path) else None
    return Recording(
        source, name, split, group or name, label, spans, pictures=Pictures(path, rate_hz=rate_hz), sound=sound
    )


def _below(root: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Name → path of every file of a kind; ConfigError if the folder is not there."""
    return {path.name: path for path in _every(root, suffixes)}


def _every(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Every file of a kind below the folder, in order; ConfigError if the folder is not there."""
    if not root.is_dir():
        raise ConfigError(f"{root} is no folder: name the one that the set was unpacked to")
    return [path for path in sorted(root.rglob("*")) if path.suffix.lower() in suffixes]


def _one(root: Path, pattern: str, title: str) -> Path:
    found = sorted(root.rglob(pattern))
    if not found:
        raise ConfigError(
            f"{title}: no annotation below {root}; looked for {pattern}. It comes with the videos: put it there"
        )
    return found[0]


def _lines(path: Path) -> list[str]:
    try:
        found = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not found:
        raise ConfigError(f"{path} is empty")
    return found


def _stem(name: str) -> str:
    return name.removesuffix(".mp4")


def _array(path: Path) -> NDArray[np.generic]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the frame labels {path}: {error}") from error


def _frame_labels(path: Path) -> list[int]:
    """One label a frame, or one mask: 1 where anything is marked."""
    if path.suffix == ".npy":
        array = _array(path)
        if array.ndim == 0 or array.dtype.kind not in "biuf":
            raise ConfigError(f"{path} holds no numbers, one label or mask a frame ({array.dtype} {array.shape})")
        return [int(np.any(frame)) for frame in (array.ravel() if array.size == len(array) else array)]
    from scipy.io import loadmat  # type: ignore[import-untyped]
    from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]

    try:
        volume = loadmat(path)["volLabel"].ravel()
    except (OSError, ValueError, LookupError, NotImplementedError, MatReadError) as error:
        raise ConfigError(f"cannot read volLabel of {path}: {error!r}") from error
    return [int(np.any(mask)) for mask in volume]


def _header(path: Path) -> tuple[str, list[str]]:
    """The separator of a table, and its columns."""
    first = _lines(path)[0]
    separator = max((";", ",", "\t"), key=first.count)
    return separator, next(csv.reader([first], delimiter=separator))


def _some(found: Iterable[Recording], lost: int, title: str, looked: Path) -> list[Recording]:
    recordings = list(found)
    if not recordings:
        raise ConfigError(f"{title}: nothing to read; looked for what {looked} names")
    if lost > 0:
        told(f"{title}: {lost} items of its annotation are not there and left out")
    return recordings

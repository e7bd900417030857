"""Readers of the recorded sets that figures and the shipped weights come from.

Each takes the folder of the set, or the one above it, and gives every item of its table that lies there. Labels and
splits come from the tables, never from file names. Items that a table names and nobody has are left out and counted.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from edge_agent.errors import ConfigError
from models.data.media import Box, Layout, Pictures, Readings, Sound, film_length, rows, told
from models.data.records import NORMAL, Recording, Span, folder

#: Sampling+ forbids advertising use and is no free licence: these clips train nothing that ships.
_REFUSED_LICENCES = ("CC-Sampling+",)
#: The boxes of `fire_video` are in the pixels of the film before it was made smaller.
_BOXED_SIZE = (426, 240)
_DEV_SHARE = 0.25
FILMS = (".mp4", ".avi", ".mkv", ".mov", ".webm")
_PED2_HZ = 10.0
_NAB_TRAIN_SHARE = 0.6
#: Column, scale and offset of what the model's sensor channels know, in its units.
OCCUPANCY = Layout(
    {"temperature": ("Temperature", 1, 0), "humidity": ("Humidity", 1, 0), "co2": ("CO2", 1, 0)},
    time="date",
    wrong="Occupancy",
)
SMOKE_IOT = Layout(
    {"temperature": ("Temperature[C]", 1, 0), "humidity": ("Humidity[%]", 1, 0), "co2": ("eCO2[ppm]", 1, 0)},
    wrong="Fire Alarm",
)
SKAB_COLUMNS = (
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
)
_NAB_AMBIENT = "realKnownCause/ambient_temperature_system_failure.csv"


def home(root: Path, name: str) -> Path:
    """The set's own folder: `root` itself if it is named like the set, else the one in it."""
    return root if root.name == name and root.is_dir() else folder(root, name)


def there(
    base: Path, items: Iterable[tuple[str, Mapping[str, str]]], title: str
) -> list[tuple[Path, Mapping[str, str]]]:
    """Path and row of each item that exists; ConfigError if none does."""
    found, lost, first = [], 0, ""
    for name, row in items:
        path = base / name
        if not path.exists():  # the same item in another container
            path = next(iter(sorted(path.parent.glob(f"{glob.escape(path.stem)}.*"))), path)
        if path.exists():
            found.append((path, row))
        else:
            lost, first = lost + 1, first or str(path)
    if not found:
        raise ConfigError(f"{title}: its table names {lost} files and none is there; looked for {first or base}")
    if lost:
        told(f"{title}: {lost} items of its table are not there and left out")
    return found


def esc10(root: Path) -> list[Recording]:
    """ESC-10: `meta.csv`, `audio/`. Group: the Freesound clip; `fold` is among the facts."""
    base = home(root, "esc10")
    table = [(row["filename"], row) for row in labels(base / "meta.csv", "filename", "category", "fold", "licence")]
    return [
        Recording(
            "esc10",
            row["filename"],
            row["split"],
            row["freesound_clip_id"],
            row["category"],
            sound=Sound(path),
            ships=row["licence"] not in _REFUSED_LICENCES,
            facts=row,
        )
        for path, row in there(base / "audio", table, "esc10")
    ]


def sesa(root: Path) -> list[Recording]:
    """SESA: `meta.csv`; split by `use`, which keeps near duplicates (`group`) together; the official one leaks."""
    base = home(root, "sesa")
    table = [(row["filename"], row) for row in labels(base / "meta.csv", "filename", "category", "use", "group")]
    return [
        Recording(
            "sesa",
            row["filename"],
            row["use"],
            row["group"],
            NORMAL if row["category"] == "casual" else row["category"],
            sound=Sound(path),
            ships=True,
            facts=row,
        )
        for path, row in there(base, table, "sesa")
    ]


def fight_surv(root: Path) -> list[Recording]:
    """Fights before surveillance cameras: `labels.csv`, `clips/`. Group: the video a clip was cut from."""
    base = home(root, "fight_surv")
    table = [(row["clip"], row) for row in labels(base / "labels.csv", "clip", "fight", "source_video", "audio")]
    return [
        Recording(
            "fight_surv",
            row["clip"],
            row["split"],
            row["source_video"],
            "fight" if row["fight"] == "1" else NORMAL,
            pictures=Pictures(path),
            # `silent` is digital silence in the source: no sound at all.
            sound=Sound(path) if row["audio"] in ("ok", "quiet") else None,
            facts=row,
        )
        for path, row in there(base / "clips", table, "fight_surv")
    ]


def fire_images(root: Path) -> list[Recording]:
    """Stills with and without fire: `labels.csv`. Rights not cleared: for evaluation only."""
    base = home(root, "fire_images")
    table = [(row["filename"], row) for row in labels(base / "labels.csv", "filename", "fire", "split")]
    return [
        Recording(
            "fire_images",
            row["filename"],
            row["split"],
            row["filename"],
            "fire" if row["fire"] == "1" else NORMAL,
            pictures=Pictures(path),
            facts=row,
        )
        for path, row in there(base, table, "fire_images")
    ]


def fire_video(root: Path) -> list[Recording]:
    """One real fire (CC0) with boxes in `house6_boxes.csv`; its last quarter is dev."""
    base = home(root, "fire_video")
    film = next(iter(sorted(p for p in base.glob("house6.*") if p.suffix.lower() in FILMS)), base / "house6.mp4")
    boxes: dict[int, list[Box]] = {}
    width, height = _BOXED_SIZE
    for row in labels(base / "house6_boxes.csv", "frame", "x", "y", "w", "h"):
        x, y, w, h = (float(row[key]) for key in "xywh")
        boxes.setdefault(int(row["frame"]), []).append((x / width, y / height, (x + w) / width, (y + h) / height))
    marks = {index: tuple(found) for index, found in boxes.items()}
    return _quarters("fire_video", film, "fire", marks)


def sample_videos(root: Path) -> list[Recording]:
    """People and cars going about their business (CC BY 4.0, Apache-2.0): normal, it says; last quarter dev."""
    base = home(root, "sample_videos")
    films = sorted(path for path in base.glob("*") if path.suffix.lower() in FILMS)
    if not films:
        raise ConfigError(f"no film in {base}; looked for {', '.join(FILMS)}")
    return [part for path in films for part in _quarters("sample_videos", path, NORMAL, {})]


def ucsd_ped2(root: Path) -> list[Recording]:
    """UCSD Ped2 as films: `train/`, `test/`, frame labels in `test_frame_labels.csv`. Evaluation only."""
    base = home(root, "ucsd_ped2")
    found = [
        Recording(
            "ucsd_ped2", f"train/{path.name}", "train", path.stem, NORMAL, pictures=Pictures(path, rate_hz=_PED2_HZ)
        )
        for path in sorted(p for p in (base / "train").glob("*") if p.suffix.lower() in FILMS)
    ]
    frames: dict[str, list[int]] = {}
    for row in labels(base / "test_frame_labels.csv", "clip", "frame", "abnormal"):
        frames.setdefault(row["clip"], []).append(int(row["abnormal"]))
    named = [(clip, path) for clip in frames for path in sorted((base / "test").glob(f"{clip}.*"))]
    if not found and not named:
        raise ConfigError(f"ucsd_ped2: no film in {base / 'train'} or {base / 'test'}")
    if len(named) < len(frames):
        told(f"ucsd_ped2: {len(frames) - len(named)} test clips of the table are not there and left out")
    return found + [
        Recording(
            "ucsd_ped2",
            f"test/{path.name}",
            "test",
            f"test/{clip}",
            "" if any(frames[clip]) else NORMAL,
            spans_of(frames[clip], _PED2_HZ, "unusual"),
            pictures=Pictures(path, rate_hz=_PED2_HZ),
            facts={"clip": clip},
        )
        for clip, path in named
    ]


def occupancy(root: Path) -> list[Recording]:
    """An office, one row a minute (CC BY 4.0): 1 where someone is in. Light is nearly the label: never read here."""
    base = home(root, "occupancy")
    splits = {"datatraining.csv": "train", "datatest.csv": "dev", "datatest2.csv": "test"}
    found = there(base, [(name, {"split": split}) for name, split in splits.items()], "occupancy")
    return [
        Recording("occupancy", path.name, row["split"], path.name, readings=Readings(path, OCCUPANCY), ships=True)
        for path, row in found
    ]


def smoke_iot(root: Path) -> list[Recording]:
    """A smoke detector's log, 1 Hz, in contiguous blocks of a quarter: rows at random would leak. Evaluation only."""
    base = home(root, "smoke_iot")
    path = base / "smoke_detection_iot.csv"
    readings = Readings(path, SMOKE_IOT)
    length = len(readings.log().time_s)
    edges = [length * i // 4 for i in range(5)]
    return [
        Recording(
            "smoke_iot",
            f"rows {edges[i]}-{edges[i + 1] - 1}",
            "dev" if i == 3 else "train",
            str(i),
            readings=Readings(path, SMOKE_IOT, rows=slice(edges[i], edges[i + 1])),
        )
        for i in range(4)
    ]


def skab(root: Path) -> list[Recording]:
    """SKAB: a water circuit, about 1 Hz. `anomaly-free` and `valve1` train, `valve2` dev, the rest test. GPL data."""
    base = home(root, "skab")
    splits = {"anomaly-free": "train", "valve1": "train", "valve2": "dev"}
    layout = Layout({name: (name, 1, 0) for name in SKAB_COLUMNS}, time="datetime", wrong="anomaly", separator=";")
    paths = sorted(base.glob("*/*.csv"), key=lambda p: (p.parent.name, p.stem.zfill(4)))
    if not paths:
        raise ConfigError(f"skab: no run in {base}; looked for {base / 'valve1' / '0.csv'} and its like")
    return [
        Recording(
            "skab",
            f"{path.parent.name}/{path.name}",
            splits.get(path.parent.name, "test"),
            f"{path.parent.name}/{path.stem}",
            readings=Readings(path, layout),
        )
        for path in paths
    ]


def nab(root: Path) -> list[Recording]:
    """Numenta: `data/<category>/<stream>.csv` with the windows of `labels/combined_windows.json` (MIT)."""
    base = home(root, "nab")
    path = base / "labels" / "combined_windows.json"
    try:
        windows = msgspec.json.decode(path.read_bytes(), type=dict[str, list[tuple[str, str]]])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"cannot read the label windows {path}: {error}") from error
    table = [(name, {"stream": name}) for name in windows]
    return [
        Recording(
            "nab",
            row["stream"],
            "",
            row["stream"],
            readings=Readings(
                path,
                _nab_layout(row["stream"]),
                windows=tuple(windows[row["stream"]]),
            ),
            ships=True,
            facts=row,
        )
        for path, row in there(base / "data", table, "nab")
    ]


def ambient(root: Path) -> list[Recording]:
    """The room temperature of `nab` as a background (°C, one row an hour): labelled failures are cut out."""
    found = next((r for r in nab(root) if r.item == _NAB_AMBIENT), None)
    if found is None:
        raise ConfigError(f"nab: {_NAB_AMBIENT} is not there")
    log = found.log()
    log = log.part(log.wrong != 1)
    cut = int(len(log.time_s) * _NAB_TRAIN_SHARE)
    parts = (("train", slice(0, cut)), ("dev", slice(cut, None)))
    return [
        Recording(
            "nab",
            _NAB_AMBIENT,
            split,
            f"{_NAB_AMBIENT} {split}",
            NORMAL,
            readings=Readings(held=log, rows=part),
            ships=True,
        )
        for split, part in parts
    ]


def spans_of(frames: Iterable[int], rate_hz: float, label: str) -> tuple[Span, ...]:
    """Intervals from one label a frame; each reaches half a frame to both sides, so that a frame's time is inside."""
    found: list[Span] = []
    begin: int | None = None
    index = -1
    for index, wrong in enumerate(frames):
        if wrong and begin is None:
            begin = index
        elif not wrong and begin is not None:
            found.append(Span((begin - 0.5) / rate_hz, (index - 0.5) / rate_hz, label))
            begin = None
    if begin is not None:
        found.append(Span((begin - 0.5) / rate_hz, (index + 0.5) / rate_hz, label))
    return tuple(found)


def _nab_layout(stream: str) -> Layout:
    # Its degrees are Fahrenheit.
    columns = (
        {"temperature": ("value", 1 / 1.8, -32 / 1.8)} if stream == _NAB_AMBIENT else {"value": ("value", 1.0, 0.0)}
    )
    return Layout(columns, time="timestamp")


def _quarters(name: str, path: Path, label: str, boxes: Mapping[int, tuple[Box, ...]]) -> list[Recording]:
    """A film as train (the first three quarters) and dev: neighbours in time are near duplicates."""
    rate, length_s = film_length(path)
    cut_s = round(length_s * (1 - _DEV_SHARE) * rate) / rate
    parts = [("train", 0.0, cut_s), ("dev", cut_s, float("inf"))]
    return [
        Recording(
            name,
            path.name,
            split,
            f"{path.stem} {split}",
            label,
            pictures=Pictures(path, start_s=start_s, end_s=end_s, boxes=boxes),
            ships=True,
        )
        for split, start_s, end_s in parts
        if min(end_s, length_s) - start_s >= 0.4
    ]


def labels(path: Path, *needed: str) -> list[dict[str, str]]:
    """All rows of a label table; ConfigError for a column that is not there."""
    found = list(rows(path))
    lost = [name for name in needed if found and name not in found[0]]
    if lost:
        raise ConfigError(f"{path} has no column {lost[0]!r}; there are {', '.join(map(str, found[0]))}")
    return found


Reader = Callable[[Path], list[Recording]]
#: Name of a set in the evaluation folder → its reader.
EVALUATION: dict[str, Reader] = {
    "esc10": esc10,
    "sesa": sesa,
    "fight_surv": fight_surv,
    "fire_images": fire_images,
    "fire_video": fire_video,
    "sample_videos": sample_videos,
    "ucsd_ped2": ucsd_ped2,
    "occupancy": occupancy,
    "nab": nab,
    "skab": skab,
    "smoke_iot": smoke_iot,
}

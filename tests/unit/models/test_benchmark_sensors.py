"""Benchmarks of sensor logs: made-up logs with a known fault, read however they are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.errors import ConfigError
from models.benchmark import novelty, rooms, sensors
from models.benchmark.record import Block, Roots
from models.benchmark.tables import read, tables
from models.config import Schedule
from models.data.media import Log

SHIPPED = Path(__file__).parents[3] / "edge_agent" / "bundle"
RNG = np.random.default_rng


def _log(seed: int, fault: bool, length: int = 260) -> tuple[np.ndarray, np.ndarray]:
    """Three channels of noise about a level; the third jumps by ten deviations between rows 200 and 240."""
    values = RNG(seed).normal([20.0, 1.0, 300.0], [0.5, 0.01, 4.0], (length, 3))
    wrong = np.zeros(length, int)
    if fault:
        wrong[200:240] = 1
        values[200:240, 2] += 40.0
    return values, wrong


def _write(path: Path, names: list[str], values: np.ndarray, wrong: np.ndarray | None, separator: str = ";") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    label = [] if wrong is None else ["anomaly", "changepoint"]
    lines = [separator.join(["datetime", *names, *label])]
    for row, one in enumerate(values):
        said = [] if wrong is None else [f"{wrong[row]}.0", "0.0"]
        time = f"2020-03-09 10:{row // 60 % 60:02d}:{row % 60:02d}"
        lines.append(separator.join([time, *(f"{value:.4f}" for value in one), *said]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


NAMES = ["Temperature", "Pressure", "Flow"]


def _skab(root: Path) -> Path:
    for name, seed in (("valve1/0", 0), ("valve1/1", 1), ("valve2/0", 2)):
        _write(root / "skab" / f"{name}.csv", NAMES, *_log(seed, True))
    _write(root / "skab" / "anomaly-free" / "anomaly-free.csv", NAMES, _log(3, False)[0], None)
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that has learned next to nothing, in next to no time."""
    monkeypatch.setattr(sensors, "ADAPT", 150)
    monkeypatch.setattr(sensors, "_SHORTEST", 200)
    learn, live = novelty.train, rooms.train
    few = Schedule(steps=4, batch=16, rate=3e-3)
    monkeypatch.setattr(novelty, "train", lambda p, runs, seed: learn(p, runs, seed, few, 64))
    monkeypatch.setattr(rooms, "train", lambda p, known, seed, step_s: live(p, known, seed, step_s, few))
    monkeypatch.setattr(sensors, "_outlier_detectors", dict)
    monkeypatch.setattr(sensors, "_untrained", lambda known, tested, seed: {})


def _figures(block: Block) -> dict[str, float]:
    return next(iter(block.judged.values())).metrics


@pytest.mark.usefixtures("quick")
def test_a_jump_is_found_whatever_the_columns_are_called_and_in_whatever_unit(tmp_path: Path):
    root = _skab(tmp_path / "one")
    values, wrong = _log(7, True)
    _write(tmp_path / "two" / "skab" / "other" / "1.csv", ["a", "b", "c"], values * 3.0 - 5.0, wrong, ",")
    _write(tmp_path / "two" / "skab" / "other" / "2.csv", NAMES[1:], values[:, 1:], wrong)
    block = sensors.skab_recipe(Roots(root, tmp_path / "two", ("onnxruntime",)), 0)
    assert block.n == 220
    assert _figures(block)["f1"] > 0.7
    assert _figures(block)["auc"] > 0.75  # the rows after the fault are in its windows still
    assert block.notes == [
        "columns that no file of the train part has: a, b, c; judged alike",
        "columns of the train part that no tested file has: Temperature",
    ]
    assert "SKAB" in str(list(block.baselines)) or "T2 of the channels, median of 5" in block.baselines
    shipped = sensors.skab_bundle(Roots(root, tmp_path / "two", ("onnxruntime",)), 0, SHIPPED)
    assert list(shipped.judged) == [("onnxruntime", "int8")]
    assert _figures(shipped)["auc"] > 0.7
    assert "the device's normal memory" in shipped.baselines
    row = shipped.judged["onnxruntime", "int8"].predictions[60]
    assert (row.key, row.item, row.label) == ("row", "other/1.csv:210", 1)


def test_one_root_tests_valve2_two_roots_everything_that_is_labelled(tmp_path: Path):
    root = _skab(tmp_path)
    found = tables(Roots(root, root), sensors.skab_tables, "skab")
    assert [t.item for t in found.train] == ["anomaly-free/anomaly-free.csv", "valve1/0.csv", "valve1/1.csv"]
    assert [t.item for t in found.test] == ["valve2/0.csv"]
    _write(tmp_path / "b" / "skab" / "valve1" / "0.csv", NAMES, *_log(0, True))
    _write(tmp_path / "b" / "skab" / "new.csv", NAMES, *_log(9, True))
    found = tables(Roots(root, tmp_path / "b"), sensors.skab_tables, "skab")
    assert [t.item for t in found.test] == ["new.csv", "valve1/0.csv"]
    assert "valve1/0.csv" not in [t.item for t in found.train]
    assert "valve2/0.csv" in [t.item for t in found.train]
    with pytest.raises(ConfigError, match="skab: no file is left"):
        tables(Roots(root, tmp_path / "nowhere"), sensors.skab_tables, "skab")


def test_labels_and_what_follows_from_them_are_no_channels(tmp_path: Path):
    _write(tmp_path / "a.csv", NAMES, *_log(0, True))
    table = read(tmp_path / "a.csv", "a.csv", "")
    assert table.log.names == tuple(NAMES)
    assert table.log.wrong.sum() == 40
    (tmp_path / "b.csv").write_text("x;label\n1;0\n")
    assert read(tmp_path / "b.csv", "b.csv", "").log.names == ("x",)
    (tmp_path / "c.csv").write_text("label\n0\n")
    with pytest.raises(ConfigError, match="no column of readings"):
        read(tmp_path / "c.csv", "c.csv", "")


def test_missing_values_still_channels_and_too_many_channels_are_taken_as_they_are():
    values = RNG(0).normal(0, 1, (500, 14))
    values[:, 3] = 7.0
    values[100:110, 0] = np.nan
    values[:, 5] = np.nan
    log = Log(np.arange(500.0), tuple(map(str, range(14))), values, np.full(500, -1, np.int8))
    run = novelty.run_of("x", log, 400)
    assert run.rows.shape == (500, novelty.PLACES)
    assert np.isfinite(novelty.held(run)).all()
    shown = novelty.windows(run.rows, np.arange(500), 64)
    assert np.isfinite(shown).all()
    assert shown[0, 2].sum(1).max() == 1  # of the first row, only itself is known


def test_the_drift_of_other_runs_makes_a_run_that_wanders_less_surprising():
    log = Log(np.arange(700.0), ("a", "b"), RNG(0).normal(0, 1, (700, 2)), np.zeros(700, np.int8))
    run = novelty.run_of("x", log, 400)
    offset = novelty.offsets(run, novelty.held(run), 10, 64)
    moved = offset + np.where(np.arange(700) >= 400, 1.0, 0.0)[:, None] * [1.0, 0.0]
    wander = novelty.drift([(run.names, run, moved)])
    plain, known = (novelty.surprise(run, moved, w, 64)[450:].mean() for w in (None, wander.of(run.names)))
    assert plain > known + 1.0
    other = wander.of(("new", "b"))
    assert other[1, 1] == wander.covariance[1, 1]
    assert other[0, 0] == np.median(np.diag(wander.covariance))
    assert other[0, 1] == 0.0


@pytest.mark.usefixtures("quick")
def test_any_folder_of_tables_is_judged_file_by_file(tmp_path: Path):
    for seed in range(2):
        values, wrong = _log(seed, True)
        _write(tmp_path / "sensor_csv" / f"{seed}.csv", NAMES[seed:], values[:, seed:], wrong, ",")
    _write(tmp_path / "sensor_csv" / "quiet.csv", NAMES, _log(5, False)[0], None, ",")
    roots = Roots(tmp_path, tmp_path, ("openvino",))
    block = sensors.csv_recipe(roots, 0)
    assert block.n == 220
    assert _figures(block)["auc"] > 0.7
    assert _figures(sensors.csv_bundle(roots, 0, SHIPPED))["auc"] > 0.7
    with pytest.raises(ConfigError, match="column `anomaly`"):
        sensors.csv_recipe(replace(roots, test=tmp_path / "sensor_csv" / "none"), 0)


def _office(root: Path, name: str, seed: int, header: str = "date,Temperature,Humidity,Light,CO2,Occupancy") -> None:
    rng = RNG(seed)
    lines = [header]
    for minute in range(300):
        here = int(100 <= minute < 200)
        co2 = 450 + 400 * here + rng.normal(0, 5)
        light = 400 * here + rng.uniform(0, 5)
        cells = [f"2015-02-04 {10 + minute // 60}:{minute % 60:02d}:00", f"{21 + rng.normal(0, 0.1):.2f}"]
        cells += [f"{26 + rng.normal(0, 0.1):.2f}", f"{light:.1f}", f"{co2:.1f}", str(here)]
        lines.append(",".join(cells[: len(header.split(","))]))
    (root / "occupancy").mkdir(parents=True, exist_ok=True)
    (root / "occupancy" / name).write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("quick")
def test_a_used_room_is_judged_with_and_without_light(tmp_path: Path):
    _office(tmp_path, "datatraining.csv", 0)
    _office(tmp_path, "datatest.csv", 1)
    roots = Roots(tmp_path, tmp_path, ("onnxruntime",))
    block = rooms.recipe(roots, 0)
    assert block.n == 300
    assert set(_figures(block)) == {"accuracy", "accuracy_no_light", "auc", "auc_no_light"}
    assert block.baselines["logistic regression of the minute"]["accuracy"] == 1.0
    assert set(_figures(rooms.bundle(roots, 0, SHIPPED))) == set(_figures(block))


def test_a_minute_that_is_missing_is_the_last_one_grown_old():
    values = np.array([[20.0], [21.0], [25.0]])
    log = Log(np.array([0.0, 60.0, 240.0]), ("Temperature",), values, np.zeros(3, np.int8))
    shown = rooms.windows(rooms.room("x", log), np.array([2]), 6, 60.0)[0]
    assert shown[0, 0].tolist() == [0, 20, 21, 21, 21, 25]
    assert shown[1, 0].tolist() == [0, 0, 0, 60, 120, 0]
    assert shown[2, 0].tolist() == [0, 1, 1, 1, 1, 1]
    assert not shown[2, 1:].any()


def test_light_is_gone_where_it_must_be():
    log = Log(np.arange(3) * 60.0, ("light", "CO2"), np.ones((3, 2)), np.zeros(3, np.int8))
    shown = rooms.windows(rooms.room("x", log), np.arange(3), 4, 60.0)
    assert shown[:, 2, rooms.LIGHT].any()
    dark = rooms.without_light(shown)
    assert not dark[:, :, rooms.LIGHT].any()
    assert dark[:, 2].any()
    assert np.isfinite(rooms.elsewhere(RNG(0), shown[2])).all()


def test_tables_are_read_however_they_are_written(tmp_path: Path):
    def of(text: str) -> Log:
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        return read(tmp_path / "t.csv", "t.csv", "").log

    assert of("when;a;anomaly\n9/3/20 10h;1,5;0\n;2,5;1\n").values.tolist() == [[1.5], [2.5]]
    assert of("a\tb\tlabel\n1\t2\t\n3\t\tTrue\n").wrong.tolist() == [-1, 1]
    assert of("\ufeffdatetime,a,note\nyesterday,1,x\ntoday,,y\n").names == ("a",)
    with pytest.raises(ConfigError, match=r"t\.csv, line 3: the label 'broken' is neither 0 nor 1"):
        of("a,label\n1,0\n2,broken\n")
    with pytest.raises(ConfigError, match="no cell of a, b is a number; is ',' its separator"):
        of("a,b\nx,y\n")
    for nothing in ("", "a,b,anomaly\n"):
        with pytest.raises(ConfigError, match="holds no column of readings; there are no rows"):
            of(nothing)
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)) * 9)
    (tmp_path / "folder.csv").mkdir()
    for name in ("binary.csv", "folder.csv", "missing.csv"):
        with pytest.raises(ConfigError, match=f"cannot read the table .*{name}"):
            read(tmp_path / name, name, "")


def test_a_log_that_cannot_adapt_is_refused():
    log = Log(np.arange(30.0), ("a",), np.zeros((30, 1)), np.zeros(30, np.int8))
    with pytest.raises(ConfigError, match="x holds 30 rows; it takes 40"):
        sensors.run_of("x", log)
    late = np.full((80, 2), np.nan)
    late[40:, 1] = 1.0
    with pytest.raises(ConfigError, match="x: no column holds a number in the first 20 rows"):
        sensors.run_of("x", Log(np.arange(80.0), ("a", "b"), late, np.zeros(80, np.int8)))
    late[:, 0] = np.arange(80.0)
    assert sensors.run_of("x", Log(np.arange(80.0), ("a", "b"), late, np.zeros(80, np.int8))).names == ("a",)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [False, True])
def test_tested_rows_of_one_class_give_finite_figures(tmp_path: Path, fault: bool):
    root = _skab(tmp_path / "a")
    values, _ = _log(7, fault)
    _write(tmp_path / "b" / "skab" / "1.csv", NAMES, values, np.full(len(values), int(fault)))
    roots = Roots(root, tmp_path / "b", ("onnxruntime",))
    for block in (sensors.skab_recipe(roots, 0), sensors.skab_bundle(roots, 0, SHIPPED)):
        assert _figures(block)["auc"] == 0.5
        assert np.isfinite(list(_figures(block).values())).all()
    for base in (root, tmp_path / "b"):
        (base / "skab").rename(base / "sensor_csv")
    for block in (sensors.csv_recipe(roots, 0), sensors.csv_bundle(roots, 0, SHIPPED)):
        assert _figures(block)["auc"] == 0.5
        assert np.isfinite(list(_figures(block).values())).all()
        assert "no tested file holds both classes" in str(block.notes)


@pytest.mark.usefixtures("quick")
def test_a_room_that_is_empty_all_day_gives_finite_figures(tmp_path: Path):
    _office(tmp_path / "a", "datatraining.csv", 0)
    (tmp_path / "b" / "occupancy").mkdir(parents=True)
    lines = ["CO2;Temperature;Occupancy", *(f"{450 + i % 7},5;21;0" for i in range(90))]
    (tmp_path / "b" / "occupancy" / "other.csv").write_text("\n".join(lines))
    roots = Roots(tmp_path / "a", tmp_path / "b", ("onnxruntime",))
    for block in (rooms.recipe(roots, 0), rooms.bundle(roots, 0, SHIPPED)):
        assert block.n == 90
        assert np.isfinite(list(_figures(block).values())).all()
        assert _figures(block)["auc"] == 0.5
        assert any("no column of light in other.csv" in note for note in block.notes)


def test_a_quantity_is_found_whatever_its_column_says_of_unit_and_place():
    values = np.arange(8.0).reshape(2, 4)
    log = Log(
        np.arange(2.0), ("Humidity Ratio", "room_temp", "CO2 [ppm]", "Humidity(%)"), values, np.zeros(2, np.int8)
    )
    found = rooms.room("x", log).values[0]
    told = {name: found[rooms.QUANTITIES.index(name)] for name in rooms.COLUMNS}
    assert (told["temperature"], told["co2"], told["humidity"]) == (1.0, 2.0, 3.0)
    assert np.isnan(told["light"])
    with pytest.raises(ConfigError, match="x measures none of temperature, humidity, light, co2; its columns are a"):
        rooms.room("x", Log(np.arange(2.0), ("a",), values[:, :1], np.zeros(2, np.int8)))

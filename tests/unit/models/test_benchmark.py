"""The benchmark: which rows train, what is run, what is written. The set is a toy; so is its network."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from torch import Tensor

from edge_agent.core.records import Engine
from edge_agent.errors import ConfigError
from models import benchmark, runtime
from models.benchmark import splits
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, judged
from models.config import preset
from models.network.graphs import SensorGraph, build

TINY = preset("tiny")


class Named(SensorGraph):
    """Gives one output more than the device's contract names."""

    def forward(self, readings: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        embedding, logit = super().forward(readings)
        return embedding, logit, embedding[:, :3]


def _readings(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (count, 3, len(TINY.sensor_spec.quantities), TINY.sensor_spec.steps)
    return rng.uniform(0, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def made() -> runtime.Made:
    return runtime.make(TINY, {"sensors": Named(TINY)}, {}, outputs={"sensors": ("embedding", "logit", "named")})


def test_one_graph_alone_runs_on_every_engine_with_its_own_outputs(made: runtime.Made):
    windows, found = _readings(5), {}
    for name, precision, engine in runtime.variants(made):
        found[name, precision] = runtime.through(engine, "sensors", windows, batch=2)
        with pytest.raises(ValueError, match="no graph is named 'vision'; there are sensors"):
            engine.run("vision", [{}])
    assert list(found) == [
        ("torch", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    ]
    for outputs in found.values():
        assert outputs["named"].shape == (5, 3)
        for name, array in outputs.items():
            np.testing.assert_allclose(array, found["torch", "fp32"][name], atol=1e-3)
    with pytest.raises(ValueError, match="closed"):
        engine.run("sensors", [{"readings": windows[0]}])


def test_int8_is_another_file_where_there_are_calibration_inputs():
    windows = np.random.default_rng(0).integers(0, 256, (4, 5, 160, 240)).astype(np.uint8)
    made = runtime.make(TINY, {"vision": build(TINY, 0).vision}, {"vision": list(windows)})
    assert made.int8["vision"] != made.plain["vision"]
    logits = {
        precision: runtime.through(engine, "vision", windows[:2])["logit"]
        for _, precision, engine in runtime.variants(made, ("openvino",))
    }
    assert np.abs(logits["fp32"] - logits["int8"]).max() < 0.5


def test_engines_that_nobody_has_are_refused():
    assert runtime.known_engines(["onnxruntime", "torch"]) == ("torch", "onnxruntime")
    with pytest.raises(ConfigError, match="no engine is named abacus; there are torch, openvino"):
        runtime.known_engines(["abacus"])


def _table(root: Path, rows: Sequence[Mapping[str, str]], there: Sequence[str]) -> Path:
    (root / "toy").mkdir(parents=True)
    with (root / "toy" / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    for name in there:
        (root / "toy" / name).write_bytes(b"")
    return root


ROWS = [
    {"file": name, "label": str(index % 2), "split": split}
    for index, (name, split) in enumerate([("a", "train"), ("b", "train"), ("c", "dev"), ("d", "hidden")])
]


def _parts(roots: Roots) -> splits.Parts:
    return splits.parts(roots, "toy/labels.csv", "split", lambda row: f"toy/{row['file']}")


def _names(rows: list[splits.Row]) -> str:
    return "".join(row["file"] for row in rows)


def test_one_root_tests_its_dev_rows_and_trains_on_train_alone(tmp_path: Path):
    found = _parts(Roots(_table(tmp_path, ROWS, "abc"), tmp_path / "." / "toy" / ".."))
    assert (_names(found.train), _names(found.test), found.absent) == ("ab", "c", 1)
    assert "1 rows" in found.notes[0]


def test_two_roots_train_on_all_and_test_all_that_is_there(tmp_path: Path):
    one, two = _table(tmp_path / "one", ROWS, "abc"), _table(tmp_path / "two", ROWS, "d")
    found = _parts(Roots(one, two))
    assert (_names(found.train), _names(found.test), found.absent) == ("abc", "d", 4)
    assert found.doubled == 0


def test_a_row_of_both_roots_is_tested_and_does_not_train(tmp_path: Path):
    one, two = _table(tmp_path / "one", ROWS, "abc"), _table(tmp_path / "two", ROWS, "cd")
    found = _parts(Roots(one, two))
    assert (_names(found.train), _names(found.test), found.doubled) == ("ab", "cd", 1)


def test_a_root_without_any_row_or_table_is_refused(tmp_path: Path):
    root = _table(tmp_path, ROWS, "c")
    with pytest.raises(ConfigError, match="names no row of the wanted split"):
        _parts(Roots(root, root))
    with pytest.raises(ConfigError, match="cannot read the label table"):
        _parts(Roots(root, tmp_path / "nowhere"))


def test_folds_keep_groups_together_and_are_of_one_size():
    groups = [*"aaaabbbccd", "e", "f"]
    fold = splits.folds(groups, 3, 0)
    assert all(len({f for f, g in zip(fold, groups, strict=True) if g == name}) == 1 for name in "abcdef")
    assert sorted(fold.count(i) for i in range(3)) == [4, 4, 4]
    assert fold == splits.folds(groups, 3, 0)
    with pytest.raises(ConfigError, match="2 groups cannot make 3 folds"):
        splits.folds(["a", "b"], 3, 0)


def _toy(made: runtime.Made) -> Task:
    def judge(engine: Engine) -> Judged:
        logit = runtime.through(engine, "sensors", _readings(2))["logit"]
        rows = [Prediction("row", f"r{i}", i % 2, float(value)) for i, value in enumerate(logit)]
        return Judged({"f1": 1 / 3}, [*rows, Prediction("class", "r0", "casual", "siren")])

    def recipe(roots: Roots, seed: int) -> Block:
        start = {"name": "none", "sha256": "0" * 64, "data": "nothing"}
        return Block(
            judged(runtime.variants(made, roots.engines), judge), 2, "by hand", [start], {"iforest": {"f1": 0.25}}
        )

    def bundle(roots: Roots, seed: int, shipped: Path) -> Block:
        return Block(judged(runtime.shipped_variants(shipped, roots.engines), judge), 2, "shipped", notes=["a toy"])

    return Task(recipe, bundle, {"f1": 0.2})


def test_figures_and_predictions_are_written_as_documented(
    made: runtime.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark, "task", lambda name: _toy(made))
    from models.__main__ import SHIPPED

    result = benchmark.run("toy", Roots(tmp_path, tmp_path, ("torch", "onnxruntime")), 3, SHIPPED)
    result.write(tmp_path / "f.json", tmp_path / "p.csv")
    told = json.loads((tmp_path / "f.json").read_text())
    assert list(told) == ["set", "seed", "split", "n", "floor", "recipe", "bundle"]
    assert (told["set"], told["seed"], told["split"], told["n"], told["floor"]) == (
        "toy",
        3,
        "by hand",
        2,
        {"f1": 0.2},
    )
    assert told["recipe"]["metrics"] == {
        "torch": {"fp32": {"f1": 0.333333}},
        "onnxruntime": {"fp32": {"f1": 0.333333}, "int8": {"f1": 0.333333}},
    }
    assert told["bundle"]["metrics"] == {"onnxruntime": {"int8": {"f1": 0.333333}}}
    assert told["recipe"]["starts"][0]["sha256"] == "0" * 64
    assert told["recipe"]["baselines"] == {"iforest": {"f1": 0.25}}
    assert told["bundle"]["notes"] == ["a toy"]
    with (tmp_path / "p.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["block", "engine", "precision", "key", "item", "label", "score"]
    assert len(lines) == (3 + 1) * 3
    assert lines[2] == {
        "block": "recipe",
        "engine": "torch",
        "precision": "fp32",
        "key": "class",
        "item": "r0",
        "label": "casual",
        "score": "siren",
    }
    assert {line["block"] for line in lines} == {"recipe", "bundle"}
    assert abs(float(lines[0]["score"])) < 100


def test_a_set_or_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no benchmark set is named 'chess'"):
        benchmark.task("chess")


def test_every_set_of_the_table_has_a_task_with_floors():
    for name in benchmark.names():
        assert all(isinstance(value, float) for value in benchmark.task(name).floor.values())


def test_parity_is_the_largest_difference_of_a_row_between_engines() -> None:
    second, named = Prediction("frame", "b", 1.0, 2.0), Prediction("class", "a", "x", "y")
    rows = [[Prediction("frame", "a", 0.0, score), second, named] for score in (1.0, 1.25)]
    variants = (("torch", "fp32"), ("openvino", "fp32"))
    block = Block({v: Judged({}, found) for v, found in zip(variants, rows, strict=True)}, 2, "toy")
    assert benchmark.parity(block) == {"fp32": {"frame": 0.25}}


def _labelled(root: Path, rows: Sequence[Mapping[str, str]]) -> splits.Parts:
    _table(root, rows, "abcd")
    return splits.parts(
        Roots(root, root), "toy/labels.csv", "split", lambda row: f"toy/{row['file']}", wrong="label", also=("file",)
    )


def test_rows_without_a_label_are_left_out_and_other_labels_are_refused(tmp_path: Path):
    found = _labelled(tmp_path / "a", [*ROWS, {"file": "d", "label": "", "split": "train"}])
    assert _names(found.train) == "ab"
    with pytest.raises(ConfigError, match="'burning' in column 'label' is no label"):
        _labelled(tmp_path / "b", [*ROWS, {"file": "d", "label": "burning", "split": "train"}])
    with pytest.raises(ConfigError, match="all 1 rows that train are of one class"):
        _labelled(tmp_path / "c", ROWS[1:])
    with pytest.raises(ConfigError, match="no column 'clip' in every row; there are file, label, split"):
        splits.parts(Roots(tmp_path / "a", tmp_path), "toy/labels.csv", "split", str, also=("clip",))


def test_figures_of_rows_that_are_all_of_one_class_come_with_a_note():
    def block(labels: Sequence[float | str], keys: Sequence[str]) -> Block:
        rows = [Prediction(key, str(i), label, 0.0) for key in keys for i, label in enumerate(labels)]
        return Block({("torch", "fp32"): Judged({}, rows)}, len(labels), "by hand", notes=["first"])

    assert benchmark.with_classes(block([0, 1, 1], ["fire"])).notes == ["first"]
    assert benchmark.with_classes(block(["siren", "siren"], ["class"])).notes == ["first"]
    assert benchmark.with_classes(block([1, 1], ["video", "fused"])).notes == [
        "first",
        "video, fused: all 2 tested rows are labelled 1; an AUC says nothing then and is 0.5",
    ]


@pytest.mark.parametrize("flag", ["--json", "--predictions"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_trained(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from models.__main__ import main

    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("trained"))
    for target, reason in ((tmp_path / "none" / "f", "its folder is not there"), (tmp_path, "it is a folder")):
        assert main(["benchmark", "skab", "--train-root", str(tmp_path), flag, str(target)]) == 1
        assert f"{target} cannot be written: {reason}" in capsys.readouterr().err

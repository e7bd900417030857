"""The recipe for fire in pictures, on a made-up set with an untrained trunk: rows, roots, engines, sizes."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edge_agent.contract.manifest import VisionSpec
from edge_agent.errors import ConfigError
from models.__main__ import SHIPPED
from models.benchmark import flames
from models.benchmark.record import Roots
from models.network.backbone import Trunk


def make_set(root: Path, count: int, size: tuple[int, int] = (40, 60), seed: int = 0) -> Path:
    """Pictures of which every third is orange in the middle."""
    rng = np.random.default_rng(seed)
    base = root / "fire_images"
    base.mkdir(parents=True)
    with (base / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("filename", "fire", "orig_w", "orig_h", "orig_path", "split"))
        for index in range(count):
            fire = index % 3 == 0
            picture = rng.integers(0, 120, (*size, 3), np.uint8)
            if fire:
                picture[10:30, 10:50] = (20, 120, 250)  # BGR
            suffix = "png" if index % 2 else "jpg"
            cv2.imwrite(str(base / f"{index:03d}.{suffix}"), picture)
            split = "dev" if index % 4 == 0 else "train"
            table.writerow((f"{index:03d}.{suffix}", int(fire), 60, 40, f"{seed}/{index}", split))
        table.writerow(("gone.jpg", 1, 60, 40, "x", "dev"))
    return root


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def untrained(blocks: int) -> Trunk:
        torch.manual_seed(0)
        return Trunk(blocks).eval()

    monkeypatch.setattr(flames, "imagenet", untrained)
    monkeypatch.setattr(flames, "SPEC", VisionSpec(width=64, height=32))
    monkeypatch.setattr(flames, "BLOCKS", 2)
    monkeypatch.setattr(flames, "_VIEWS", 1)


@pytest.mark.usefixtures("_small")
def test_pictures_of_any_size_under_another_root_are_judged_in_every_form(tmp_path: Path) -> None:
    here, there = make_set(tmp_path / "a", 24), make_set(tmp_path / "b", 9, (90, 50), seed=1)
    block = flames.recipe(Roots(here, there, ("torch", "onnxruntime")), 0)
    assert block.n == 9
    assert list(block.judged) == [("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    assert block.starts[0]["sha256"]
    assert any("2 rows" in note for note in block.notes)
    judged = block.judged["torch", "fp32"]
    assert judged.metrics["auc"] > 0.9
    assert [row.label for row in judged.predictions] == [1, 0, 0] * 3
    plain = [row.score for row in block.judged["onnxruntime", "fp32"].predictions]
    assert plain == pytest.approx([row.score for row in judged.predictions], abs=1e-3)


def test_the_shipped_graph_is_adapted_on_normal_pictures_alone(tmp_path: Path) -> None:
    root = make_set(tmp_path, 12)
    block = flames.bundle(Roots(root, root, ("onnxruntime",)), 0, SHIPPED)
    assert block.judged.keys() == {("onnxruntime", "int8")}
    assert {"auc", "ap", "auc_novelty", "auc_both"} <= block.judged["onnxruntime", "int8"].metrics.keys()
    assert "only the" in block.split


@pytest.mark.usefixtures("_small")
def test_pictures_of_one_class_give_finite_figures(tmp_path: Path) -> None:
    here, there = make_set(tmp_path / "a", 24), make_set(tmp_path / "b", 6, seed=1)
    table = there / "fire_images" / "labels.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([lines[0], *(line for line in lines[1:] if ",1,60,40" in line)]), encoding="utf-8")
    roots = Roots(here, there, ("onnxruntime",))
    for block in (flames.recipe(roots, 0), flames.bundle(roots, 0, SHIPPED)):
        assert block.n == 2
        metrics = next(iter(block.judged.values())).metrics
        assert metrics["auc"] == 0.5
        assert np.isfinite(list(metrics.values())).all()


def test_a_root_without_pictures_is_refused(tmp_path: Path) -> None:
    here, there = make_set(tmp_path / "a", 6), make_set(tmp_path / "b", 6)
    for path in (there / "fire_images").glob("*.[jp]*g"):
        path.unlink()
    for root, reason in ((there, "names no row of the wanted split"), (tmp_path, "cannot read the label table")):
        with pytest.raises(ConfigError, match=reason):
            flames.recipe(Roots(here, root), 0)

"""Pseudo-anomalies: what they mark, what they leave alone; and the score that is made of a heat map."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.manifest import VisionSpec  # noqa: E402
from edge_agent.errors import ConfigError  # noqa: E402
from models.benchmark import pedestrians  # noqa: E402
from models.config import Schedule, preset  # noqa: E402
from models.data import cutouts  # noqa: E402
from models.data.cutouts import Cutouts, Size  # noqa: E402
from models.network.graphs import build  # noqa: E402
from models.training import oneclass  # noqa: E402

HEIGHT, WIDTH = 48, 64
SMALL = Size(area=(20, 400), width=(3, 30), height=(5, 30))


def walkers(count: int = 40, seed: int = 0) -> np.ndarray:
    """Two dark figures that cross a textured, colourless ground, one pixel a frame: uint8 (count, H, W, 3)."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(110, 130, (HEIGHT, WIDTH)).astype(np.uint8)
    frames = np.repeat(ground[None], count, 0)
    for t in range(count):
        for row, start, step in ((10, 4, 1), (26, 55, -1)):
            x = (start + step * t) % (WIDTH - 6)
            frames[t, row : row + 12, x : x + 5] = 30 + 10 * (t % 3)
    return frames[..., None].repeat(3, 3)


@pytest.fixture(scope="module")
def made() -> Cutouts:
    return Cutouts.of([walkers(40, 0), walkers(40, 0)], SMALL)


def test_what_moves_is_found_and_what_stands_is_not(made):
    film = made.films[0]
    assert film.grey
    assert 0.01 < film.moving[12:].mean() < 0.15
    for blob in made.blobs:
        assert blob.index >= cutouts.FIRST
        assert film.moving[blob.index, blob.y : blob.y + blob.h, blob.x : blob.x + blob.w].any()


def test_footage_in_which_nothing_moves_is_refused():
    still = [np.full((40, HEIGHT, WIDTH, 3), 90, np.uint8)]
    with pytest.raises(ValueError, match="moves"):
        Cutouts.of(still, SMALL)
    with pytest.raises(ConfigError, match="the normal clips cannot train: nothing of a person's size moves"):
        pedestrians.learned(still, preset("tiny"), Schedule(steps=1, batch=1, rate=1e-3), 0)


@pytest.mark.parametrize("kind", sorted(set(cutouts.KINDS)))
def test_every_kind_changes_the_picture_where_it_marks_it(made, kind):
    rng = np.random.default_rng(3)
    marked = 0
    for _ in range(12):
        sample = made.sample(rng, (kind,), odd=1.0, rush=0.0)
        assert sample.views.shape == (3, HEIGHT, WIDTH, 3)
        assert set(np.unique(sample.odd)) <= {0.0, 1.0}
        # No colour where the world has none: it would tell the paste.
        assert int(np.ptp(sample.views.astype(int), -1).max()) <= 1
        marked += int(sample.odd.any())
    assert marked >= 3


def test_unchanged_pastes_are_not_marked(made):
    rng = np.random.default_rng(4)
    assert not any(made.sample(rng, (), rush=0.0).odd.any() for _ in range(10))


def test_a_film_that_is_played_too_fast_marks_what_moves_and_nothing_else(made):
    sample = made.sample(np.random.default_rng(5), rush=1.0)
    assert (sample.odd == 1).any()
    rows = np.flatnonzero((sample.odd == 1).any(1))
    # The two walk in rows 10-21 and 26-37; a blur of some pixels lies around them.
    assert rows.min() >= 10 - 4
    assert rows.max() <= 37 + 4


def test_equal_seeds_give_equal_batches(made):
    one, two, other = (next(oneclass.batches(made, 3, seed, size=(32, 48))) for seed in (1, 1, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == (3, 5, 32, 48)
    assert one[1].shape == (3, 4, 6)


def test_items_made_ahead_come_in_order_with_their_errors_and_leave_no_thread():
    def items():
        yield from range(3)
        raise ValueError("spoilt")

    before = threading.active_count()
    with closing(oneclass.ahead(items(), 2)) as found:
        assert [next(found) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="spoilt"):
            next(found)
    with closing(oneclass.ahead(itertools.count(), 2)) as found:
        assert next(found) == 0
    assert threading.active_count() == before


def test_equal_seeds_give_equal_weights(made):
    def trained(seed: int) -> dict[str, torch.Tensor]:
        graph = build(preset("tiny"), 0).vision
        oneclass.train(graph, made, Schedule(steps=3, batch=4, rate=3e-3), seed, size=(32, 48))
        assert not graph.training
        return graph.state_dict()

    one, two, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_cells_say_nothing_where_little_is_odd():
    odd = np.zeros((16, 16), np.float32)
    odd[:8, :8] = 1.0
    odd[0, 8:16] = 1.0
    odd[8:, :8] = -1.0
    assert oneclass.cells_of(odd).tolist() == [[1.0, -1.0], [-1.0, 0.0]]


def test_unknown_cells_teach_nothing():
    heat = torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cells = torch.tensor([[[1.0, -1.0], [0.0, -1.0]]])
    oneclass.cell_loss(heat, cells).backward()
    assert heat.grad[0, :, 1].abs().max() == 0
    assert heat.grad[0, 0, 0] < 0 < heat.grad[0, 1, 0]


def test_the_score_is_the_hottest_neighbourhood_and_a_border_is_no_shelter():
    heat = np.full((2, 4, 5), -8.0, np.float32)
    heat[0, 1:4, 1:4] = 2.0  # nine cells
    heat[1, 2, 2] = 10.0  # one
    assert oneclass.hottest(heat).tolist() == pytest.approx([2.0, -5.0])
    # Zeros beyond the border would have given −8 * 4 / 9.
    assert oneclass.hottest(np.full((1, 3, 3), -8.0, np.float32)).tolist() == [-8.0]


def test_a_followed_score_looks_back_only():
    scores = np.array([0, 0, 1, 0, 0], np.float32)
    smooth = oneclass.followed(scores, 0.5)
    assert smooth.tolist() == [0.0, 0.0, 0.5, 0.25, 0.125]
    assert oneclass.followed(scores[:3], 0.5).tolist() == smooth[:3].tolist()


class Still:
    """An engine whose heat is the luma of each cell: what stands there is what it says."""

    def run(self, graph, items):
        return [
            {"heat": item["frames"][0].reshape(HEIGHT // 8, 8, WIDTH // 8, 8).mean((1, 3)).astype(np.float32)}
            for item in items
        ]

    def close(self):
        """Nothing to free."""


def test_the_shipped_graph_is_measured_by_normal_films_and_neither_by_place_nor_by_light():
    spec = VisionSpec(width=WIDTH, height=HEIGHT)
    usual = pedestrians.Usual.of(Still(), [pedestrians.views(walkers(30, 0), spec)])
    normal = walkers(30, 0)
    odd = normal.copy()
    for t in range(15, 30):
        odd[t, 9:23, 2 * t - 20 : 2 * t - 6] = 250
    moved = np.roll(odd, (8, -8), (1, 2))
    dark = (odd * 0.7).astype(np.uint8)
    calm, *wonders = (
        usual.told(Still(), pedestrians.views(film, spec)).sum(1) for film in (normal, odd, moved, dark)
    )
    for wonder in wonders:
        assert wonder[16:].min() > calm[16:].max() + 3
        assert np.abs(wonder[10:15] - calm[10:15]).max() < 2


def test_clips_of_another_root_may_be_few_short_and_in_another_container(tmp_path):
    base = tmp_path / "ucsd_ped2"
    (base / "test").mkdir(parents=True)
    with av.open(str(base / "test" / "04.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 50, "yuv420p"
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((50, 80, 3), 90, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    rows = [f"{clip},{frame},{int(frame > 3)}" for clip in ("04", "09") for frame in range(8)]
    (base / "test_frame_labels.csv").write_text("\n".join(["clip,frame,abnormal", *rows]) + "\n")
    clips, notes = pedestrians.tested(tmp_path, VisionSpec(width=WIDTH, height=HEIGHT))
    assert [clip.name for clip in clips] == ["04"]
    # A frame is a frame, whatever rate the container claims.
    assert clips[0].frames.shape == (6, HEIGHT, WIDTH, 3)
    assert clips[0].label.tolist() == [0, 0, 0, 0, 1, 1]
    assert [note.split(":")[0] for note in notes] == [
        "1 clips of the table are not there",
        "2 labelled frames are not in their films",
    ]
    table = base / "test_frame_labels.csv"
    table.write_text("clip,frame,abnormal\n04,0,1\n04,1,\n04,2,1.0\n")
    clips, notes = pedestrians.tested(tmp_path, VisionSpec(width=WIDTH, height=HEIGHT))
    assert clips[0].label.tolist() == [1, -1, 1, -1, -1, -1]
    assert "no clip holds frames of both classes" in notes[0]
    found = pedestrians._judge(clips, [np.arange(6, dtype=np.float32)])
    assert found.metrics == {"frame_auc_micro": 0.5, "frame_auc_macro": 0.5}
    for text, reason in (
        ("clip,abnormal\n04,1\n", "line 2: expected clip, frame"),
        ("clip,frame,abnormal\n", "none of"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            pedestrians.tested(tmp_path, VisionSpec(width=WIDTH, height=HEIGHT))
    with pytest.raises(ConfigError, match="train"):
        pedestrians.normal(tmp_path, VisionSpec(width=WIDTH, height=HEIGHT))

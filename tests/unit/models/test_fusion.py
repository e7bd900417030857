"""Every way to fuse: what is missing cannot show, ONNX computes the same, names are checked."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.errors import BundleError, ConfigError  # noqa: E402
from models.bundle import load_weights, save_weights  # noqa: E402
from models.compression.export import export  # noqa: E402
from models.config import Fusion, preset  # noqa: E402
from models.network.fusion import BLOCKS  # noqa: E402
from models.network.graphs import fusion_head  # noqa: E402

TINY = preset("tiny")


def _name(way: Fusion) -> str:
    return f"{way.block}-{way.evidence}-{way.space}-{way.learned_tokens}"


WAYS = [
    *(Fusion(block=name) for name in BLOCKS),
    *(Fusion(evidence=way) for way in ("none", "alone", "mean")),
    Fusion(space="shared"),
    Fusion(learned_tokens=False),
]


def _head(way: Fusion):
    torch.manual_seed(4)
    head = fusion_head(replace(TINY, head=way)).eval()
    for parameter in head.parameters():  # tokens and places start at zero: no test would see them
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def _inputs():
    generator = torch.Generator().manual_seed(1)
    embeddings = [torch.randn(6, TINY.history, TINY.embedding, generator=generator) for _ in range(3)]
    mask = (torch.rand(6, TINY.history, 3, generator=generator) < 0.6).float()
    mask[1, :, 0] = mask[2, :, 1] = mask[3, :, 2] = 0
    mask[4] = 0
    mask[4, :, 1] = 1
    mask[5] = 0
    return embeddings, mask


@pytest.mark.parametrize("way", WAYS, ids=_name)
def test_what_is_missing_cannot_show(way):
    head, (embeddings, mask) = _head(way), _inputs()
    with torch.inference_mode():
        clean = head(*embeddings, mask)
        for garbage in (float("nan"), float("inf"), 1e30):
            spoilt = [torch.where(mask[:, :, i : i + 1] > 0.5, x, garbage) for i, x in enumerate(embeddings)]
            for a, b in zip(clean, head(*spoilt, mask), strict=True):
                assert torch.isfinite(a).all()
                assert torch.equal(a, b)


@pytest.mark.parametrize("way", WAYS, ids=_name)
def test_what_is_there_does_show_and_rows_do_not_touch(way):
    head, (embeddings, mask) = _head(way), _inputs()
    with torch.inference_mode():
        logit = head(*embeddings, mask)[0]
        for index in range(3):
            other = [x + (i == index) for i, x in enumerate(embeddings)]
            moved = (head(*other, mask)[0] != logit).tolist()
            assert moved == mask[:, :, index].amax(1).bool().tolist()
        torch.testing.assert_close(head(*(x[2:3] for x in embeddings), mask[2:3])[0], logit[2:3])


@pytest.mark.parametrize("way", WAYS, ids=_name)
def test_onnx_runtime_computes_what_torch_does(way, tmp_path):
    export(_head(way), replace(TINY, head=way), "fusion", tmp_path / "fusion.onnx")  # compares, and raises


def test_an_unknown_block_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="no fusion block is named 'sum'; there are concatenation, early"):
        fusion_head(replace(TINY, head=Fusion(block="sum")))


def test_weights_of_another_shape_are_refused_with_what_to_do(tmp_path):
    save_weights(tmp_path / "weights.npz", fusion_head(TINY))
    load_weights(tmp_path / "weights.npz", fusion_head(TINY))
    with pytest.raises(BundleError, match=r"another shape than the preset.*Train from data"):
        load_weights(tmp_path / "weights.npz", fusion_head(replace(TINY, head=Fusion("hybrid"))))

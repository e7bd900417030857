"""A site's own folder: what is read from it, under which label and split, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")
av = pytest.importorskip("av", reason="pip install av")
soundfile = pytest.importorskip("soundfile", reason="pip install soundfile")

from edge_agent.errors import ConfigError  # noqa: E402
from models.data.corpus import Corpus  # noqa: E402
from models.data.media import Log  # noqa: E402
from models.data.own import joined, read_site  # noqa: E402
from models.data.traces import trace  # noqa: E402


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sensors").mkdir()
    (tmp_path / "films").mkdir()
    rng = np.random.default_rng(0)
    for name in ("door.wav", "saw.wav", "shot.wav", "long.wav", "unsaid.wav"):
        soundfile.write(tmp_path / "sounds" / name, rng.normal(0, 0.1, 32_000), 16_000)
    (tmp_path / "sounds" / "labels.csv").write_text(
        "file,label,split,start_s,end_s\ndoor.wav,normal,dev,,\nsaw.wav,saw,train,,\nshot.wav,gunshot,,,\n"
        "long.wav,siren,train,0.5,1.0\nunsaid.wav,,,,\n"
    )
    (tmp_path / "sensors" / "hall.csv").write_text(
        "time,Temperature,Fan,occupancy\n2026-01-01 00:00:00,20.5,1,1\n2026-01-01 00:01:00,20.6,1,0\n"
    )
    with av.open(str(tmp_path / "films" / "yard.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return tmp_path


def test_everything_is_read_under_the_trainers_labels(root):
    found = read_site(root)
    assert {clip.item.split()[0]: (clip.label, clip.split) for clip in found.clips if "shot" not in clip.item} == {
        "door.wav": ("casual", "dev"),
        "saw.wav": ("other", "train"),
        "long.wav": ("siren", "train"),
    }
    assert next(clip for clip in found.clips if clip.item == "shot.wav").split in {"train", "dev"}
    assert next(len(clip.pcm(16_000)) for clip in found.clips if "long" in clip.item) == 8_000
    assert [(film.split, film.pictures.start_s) for film in found.footage] == [("train", 0.0), ("dev", 3.0)]
    log = found.tables[0].log()
    assert (log.names, log.values.tolist(), log.wrong.tolist()) == (("temperature",), [[20.5], [20.6]], [-1, -1])
    both = joined(Corpus(sets=("esc10",)), found)
    assert both.sets == ("esc10", "site")
    assert both.clips == found.clips


def test_a_folder_without_anything_and_sounds_without_labels_are_refused(root, tmp_path_factory):
    with pytest.raises(ConfigError, match="none of the folders sounds, films, sensors"):
        read_site(tmp_path_factory.mktemp("empty"))
    (root / "sensors" / "fan.csv").write_text("time,fan\n2026-01-01 00:00:00,1\n")
    with pytest.raises(ConfigError, match=r"fan.csv has no column that a device knows \(fan\)"):
        read_site(root)
    (root / "sensors" / "fan.csv").unlink()
    (root / "sounds" / "labels.csv").unlink()
    with pytest.raises(ConfigError, match="none of the site's sounds has a label"):
        read_site(root)


def test_empty_cells_of_a_log_reach_no_trace():
    time_s = np.arange(4.0)
    values = np.array([[np.nan, 50.0], [21.0, np.nan], [np.nan, np.nan], [np.nan, 51.0]])
    log = Log(time_s, ("temperature", "humidity"), values, np.full(4, -1, np.int8))
    for seed in range(30):
        assert np.isfinite(trace(np.random.default_rng(seed), 64, 0.5, None, [log]).readings).all()


_OWN_CLASS = """
import sys
from pathlib import Path
from models import config
exec(sys.argv[1], vars(config))  # before anything else has taken the names
from models.card import write
from models.data import site
from models.data.own import read_site
from models.network.graphs import OUTPUTS, build, example
shape = config.preset("tiny")
found = read_site(Path(sys.argv[2]))
print([clip.label for clip in found.clips if clip.item == "saw.wav"], site.named("glass_break") or "no name")
head = build(shape, 0).fusion.eval()
print(head(*example(shape, "fusion").values())[OUTPUTS["fusion"].index("classes")].shape)
learned = [clip.label for clip in found.clips]
print(write({"preset": "tiny", "seed": 0, "sets": ["site"], "int8": {}, "learned": learned}))
"""


def test_a_class_of_its_own_is_what_the_page_says(root):
    """The page's two lines, in a process of their own: recordings bear the name, the head has a place for it."""
    page = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "train-on-your-site.md"
    (lines,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    table = root / "sounds" / "labels.csv"
    table.write_text(table.read_text().replace("saw.wav,saw", "saw.wav,glass_break"))
    command = [sys.executable, "-c", _OWN_CLASS, lines, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['glass_break'] no name\ntorch.Size([2, 5])\n")
    assert "Event classes claimed: gunshot, siren, glass_break; " in done.stdout

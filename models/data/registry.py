"""One door to every set: `read(format, root)`."""

from __future__ import annotations

from pathlib import Path

from edge_agent.errors import ConfigError
from models.data import public, sets
from models.data.records import Recording

#: Format → its reader. `skab` and `nab` are the published layouts of these sets, too.
FORMATS: dict[str, sets.Reader] = {
    **sets.EVALUATION,
    "ucf_crime": public.ucf_crime,
    "xd_violence": public.xd_violence,
    "shanghaitech": public.shanghaitech,
    "avenue": public.avenue,
    "ped2": public.ped2,
    "esc50": public.esc50,
    "urbansound8k": public.urbansound8k,
    "mimii": public.mimii,
    "audio_folder": public.audio_folder,
    "sensor_csv": public.sensor_csv,
}


def read(name: str, root: Path) -> list[Recording]:
    """Every item of a set, in the order of its table; nothing is decoded yet.

    ConfigError lists the formats there are, or says which file was looked for.
    """
    if name not in FORMATS:
        raise ConfigError(f"no data format is named {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name](root)

"""`python -m models train|evaluate`: from data or verdicts to a bundle, and what a bundle is worth."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from edge_agent.engine import load
from edge_agent.errors import BundleError, ConfigError
from models import evaluate, recipe, verdicts
from models.config import PRESETS, preset

#: The bundle that comes with the agent.
SHIPPED = Path(__file__).resolve().parent.parent / "edge_agent" / "bundle"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 refused (the reason is on stderr), 2 wrong arguments."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        figures = options.run(options)
    except (ConfigError, BundleError) as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="make a bundle from data, or a better one from verdicts")
    train.add_argument("--preset", default="first", choices=sorted(PRESETS))
    train.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    train.add_argument("--data", help="folder of the recorded sets (default: TECTUM_DATA); `none`: simulated parts")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--counter", type=int, default=1, help="release counter of a bundle made from data")
    train.add_argument("--verdicts", type=Path, help="JSON lines of `cloud-sync retrain`: train the head on them")
    train.add_argument("--start", type=Path, default=SHIPPED, help="bundle that a training from verdicts starts from")
    train.set_defaults(run=_train)
    judge = commands.add_parser("evaluate", help="figures of a bundle on recorded data that trained nothing")
    judge.add_argument("--bundle", type=Path, default=SHIPPED)
    judge.add_argument("--data", help="folder of the recorded sets (default: TECTUM_DATA)")
    judge.add_argument("--engine", default="openvino")
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument("--json", type=Path, help="write the figures there too")
    judge.set_defaults(run=_evaluate)
    return parser


def _train(options: argparse.Namespace) -> dict[str, Any]:
    if options.verdicts is not None:
        return verdicts.retrain(options.verdicts, options.start, options.out, options.seed)
    root = None if options.data == "none" else _root(options.data)
    return recipe.make(preset(options.preset), root, options.out, options.seed, options.counter)


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    model = load(options.bundle, options.engine)
    shape = preset(model.manifest.name.rsplit("-", 1)[0])
    figures = evaluate.recorded(model.engine, shape, _root(options.data), options.seed)
    for name, found in figures.items():
        print(f"{name:62s} " + "  ".join(f"{key} {value}" for key, value in found.items()), file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"bundle": model.hash, "engine": options.engine, "recorded": figures}


def _root(text: str | None) -> Path:
    given = text or os.environ.get("TECTUM_DATA")
    if not given:
        raise ConfigError(
            "no data: give --data FOLDER (or TECTUM_DATA) with esc10, sesa, sample_videos, fire_video, occupancy "
            "and nab; or `train --data none` for simulated parts alone; or `train --verdicts FILE`, which needs none"
        )
    root = Path(given).expanduser()
    if not root.is_dir():
        raise ConfigError(f"{root} is no folder: name the one that holds the recorded sets")
    return root


if __name__ == "__main__":
    sys.exit(main())

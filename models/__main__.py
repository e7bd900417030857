"""`python -m models train|evaluate|benchmark|ablate|compress`: from data or verdicts to a bundle, and its worth."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from edge_agent.engine import installed, open_bundle
from edge_agent.errors import BundleError, ConfigError
from models import ablate, benchmark, recipe, verdicts
from models.benchmark.record import Roots
from models.config import PRESETS, Logger, Run, preset
from models.data import balance, leaks, mixture, registry
from models.data.own import read_site
from models.evaluation import longrun
from models.runtime import known_engines

#: The bundle that comes with the agent.
SHIPPED = Path(__file__).resolve().parent.parent / "edge_agent" / "bundle"

Commands = Any  # what `add_subparsers` gives has no public type


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 refused (the reason is on stderr), 2 wrong arguments."""
    options = build_parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        figures = options.run(options)
    except (ConfigError, BundleError) as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    if figures:
        print(json.dumps(figures, indent=2, ensure_ascii=False))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every command with its arguments."""
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
    train.add_argument("--site", type=Path, help="folder of a site's own sounds, films, sensors to train on, too")
    train.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="figures (JSON) of other seeds, for the spread on the card"
    )
    _add_run(train)
    train.set_defaults(run=_train)
    _add_evaluate(commands)
    _add_benchmark(commands)
    _add_ablate(commands)
    _add_longrun(commands)
    _add_compress(commands)
    _add_data(commands)
    return parser


def _add_run(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--work", type=Path, help="folder of checkpoints and logs; the same one again resumes (default: OUT.training)"
    )
    train.add_argument("--logger", choices=get_args(Logger), default="tensorboard")
    train.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="of vision and audio; bf16: mixed precision"
    )
    train.add_argument("--processes", type=int, default=1, help="processes that share each batch (DDP over gloo)")
    train.add_argument("--patience", type=int, default=0, help="looks without a lower loss before a stop; 0: never")


def _add_compress(commands: Commands) -> None:
    weigh = commands.add_parser("compress", help="what a bundle weighs: bytes, parameters, milliseconds")
    weigh.add_argument("--bundle", type=Path, default=SHIPPED)
    weigh.add_argument("--teacher", type=Path, help="how fast it was before: the folder `teacher` of its training")
    weigh.add_argument("--json", type=Path, help="write the figures there")
    weigh.add_argument("--html", type=Path, help="and a page of them there")
    weigh.set_defaults(run=_compress)


def _add_data(commands: Commands) -> None:
    data = commands.add_parser("data", help="what sets hold; leaks between splits; episodes composed of them")
    data.add_argument("formats", help="comma-separated: " + ", ".join(registry.FORMATS))
    data.add_argument("root", type=Path, help="folder of the set, or of the evaluation sets")
    data.add_argument("--leaks", action="store_true", help="decode everything; fail if a part stands in two splits")
    data.add_argument("--manifest", type=Path, help="write a manifest of composed episodes there (JSON lines)")
    data.add_argument("--split", default="train", help="split whose parts the episodes are composed of")
    data.add_argument("--count", type=int, default=100, help="episodes")
    data.set_defaults(run=_data)


def _add_ablate(commands: Commands) -> None:
    ablate = commands.add_parser("ablate", help="what each fusion block, objective and choice in an encoder is worth")
    ablate.add_argument(
        "--out", type=Path, required=True, help="folder of embeddings, rows and table; again: resumes"
    )
    ablate.add_argument("--only", nargs="+", default=(), metavar="ROW", help="groups or rows (default: all)")
    ablate.add_argument("--quick", action="store_true", help="one seed and few steps: shows that it runs, no figures")
    ablate.add_argument("--preset", default="first", choices=sorted(PRESETS))
    ablate.add_argument("--data", help="folder of the recorded sets (default: TECTUM_DATA); `none`: simulated parts")
    ablate.add_argument("--bundle", type=Path, default=SHIPPED, help="whose embeddings heads are judged on")
    ablate.set_defaults(run=_ablate)


def _add_longrun(commands: Commands) -> None:
    long = commands.add_parser("longrun", help="false alarms a day, clean and disturbed, before and after adaptation")
    long.add_argument("--bundle", type=Path, default=SHIPPED)
    long.add_argument("--quick", action="store_true", help="two minutes: a look, no figures to publish")
    long.add_argument("--seed", type=int, default=0, help="of the disturbances; the places are always the same")
    long.add_argument("--json", type=Path, help="write the figures there")
    long.set_defaults(run=_longrun)


def _add_evaluate(commands: Commands) -> None:
    judge = commands.add_parser("evaluate", help="what a bundle is worth: one table, and one page with plots")
    judge.add_argument("--bundle", type=Path, default=SHIPPED)
    judge.add_argument("--against", type=Path, nargs="*", default=[], help="other bundles to stand beside it")
    judge.add_argument(
        "--teacher", type=Path, help="its float32 network, in torch too: the folder `teacher` that its training left"
    )
    judge.add_argument("--ablations", type=Path, metavar="FOLDER", help="of `ablate --out`: its table on the page")
    judge.add_argument("--data", help="folder of the recorded sets (default: TECTUM_DATA); `none`: simulated alone")
    judge.add_argument(
        "--engines", nargs="+", metavar="ENGINE", help="the first carries all (default: all installed)"
    )
    judge.add_argument("--quick", action="store_true", help="a few sessions: a look, no figures to publish")
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument("--html", type=Path, default=Path("evaluation.html"), help="the page (default: %(default)s)")
    judge.add_argument("--json", type=Path, help="write the figures there")
    judge.set_defaults(run=_evaluate)


def _add_benchmark(commands: Commands) -> None:
    bench = commands.add_parser("benchmark", help="judge a set's recipe and the bundle on any part of the data")
    bench.add_argument("set", metavar="SET", choices=benchmark.names(), help=", ".join(benchmark.names()))
    bench.add_argument("--train-root", help="folder whose train and dev rows train (default: TECTUM_DATA)")
    bench.add_argument("--test-root", help="folder whose rows are tested (default: the train root, its own split)")
    bench.add_argument("--json", type=Path, help="write the figures there too")
    bench.add_argument("--predictions", type=Path, help="write the score of every tested row there, as CSV")
    bench.add_argument("--seed", type=int, default=0)
    bench.add_argument(
        "--engines", nargs="+", metavar="ENGINE", help="of torch, openvino, onnxruntime (default: all)"
    )
    bench.add_argument("--bundle", type=Path, default=SHIPPED, help="of the second block (default: the shipped one)")
    bench.set_defaults(run=_benchmark)


def _train(options: argparse.Namespace) -> dict[str, Any]:
    if options.verdicts is not None:
        return verdicts.retrain(options.verdicts, options.start, options.out, options.seed)
    root = None if options.data == "none" else _root(options.data)
    run = Run(
        folder=options.work or options.out.with_name(options.out.name + ".training"),
        logger=options.logger,
        precision=options.precision,
        processes=options.processes,
        patience=options.patience,
    )
    shape = replace(preset(options.preset), run=run)
    own = None if options.site is None else read_site(options.site)
    beside = [_figures(path) for path in options.beside]
    return recipe.make(shape, root, options.out, options.seed, options.counter, own=own, beside=beside)


def _figures(path: Path) -> dict[str, Any]:
    """What an earlier training printed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} holds no figures of a training: {error}", "--beside") from error
    if not isinstance(found, dict) or "seed" not in found:
        raise ConfigError(f"{path} holds no figures of a training: what `train` printed is expected", "--beside")
    return found


def _ablate(options: argparse.Namespace) -> dict[str, Any]:
    root = None if options.data == "none" else _root(options.data)
    return ablate.run(options.out, preset(options.preset), root, options.bundle, options.only, quick=options.quick)


def _compress(options: argparse.Namespace) -> dict[str, Any]:
    from models.evaluation import weight

    found = weight.report(options.bundle, options.teacher)
    print(weight.text(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.html is not None:
        options.html.write_text(weight.page(found), encoding="utf-8")
    return {}


def _longrun(options: argparse.Namespace) -> dict[str, Any]:
    shape = preset(open_bundle(options.bundle).manifest.name.rsplit("-", 1)[0])
    scale = longrun.SCALES["quick" if options.quick else "full"]
    found = longrun.run(options.bundle, installed()[0], shape, scale, options.seed)
    print(longrun.text(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return {}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from models.evaluation import assess  # draws plots: nothing that the other commands should wait for

    name = open_bundle(options.bundle).manifest.name
    wanted = assess.Wanted(
        options.bundle,
        tuple(options.engines or installed()),
        tuple(options.against),
        teacher=options.teacher,
        ablations=options.ablations,
        scale=assess.SCALES["quick" if options.quick else "full"],
        root=None if options.data == "none" else _root(options.data),
        seed=options.seed,
    )
    found = assess.assess(wanted, preset(name.rsplit("-", 1)[0]))
    print(found.text())
    options.html.write_text(found.html(), encoding="utf-8")
    print(f"the page is {options.html}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(found.figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {}


def _data(options: argparse.Namespace) -> dict[str, Any]:
    recordings = [r for name in options.formats.split(",") for r in registry.read(name, options.root)]
    print("\n".join(balance.markdown(balance.table(recordings))))
    if options.leaks:
        leaks.check(recordings, preset("first").vision_spec)
    if options.manifest is not None:
        shelf = mixture.Shelf(recording for recording in recordings if recording.split == options.split)
        mixture.write(options.manifest, mixture.plan(shelf, options.split, options.count))
    return {}


def _benchmark(options: argparse.Namespace) -> dict[str, Any]:
    train = _root(options.train_root)
    test = _root(options.test_root) if options.test_root else train
    engines = known_engines(options.engines) if options.engines else known_engines(("torch", *installed()))
    benchmark.writable(options.json, options.predictions)
    result = benchmark.run(options.set, Roots(train, test, engines), options.seed, options.bundle)
    result.write(options.json, options.predictions)
    return result.json()


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

"""`edge-agent`: run the agent on this device, check its configuration, look at the machine, record and replay.

exit codes:
  0   done, or stopped by a signal
  1   doctor: something required is missing
  2   the configuration or the command line is wrong
  3   a bundle, a recording or the disk cannot be used
  70  a part failed again and again; start the agent anew
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent import __version__


def build_parser() -> argparse.ArgumentParser:
    """Every command and option; `args.command(args)` runs the one that was chosen."""
    about, _, codes = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description=about,
        epilog=codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, does: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(command=does)
        return added

    run = command("run", _run, "Run the agent until SIGTERM or Ctrl-C; without an identity, events are printed.")
    run.add_argument("config", type=Path, metavar="CONFIG", help="the site's YAML file")
    run.add_argument(
        "--until-ended", action="store_true", help="end when every source has ended (files without loop)"
    )

    check = command("check", _check, "Validate a configuration, the drivers' options, identity and bundle included.")
    check.add_argument("config", type=Path, metavar="CONFIG")

    command("schema", _schema, "Print the configuration's JSON Schema, for editors.")

    doctor = command("doctor", _doctor, "Say what this machine offers, what is missing, and what to do about it.")
    doctor.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="look at what this site needs as well")

    record = command("record", _record, "Record what the sources give, to run it again later.")
    record.add_argument("config", type=Path, metavar="CONFIG")
    record.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the recording")
    record.add_argument("--seconds", type=float, default=60.0, metavar="N", help="how long (default: 60)")

    replay = command("replay", _replay, "Run a recording as fast as it goes and print its events as JSON lines.")
    replay.add_argument("recording", type=Path, metavar="DIR")
    replay.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle (default: the one that ships)")
    replay.add_argument("--engine", choices=("openvino", "onnxruntime"), default="openvino")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    from edge_agent.errors import BundleError, ConfigError, SourceError, StorageError

    args = build_parser().parse_args(argv)
    try:
        code: int = args.command(args)
    except ConfigError as error:
        print(f"configuration: {error}", file=sys.stderr)
        return 2
    except (BundleError, StorageError, SourceError) as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    return code


# The commands import what they need themselves: `run` has to hold signals back before the libraries below start
# threads, and `schema` should not wait for a model runtime to load.


def _run(args: argparse.Namespace) -> int:
    from edge_agent.lifecycle import block_signals

    block_signals()
    from edge_agent import app, config, health

    site = config.load(args.config)
    health.configure_logging(site.log)
    return app.run(site, until_ended=args.until_ended)


def _check(args: argparse.Namespace) -> int:
    from edge_agent import app, config

    print(app.summary(config.load(args.config)))
    return 0


def _schema(_: argparse.Namespace) -> int:
    from edge_agent import config

    print(json.dumps(config.schema(), indent=2, ensure_ascii=False))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from edge_agent import config, doctor, health

    site = config.load(args.config) if args.config else None
    health.configure_logging(config.LogConfig(level="error"))
    findings = doctor.examine(site)
    print(doctor.report(findings))
    return 1 if any(finding.state == "missing" for finding in findings) else 0


def _record(args: argparse.Namespace) -> int:
    from edge_agent.lifecycle import block_signals

    block_signals()
    from edge_agent import app, config, health

    site = config.load(args.config)
    health.configure_logging(site.log)
    counts = app.record(site, args.out, args.seconds)
    print(f"recorded to {args.out}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    return 0


def _replay(args: argparse.Namespace) -> int:
    from edge_agent import app, config, health

    health.configure_logging(config.LogConfig(level="warning"))
    count = app.replay(args.recording, config.ModelConfig(bundle=args.bundle, engine=args.engine), print)
    print(f"{count} samples", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

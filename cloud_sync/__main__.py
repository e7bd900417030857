"""`cloud-sync`: the cloud's programs and what an operator does on the machine itself.

Exit 0: done, or stopped in order. 1: it cannot go on; the last line says why. 2: wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_sync.errors import CloudError
from edge_agent.errors import TectumError

if TYPE_CHECKING:  # each command imports what it needs: `--help` needs none of it
    from cloud_sync.config import Config
    from cloud_sync.store import Store

Command = Callable[[argparse.Namespace], None]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    args = build_parser().parse_args(arguments)
    try:
        args.command(args)
    except (CloudError, TectumError) as error:
        print(f"cloud-sync: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="cloud-sync", description="The cloud side of Tectum.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_programs(commands)
    _add_devices(commands)
    _add_users(commands)
    _add_updates(commands)
    return parser


Subparsers = argparse._SubParsersAction  # the type has no public name


def _add_programs(commands: Subparsers[argparse.ArgumentParser]) -> None:
    init = commands.add_parser("init", help="write a new installation into a folder")
    init.add_argument("folder", type=Path, metavar="DIR")
    init.add_argument(
        "--host", default="127.0.0.1", help="name or address that people and devices use; TLS off loopback"
    )
    init.add_argument("--port", type=int, default=8080, help="of the dashboard and the API")
    init.add_argument("--broker-port", type=int, help="of the MQTT broker (1883, or 8883 with TLS)")
    init.add_argument("--demo", action="store_true", help="for an embedded broker on loopback instead of Mosquitto")
    init.set_defaults(command=_init)
    _program(commands, "serve", "dashboard, API and updates for devices", _serve)
    ingest = _program(commands, "ingest", "take messages from the broker into the database", _ingest)
    ingest.add_argument("--name", default="1", help="of this worker, if there are several")
    _program(commands, "check", "check the configuration and say where things are", _check)
    schema = commands.add_parser("schema", help="print the JSON Schema of cloud.yaml, for editors")
    schema.set_defaults(command=_schema)


def _add_devices(commands: Subparsers[argparse.ArgumentParser]) -> None:
    enrol = _program(commands, "enrol", "let a device in and write its identity file", _enrol)
    enrol.add_argument("device", metavar="DEVICE")
    enrol.add_argument("--site", help="where it is (default: `site` of cloud.yaml)")
    enrol.add_argument("--out", type=Path, metavar="FILE", help="identity file (default: DEVICE.identity.yaml)")
    revoke = _program(commands, "revoke", "cut a device off", _revoke)
    revoke.add_argument("device", metavar="DEVICE")


def _add_users(commands: Subparsers[argparse.ArgumentParser]) -> None:
    user = commands.add_parser("user", help="people who may log in")
    actions = user.add_subparsers(title="actions", required=True, metavar="ACTION")
    add = _program(actions, "add", "make a user; prints the password once", _user_add)
    add.add_argument("name")
    add.add_argument("--role", choices=["admin", "operator", "viewer"], default="operator")
    add.add_argument("--site", action="append", metavar="SITE", help="may see this site alone (can be repeated)")
    for name, text, command in (
        ("remove", "delete a user", _user_remove),
        ("password", "give a user a new password; prints it once", _user_password),
        ("login-link", "print a link that logs a user in once within 15 minutes", _user_link),
    ):
        _program(actions, name, text, command).add_argument("name")
    _program(actions, "list", "who may log in", _user_list)


def _add_updates(commands: Subparsers[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser("keys", help="signing keys of this installation's updates")
    actions = keys.add_subparsers(title="actions", required=True, metavar="ACTION")
    _program(actions, "init", "make them; before the first device is enrolled", _keys_init)
    release = _program(commands, "release", "sign a bundle for the fleet", _release)
    release.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder with manifest.json and what it names")
    retrain = _program(commands, "retrain", "train on the verdicts; prints the folder of the new bundle", _retrain)
    retrain.add_argument("--python", default=sys.executable, help="interpreter that has the `train` extra")
    retrain.add_argument("--release", action="store_true", help="sign the new bundle for the fleet at once")


def _program(
    commands: Subparsers[argparse.ArgumentParser], name: str, text: str, command: Command
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get("TECTUM_CLOUD_CONFIG", "cloud.yaml")),
        metavar="FILE",
        help="cloud.yaml (default: $TECTUM_CLOUD_CONFIG, or the one in this folder)",
    )
    parser.set_defaults(command=command)
    return parser


def _init(args: argparse.Namespace) -> None:
    from cloud_sync.bootstrap import bootstrap
    from edge_agent.contract.identity import is_loopback

    broker_port = args.broker_port or (1883 if is_loopback(args.host) else 8883)
    for path in bootstrap(args.folder, args.host, args.port, broker_port, demo=args.demo):
        print(path)


def _serve(args: argparse.Namespace) -> None:
    from cloud_sync import app

    app.serve(_config(args), say=lambda words: print(words, flush=True))


def _ingest(args: argparse.Namespace) -> None:
    from cloud_sync import app

    app.ingest(_config(args), args.name)


def _check(args: argparse.Namespace) -> None:
    config = _config(args)
    print(f"{args.config}: good\n  dashboard  {config.url}\n  data       {config.data_dir}")
    print(f"  broker     {config.broker.host}:{config.broker.port} ({'TLS' if config.broker.tls else 'loopback'})")


def _schema(_args: argparse.Namespace) -> None:
    from cloud_sync import config

    print(json.dumps(config.schema(), indent=2))


def _enrol(args: argparse.Namespace) -> None:
    from cloud_sync import broker, enrol

    config = _config(args)
    out = args.out or Path(f"{args.device}.identity.yaml")
    identity = enrol.enrol(
        config,
        _store(config),
        broker.users(config.broker),
        device=args.device,
        site=args.site or config.site,
        out=out,
        now_ns=time.time_ns(),
    )
    print(f"{out}: identity of {identity.device} at {identity.site}. It holds secrets: bring it to the device and")
    print("name it there as `identity:`; no copy is kept here.")
    if not identity.tuf_root:
        print("It trusts no updates, for there are no keys: `cloud-sync keys init`, then enrol it again.")


def _revoke(args: argparse.Namespace) -> None:
    from cloud_sync import broker, enrol

    config = _config(args)
    enrol.revoke(_store(config), broker.users(config.broker), args.device, time.time_ns())
    print(f"{args.device} is cut off")


def _user_add(args: argparse.Namespace) -> None:
    from cloud_sync.accounts import Accounts

    sites = tuple(args.site) if args.site else None
    print(f"password of {args.name}: {Accounts(_store(_config(args))).add(args.name, args.role, sites)}")


def _user_remove(args: argparse.Namespace) -> None:
    from cloud_sync.accounts import Accounts

    Accounts(_store(_config(args))).remove(args.name)


def _user_password(args: argparse.Namespace) -> None:
    from cloud_sync.accounts import Accounts

    print(f"password of {args.name}: {Accounts(_store(_config(args))).reset_password(args.name)}")


def _user_link(args: argparse.Namespace) -> None:
    from cloud_sync.accounts import Accounts

    config = _config(args)
    print(f"{config.url}/login/{Accounts(_store(config)).make_link(args.name)}")


def _user_list(args: argparse.Namespace) -> None:
    from cloud_sync.accounts import Accounts

    for user in Accounts(_store(_config(args))).users():
        sites = "every site" if user.sites is None else ", ".join(sorted(user.sites))
        print(f"{user.name:<20} {user.role:<10} {sites}")


def _keys_init(args: argparse.Namespace) -> None:
    from cloud_sync.release import Repository

    config = _config(args)
    for path in Repository(config.tuf_dir, config.keys_dir).init():
        print(path)


def _release(args: argparse.Namespace) -> None:
    config = _config(args)
    _sign(config, args.bundle)


def _retrain(args: argparse.Namespace) -> None:
    from cloud_sync.app import open_services
    from cloud_sync.release import Repository
    from cloud_sync.retrain import retrain

    config = _config(args)
    services = open_services(config)
    repository = Repository(config.tuf_dir, config.keys_dir)
    try:
        bundle = retrain(
            services.store,
            services.blobs.path,
            repository,
            config.data_dir / "training",
            python=args.python,
            say=lambda words: print(words, file=sys.stderr, flush=True),
        )
    finally:
        services.store.close()
    if args.release:
        _sign(config, bundle)
    print(bundle)


def _sign(config: Config, bundle: Path) -> None:
    """Sign a bundle, write it down, and hint the devices, which find it at their next look all the same."""
    from cloud_sync import broker
    from cloud_sync.errors import BrokerError
    from cloud_sync.release import Repository, hints, note

    released = Repository(config.tuf_dir, config.keys_dir).release(bundle)
    store = _store(config)
    try:
        note(store, released, time.time_ns())
        print(f"release {released.counter} of {released.family} is signed: {released.bundle}")
        broker.send(config.broker, hints(store, released), retain=True)
    except BrokerError as error:
        print(f"the broker could not be told ({error}); devices will see the release at their next look")
    finally:
        store.close()


def _config(args: argparse.Namespace) -> Config:
    from cloud_sync import config

    found = config.load(args.config)
    _log_to_stderr(found.log.level, found.log.format)
    return found


def _store(config: Config) -> Store:
    from cloud_sync.store import open_store

    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = open_store(config.database_url)
    store.migrate()
    return store


def _log_to_stderr(level: str, form: str) -> None:
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"at": record.created, "level": record.levelname.lower(), "from": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


if __name__ == "__main__":
    sys.exit(main())

"""cloud.yaml → frozen records, or ConfigError with the path of the wrong key.

Units are in the names. Secrets come as `${file:PATH}` (relative to the file's folder) or `${env:NAME}`. An address
that is not loopback needs TLS, for people and for the broker: without it nothing starts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta, Struct

from cloud_sync.errors import ConfigError
from edge_agent.contract.event import Name
from edge_agent.contract.identity import is_loopback

Port = Annotated[int, Meta(ge=1, le=65535)]
PositiveInt = Annotated[int, Meta(gt=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]


class ListenConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where `serve` listens. Certificate and key are PEM files; off loopback they are required."""

    host: str = "127.0.0.1"
    port: Port = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None


class BrokerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The MQTT v5 broker, as the cloud reaches it and as devices do."""

    host: str = "127.0.0.1"
    port: Port = 8883
    username: str
    password: str
    tls: bool = True  #: may be false for a loopback address only
    ca: Path | None = None  #: PEM of the broker's CA; None: the system's trust store
    public_host: str = ""  #: what devices connect to; empty: `host`
    public_port: Port | None = None  #: None: `port`
    #: Who keeps the broker's users. dynsec: Mosquitto's dynamic-security plugin, told over its control topic.
    #: file: `users_file`, JSON of name → password, read by an embedded broker when it starts. none: you do.
    control: Literal["dynsec", "file", "none"] = "none"
    control_username: str = ""  #: dynsec: a user that may publish to $CONTROL
    control_password: str = ""
    users_file: Path | None = None


class IngestConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How messages are taken in."""

    group_ms: PositiveFloat = 20.0  #: longest wait for company before a transaction
    group_max: PositiveInt = 256  #: payloads of one transaction
    in_flight: Annotated[int, Meta(ge=1, le=65535)] = 1024  #: payloads the broker may have open with us
    dead_letters: PositiveInt = 10_000  #: newest that are kept; the rest is counted
    losses: PositiveInt = 100_000


class BlobConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Evidence on disk."""

    file_mb: PositiveInt = 256  #: largest file
    device_mb: PositiveInt = 10_240  #: of one device, all files
    early_mb: PositiveInt = 512  #: of one device, files (parts too) that no message has named yet
    free_mb: Annotated[int, Meta(ge=0)] = 512  #: disk space that uploads leave free


class NotifyConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told of a new alert, beside the dashboard."""

    webhook: str = ""  #: an http(s) URL that gets a JSON POST; empty: nobody
    timeout_s: PositiveFloat = 5.0


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the cloud's words go: stderr, as text for people or JSON for machines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An installation of the cloud, whole."""

    version: Literal[1]
    broker: BrokerConfig
    data_dir: Path  #: database, evidence, updates and their keys
    database: str = ""  #: SQLAlchemy URL; empty: SQLite in `data_dir`
    site: Name = "home"  #: of devices that are enrolled without --site
    public_url: str = ""  #: what devices and people call the cloud; empty: from `listen`
    ca: Path | None = None  #: PEM that devices check `public_url` against; None: their system's trust store
    listen: ListenConfig = ListenConfig()
    ingest: IngestConfig = IngestConfig()
    blobs: BlobConfig = BlobConfig()
    notify: NotifyConfig = NotifyConfig()
    log: LogConfig = LogConfig()

    @property
    def database_url(self) -> str:
        """Where the store is."""
        return self.database or f"sqlite:///{self.data_dir / 'cloud.db'}"

    @property
    def blob_dir(self) -> Path:
        """Evidence files."""
        return self.data_dir / "blobs"

    @property
    def tuf_dir(self) -> Path:
        """The signed repository of updates: `metadata/` and `targets/`."""
        return self.data_dir / "tuf"

    @property
    def keys_dir(self) -> Path:
        """Private keys of this installation's updates."""
        return self.data_dir / "keys"

    @property
    def url(self) -> str:
        """What devices and people call the cloud, without a slash at the end."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = f"[{self.listen.host}]" if ":" in self.listen.host else self.listen.host
        return f"{'https' if self.listen.tls_cert else 'http'}://{host}:{self.listen.port}"


_REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")


def load(path: Path) -> Config:
    """The configuration in `path`, relative paths made absolute against its folder."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}. Make one with `cloud-sync init DIR`") from error
    return parse(text, path.parent.resolve())


def parse(text: str, folder: Path) -> Config:
    """The configuration in a YAML text; `folder` anchors relative paths."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"expected a mapping at the top, got {type(tree).__name__}")
    try:
        config = msgspec.convert(_resolve(tree, folder, "$"), Config, dec_hook=_paths)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `")
        raise ConfigError(message, where.rstrip("`").removeprefix("$.").removeprefix("$") or "the top") from error
    config = _anchored(config, folder)
    _check_listen(config)
    _check_broker(config.broker)
    if config.notify.webhook and urlsplit(config.notify.webhook).scheme not in ("http", "https"):
        raise ConfigError(f"{config.notify.webhook!r} is no http or https URL", "notify.webhook")
    return config


def schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    return msgspec.json.schema(Config, schema_hook=_path_schema)


def _path_schema(kind: type[Any]) -> dict[str, Any]:
    if kind is Path:
        return {"type": "string", "format": "path"}
    raise NotImplementedError(kind)  # msgspec's way of saying "not mine"


def _check_listen(config: Config) -> None:
    listen = config.listen
    if (listen.tls_cert is None) != (listen.tls_key is None):
        raise ConfigError(
            "certificate and key go together", "listen.tls_key" if listen.tls_cert else "listen.tls_cert"
        )
    if listen.tls_cert is None and not is_loopback(listen.host):
        raise ConfigError(
            f"{listen.host} can be reached from outside, so it needs TLS: set listen.tls_cert and listen.tls_key "
            "(`cloud-sync init DIR --host NAME` makes them), or listen on 127.0.0.1",
            "listen.host",
        )
    parts = urlsplit(config.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{config.url!r} is no https URL such as https://cloud.example", "public_url")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigError(f"{config.url!r} is not loopback, so it has to be https", "public_url")


def _check_broker(broker: BrokerConfig) -> None:
    for key, host in (("broker.host", broker.host), ("broker.public_host", broker.public_host)):
        if host and not broker.tls and not is_loopback(host):
            raise ConfigError(
                f"{host} is not loopback, so it needs TLS: set broker.tls: true (and broker.ca for a CA of your own; "
                "deploy/mosquitto/ has a template), or use a broker on 127.0.0.1",
                key,
            )
    if broker.control == "dynsec" and not (broker.control_username and broker.control_password):
        raise ConfigError("dynsec needs control_username and control_password", "broker.control")
    if broker.control == "file" and broker.users_file is None:
        raise ConfigError("`file` needs users_file", "broker.control")


def _paths(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    raise msgspec.ValidationError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")


def _resolve(value: Any, folder: Path, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, folder, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, folder, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: _lookup(match[1], match[2], folder, where.removeprefix("$.")), value)
    return value


def _lookup(kind: str, name: str, folder: Path, where: str) -> str:
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"environment variable {name} is not set", where)
        return os.environ[name]
    try:
        return (folder / Path(name).expanduser()).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read secret file {name}: {error}", where) from error


def _anchored(config: Config, folder: Path) -> Config:
    def anchor(path: Path | None) -> Path | None:
        return None if path is None else (folder / path).resolve()

    replace = msgspec.structs.replace
    listen, broker = config.listen, config.broker
    return replace(
        config,
        data_dir=(folder / config.data_dir).resolve(),
        ca=anchor(config.ca),
        listen=replace(listen, tls_cert=anchor(listen.tls_cert), tls_key=anchor(listen.tls_key)),
        broker=replace(broker, ca=anchor(broker.ca), users_file=anchor(broker.users_file)),
    )

"""Cameras, microphones and sensor feeds, each a driver behind `open`, `read`, `close`.

A driver is a class `D(name, options: D.Options, clock)` in a package that announces it under the entry point
group `tectum.sources`; ours use the same door. Besides the three methods of `core.records.Source` a driver may have

    counters            dict[str, int] that only rise: what it saw and could not use
    stamps_on_arrival   True if captured_ns is the time of arrival (sensor feeds), so that a quiet feed is progress

A read may fail with SourceError (the host closes, waits and opens again) or SourceEnded; nothing else.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, cast

import msgspec

from edge_agent.clock import Clock
from edge_agent.config import SourceConfig, options
from edge_agent.core.records import Source
from edge_agent.errors import ConfigError

GROUP = "tectum.sources"


class Driver(Protocol):
    """What an entry point of the group names."""

    Options: type[msgspec.Struct]

    def __call__(self, name: str, options: msgspec.Struct, clock: Clock) -> Source:
        """A source that is not open yet. ConfigError if the options cannot work together."""


def installed() -> tuple[str, ...]:
    """Names of the drivers on this machine, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def create(config: SourceConfig, clock: Clock) -> Source:
    """The source that `config` describes, not open yet.

    ConfigError if no such driver is installed, it cannot be imported, or an option is wrong; nothing is connected.
    """
    driver = _driver(config)
    chosen = options(config, driver.Options)
    try:
        return driver(config.name, chosen, clock)
    except ConfigError as error:
        where = f"sources[{config.name}].options" + (f".{error.path}" if error.path else "")
        raise ConfigError(str(error).removeprefix(f"{error.path}: "), where) from error


def _driver(config: SourceConfig) -> Driver:
    where = f"sources[{config.name}].driver"
    found: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group=GROUP)}
    if config.driver not in found:
        raise ConfigError(f"no driver {config.driver!r}; installed: {', '.join(sorted(found)) or 'none'}", where)
    entry = found[config.driver]
    try:
        return cast(Driver, entry.load())
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"driver {config.driver!r} ({entry.value}) cannot be loaded: {error}", where) from error

"""MQTT topics: `tectum/v1/<site>/<device>/<up|down>/<leaf>`; one place makes and reads them."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from edge_agent.errors import WireError

ROOT = "tectum/v1"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")

Direction = Literal["up", "down"]
UP_LEAVES = ("event", "rollout", "health", "state")
DOWN_LEAVES = ("ack", "desired")

#: What the ingest subscribes to, in the shared group that lets several workers divide the load.
INGEST_FILTER = f"$share/ingest/{ROOT}/+/+/up/#"


class Topic(NamedTuple):
    """A parsed topic. `str(topic)` gives the string back."""

    site: str
    device: str
    direction: Direction
    leaf: str

    def __str__(self) -> str:
        return f"{ROOT}/{self.site}/{self.device}/{self.direction}/{self.leaf}"


def is_name(text: str) -> bool:
    """Whether `text` may name a site, device, scene or source: a-z 0-9 _ -, at most 64 characters."""
    return NAME.fullmatch(text) is not None


def up(site: str, device: str, leaf: str) -> str:
    """Topic that the device publishes `leaf` on."""
    return str(Topic(site, device, "up", leaf))


def down(site: str, device: str, leaf: str) -> str:
    """Topic that the cloud publishes `leaf` on for one device."""
    return str(Topic(site, device, "down", leaf))


def parse(topic: str) -> Topic:
    """The parts of a topic, or WireError `topic` for one that is not ours."""
    parts = topic.split("/")
    if len(parts) != 6 or "/".join(parts[:2]) != ROOT:
        raise WireError("topic", f"{topic!r} is not {ROOT}/<site>/<device>/<up|down>/<leaf>")
    site, device, direction, leaf = parts[2:]
    leaves = {"up": UP_LEAVES, "down": DOWN_LEAVES}.get(direction, ())
    if not (is_name(site) and is_name(device) and leaf in leaves):
        raise WireError("topic", f"{topic!r} has a name or a leaf that version 1 does not know")
    return Topic(site, device, "up" if direction == "up" else "down", leaf)

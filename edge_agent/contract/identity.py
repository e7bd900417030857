"""What `cloud-sync enrol` gives a device: who it is, whom it trusts. One file, readable by the agent alone."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from msgspec import Meta, Struct

from edge_agent.contract.event import VERSION, Name


class Broker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to publish. `tls` may be false for a loopback address only."""

    host: str
    port: Annotated[int, Meta(ge=1, le=65535)] = 8883
    username: str
    password: str
    tls: bool = True
    ca_pem: str = ""  #: empty: the system's trust store


class Cloud(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where evidence goes and updates come from. `url` is https, or http on a loopback address."""

    url: str
    token: str
    ca_pem: str = ""


class Identity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration fragment of one device."""

    v: int = VERSION
    site: Name
    device: Name
    broker: Broker
    cloud: Cloud
    tuf_root: str = ""  #: JSON of the trusted root; empty: this installation signs no updates


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself: the only place where TLS may be left out."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

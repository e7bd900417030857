"""Devices as people see them: what each last said, and whether that is still true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cloud_sync.accounts import Viewer
from cloud_sync.store.tables import Device, Loss

#: Three heartbeats of 30 s missed: what a device last said of itself is no longer believed.
STALE_S = 100.0
_NS = 1_000_000_000

#: online: heard of lately · stale: says it is online, but silent · offline: its last will or good-bye was heard ·
#: never: enrolled, not heard of yet · revoked: cut off.
Presence = Literal["online", "stale", "offline", "never", "revoked"]


@dataclass(frozen=True)
class DeviceView:
    """A device and how it is. Times are UTC nanoseconds on the cloud's clock."""

    name: str
    site: str
    presence: Presence
    enrolled_ns: int
    revoked_ns: int | None
    seen_ns: int | None
    silent_s: float | None  #: since it was last heard of
    state: dict[str, Any]  #: last `State` message, empty before the first
    health: dict[str, Any]  #: last `Health` message, empty before the first
    health_ns: int | None
    rollout: dict[str, Any]  #: last `Rollout` body, empty before the first
    lost: int  #: messages that the device reported as evicted, in all


def devices(session: Session, viewer: Viewer, now_ns: int) -> list[DeviceView]:
    """Every device of the viewer's sites, by site and name."""
    query = sa.select(Device).order_by(Device.site, Device.name)
    if viewer.sites is not None:
        query = query.where(Device.site.in_(viewer.sites))
    counts = sa.select(Loss.device, sa.func.sum(Loss.count)).where(Loss.reason.in_(GAPS)).group_by(Loss.device)
    lost = {name: int(count) for name, count in session.execute(counts)}
    return [_view(row, lost.get(row.name, 0), now_ns) for row in session.execute(query).scalars()]


#: Reasons of `Loss` rows that stand for messages which will never come.
GAPS = ("full", "damaged", "refused")


def presence(device: Device, now_ns: int) -> Presence:
    """How far the last words of a device can be believed now."""
    if device.revoked_ns is not None:
        return "revoked"
    if device.seen_ns is None:
        return "never"
    if not device.online:
        return "offline"
    return "stale" if now_ns - device.seen_ns > STALE_S * _NS else "online"


def _view(row: Device, lost: int, now_ns: int) -> DeviceView:
    return DeviceView(
        name=row.name,
        site=row.site,
        presence=presence(row, now_ns),
        enrolled_ns=row.enrolled_ns,
        revoked_ns=row.revoked_ns,
        seen_ns=row.seen_ns,
        silent_s=None if row.seen_ns is None else max(0.0, (now_ns - row.seen_ns) / _NS),
        state=row.state or {},
        health=row.health or {},
        health_ns=row.health_ns,
        rollout=row.rollout or {},
        lost=lost,
    )

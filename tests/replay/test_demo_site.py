"""What `make demo` promises, held against the shipped bundle: alerts come from the model, and quiet stays quiet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_agent import engine, sources
from edge_agent.app import SHIPPED
from edge_agent.config import QUANTITIES, Channel, SceneConfig, SourceConfig
from edge_agent.contract.event import Event
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import Model, Packet
from tests.parts.delivery import HandClock

SEED = 1  #: of `make demo`
CHANNELS = ("temperature", "humidity", "smoke", "co2", "light", "vibration", "door")
SCENE = SceneConfig(
    name="yard",
    camera="site",
    microphone="site",
    sensors=tuple(Channel(source="site", channel=name, quantity=name) for name in QUANTITIES if name in CHANNELS),
)


@pytest.fixture(scope="module")
def shipped() -> Iterator[Model]:
    model = engine.load(SHIPPED, "openvino", 1)
    yield model
    model.engine.close()


def events(model: Model, seconds: float, **options: object) -> list[Event]:
    """What the pipeline says of the simulated site, as fast as it can be rendered."""
    clock = HandClock()
    site = sources.create(SourceConfig(name="site", driver="synthetic", options={"speed": 0, **options}), clock)
    pipeline = Pipeline((SCENE,), model)
    end_ns = clock.monotonic_ns() + int(seconds * 1e9)
    found: list[Event] = []
    site.open()
    try:
        while (
            (sample := site.read(1.0)) is not None and not isinstance(sample, Packet) and sample.captured_ns < end_ns
        ):
            found += pipeline.push(sample)
    finally:
        site.close()
    return found + pipeline.flush()


def test_the_demo_site_raises_a_fused_alert_within_its_first_half_minute(shipped: Model) -> None:
    found = [event for event in events(shipped, 30, seed=SEED) if event.phase == "new"]
    # The crackle may be heard before there is enough to see: then something is wrong, and only later is it fire.
    assert [event.label for event in found] in (["fire"], ["anomaly", "fire"])
    fire = found[-1]
    assert set(fire.quality.present) == {"vision", "audio", "sensors"}
    assert fire.shares.vision > 0
    assert fire.shares.sensors > 0


@pytest.mark.parametrize("muted", ["vision", "audio", "sensors"])
def test_a_muted_modality_has_no_share(shipped: Model, muted: str) -> None:
    found = events(shipped, 40, seed=SEED, mute=[muted])
    assert all(getattr(event.shares, muted) == 0 for event in found)
    assert all(muted not in event.quality.present for event in found)
    if muted == "audio":  # the least of the three in a fire: the alert must come without it
        assert [event.label for event in found if event.phase == "new"]


@pytest.mark.timeout(400)
def test_a_quiet_site_gives_no_alert_in_ten_minutes(shipped: Model) -> None:
    found = events(shipped, 600, seed=SEED, episodes="quiet")
    assert [(event.label, event.step) for event in found] == []

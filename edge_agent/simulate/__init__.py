"""A site that renders picture, sound and sensors from a seed, with known answers. Pure: no clock, no file."""

from edge_agent.simulate.air import CHANNELS
from edge_agent.simulate.episodes import ANOMALIES, HARD_NEGATIVES, MIX, NATURE, Episode, demo, quiet, schedule
from edge_agent.simulate.site import Site

__all__ = [
    "ANOMALIES",
    "CHANNELS",
    "HARD_NEGATIVES",
    "MIX",
    "NATURE",
    "Episode",
    "Site",
    "demo",
    "quiet",
    "schedule",
]

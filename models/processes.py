"""Work for two cores: figures are promised for a machine that has as many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
_PROCESSES = 2


def side_by_side(function: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """`function` of every item, two at a time where there are two cores; items and answers travel."""
    count = min(_PROCESSES, len(os.sched_getaffinity(0)), len(items))
    if count < 2:
        return [function(item) for item in items]
    # Spawned: a fork would inherit the locks of torch's and the engines' threads.
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        return list(pool.map(function, items))


def interleaved(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """The whole of which part i holds every n-th item from the i-th on."""
    longest = max((len(part) for part in parts), default=0)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]

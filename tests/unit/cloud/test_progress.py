"""How far a stream has come, held against a plain set of what arrived."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_sync.progress import Progress

RUNS = st.lists(
    st.tuples(st.integers(1, 80), st.integers(0, 6)).map(lambda run: (run[0], run[0] + run[1])), max_size=60
)


def missing(progress: Progress) -> set[int]:
    return {seq for first, last in progress.holes for seq in range(first, last + 1)}


@given(RUNS)
def test_without_a_limit_it_says_exactly_what_is_here(runs: list[tuple[int, int]]) -> None:
    progress, here = Progress(), set()
    for first, last in runs:
        progress.settle(first, last)
        here |= set(range(first, last + 1))
        assert progress.upto == max(here)
        assert set(range(1, progress.upto + 1)) - missing(progress) == here
        assert all(
            before[1] + 1 < after[0] for before, after in zip(progress.holes, progress.holes[1:], strict=False)
        )


@given(st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=4), max_size=60), st.integers(5, 8))
def test_with_a_limit_nothing_missing_ever_passes_for_here(batches: list[list[int]], limit: int) -> None:
    progress, here = Progress(), set()
    for batch in batches:
        for seq in batch:
            progress.settle(seq, seq)
        progress.squeeze(sorted(set(batch)), limit)
        here |= set(batch)
        assert len(progress.holes) <= limit
        said = set(range(1, progress.upto + 1)) - missing(progress)
        assert said <= here
        assert set(batch) <= said, "what came just now is acknowledged now"


@given(st.permutations(list(range(1, 61))), st.integers(9, 12))
def test_rows_sent_again_after_a_squeeze_close_the_stream_in_the_end(order: list[int], limit: int) -> None:
    progress = Progress()
    for seq in order:
        progress.settle(seq, seq)
        progress.squeeze([seq], limit)
    for _ in range(60):
        if not progress.holes:
            break
        again = sorted(missing(progress))[:8]  # what the device still holds, oldest first
        for seq in again:
            progress.settle(seq, seq)
        progress.squeeze(again, limit)
    assert (progress.upto, progress.holes) == (60, [])


def test_it_goes_on_from_what_was_stored() -> None:
    progress = Progress(10, [[3, 5], [8, 8]])
    progress.settle(4, 4)
    progress.settle(8, 8)
    progress.settle(12, 12)
    assert (progress.upto, progress.as_tuples()) == (12, ((3, 3), (5, 5), (11, 11)))

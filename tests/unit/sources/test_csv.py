"""A recorded table comes in as if it were now, and a bad row costs that row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.clock import SystemClock
from edge_agent.core.records import Sample
from edge_agent.errors import SourceEnded, SourceError
from edge_agent.sources.csv import Csv, CsvOptions

CLOCK = SystemClock()


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., tuple[Csv, list[Sample]]]:
    def played(text: str | bytes, limit: int = 1000, **options: Any) -> tuple[Csv, list[Sample]]:
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        defaults = {"path": str(path), "channels": {"t": "temperature"}}
        source = Csv(
            "table", msgspec.convert({**defaults, **options}, CsvOptions, dec_hook=lambda _, v: Path(v)), CLOCK
        )
        source.open()
        samples: list[Sample] = []
        try:
            while len(samples) < limit:
                sample = source.read(5)
                if sample is not None:
                    samples.append(sample)
        except SourceEnded:
            pass
        finally:
            source.close()
        return source, samples

    return played


Play = Callable[..., tuple[Csv, list[Sample]]]


def numbers(samples: list[Sample]) -> list[tuple[str, float]]:
    return [(sample.data.channel, sample.data.value) for sample in samples]


def test_columns_become_channels_in_the_order_of_rows(play: Play) -> None:
    text = "time,temperature,door\n2026-01-01T00:00:00Z,20.5,open\n2026-01-01T00:00:01Z,,closed\n"
    source, samples = play(text, channels={"t": "temperature", "door": "door"}, time="time", speed=100.0)
    assert numbers(samples) == [("t", 20.5), ("door", 1.0), ("door", 0.0)]
    assert [sample.seq for sample in samples] == [0, 1, 2]
    assert not any(source.counters.values())


@pytest.mark.parametrize(
    ("format_", "cells"),
    [
        ("iso", ("2026-01-01 00:00:00", "2026-01-01 00:00:10")),
        ("iso", ("2026-01-01T00:00:00+01:00", "2026-01-01T00:00:10+01:00")),
        ("s", ("100", "110")),
        ("ms", ("100000", "110000")),
        ("%d.%m.%Y %H:%M:%S", ("01.02.2026 23:59:55", "02.02.2026 00:00:05")),
    ],
)
def test_rows_come_when_their_time_says_divided_by_speed(play: Play, format_: str, cells: tuple[str, str]) -> None:
    text = f"time,temperature\n{cells[0]},1\n{cells[1]},2\n"
    _, samples = play(text, time="time", time_format=format_, speed=20.0)
    assert (samples[1].captured_ns - samples[0].captured_ns) / 1e9 == pytest.approx(0.5, abs=0.15)


def test_rows_without_a_time_come_at_a_rate(play: Play) -> None:
    _, samples = play("temperature\n1\n2\n3\n", rate_hz=10.0)
    assert (samples[2].captured_ns - samples[0].captured_ns) / 1e9 == pytest.approx(0.2, abs=0.1)


def test_a_loop_begins_again_one_step_after_the_end(play: Play) -> None:
    _, samples = play("temperature\n1\n2\n", rate_hz=20.0, loop=True, limit=5)
    assert [value for _, value in numbers(samples)] == [1, 2, 1, 2, 1]
    assert (samples[4].captured_ns - samples[0].captured_ns) / 1e9 == pytest.approx(0.2, abs=0.1)


def test_other_separators_decimals_and_encodings(play: Play) -> None:
    text = "zeit;größe\n0;21,5\n".encode("latin-1")
    options = {"channels": {"g": "größe"}, "time": "zeit", "time_format": "s", "separator": ";", "decimal": ","}
    _, samples = play(text, encoding="latin-1", **options)
    assert numbers(samples) == [("g", 21.5)]


def test_a_byte_order_mark_is_no_part_of_a_name(play: Play) -> None:
    assert numbers(play("\ufefftemperature\n3\n", rate_hz=100.0)[1]) == [("t", 3.0)]


def test_bad_rows_and_cells_are_counted_and_named(play: Play) -> None:
    rows = ["0,1", "x,2", "1,nan", "2,inf", "3,word", "4", "0,9", "", "5,6"]
    source, samples = play("time,temperature\n" + "\n".join(rows) + "\n", time="time", time_format="s", speed=1000.0)
    assert numbers(samples) == [("t", 1.0), ("t", 6.0)]
    assert source.counters == {"bad_rows": 3, "bad_values": 3}
    assert "line 8" in source.last_fault


def test_a_file_of_nothing_but_bad_rows_is_an_error(play: Play) -> None:
    with pytest.raises(SourceError, match="unusable rows in a row"):
        play("time,temperature\n" + "x,1\n" * 500, time="time")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", b"\xff\xfe\x00", "x" * 300_000])
def test_a_file_without_the_columns_names_those_it_has(play: Play, text: str | bytes) -> None:
    with pytest.raises(SourceError, match=r"no column|cannot be read") as caught:
        play(text, rate_hz=1.0)
    assert len(str(caught.value)) < 70_000


def test_an_endless_line_is_taken_in_pieces(play: Play) -> None:
    source, samples = play("temperature\n" + "7" * 1_000_000 + "\n8\n", rate_hz=1000.0)
    assert numbers(samples)[-1] == ("t", 8.0)
    assert source.counters["bad_values"] > 0

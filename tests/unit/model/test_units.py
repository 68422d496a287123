"""Durations, sizes and cores: what is accepted, and that nothing else does harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cube.model.units import (
    DURATION_MS_MAX,
    exact_duration,
    exact_size,
    format_cores,
    format_duration,
    format_size,
    parse_cpu_milli,
    parse_duration_ms,
    parse_size_bytes,
)

PARSERS = [parse_duration_ms, parse_size_bytes, parse_cpu_milli]


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("1h30m", 5_400_000),
        ("1.5s", 1500), (" 2s ", 2000), ("0s", 0), ("3650d", DURATION_MS_MAX), (0, 0), (2, 2000),
        (0.25, 250), (0.0004, 0),
    ],
)  # fmt: skip
def test_durations(text: object, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("7", 7), ("64KiB", 65536), ("1.5 GiB", 3 << 29), ("1KB", 1000), ("1M", 1 << 20),
     (12, 12), (1.6, 2)],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "milli"), [(0, 0), (0.25, 250), ("0.25", 250), ("250m", 250), (1000, 1_000_000)]
)
def test_cores(text: object, milli: int) -> None:
    assert parse_cpu_milli(text) == milli


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "value",
    [True, False, None, [], {}, b"1", "", " ", "x", "-1", -1, -0.001, "1e400", "1 2", "1x",
     float("nan"), float("inf"), float("-inf"), 10**400, -(10**400), 1e306, 1e308, "9" * 5000,
     "9" * 60, "1" * 65],
)  # fmt: skip
def test_everything_else_is_a_value_error(parse: Callable[[object], int], value: object) -> None:
    with pytest.raises(ValueError, match=r"must|is not"):
        parse(value)


@pytest.mark.parametrize("parse", PARSERS)
@given(
    value=st.one_of(
        st.integers(), st.floats(), st.text(max_size=80), st.booleans(), st.none(),
        st.integers(min_value=2**1000), st.from_regex(r"\d{1,70}(ms|s|m|h|d|KiB|TiB|)", fullmatch=True),
    )
)  # fmt: skip
def test_anything_is_a_quantity_or_a_value_error(
    parse: Callable[[Any], int], value: object
) -> None:
    try:
        found = parse(value)
    except ValueError:
        return
    assert type(found) is int
    assert found >= 0


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0ms"), (999, "999ms"), (1000, "1s"), (59_999, "59s"), (60_000, "1m"), (278_000, "4m38s"),
     (11_040_000, "3h4m"), (273_600_000, "3d4h"), (86_400_000 + 59_000, "1d")],
)  # fmt: skip
def test_durations_for_people(ms: int, text: str) -> None:
    assert format_duration(ms) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 << 29, "1.5 GiB"), (512 << 20, "512 MiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(("milli", "text"), [(0, "0"), (250, "0.25"), (4000, "4"), (10_000, "10")])
def test_cores_for_people(milli: int, text: str) -> None:
    assert format_cores(milli) == text


@given(st.integers(0, DURATION_MS_MAX), st.integers(0, 1 << 50))
def test_what_is_exact_is_read_as_the_same_again(ms: int, size: int) -> None:
    assert parse_duration_ms(exact_duration(ms)) == ms
    assert parse_size_bytes(exact_size(size)) == size


def test_what_is_exact_is_short() -> None:
    assert [exact_duration(ms) for ms in (0, 1500, 90_000, 3_600_000)] == [
        "0s",
        "1500ms",
        "90s",
        "1h",
    ]
    assert [exact_size(size) for size in (0, 1000, 65536, 3 << 29)] == [
        "0",
        "1000",
        "64KiB",
        "1536MiB",
    ]

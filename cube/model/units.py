"""Durations, sizes and cores as integers, and their text forms.

Durations are milliseconds, sizes bytes, cpu millicores. Text forms: `500ms 10s 5m 1h 1h30m`;
`64MiB 1GiB 100KB`; cores are plain numbers. Plain numbers are seconds and bytes.
"""

from __future__ import annotations

import math
import re

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB|K|M|G|T)?")
_SIZE_BYTES = {
    None: 1, "B": 1,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
    "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4,
}  # fmt: skip

DURATION_MS_MAX = 10 * 365 * 86_400_000  # ten years: anything above is a slip of the keyboard
SIZE_BYTES_MAX = 1 << 50  # 1 PiB
CPU_MILLI_MAX = 1_000_000  # a thousand cores
TEXT_CHARS_MAX = 64  # of a duration or a size


def parse_duration_ms(value: object) -> int:
    """Milliseconds. Raises ValueError that says what is accepted."""
    if isinstance(value, bool):
        raise ValueError("must be a duration such as '10s', not true or false")
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number of seconds")
        if not 0 <= value <= DURATION_MS_MAX / 1000:  # before arithmetic: 10**400 fits no float
            raise ValueError("must be between 0 and ten years")
        ms = round(value * 1000)
    elif isinstance(value, str):
        text = value.strip()
        if not text or len(text) > TEXT_CHARS_MAX:
            raise ValueError("must be a duration such as '500ms', '10s', '5m' or '1h'")
        total, position = 0.0, 0
        for part in _DURATION_PART.finditer(text):
            if part.start() != position:
                break
            total += float(part[1]) * _DURATION_MS[part[2]]
            position = part.end()
        if position != len(text):
            raise ValueError(f"{value!r} is not a duration; write '500ms', '10s', '5m' or '1h'")
        ms = round(total)
    else:
        raise ValueError("must be a duration such as '10s', or a number of seconds")
    if not 0 <= ms <= DURATION_MS_MAX:
        raise ValueError("must be between 0 and ten years")
    return ms


def parse_size_bytes(value: object) -> int:
    """Bytes. Raises ValueError that says what is accepted."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a size such as '64MiB', or a number of bytes")
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip()) if len(value) <= TEXT_CHARS_MAX else None
        if match is None:
            raise ValueError(
                f"{value[:40]!r} is not a size; write bytes, or '64KiB', '64MiB', '1GiB'"
            )
        number = float(match[1]) * _SIZE_BYTES[match[2]]
    else:
        number = value
    if not 0 <= number <= SIZE_BYTES_MAX:
        raise ValueError("must be between 0 and 1 PiB")
    return round(number)


def parse_cpu_milli(value: object) -> int:
    """Millicores, from a number of cores (0.25) or text ('0.25', '250m'). Raises ValueError."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,7}m", value):
        milli = int(value[:-1])
    elif isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number of cores such as 0.25")
    else:
        try:
            cores = float(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError(f"{str(value)[:40]!r} is not a number of cores; write 0.25") from None
        if not 0 <= cores <= CPU_MILLI_MAX / 1000:
            raise ValueError("must be between 0 and 1000 cores")
        milli = round(cores * 1000)
    if not 0 <= milli <= CPU_MILLI_MAX:
        raise ValueError("must be between 0 and 1000 cores")
    return milli


def format_duration(ms: int) -> str:
    """For people: `500ms`, `12s`, `4m38s`, `3h4m`, `3d4h`. Two units at most."""
    if ms < 1000:
        return f"{ms}ms"
    seconds = ms // 1000
    for unit, size, small, small_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // small_size
            return f"{seconds // size}{unit}{rest}{small}" if rest else f"{seconds // size}{unit}"
    return f"{seconds}s"


def format_size(size_bytes: int) -> str:
    """For people: `512 MiB`, `1.5 GiB`."""
    for unit, size in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes >= size:
            text = f"{size_bytes / size:.1f}".removesuffix(".0")
            return f"{text} {unit}"
    return f"{size_bytes} B"


def exact_duration(ms: int) -> str:
    """For files: the same again when it is read, in the largest unit that says it."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms" if ms else "0s"


def exact_size(size_bytes: int) -> str:
    """For files, as exact_duration."""
    for unit, size in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes and size_bytes % size == 0:
            return f"{size_bytes // size}{unit}"
    return str(size_bytes)


def format_cores(cpu_milli: int) -> str:
    """For people: `0.25`, `4`."""
    return f"{cpu_milli / 1000:.3f}".rstrip("0").rstrip(".")

"""How long to wait before trying again."""

from __future__ import annotations


def doubling_ms(attempts: int, delay_ms: int, max_delay_ms: int) -> int:
    """The delay before retry number `attempts` (1 is the first): delay, 2·delay, 4·delay … max."""
    if attempts < 1:
        return 0
    exponent = min(attempts - 1, 40)  # 2^40 times any delay is above every maximum
    return int(min(max_delay_ms, delay_ms << exponent))

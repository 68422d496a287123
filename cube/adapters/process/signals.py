"""Signals by the names that job files have."""

from __future__ import annotations

import signal

from cube.adapters.process.failures import lasting


def signal_number(name: str) -> signal.Signals:
    """SIGTERM, TERM or 15."""
    try:
        if name.isdigit():
            return signal.Signals(int(name))
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except (KeyError, ValueError):
        raise lasting("bad_signal", f"there is no signal {name!r}") from None
